//! The receiving half as a client meets it, over real HTTP/2, well behaved and not.

use std::sync::Arc;
use std::time::Duration;

use crate::ingest_support::*;
use bytes::Bytes;
use pithead_hop::identity::Peer;
use pithead_hop::ingest::send::LineToSend;
use pithead_hop::ingest::{Answer, IngestLimits, NotTaken, SendError, SendOptions, Sender, Standing};
use pithead_hop::program::units::ByteSize;
use pithead_hop::status::{Refusal, Remote};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::append_request::Message as Ask;
use pithead_proto::ingest::v1::append_response::Message as Told;
use pithead_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use pithead_proto::ingest::v1::outcome::What;
use pithead_sealing::{Run, Seq, StreamName};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

/// Long enough for anything that comes at all.
const SOON: Duration = Duration::from_secs(20);

/// A client that says what the test says.
struct Raw {
    ask: mpsc::Sender<wire::AppendRequest>,
    told: Streaming<wire::AppendResponse>,
}

fn hello() -> Ask {
    Ask::Hello(wire::Hello { client: "test/1".to_owned(), ..wire::Hello::default() })
}

fn batch(number: u64, envelopes: &[Bytes]) -> Ask {
    let item = |envelope: &Bytes| wire::Item { envelope: envelope.clone(), hops: Vec::new() };
    Ask::Batch(wire::Batch { number, items: envelopes.iter().map(item).collect(), gaps: Vec::new() })
}

impl Raw {
    async fn open(channel: &Channel) -> Self {
        let (ask, stream) = mpsc::channel(64);
        let told = IngestServiceClient::new(channel.clone())
            .append(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self { ask, told }
    }

    async fn welcomed(channel: &Channel) -> Self {
        let mut raw = Self::open(channel).await;
        raw.say(hello()).await;
        assert!(matches!(raw.hear().await, Ok(Some(Told::Welcome(_)))));
        raw
    }

    async fn say(&self, ask: Ask) {
        self.ask.send(wire::AppendRequest { message: Some(ask) }).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Option<Told>, Remote> {
        let response = tokio::time::timeout(SOON, self.told.message()).await.expect("an answer comes")?;
        Ok(response.map(|response| {
            assert_eq!(response.trust.unwrap().sequence, 17, "the statement in force rides on every answer");
            response.message.unwrap()
        }))
    }

    async fn ack(&mut self) -> wire::Ack {
        match self.hear().await {
            Ok(Some(Told::Ack(ack))) => ack,
            other => panic!("{other:?}"),
        }
    }

    async fn refusal(&mut self) -> Remote {
        self.hear().await.map(|told| panic!("{told:?}")).unwrap_or_else(|remote| remote)
    }

    fn finish(&mut self) {
        self.ask = mpsc::channel(1).0;
    }
}

async fn channel(disk: &Arc<Disk>, peer: Peer) -> Channel {
    serve(disk, Some(peer), IngestLimits::default(), &CancellationToken::new()).await
}

fn is(remote: &Remote, code: Code, reason: ErrorReason) {
    assert_eq!((remote.code, remote.reason), (code, Some(reason)), "{remote}");
}

fn full() -> Refusal {
    Refusal::new(ErrorReason::SpoolFull, "full").retry_after(Duration::from_secs(9))
}

#[tokio::test]
async fn without_a_hello_first_nothing_is_taken() {
    let disk = Disk::at_once();
    let channel = channel(&disk, truck()).await;
    let mut raw = Raw::open(&channel).await;
    raw.say(batch(1, &[Sealer::truck().seal(1, b"x")])).await;
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
    let mut raw = Raw::welcomed(&channel).await;
    raw.say(hello()).await;
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
    assert!(disk.stored().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_says_hello_is_ended() {
    let mut raw = Raw::open(&channel(&Disk::at_once(), truck()).await).await;
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
}

#[tokio::test]
async fn a_batch_out_of_number_ends_the_call_after_what_was_good() {
    let disk = Disk::at_once();
    let channel = channel(&disk, truck()).await;
    let mut sealer = Sealer::truck();
    let mut raw = Raw::welcomed(&channel).await;
    raw.say(batch(1, &[sealer.seal(1, b"x")])).await;
    raw.say(batch(3, &[sealer.seal(2, b"x")])).await;
    assert_eq!(raw.ack().await.through, 1);
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
    assert_eq!(disk.stored(), [1]);
}

#[tokio::test]
async fn an_empty_envelope_is_the_clients_fault() {
    let mut raw = Raw::welcomed(&channel(&Disk::at_once(), truck()).await).await;
    raw.say(batch(1, &[Bytes::new()])).await;
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
}

#[tokio::test]
async fn a_device_writes_no_custody_and_a_relay_does() {
    let disk = Disk::at_once();
    let hop = wire::Hop { gateway: "edge-9".to_owned(), ..wire::Hop::default() };
    let item = wire::Item { envelope: Sealer::truck().seal(1, b"x"), hops: vec![hop] };
    let with_hops = || Ask::Batch(wire::Batch { number: 1, items: vec![item.clone()], gaps: Vec::new() });
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    raw.say(with_hops()).await;
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
    assert!(disk.stored().is_empty());
    let mut raw = Raw::welcomed(&channel(&disk, relay()).await).await;
    raw.say(with_hops()).await;
    assert_eq!(raw.ack().await.through, 1);
    assert_eq!(disk.hops(), [1]);
}

#[tokio::test]
async fn a_batch_hints_at_1024_gaps_at_most() {
    let disk = Disk::at_once();
    let gap = |from| wire::Gap { stream: "telemetry".to_owned(), run: RUN, from, to: from };
    let hints = |number, count| {
        Ask::Batch(wire::Batch { number, items: Vec::new(), gaps: (1..=count).map(gap).collect() })
    };
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    raw.say(hints(1, 1_024)).await;
    raw.say(hints(2, 1_025)).await;
    assert_eq!(raw.ack().await.through, 1);
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
    assert_eq!(disk.declared().len(), 1_024);
}

#[tokio::test]
async fn more_than_the_window_ends_the_call() {
    let disk = Disk::when_told();
    let limits = IngestLimits { window_envelopes: 3, ..IngestLimits::default() };
    let channel = serve(&disk, Some(truck()), limits, &CancellationToken::new()).await;
    let mut sealer = Sealer::truck();
    let mut raw = Raw::welcomed(&channel).await;
    raw.say(batch(1, &[sealer.seal(1, b"x"), sealer.seal(2, b"x"), sealer.seal(3, b"x")])).await;
    disk.offered(3).await;
    disk.commit(3);
    assert_eq!(raw.ack().await.through, 1);
    // The credit is back with the acknowledgement.
    raw.say(batch(2, &[sealer.seal(4, b"x"), sealer.seal(5, b"x")])).await;
    raw.say(batch(3, &[sealer.seal(6, b"x"), sealer.seal(7, b"x")])).await;
    disk.offered(5).await;
    disk.commit(2);
    // Whether the first of the two was answered before the second came is the disk's affair; here it was not.
    let remote = loop {
        match raw.hear().await {
            Ok(Some(Told::Ack(ack))) => assert_eq!(ack.through, 2),
            Err(remote) => break remote,
            other => panic!("{other:?}"),
        }
    };
    is(&remote, Code::ResourceExhausted, ErrorReason::WindowExceeded);
    assert_eq!(disk.stored(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn poison_in_the_middle_is_refused_in_band_and_the_good_ones_go_on() {
    let disk = Disk::at_once();
    let mut sealer = Sealer::truck();
    let mut trailing = sealer.seal(3, b"x").to_vec();
    trailing.push(0);
    let stranger = Sealer::new(&KEY, SITE, "truck-9999", "telemetry").seal(1, b"x");
    let unknown_key = Sealer::new(&verified("rsa3072"), SITE, DEVICE, "telemetry").seal(9, b"x");
    let envelopes = [
        sealer.seal(1, b"x"),
        Bytes::from_static(b"garbage"),
        sealer.seal(2, b"x"),
        trailing.into(),
        stranger,
        unknown_key,
        sealer.seal(4, b"x"),
    ];
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    raw.say(batch(1, &envelopes)).await;
    let ack = raw.ack().await;
    let refused: Vec<_> = ack
        .outcomes
        .iter()
        .map(|outcome| match &outcome.what {
            Some(What::Refusal(refusal)) => (outcome.index, refusal.reason()),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (1, ErrorReason::EnvelopeUnsupportedVersion),
        (3, ErrorReason::EnvelopeTrailing),
        (4, ErrorReason::DeviceMismatch),
        (5, ErrorReason::KeyUnknown),
    ];
    assert_eq!((ack.through, refused), (1, expected.to_vec()));
    assert_eq!(disk.stored(), [1, 2, 4]);
    // A number counts as used only where the sender may speak for it.
    let noted: Vec<_> = disk.refused().into_iter().map(|(id, _)| id.map(|id| id.seq.get())).collect();
    assert_eq!(noted, [None, None, None, Some(9)]);
}

#[tokio::test]
async fn what_a_retry_can_cure_ends_the_call_after_the_answers_before_it() {
    let disk = Disk::when_told();
    let mut sealer = Sealer::truck();
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    disk.refuse(4, full());
    raw.say(batch(1, &[sealer.seal(1, b"x"), sealer.seal(2, b"x")])).await;
    raw.say(batch(2, &[sealer.seal(3, b"x"), sealer.seal(4, b"x"), sealer.seal(5, b"x")])).await;
    raw.say(batch(3, &[sealer.seal(6, b"x")])).await;
    disk.offered(3).await;
    disk.commit(3);
    assert_eq!(raw.ack().await.through, 1);
    let remote = raw.refusal().await;
    is(&remote, Code::ResourceExhausted, ErrorReason::SpoolFull);
    assert_eq!(remote.retry_after, Some(Duration::from_secs(9)));
    // Nothing overtook it.
    assert_eq!(disk.stored(), [1, 2, 3]);
}

#[tokio::test]
async fn a_disk_that_fails_acknowledges_nothing_from_there_on() {
    let disk = Disk::when_told();
    let mut sealer = Sealer::truck();
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    for seq in 1..=3 {
        raw.say(batch(seq, &[sealer.seal(seq, b"x")])).await;
    }
    disk.offered(3).await;
    disk.commit(1);
    disk.fail(Refusal::new(ErrorReason::NotDurable, "the disk failed"));
    disk.commit(1);
    assert_eq!(raw.ack().await.through, 1);
    let remote = raw.refusal().await;
    is(&remote, Code::Internal, ErrorReason::NotDurable);
    assert!(remote.is_retryable() && remote.may_have_been_stored());
}

#[tokio::test]
async fn one_group_commit_is_one_acknowledgement() {
    let disk = Disk::when_told();
    let mut sealer = Sealer::truck();
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    for number in 1..=50 {
        raw.say(batch(number, &[sealer.seal(number, b"x")])).await;
    }
    disk.offered(50).await;
    disk.commit(30);
    assert_eq!(raw.ack().await.through, 30);
    disk.commit(20);
    assert_eq!(raw.ack().await.through, 50);
    raw.finish();
    assert_eq!(raw.hear().await, Ok(None));
}

#[tokio::test]
async fn a_client_that_has_said_all_hears_the_rest_of_the_answers() {
    let disk = Disk::when_told();
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    raw.say(batch(1, &[Sealer::truck().seal(1, b"x")])).await;
    raw.finish();
    disk.offered(1).await;
    disk.commit(1);
    assert_eq!(raw.ack().await.through, 1);
    assert_eq!(raw.hear().await, Ok(None));
}

#[tokio::test]
async fn a_server_that_stops_answers_what_it_has_taken_and_takes_no_more() {
    let (disk, stop) = (Disk::when_told(), CancellationToken::new());
    let channel = serve(&disk, Some(truck()), IngestLimits::default(), &stop).await;
    let mut sealer = Sealer::truck();
    let mut raw = Raw::welcomed(&channel).await;
    raw.say(batch(1, &[sealer.seal(1, b"x")])).await;
    disk.offered(1).await;
    stop.cancel();
    raw.say(batch(2, &[sealer.seal(2, b"x")])).await;
    disk.commit(1);
    assert_eq!(raw.ack().await.through, 1);
    let remote = raw.refusal().await;
    is(&remote, Code::Unavailable, ErrorReason::Draining);
    assert!(remote.retry_after.is_some());
    assert_eq!(disk.stored(), [1]);
    let mut client = IngestServiceClient::new(channel);
    let status = client.submit(wire::SubmitRequest { envelope: sealer.seal(2, b"x") }).await.unwrap_err();
    is(&status.into(), Code::Unavailable, ErrorReason::Draining);
}

#[tokio::test]
async fn a_receiver_that_is_not_ready_says_so_before_it_looks() {
    let disk = Disk::at_once();
    let channel = channel(&disk, truck()).await;
    let mut raw = Raw::welcomed(&channel).await;
    disk.not_ready(Some(full()));
    raw.say(batch(1, &[Bytes::from_static(b"garbage")])).await;
    is(&raw.refusal().await, Code::ResourceExhausted, ErrorReason::SpoolFull);
    let mut raw = Raw::open(&channel).await;
    raw.say(hello()).await;
    is(&raw.refusal().await, Code::ResourceExhausted, ErrorReason::SpoolFull);
    assert!(disk.refused().is_empty());
}

#[tokio::test]
async fn a_request_above_the_limit_is_refused_by_name() {
    let limits =
        IngestLimits { inline: ByteSize::kib(1), request: ByteSize::kib(80), ..IngestLimits::default() };
    let channel = serve(&Disk::at_once(), Some(truck()), limits, &CancellationToken::new()).await;
    let mut raw = Raw::welcomed(&channel).await;
    raw.say(batch(1, &[Bytes::from(vec![0; 100 << 10])])).await;
    is(&raw.refusal().await, Code::InvalidArgument, ErrorReason::RequestInvalid);
    // An envelope above the inline limit in a request within its limit is that envelope's fault alone.
    let mut raw = Raw::welcomed(&channel).await;
    raw.say(batch(1, &[Bytes::from(vec![0; 2 << 10])])).await;
    match &raw.ack().await.outcomes[0].what {
        Some(What::Refusal(refusal)) => assert_eq!(refusal.reason(), ErrorReason::EnvelopeTooLarge),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn submit_has_a_status_for_each_class() {
    let disk = Disk::at_once();
    let mut client = IngestServiceClient::new(channel(&disk, truck()).await);
    let mut submit = async |envelope: Bytes| match client.submit(wire::SubmitRequest { envelope }).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(Remote::from_status(&status)),
    };
    let mut sealer = Sealer::truck();
    let first = sealer.seal(1, b"x");
    let stored = submit(first.clone()).await.unwrap();
    assert_eq!((stored.durability(), stored.duplicate), (wire::Durability::Disk, None));
    assert_eq!(stored.trust.unwrap().sequence, 17);
    let again = submit(first.clone()).await.unwrap();
    assert_eq!(again.duplicate, Some(wire::Duplicate { unverified: false }));

    let conflict = submit(sealer.seal(1, b"other")).await.unwrap_err();
    is(&conflict, Code::AlreadyExists, ErrorReason::Conflict);
    let of = |site: &str, device: &str| Sealer::new(&KEY, site, device, "telemetry").seal(2, b"x");
    let cases = [
        (Bytes::new(), Code::InvalidArgument, ErrorReason::RequestInvalid),
        (Bytes::from_static(b"garbage"), Code::InvalidArgument, ErrorReason::EnvelopeUnsupportedVersion),
        (first.slice(..first.len() - 1), Code::InvalidArgument, ErrorReason::EnvelopeTruncated),
        (of("pit-8", DEVICE), Code::PermissionDenied, ErrorReason::SiteMismatch),
        (of(SITE, "truck-1"), Code::PermissionDenied, ErrorReason::DeviceMismatch),
        (
            Sealer::new(&verified("rsa3072"), SITE, DEVICE, "telemetry").seal(3, b"x"),
            Code::FailedPrecondition,
            ErrorReason::KeyUnknown,
        ),
        (sealer.seal((1 << 32) + 2, b"x"), Code::FailedPrecondition, ErrorReason::SeqJump),
        (sealer.seal(4, &vec![0; 1 << 20]), Code::InvalidArgument, ErrorReason::EnvelopeTooLarge),
    ];
    for (envelope, code, reason) in cases {
        is(&submit(envelope).await.unwrap_err(), code, reason);
    }
    disk.refuse(5, full());
    let busy = submit(sealer.seal(5, b"x")).await.unwrap_err();
    is(&busy, Code::ResourceExhausted, ErrorReason::SpoolFull);
    assert_eq!(busy.retry_after, Some(Duration::from_secs(9)));
    assert_eq!(disk.stored(), [1]);
}

#[tokio::test]
async fn a_retired_key_is_flagged_and_an_unjudged_one_comes_again() {
    let disk = Disk::at_once();
    let mut client = IngestServiceClient::new(channel(&disk, truck()).await);
    let mut sealer = Sealer::truck();
    let mut submit =
        async |seq| client.submit(wire::SubmitRequest { envelope: sealer.seal(seq, b"x") }).await;
    submit(1).await.unwrap();
    disk.standing(Standing::NotActive);
    submit(2).await.unwrap();
    assert_eq!(disk.key_not_active(), [false, true]);
    disk.standing(Standing::NotReady);
    let remote = Remote::from_status(&submit(3).await.unwrap_err());
    is(&remote, Code::Unavailable, ErrorReason::KeysNotReady);
    assert!(remote.is_retryable() && remote.retry_after.is_some() && disk.refused().is_empty());
}

#[tokio::test]
async fn who_may_not_send_is_told_at_once() {
    let disk = Disk::at_once();
    let limits = IngestLimits::default();
    for (peer, code, reason) in [
        (Some(peer("spiffe://pit-7/operator/erin")), Code::PermissionDenied, ErrorReason::RoleNotAllowed),
        (None, Code::Unauthenticated, ErrorReason::CertificateRequired),
    ] {
        let channel = serve(&disk, peer, limits, &CancellationToken::new()).await;
        let mut client = IngestServiceClient::new(channel);
        let stream = tokio_stream::once(wire::AppendRequest { message: Some(hello()) });
        is(&client.append(stream).await.unwrap_err().into(), code, reason);
        let envelope = Sealer::truck().seal(1, b"x");
        is(&client.submit(wire::SubmitRequest { envelope }).await.unwrap_err().into(), code, reason);
    }
}

#[tokio::test]
async fn uploads_are_not_supported_by_name() {
    let mut client = IngestServiceClient::new(channel(&Disk::at_once(), truck()).await);
    let status = client.open_upload(wire::OpenUploadRequest::default()).await.unwrap_err();
    is(&status.into(), Code::Unimplemented, ErrorReason::UploadsNotSupported);
    let stream = tokio_stream::once(wire::WriteUploadRequest::default());
    is(
        &client.write_upload(stream).await.unwrap_err().into(),
        Code::Unimplemented,
        ErrorReason::UploadsNotSupported,
    );
    let status = client.get_upload(wire::GetUploadRequest::default()).await.unwrap_err();
    is(&status.into(), Code::Unimplemented, ErrorReason::UploadsNotSupported);
    let status = client.abort_upload(wire::AbortUploadRequest::default()).await.unwrap_err();
    is(&status.into(), Code::Unimplemented, ErrorReason::UploadsNotSupported);
}

// Both halves together.

fn telemetry(first_unacked: u64) -> LineToSend {
    LineToSend {
        stream: StreamName::new("telemetry").unwrap(),
        run: Run::new(RUN).unwrap(),
        first_unacked: Seq::new(first_unacked).unwrap(),
    }
}

async fn answers(sender: &mut Sender<u64>) -> Result<Vec<(u64, Answer)>, SendError> {
    let answers = tokio::time::timeout(SOON, sender.answers()).await.expect("answers come")?;
    Ok(answers.into_iter().map(|answered| (answered.token, answered.answer)).collect())
}

#[tokio::test]
async fn a_sender_hears_of_each_envelope_once_and_in_order() {
    let disk = Disk::at_once();
    let channel = channel(&disk, truck()).await;
    let mut sealer = Sealer::truck();
    let first = sealer.seal(1, b"x");
    let mut sender =
        Sender::open(channel.clone(), &SendOptions::new("test/1"), vec![telemetry(1)]).await.unwrap();
    assert_eq!(sender.welcomed().lines[0].high_water, 0);
    assert_eq!(sender.welcomed().durability, wire::Durability::Disk);
    let envelopes = [
        first.clone(),
        first,
        sealer.seal(1, b"other"),
        Bytes::from_static(b"garbage"),
        sealer.seal(2, b"x"),
    ];
    for (token, envelope) in (0..).zip(envelopes) {
        sender.send(token, envelope, Vec::new()).unwrap();
    }
    sender.declare([wire::Gap { stream: "telemetry".to_owned(), run: RUN, from: 3, to: 5 }]);
    sender.finish();
    let mut heard = Vec::new();
    let end = loop {
        match answers(&mut sender).await {
            Ok(answers) => heard.extend(answers),
            Err(end) => break end,
        }
    };
    assert_eq!(end, SendError::Closed);
    assert_eq!(heard.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let [(_, a), (_, b), (_, c), (_, d), (_, e)] = heard.try_into().unwrap();
    assert_eq!((a, b), (Answer::Stored, Answer::Duplicate { unverified: false }));
    assert_eq!(c, Answer::Conflict { kept: true });
    assert!(
        matches!(d, Answer::Refused { reason: Some(ErrorReason::EnvelopeUnsupportedVersion), .. }),
        "{d:?}"
    );
    assert_eq!(e, Answer::Stored);
    assert_eq!(disk.declared()[0].to, Seq::new(5).unwrap());
    assert!(sender.take_unanswered().is_empty());
    assert_eq!(sender.trust().unwrap().sequence, 17);
    // The line has met a conflict: what is held there need not be what a sender means, who may have missed the answer.
    let sender: Sender<u64> =
        Sender::open(channel, &SendOptions::new("test/1"), vec![telemetry(1)]).await.unwrap();
    assert_eq!(sender.welcomed().lines[0].high_water, 0);
}

#[tokio::test]
async fn the_next_call_is_told_what_need_not_be_resent() {
    let disk = Disk::at_once();
    let channel = channel(&disk, truck()).await;
    let mut sealer = Sealer::truck();
    let options = SendOptions::new("test/1");
    let mut sender: Sender<u64> = Sender::open(channel.clone(), &options, vec![telemetry(1)]).await.unwrap();
    assert_eq!(sender.welcomed().lines[0].high_water, 0);
    for number in 1..=2 {
        sender.send(number, sealer.seal(number, b"x"), Vec::new()).unwrap();
    }
    sender.finish();
    while answers(&mut sender).await.is_ok() {}
    let sender: Sender<u64> = Sender::open(channel, &options, vec![telemetry(1)]).await.unwrap();
    assert_eq!(sender.welcomed().lines[0].high_water, 2);
}

#[tokio::test]
async fn a_sender_keeps_within_the_receivers_window_and_sends_all() {
    let disk = Disk::at_once();
    let limits = IngestLimits { window_envelopes: 7, ..IngestLimits::default() };
    let channel = serve(&disk, Some(truck()), limits, &CancellationToken::new()).await;
    let mut sealer = Sealer::truck();
    let mut sender = Sender::open(channel, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
    let (mut next, mut heard) = (1, Vec::new());
    while heard.len() < 100 {
        while next <= 100 && sender.room_for(1_000).is_ok() {
            sender.send(next, sealer.seal(next, b"x"), Vec::new()).unwrap();
            next += 1;
        }
        assert!(next > 100 || sender.unanswered() == 7);
        heard.extend(answers(&mut sender).await.unwrap().into_iter().map(|(token, _)| token));
    }
    assert_eq!(heard, (1..=100).collect::<Vec<_>>());
    assert_eq!(disk.stored(), heard);
}

#[tokio::test]
async fn after_a_cut_the_sender_says_what_goes_out_again() {
    let disk = Disk::when_told();
    let first = channel(&disk, truck()).await;
    let mut sealer = Sealer::truck();
    let sealed: Vec<_> = (1..=4).map(|seq| (seq, sealer.seal(seq, b"x"))).collect();
    let mut sender = Sender::open(first, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
    for (token, envelope) in &sealed {
        sender.send(*token, envelope.clone(), Vec::new()).unwrap();
    }
    disk.refuse(4, full());
    let error = answers(&mut sender).await.unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::SpoolFull));
    assert!(error.is_retryable());
    assert_eq!(answers(&mut sender).await, Err(error));
    let again = sender.take_unanswered();
    assert_eq!(again, [1, 2, 3, 4]);
    // The first three are on their way to the disk still: what comes again shares their fate.
    let mut sender =
        Sender::open(channel(&disk, truck()).await, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
    for token in again {
        sender.send(token, sealed[token as usize - 1].1.clone(), Vec::new()).unwrap();
    }
    let (heard, ()) = tokio::join!(answers(&mut sender), async {
        disk.offered(7).await;
        disk.commit(4);
    });
    let duplicate = || Answer::Duplicate { unverified: false };
    assert_eq!(heard.unwrap(), [(1, duplicate()), (2, duplicate()), (3, duplicate()), (4, Answer::Stored)]);
    assert_eq!(disk.stored(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn answers_can_be_dropped_and_asked_for_again() {
    let disk = Disk::when_told();
    let mut sender =
        Sender::open(channel(&disk, truck()).await, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
    let mut sealer = Sealer::truck();
    for seq in 1..=20 {
        sender.send(seq, sealer.seal(seq, b"x"), Vec::new()).unwrap();
        // Dropped at whatever it was waiting for.
        let _ = tokio::time::timeout(Duration::from_micros(seq * 50), sender.answers()).await;
    }
    let mut heard = Vec::new();
    let mut write = std::pin::pin!(async {
        disk.offered(20).await;
        disk.commit(20);
        std::future::pending::<()>().await;
    });
    while heard.len() < 20 {
        tokio::select! {
            answers = answers(&mut sender) => heard.extend(answers.unwrap().into_iter().map(|(token, _)| token)),
            () = &mut write => {}
        }
    }
    assert_eq!(heard, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_sender_tells_an_envelope_that_is_too_large_from_a_busy_moment() {
    let limits = IngestLimits { inline: ByteSize::kib(2), ..IngestLimits::default() };
    let channel = serve(&Disk::at_once(), Some(truck()), limits, &CancellationToken::new()).await;
    let mut sender = Sender::open(channel, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
    let envelope = Bytes::from(vec![0; 2_049]);
    assert_eq!(sender.send(1, envelope, Vec::new()), Err((1, NotTaken::TooLarge { max: 2_048 })));
}

#[tokio::test]
async fn batches_fit_into_a_receivers_small_requests() {
    let disk = Disk::at_once();
    let limits =
        IngestLimits { inline: ByteSize::kib(2), request: ByteSize::kib(72), ..IngestLimits::default() };
    limits.check().unwrap();
    let channel = serve(&disk, Some(truck()), limits, &CancellationToken::new()).await;
    let mut sender = Sender::open(channel, &SendOptions::new("test/1"), Vec::new()).await.unwrap();
    let mut sealer = Sealer::truck();
    for seq in 1..=200 {
        sender.send(seq, sealer.seal(seq, &[0; 1_000]), Vec::new()).unwrap();
    }
    let mut heard = 0;
    while heard < 200 {
        heard += answers(&mut sender).await.unwrap().len();
    }
    assert_eq!(disk.stored().len(), 200);
}

#[tokio::test]
async fn a_client_that_says_everything_before_it_listens_is_answered_when_it_does() {
    let disk = Disk::at_once();
    // Not even the Welcome fits its window: what the server says goes out as the client reads.
    let narrow = Endpoint::from_static("http://receiver").initial_stream_window_size(64);
    let stop = CancellationToken::new();
    let channel = serve_to(narrow, &disk, Some(truck()), IngestLimits::default(), &stop).await;
    let (mut raw, mut sealer) = (Raw::open(&channel).await, Sealer::truck());
    raw.say(hello()).await;
    for number in 1..=50 {
        raw.say(batch(number, &[sealer.seal(number, b"x")])).await;
    }
    assert!(matches!(raw.hear().await, Ok(Some(Told::Welcome(_)))));
    while raw.ack().await.through < 50 {}
    assert_eq!(disk.stored(), (1..=50).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_session_is_the_same_as_before_only_where_the_one_before_was_taken() {
    let disk = Disk::at_once();
    let mut raw = Raw::welcomed(&channel(&disk, truck()).await).await;
    let (mut first, mut second) = (Sealer::truck(), Sealer::truck());
    let mut number = 0;
    let mut say = async |raw: &mut Raw, sealer: &mut Sealer| {
        number += 1;
        raw.say(batch(number, &[sealer.seal(number, b"x")])).await;
        raw.ack().await
    };
    say(&mut raw, &mut first).await;
    say(&mut raw, &mut first).await;
    // Refused, and so nothing was paid for it, whatever becomes of its key.
    disk.standing(Standing::Unknown);
    assert_eq!(say(&mut raw, &mut first).await.outcomes.len(), 1);
    disk.standing(Standing::Active);
    say(&mut raw, &mut first).await;
    say(&mut raw, &mut first).await;
    say(&mut raw, &mut second).await;
    say(&mut raw, &mut first).await;
    assert_eq!(disk.same_session(), [false, true, false, true, false, false]);
}
