//! `device add SITE/DEVICE --key PUB.pem`, `device list`, `device revoke KID...` and `device remove SITE/DEVICE`: the cloud's own
//! registry of device keys.

use crate::commands::authority::Output;
use crate::config::Config;
use crate::devices::{self, Change, DeviceName, DevicesError, Policy};
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::Kid;
use std::fmt::Write as _;
use std::path::PathBuf;

/// `device ...`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Register a device's public key, or set what is asked of the device
    Add {
        /// The device, such as pit-7/truck-0042
        #[arg(value_name = "SITE/DEVICE")]
        name: DeviceName,
        /// PEM file with the device's public key: its device.pub. Get it from the device, and not through a gateway
        #[arg(long, value_name = "PEM", required_unless_present_any = ["required", "optional"])]
        key: Option<PathBuf>,
        /// Take nothing unsigned from this device, from now on
        #[arg(long, conflicts_with = "optional")]
        required: bool,
        /// Take unsigned envelopes until the first signed one has come; this is what a new device begins with
        #[arg(long)]
        optional: bool,
    },
    /// Show the registered devices and their keys
    List {
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Believe these keys no more: what they have signed and was not delivered yet is set aside
    Revoke {
        /// Names of keys, as `device list` and the device show them
        #[arg(value_name = "KID", required = true, value_parser = kid)]
        kids: Vec<Kid>,
    },
    /// Forget a device, or one key of it
    Remove {
        /// The device, such as pit-7/truck-0042
        #[arg(value_name = "SITE/DEVICE")]
        name: DeviceName,
        /// This key alone
        #[arg(long, value_name = "KID", value_parser = kid)]
        key: Option<Kid>,
    },
}

/// Arguments of `device`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", global = true, default_value = "decryptor.toml")]
    pub config: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

fn kid(text: &str) -> Result<Kid, &'static str> {
    let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(Kid::from_bytes).ok_or("a kid is 32 hex digits; `device list` has them")
}

impl From<DevicesError> for ProgramError {
    fn from(error: DevicesError) -> Self {
        let what = error.to_string();
        let invalid = |what| Self::new(ErrorReason::ConfigInvalid, what);
        match error {
            DevicesError::Io { .. } => Self::new(ErrorReason::ConfigUnreadable, what)
                .todo("check that the file that is named can be read and written"),
            DevicesError::Gone { .. } | DevicesError::Malformed { .. } => invalid(what)
                .affects("the registry of devices is not read; taken for empty, unsigned envelopes would be believed")
                .todo("mend the file, or put back a copy of it"),
            DevicesError::KeyFile { .. } => {
                invalid(what).todo("give the public key that `pithead-device enroll` wrote as device.pub")
            }
            DevicesError::Known { revoked: false, .. } => {
                invalid(what).todo("nothing, if that is the device; else have the device make a key of its own")
            }
            DevicesError::Known { revoked: true, .. } => invalid(what)
                .todo("to believe it again, forget it first: device remove SITE/DEVICE --key KID"),
            DevicesError::UnknownDevice(_) | DevicesError::UnknownKey(_) => {
                invalid(what).todo("see what is registered: device list")
            }
            DevicesError::TooManyKeys(_) | DevicesError::TooManyDevices => {
                invalid(what).todo("forget some: device remove SITE/DEVICE [--key KID]")
            }
        }
    }
}

/// Runs it.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub fn run(args: &Args) -> Result<(), ProgramError> {
    let data_dir = Config::load(&args.config)?.decryptor.data_dir;
    match &args.command {
        Command::Add { name, key, required, optional } => {
            let policy = match (required, optional) {
                (true, _) => Some(Policy::Required),
                (_, true) => Some(Policy::Optional),
                (false, false) => None,
            };
            match devices::add(&data_dir, name, key.as_deref(), policy)? {
                Change::Key(kid) => println!("added the key {kid} for {name}"),
                Change::Policy => println!("changed what is asked of {name}"),
            }
            if *required && !has_key(&devices::list(&data_dir)?, name) {
                println!("{}", nothing_is_taken(name));
            }
        }
        Command::List { output: Output::Table } => print!("{}", table(&devices::list(&data_dir)?)),
        Command::List { output: Output::Json } => {
            println!("{:#}", serde_json::json!({ "devices": devices::list(&data_dir)? }));
        }
        Command::Revoke { kids } => {
            for (kid, name) in kids.iter().zip(devices::revoke(&data_dir, kids)?) {
                println!("revoked the key {kid} of {name}");
            }
        }
        Command::Remove { name, key } => {
            devices::remove(&data_dir, name, key.as_ref())?;
            match key {
                Some(kid) => println!("removed the key {kid} of {name}"),
                None => println!("removed {name} with its keys; what it sends is vouched for at best"),
            }
        }
    }
    Ok(())
}

fn has_key(listed: &[devices::Listed], name: &DeviceName) -> bool {
    let name = name.to_string();
    let mut own = listed.iter().filter(|device| device.name == name).flat_map(|device| &device.keys);
    own.any(|key| key.revoked.is_none())
}

/// What is asked of a device that cannot give it.
fn nothing_is_taken(name: &DeviceName) -> String {
    format!(
        "warning: no key is registered for {name}, and it has to sign: all that it sends is refused from now on, and is not lost.\n\
         Register its key: pithead-decryptor device add {name} --key device.pub"
    )
}

fn table(devices: &[devices::Listed]) -> String {
    let mut text = String::new();
    for device in devices {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}\t{}", device.name, device.policy);
        for key in &device.keys {
            let since = |at: &Option<String>| at.clone().unwrap_or_else(|| "-".into());
            let _ = match &key.revoked {
                Some(at) => writeln!(text, "  {}\tadded {}\trevoked {at}", key.kid, since(&key.added)),
                None => writeln!(text, "  {}\tadded {}", key.kid, since(&key.added)),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_has_to_sign_and_has_no_key_is_warned_of() {
        let key = |revoked: Option<&str>| devices::ListedKey {
            kid: "ab".repeat(16),
            added: None,
            revoked: revoked.map(str::to_owned),
        };
        let listed =
            |keys| vec![devices::Listed { name: "pit-7/truck-1".into(), policy: Policy::Required, keys }];
        let name: DeviceName = "pit-7/truck-1".parse().unwrap();
        assert!(!has_key(&listed(vec![]), &name));
        assert!(!has_key(&listed(vec![key(Some("2026-11-27T00:00:00Z"))]), &name));
        assert!(has_key(&listed(vec![key(Some("2026-11-27T00:00:00Z")), key(None)]), &name));
        assert!(!has_key(&listed(vec![key(None)]), &"pit-7/truck-2".parse().unwrap()));
        assert!(nothing_is_taken(&name).contains("device add pit-7/truck-1 --key device.pub"));
    }
}
