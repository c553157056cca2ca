//! The device's file: who it is, where its state lies, and how it reaches a gateway.
//!
//! Paths are relative to the file's folder. Everything here may be read by anybody but the certificate's key, which is the
//! key that signs the sessions as well if it can.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use pithead_device_client::{
    client::{Client, ClientBuilder, StreamOptions},
    clock::DeviceClock,
    keys::Keys,
    sealer::Sealer,
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

    pub(crate) fn state(&self) -> PathBuf {
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
        Keys::open_in(&self.state(), self.site(), self.clock()).map_err(|error| failure::keys(&error))
    }

    /// Trust and numbers, for one who carries the bytes.
    pub(crate) fn open_sealer(&self) -> Result<Sealer, ProgramError> {
        let signer = self.signer()?;
        let mut sealer = Sealer::open(&self.state(), self.site(), self.file.device.id.clone(), self.clock())
            .map_err(|error| failure::open_sealer(&error))?;
        if let Some(signer) = signer {
            sealer.sign_with(signer.key);
        }
        Ok(sealer)
    }

    /// The client, with a stream whose budget is the file's.
    pub(crate) fn client(&self, stream: StreamOptions) -> Result<ClientBuilder, ProgramError> {
        let gateways = self.gateways()?.ok_or_else(no_gateway)?;
        let stream = stream.budget_bytes(self.file.outbox.max_bytes.get());
        let (site, id) = (self.site().clone(), self.file.device.id.clone());
        let client = Client::enrolled(self.state(), site, id, gateways).clock(self.clock()).stream(stream);
        Ok(match self.signer()? {
            Some(signer) => client.sign_with(signer.key),
            None => client,
        })
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
        let Some(gateways) = self.gateways()? else { return Ok(None) };
        Uplink::new(gateways, keys).map(Some).map_err(|error| failure::tls(&error))
    }

    fn gateways(&self) -> Result<Option<Gateways>, ProgramError> {
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
        Ok(Some(Gateways {
            endpoints: section.endpoints.clone(),
            server_name,
            ca: read(&section.ca)?,
            identity,
            options: ConnectOptions::default(),
            retry: Policy::default(),
        }))
    }
}

pub(crate) fn no_gateway() -> ProgramError {
    ProgramError::new(ErrorReason::ConfigInvalid, "the device has no [gateway]")
        .todo("enrol it with --gateway and --ca, or seal to a file with `seal`")
}

fn invalid(what: &str) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigInvalid, what).todo("correct the device's file")
}
