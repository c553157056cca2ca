//! `init`: a site in a folder. Its CA, the gateway's certificate, a commented configuration, and what to do next.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pithead_hop::connect::{Endpoint, HostName};
use pithead_hop::identity::GatewayName;
use pithead_hop::keys::KeyFile;
use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::init::{self, Planned};
use pithead_hop::program::{ExitCode, ProgramError, clock};
use pithead_hop::status::reason_of_trust;
use pithead_hop::tls::Pem;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use pithead_sealing::trust::verify;

use crate::devices::ca::new_site;
use crate::devices::registry::{Sha, Stamp};

/// `init DIR ...`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder; it is made if its parent exists. Nothing that stands there is written over.
    dir: PathBuf,
    /// The site: a-z, 0-9 and '-'.
    #[arg(long)]
    site: Site,
    /// What this gateway is called.
    #[arg(long, default_value = "gw-1", value_parser = gateway_name)]
    name: GatewayName,
    /// A host name or an address by which devices reach it; several, the first is what they are told.
    #[arg(long = "host", required = true, value_name = "NAME|IP")]
    hosts: Vec<HostName>,
    /// Whose statements are believed, such as acme-mining/prod.
    #[arg(long)]
    authority: String,
    /// The authority's trust root, version 1. Get it from the authority, and compare its SHA-256.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// The decryptor: where statements come from, and where envelopes go.
    #[arg(long, value_name = "HOST:PORT", requires = "upstream_ca", required_unless_present = "bundle")]
    upstream: Option<Endpoint>,
    /// The CA of the decryptor's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "upstream")]
    upstream_ca: Option<PathBuf>,
    /// A bundle file that is carried in by hand, at a site without a way to the cloud.
    #[arg(long, value_name = "FILE", conflicts_with = "upstream")]
    bundle: Option<PathBuf>,
    /// Where devices connect.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    /// Where devices enrol.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7444")]
    enroll_listen: SocketAddr,
    /// Where health and metrics are asked for.
    #[arg(long, value_name = "IP:PORT|unix:PATH", default_value = "127.0.0.1:7480")]
    admin_listen: AdminAddress,
}

fn gateway_name(text: &str) -> Result<GatewayName, String> {
    GatewayName::new(text).map_err(|_| "a name is A-Z, a-z, 0-9, '.', '_' and '-'".to_owned())
}

/// Makes the site.
///
/// # Errors
/// When something stands there already, or what was given is not good; then nothing was written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let root = read(&args.root)?;
    verify::first_root(&args.authority, &root.clone().into()).map_err(|error| {
        ProgramError::new(reason_of_trust(error), format!("{}: {error}", args.root.display()))
            .todo("compare the file and --authority with what the authority published")
    })?;
    let made = new_site(&args.site, args.name.as_str(), &args.hosts, Stamp(clock::wall_s()))?;
    let mut files = vec![
        Planned::new("site-ca.pem", made.ca.as_bytes(), false),
        Planned::new("site-ca.key", made.ca_key.as_bytes(), true),
        Planned::new("gateway.pem", made.gateway.as_bytes(), false),
        Planned::new("gateway.key", made.gateway_key.as_bytes(), true),
        Planned::new("root.cose", &root, false),
    ];
    if let Some(path) = &args.upstream_ca {
        Pem::read(path)?.certificates()?;
        files.push(Planned::new("cloud-ca.pem", &read(path)?, false));
    }
    if let Some(path) = &args.bundle {
        let bytes = read(path)?;
        check_bundle(args, path, &bytes)?;
        files.push(Planned::new("bundle.pb", &bytes, false));
    }
    // Last: what it names is there when it is.
    files.push(Planned::new("gateway.toml", configuration(args).as_bytes(), false));

    init::write(&args.dir, &["data"], &files)?;
    super::done(out, &told(args, &made.ca_sha256, &made.gateway_spki_sha256, &Sha::of(&root)))
}

fn read(path: &Path) -> Result<Vec<u8>, ProgramError> {
    fs::read(path).map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()))
    })
}

fn check_bundle(args: &Args, path: &Path, bytes: &[u8]) -> Result<(), ProgramError> {
    let bundle = KeyFile::decode(bytes.to_vec().into()).map_err(|error| {
        ProgramError::new(ErrorReason::TrustParse, format!("{}: {error}", path.display()))
            .todo("give the file that `pithead-decryptor authority statement --out` wrote")
    })?;
    if bundle.site == args.site && bundle.authority == args.authority {
        return Ok(());
    }
    let what = format!("{} is for {} of {}", path.display(), bundle.site, bundle.authority);
    Err(ProgramError::new(ErrorReason::TrustAudience, what).todo("export the bundle of this site"))
}

fn configuration(args: &Args) -> String {
    let text = |value: &str| toml::Value::from(value).to_string();
    let Args { listen, enroll_listen, admin_listen, .. } = args;
    let reached = |listen: &SocketAddr| args.hosts[0].with_port(listen.port()).to_string();
    let (device, enroll) = (reached(listen), reached(enroll_listen));
    let keys = match &args.upstream {
        Some(upstream) => format!(
            "# The decryptor serves the newest statement.\nupstream = {}\nupstream_ca = \"cloud-ca.pem\"\n",
            text(&upstream.to_string())
        ),
        None => "# Carried in by hand; looked at again at every interval, and at `key import`.\n\
                 bundle = \"bundle.pb\"\n"
            .to_owned(),
    };
    let relay = match &args.upstream {
        Some(upstream) => format!(
            "[relay]\n# Where envelopes go.\nendpoint = {}\nca = \"cloud-ca.pem\"\n\n",
            text(&upstream.to_string())
        ),
        None => {
            "# Without a [relay] envelopes wait here: carry them away with `spool export`.\n\n".to_owned()
        }
    };
    format!(
        "# The gateway {name} of the site {site}, made by `pithead-gateway init`. Paths are relative to this file;\n\
         # `pithead-gateway config template` shows every key.\n\n\
         [gateway]\nsite = {site_text}\n\
         # Spool, key state, registry of devices. Put it on a real disk; it must exist.\ndata_dir = \"data\"\n\
         # Shown to devices and to the cloud: spiffe://{site}/gateway/{name} and the names that devices connect to.\n\
         certificate = \"gateway.pem\"\nprivate_key = \"gateway.key\"\n\n\
         [trust]\n# Whose statements are believed, and the authority's first trust root.\n\
         authority = {authority}\nroot = \"root.cose\"\n\n\
         [keys]\n{keys}\n\
         [ingest]\n# The port for devices, and the CA that signs them.\n\
         listen = \"{listen}\"\ndevice_ca = \"site-ca.pem\"\n\n\
         [enroll]\n# Where devices enrol, with a token of `pithead-gateway device add`. Leave `listen` out to make their\n\
         # files here instead (`device add --out`), and the section to have another CA sign them.\n\
         listen = \"{enroll_listen}\"\nca_key = \"site-ca.key\"\n\
         # How devices reach it, and where they find the gateway then.\n\
         address = {enroll}\nendpoints = [{device}]\n\n\
         [spool]\n# What may wait for the cloud: days of outage times bytes a day.\nmax_size = \"8GiB\"\n\n\
         {relay}\
         [admin]\n# Health, status and metrics. No authentication: keep it on loopback, or a socket.\nlisten = {admin}\n",
        name = args.name,
        site = args.site,
        site_text = text(args.site.as_str()),
        authority = text(&args.authority),
        enroll = text(&enroll),
        device = text(&device),
        admin = text(&admin_listen.to_string()),
    )
}

fn told(args: &Args, ca: &Sha, gateway: &Sha, root: &Sha) -> String {
    let dir = args.dir.display();
    let config = args.dir.join("gateway.toml");
    let config = config.display();
    format!(
        "The site {site} lies in {dir}.\n\n\
         \x20 trust root     SHA-256 {root}\n\
         \x20                compare it with what {authority} has published, by another way\n\
         \x20 site CA        SHA-256 {ca}\n\
         \x20 gateway's key  SHA-256 {gateway}\n\n\
         The private keys are {dir}/site-ca.key and {dir}/gateway.key. Whoever has the first can be any device of this\n\
         site, and any gateway of it; it reads nothing and names no key.\n\n\
         Next:\n\
         \x20 the cloud      pithead-decryptor site add {site} --ca site-ca.pem -c decryptor.toml   # {dir}/site-ca.pem\n\
         \x20 this machine   pithead-gateway config check -c {config}\n\
         \x20                pithead-gateway run -c {config}\n\
         \x20 each device    pithead-gateway device add NAME -c {config}   # prints what to type there\n",
        site = args.site,
        authority = args.authority,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn args(dir: &Path, more: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            args: Args,
        }
        let dir = dir.display().to_string();
        let given = ["init", &dir, "--site", "pit-7", "--host", "gateway.test", "--host", "fd00::1"];
        let given = given.into_iter().chain(["--authority", "acme/\"quoted\"", "--root", "r"]);
        <Only as clap::Parser>::try_parse_from(given.chain(more.iter().copied())).unwrap().args
    }

    #[test]
    fn the_configuration_that_is_written_loads_and_says_what_was_given() {
        let folder = tempfile::tempdir().unwrap();
        for more in [&["--bundle", "b.pb"][..], &["--upstream", "cloud.test:7443", "--upstream-ca", "c.pem"]]
        {
            let args = args(folder.path(), more);
            let path = folder.path().join("gateway.toml");
            fs::write(&path, configuration(&args)).unwrap();
            let config = Config::load(&path).unwrap();
            assert_eq!(config.trust.authority, "acme/\"quoted\"");
            assert_eq!(config.gateway.site.as_str(), "pit-7");
            assert_eq!(config.gateway.data_dir, folder.path().join("data"));
            let enroll = config.enroll.unwrap();
            assert_eq!(enroll.address.unwrap().to_string(), "gateway.test:7444");
            assert_eq!(enroll.endpoints[0].to_string(), "gateway.test:7443");
            assert_eq!(config.relay.is_some(), args.upstream.is_some());
        }
    }
}
