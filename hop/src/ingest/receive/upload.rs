//! Large envelopes, the receiving half: room first, then bytes from where they broke off, then what becomes of the whole.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{conflict, draining, ends_the_call};
use crate::identity::Peer;
use crate::ingest::admit::{NotAdmitted, admit_header, may_speak, refusal_of_format};
use crate::ingest::intake::{Intake, Outcome};
use crate::ingest::upload::{
    Phase, PutError, Upload, UploadStore, WholeUpload, identity_of, refusal_of_disk, upload_name,
};
use crate::program::clock::since_boot;
use crate::status::Refusal;
use crate::trace::TraceParent;

/// Bytes in one `WriteUploadRequest`.
const DATA_MAX: usize = 1 << 20;
/// Bytes after which what has come is synced ...
const SYNC_BYTES: u64 = 8 << 20;
/// ... or the time, whichever comes first.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// How often a client is told that its whole upload is still being decided.
const STILL_DECIDING: Duration = Duration::from_secs(10);

/// One program's uploads as the service sees them.
pub(super) struct Uploads<I> {
    pub(super) intake: Arc<I>,
    pub(super) stop: CancellationToken,
    pub(super) peer: Peer,
}

impl<I: Intake> Uploads<I> {
    fn store(&self) -> Result<UploadStore, Refusal> {
        self.intake.uploads().cloned()
    }

    /// The upload of that name, if the peer may send for its device.
    fn find(&self, name: &str) -> Result<Arc<Upload>, Refusal> {
        let unknown = || Refusal::new(ErrorReason::UploadUnknown, "no such upload; open it again");
        let store = self.store()?;
        let identity = identity_of(name).ok_or_else(unknown)?;
        // Before it is said whether there is one: others' uploads are nobody's business.
        may_speak(&self.peer, &identity)
            .map_err(|_| Refusal::new(ErrorReason::UploadNotYours, "the upload is another device's"))?;
        store.get(&identity).ok_or_else(unknown)
    }

    pub(super) async fn open(
        &self,
        request: wire::OpenUploadRequest,
        trace: Option<TraceParent>,
    ) -> Result<wire::OpenUploadResponse, Refusal> {
        let store = self.store()?;
        self.intake.ready(&self.peer)?;
        let (header, total) = (request.header, request.total_size);
        let offered = match admit_header(header, total, request.hops, &self.peer, self.intake.keys()) {
            Ok(offered) => offered,
            Err(NotAdmitted { refusal, identity }) => {
                if !ends_the_call(&refusal) {
                    self.intake.refused(&self.peer, identity.as_deref(), &refusal);
                }
                return Err(refusal);
            }
        };
        let identity = offered.profile.identity().clone();
        let answer = |persisted_size, state: wire::UploadState| wire::OpenUploadResponse {
            upload: upload_name(&identity),
            persisted_size,
            state: state as i32,
            trust: self.intake.trust(&self.peer),
        };
        let upload = match store.get(&identity) {
            Some(there) => there,
            None => match self.intake.judge(&self.peer, &offered)? {
                None => {
                    let now = since_boot();
                    blocking(move || {
                        store.create(offered.profile.identity(), &offered.header, total, offered.hops, now)
                    })
                    .await??
                }
                Some(Outcome::Stored | Outcome::Duplicate { .. }) => {
                    return Ok(answer(total, wire::UploadState::Complete));
                }
                Some(Outcome::Conflict { kept }) => return Err(conflict(kept)),
                Some(Outcome::Refused(refusal)) => return Err(refusal),
            },
        };
        if upload.header != offered.header_sha256 || upload.total != total {
            return Err(conflict(false));
        }
        upload.traced(trace);
        match upload.phase() {
            Phase::Open => {
                let opened = Arc::clone(&upload);
                // After a start nobody knows yet how much of it is sound.
                let persisted =
                    blocking(move || opened.file(&mut opened.part()).map(|file| file.persisted()));
                match persisted.await? {
                    Ok(persisted) => Ok(answer(persisted, wire::UploadState::Open)),
                    Err(error) => {
                        if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound) {
                            // The disk has changed what it is: it begins anew when it is opened again.
                            let (store, gone) = (self.store()?, upload.identity.clone());
                            blocking(move || store.release(&gone))
                                .await?
                                .map_err(|error| refusal_of_disk(&error))?;
                        }
                        Err(refusal_of_disk(&error))
                    }
                }
            }
            Phase::Whole => Ok(answer(total, wire::UploadState::Open)),
            Phase::Taken => Ok(answer(total, wire::UploadState::Complete)),
            Phase::Refused(_) => Ok(answer(0, wire::UploadState::Refused)),
            Phase::Gone => Err(refusal_of_disk(&io::ErrorKind::NotFound.into())),
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<wire::GetUploadResponse, Refusal> {
        let upload = self.find(name)?;
        let (state, refusal) = told(&upload.phase());
        let idle = self.store()?.limits().idle.get();
        let expires_in = match state {
            wire::UploadState::Open => {
                prost_types::Duration::try_from(upload.expires_in(idle, since_boot())).ok()
            }
            _ => None,
        };
        Ok(wire::GetUploadResponse {
            persisted_size: upload.persisted(),
            total_size: upload.total,
            state: state as i32,
            refusal,
            expires_in,
            trust: self.intake.trust(&self.peer),
        })
    }

    pub(super) async fn abort(&self, name: &str) -> Result<wire::AbortUploadResponse, Refusal> {
        let answer = wire::AbortUploadResponse { trust: self.intake.trust(&self.peer) };
        let upload = match self.find(name) {
            Ok(upload) => upload,
            Err(refusal) if refusal.reason == ErrorReason::UploadUnknown => return Ok(answer),
            Err(refusal) => return Err(refusal),
        };
        // Whoever decides over a whole one at this moment goes first.
        let _finishing = Arc::clone(&upload.finishing).lock_owned().await;
        if upload.phase() == Phase::Taken {
            return Err(Refusal::new(ErrorReason::UploadComplete, "the upload is complete already"));
        }
        let store = self.store()?;
        match blocking(move || store.release(&upload.identity)).await? {
            Ok(()) => Ok(answer),
            Err(error) => Err(refusal_of_disk(&error)),
        }
    }

    /// Takes bytes until the upload is decided, the client has said all, or somebody takes over. What came is synced in
    /// every case, so that a cut connection costs no more than what was on the wire.
    pub(super) async fn write(
        self,
        mut requests: Streaming<wire::WriteUploadRequest>,
        answers: mpsc::Sender<Result<wire::WriteUploadResponse, Status>>,
    ) {
        let mut writing = None;
        let ended = tokio::select! {
            ended = self.take(&mut requests, &answers, &mut writing) => ended,
            () = answers.closed() => Ok(()),
        };
        if let Some(writer) = writing {
            // Also when nobody listens any more: the next call goes on from here.
            let synced = writer.sync().await;
            if let (Ok(()), Ok(persisted)) = (&ended, synced) {
                let _ = answers.send(Ok(self.response(&writer.upload, persisted))).await;
            }
        }
        if let Err(refusal) = ended {
            let _ = answers.send(Err(refusal.into())).await;
        }
    }

    async fn take(
        &self,
        requests: &mut Streaming<wire::WriteUploadRequest>,
        answers: &mpsc::Sender<Result<wire::WriteUploadResponse, Status>>,
        writing: &mut Option<Writer>,
    ) -> Result<(), Refusal> {
        let mut sync_at = None;
        loop {
            let fenced = async {
                match writing.as_ref() {
                    Some(writer) => writer.fenced().await,
                    None => std::future::pending().await,
                }
            };
            let sync_due = async {
                match sync_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let request = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(draining()),
                () = fenced => return Err(fenced_refusal()),
                request = requests.message() => request,
                () = sync_due => {
                    sync_at = None;
                    if let Some(writer) = writing.as_ref() {
                        let persisted = writer.sync().await?;
                        let _ = answers.send(Ok(self.response(&writer.upload, persisted))).await;
                    }
                    continue;
                }
            };
            let request = match request {
                Ok(Some(request)) => request,
                // The client has said all it wants to say, or its connection is gone.
                Ok(None) | Err(_) => return Ok(()),
            };
            // Where several share what waits, another one may take them by now: its sender need not bring the rest to here.
            self.store()?;
            let writer = match writing.as_ref() {
                Some(writer) if request.upload.is_empty() || request.upload == writer.upload.name() => writer,
                Some(_) => return Err(Refusal::field("upload", "is another one than this call began with")),
                None => writing.insert(Writer::begin(self.find(&request.upload)?)),
            };
            if request.data.len() > DATA_MAX {
                return Err(Refusal::field("data", "is longer than 1 MiB"));
            }
            if crc32c::crc32c(&request.data) != request.crc32c {
                return Err(Refusal::new(
                    ErrorReason::Checksum,
                    "the data does not fit its crc32c; send it again",
                ));
            }
            match writer.upload.phase() {
                Phase::Open => {}
                Phase::Whole => return self.finish(&writer.upload, answers).await,
                Phase::Gone => return Err(fenced_refusal()),
                Phase::Taken | Phase::Refused(_) => {
                    let _ = answers.send(Ok(self.response(&writer.upload, writer.upload.persisted()))).await;
                    return Ok(());
                }
            }
            match writer.put(request.offset, request.data).await {
                Ok(Put { whole: true, .. }) => return self.finish(&writer.upload, answers).await,
                Ok(Put { synced: Some(persisted), .. }) => {
                    sync_at = None;
                    let _ = answers.send(Ok(self.response(&writer.upload, persisted))).await;
                }
                Ok(Put { synced: None, .. }) => {
                    sync_at.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
                }
                Err(PutFailed::Refused(refusal)) => {
                    self.intake.refused(&self.peer, Some(&writer.upload.identity), &refusal);
                    let (store, upload) = (self.store()?, Arc::clone(&writer.upload));
                    blocking(move || store.refuse(&upload, refusal)).await?;
                    let _ = answers.send(Ok(self.response(&writer.upload, 0))).await;
                    return Ok(());
                }
                Err(PutFailed::Ends(refusal)) => return Err(refusal),
            }
        }
    }

    /// Everything is on disk: the program decides, once at a time, and to the end whether or not this call lives.
    async fn finish(
        &self,
        upload: &Arc<Upload>,
        answers: &mpsc::Sender<Result<wire::WriteUploadResponse, Status>>,
    ) -> Result<(), Refusal> {
        let deciding = Arc::clone(&upload.finishing).lock_owned().await;
        let mut taken_here = false;
        if upload.phase() == Phase::Whole {
            // Whoever asks for the end is there: it is not given up for want of progress.
            upload.progressed(upload.total, true, since_boot());
            let (intake, peer, store) = (Arc::clone(&self.intake), self.peer.clone(), self.store()?);
            let deciding_upload = Arc::clone(upload);
            let decided = tokio::spawn(async move {
                let (_deciding, upload) = (deciding, deciding_upload);
                let whole = WholeUpload {
                    identity: upload.identity.clone(),
                    header_sha256: upload.header,
                    total: upload.total,
                };
                let refusal = match intake.complete(&peer, whole).await {
                    Ok(Outcome::Stored | Outcome::Duplicate { .. }) => return Ok(true),
                    Ok(Outcome::Conflict { kept }) => conflict(kept),
                    Ok(Outcome::Refused(refusal)) => refusal,
                    Err(refusal) if refusal.is_retryable() => return Err(refusal),
                    Err(refusal) => refusal,
                };
                blocking(move || store.refuse(&upload, refusal)).await?;
                Ok(false)
            });
            taken_here = self.wait_for(decided, upload, answers).await?;
        }
        let response = match upload.phase() {
            // Also when it was passed on since and is gone.
            _ if taken_here => self.response_as(upload.total, &Phase::Taken),
            phase @ (Phase::Taken | Phase::Refused(_)) => self.response_as(upload.total, &phase),
            // Why not complete: somebody else has ended it while this call waited, and it may be that its bytes were damaged, or
            // that it was aborted. Whoever opens it again is told what is true.
            Phase::Whole | Phase::Open | Phase::Gone => {
                let detail = "what was here of the upload is gone; open it again";
                return Err(Refusal::new(ErrorReason::UploadUnknown, detail));
            }
        };
        let _ = answers.send(Ok(response)).await;
        Ok(())
    }

    /// Says from time to time that it is still being decided: opening a large one takes its time, and silence is what a dead
    /// peer sounds like.
    async fn wait_for(
        &self,
        mut decided: JoinHandle<Result<bool, Refusal>>,
        upload: &Upload,
        answers: &mpsc::Sender<Result<wire::WriteUploadResponse, Status>>,
    ) -> Result<bool, Refusal> {
        loop {
            tokio::select! {
                decided = &mut decided => {
                    return decided
                        .map_err(|_| Refusal::new(ErrorReason::Internal, "the upload was not decided"))?;
                }
                () = tokio::time::sleep(STILL_DECIDING) => {
                    let _ = answers.send(Ok(self.response_as(upload.total, &Phase::Whole))).await;
                }
            }
        }
    }

    fn response(&self, upload: &Upload, persisted_size: u64) -> wire::WriteUploadResponse {
        self.response_as(persisted_size, &upload.phase())
    }

    fn response_as(&self, persisted_size: u64, phase: &Phase) -> wire::WriteUploadResponse {
        let (state, refusal) = told(phase);
        wire::WriteUploadResponse {
            persisted_size,
            state: state as i32,
            refusal,
            trust: self.intake.trust(&self.peer),
        }
    }
}

fn told(phase: &Phase) -> (wire::UploadState, Option<wire::Refusal>) {
    match phase {
        Phase::Open | Phase::Whole | Phase::Gone => (wire::UploadState::Open, None),
        Phase::Taken => (wire::UploadState::Complete, None),
        Phase::Refused(refusal) => {
            let refusal = wire::Refusal { reason: refusal.reason as i32, detail: refusal.detail.to_string() };
            (wire::UploadState::Refused, Some(refusal))
        }
    }
}

fn fenced_refusal() -> Refusal {
    Refusal::new(ErrorReason::UploadFenced, "another writer took this upload over")
}

/// The right to write to an upload, until somebody else takes it.
struct Writer {
    upload: Arc<Upload>,
    number: u64,
    changes: watch::Receiver<u64>,
}

struct Put {
    /// Every byte is on disk.
    whole: bool,
    /// A sync was due, and this much is on disk.
    synced: Option<u64>,
}

enum PutFailed {
    /// It is no envelope.
    Refused(Refusal),
    /// For now; it ends the call.
    Ends(Refusal),
}

impl Writer {
    fn begin(upload: Arc<Upload>) -> Self {
        let mut number = 0;
        upload.writer.send_modify(|writer| {
            *writer += 1;
            number = *writer;
        });
        let changes = upload.writer.subscribe();
        Self { upload, number, changes }
    }

    /// Resolves when somebody else has taken over.
    async fn fenced(&self) {
        let number = self.number;
        let _ = self.changes.clone().wait_for(|writer| *writer != number).await;
    }

    async fn put(&self, offset: u64, data: Bytes) -> Result<Put, PutFailed> {
        let (upload, number) = (Arc::clone(&self.upload), self.number);
        blocking(move || {
            let mut part = upload.part();
            if *upload.writer.borrow() != number {
                return Err(PutFailed::Ends(fenced_refusal()));
            }
            let failed = |error| PutFailed::Ends(refusal_of_disk(&error));
            let file = upload.file(&mut part).map_err(failed)?;
            let put = file.put(offset, &data);
            let whole = file.is_whole();
            let due = whole || file.unsynced() >= SYNC_BYTES;
            match put {
                Ok(()) if whole => {
                    // Publishing is the end of the file as something to write to, whether or not it succeeds: after a failed
                    // sync its descriptors are not to be believed.
                    let Some(file) = part.take() else { return Err(PutFailed::Ends(fenced_refusal())) };
                    file.publish().map_err(failed)?;
                    upload.progressed(upload.total, true, since_boot());
                    Ok(Put { whole, synced: Some(upload.total) })
                }
                Ok(()) if due => match file.sync() {
                    Ok(persisted) => {
                        upload.progressed(persisted, false, since_boot());
                        Ok(Put { whole, synced: Some(persisted) })
                    }
                    Err(error) => {
                        *part = None;
                        Err(failed(error))
                    }
                },
                Ok(()) => Ok(Put { whole, synced: None }),
                Err(PutError::Beyond) => {
                    let detail = format!("the bytes begin at {offset}, and {} are here", file.written());
                    let refusal = Refusal::new(ErrorReason::UploadOffset, detail);
                    Err(PutFailed::Ends(refusal.with("persisted_size", file.persisted())))
                }
                Err(PutError::Structure(error)) => {
                    *part = None;
                    Err(PutFailed::Refused(refusal_of_format(&error)))
                }
                Err(PutError::Disk(error)) => {
                    *part = None;
                    Err(failed(error))
                }
            }
        })
        .await
        .unwrap_or_else(|refusal| Err(PutFailed::Ends(refusal)))
    }

    /// Makes what came durable, if this is still the writer; gives what is on disk.
    async fn sync(&self) -> Result<u64, Refusal> {
        let (upload, number) = (Arc::clone(&self.upload), self.number);
        blocking(move || {
            let mut part = upload.part();
            let Some(file) = part.as_mut().filter(|_| *upload.writer.borrow() == number) else {
                return Ok(upload.persisted());
            };
            match file.sync() {
                Ok(persisted) => {
                    upload.progressed(persisted, false, since_boot());
                    Ok(persisted)
                }
                Err(error) => {
                    *part = None;
                    Err(refusal_of_disk(&error))
                }
            }
        })
        .await?
    }
}

/// Off the async threads: a disk may be slow.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Refusal::new(ErrorReason::Internal, "the work on the upload was cut off"))
}
