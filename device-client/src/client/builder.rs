//! Opening a client: the two decisions that only the owner can make, the gateways and the trust anchor, and the streams.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64},
        mpsc,
    },
    thread,
    time::Duration,
};

use pithead_hop::tls::TlsError;
use pithead_sealing::{
    envelope::DeviceSigningKey,
    names::{DeviceId, Site, StreamName},
    trust::Bundle,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Client, Desk, Threads,
    bell::Bell,
    files::{Files, JOBS_WAITING},
    handle::Handle,
    options::{Kind, StreamOptions},
    stream::Intake,
    worker::{Board, COMMANDS_WAITING, KeyView, Lane, Worker},
};
use crate::{
    clock::DeviceClock,
    keys::{Keys, KeysError},
    outbox::{MIN_BUDGET_BYTES, Outbox, OutboxError, inline_bytes},
    sealer::Sealer,
    sequence::STREAMS_PER_DEVICE,
    uplink::{Delivery, Gateways, Progress, RefusedArea, Uplink},
};

/// Between two heartbeats (envelope document, 2.1).
const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);
/// Bytes on the air without an answer, at most: what a fast radio link holds in flight. More would make a stream of a high
/// priority wait behind what was handed over before it.
const WINDOW_BYTES: u64 = 1024 * 1024;
/// The stream of a device that has no stream of records: its heartbeats have to ride somewhere.
const STATUS_STREAM: &str = "status";
/// Threads for reads of the disk, beside the one that delivers.
const BLOCKING_THREADS: usize = 3;
/// How long they stay when idle.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What the device believes from the beginning. It comes from the authority, by a way that is not the gateway.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TrustAnchor {
    /// The authority, such as `acme-mining/prod`.
    pub authority: String,
    /// Its first trust root, as the authority made it.
    pub root: Vec<u8>,
}

impl TrustAnchor {
    /// An authority and its first trust root.
    #[must_use]
    pub fn new(authority: impl Into<String>, root: impl Into<Vec<u8>>) -> Self {
        Self { authority: authority.into(), root: root.into() }
    }
}

/// Why a client could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Its trust.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The folder was enrolled with another authority than the anchor's. A folder keeps its authority; take another folder,
    /// or enrol it again.
    #[error("the folder is enrolled with authority {found}, and the anchor is of {expected}")]
    OtherAuthority {
        /// In the folder.
        found: String,
        /// In the anchor.
        expected: String,
    },
    /// The bundle to begin with is none, or is refused.
    #[error("the bundle to begin with: {0}")]
    Bundle(KeysError),
    /// Its numbers or its outbox.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// Certificates or keys for the gateways.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Two streams of one name.
    #[error("the stream {0} is configured twice")]
    StreamTwice(StreamName),
    /// A device has at most [`STREAMS_PER_DEVICE`] streams, the one of its heartbeats included.
    #[error("a device has at most {STREAMS_PER_DEVICE} streams")]
    TooManyStreams,
    /// The system gives no thread.
    #[error("no thread: {0}")]
    Threads(io::Error),
}

/// A client to be. See [`Client::builder`].
#[derive(Debug)]
#[must_use]
pub struct ClientBuilder {
    folder: PathBuf,
    site: Site,
    device: DeviceId,
    gateways: Gateways,
    anchor: Option<TrustAnchor>,
    bundle: Option<Bundle>,
    clock: DeviceClock,
    signer: Option<DeviceSigningKey>,
    streams: Vec<StreamOptions>,
    heartbeat_every: Duration,
    window_bytes: u64,
}

impl Client {
    /// A client of `device` at `site`, with its state in `folder`, which is made and then is the client's own. `anchor` is
    /// what a folder that was never used is enrolled with.
    pub fn builder(
        folder: impl Into<PathBuf>,
        site: Site,
        device: DeviceId,
        gateways: Gateways,
        anchor: TrustAnchor,
    ) -> ClientBuilder {
        ClientBuilder::new(folder.into(), site, device, gateways, Some(anchor))
    }

    /// The same for a folder that was enrolled before, as `pithead-device enroll` does.
    pub fn enrolled(
        folder: impl Into<PathBuf>,
        site: Site,
        device: DeviceId,
        gateways: Gateways,
    ) -> ClientBuilder {
        ClientBuilder::new(folder.into(), site, device, gateways, None)
    }
}

impl ClientBuilder {
    fn new(
        folder: PathBuf,
        site: Site,
        device: DeviceId,
        gateways: Gateways,
        anchor: Option<TrustAnchor>,
    ) -> Self {
        Self {
            folder,
            site,
            device,
            gateways,
            anchor,
            bundle: None,
            clock: DeviceClock::start(),
            signer: None,
            streams: Vec::new(),
            heartbeat_every: HEARTBEAT_EVERY,
            window_bytes: WINDOW_BYTES,
        }
    }

    /// A stream of the device. At most 16, heartbeats' own included.
    pub fn stream(mut self, options: StreamOptions) -> Self {
        self.streams.push(options);
        self
    }

    /// Keys to begin with, so that the device can seal before it has met a gateway. Verified like any other.
    pub fn bundle(self, bundle: Bundle) -> Self {
        Self { bundle: Some(bundle), ..self }
    }

    /// Signs every session with the device's identity key, so that the cloud knows it without believing the gateway
    /// (envelope document, 2.4). The key is cleared when the client is dropped.
    pub fn sign_with(self, key: DeviceSigningKey) -> Self {
        Self { signer: Some(key), ..self }
    }

    /// A clock that the owner vouches for, or an hour meter. Default: the machine's, which is not believed.
    pub fn clock(self, clock: DeviceClock) -> Self {
        Self { clock, ..self }
    }

    /// How often the device says, sealed, how far its streams have come, while connected. Default 60 s.
    pub fn heartbeat_every(self, every: Duration) -> Self {
        Self { heartbeat_every: every.max(Duration::from_millis(1)), ..self }
    }

    /// Bytes on the air without an answer, at most; the gateway narrows it. Default 1 MiB.
    pub fn window_bytes(self, bytes: u64) -> Self {
        Self { window_bytes: bytes, ..self }
    }

    /// Opens the folder, begins a run, and starts to deliver what waits. Blocks for as long as the disk takes; needs no
    /// gateway.
    ///
    /// # Errors
    /// [`OpenError`]. Damage in the outbox is none: see [`Client::recovery`].
    pub fn open(self) -> Result<Client, OpenError> {
        let mut streams = self.streams;
        // A device that sends only files says how far it has come in a stream of its own.
        if !streams.iter().any(|stream| stream.kind == Kind::Records) {
            let status = StreamName::new(STATUS_STREAM).expect("a stream's name");
            streams.push(StreamOptions::records(status).budget_bytes(MIN_BUDGET_BYTES));
        }
        if streams.len() > STREAMS_PER_DEVICE {
            return Err(OpenError::TooManyStreams);
        }
        let mut budgets = BTreeMap::new();
        for stream in &streams {
            if budgets.insert(stream.name.clone(), stream.budget_bytes).is_some() {
                return Err(OpenError::StreamTwice(stream.name.clone()));
            }
        }

        let keys = keys(&self.folder, &self.site, self.anchor, self.bundle, self.clock)?;
        let uplink = Uplink::new(self.gateways, &keys)?;
        let (outbox, recovery) = Outbox::open(&self.folder, &self.site, &budgets)?;
        let outbox = Arc::new(outbox);
        let board = Arc::new(Board {
            connected: AtomicBool::new(false),
            keys: Mutex::new(Arc::new(KeyView::of(&keys))),
            sessions: AtomicU64::new(0),
            heartbeats: AtomicU64::new(0),
            watches: Arc::default(),
        });
        let mut sealer = Sealer::sharing(self.device.clone(), keys, Arc::clone(outbox.sequence()));
        if let Some(signer) = self.signer {
            sealer.sign_with(signer);
        }

        let bell = Arc::<Bell>::default();
        let (commands, asked) = mpsc::sync_channel(COMMANDS_WAITING);
        let handle = Handle::new(commands, Arc::clone(&bell));
        let priorities = streams.iter().map(|stream| (stream.name.clone(), stream.priority)).collect();
        let heartbeat_stream = streams
            .iter()
            .find(|stream| stream.kind == Kind::Records)
            .map(|stream| stream.name.clone())
            .expect("there is one, or one was added");
        let mut intakes = HashMap::new();
        let mut lanes = Vec::new();
        let mut file_logs = HashMap::new();
        // The worker takes them in the order in which they matter.
        streams.sort_by_key(|stream| std::cmp::Reverse(stream.priority));
        for options in streams {
            let log = Arc::clone(outbox.log(&options.name).expect("it was opened with its budget"));
            if options.kind == Kind::Files {
                file_logs.insert(options.name.clone(), Arc::clone(&log));
            }
            let inline = inline_bytes(options.budget_bytes);
            let intake = Arc::new(Intake::new(options, inline, Arc::clone(&bell)));
            intakes.insert(log.stream().clone(), Arc::clone(&intake));
            lanes.push(Lane::new(intake, log));
        }

        let watches = Arc::clone(&board.watches);
        let desk = Desk {
            device: self.device,
            board: Arc::clone(&board),
            handle: handle.clone(),
            watches: Arc::clone(&watches),
        };
        let (told, progress) = watch::channel(Progress::default());
        let delivery = Delivery {
            uplink,
            outbox: Arc::clone(&outbox),
            priorities,
            refused: RefusedArea::new(self.folder.join("refused")),
            progress: told,
            desk,
            window_bytes: self.window_bytes,
        };
        let worker = Worker::new(
            sealer,
            Arc::clone(&outbox),
            Arc::clone(&board),
            bell,
            asked,
            self.heartbeat_every,
            heartbeat_stream,
            lanes,
        );

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_keep_alive(BLOCKING_KEEP_ALIVE)
            .thread_name("pithead-read")
            .build()
            .map_err(OpenError::Threads)?;
        let runtime_handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let delivering = spawn("pithead-uplink", move || {
            runtime.block_on(delivery.run(stopped));
            // A read of the disk that hangs must not hold the client.
            runtime.shutdown_background();
        })?;
        let sealing = spawn("pithead-seal", move || worker.run())?;
        let closing = Arc::<AtomicBool>::default();
        let (files, jobs) = if file_logs.is_empty() {
            (None, None)
        } else {
            let (jobs, taken) = mpsc::sync_channel(JOBS_WAITING);
            let closing = Arc::clone(&closing);
            let files = Files { jobs: taken, closing, handle: handle.clone(), logs: file_logs, watches };
            (Some(spawn("pithead-files", move || files.run())?), Some(jobs))
        };
        Ok(Client {
            outbox,
            recovery,
            intakes,
            jobs,
            closing,
            board,
            handle,
            progress,
            runtime: runtime_handle,
            stop,
            threads: Some(Threads { sealing, delivering, files }),
        })
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, OpenError> {
    thread::Builder::new().name(name.into()).spawn(work).map_err(OpenError::Threads)
}

/// The folder's keys; those of the anchor if it was never used.
fn keys(
    folder: &std::path::Path,
    site: &Site,
    anchor: Option<TrustAnchor>,
    bundle: Option<Bundle>,
    clock: DeviceClock,
) -> Result<Keys, OpenError> {
    let mut keys = match (Keys::open_to_move(folder, site, clock.restarted()), anchor) {
        (Err(KeysError::NotEnrolled), Some(anchor)) => {
            Keys::enroll_in(folder, &anchor.authority, site, &anchor.root, clock)?
        }
        (Ok(keys), Some(anchor)) if keys.trust().authority() != anchor.authority => {
            return Err(OpenError::OtherAuthority {
                found: keys.trust().authority().to_owned(),
                expected: anchor.authority,
            });
        }
        (opened, _) => opened?,
    };
    if let Some(bundle) = bundle {
        let newer = bundle.newer_than(keys.trust().root_version());
        // What the device holds may be newer than what it was carried: then nothing is taken from it, and that is no error.
        if let Err(error) = keys.apply(&newer)
            && keys.verified_key().is_err()
        {
            return Err(OpenError::Bundle(error));
        }
    }
    Ok(keys)
}
