//! `enroll`: a folder with names, certificate and trust; out of files, or with a token over the network.

mod online;

use std::{borrow::Cow, fs, io, path::Path};

use bytes::Bytes;
use pithead_device_client::{clock::DeviceClock, keys::Keys};
use pithead_hop::{
    connect::Endpoint,
    keys::KeyFile,
    program::{ExitCode, ProgramError, disk},
    tls::Pem,
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::names::{DeviceId, Site};
use serde_json::json;

use crate::{
    cli::{EnrollArgs, RenewArgs},
    failure, key,
    output::Output,
    signer::{self, Signer},
};

pub(crate) fn run(arguments: &EnrollArgs, output: Output) -> Result<ExitCode, ProgramError> {
    match &arguments.token {
        Some(token) => {
            let token = token.get(io::stdin().lock())?;
            crate::cli::in_runtime(online::run(arguments, &token, output))
        }
        None => by_files(arguments, output),
    }
}

pub(crate) fn renew(file: &Path, arguments: &RenewArgs, output: Output) -> Result<ExitCode, ProgramError> {
    let token = arguments.token.get(io::stdin().lock())?;
    crate::cli::in_runtime(online::renew(file, arguments, &token, output))
}

fn by_files(arguments: &EnrollArgs, output: Output) -> Result<ExitCode, ProgramError> {
    let missing = |what: &str| {
        ProgramError::new(ErrorReason::ConfigInvalid, format!("{what} is missing"))
            .todo("without --token everything is given by hand")
            .exit(ExitCode::USAGE)
    };
    let site = arguments.site.as_ref().ok_or_else(|| missing("--site"))?;
    let device = arguments.device.as_ref().ok_or_else(|| missing("--device"))?;
    let authority = arguments.authority.as_ref().ok_or_else(|| missing("--authority"))?;
    let root = read(arguments.root.as_ref().ok_or_else(|| missing("--root"))?)?;
    if !arguments.gateways.is_empty() && arguments.ca.is_none() {
        return Err(missing("--ca"));
    }
    let bundle = arguments.bundle.as_deref().map(read_bundle).transpose()?;
    // Everything is looked at before anything is written.
    check_pems(arguments)?;
    let mut keys = Keys::enroll_in(&arguments.dir, authority, site, &root, DeviceClock::start())
        .map_err(|error| failure::keys(&error))?;
    if let Some(bundle) = bundle {
        let held = keys.trust().root_version();
        keys.apply(&bundle.bundle.newer_than(held)).map_err(|error| failure::keys(&error))?;
    }
    let copied = copy_pems(arguments)?;
    let signing = signing(arguments, &copied)?;
    let file = arguments.dir.join("device.toml");
    let names = Names { site, device };
    let way = Way {
        endpoints: &arguments.gateways,
        server_name: arguments.server_name.as_deref(),
        identity: copied.identity,
    };
    let way = (copied.ca && !arguments.gateways.is_empty()).then_some(&way);
    let before = write_config(&file, &device_toml(&names, way, signing.is_ok()))?;
    let mut fields = vec![
        ("device", json!(device.to_string())),
        ("site", json!(site.to_string())),
        ("authority", json!(keys.trust().authority())),
        ("file", json!(file.display().to_string())),
    ];
    fields.extend(key::facts(&keys));
    fields.extend(before.map(|before| ("file_before", json!(before.display().to_string()))));
    match signing {
        Ok(signer) => fields.extend(signer.facts()),
        Err(why) => fields.push(("signing", json!(format!("none: {why}")))),
    }
    output.print(&fields);
    Ok(ExitCode::OK)
}

/// The certificate's key as the one that signs the sessions, or why it does not.
fn signing(
    arguments: &EnrollArgs,
    copied: &Copied,
) -> Result<Result<Signer, Cow<'static, str>>, ProgramError> {
    if arguments.no_sign {
        return Ok(Err("asked for with --no-sign".into()));
    }
    if !copied.identity {
        return Ok(Err("there is no key".into()));
    }
    let path = arguments.dir.join("device.key");
    let pem = Pem::read(&path).map_err(|error| failure::tls(&error))?;
    Ok(match signer::key_in(&pem)? {
        Ok(_) => Ok(Signer::read(&path)?),
        Err(unfit) => Err(unfit.to_string().into()),
    })
}

struct Copied {
    ca: bool,
    identity: bool,
}

fn check_pems(arguments: &EnrollArgs) -> Result<(), ProgramError> {
    let tls = |error| failure::tls(&error);
    for path in [&arguments.ca, &arguments.cert].into_iter().flatten() {
        Pem::read(path).and_then(|pem| pem.certificates()).map_err(tls)?;
    }
    if let Some(path) = &arguments.key {
        Pem::read(path).and_then(|pem| pem.private_key().map(drop)).map_err(tls)?;
    }
    Ok(())
}

fn copy_pems(arguments: &EnrollArgs) -> Result<Copied, ProgramError> {
    let copy = |from: &Option<std::path::PathBuf>, to: &str| -> Result<bool, ProgramError> {
        let Some(from) = from else { return Ok(false) };
        let bytes = zeroize::Zeroizing::new(read(from)?);
        let to = arguments.dir.join(to);
        if to.extension().is_some_and(|ending| ending == "key") {
            replace_private(&to, &bytes).map_err(|error| cannot_write(&to, &error))?;
        } else {
            write(&to, &bytes)?;
        }
        Ok(true)
    };
    let ca = copy(&arguments.ca, "ca.pem")?;
    let identity = copy(&arguments.cert, "device.pem")? && copy(&arguments.key, "device.key")?;
    Ok(Copied { ca, identity })
}

/// Replaces a file that nobody else may read at any moment, also not under the name that it is written under.
fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let part = path.with_extension("part");
    match fs::remove_file(&part) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    disk::publish(&part, path)
}

/// Who the device is.
struct Names<'a> {
    site: &'a Site,
    device: &'a DeviceId,
}

/// How it reaches its gateways.
struct Way<'a> {
    endpoints: &'a [Endpoint],
    server_name: Option<&'a str>,
    /// It has a certificate.
    identity: bool,
}

fn device_toml(names: &Names<'_>, way: Option<&Way<'_>>, signs: bool) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut text = format!(
        "# A Pithead device. Paths are relative to this file.\n\n[device]\nsite = {}\nid = {}\n# Trust record, \
         sequence state and outbox.\nstate = \".\"\n",
        quoted(names.site.as_str()),
        quoted(names.device.as_str())
    );
    if signs {
        text.push_str(
            "# Signs every session. Its public half, device.pub, is what the cloud registers; once it has believed a \
             signature, it takes nothing unsigned from this device.\nsigning_key = \"device.key\"\n",
        );
    }
    if let Some(way) = way {
        let endpoints: Vec<_> = way.endpoints.iter().map(|endpoint| quoted(&endpoint.to_string())).collect();
        text.push_str(&format!(
            "\n[gateway]\n# In the order of preference.\nendpoints = [{}]\nca = \"ca.pem\"\n",
            endpoints.join(", ")
        ));
        if let Some(name) = way.server_name {
            text.push_str(&format!("server_name = {}\n", quoted(name)));
        }
        if way.identity {
            text.push_str("certificate = \"device.pem\"\nkey = \"device.key\"\n");
        }
    }
    text.push_str("\n[outbox]\nmax_bytes = \"64MiB\"\n");
    text
}

/// A bundle as the authority exports it.
pub(crate) fn read_bundle(path: &Path) -> Result<KeyFile, ProgramError> {
    KeyFile::read(Bytes::from(read(path)?)).map_err(|error| {
        ProgramError::new(ErrorReason::TrustParse, format!("{}: {error}", path.display())).todo(
            "give what `pithead-decryptor authority statement --out` or `pithead-gateway key export` wrote",
        )
    })
}

fn read(path: &Path) -> Result<Vec<u8>, ProgramError> {
    fs::read(path).map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()))
    })
}

/// Writes the device's file. One that was there stays beside it: what its owner had set in it is to be set again, by whoever can read
/// it. Gives where it is.
fn write_config(file: &Path, text: &str) -> Result<Option<std::path::PathBuf>, ProgramError> {
    let before = match fs::read(file) {
        Ok(before) if before != text.as_bytes() => {
            let kept = file.with_extension("toml.before");
            write(&kept, &before)?;
            Some(kept)
        }
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(cannot_write(file, &error)),
    };
    write(file, text.as_bytes())?;
    Ok(before)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ProgramError> {
    disk::replace(path, bytes).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &io::Error) -> ProgramError {
    ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_private_key_is_its_owners_alone_whatever_stood_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.key");
        for left in ["device.key", "device.part"] {
            fs::write(folder.path().join(left), b"readable by all").unwrap();
        }
        replace_private(&path, b"secret").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!folder.path().join("device.part").exists());
    }
}
