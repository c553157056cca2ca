//! `init`: the cloud's end in a folder. A commented configuration, if asked a CA with the certificate of this decryptor, and what
//! to do next.
//!
//! Nothing that stands there is written over. Keys are their owner's alone.

use pithead_hop::connect::HostName;
use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::init::{self, Planned};
use pithead_hop::program::{ProgramError, clock};
use pithead_hop::tls::Pem;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_sealing::trust::KeyArn;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long the CA lives, and its certificate: whoever replaces the second gives gateways nothing new to believe.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
const LIFE: Duration = Duration::from_secs(397 * 86_400);
/// Clocks of gateways may be behind by so much.
const BEFORE: Duration = Duration::from_secs(86_400);

/// `init DIR ...`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The folder; it is made if its parent exists. Nothing that stands there is written over
    dir: PathBuf,
    /// Make a CA here, and a certificate for a host name or an address by which gateways reach this decryptor; several may be given
    #[arg(long = "host", value_name = "NAME|IP", required_unless_present = "certificate")]
    hosts: Vec<HostName>,
    /// The certificate of another CA instead, PEM with its chain
    #[arg(long, value_name = "FILE", requires = "private_key", conflicts_with = "hosts")]
    certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
    /// Let a site connect: its name, and the CA of its certificates as NAME=FILE; several may be given, and `site add` adds more
    #[arg(long = "site", value_name = "NAME=PEM")]
    sites: Vec<SiteArg>,
    /// A bundle of the authority, as `authority statement --out` writes it; several may be given
    #[arg(long = "bundle", value_name = "FILE")]
    bundles: Vec<PathBuf>,
    /// The authority's folder, if its statements are issued again from here
    #[arg(long, value_name = "DIR")]
    authority: Option<PathBuf>,
    /// A private key in a file as ARN=FILE, instead of KMS; several may be given
    #[arg(long = "local-key", value_name = "ARN=PEM")]
    local_keys: Vec<KeyArg>,
    /// Where plaintext goes: "folder" is a file per envelope in DIR/out, "jsonl" a line per record in DIR/out.jsonl
    #[arg(long, default_value = "folder", value_parser = ["folder", "jsonl"])]
    sink: String,
    /// Where gateways connect
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7500")]
    listen: SocketAddr,
    /// Where health and metrics are asked for
    #[arg(long, value_name = "IP:PORT|unix:PATH", default_value = "127.0.0.1:7490")]
    admin_listen: AdminAddress,
}

/// `pit-7=pit-7-ca.pem`
#[derive(Debug, Clone)]
struct SiteArg {
    name: Site,
    ca: PathBuf,
}

impl std::str::FromStr for SiteArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, ca) = text.split_once('=').ok_or("write NAME=FILE")?;
        Ok(Self { name: name.parse().map_err(|error| format!("{error}"))?, ca: PathBuf::from(ca) })
    }
}

/// `arn:aws:kms:...=private.pem`
#[derive(Debug, Clone)]
struct KeyArg {
    arn: KeyArn,
    private_key: PathBuf,
}

impl std::str::FromStr for KeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (arn, file) = text.split_once('=').ok_or("write ARN=FILE")?;
        Ok(Self { arn: arn.parse().map_err(|error| format!("{error}"))?, private_key: PathBuf::from(file) })
    }
}

/// Makes it, and gives what is to be printed.
///
/// # Errors
/// When something stands there already, or what was given is not good; then nothing was written.
pub fn run(args: &Args) -> Result<String, ProgramError> {
    let mut files = Vec::new();
    let mut ca_sha256 = None;
    match (&args.certificate, &args.private_key) {
        (Some(certificate), Some(key)) => {
            Pem::read(certificate)?.certificates()?;
            Pem::read(key)?.private_key().map(drop)?;
            files.push(Planned::new("decryptor.pem", &read(certificate)?, false));
            files.push(Planned::new("decryptor.key", &read(key)?, true));
        }
        _ => {
            let made = new_cloud(&args.hosts)?;
            files.push(Planned::new("cloud-ca.pem", made.ca.as_bytes(), false));
            files.push(Planned::new("cloud-ca.key", made.ca_key.as_bytes(), true));
            files.push(Planned::new("decryptor.pem", made.certificate.as_bytes(), false));
            files.push(Planned::new("decryptor.key", made.key.as_bytes(), true));
            ca_sha256 = Some(made.ca_sha256);
        }
    }
    for site in &args.sites {
        Pem::read(&site.ca)?.certificates()?;
        files.push(Planned::new(format!("{}-ca.pem", site.name), &read(&site.ca)?, false));
    }
    for (number, path) in (1..).zip(&args.bundles) {
        files.push(Planned::new(format!("bundle-{number}.pb"), &read(path)?, false));
    }
    for (number, key) in (1..).zip(&args.local_keys) {
        Pem::read(&key.private_key)?.private_key().map(drop)?;
        files.push(Planned::new(format!("data-{number}.pem"), &read(&key.private_key)?, true));
    }
    // Last: what it names is there when it is.
    files.push(Planned::new("decryptor.toml", configuration(args)?.as_bytes(), false));

    let folders: &[&str] = if args.sink == "folder" { &["data", "out"] } else { &["data"] };
    init::write(&args.dir, folders, &files)?;
    Ok(told(args, ca_sha256.as_deref()))
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ProgramError> {
    fs::read(path).map(Zeroizing::new).map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()))
    })
}

/// A CA and a certificate under it, in PEM.
struct NewCloud {
    ca: String,
    ca_key: Zeroizing<String>,
    certificate: String,
    key: Zeroizing<String>,
    ca_sha256: String,
}

fn new_cloud(hosts: &[HostName]) -> Result<NewCloud, ProgramError> {
    let failed = |error: rcgen::Error| {
        ProgramError::new(ErrorReason::Internal, format!("no certificate could be made: {error}"))
    };
    let ca_pair = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Pithead cloud CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dated(&mut params, CA_LIFE)?;
    let ca = params.self_signed(&ca_pair).map_err(failed)?;
    let ca_key = Zeroizing::new(ca_pair.serialize_pem());
    let issuer = Issuer::new(params, ca_pair);

    let pair = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "pithead-decryptor");
    for host in hosts {
        params.subject_alt_names.push(match host {
            HostName::Name(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            HostName::Address(address) => SanType::IpAddress(*address),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    dated(&mut params, LIFE)?;
    let certificate = params.signed_by(&pair, &issuer).map_err(failed)?;
    Ok(NewCloud {
        ca: ca.pem(),
        ca_key,
        certificate: certificate.pem(),
        key: Zeroizing::new(pair.serialize_pem()),
        ca_sha256: hex::encode(Sha256::digest(ca.der())),
    })
}

/// Dates and a number for a certificate.
fn dated(params: &mut CertificateParams, life: Duration) -> Result<(), ProgramError> {
    let internal = |what: String| ProgramError::new(ErrorReason::Internal, what);
    let at = |seconds: u64| {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        time::OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| internal(error.to_string()))
    };
    let now = clock::wall_s();
    params.not_before = at(now.saturating_sub(BEFORE.as_secs()))?;
    params.not_after = at(now + life.as_secs())?;
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| internal(error.to_string()))?;
    // A number is positive, and has as many bytes as any other.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

fn configuration(args: &Args) -> Result<String, ProgramError> {
    let text = |value: &str| toml::Value::from(value).to_string();
    let sites: String = args
        .sites
        .iter()
        .map(|site| {
            let (name, ca) = (text(site.name.as_str()), text(&format!("{}-ca.pem", site.name)));
            format!("[[site]]\nname = {name}\nca = {ca}\n\n")
        })
        .collect();
    let bundles: Vec<String> =
        (1..=args.bundles.len()).map(|number| text(&format!("bundle-{number}.pb"))).collect();
    let authority = match &args.authority {
        None => String::new(),
        Some(dir) => {
            // It lies elsewhere, and this file is not where the command was given.
            let dir = std::path::absolute(dir).map_err(|error| {
                ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", dir.display()))
            })?;
            format!(
                "# The authority's folder: statements are issued again from here when they are due.\n[authority]\ndir = {}\n\n",
                text(&dir.display().to_string())
            )
        }
    };
    let unwrap = match args.local_keys.as_slice() {
        [] => "# KMS Decrypt, with the usual AWS variables. The role needs kms:Decrypt on the data keys and nothing else.\n\
               kms = true\n"
            .to_owned(),
        keys => {
            let key = |(number, key): (usize, &KeyArg)| {
                format!(
                    "[[unwrap.local]]\narn = {}\nprivate_key = \"data-{number}.pem\"\n",
                    text(key.arn.as_ref())
                )
            };
            let keys: Vec<String> = (1..).zip(keys).map(key).collect();
            format!("# Private keys in files, for trials and own machines.\nkms = false\n\n{}", keys.join("\n"))
        }
    };
    let sink = if args.sink == "folder" { "out" } else { "out.jsonl" };
    Ok(format!(
        "# The cloud's end, made by `pithead-decryptor init`. Paths are relative to this file; `pithead-decryptor config template`\n\
         # shows every key.\n\n\
         [decryptor]\n# Ledger, refused envelopes and conflicts, accepted statements, added sites. Put it on a real disk.\n\
         data_dir = \"data\"\n# Shown to gateways.\ncertificate = \"decryptor.pem\"\nprivate_key = \"decryptor.key\"\n\n\
         [ingest]\n# Where gateways connect.\nlisten = \"{listen}\"\n\n\
         # A site has a CA of its own. `pithead-decryptor site add NAME --ca PEM` adds more without this file.\n{sites}\
         [keys]\n# What `pithead-decryptor authority statement --out` writes, one file per site; looked at every 5 s.\n\
         bundles = [{bundles}]\n\n\
         {authority}\
         [unwrap]\n{unwrap}\n\
         [sink]\n# \"folder\": one file per envelope below path. \"jsonl\": one line per record in the file at path.\n\
         kind = \"{kind}\"\npath = \"{sink}\"\n\n\
         [admin]\n# Health, status and metrics. No authentication: keep it on loopback, or a socket.\nlisten = {admin}\n",
        listen = args.listen,
        bundles = match bundles.as_slice() {
            [] if args.authority.is_none() => text("bundle-1.pb"),
            bundles => bundles.join(", "),
        },
        kind = args.sink,
        admin = text(&args.admin_listen.to_string()),
    ))
}

fn told(args: &Args, ca_sha256: Option<&str>) -> String {
    let dir = args.dir.display();
    let config = args.dir.join("decryptor.toml");
    let config = config.display();
    let mut text = format!("The cloud's end lies in {dir}.\n\n");
    if let Some(sha) = ca_sha256 {
        text.push_str(&format!(
            "\x20 cloud CA  SHA-256 {sha}\n\n\
             The private keys are {dir}/cloud-ca.key and {dir}/decryptor.key. Whoever has the first can be this decryptor towards\n\
             gateways: they would bring it sealed envelopes, and it could open none of them.\n\n"
        ));
    }
    text.push_str("Next:\n");
    if args.bundles.is_empty() && args.authority.is_none() {
        text.push_str(&format!(
            "\x20 the authority  pithead-decryptor authority statement --out {dir}/bundle-1.pb ...   # keys for gateways\n"
        ));
    }
    if args.sites.is_empty() {
        text.push_str(&format!(
            "\x20 each site      pithead-decryptor site add NAME --ca site-ca.pem -c {config}   # its gateway's `init` made the CA\n"
        ));
    }
    text.push_str(&format!(
        "\x20 this machine   pithead-decryptor config check -c {config}\n\
         \x20                pithead-decryptor run -c {config}\n"
    ));
    let host = match args.hosts.first() {
        Some(host) => host.with_port(args.listen.port()).to_string(),
        None => format!("HOST:{}", args.listen.port()),
    };
    let ca = if ca_sha256.is_some() { format!("{dir}/cloud-ca.pem") } else { "the CA's".to_owned() };
    text.push_str(&format!(
        "\x20 each gateway   pithead-gateway init ... --upstream {host} --upstream-ca cloud-ca.pem   # {ca}\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::config::examine;
    use crate::config::{Config, SinkKind};
    use std::os::unix::fs::PermissionsExt as _;

    fn args(dir: &Path, more: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            args: Args,
        }
        let dir = dir.display().to_string();
        let given = ["init", &dir].into_iter().chain(more.iter().copied());
        <Only as clap::Parser>::try_parse_from(given).unwrap().args
    }

    #[test]
    fn what_is_made_is_good_and_nothing_is_written_over() {
        pithead_hop::program::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cloud");
        let args = args(&dir, &["--host", "decryptor.test", "--host", "127.0.0.1", "--sink", "jsonl"]);
        let said = run(&args).unwrap();
        let config = dir.join("decryptor.toml");
        assert!(said.contains(&format!("pithead-decryptor config check -c {}", config.display())), "{said}");
        assert!(said.contains("--upstream decryptor.test:7500"), "{said}");
        for (file, mode) in [("decryptor.key", 0o600), ("cloud-ca.key", 0o600), ("decryptor.pem", 0o644)] {
            assert_eq!(fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
        }
        let report = examine(&config).unwrap();
        assert!(report.warnings().iter().any(|warning| warning.contains("no site is known")), "{report:?}");
        assert_eq!(Config::load(&config).unwrap().sink.kind, SinkKind::Jsonl);
        let again = run(&args).unwrap_err();
        assert_eq!(again.reason, ErrorReason::WouldOverwrite);
    }

    #[test]
    fn sites_bundles_and_keys_that_are_given_are_in_the_configuration() {
        pithead_hop::program::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let made = new_cloud(&[HostName::Name("a.test".to_owned())]).unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("ca.pem"), &made.ca).unwrap();
        fs::write(at("key.pem"), made.key.as_bytes()).unwrap();
        fs::write(at("b.pb"), b"bundle").unwrap();
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-4111-8111-111111111111";
        let dir = folder.path().join("cloud");
        let more = [
            "--certificate",
            &at("ca.pem"),
            "--private-key",
            &at("key.pem"),
            "--site",
            &format!("pit-7={}", at("ca.pem")),
            "--bundle",
            &at("b.pb"),
            "--local-key",
            &format!("{arn}={}", at("key.pem")),
            "--authority",
            &at("authority"),
            "--admin-listen",
            "unix:/run/d.sock",
        ];
        run(&args(&dir, &more)).unwrap();
        let config = Config::load(&dir.join("decryptor.toml")).unwrap();
        assert_eq!(
            (config.sites[0].name.as_str(), config.unwrap.local[0].arn.to_string().as_str()),
            ("pit-7", arn)
        );
        assert_eq!(config.keys.bundles, [dir.join("bundle-1.pb")]);
        assert_eq!(config.authority.unwrap().dir, folder.path().join("authority"));
        assert_eq!(config.admin.listen.to_string(), "unix:/run/d.sock");
        let loose = fs::metadata(dir.join("data-1.pem")).unwrap().permissions().mode() & 0o077;
        assert_eq!(loose, 0, "a key is its owner's alone");
        for bad in [
            &["--host", "no host"][..],
            &["--host", "a", "--site", "pit-7"],
            &["--host", "a", "--local-key", "x=y"],
        ] {
            assert!(std::panic::catch_unwind(|| args(&dir, bad)).is_err(), "{bad:?}");
        }
    }
}
