//! The device's file: who it is, where its state lies, and how it reaches a gateway.
//!
//! Paths are relative to the file's folder. Everything here may be read by anybody but the certificate's key, which is the
//! key that signs the sessions as well if it can.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use pithead_device_client::{
    clock::DeviceClock,
    device::Device,
    keys::Keys,
    uplink::{Gateways, RefusedArea, Uplink},
};
use pithead_hop::{
    backoff::Policy,
    connect::{ConnectOptions, Endpoint},
    program::{ProgramError, config, units::ByteSize},
    tls::{Pem, TlsError},
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{
    names::{DeviceId, Site},
    trust::UnixTime,
};
use pithead_spool::Options;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{failure, signer::Signer};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    device: DeviceSection,
    #[serde(default)]
    gateway: Option<GatewaySection>,
    #[serde(default)]
    outbox: OutboxSection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceSection {
    #[serde(deserialize_with = "parsed")]
    site: Site,
    #[serde(deserialize_with = "parsed")]
    id: DeviceId,
    #[serde(default = "here")]
    state: PathBuf,
    /// The machine's clock is set by NTS, authenticated PTP or the operator.
    #[serde(default)]
    trusted_clock: bool,
    signing_key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewaySection {
    endpoints: Vec<Endpoint>,
    server_name: Option<String>,
    ca: PathBuf,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutboxSection {
    #[serde(default = "outbox_bytes")]
    max_bytes: ByteSize,
}

impl Default for OutboxSection {
    fn default() -> Self {
        Self { max_bytes: outbox_bytes() }
    }
}

fn here() -> PathBuf {
    PathBuf::from(".")
}

fn outbox_bytes() -> ByteSize {
    "64MiB".parse().expect("a size")
}

fn parsed<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// A device's file, read and checked.
#[derive(Debug)]
pub(crate) struct Config {
    folder: PathBuf,
    file: File,
}

impl Config {
    pub(crate) fn load(path: &Path) -> Result<Self, ProgramError> {
        let file: File = config::load(path, "PITHEAD").map_err(|error| failure::config(&error))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Ok(Self { folder: folder.unwrap_or(Path::new(".")).to_owned(), file })
    }

    pub(crate) fn site(&self) -> &Site {
        &self.file.device.site
    }

    fn state(&self) -> PathBuf {
        self.folder.join(&self.file.device.state)
    }

    fn clock(&self) -> DeviceClock {
        if !self.file.device.trusted_clock {
            return DeviceClock::start();
        }
        DeviceClock::start_with(Arc::new(|| {
            // A clock before 1970 is none.
            u64::try_from(DeviceClock::wall_us() / 1_000_000).ok().map(UnixTime)
        }))
    }

    pub(crate) fn open_keys(&self) -> Result<Keys, ProgramError> {
        Device::open_keys(&self.state(), self.site(), self.clock()).map_err(|error| failure::open(&error))
    }

    pub(crate) fn open(&self) -> Result<Device, ProgramError> {
        let mut options = Options::outbox();
        options.max_bytes = self.file.outbox.max_bytes.get();
        let id = self.file.device.id.clone();
        let signer = self.signer()?;
        let mut device = Device::open(&self.state(), self.site(), id, options, self.clock())
            .map_err(|error| failure::open(&error))?;
        if let Some(signer) = signer {
            device.sealer_mut().sign_with(signer.key);
        }
        Ok(device)
    }

    /// The identity key that signs the sessions, if the file names one.
    pub(crate) fn signer(&self) -> Result<Option<Signer>, ProgramError> {
        self.file.device.signing_key.as_ref().map(|path| Signer::read(&self.folder.join(path))).transpose()
    }

    pub(crate) fn refused_area(&self) -> RefusedArea {
        RefusedArea::new(self.state().join("refused"))
    }

    /// The way to the gateways, or nothing if the device has none.
    pub(crate) fn uplink(&self, keys: &Keys) -> Result<Option<Uplink>, ProgramError> {
        let Some(section) = &self.file.gateway else { return Ok(None) };
        let tls = |error: TlsError| failure::tls(&error);
        let read = |path: &PathBuf| Pem::read(&self.folder.join(path)).map_err(tls);
        let identity = match (&section.certificate, &section.key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            _ => return Err(invalid("gateway.certificate and gateway.key belong together")),
        };
        let server_name = section
            .server_name
            .clone()
            .map(|name| {
                ServerName::try_from(name).map_err(|_| invalid("gateway.server_name is no host name"))
            })
            .transpose()?;
        let gateways = Gateways {
            endpoints: section.endpoints.clone(),
            server_name,
            ca: read(&section.ca)?,
            identity,
            options: ConnectOptions::default(),
            retry: Policy::default(),
        };
        Uplink::new(gateways, keys).map(Some).map_err(tls)
    }
}

fn invalid(what: &str) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigInvalid, what).todo("correct the device's file")
}
