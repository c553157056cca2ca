//! `device add | list | revoke`: the registry of devices.
//!
//! It is a file in the data directory, changed here and looked at every second by a gateway that runs: so a revocation is in
//! force at once, whether or not anybody answers the admin port.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use pithead_hop::identity::spki_sha256;
use pithead_hop::program::init::create;
use pithead_hop::program::{ExitCode, ProgramError, clock, disk, human, units};
use pithead_hop::tls::{Pem, pem::certificates_to_text};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::DeviceId;
use serde_json::{Value, json};

use super::admin_client;
use crate::cli::Output;
use crate::config::{Config, Enroll};
use crate::devices::ca::{CaError, Signed};
use crate::devices::file::{FileError, RegistryFile};
use crate::devices::registry::{AddError, CertificateName, Mode, Record, Registry, Sha, Stamp};
use crate::run::material;

/// Bytes of a token: nobody guesses 128 bits.
const TOKEN_BYTES: usize = 16;
/// Longest life of a token: it lies about in messages and notes meanwhile.
const TTL_MAX: units::Duration = units::Duration::from_secs(30 * 86_400);

/// `device add NAME ...`
#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// The device's name: A-Z, a-z, 0-9, '.', '_' and '-'.
    name: DeviceId,
    /// How it is known: by a certificate, or by its address alone.
    #[arg(long, value_enum, default_value_t = Mode::Mtls)]
    mode: Mode,
    /// In network mode: the address that it comes from, such as 10.7.0.42 or 10.7.0.42/32; several if it has several.
    #[arg(long = "address", value_name = "IP", value_parser = one_address, required_if_eq("mode", "network"))]
    addresses: Vec<IpAddr>,
    /// How long its token is good.
    #[arg(long, default_value = "24h", value_parser = ttl, conflicts_with = "out")]
    ttl: units::Duration,
    /// Makes certificate and key here, into this folder, for a device that is given them by hand. It is made if its parent
    /// exists.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The trust root's file, as it will be called on the device.
    #[arg(long, value_name = "FILE", default_value = "root.cose", conflicts_with = "out")]
    root: PathBuf,
}

/// A network of one: more would name many devices.
fn one_address(text: &str) -> Result<IpAddr, String> {
    let (address, length) = match text.split_once('/') {
        None => (text, None),
        Some((address, length)) => (address, Some(length)),
    };
    let address: IpAddr = address.parse().map_err(|_| format!("{text:?} is no address"))?;
    let whole = if address.is_ipv4() { "32" } else { "128" };
    match length {
        None => Ok(address.to_canonical()),
        Some(length) if length == whole => Ok(address.to_canonical()),
        Some(_) => Err(format!("only a /{whole} names a device; {text} would name many")),
    }
}

fn ttl(text: &str) -> Result<units::Duration, String> {
    let ttl: units::Duration = text.parse().map_err(|error: units::UnitError| error.to_string())?;
    if ttl.is_zero() || ttl > TTL_MAX {
        return Err("a token lives for more than nothing and at most 30d".to_owned());
    }
    Ok(ttl)
}

/// Why the registry was not changed.
#[derive(Debug, thiserror::Error)]
enum NotChanged {
    #[error(transparent)]
    Add(#[from] AddError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("no certificate of the number {0} was made here; name it by its SHA-256")]
    UnknownNumber(String),
    #[error("no device {0} is in the registry")]
    UnknownDevice(DeviceId),
}

impl From<NotChanged> for ProgramError {
    fn from(error: NotChanged) -> Self {
        let what = error.to_string();
        match error {
            NotChanged::Add(AddError::Downgrade(_) | AddError::OtherMode(_)) => {
                Self::new(ErrorReason::ModeDowngrade, what).affects("nothing has changed")
            }
            NotChanged::Add(AddError::Revoked(_)) => {
                Self::new(ErrorReason::DeviceRevoked, what).todo("give it another name")
            }
            NotChanged::Add(AddError::AddressTaken(..)) => {
                Self::new(ErrorReason::RequestInvalid, what).todo("revoke that device first")
            }
            NotChanged::File(error) => error.into(),
            NotChanged::Ca(error) => error.into(),
            NotChanged::UnknownNumber(_) => Self::new(ErrorReason::DeviceUnknown, what),
            NotChanged::UnknownDevice(_) => Self::new(ErrorReason::DeviceUnknown, what)
                .affects("nothing has changed")
                .todo(
                    "look for its name with `device list`; with --unknown the name is turned away all the same, for good",
                )
                .exit(ExitCode::FAILED),
        }
    }
}

/// Who is turned away.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// A device, by its name.
    Device {
        /// The name.
        device: &'a DeviceId,
        /// Also if it is not in the registry.
        unknown: bool,
    },
    /// One certificate.
    Certificate(&'a CertificateName),
}

/// Adds a device, and prints what to do on it.
///
/// # Errors
/// Why not; then nothing has changed.
pub fn add(args: &AddArgs, path: &Path, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let file = registry_of(&config)?;
    let now = Stamp(clock::wall_s());
    if args.mode == Mode::Network {
        return add_by_address(args, &config, &file, now, out);
    }
    if !args.addresses.is_empty() {
        return Err(ProgramError::new(
            ErrorReason::RequestInvalid,
            "a device with a certificate is known by that, not by an address",
        )
        .exit(ExitCode::USAGE));
    }
    let Some(enroll) = &config.enroll else {
        return Err(ProgramError::new(ErrorReason::ConfigInvalid, "no CA signs devices here")
            .todo("name the site's CA in [enroll], or have the CA that you run sign the device"));
    };
    match &args.out {
        Some(folder) => add_by_hand(args, &config, &file, folder, now, out),
        None => add_by_token(args, &config, enroll, &file, now, out),
    }
}

/// The registry; only of a data directory that is there, since one that is not may be on a disk that is not mounted.
fn registry_of(config: &Config) -> Result<RegistryFile, ProgramError> {
    let data = &config.gateway.data_dir;
    if data.is_dir() {
        return Ok(RegistryFile::below(data));
    }
    let what = format!("data directory {} does not exist", data.display());
    Err(ProgramError::new(ErrorReason::DataDirUnwritable, what).todo("mount its disk, or create it"))
}

fn add_by_address(
    args: &AddArgs,
    config: &Config,
    file: &RegistryFile,
    now: Stamp,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    file.change(|registry| {
        Ok::<_, NotChanged>(registry.add(&args.name, args.mode, &args.addresses, now)?)
    })?;
    let addresses: Vec<String> = args.addresses.iter().map(IpAddr::to_string).collect();
    let port = match &config.network {
        Some(network) => format!("It connects to port {}, without a certificate.\n", network.listen.port()),
        None => "Nothing listens for such devices yet: set [network] `listen`, and restart the gateway.\n"
            .to_owned(),
    };
    let text = format!(
        "{name} is known by its address, {addresses}: assurance claimed.\n{port}\
         Whoever can use the address can be the device: forged, replaced and squatted data cannot be told from its own.\n",
        name = args.name,
        addresses = addresses.join(", "),
    );
    super::done(out, &text)
}

fn add_by_token(
    args: &AddArgs,
    config: &Config,
    enroll: &Enroll,
    file: &RegistryFile,
    now: Stamp,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    let (Some(_), Some(address)) = (enroll.listen, &enroll.address) else {
        return Err(ProgramError::new(
            ErrorReason::ConfigInvalid,
            "no port for enrolment: [enroll] has no `listen`",
        )
        .todo("set [enroll] `listen`, or make the device's files here with --out DIR"));
    };
    // What the running gateway will show; and the CA is found to be wrong here rather than there.
    let fingerprint = fingerprint(config)?;
    material::site_ca(config)?;
    let token = token()?;
    let expires = Stamp(now.0 + args.ttl.as_secs());
    let (waited, renews) = file.change(|registry| {
        let known = registry.get(&args.name);
        let waited = known
            .and_then(|record| record.token.as_ref())
            .is_some_and(|token| token.key.is_none() && token.expires_at > now);
        let renews = known.is_some_and(|record| {
            record.certificates.iter().any(|one| one.revoked_at.is_none() && one.not_after > now)
        });
        registry.add(&args.name, args.mode, &[], now)?;
        registry.give_token(&args.name, &token, expires);
        Ok::<_, NotChanged>((waited, renews))
    })?;
    let mut said = String::new();
    if waited {
        said += &format!(
            "{} was waiting for its enrolment already: the token that was given out before is good no more.\n",
            args.name
        );
    }
    if renews {
        said += &format!(
            "{name} has a certificate that is good. To give it another for the same key, on the device, before {expires}:\n\n\
             pithead-device renew -c {name}/device.toml --gateway {address} --token {token} --fingerprint {fingerprint}\n\n\
             To begin anew with a key of its own, as if the device were new:\n\n",
            name = args.name,
        );
    }
    let text = format!(
        "{said}On the device, before {expires}, once, beside the trust root that the authority gave you for it:\n\n\
         pithead-device enroll --dir {name} --gateway {address} --token {token} --fingerprint {fingerprint} \
         --site {site} --device {name} --authority {authority} --root {root}\n\n\
         The trust root does not come from here: a gateway cannot say whom a device is to believe. Instead of its file,\n\
         --root-fingerprint takes its fingerprint, from the authority as well.\n",
        name = args.name,
        site = config.gateway.site,
        authority = quoted(&config.trust.authority),
        root = quoted(&args.root.display().to_string()),
    );
    super::done(out, &text)
}

fn add_by_hand(
    args: &AddArgs,
    config: &Config,
    file: &RegistryFile,
    folder: &Path,
    now: Stamp,
    out: &mut dyn Write,
) -> Result<ExitCode, ProgramError> {
    let ca = material::site_ca(config)?
        .ok_or_else(|| ProgramError::new(ErrorReason::ConfigInvalid, "no CA signs devices here"))?;
    let enroll_ca = config.enroll.as_ref().and_then(|enroll| enroll.gateway_ca.as_ref());
    let gateway_ca = std::fs::read(enroll_ca.unwrap_or(&config.ingest.device_ca)).map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("the CA of the gateways: {error}"))
    })?;
    let names = ["device.pem", "device.key", "ca.pem"];
    if let Some(standing) =
        names.iter().map(|name| folder.join(name)).find(|path| path.symlink_metadata().is_ok())
    {
        return Err(ProgramError::new(ErrorReason::WouldOverwrite, format!("{} exists", standing.display()))
            .affects("nothing was written")
            .todo("give another folder"));
    }
    let (Signed { pem, issued, .. }, key) = file.change(|registry| {
        registry.add(&args.name, args.mode, &[], now)?;
        let (signed, key) = ca.with_key(&args.name, now)?;
        registry.issued(&args.name, signed.issued.clone(), now);
        Ok::<_, NotChanged>((signed, key))
    })?;
    let failed = |error: std::io::Error| {
        ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", folder.display()))
    };
    disk::create_folder(folder).map_err(failed)?;
    let above = certificates_to_text(ca.above().iter().map(AsRef::as_ref));
    create(&folder.join("device.key"), key.as_bytes(), true).map_err(failed)?;
    create(&folder.join("device.pem"), format!("{pem}{above}").as_bytes(), false).map_err(failed)?;
    create(&folder.join("ca.pem"), &gateway_ca, false).map_err(failed)?;
    disk::sync_folder(folder).map_err(failed)?;
    let endpoints = config.enroll.iter().flat_map(|enroll| &enroll.endpoints);
    let gateways: String = endpoints.map(|endpoint| format!(" --gateway {endpoint}")).collect();
    let gateways = if gateways.is_empty() { " --gateway HOST:PORT".to_owned() } else { gateways };
    let text = format!(
        "{folder}/device.pem, device.key and ca.pem are made; certificate {serial}, until {until}.\n\
         On the device, beside them and the trust root that the authority gave you for it:\n\n\
         pithead-device enroll --dir {name} --site {site} --device {name} --authority {authority} --root root.cose\
         {gateways} --ca ca.pem --cert device.pem --key device.key\n\n\
         Then delete the folder: whoever has device.key can be the device.\n",
        folder = folder.display(),
        serial = issued.serial,
        until = issued.not_after,
        name = args.name,
        site = config.gateway.site,
        authority = quoted(&config.trust.authority),
    );
    super::done(out, &text)
}

/// SHA-256 of the SubjectPublicKeyInfo of the certificate that the ports show.
fn fingerprint(config: &Config) -> Result<Sha, ProgramError> {
    let pem = Pem::read(&config.gateway.certificate)?;
    let leaf = pem.certificates()?;
    let leaf = leaf.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
    let sha = spki_sha256(leaf).map_err(|error| {
        ProgramError::new(ErrorReason::CertificateInvalid, format!("{}: {error}", pem.origin()))
    })?;
    Ok(Sha(sha))
}

fn token() -> Result<String, ProgramError> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        ProgramError::new(ErrorReason::Internal, format!("the kernel gives no randomness: {error}"))
    })?;
    Ok(hex::encode(bytes))
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Turns a device away for good, or one certificate.
///
/// # Errors
/// When the registry cannot be written, or the certificate's number is not known.
pub fn revoke(which: Which<'_>, path: &Path, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let file = registry_of(&config)?;
    let now = Stamp(clock::wall_s());
    let said = file.change(|registry| match which {
        Which::Device { device, unknown } => {
            let known = registry.get(device).is_some();
            if !known && !unknown {
                return Err(NotChanged::UnknownDevice(device.clone()));
            }
            let new = registry.revoke(device, now);
            let note = if known { "" } else { " It was not in the registry." };
            Ok(format!("{device} {}.{note}\n", if new { "is revoked" } else { "was revoked already" }))
        }
        Which::Certificate(certificate) => match registry.revoke_certificate(certificate, now) {
            Some(Some(device)) => Ok(format!(
                "that certificate of {device} is revoked, and its token with it; the device may enrol again with another \
                 one, or be revoked by its name\n"
            )),
            Some(None) => Ok("that certificate is revoked\n".to_owned()),
            None => {
                let CertificateName::Serial(number) = certificate else {
                    unreachable!("a SHA-256 is taken whoever made the certificate")
                };
                Err(NotChanged::UnknownNumber(number.clone()))
            }
        },
    })?;
    super::done(
        out,
        &format!(
            "{said}This gateway, if it runs, turns it away and closes its connections within 5 s. Other gateways do not know of \
             it: give the command at each, or use a revocation list of the CA.\n"
        ),
    )
}

/// Every device: out of the registry, and what the running gateway says of it.
///
/// # Errors
/// When the registry cannot be read.
pub fn list(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let registry = registry_of(&config)?.read()?;
    let running = admin_client::devices(&config.admin.listen);
    let rows = rows(&registry, running.as_ref());
    let text = match output {
        Output::Json => super::json(&json!({ "gateway_runs": running.is_some(), "devices": rows })),
        Output::Table => table(&rows, running.is_some()),
    };
    super::done(out, &text)
}

fn rows(registry: &Registry, running: Option<&Value>) -> Vec<Value> {
    let mut rows: BTreeMap<String, Value> =
        registry.devices().map(|(name, record)| (name.to_string(), row(record))).collect();
    let Some(running) = running else { return named(rows) };
    let unregistered = || json!({ "mode": "mtls", "state": "not in the registry", "assurance": "vouched" });
    for (device, ago) in running["seen_s_ago"].as_object().into_iter().flatten() {
        rows.entry(device.clone()).or_insert_with(unregistered)["seen_s_ago"] = ago.clone();
    }
    for one in running["connections"].as_array().into_iter().flatten() {
        let Some(device) = one["device"].as_str() else { continue };
        let row = rows.entry(device.to_owned()).or_insert_with(unregistered);
        row["connections"] = json!(row["connections"].as_u64().unwrap_or(0) + 1);
        row["assurance"] = one["assurance"].clone();
    }
    named(rows)
}

fn named(rows: BTreeMap<String, Value>) -> Vec<Value> {
    let name = |(name, mut row): (String, Value)| {
        row["device"] = json!(name);
        row
    };
    rows.into_iter().map(name).collect()
}

fn row(record: &Record) -> Value {
    let live = record.certificates.iter().filter(|one| one.revoked_at.is_none());
    let until = live.map(|one| one.not_after).max();
    let waiting = record.token.as_ref().filter(|token| token.key.is_none() && record.revoked_at.is_none());
    let state = match (record.revoked_at, until, waiting) {
        (Some(_), _, _) => "revoked",
        (None, _, _) if record.mode == Mode::Network => "known by address",
        (None, Some(_), _) => "enrolled",
        (None, None, Some(_)) => "waits for enrolment",
        (None, None, None) => "no certificate made here",
    };
    json!({
        "mode": record.mode.to_string(),
        "assurance": if record.mode == Mode::Mtls { "vouched" } else { "claimed" },
        "state": state,
        "added_at": record.added_at.to_string(),
        "revoked_at": record.revoked_at.map(|at| at.to_string()),
        "addresses": record.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
        "certificate_until": until.map(|until| until.to_string()),
        "certificates": record.certificates.iter().map(|one| json!({
            "serial": one.serial,
            "sha256": one.sha256.to_string(),
            "until": one.not_after.to_string(),
            "revoked_at": one.revoked_at.map(|at| at.to_string()),
        })).collect::<Vec<_>>(),
        "token_until": waiting.map(|token| token.expires_at.to_string()),
        "connections": 0,
    })
}

fn table(rows: &[Value], runs: bool) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
    let mut lines = format!(
        "{:24} {:8} {:9} {:24} {:>11} {:>12}  {}\n",
        "DEVICE", "MODE", "ASSURANCE", "STATE", "CONNECTIONS", "SEEN", "CERTIFICATE UNTIL"
    );
    for row in rows {
        let seen = row["seen_s_ago"]
            .as_u64()
            .map_or_else(|| "-".to_owned(), |ago| format!("{} ago", human::seconds(ago)));
        lines += &format!(
            "{:24} {:8} {:9} {:24} {:>11} {seen:>12}  {}\n",
            text(&row["device"]),
            text(&row["mode"]),
            text(&row["assurance"]),
            text(&row["state"]),
            row["connections"].as_u64().unwrap_or(0),
            text(&row["certificate_until"]),
        );
    }
    if !runs {
        lines += "The gateway does not answer: who is connected is not known.\n";
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_address_names_a_device() {
        let good: IpAddr = "10.7.0.42".parse().unwrap();
        for text in ["10.7.0.42", "10.7.0.42/32", "::ffff:10.7.0.42"] {
            assert_eq!(one_address(text).unwrap(), good, "{text}");
        }
        assert_eq!(one_address("fd00::7/128").unwrap(), "fd00::7".parse::<IpAddr>().unwrap());
        for text in ["10.7.0.0/24", "fd00::/64", "fd00::7/32", "10.7.0.42/33", "truck", "10.7.0.42/", ""] {
            one_address(text).unwrap_err();
        }
    }

    #[test]
    fn a_token_lives_for_a_while_and_not_for_ever() {
        ttl("24h").unwrap();
        ttl("30d").unwrap();
        for text in ["0s", "31d", "24", "soon"] {
            ttl(text).unwrap_err();
        }
        assert_ne!(token().unwrap(), token().unwrap());
    }

    #[test]
    fn a_word_stays_one_word_in_a_shell() {
        assert_eq!(quoted("acme-mining/prod"), "acme-mining/prod");
        assert_eq!(quoted("acme; rm"), "'acme; rm'");
        assert_eq!(quoted("a'b"), r"'a'\''b'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn the_list_shows_how_each_is_known_and_who_is_there() {
        let mut registry = Registry::default();
        let id = |name: &str| DeviceId::new(name).unwrap();
        registry.add(&id("truck-1"), Mode::Mtls, &[], Stamp(1)).unwrap();
        registry.give_token(&id("truck-1"), "secret", Stamp(2));
        registry.add(&id("pump-1"), Mode::Network, &["10.0.0.1".parse().unwrap()], Stamp(1)).unwrap();
        registry.revoke(&id("lost-1"), Stamp(1));
        let running = json!({
            "connections": [
                { "device": "pump-1", "assurance": "claimed" },
                { "device": "other-1", "assurance": "vouched" },
                { "device": null, "assurance": "vouched" },
            ],
            "seen_s_ago": { "pump-1": 0, "truck-1": 60 },
        });
        let rows = rows(&registry, Some(&running));
        let field = |name: &str| rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
        assert_eq!(field("device"), ["lost-1", "other-1", "pump-1", "truck-1"]);
        assert_eq!(field("assurance"), ["vouched", "vouched", "claimed", "vouched"]);
        assert_eq!(
            field("state"),
            ["revoked", "not in the registry", "known by address", "waits for enrolment"]
        );
        assert_eq!(field("connections"), [0, 1, 1, 0]);
        assert_eq!(rows[3]["seen_s_ago"], 60);
        let text = table(&rows, true);
        assert!(!text.contains("secret") && text.lines().count() == 5, "{text}");
    }
}
