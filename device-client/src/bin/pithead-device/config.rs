//! The device's file: who it is, where its state lies, and how it reaches a gateway.
//!
//! Paths are relative to the file's folder. Everything here may be read by anybody but the certificate's key, which is the
//! key that signs the sessions as well if it can.

mod commands;
mod streams;

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
    connect::Endpoint,
    program::{
        ProgramError,
        config::{self, Loaded, Wrong},
        units::ByteSize,
    },
    tls::{Pem, TlsError},
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{
    names::{DeviceId, Site, StreamName},
    trust::UnixTime,
};
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};

use self::streams::StreamSection;
pub(crate) use self::{
    commands::{Command, run},
    streams::Kind,
};
use crate::{failure, signer::Signer};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    device: DeviceSection,
    #[serde(default)]
    gateway: Option<GatewaySection>,
    #[serde(default)]
    outbox: OutboxSection,
    #[serde(default, rename = "stream")]
    streams: Vec<StreamSection>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceSection {
    #[serde(with = "config::text")]
    site: Site,
    #[serde(with = "config::text")]
    id: DeviceId,
    #[serde(default = "here")]
    state: PathBuf,
    /// The machine's clock is set by NTS, authenticated PTP or the operator.
    #[serde(default)]
    trusted_clock: bool,
    signing_key: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewaySection {
    endpoints: Vec<Endpoint>,
    server_name: Option<String>,
    ca: PathBuf,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
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

/// The prefix of environment variables that stand for keys of the file.
const ENV_PREFIX: &str = "PITHEAD";

/// Every key, commented.
const TEMPLATE: &str = include_str!("config.template.toml");

fn read(path: &Path) -> Result<Loaded<File>, ProgramError> {
    let loaded: Loaded<File> = config::load(path, ENV_PREFIX).map_err(|error| failure::config(&error))?;
    let checked = streams::check(&loaded.value.streams).and_then(|()| loaded.value.check());
    checked.map_err(|wrong| failure::config(&loaded.sources.fault(wrong)))?;
    Ok(loaded)
}

impl File {
    fn check(&self) -> Result<(), Wrong> {
        let Some(gateway) = &self.gateway else { return Ok(()) };
        if gateway.certificate.is_some() != gateway.key.is_some() {
            return Err(Wrong::at_any(
                &["gateway.certificate", "gateway.key"],
                "[gateway] `certificate` and `key` belong together",
            ));
        }
        if gateway.endpoints.is_empty() {
            return Err(Wrong::at(
                "gateway.endpoints",
                "[gateway] `endpoints` is empty: name one, or leave the section out",
            ));
        }
        if let Some(name) =
            gateway.server_name.as_ref().filter(|name| ServerName::try_from(name.as_str()).is_err())
        {
            return Err(Wrong::at("gateway.server_name", format!("{name:?} is no host name")));
        }
        Ok(())
    }
}

/// A device's file, read and checked.
#[derive(Debug)]
pub(crate) struct Config {
    folder: PathBuf,
    file: File,
}

impl Config {
    pub(crate) fn load(path: &Path) -> Result<Self, ProgramError> {
        let file = read(path)?.value;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        Ok(Self { folder: folder.unwrap_or(Path::new(".")).to_owned(), file })
    }

    pub(crate) fn site(&self) -> &Site {
        &self.file.device.site
    }

    pub(crate) fn id(&self) -> &DeviceId {
        &self.file.device.id
    }

    /// Bytes that a stream may take on the disk.
    pub(crate) fn budget(&self, name: &StreamName) -> u64 {
        let default = self.file.outbox.max_bytes;
        let section = self.file.streams.iter().find(|stream| stream.name == *name);
        section.map_or(default, |stream| stream.budget(default)).get()
    }

    /// The certificates that a connection rests on.
    pub(crate) fn certificate_files(&self) -> Vec<(&'static str, PathBuf)> {
        let Some(section) = &self.file.gateway else { return Vec::new() };
        let own = section.certificate.as_ref().map(|path| ("the device's certificate", path));
        let all = own.into_iter().chain([("the CA of the gateways", &section.ca)]);
        all.map(|(what, path)| (what, self.folder.join(path))).collect()
    }

    /// The device's own certificate and its key, if it has them.
    pub(crate) fn identity_files(&self) -> Option<(PathBuf, PathBuf)> {
        let section = self.file.gateway.as_ref()?;
        Some((self.folder.join(section.certificate.as_ref()?), self.folder.join(section.key.as_ref()?)))
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
        let mut sealer = Sealer::open(&self.state(), self.site(), self.id().clone(), self.clock())
            .map_err(|error| failure::open_sealer(&error))?;
        if let Some(signer) = signer {
            sealer.sign_with(signer.key);
        }
        Ok(sealer)
    }

    /// A stream as the file decides about it; with the budget of `[outbox]` if the file does not name it.
    pub(crate) fn stream(&self, name: StreamName, kind: Kind) -> Result<StreamOptions, ProgramError> {
        let default = self.file.outbox.max_bytes;
        match self.file.streams.iter().find(|stream| stream.name == name) {
            Some(stream) if stream.kind != kind => Err(invalid(&match kind {
                Kind::Records => format!("the stream {name} carries files, and these are records"),
                Kind::Files => format!("the stream {name} carries records, and this is a file"),
            })
            .todo("name another stream with --stream, or correct its [[stream]] in the device's file")),
            Some(stream) => Ok(stream.options(default)),
            None => Ok(streams::plain(name, kind).budget_bytes(default.get())),
        }
    }

    /// The client with a stream that the caller works with, if there is one. The streams of the file that have an outbox
    /// already keep their priorities and budgets, so that what waits from before goes in its order.
    pub(crate) fn client(&self, stream: Option<StreamOptions>) -> Result<ClientBuilder, ProgramError> {
        let gateways = self.gateways()?.ok_or_else(no_gateway)?;
        self.client_in(&self.state(), gateways, stream.into_iter().collect())
    }

    /// The same in another folder and with other gateways.
    pub(crate) fn client_in(
        &self,
        folder: &Path,
        gateways: Gateways,
        streams: Vec<StreamOptions>,
    ) -> Result<ClientBuilder, ProgramError> {
        let (site, id) = (self.site().clone(), self.id().clone());
        let mut client = Client::enrolled(folder, site, id, gateways).clock(self.clock());
        let outbox = folder.join("outbox");
        for section in &self.file.streams {
            let taken = streams.iter().any(|stream| *stream.name() == section.name);
            if !taken && outbox.join(section.name.as_str()).is_dir() {
                client = client.stream(section.options(self.file.outbox.max_bytes));
            }
        }
        for stream in streams {
            client = client.stream(stream);
        }
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

    /// The gateways, and who the device is to them; nothing if it has none.
    pub(crate) fn gateways(&self) -> Result<Option<Gateways>, ProgramError> {
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
        let mut gateways = Gateways::new(section.endpoints.clone(), read(&section.ca)?);
        (gateways.server_name, gateways.identity) = (server_name, identity);
        Ok(Some(gateways))
    }
}

pub(crate) fn no_gateway() -> ProgramError {
    ProgramError::new(ErrorReason::ConfigInvalid, "the device has no [gateway]")
        .todo("enrol it with --gateway and --ca, or seal to a file with `seal`")
}

fn invalid(what: &str) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigInvalid, what).todo("correct the device's file")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD: &str = "[device]\nsite = \"pit-7\"\nid = \"truck-7\"\n";

    fn load(more: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.toml");
        std::fs::write(&path, format!("{HEAD}{more}")).unwrap();
        Config::load(&path).map_err(|error| error.to_string())
    }

    fn name(text: &str) -> StreamName {
        StreamName::new(text).unwrap()
    }

    #[test]
    fn the_sample_that_is_shipped_is_read_and_decides_about_its_streams() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/device.toml");
        let config = Config::load(&sample).unwrap();
        let shown = |name_of, kind| format!("{:?}", config.stream(name(name_of), kind).unwrap());
        let can = shown("can", Kind::Records);
        for decided in
            ["priority: 100", "budget_bytes: 268435456", "DropOldest", "Interval(1s)", "compress: true"]
        {
            assert!(can.contains(decided), "{decided} in {can}");
        }
        let alarms = shown("alarms", Kind::Records);
        for decided in ["priority: 200", "budget_bytes: 16777216", "Reject", "Always", "linger: 20ms"] {
            assert!(alarms.contains(decided), "{decided} in {alarms}");
        }
        let other = shown("gps", Kind::Records);
        assert!(other.contains("budget_bytes: 67108864"), "what [outbox] says: {other}");
        let mismatch = config.stream(name("can"), Kind::Files).unwrap_err().to_string();
        assert!(mismatch.contains("the stream can carries records"), "{mismatch}");
    }

    #[test]
    fn what_is_wrong_with_a_stream_is_shown_where_it_stands() {
        for (stream, said) in [
            ("name = \"can\"\n", "missing field `kind`"),
            ("name = \"CAN\"\nkind = \"records\"\n", "^^^^^"),
            ("name = \"can\"\nkind = \"record\"\n", "did you mean `records`?"),
            ("name = \"can\"\nkind = \"records\"\nbudget = \"4KiB\"\n", "at least 1MiB\n  7 | budget"),
            ("name = \"can\"\nkind = \"records\"\nwhen_full = \"drop\"\n", "drop-oldest"),
            ("name = \"can\"\nkind = \"records\"\nsync = \"often\"\n", "sync is \"always\", or a time"),
            ("name = \"can\"\nkind = \"records\"\nsync = \"0s\"\n", "for none write \"always\""),
            ("name = \"can\"\nkind = \"records\"\npriorty = 3\n", "did you mean `priority`?"),
            ("name = \"log\"\nkind = \"files\"\nlinger = \"1s\"\n", "files have no linger"),
            (
                "name = \"log\"\nkind = \"files\"\nlinger = \"1s\"\n",
                "\n  7 | linger = \"1s\"\n    |          ^^^^",
            ),
        ] {
            let refused = load(&format!("[[stream]]\n{stream}")).unwrap_err();
            assert!(refused.contains(said), "{said:?} in\n{refused}");
        }
        let twice = "[[stream]]\nname = \"can\"\nkind = \"records\"\n".repeat(2);
        assert!(load(&twice).unwrap_err().contains("[[stream]] can is there twice"));
        let many: String =
            (0..17).map(|at| format!("[[stream]]\nname = \"s{at}\"\nkind = \"records\"\n")).collect();
        assert!(load(&many).unwrap_err().contains("17 streams, and a device has at most 16"));
    }
}
