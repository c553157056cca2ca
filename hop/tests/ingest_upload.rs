//! Large envelopes over real HTTP/2 into real files: cut, resumed, fenced, refused, damaged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::ingest_support::*;
use bytes::Bytes;
use pithead_hop::identity::Peer;
use pithead_hop::ingest::send::{Pace, UploadError, UploadSource, send_upload};
use pithead_hop::ingest::upload::BLOCK_BYTES;
use pithead_hop::ingest::{Answer, IngestLimits, SealedFileError, UploadLimits};
use pithead_hop::program::clock::since_boot;
use pithead_hop::program::units::{ByteSize, Duration as Units};
use pithead_hop::status::{Refusal, Remote};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use pithead_sealing::Identity;
use pithead_sealing::envelope::{Header, Profile};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

const MIB: usize = 1 << 20;

fn plaintext(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ salt).collect()
}

/// An envelope in memory.
struct Memory {
    header: Header,
    bytes: Bytes,
}

impl Memory {
    fn new(bytes: &Bytes) -> Arc<Self> {
        Arc::new(Self { header: Header::parse(bytes).unwrap(), bytes: bytes.clone() })
    }
}

impl UploadSource for Memory {
    fn header(&self) -> &Header {
        &self.header
    }
    fn total(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let from = offset as usize;
        Ok(self.bytes.slice(from..self.bytes.len().min(from + max)))
    }
}

fn identity(envelope: &Bytes) -> Identity {
    Profile::of(&Header::parse(envelope).unwrap()).unwrap().identity().clone()
}

fn header_of(envelope: &Bytes) -> Bytes {
    Header::parse(envelope).unwrap().wire().clone()
}

async fn channel_of(disk: &Arc<Disk>, peer: Peer) -> Channel {
    serve(disk, Some(peer), IngestLimits::default(), &CancellationToken::new()).await
}

async fn send(disk: &Arc<Disk>, peer: Peer, envelope: &Bytes) -> Result<Answer, UploadError> {
    send_upload(channel_of(disk, peer).await, Memory::new(envelope), Vec::new(), None, |_| {}).await
}

fn kept(disk: &Disk, envelope: &Bytes) -> Vec<u8> {
    let mut out = Vec::new();
    io::Read::read_to_end(&mut disk.store().read(&identity(envelope)).unwrap(), &mut out).unwrap();
    out
}

fn is<T>(answer: Result<T, tonic::Status>, code: Code, reason: ErrorReason) -> Remote {
    let Err(status) = answer else { panic!("{reason:?} was due") };
    let remote = Remote::from_status(&status);
    assert_eq!((remote.code, remote.reason), (code, Some(reason)), "{remote}");
    remote
}

/// A client that says what the test says.
struct Raw {
    client: IngestServiceClient<Channel>,
    name: String,
    persisted: u64,
}

impl Raw {
    async fn open(channel: &Channel, envelope: &Bytes) -> Result<Self, tonic::Status> {
        let mut client = IngestServiceClient::new(channel.clone());
        let request = wire::OpenUploadRequest {
            header: header_of(envelope),
            total_size: envelope.len() as u64,
            hops: Vec::new(),
        };
        let opened = client.open_upload(request).await?.into_inner();
        assert_eq!(opened.trust.map(|trust| trust.sequence), Some(17));
        Ok(Self { client, name: opened.upload, persisted: opened.persisted_size })
    }

    async fn begin(
        &mut self,
    ) -> (mpsc::Sender<wire::WriteUploadRequest>, Streaming<wire::WriteUploadResponse>) {
        let (ask, stream) = mpsc::channel(64);
        (ask, self.client.write_upload(ReceiverStream::new(stream)).await.unwrap().into_inner())
    }

    fn put(&self, offset: u64, data: &[u8]) -> wire::WriteUploadRequest {
        let data = Bytes::copy_from_slice(data);
        wire::WriteUploadRequest { upload: self.name.clone(), offset, crc32c: crc32c::crc32c(&data), data }
    }

    async fn state(&mut self) -> wire::GetUploadResponse {
        self.client
            .get_upload(wire::GetUploadRequest { upload: self.name.clone() })
            .await
            .unwrap()
            .into_inner()
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("uploads");
    (dir, folder)
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.rsplit_once('.').unwrap().1.to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_large_envelope_arrives_bit_for_bit_and_a_second_one_is_a_duplicate() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(5 * MIB, 1));
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(kept(&disk, &envelope), envelope);
    assert_eq!(files(&folder), ["envelope", "sums"]);
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Duplicate { unverified: false });
    // Passed on and gone: the number is known all the same.
    disk.store().release(&identity(&envelope)).unwrap();
    assert!(files(&folder).is_empty());
    assert_eq!(send(&disk, relay(), &envelope).await.unwrap(), Answer::Duplicate { unverified: false });
    assert_eq!(disk.stored(), [1]);
    assert_eq!(disk.store().stats().bytes, 0);
}

#[tokio::test]
async fn an_upload_that_is_cut_goes_on_from_what_is_on_disk_also_after_a_start() {
    let (_dir, folder) = folder();
    let envelope = sealed_file(1, &plaintext(6 * MIB, 2));
    let mut before = 0;
    for round in 0..5 {
        // A new store each time: what is known is what lies on the disk.
        let disk = Disk::with_uploads(&folder, UploadLimits::default());
        let channel = channel_of(&disk, truck()).await;
        // One MiB and no more goes out each time: what came further was not sent again.
        let allowance = Arc::new(Semaphore::new(MIB));
        let pace: Pace = Arc::new(move |bytes| {
            let allowance = Arc::clone(&allowance);
            Box::pin(async move { allowance.acquire_many(bytes as u32).await.unwrap().forget() })
        });
        let synced = Arc::new(Notify::new());
        let told = Arc::clone(&synced);
        let mut first = None;
        let attempt = send_upload(channel, Memory::new(&envelope), Vec::new(), Some(pace), |progress| {
            let first = *first.get_or_insert(progress.sent);
            if progress.persisted >= (first + MIB as u64) / BLOCK_BYTES * BLOCK_BYTES {
                told.notify_one();
            }
        });
        tokio::select! {
            answer = attempt => panic!("it was to be cut: {answer:?}"),
            () = synced.notified() => {}
        }
        let first = first.unwrap();
        assert!(first >= before, "round {round}: went back from {before} to {first}");
        before = (first + MIB as u64) / BLOCK_BYTES * BLOCK_BYTES;
    }
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn what_was_told_as_persisted_is_there_after_any_kill_and_torn_sums_cost_their_blocks_alone() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(2 * MIB, 3));
    let mut raw = Raw::open(&channel_of(&disk, truck()).await, &envelope).await.unwrap();
    let (ask, mut told) = raw.begin().await;
    let header = raw.persisted as usize;
    assert_eq!(header, header_of(&envelope).len());
    ask.send(raw.put(header as u64, &envelope[header..MIB])).await.unwrap();
    let persisted = told.message().await.unwrap().unwrap().persisted_size;
    assert_eq!(persisted, MIB as u64 / BLOCK_BYTES * BLOCK_BYTES);
    drop((ask, told, disk));

    // A power cut has torn the last two sums, and a block that was never told lies behind.
    let sums = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().unwrap() == "sums");
    let mut bytes = fs::read(sums.as_ref().unwrap()).unwrap();
    let length = bytes.len();
    bytes[length - 8..].fill(0xee);
    fs::write(sums.unwrap(), &bytes).unwrap();

    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let raw = Raw::open(&channel_of(&disk, truck()).await, &envelope).await.unwrap();
    assert_eq!(raw.persisted, persisted - 2 * BLOCK_BYTES);
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn an_upload_that_the_disk_has_made_unreadable_begins_anew() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 17));
    Raw::open(&channel_of(&disk, truck()).await, &envelope).await.unwrap();
    let path = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let path = path.into_iter().find(|path| path.extension().unwrap() == "sums").unwrap();
    // While it is open elsewhere the file is read by nobody; after a start it is.
    let disk = {
        drop(disk);
        Disk::with_uploads(&folder, UploadLimits::default())
    };
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let channel = channel_of(&disk, truck()).await;
    let refused = is(Raw::open(&channel, &envelope).await.map(drop), Code::Internal, ErrorReason::NotDurable);
    assert!(refused.is_retryable());
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn an_offset_beyond_is_told_the_right_one_and_an_overlap_is_passed_over() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 4));
    let mut raw = Raw::open(&channel_of(&disk, truck()).await, &envelope).await.unwrap();
    let header = raw.persisted;
    let (ask, mut told) = raw.begin().await;
    ask.send(raw.put(header + 1, b"x")).await.unwrap();
    let remote = is(told.message().await, Code::OutOfRange, ErrorReason::UploadOffset);
    assert_eq!(remote.metadata["persisted_size"], header.to_string());

    let (ask, mut told) = raw.begin().await;
    ask.send(raw.put(header, &envelope[header as usize..500_000])).await.unwrap();
    // Overlaps what is here, begins even inside the header.
    ask.send(raw.put(header - 10, &envelope[header as usize - 10..700_000])).await.unwrap();
    ask.send(raw.put(600_000, &envelope[600_000..])).await.unwrap();
    loop {
        let response = told.message().await.unwrap().unwrap();
        if response.state() == wire::UploadState::Complete {
            break;
        }
    }
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn data_that_does_not_fit_its_checksum_is_sent_again() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 5));
    let mut raw = Raw::open(&channel_of(&disk, truck()).await, &envelope).await.unwrap();
    let (ask, mut told) = raw.begin().await;
    let mut request = raw.put(raw.persisted, &envelope[raw.persisted as usize..200_000]);
    request.crc32c ^= 1;
    ask.send(request).await.unwrap();
    assert!(is(told.message().await, Code::DataLoss, ErrorReason::Checksum).is_retryable());
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn a_second_writer_fences_the_first() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 6));
    let mut first = Raw::open(&channel_of(&disk, truck()).await, &envelope).await.unwrap();
    let (ask, mut told) = first.begin().await;
    ask.send(first.put(first.persisted, &envelope[first.persisted as usize..300_000])).await.unwrap();
    // The first sync has come, so the first writer is at it.
    assert!(told.message().await.unwrap().unwrap().persisted_size > 0);
    assert_eq!(send(&disk, relay(), &envelope).await.unwrap(), Answer::Stored);
    is(told.message().await, Code::Aborted, ErrorReason::UploadFenced);
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn another_header_under_the_identity_is_a_conflict_at_every_moment() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let (envelope, other) = (sealed_file(1, &plaintext(MIB, 7)), sealed_file(1, &plaintext(MIB, 8)));
    let channel = channel_of(&disk, truck()).await;
    Raw::open(&channel, &envelope).await.unwrap();
    let conflict = Answer::Conflict { kept: false };
    // While the first is open, when it is here, and when it has left.
    assert_eq!(send(&disk, truck(), &other).await.unwrap(), conflict);
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(send(&disk, truck(), &other).await.unwrap(), conflict);
    assert_eq!(kept(&disk, &envelope), envelope);
    disk.store().release(&identity(&envelope)).unwrap();
    assert_eq!(send(&disk, truck(), &other).await.unwrap(), conflict);
}

#[tokio::test]
async fn what_is_no_envelope_is_refused_with_its_class_leaves_no_bytes_and_is_told_the_same_again() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let good = sealed_file(1, &plaintext(MIB, 9));
    let mut bytes = good.to_vec();
    // The number of the third frame.
    let frame = 65_536 + 32;
    bytes[header_of(&good).len() + 2 * frame + 3] ^= 0x10;
    let envelope = Bytes::from(bytes);
    for _ in 0..2 {
        let Answer::Refused { reason, .. } = send(&disk, truck(), &envelope).await.unwrap() else { panic!() };
        assert_eq!(reason, Some(ErrorReason::EnvelopeSequence));
        assert!(files(&folder).is_empty(), "{:?}", files(&folder));
    }
    assert_eq!(disk.refused(), [(Some(identity(&good)), ErrorReason::EnvelopeSequence)]);
    // Judged anew only once its own reason is said to be mended.
    for (mended, times) in [(ErrorReason::EnvelopeIv, 1), (ErrorReason::EnvelopeSequence, 2)] {
        disk.store().forget_refusals(|refusal| refusal.reason == mended);
        assert!(matches!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Refused { .. }));
        assert_eq!(disk.refused().len(), times, "{mended:?}");
    }

    // A length that no envelope with this header has is refused before a byte of the body.
    let channel = channel_of(&disk, truck()).await;
    let truncated = Raw::open(&channel, &sealed_file(2, b"x").slice(..header_of(&good).len() + 10)).await;
    is(truncated.map(|_| ()), Code::InvalidArgument, ErrorReason::EnvelopeTruncated);
    assert!(disk.stored().is_empty());
}

#[tokio::test]
async fn nobody_but_the_device_and_its_sites_gateways_sees_or_stops_an_upload() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 10));
    let mut owner = Raw::open(&channel_of(&disk, truck()).await, &envelope).await.unwrap();
    for stranger in ["spiffe://pit-7/device/truck-1", "spiffe://pit-8/gateway/edge-1"] {
        let channel = channel_of(&disk, peer(stranger)).await;
        let mut client = IngestServiceClient::new(channel.clone());
        let upload = owner.name.clone();
        let (denied, not_yours) = (Code::PermissionDenied, ErrorReason::UploadNotYours);
        is(client.get_upload(wire::GetUploadRequest { upload: upload.clone() }).await, denied, not_yours);
        is(client.abort_upload(wire::AbortUploadRequest { upload: upload.clone() }).await, denied, not_yours);
        let request = owner.put(owner.persisted, b"x");
        let mut told = client.write_upload(tokio_stream::once(request)).await.unwrap().into_inner();
        is(told.message().await, denied, not_yours);
        let reason =
            if stranger.contains("pit-8") { ErrorReason::SiteMismatch } else { ErrorReason::DeviceMismatch };
        is(Raw::open(&channel, &envelope).await.map(|_| ()), denied, reason);
    }
    let state = owner.state().await;
    assert_eq!((state.state(), state.total_size), (wire::UploadState::Open, envelope.len() as u64));
    assert!(state.expires_in.unwrap().seconds > 86_000);

    // Its own is aborted, twice if need be, and the room is free again.
    let abort = wire::AbortUploadRequest { upload: owner.name.clone() };
    owner.client.abort_upload(abort.clone()).await.unwrap();
    owner.client.abort_upload(abort).await.unwrap();
    is(
        owner.client.get_upload(wire::GetUploadRequest { upload: owner.name.clone() }).await,
        Code::NotFound,
        ErrorReason::UploadUnknown,
    );
    assert!(files(&folder).is_empty());
    assert_eq!(disk.store().stats().open, 0);
}

#[tokio::test]
async fn one_upload_too_many_and_one_byte_too_many_are_told_when_to_come_back() {
    let (_dir, folder) = folder();
    let limits = UploadLimits { max_size: ByteSize::mib(8), open_per_device: 2, ..UploadLimits::default() };
    let disk = Disk::with_uploads(&folder, limits);
    let channel = channel_of(&disk, truck()).await;
    let open = async |seq, len| Raw::open(&channel, &sealed_file(seq, &plaintext(len, 11))).await.map(|_| ());
    open(1, 700_000).await.unwrap();
    // 20 % of the budget may be promised beside what is written.
    let remote = is(open(2, 2 * MIB).await, Code::ResourceExhausted, ErrorReason::SpoolFull);
    assert!(remote.is_retryable() && remote.retry_after.is_some());
    open(2, 700_000).await.unwrap();
    let remote = is(open(3, 1_000).await, Code::ResourceExhausted, ErrorReason::TooManyUploads);
    assert!(remote.is_retryable() && remote.retry_after.is_some());
    // What no budget will ever hold is not to be tried again.
    is(open(4, 9 * MIB).await, Code::InvalidArgument, ErrorReason::EnvelopeTooLarge);
}

#[tokio::test]
async fn a_whole_upload_whose_end_failed_is_finished_by_asking_again_without_a_byte() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 12));
    disk.refuse(1, Refusal::new(ErrorReason::NotReady, "not now").retry_after(Duration::from_millis(1)));
    let error = send(&disk, truck(), &envelope).await.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(error.reason(), Some(ErrorReason::NotReady));
    // Also after a start.
    drop(disk);
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    assert_eq!(disk.store().undecided(), [identity(&envelope)]);
    let mut sent = Vec::new();
    let answer =
        send_upload(channel_of(&disk, truck()).await, Memory::new(&envelope), Vec::new(), None, |progress| {
            sent.push(progress.sent);
        })
        .await;
    assert_eq!(answer.unwrap(), Answer::Stored);
    assert!(sent.iter().all(|sent| *sent == envelope.len() as u64), "{sent:?}");
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn who_waited_for_a_decision_that_found_damage_is_told_to_open_again_and_not_that_it_is_complete() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB / 2, 13));
    let damage = Arc::new(Notify::new());
    disk.find_damaged(1, Arc::clone(&damage));
    let channel = channel_of(&disk, truck()).await;
    let mut first = Raw::open(&channel, &envelope).await.unwrap();
    let (ask, mut first_told) = first.begin().await;
    let from = first.persisted;
    ask.send(first.put(from, &envelope[from as usize..])).await.unwrap();
    // It is whole: the first call is in its decision. The second one asks what becomes of it, and waits.
    while first.state().await.persisted_size < envelope.len() as u64 {}
    let mut second = Raw::open(&channel, &envelope).await.unwrap();
    assert_eq!(second.persisted, envelope.len() as u64);
    let (ask_too, mut second_told) = second.begin().await;
    ask_too.send(second.put(envelope.len() as u64, &[])).await.unwrap();
    for _ in 0..20 {
        assert_eq!(second.state().await.state(), wire::UploadState::Open);
    }
    damage.notify_one();
    is(first_told.message().await, Code::Internal, ErrorReason::NotDurable);
    is(second_told.message().await, Code::NotFound, ErrorReason::UploadUnknown);
    // And the whole of it is taken when it comes again.
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(kept(&disk, &envelope), envelope);
}

#[tokio::test]
async fn a_bit_that_the_disk_flips_in_a_whole_one_is_noticed_and_nothing_behind_it_is_given() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 13));
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    let path = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().unwrap() == "envelope");
    let mut bytes = fs::read(path.as_ref().unwrap()).unwrap();
    bytes[100_000] ^= 1;
    fs::write(path.unwrap(), &bytes).unwrap();
    let file = disk.store().read(&identity(&envelope)).unwrap();
    let at = 100_000 / BLOCK_BYTES * BLOCK_BYTES;
    assert_eq!(file.block_at(at - 1).unwrap(), envelope.slice(at as usize - 1..at as usize));
    let Err(SealedFileError::Damaged { at: damaged }) = file.block_at(at + 5) else { panic!() };
    assert_eq!(damaged, at);
    // And a sender that reads from such a file gives up, and does not send it.
    struct Damaged(pithead_hop::ingest::SealedFile);
    impl UploadSource for Damaged {
        fn header(&self) -> &Header {
            self.0.header()
        }
        fn total(&self) -> u64 {
            self.0.total()
        }
        fn read(&self, offset: u64, max: usize) -> io::Result<Bytes> {
            UploadSource::read(&self.0, offset, max)
        }
    }
    let (_dir, far) = self::folder();
    let far = Disk::with_uploads(&far, UploadLimits::default());
    let sent =
        send_upload(channel_of(&far, relay()).await, Arc::new(Damaged(file)), Vec::new(), None, |_| {}).await;
    assert!(matches!(sent, Err(UploadError::Source(error)) if error.kind() == io::ErrorKind::InvalidData));
    assert!(far.stored().is_empty());
}

#[tokio::test]
async fn a_whole_one_whose_sums_do_not_read_is_set_aside_and_never_removed() {
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(MIB, 18));
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    drop(disk);
    let path = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let path = path.into_iter().find(|path| path.extension().unwrap() == "sums").unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 1;
    fs::write(&path, bytes).unwrap();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    assert_eq!(files(&folder), ["damaged"]);
    let kept = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(kept).unwrap(), envelope);
    // And a good copy is taken beside it.
    assert_eq!(send(&disk, truck(), &envelope).await.unwrap(), Answer::Stored);
    assert_eq!(files(&folder), ["damaged", "envelope", "sums"]);
}

#[tokio::test]
async fn an_upload_without_progress_is_given_up_and_one_that_was_taken_is_not() {
    let (_dir, folder) = folder();
    let limits = UploadLimits { idle: Units::from_secs(60), ..UploadLimits::default() };
    let disk = Disk::with_uploads(&folder, limits);
    let taken = sealed_file(1, &plaintext(MIB, 14));
    assert_eq!(send(&disk, truck(), &taken).await.unwrap(), Answer::Stored);
    let open = sealed_file(2, &plaintext(MIB, 15));
    let mut raw = Raw::open(&channel_of(&disk, truck()).await, &open).await.unwrap();
    disk.store().expire(since_boot() + Duration::from_secs(30));
    assert_eq!(disk.store().stats().open, 1);
    disk.store().expire(since_boot() + Duration::from_secs(61));
    assert_eq!((disk.store().stats().open, disk.store().stats().taken), (0, 1));
    is(
        raw.client.get_upload(wire::GetUploadRequest { upload: raw.name.clone() }).await,
        Code::NotFound,
        ErrorReason::UploadUnknown,
    );
    // Its record is lost, and it was acknowledged: no time makes it go, and one at a time may decide over it.
    disk.store().owe(&identity(&taken));
    disk.store().expire(since_boot() + Duration::from_secs(3_600));
    assert_eq!(disk.store().owed(), [identity(&taken)]);
    let deciding = disk.store().decide_owed(&identity(&taken)).unwrap();
    assert!(disk.store().decide_owed(&identity(&taken)).is_none());
    disk.store().taken(&identity(&taken));
    drop(deciding);
    assert!(disk.store().owed().is_empty() && disk.store().decide_owed(&identity(&taken)).is_none());
    assert_eq!(kept(&disk, &taken), taken);
}

#[tokio::test]
async fn what_is_paced_waits_for_its_budget_and_pays_for_each_byte_once() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let (_dir, folder) = folder();
    let disk = Disk::with_uploads(&folder, UploadLimits::default());
    let envelope = sealed_file(1, &plaintext(3 * MIB, 16));
    let paid = Arc::new(AtomicU64::new(0));
    let till = Arc::clone(&paid);
    let pace: Pace = Arc::new(move |bytes| {
        let till = Arc::clone(&till);
        Box::pin(async move {
            tokio::task::yield_now().await;
            till.fetch_add(bytes, Ordering::Relaxed);
        })
    });
    let channel = channel_of(&disk, truck()).await;
    let answer = send_upload(channel, Memory::new(&envelope), Vec::new(), Some(pace), |_| {}).await;
    assert_eq!(answer.unwrap(), Answer::Stored);
    assert_eq!(paid.load(Ordering::Relaxed), (envelope.len() - header_of(&envelope).len()) as u64);
}
