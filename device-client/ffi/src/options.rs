//! What a client or a sealer is opened with.

use std::{
    ffi::c_char,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pithead_device_client::{
    client::{Client, ClientBuilder, Fsync, StreamOptions, TrustAnchor, WhenFull},
    clock::DeviceClock,
    hop::{connect::Endpoint, keys::KeyFile, tls::Pem},
    sealing::{
        envelope::DeviceSigningKey,
        names::{DeviceId, Site, StreamName},
        trust::{Bundle, UnixTime},
    },
    uplink::Gateways,
};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use zeroize::Zeroize as _;

use crate::{
    border::{bad, border, bytes, give, handle, path, take_back, text},
    error::{Failure, PITHEAD_CONFIG_INVALID, PITHEAD_UNKNOWN_STREAM, pithead_error, pithead_result},
};

/// Gateways of a device at most: a site has a handful.
const GATEWAYS: usize = 16;
/// Streams at most; a client takes as many, the one of its heartbeats included.
const STREAMS: usize = 16;
/// Bytes of a root or a bundle that are read at most: either is a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a client is opened with. Made by pithead_options_new(), filled by the functions that begin with pithead_options_, read
/// by pithead_open() and pithead_sealer_open() as often as one likes, and freed by pithead_options_free().
///
/// What is new in a later version is a new function; what is not said keeps its default.
#[derive(Debug)]
pub struct pithead_options(Mutex<Options>);

pub(crate) struct Options {
    pub(crate) folder: PathBuf,
    pub(crate) site: Site,
    pub(crate) device: DeviceId,
    pub(crate) anchor: Option<TrustAnchor>,
    pub(crate) bundle: Option<Bundle>,
    endpoints: Vec<Endpoint>,
    server_name: Option<ServerName<'static>>,
    ca: Option<Pem>,
    certificate: Option<(Pem, Pem)>,
    signing_key: Option<Pem>,
    believe_clock: bool,
    heartbeat_every: Option<Duration>,
    window_bytes: Option<u64>,
    streams: Vec<StreamOptions>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { folder, site, device, .. } = self;
        f.debug_struct("Options")
            .field("folder", folder)
            .field("site", site)
            .field("device", device)
            .finish_non_exhaustive()
    }
}

impl pithead_options {
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut Options) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Options {
    pub(crate) fn clock(&self) -> DeviceClock {
        if !self.believe_clock {
            return DeviceClock::start();
        }
        DeviceClock::start_with(Arc::new(|| {
            // A clock before 1970 is none.
            u64::try_from(DeviceClock::wall_us() / 1_000_000).ok().map(UnixTime)
        }))
    }

    pub(crate) fn signer(&self) -> Result<Option<DeviceSigningKey>, Failure> {
        self.signing_key.as_ref().map(signing_key).transpose()
    }

    pub(crate) fn client(&self) -> Result<ClientBuilder, Failure> {
        if self.endpoints.is_empty() {
            return Err(bad("no gateway: call pithead_options_gateway"));
        }
        let ca = self.ca.clone().ok_or_else(|| bad("no CA of the gateways: call pithead_options_ca_file"))?;
        let mut gateways = Gateways::new(self.endpoints.clone(), ca);
        gateways.server_name = self.server_name.clone();
        gateways.identity = self.certificate.clone();
        let (folder, site, device) = (self.folder.clone(), self.site.clone(), self.device.clone());
        let mut client = match self.anchor.clone() {
            Some(anchor) => Client::builder(folder, site, device, gateways, anchor),
            None => Client::enrolled(folder, site, device, gateways),
        }
        .clock(self.clock());
        if let Some(bundle) = self.bundle.clone() {
            client = client.bundle(bundle);
        }
        if let Some(signer) = self.signer()? {
            client = client.sign_with(signer);
        }
        if let Some(every) = self.heartbeat_every {
            client = client.heartbeat_every(every);
        }
        if let Some(bytes) = self.window_bytes {
            client = client.window_bytes(bytes);
        }
        Ok(self.streams.iter().cloned().fold(client, ClientBuilder::stream))
    }

    fn add_stream(&mut self, stream: StreamOptions) -> Result<(), Failure> {
        if self.streams.iter().any(|there| there.name() == stream.name()) {
            return Err(bad(format!("the stream {} is there already", stream.name())));
        }
        if self.streams.len() == STREAMS {
            return Err(bad(format!("a device has at most {STREAMS} streams")));
        }
        self.streams.push(stream);
        Ok(())
    }

    fn change_stream(
        &mut self,
        name: &str,
        change: impl FnOnce(StreamOptions) -> StreamOptions,
    ) -> Result<(), Failure> {
        let stream =
            self.streams.iter_mut().find(|stream| stream.name().as_str() == name).ok_or_else(|| {
                let message = format!(
                    "no stream {name} yet: call pithead_options_records or pithead_options_files first"
                );
                Failure::new(PITHEAD_UNKNOWN_STREAM, message)
            })?;
        *stream = change(stream.clone());
        Ok(())
    }
}

/// The P-256 key in a PEM file.
fn signing_key(pem: &Pem) -> Result<DeviceSigningKey, Failure> {
    let unfit = |why: &str| Failure::new(PITHEAD_CONFIG_INVALID, format!("{}: {why}", pem.origin()));
    let mut key = pem.private_key()?;
    let signing = match &key {
        PrivateKeyDer::Pkcs8(der) => DeviceSigningKey::from_pkcs8_der(der.secret_pkcs8_der())
            .map_err(|_| unfit("a key that signs sessions is a P-256 key")),
        _ => Err(unfit("the key is not in PKCS#8 (openssl pkcs8 -topk8 -nocrypt makes it so)")),
    };
    key.zeroize();
    signing
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = fs::metadata(path).and_then(|metadata| {
        if metadata.len() > FILE_BYTES_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        fs::read(path)
    });
    bytes.map_err(|error| Failure::unreadable(path, &error))
}

fn named<T: FromStr<Err: fmt::Display>>(value: &str, what: &str) -> Result<T, Failure> {
    value.parse().map_err(|error| bad(format!("`{what}`: {error}")))
}

/// Begins the options of `device` at `site`, whose state is kept in `folder`. The folder is made if it is missing, and then is
/// the client's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_new(
    folder: *const c_char,
    site: *const c_char,
    device: *const c_char,
    options: *mut *mut pithead_options,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        unsafe {
            give(options, "options", || {
                Ok(pithead_options(Mutex::new(Options {
                    folder: path(folder, "folder")?.to_owned(),
                    site: named(text(site, "site")?, "site")?,
                    device: named(text(device, "device")?, "device")?,
                    anchor: None,
                    bundle: None,
                    endpoints: Vec::new(),
                    server_name: None,
                    ca: None,
                    certificate: None,
                    signing_key: None,
                    believe_clock: false,
                    heartbeat_every: None,
                    window_bytes: None,
                    streams: Vec::new(),
                })))
            })
        }
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// Frees the options. A client that was opened with them does not need them any more. NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_free(options: *mut pithead_options) {
    // SAFETY: the header's rules.
    unsafe { take_back(options) }
}

/// Changes the options, if they and what is to be changed are there.
///
/// # Safety
/// The header's rules.
unsafe fn change(
    options: *const pithead_options,
    error: *mut pithead_error,
    work: impl FnOnce(&mut Options) -> Result<(), Failure>,
) -> pithead_result {
    // SAFETY: the caller's promise.
    unsafe { border(error, || handle(options, "options")?.with(work)) }
}

/// Changes a stream of the options.
///
/// # Safety
/// The header's rules.
unsafe fn change_stream(
    options: *const pithead_options,
    stream: *const c_char,
    error: *mut pithead_error,
    work: impl FnOnce(StreamOptions) -> Result<StreamOptions, Failure>,
) -> pithead_result {
    let change_it = |options: &mut Options| {
        // SAFETY: the caller's promise.
        let name = unsafe { text(stream, "stream") }?;
        let mut failed = None;
        options.change_stream(name, |stream| {
            work(stream.clone()).unwrap_or_else(|failure| {
                failed = Some(failure);
                stream
            })
        })?;
        failed.map_or(Ok(()), Err)
    };
    // SAFETY: the caller's promise.
    unsafe { change(options, error, change_it) }
}

/// What the device believes from the beginning: its authority, and the file of the authority's first trust root. It comes
/// from the authority by a way that is not the gateway. A folder that was enrolled before (`pithead-device enroll`) needs none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_anchor_file(
    options: *mut pithead_options,
    authority: *const c_char,
    root_file: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let (authority, file) = unsafe { (text(authority, "authority")?, path(root_file, "root_file")?) };
        options.anchor = Some(TrustAnchor::new(authority, read(file)?));
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// The file of a key bundle, as the authority exports it: with it the device can seal before it has met a gateway. It is
/// verified like any other when the client is opened.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_bundle_file(
    options: *mut pithead_options,
    bundle_file: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let file = unsafe { path(bundle_file, "bundle_file") }?;
        options.bundle = Some(KeyFile::decode(read(file)?.into())?.bundle);
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// Adds a gateway, as "host:port" ("[address]:port" for IPv6). To be called once for each, in the order of preference; at most
/// 16.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_gateway(
    options: *mut pithead_options,
    endpoint: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let endpoint = unsafe { text(endpoint, "endpoint") }?;
        if options.endpoints.len() == GATEWAYS {
            return Err(bad(format!("a device has at most {GATEWAYS} gateways")));
        }
        options.endpoints.push(named(endpoint, "endpoint")?);
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// The name in the gateways' certificates, if it is not the host of the endpoint.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_server_name(
    options: *mut pithead_options,
    name: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let name = unsafe { text(name, "name") }?;
        let name = ServerName::try_from(name.to_owned()).map_err(|_| bad("`name` is no host name"))?;
        options.server_name = Some(name);
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// The CA of the gateways' certificates, in a PEM file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_ca_file(
    options: *mut pithead_options,
    ca_file: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let file = unsafe { path(ca_file, "ca_file") }?;
        options.ca = Some(Pem::read(file)?);
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// The device's certificate with the CAs above it, and its private key, in PEM files. A device that the site knows by its
/// address has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_certificate_files(
    options: *mut pithead_options,
    certificate_file: *const c_char,
    key_file: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let (certificate, key) =
            unsafe { (path(certificate_file, "certificate_file")?, path(key_file, "key_file")?) };
        options.certificate = Some((Pem::read(certificate)?, Pem::read(key)?));
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// The same from memory, for those who keep the key in a place of their own. The copy that is made is cleared when the options
/// and the clients that were opened with them are gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_certificate_pem(
    options: *mut pithead_options,
    certificate: *const u8,
    certificate_len: usize,
    key: *const u8,
    key_len: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let (certificate, key) =
            unsafe { (bytes(certificate, certificate_len, "certificate")?, bytes(key, key_len, "key")?) };
        options.certificate = Some((Pem::new("certificate", certificate), Pem::new("key", key)));
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// The P-256 key, PKCS#8 in a PEM file, that signs the device's sessions: with it the cloud knows the device without believing
/// the gateway. Mostly it is the certificate's key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_signing_key_file(
    options: *mut pithead_options,
    key_file: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let file = unsafe { path(key_file, "key_file") }?;
        let pem = Pem::read(file)?;
        signing_key(&pem)?;
        options.signing_key = Some(pem);
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// Says that the machine's clock may be believed: it is set by NTS, by authenticated PTP or by an operator, and by nothing that
/// a stranger can reach. Without this call it is not believed, and nothing goes by it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_believe_clock(
    options: *mut pithead_options,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        options.believe_clock = true;
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// How often the device says, sealed, how far its streams have come, while connected. Default 60,000 ms.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_heartbeat_ms(
    options: *mut pithead_options,
    every_ms: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        options.heartbeat_every = Some(Duration::from_millis(every_ms.into()));
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// Bytes on the air without an answer, at most; the gateway narrows it. Default 1 MiB.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_window_bytes(
    options: *mut pithead_options,
    window_bytes: u64,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        options.window_bytes = Some(window_bytes);
        Ok(())
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// Adds a stream of records: many small ones, gathered under one seal. Without any further call: priority 100, 64 MiB on the
/// disk, new records refused when they are used up, brought to the disk at once, 200 ms of linger, 8 MiB of memory, not
/// compressed. A device has at most 16 streams, the one of its heartbeats included if it has no stream of records.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_records(
    options: *mut pithead_options,
    stream: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let name = StreamName::new(unsafe { text(stream, "stream") }?)?;
        options.add_stream(StreamOptions::records(name))
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// Adds a stream of files, each an envelope of its own. As for records, but for 1 GiB on the disk and priority 50.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_files(
    options: *mut pithead_options,
    stream: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |options: &mut Options| {
        // SAFETY: the header's rules.
        let name = StreamName::new(unsafe { text(stream, "stream") }?)?;
        options.add_stream(StreamOptions::files(name))
    };
    // SAFETY: the header's rules.
    unsafe { change(options, error, work) }
}

/// Priority of a stream, 0 to 255: higher goes first, strictly.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_priority(
    options: *mut pithead_options,
    stream: *const c_char,
    priority: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |stream: StreamOptions| {
        let priority = u8::try_from(priority).map_err(|_| bad("`priority` is 0 to 255"))?;
        Ok(stream.priority(priority))
    };
    // SAFETY: the header's rules.
    unsafe { change_stream(options, stream, error, work) }
}

/// Bytes that a stream may take on the device's disk, sealed. Less than 1 MiB is 1 MiB.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_budget_bytes(
    options: *mut pithead_options,
    stream: *const c_char,
    budget_bytes: u64,
    error: *mut pithead_error,
) -> pithead_result {
    // SAFETY: the header's rules.
    unsafe { change_stream(options, stream, error, |stream| Ok(stream.budget_bytes(budget_bytes))) }
}

/// When a stream's budget is used up, new records are refused: what is kept is the oldest.
pub const PITHEAD_REJECT: u32 = 0;
/// When a stream's budget is used up, the oldest envelopes are given up, counted, and declared to the cloud: what is kept is the
/// newest.
pub const PITHEAD_DROP_OLDEST: u32 = 1;

/// What happens when a stream's budget is used up: PITHEAD_REJECT or PITHEAD_DROP_OLDEST.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_when_full(
    options: *mut pithead_options,
    stream: *const c_char,
    when_full: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let work = |stream: StreamOptions| match when_full {
        PITHEAD_REJECT => Ok(stream.when_full(WhenFull::Reject)),
        PITHEAD_DROP_OLDEST => Ok(stream.when_full(WhenFull::DropOldest)),
        other => Err(bad(format!("`when_full` is PITHEAD_REJECT or PITHEAD_DROP_OLDEST, not {other}"))),
    };
    // SAFETY: the header's rules.
    unsafe { change_stream(options, stream, error, work) }
}

/// How long what was sealed may wait before it is brought to the disk: fewer writes on the flash, and a power cut costs what was
/// recorded within the interval as well. 0, the default: it does not wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_sync_interval_ms(
    options: *mut pithead_options,
    stream: *const c_char,
    interval_ms: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let sync = match interval_ms {
        0 => Fsync::Always,
        ms => Fsync::Interval(Duration::from_millis(ms.into())),
    };
    // SAFETY: the header's rules.
    unsafe { change_stream(options, stream, error, |stream| Ok(stream.sync(sync))) }
}

/// How long a record may wait in memory for others to share its seal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_linger_ms(
    options: *mut pithead_options,
    stream: *const c_char,
    linger_ms: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let linger = Duration::from_millis(linger_ms.into());
    // SAFETY: the header's rules.
    unsafe { change_stream(options, stream, error, |stream| Ok(stream.linger(linger))) }
}

/// Bytes of records in memory at most, while the disk is behind. Above it a record is refused with PITHEAD_BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_memory_bytes(
    options: *mut pithead_options,
    stream: *const c_char,
    memory_bytes: usize,
    error: *mut pithead_error,
) -> pithead_result {
    // SAFETY: the header's rules.
    unsafe { change_stream(options, stream, error, |stream| Ok(stream.memory_bytes(memory_bytes))) }
}

/// Compresses a stream with zstd before sealing. Not for a stream of which outsiders can choose a part: the length of what was
/// compressed together with it gives the rest away.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_options_compress(
    options: *mut pithead_options,
    stream: *const c_char,
    error: *mut pithead_error,
) -> pithead_result {
    // SAFETY: the header's rules.
    unsafe { change_stream(options, stream, error, |stream| Ok(stream.compress())) }
}
