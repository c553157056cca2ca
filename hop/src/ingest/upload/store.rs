//! All uploads of a program: which are open, whole, taken or refused, and what room they have.

mod elsewhere;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1::Hop;
use pithead_sealing::envelope::Header;
use pithead_sealing::{DeviceId, Identity, Site};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, watch};

use super::layout::{HeaderHash, Meta, Paths, header_hash, upload_name};
use super::part::PartFile;
use super::sealed_file::{SealedFile, SealedFileError};
use crate::backoff::{random, spread};
use crate::program::disk;
use crate::program::units::{ByteSize, Duration as ConfigDuration};
use crate::status::Refusal;
use crate::trace::TraceParent;

pub use elsewhere::{BringError, Bringing};

/// The largest envelope that there is, in bytes.
pub(crate) const UPLOAD_MAX: u64 = 1 << 40;
/// Of the budget, what may be promised to uploads and not written yet: a device that opens and never writes must not keep
/// the others out. One upload may always have what it needs.
const PROMISED_PERCENT: u64 = 20;
/// Of the budget, what one device may hold, and never less than [`DEVICE_BYTES_MIN`].
const DEVICE_PERCENT: u64 = 50;
const DEVICE_BYTES_MIN: u64 = 2 << 30;
/// Uploads of all kinds, waiting ones included: each is two files, and a place in memory.
const UPLOADS_MAX: usize = 65_536;
/// What an upload is taken to need at least, in bytes: its files, whatever it holds.
const UPLOAD_BYTES_MIN: u64 = 64 << 10;
/// Refusals that are remembered, so that a repeated finish gets the same answer. Some 200 bytes each.
const REFUSED_MAX: usize = 1_024;
/// What a sender is told to wait where others have to finish first, before jitter.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// Bounds of large envelopes. All of them are in the configuration, under these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadLimits {
    /// The disk budget of large envelopes, those that wait to be passed on included.
    pub max_size: ByteSize,
    /// Uploads open at a time.
    pub open: usize,
    /// Of them, of one device.
    pub open_per_device: usize,
    /// An upload that has made no progress for so long is given up.
    pub idle: ConfigDuration,
}

impl Default for UploadLimits {
    /// 64 GiB, 64 open, 4 of one device, 24 h.
    fn default() -> Self {
        Self {
            max_size: ByteSize::mib(64 << 10),
            open: 64,
            open_per_device: 4,
            idle: ConfigDuration::from_secs(24 * 3600),
        }
    }
}

/// How an upload stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Bytes are missing.
    Open,
    /// All bytes are on disk; whoever brings the last one again asks what becomes of it.
    Whole,
    /// Taken for good; its file is kept until it is passed on.
    Taken,
    /// Refused for good; its bytes are gone.
    Refused(Refusal),
    /// Given up, or passed on: its files are being removed, and whoever still knows it writes nothing more.
    Gone,
}

/// One upload.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) identity: Identity,
    pub(crate) header: HeaderHash,
    pub(crate) total: u64,
    paths: Paths,
    /// Counts writers: whoever sees another number than his own was fenced.
    pub(crate) writer: watch::Sender<u64>,
    /// The file, for the one writer; none before the first write after a start, and after a failure of the disk. Held while
    /// files are written or removed, so by threads that may block, and by nobody else.
    part: Mutex<Option<PartFile>>,
    /// Held while the program decides what becomes of a whole one.
    pub(crate) finishing: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<UploadState>,
    /// Of whoever opened it last, if that call said one.
    trace: Mutex<Option<TraceParent>>,
}

#[derive(Debug)]
struct UploadState {
    phase: Phase,
    persisted: u64,
    progress: Duration,
    /// Whole, and it may have been acknowledged: its record is lost, and it is not given up before it has one again.
    owed: bool,
    /// Taken, and its bytes lie elsewhere.
    away: bool,
}

impl Upload {
    fn new(
        identity: Identity,
        header: HeaderHash,
        total: u64,
        paths: Paths,
        phase: Phase,
        persisted: u64,
        now: Duration,
    ) -> Arc<Self> {
        let state = UploadState { phase, persisted, progress: now, owed: false, away: false };
        Arc::new(Self {
            identity,
            header,
            total,
            paths,
            writer: watch::Sender::new(0),
            part: Mutex::new(None),
            finishing: Arc::default(),
            state: Mutex::new(state),
            trace: Mutex::default(),
        })
    }

    /// It was opened by a call of this trace.
    pub(crate) fn traced(&self, trace: Option<TraceParent>) {
        if trace.is_some() {
            *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = trace;
        }
    }

    fn lock(&self) -> MutexGuard<'_, UploadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's file. Blocks its thread.
    pub(crate) fn part(&self) -> MutexGuard<'_, Option<PartFile>> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> String {
        upload_name(&self.identity)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }

    /// Bytes that are on disk.
    pub(crate) fn persisted(&self) -> u64 {
        self.lock().persisted
    }

    /// More bytes are on disk, or `whole` of them.
    pub(crate) fn progressed(&self, persisted: u64, whole: bool, now: Duration) {
        let mut state = self.lock();
        state.persisted = state.persisted.max(persisted);
        state.progress = now;
        if whole && state.phase == Phase::Open {
            state.phase = Phase::Whole;
        }
    }

    /// Whether nobody goes on with it any more, and nobody was told that it is here.
    fn is_given_up(&self, idle: Duration, now: Duration) -> bool {
        let kept = {
            let state = self.lock();
            state.phase == Phase::Taken || state.owed
        };
        !kept && self.expires_in(idle, now).is_zero()
    }

    /// When it is given up if nothing is written.
    pub(crate) fn expires_in(&self, idle: Duration, now: Duration) -> Duration {
        (self.lock().progress + idle).saturating_sub(now)
    }

    /// Gives the writer's file, opened if nobody has it open. What is certainly on disk may be less than was thought.
    /// Blocks its thread.
    pub(crate) fn file<'a>(&self, part: &'a mut Option<PartFile>) -> io::Result<&'a mut PartFile> {
        if self.phase() == Phase::Gone {
            return Err(io::ErrorKind::NotFound.into());
        }
        if part.is_none() {
            let file = PartFile::resume(&self.paths, Some(self.persisted()))?;
            self.lock().persisted = file.persisted();
            *part = Some(file);
        }
        part.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A large envelope whose bytes are all on disk and whose structure is sound.
#[derive(Debug, Clone)]
pub struct WholeUpload {
    /// What it is filed under.
    pub identity: Identity,
    /// SHA-256 of its header: what tells a resend from a conflict.
    pub header_sha256: [u8; 32],
    /// Bytes of the whole envelope.
    pub total: u64,
}

/// How many uploads there are, and how large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadStats {
    /// Uploads whose bytes are missing or whose fate is not decided.
    pub open: usize,
    /// Large envelopes that wait to be passed on.
    pub taken: usize,
    /// Bytes promised and held, of all of them.
    pub bytes: u64,
    /// The budget.
    pub capacity: u64,
}

/// The uploads of a program. Clones are the same store.
#[derive(Debug, Clone)]
pub struct UploadStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    limits: UploadLimits,
    uploads: Mutex<HashMap<Identity, Arc<Upload>>>,
}

impl UploadStore {
    /// Opens the folder, makes it when it is missing (its parent must exist), and finds what is in it. What was begun and
    /// never told to anybody is removed. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(folder: &Path, limits: UploadLimits, now: Duration) -> io::Result<Self> {
        disk::create_folder(folder)?;
        let mut uploads = HashMap::new();
        let mut strays = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            match Paths::parse(name) {
                Some((identity, true)) => {
                    let paths = Paths::new(folder, &identity);
                    match found(&identity, &paths, now) {
                        Ok(upload) => drop(uploads.insert(identity, upload)),
                        // It may have been acknowledged: kept for a person, and its record in the log will say that it is
                        // damaged.
                        Err(error) if paths.envelope.try_exists().unwrap_or(true) => {
                            tracing::error!(event = "upload.damaged", %identity, %error, "its bytes are kept, set aside");
                            if error.kind() == io::ErrorKind::InvalidData {
                                paths.set_aside()?;
                            }
                        }
                        Err(error) => {
                            tracing::error!(event = "upload.damaged", %identity, %error, "begun again when it is sent again");
                            strays.push(paths);
                        }
                    }
                }
                Some((identity, false)) => {
                    let paths = Paths::new(folder, &identity);
                    if paths.sums.try_exists()? {
                        continue;
                    }
                    if paths.envelope.try_exists()? {
                        tracing::error!(event = "upload.damaged", %identity, "its checksums are gone; its bytes are kept, set aside");
                        paths.set_aside()?;
                    } else {
                        strays.push(paths);
                    }
                }
                None if name.ends_with(disk::UNFINISHED) => fs::remove_file(entry.path())?,
                None => {}
            }
        }
        for paths in strays {
            paths.remove()?;
        }
        disk::sync_folder(folder)?;
        Ok(Self(Arc::new(Inner { folder: folder.to_owned(), limits, uploads: Mutex::new(uploads) })))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Arc<Upload>>> {
        self.0.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bounds.
    pub fn limits(&self) -> &UploadLimits {
        &self.0.limits
    }

    /// The trace of the call that opened an upload, if it said one and nothing was restarted since.
    pub fn trace_of(&self, identity: &Identity) -> Option<TraceParent> {
        let upload = self.get(identity)?;
        *upload.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, identity: &Identity) -> Option<Arc<Upload>> {
        self.lock().get(identity).cloned()
    }

    /// Begins an upload, with its room and its header on disk. Blocks its thread.
    ///
    /// # Errors
    /// `TOO_MANY_UPLOADS` or `SPOOL_FULL`, with how long to wait; `NOT_DURABLE`.
    pub(crate) fn create(
        &self,
        identity: &Identity,
        header: &Header,
        total: u64,
        hops: Vec<Hop>,
        now: Duration,
    ) -> Result<Arc<Upload>, Refusal> {
        let meta = Meta { total, header: header.clone(), hops };
        let paths = Paths::new(&self.0.folder, identity);
        let persisted = header.wire_len() as u64;
        let hash = header_hash(header);
        let upload = Upload::new(identity.clone(), hash, total, paths.clone(), Phase::Open, persisted, now);
        // Held from before anybody can find the upload until its file is there.
        let mut part = upload.part();
        let there = {
            let mut uploads = self.lock();
            let there = uploads.get(identity).cloned();
            if there.is_none() {
                self.0.admit(&uploads, identity, total)?;
                uploads.insert(identity.clone(), Arc::clone(&upload));
            }
            there
        };
        if let Some(there) = there {
            // Two calls at the same moment: the other one is writing its header still.
            drop(there.part());
            return Ok(there);
        }
        match PartFile::create(&paths, &meta) {
            Ok(file) => {
                *part = Some(file);
                drop(part);
                Ok(upload)
            }
            Err(error) => {
                self.lock().remove(identity);
                if let Err(error) = paths.remove() {
                    tracing::error!(event = "upload.not_removed", %identity, %error);
                }
                Err(refusal_of_disk(&error))
            }
        }
    }

    /// Takes an upload away with its bytes. One that is not there is no error. Blocks its thread.
    ///
    /// # Errors
    /// What the disk says; what is left is found again at the next start.
    pub fn release(&self, identity: &Identity) -> io::Result<()> {
        let Some(upload) = self.get(identity) else {
            return Paths::new(&self.0.folder, identity).remove();
        };
        self.end(&upload, Paths::remove)
    }

    /// Takes an upload away, but leaves its envelope beside under a name that nobody reads: what was acknowledged and does not
    /// read back is for a person to look at, and a good copy may come in its place. Blocks its thread.
    ///
    /// # Errors
    /// What the disk says.
    pub fn set_aside(&self, identity: &Identity) -> io::Result<()> {
        match self.get(identity) {
            Some(upload) => self.end(&upload, Paths::set_aside),
            None => Paths::new(&self.0.folder, identity).set_aside(),
        }
    }

    fn end(&self, upload: &Upload, files: impl FnOnce(&Paths) -> io::Result<()>) -> io::Result<()> {
        let mut part = upload.part();
        upload.lock().phase = Phase::Gone;
        *part = None;
        // Whoever still writes is told that he was fenced.
        upload.writer.send_modify(|writer| *writer += 1);
        let ended = files(&upload.paths);
        // Last: until here nobody can begin another one over these files.
        self.lock().remove(&upload.identity);
        ended
    }

    /// A whole one that was acknowledged, or may have been, has no record in the log any more. It is kept, whatever time
    /// passes, until it is taken again: by whoever brings it once more, or by who looks for [`owed`](Self::owed) ones.
    pub fn owe(&self, identity: &Identity) {
        let Some(upload) = self.get(identity) else { return };
        let mut state = upload.lock();
        if matches!(state.phase, Phase::Whole | Phase::Taken) {
            state.phase = Phase::Whole;
            state.owed = true;
        }
    }

    /// Those that have to be entered again.
    pub fn owed(&self) -> Vec<Identity> {
        let is_owed = |upload: &&Arc<Upload>| upload.lock().owed;
        self.lock().values().filter(is_owed).map(|upload| upload.identity.clone()).collect()
    }

    /// The right to decide over an owed one, as long as what is given is kept: nobody else takes it, gives it up or aborts it
    /// meanwhile. None if somebody is at it, or it is not owed any more.
    pub fn decide_owed(&self, identity: &Identity) -> Option<OwnedMutexGuard<()>> {
        let upload = self.get(identity)?;
        let deciding = Arc::clone(&upload.finishing).try_lock_owned().ok()?;
        let is_owed = {
            let state = upload.lock();
            state.owed && state.phase == Phase::Whole
        };
        is_owed.then_some(deciding)
    }

    /// The program has taken it for good, and keeps its file until [`release`](Self::release).
    pub fn taken(&self, identity: &Identity) {
        if let Some(upload) = self.get(identity) {
            let mut state = upload.lock();
            (state.phase, state.owed) = (Phase::Taken, false);
        }
    }

    /// It is refused for good: its bytes go, its answer stays for a while. Blocks its thread.
    pub(crate) fn refuse(&self, upload: &Upload, refusal: Refusal) {
        {
            let mut uploads = self.lock();
            let refused = |upload: &&Arc<Upload>| matches!(upload.phase(), Phase::Refused(_));
            if uploads.values().filter(refused).count() >= REFUSED_MAX {
                let oldest = uploads.values().filter(refused).min_by_key(|one| one.lock().progress);
                if let Some(identity) = oldest.map(|oldest| oldest.identity.clone()) {
                    uploads.remove(&identity);
                }
            }
        }
        let mut part = upload.part();
        if !matches!(upload.phase(), Phase::Open | Phase::Whole) {
            // Somebody was quicker: it is taken, or gone.
            return;
        }
        *part = None;
        {
            let mut state = upload.lock();
            (state.phase, state.owed) = (Phase::Refused(refusal), false);
        }
        if let Err(error) = upload.paths.remove() {
            tracing::error!(event = "upload.not_removed", identity = %upload.identity, %error);
        }
    }

    /// Forgets the refusals that `mended` names: what they were for is as it should be now, and the same envelopes may come again.
    pub fn forget_refusals(&self, mended: impl Fn(&Refusal) -> bool) {
        self.lock()
            .retain(|_, upload| !matches!(upload.phase(), Phase::Refused(refusal) if mended(&refusal)));
    }

    /// Whether a whole file is here for the identity.
    pub fn is_here(&self, identity: &Identity) -> bool {
        self.get(identity).is_some_and(|upload| matches!(upload.phase(), Phase::Whole | Phase::Taken))
    }

    /// The whole file of an identity.
    ///
    /// # Errors
    /// [`SealedFileError::Gone`].
    pub fn read(&self, identity: &Identity) -> Result<SealedFile, SealedFileError> {
        SealedFile::open(&self.0.folder, identity)
    }

    /// Whole files that nobody has taken: what a kill left between the last byte and the answer, or between the answer of
    /// the next hop and the removal.
    pub fn undecided(&self) -> Vec<Identity> {
        self.lock()
            .values()
            .filter(|upload| upload.phase() == Phase::Whole)
            .map(|upload| upload.identity.clone())
            .collect()
    }

    /// Gives up what has made no progress for too long. Blocks its thread.
    pub fn expire(&self, now: Duration) {
        let idle = self.0.limits.idle.get();
        let expired: Vec<Identity> = self
            .lock()
            .values()
            .filter(|upload| upload.is_given_up(idle, now))
            .map(|upload| upload.identity.clone())
            .collect();
        for identity in expired {
            let Some(upload) = self.get(&identity) else { continue };
            // Not while it is being decided, and not if that has changed since.
            let Ok(_deciding) = Arc::clone(&upload.finishing).try_lock_owned() else { continue };
            if !upload.is_given_up(idle, now) {
                continue;
            }
            tracing::warn!(event = "upload.expired", %identity, "no progress; what was here of it is given up");
            if let Err(error) = self.release(&identity) {
                tracing::error!(event = "upload.not_removed", %identity, %error);
            }
        }
    }

    /// How many there are, and how large.
    pub fn stats(&self) -> UploadStats {
        let mut stats = UploadStats { capacity: self.0.limits.max_size.get(), ..UploadStats::default() };
        for upload in self.lock().values() {
            match upload.phase() {
                Phase::Open | Phase::Whole => stats.open += 1,
                Phase::Taken => stats.taken += 1,
                Phase::Refused(_) | Phase::Gone => continue,
            }
            stats.bytes += upload.total;
        }
        stats
    }
}

impl Inner {
    /// Whether there is room for one more.
    fn admit(
        &self,
        uploads: &HashMap<Identity, Arc<Upload>>,
        identity: &Identity,
        total: u64,
    ) -> Result<(), Refusal> {
        let key =
            |identity: &Identity| -> (Site, DeviceId) { (identity.site.clone(), identity.device.clone()) };
        let own = key(identity);
        let mut count = 0_usize;
        let (mut open, mut own_open, mut bytes, mut own_bytes, mut promised) = (0, 0, 0_u64, 0_u64, 0_u64);
        for upload in uploads.values() {
            let (phase, persisted) = {
                let state = upload.lock();
                (state.phase.clone(), state.persisted)
            };
            if matches!(phase, Phase::Refused(_)) {
                continue;
            }
            let is_own = key(&upload.identity) == own;
            let takes = upload.total.max(UPLOAD_BYTES_MIN);
            (count, bytes) = (count + 1, bytes + takes);
            own_bytes += if is_own { takes } else { 0 };
            if phase == Phase::Open {
                open += 1;
                own_open += usize::from(is_own);
                promised += upload.total - persisted.min(upload.total);
            }
        }
        let limits = &self.limits;
        let budget = limits.max_size.get();
        let wait = || spread(BUSY_WAIT, random());
        if total > budget {
            let detail =
                format!("the envelope has {total} bytes, and large envelopes have {budget} in all here");
            return Err(Refusal::new(ErrorReason::EnvelopeTooLarge, detail));
        }
        if own_open >= limits.open_per_device || open >= limits.open {
            let detail = format!(
                "{own_open} uploads of the device are open, {open} in all; finish or abort one first"
            );
            return Err(Refusal::new(ErrorReason::TooManyUploads, detail).retry_after(wait()));
        }
        let device_max = DEVICE_BYTES_MIN.max(budget / 100 * DEVICE_PERCENT);
        let promised_max = budget / 100 * PROMISED_PERCENT;
        let full = count >= UPLOADS_MAX
            || bytes.saturating_add(total.max(UPLOAD_BYTES_MIN)) > budget
            // The first of a device, and the only one that is open, may be as large as the budget.
            || (own_bytes > 0 && own_bytes.saturating_add(total) > device_max)
            || (promised > 0 && promised.saturating_add(total) > promised_max);
        if full {
            let detail = format!(
                "no room for {total} bytes: large envelopes hold {bytes} of {budget}, {promised} of them promised"
            );
            return Err(Refusal::new(ErrorReason::SpoolFull, detail).retry_after(wait()));
        }
        Ok(())
    }
}

/// An upload that a start finds.
fn found(identity: &Identity, paths: &Paths, now: Duration) -> io::Result<Arc<Upload>> {
    let (meta, region) = Meta::read(&fs::File::open(&paths.sums)?)?;
    let new = |phase, persisted| {
        let hash = header_hash(&meta.header);
        Upload::new(identity.clone(), hash, meta.total, paths.clone(), phase, persisted, now)
    };
    if paths.envelope.try_exists()? {
        return Ok(new(Phase::Whole, meta.total));
    }
    if !paths.part.try_exists()? {
        return Err(io::ErrorKind::NotFound.into());
    }
    // Judged anew by whoever writes on; until then what the sums say.
    let blocks = fs::metadata(&paths.sums)?.len().saturating_sub(region) / 4;
    let persisted = (blocks * super::BLOCK_BYTES).clamp(meta.header.wire_len() as u64, meta.total);
    Ok(new(Phase::Open, persisted))
}

/// What a sender is told when the disk does not take an upload's bytes.
pub(crate) fn refusal_of_disk(error: &io::Error) -> Refusal {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    tracing::error!(event = "upload.disk_failed", %error, full);
    if full {
        let detail = "the disk is full; what is here of the upload stays";
        Refusal::new(ErrorReason::SpoolFull, detail).retry_after(spread(BUSY_WAIT, random()))
    } else {
        let detail = "the disk failed; go on from the persisted size";
        Refusal::new(ErrorReason::NotDurable, detail).retry_after(spread(Duration::from_secs(1), random()))
    }
}
