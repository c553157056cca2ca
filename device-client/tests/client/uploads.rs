//! Files above the inline limit: cut, resumed, answered once, and at an end whatever the gateway or the disk makes of them.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use pithead_device_client::client::{Client, FileState, FileTicket, FlushError, StreamOptions, WhenFull};
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{
    envelope::ContentType,
    names::{Identity, StreamName},
};
use tokio::{sync::Barrier, time::timeout};

use crate::world::{Act, Gateway, LONG, Link, World, keep, records, seqs, stream, until};

/// Above the inline limit.
const LARGE: usize = 3 << 20;

fn files(name: &str) -> StreamOptions {
    StreamOptions::files(StreamName::new(name).unwrap())
}

fn send(world: &World, client: &Client, stream: &str, bytes: usize) -> FileTicket {
    let path = world.folder().join("source");
    fs::write(&path, vec![7; bytes]).unwrap();
    let content = ContentType::new("application/octet-stream").unwrap();
    client.files(stream).unwrap().send_file(&path, content, None).unwrap()
}

/// Sends it, and waits until it is sealed: the source may be written over.
async fn kept(world: &World, client: &Client, stream: &str, bytes: usize) -> (FileTicket, Identity) {
    let mut ticket = send(world, client, stream, bytes);
    let identity = ticket.kept().await.unwrap();
    (ticket, identity)
}

/// Waits until it stands so.
async fn stands(ticket: &mut FileTicket, mut is: impl FnMut(&FileState) -> bool) -> FileState {
    let reached = async {
        loop {
            let state = ticket.state();
            if is(&state) {
                return state;
            }
            ticket.changed().await.expect("the client is open");
        }
    };
    match timeout(LONG, reached).await {
        Ok(state) => state,
        Err(_) => panic!("it stays {:?}", ticket.state()),
    }
}

async fn end(ticket: &mut FileTicket) -> FileState {
    stands(ticket, FileState::is_final).await
}

async fn delivered(ticket: &mut FileTicket) {
    let state = end(ticket).await;
    assert!(matches!(state, FileState::Delivered { .. }), "{state:?}");
}

async fn refused(ticket: &mut FileTicket) -> String {
    match end(ticket).await {
        FileState::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

/// The sealed file beside the log.
fn sealed(world: &World, identity: &Identity) -> PathBuf {
    let files = world.folder().join("outbox").join(identity.stream.as_str()).join("files");
    files.join(format!("{}-{}.envelope", identity.run, identity.seq))
}

/// What the gateway has gathered of large files.
fn gathered(gateway: &Gateway) -> Vec<Vec<u8>> {
    let files = fs::read_dir(gateway.uploads.path()).unwrap().map(|entry| entry.unwrap().path());
    let whole = files.filter(|path| path.extension().is_some_and(|ending| ending == "envelope"));
    whole.map(|path| fs::read(path).unwrap()).collect()
}

/// Whoever opens an upload of that stream is told so from now on.
fn close(gateway: &Gateway, stream: &'static str, why: Refusal) {
    gateway.gate.script(|script| script.doors.insert(stream, why));
}

fn open(gateway: &Gateway, stream: &str) {
    gateway.gate.script(|script| script.doors.remove(stream));
}

fn whole(gateway: &Gateway) -> Vec<Identity> {
    gateway.gate.script(|script| script.whole.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_is_cut_half_way_goes_on_where_it_was_and_is_answered_once() {
    const FILE: usize = 20 << 20;
    const CUT: u64 = 12 << 20;
    let world = World::new();
    let gateway = world.gateway().await;
    let link = Link::cut_after(gateway.address, CUT).await;
    let client = world.client(&[link.address]).stream(files("logs")).open().unwrap();
    let (mut ticket, identity) = kept(&world, &client, "logs", FILE).await;
    let bytes = fs::read(sealed(&world, &identity)).unwrap();
    link.on();
    link.is_off().await;
    let half = |state: &FileState| matches!(state, FileState::Uploading { persisted: 4_194_304.., .. });
    let FileState::Uploading { persisted, total, .. } = stands(&mut ticket, half).await else { panic!() };
    assert_eq!(total, bytes.len() as u64);
    assert!(persisted < total, "the link is off: {persisted}");
    assert_eq!((whole(&gateway), stream(&client, "logs").waiting), (vec![], 1));
    link.on();
    let mut furthest = persisted;
    let last = stands(&mut ticket, |state| {
        if let FileState::Uploading { persisted, .. } = state {
            assert!(*persisted >= furthest, "what was told is on its disk: {persisted} after {furthest}");
            furthest = *persisted;
        }
        state.is_final()
    })
    .await;
    assert!(matches!(&last, FileState::Delivered { identity: of } if *of == identity), "{last:?}");
    let settled = stream(&client, "logs").settled;
    assert_eq!((settled.stored, settled.duplicates), (1, 0));
    assert_eq!((whole(&gateway), gathered(&gateway) == [bytes]), (vec![identity], true));
    // From the beginning it would have been the cut and all of the file.
    let carried = link.carried();
    assert!(carried < CUT + (FILE as u64 - persisted) + (1 << 20), "{carried} bytes for {total}");
    client.close(LONG).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_given_again_and_nothing_crosses_the_air_twice() {
    let world = World::new();
    let gateway = world.gateway().await;
    let link = Link::to(gateway.address).await;
    let client = world.client(&[link.address]).stream(files("logs")).open().unwrap();
    gateway.gate.on(1, Act::Silence);
    let (mut ticket, identity) = kept(&world, &client, "logs", LARGE).await;
    link.on();
    gateway.gate.offered(1).await;
    assert_eq!(whole(&gateway), [identity]);
    gateway.port.cut(|_| true);
    delivered(&mut ticket).await;
    let settled = stream(&client, "logs").settled;
    assert_eq!((settled.stored, settled.duplicates, settled.resumed), (0, 1, 0));
    assert!(link.carried() < 2 * LARGE as u64, "{} bytes", link.carried());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_streams_files_go_at_a_time_and_a_streams_own_one_after_the_other() {
    let world = World::new();
    let gateway = world.gateway().await;
    // Neither is answered before both are whole.
    gateway.gate.script(|script| script.together = Some(Arc::new(Barrier::new(2))));
    let link = Link::to(gateway.address).await;
    let client = world.client(&[link.address]).stream(files("logs")).stream(files("maps")).open().unwrap();
    let mut tickets = Vec::new();
    for name in ["logs", "logs", "maps", "maps"] {
        tickets.push(kept(&world, &client, name, LARGE).await.0);
    }
    link.on();
    for ticket in &mut tickets {
        delivered(ticket).await;
    }
    let mut order: Vec<_> =
        whole(&gateway).iter().map(|of| (of.seq.get(), of.stream.as_str().to_owned())).collect();
    order[..2].sort_unstable();
    order[2..].sort_unstable();
    let expected = [(1, "logs"), (1, "maps"), (2, "logs"), (2, "maps")];
    assert_eq!(order, expected.map(|(seq, name)| (seq, name.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_set_aside_with_its_reason_and_the_next_file_goes() {
    let world = World::new();
    let gateway = world.gateway().await;
    let link = Link::to(gateway.address).await;
    let client = world.client(&[link.address]).stream(files("logs")).open().unwrap();
    gateway.gate.on(1, Act::Refuse(Refusal::new(ErrorReason::SeqJump, "once it was whole")));
    let (mut first, identity) = kept(&world, &client, "logs", LARGE).await;
    let bytes = fs::read(sealed(&world, &identity)).unwrap();
    link.on();
    assert_eq!(refused(&mut first).await, "SEQ_JUMP: once it was whole");
    close(&gateway, "logs", Refusal::new(ErrorReason::KeyUnknown, "at the door"));
    let mut second = send(&world, &client, "logs", LARGE);
    assert_eq!(refused(&mut second).await, "KEY_UNKNOWN: at the door");
    open(&gateway, "logs");
    let mut third = send(&world, &client, "logs", LARGE);
    delivered(&mut third).await;
    let logs = stream(&client, "logs");
    assert_eq!((logs.settled.stored, logs.settled.refused, logs.waiting), (1, 2, 0));
    assert_eq!(logs.upload_trouble, None);
    let kept = world.in_the_area("envelope");
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().any(|path| fs::read(path).unwrap() == bytes), "the sealed bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_takes_no_large_files_has_given_its_answer_and_small_ones_go_on() {
    let world = World::new();
    let gateway = world.gateway_of_small_ones().await;
    let client = world.client(&[gateway.address]).stream(files("logs")).open().unwrap();
    let mut large = send(&world, &client, "logs", LARGE);
    let reason = refused(&mut large).await;
    assert!(reason.starts_with("UPLOADS_NOT_SUPPORTED"), "{reason}");
    let mut small = send(&world, &client, "logs", 1_000);
    delivered(&mut small).await;
    assert_eq!(world.in_the_area("envelope").len(), 1);
    assert_eq!(seqs(&gateway.gate.all_offered(), "logs"), [2]);
}

/// It used to be tried for ever, and nobody was told.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_retry_cures_is_said_holds_up_nothing_else_and_ends_when_somebody_mends_it() {
    let world = World::new();
    let gateway = world.gateway().await;
    let never = Refusal::new(ErrorReason::RoleNotAllowed, "not for this certificate");
    // As many as go at a time, so that they would be in a third one's way.
    for name in ["logs", "maps"] {
        close(&gateway, name, never.clone());
    }
    let client = world
        .client(&[gateway.address])
        .stream(files("logs"))
        .stream(files("maps"))
        .stream(files("videos"))
        .stream(records("can"))
        .open()
        .unwrap();
    let (mut other, _) = kept(&world, &client, "maps", LARGE).await;
    let (mut ticket, _) = kept(&world, &client, "logs", LARGE).await;
    let name = StreamName::new("logs").unwrap();
    let told = |status: &pithead_device_client::client::Status| status.streams[&name].upload_trouble.clone();
    let status = until(&client, "told", |status| told(status).is_some()).await;
    let trouble = told(&status).unwrap();
    assert_eq!(
        (trouble.reason, trouble.retryable),
        (Some(ErrorReason::RoleNotAllowed), false),
        "{trouble:?}"
    );
    assert!(trouble.detail.contains("not for this certificate"), "{trouble:?}");
    assert!(status.connected.is_some() && status.trouble.is_none(), "the rest is well: {status:?}");
    keep(&client, "can", b"x").await;
    until(&client, "delivered beside it", |status| {
        status.streams[&StreamName::new("can").unwrap()].settled.stored == 1
    })
    .await;
    // Nothing else is waited for, and no time would help.
    let (mut third, _) = kept(&world, &client, "videos", LARGE).await;
    delivered(&mut third).await;
    let ended = timeout(LONG, client.flush(Duration::MAX)).await.expect("at once").unwrap_err();
    let FlushError::Deadline { waiting: 2, trouble: Some(trouble) } = &ended else { panic!("{ended:?}") };
    assert!(!trouble.retryable, "{trouble:?}");
    for name in ["logs", "maps"] {
        open(&gateway, name);
    }
    delivered(&mut other).await;
    delivered(&mut ticket).await;
    client.flush(LONG).await.unwrap();
    assert_eq!(stream(&client, "logs").upload_trouble, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_room_for_a_large_file_is_asked_again_when_it_says_and_that_is_told() {
    let world = World::new();
    let gateway = world.gateway().await;
    let wait = Duration::from_millis(300);
    let full = Refusal::new(ErrorReason::TooManyUploads, "four are open").retry_after(wait);
    close(&gateway, "logs", full);
    let client = world.client(&[gateway.address]).stream(files("logs")).open().unwrap();
    let (mut ticket, _) = kept(&world, &client, "logs", LARGE).await;
    let name = StreamName::new("logs").unwrap();
    let status = until(&client, "told", |status| status.streams[&name].upload_trouble.is_some()).await;
    let trouble = status.streams[&name].upload_trouble.clone().unwrap();
    assert_eq!((trouble.reason, trouble.retryable), (Some(ErrorReason::TooManyUploads), true), "{trouble:?}");
    assert!(trouble.retry_after.is_some_and(|after| after >= wait), "{trouble:?}");
    open(&gateway, "logs");
    client.flush(LONG).await.unwrap();
    delivered(&mut ticket).await;
    assert_eq!(stream(&client, "logs").upload_trouble, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_has_damaged_is_declared_lost_and_its_ticket_says_so() {
    let world = World::new();
    let gateway = world.gateway().await;
    let link = Link::to(gateway.address).await;
    let client = world.client(&[link.address]).stream(files("logs")).open().unwrap();
    let (mut torn, of_torn) = kept(&world, &client, "logs", LARGE).await;
    let (mut gone, of_gone) = kept(&world, &client, "logs", LARGE).await;
    let (mut whole, _) = kept(&world, &client, "logs", LARGE).await;
    fs::File::options().write(true).open(sealed(&world, &of_torn)).unwrap().set_len(100).unwrap();
    fs::remove_file(sealed(&world, &of_gone)).unwrap();
    link.on();
    for ticket in [&mut torn, &mut gone] {
        let reason = refused(ticket).await;
        assert!(reason.starts_with("damaged on the device's disk"), "{reason}");
    }
    delivered(&mut whole).await;
    client.flush(LONG).await.unwrap();
    let logs = stream(&client, "logs");
    assert_eq!((logs.settled.stored, logs.settled.lost, logs.settled.refused), (1, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_policy_gives_up_says_so_on_its_ticket() {
    let world = World::new();
    let options = files("logs").budget_bytes(5 << 20).when_full(WhenFull::DropOldest);
    let client = world.client(&[World::nowhere()]).stream(options).open().unwrap();
    let (mut first, _) = kept(&world, &client, "logs", LARGE).await;
    let (second, _) = kept(&world, &client, "logs", LARGE).await;
    let reason = refused(&mut first).await;
    assert!(reason.contains("policy"), "{reason}");
    assert!(!second.state().is_final(), "{:?}", second.state());
}
