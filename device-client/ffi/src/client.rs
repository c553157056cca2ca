//! A client's life: opened, asked how it stands, waited for, closed, and freed.
//!
//! A handle outlives its client: between pithead_close() and pithead_client_free() every call is answered, most of them with
//! `PITHEAD_CLOSED`. Who waits while somebody else closes is let go first, so that the closing waits for nobody.

use std::{
    ffi::{CStr, c_char},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use pithead_device_client::{
    client::{Client, FlushError, Status, StreamStatus},
    sealing::trust,
};
use tokio_util::sync::CancellationToken;

use crate::{
    border::{border, fill, give, handle, put_text, take_back, text},
    error::{
        Failure, PITHEAD_OK, PITHEAD_UNKNOWN_STREAM, millis32, pithead_error, pithead_result, record_code,
        trouble_code,
    },
    options::pithead_options,
    threads::without_signals,
    wait::wait_until,
};

/// A device's client, open on its folder. One at a time on a folder.
#[derive(Debug)]
pub struct pithead_client {
    slot: RwLock<Slot>,
    closing: CancellationToken,
}

#[derive(Debug)]
enum Slot {
    Open(Box<Client>),
    /// Somebody is closing it.
    Closing,
    /// How it stood at the end, if everything could be written down.
    Closed(Option<Box<Status>>),
}

impl pithead_client {
    fn read(&self) -> RwLockReadGuard<'_, Slot> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Slot> {
        self.slot.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the client, if it is open.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Client) -> Result<T, Failure>) -> Result<T, Failure> {
        match &*self.read() {
            Slot::Open(client) => work(client),
            Slot::Closing | Slot::Closed(_) => Err(Failure::closed()),
        }
    }

    /// Waits until the client has done something, or is closed.
    fn wait(&self, begin: impl AsyncFnOnce(&Client) -> Result<(), FlushError>) -> Result<(), Failure> {
        self.with(|client| match wait_until(&self.closing, begin(client)) {
            Some(Ok(())) => Ok(()),
            Some(Err(FlushError::NotHeld)) => Err(not_held(client)),
            Some(Err(error)) => Err(Failure::flush(&error)),
            None => Err(Failure::closed()),
        })
    }

    /// How it stands; how it stood at the end if it is closed.
    fn status(&self) -> Result<Status, Failure> {
        match &*self.read() {
            Slot::Open(client) => Ok(client.status()),
            Slot::Closed(Some(last)) => Ok((**last).clone()),
            Slot::Closing | Slot::Closed(None) => Err(Failure::closed()),
        }
    }

    fn close(&self, deadline: Duration) -> Result<(), Failure> {
        self.closing.cancel();
        let client = {
            let mut slot = self.write();
            match std::mem::replace(&mut *slot, Slot::Closing) {
                Slot::Open(client) => client,
                other => {
                    *slot = other;
                    return Err(Failure::closed());
                }
            }
        };
        let closed = client.close(deadline);
        let (last, result) = match closed {
            Ok(status) => (Some(Box::new(status)), Ok(())),
            Err(error) => (None, Err(error.into())),
        };
        *self.write() = Slot::Closed(last);
        result
    }
}

/// Something is not on the disk: a stream says why, or it takes longer than it was given.
fn not_held(client: &Client) -> Failure {
    let streams = client.status().streams;
    match streams.values().find_map(|stream| stream.trouble.clone()) {
        Some(trouble) => trouble.into(),
        None => Failure::flush(&FlushError::NotHeld),
    }
}

/// The library's version, such as "0.1.0". It is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn pithead_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no zero byte in it"),
        };
    VERSION.as_ptr()
}

/// Opens the folder, begins a run, starts the client's threads and delivers what waits. Takes as long as the disk does; needs no
/// gateway.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_open(
    options: *const pithead_options,
    client: *mut *mut pithead_client,
    error: *mut pithead_error,
) -> pithead_result {
    let open = || {
        // SAFETY: the header's rules.
        let builder = unsafe { handle(options, "options") }?.with(|options| options.client())?;
        let client = without_signals(|| builder.open())?;
        Ok(pithead_client {
            slot: RwLock::new(Slot::Open(Box::new(client))),
            closing: CancellationToken::new(),
        })
    };
    // SAFETY: the header's rules.
    unsafe { border(error, || give(client, "client", open)) }
}

/// Seals everything that was recorded before and waits until it is on the device's disk: from then on it survives a power cut.
/// PITHEAD_TIMEOUT when the time is over, or what keeps it back, such as PITHEAD_OUTBOX_FULL or PITHEAD_NO_KEY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_sync(
    client: *const pithead_client,
    timeout_ms: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let deadline = Duration::from_millis(timeout_ms.into());
    let work = || {
        // SAFETY: the header's rules.
        let client = unsafe { handle(client, "client") }?;
        client.wait(async |client| client.sync(deadline).await)
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// Seals everything that was recorded before and waits until a gateway has it on its disk, or until it is settled otherwise (see
/// pithead_stream_info). A file is waited for from when it is PITHEAD_FILE_KEPT. PITHEAD_TIMEOUT when the time is over; at once
/// with the reason, such as PITHEAD_PEER_UNTRUSTED, where waiting longer is useless. What is not there yet goes on its way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_flush(
    client: *const pithead_client,
    timeout_ms: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let deadline = Duration::from_millis(timeout_ms.into());
    let work = || {
        // SAFETY: the header's rules.
        let client = unsafe { handle(client, "client") }?;
        client.wait(async |client| client.flush(deadline).await)
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// Takes nothing more, seals what was gathered, gives a gateway `timeout_ms` to take what waits, writes everything down and ends
/// the client's threads. What was not taken is no error: it is on the disk, and goes out after the next opening. The disk has its
/// own time, whatever `timeout_ms` is.
///
/// Calls of other threads that wait on the client return PITHEAD_CLOSED. The handle stays, for pithead_status(), until
/// pithead_client_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_close(
    client: *const pithead_client,
    timeout_ms: u32,
    error: *mut pithead_error,
) -> pithead_result {
    let deadline = Duration::from_millis(timeout_ms.into());
    let work = || {
        // SAFETY: the header's rules.
        let client = unsafe { handle(client, "client") }?;
        client.close(deadline)
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// Frees a client. One that was not closed is closed, without time for a gateway. NULL is nothing. Streams and files that were
/// taken from it may be freed before or after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_client_free(client: *mut pithead_client) {
    // SAFETY: the header's rules.
    unsafe { take_back(client) }
}

/// The key statement is young.
pub const PITHEAD_KEY_FRESH: u32 = 0;
/// The key statement should have been renewed; it is still sealed to.
pub const PITHEAD_KEY_STALE: u32 = 1;
/// The key statement has expired: nothing is sealed.
pub const PITHEAD_KEY_EXPIRED: u32 = 2;
/// There is no key: nothing is sealed.
pub const PITHEAD_KEY_NONE: u32 = 3;

/// How a client stands. Counts are since it was opened. Later versions add to its end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pithead_client_info {
    /// 1 while a gateway is taking envelopes.
    pub connected: u32,
    /// One of PITHEAD_KEY_...
    pub key: u32,
    /// Epoch of the key statement that is believed.
    pub key_epoch: u64,
    /// Its number within the epoch.
    pub key_sequence: u64,
    /// Connections made.
    pub connections: u64,
    /// Sessions begun: each is one public-key operation here and one unwrapping in the cloud.
    pub sessions: u64,
    /// Heartbeats sealed.
    pub heartbeats: u64,
    /// Streams, those included that are on the disk and not configured any more.
    pub streams: u64,
    /// Envelopes of all streams that wait on the disk.
    pub waiting: u64,
    /// Bytes on the disk that they take.
    pub waiting_bytes: u64,
    /// Why nothing is being delivered, while nothing is: a number of the registry; else 0.
    pub trouble: pithead_result,
    /// 1 if it may end without anybody mending something.
    pub trouble_retryable: u32,
    /// When it is tried again, counted from when this was said; 0 if that is not known.
    pub trouble_retry_after_ms: u32,
    /// 1 if the gateway's clock was seen.
    pub clock_seen: u32,
    /// How far the gateway's clock is ahead of the wall clock here, in microseconds. For display: nothing goes by it.
    pub clock_ahead_us: i64,
    /// How wrong that may be.
    pub clock_uncertainty_us: u64,
    /// The gateway that is taking envelopes, as "host:port".
    pub gateway: [c_char; 272],
    /// What the trouble is, for a person.
    pub trouble_text: [c_char; 256],
}

const _: () =
    assert!(size_of::<pithead_client_info>() == 4 * 2 + 8 * 8 + 4 * 4 + 8 * 2 + 272 + 256, "no padding");

impl pithead_client_info {
    fn of(status: &Status) -> Self {
        let mut info = Self {
            connected: status.connected.is_some().into(),
            key: match status.keys.status {
                trust::Status::Fresh => PITHEAD_KEY_FRESH,
                trust::Status::Stale => PITHEAD_KEY_STALE,
                trust::Status::Expired => PITHEAD_KEY_EXPIRED,
                trust::Status::NoKey => PITHEAD_KEY_NONE,
            },
            key_epoch: status.keys.version.0,
            key_sequence: status.keys.version.1,
            connections: status.connections,
            sessions: status.sessions,
            heartbeats: status.heartbeats,
            streams: status.streams.len() as u64,
            waiting: status.streams.values().map(|stream| stream.waiting).sum(),
            waiting_bytes: status.streams.values().map(|stream| stream.waiting_bytes).sum(),
            trouble: PITHEAD_OK,
            trouble_retryable: 0,
            trouble_retry_after_ms: 0,
            clock_seen: status.clock.is_some().into(),
            clock_ahead_us: status.clock.map_or(0, |clock| clock.ahead_us),
            clock_uncertainty_us: status.clock.map_or(0, |clock| clock.uncertainty_us),
            gateway: [0; 272],
            trouble_text: [0; 256],
        };
        if let Some(gateway) = &status.connected {
            put_text(&gateway.to_string(), &mut info.gateway);
        }
        if let Some(trouble) = &status.trouble {
            info.trouble = trouble_code(trouble);
            info.trouble_retryable = trouble.retryable.into();
            info.trouble_retry_after_ms = millis32(trouble.retry_after);
            put_text(&trouble.detail, &mut info.trouble_text);
        }
        info
    }
}

/// Fills `info`, of which `info_size` is `sizeof *info`, with how the client stands; after pithead_close() with how it stood at
/// the end. Reads a few bytes of the disk: not for the control loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_status(
    client: *const pithead_client,
    info: *mut pithead_client_info,
    info_size: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let status = unsafe { handle(client, "client") }?.status()?;
        // SAFETY: the header's rules.
        unsafe { fill(&pithead_client_info::of(&status), info, info_size, "info") }
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

/// How a stream stands. Records are what the owner gave, or files; envelopes are what they were sealed into. Counts are since the
/// client was opened. Later versions add to its end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pithead_stream_info {
    /// 1 if it carries files.
    pub files: u32,
    /// Why records are refused at the moment, or soon will be; else 0.
    pub trouble: pithead_result,
    /// Records taken.
    pub recorded: u64,
    /// Bytes of their names and data.
    pub recorded_bytes: u64,
    /// Records refused to the caller's face.
    pub refused: u64,
    /// Records in memory, not sealed yet.
    pub in_memory: u64,
    /// Bytes that they take.
    pub in_memory_bytes: u64,
    /// Envelopes sealed.
    pub sealed: u64,
    /// Their bytes.
    pub sealed_bytes: u64,
    /// Records that are, or were, durable on the device's disk.
    pub held: u64,
    /// Envelopes that were given up by policy, and declared.
    pub dropped_envelopes: u64,
    /// Records in them.
    pub dropped_records: u64,
    /// Bytes of the names and data of these.
    pub dropped_bytes: u64,
    /// Envelopes that a gateway has on its disk because of this client.
    pub stored: u64,
    /// Envelopes that were there before.
    pub duplicates: u64,
    /// Of these, those that did not cross the air again.
    pub resumed: u64,
    /// Envelopes under whose number other bytes stand at the gateway, which keeps both.
    pub conflicts: u64,
    /// Envelopes that no gateway will take; they are in the folder's refused area.
    pub unacceptable: u64,
    /// Envelopes that were damaged on the device's disk, or not acceptable while the refused area was full; declared.
    pub lost: u64,
    /// Envelopes that wait on the disk.
    pub waiting: u64,
    /// Bytes on the disk that they take, files included.
    pub waiting_bytes: u64,
    /// How long the oldest of them has waited, in milliseconds by the wall clock.
    pub oldest_ms: u64,
    /// The stream's budget on the disk.
    pub budget_bytes: u64,
}

const _: () = assert!(size_of::<pithead_stream_info>() == 4 * 2 + 21 * 8, "no padding");

impl pithead_stream_info {
    fn of(status: &StreamStatus) -> Self {
        Self {
            files: status.files.into(),
            trouble: status.trouble.as_ref().map_or(PITHEAD_OK, record_code),
            recorded: status.recorded,
            recorded_bytes: status.recorded_bytes,
            refused: status.refused,
            in_memory: status.in_memory,
            in_memory_bytes: status.in_memory_bytes,
            sealed: status.sealed,
            sealed_bytes: status.sealed_bytes,
            held: status.held,
            dropped_envelopes: status.dropped_envelopes,
            dropped_records: status.dropped_records,
            dropped_bytes: status.dropped_bytes,
            stored: status.settled.stored,
            duplicates: status.settled.duplicates,
            resumed: status.settled.resumed,
            conflicts: status.settled.conflicts,
            unacceptable: status.settled.refused,
            lost: status.settled.lost,
            waiting: status.waiting,
            waiting_bytes: status.waiting_bytes,
            oldest_ms: status
                .oldest
                .map_or(0, |oldest| u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX)),
            budget_bytes: status.budget_bytes,
        }
    }
}

/// The same for one stream, of records or of files.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pithead_stream_status(
    client: *const pithead_client,
    stream: *const c_char,
    info: *mut pithead_stream_info,
    info_size: usize,
    error: *mut pithead_error,
) -> pithead_result {
    let work = || {
        // SAFETY: the header's rules.
        let (client, name) = unsafe { (handle(client, "client")?, text(stream, "stream")?) };
        let status = client.status()?;
        let stream = status.streams.iter().find(|(stream, _)| stream.as_str() == name);
        let (_, stream) = stream.ok_or_else(|| unknown(name))?;
        // SAFETY: the header's rules.
        unsafe { fill(&pithead_stream_info::of(stream), info, info_size, "info") }
    };
    // SAFETY: the header's rules.
    unsafe { border(error, work) }
}

pub(crate) fn unknown(name: &str) -> Failure {
    Failure::new(
        PITHEAD_UNKNOWN_STREAM,
        format!("the client has no such stream `{name}`: name it in its options"),
    )
}
