//! The engine over a broker in memory that loses requests and replies, and over a real nats-server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pithead_spool::{AppendError, Lane, NotDurable, Position, Record, Ticket};

use super::broker::Broker;
use super::group::{self, Stamp};
use super::model::{At, Model};
use super::{Bounds, GROUP_RECORDS, Me, Presence, Replicated, Standing};

pub(super) const LONG: Duration = Duration::from_secs(30);

/// Quick, so that a life does not take minutes.
pub(super) fn bounds() -> Bounds {
    Bounds {
        beat: Duration::from_millis(40),
        lease: Duration::from_millis(200),
        roster: Duration::from_millis(20),
        group_bytes: 4 << 10,
        queue_bytes: 64 << 10,
        ..Bounds::new(1 << 20)
    }
}

pub(super) fn gateway(broker: &Arc<dyn Broker>, name: &str) -> Replicated {
    gateway_with(broker, name, bounds())
}

fn gateway_with(broker: &Arc<dyn Broker>, name: &str, bounds: Bounds) -> Replicated {
    let broker = broker.clone();
    let me = Me { name: name.to_owned(), address: Some(format!("{name}:7443")) };
    Replicated::start(me, bounds, move || async move { Ok(broker) }).unwrap()
}

/// Until it is the owner; then it takes records.
pub(super) async fn owns(gateway: &Replicated) -> u64 {
    let mut standing = gateway.standing();
    let ours = standing.wait_for(|standing| matches!(standing, Standing::Ours { .. }));
    let ours = tokio::time::timeout(LONG, ours).await.expect("never became the owner").unwrap().clone();
    let Standing::Ours { epoch } = ours else { unreachable!() };
    gateway.serve(epoch);
    epoch
}

/// One that has become the owner.
async fn owner(broker: &Arc<dyn Broker>, name: &str) -> Replicated {
    let gateway = gateway(broker, name);
    owns(&gateway).await;
    gateway
}

async fn stands_by(gateway: &Replicated) {
    let mut standing = gateway.standing();
    let other = standing.wait_for(|standing| matches!(standing, Standing::StandingBy { .. }));
    tokio::time::timeout(LONG, other).await.expect("never stood by").unwrap();
}

fn record(text: &str) -> Record {
    Record::new(1, 7, format!("head of {text}").into_bytes(), text.to_owned().into_bytes())
}

pub(super) fn append(gateway: &Replicated, lane: Lane, text: &str) -> Result<Ticket, AppendError> {
    gateway.append_since(lane, record(text), gateway.failures(lane), None)
}

pub(super) async fn stored(gateway: &Replicated, lane: Lane, text: &str) -> Position {
    tokio::time::timeout(LONG, append(gateway, lane, text).unwrap()).await.expect("never answered").unwrap()
}

/// Everything from a position on, by another thread, as the relay reads; or what could be read before the term was over.
pub(super) async fn read_all(gateway: &Replicated, lane: Lane, from: Position) -> (Vec<(u64, String)>, u64) {
    let mut reader = gateway.reader(lane, from);
    let gateway = gateway.clone();
    tokio::task::spawn_blocking(move || {
        let (mut found, mut lost) = (Vec::new(), 0);
        loop {
            let batch = match reader.next_batch(1 << 10) {
                Ok(batch) => batch,
                Err(error) => {
                    assert!(!gateway.is_owner(), "{error}");
                    return (found, lost);
                }
            };
            if batch.is_empty() {
                return (found, lost);
            }
            lost += batch.corrupt.iter().map(|range| range.records()).sum::<u64>();
            found.extend(
                batch
                    .records
                    .into_iter()
                    .map(|(position, record)| (position.0, String::from_utf8(record.body.to_vec()).unwrap())),
            );
        }
    })
    .await
    .unwrap()
}

fn texts(found: &[(u64, String)]) -> Vec<&str> {
    found.iter().map(|(_, text)| text.as_str()).collect()
}

pub(super) fn model() -> (Model, Arc<dyn Broker>) {
    let model = Model::default();
    (model.clone(), Arc::new(model))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_goes_out_together_and_comes_back_in_order_at_its_position() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    let tickets: Vec<Ticket> =
        (0..100).map(|at| append(&one, Lane::Second, &format!("record {at}")).unwrap()).collect();
    for (at, ticket) in (0..).zip(tickets) {
        assert_eq!(ticket.await, Ok(Position(at)));
    }
    let groups = model.messages(Lane::Second).len();
    assert!(groups < 60, "{groups} messages for 100 records");
    let (found, lost) = read_all(&one, Lane::Second, Position(0)).await;
    let expected: Vec<(u64, String)> = (0..100).map(|at| (at, format!("record {at}"))).collect();
    assert_eq!((found, lost), (expected, 0));
    let (from_the_middle, _) = read_all(&one, Lane::Second, Position(57)).await;
    assert_eq!((from_the_middle[0].0, from_the_middle.len()), (57, 43));
    let stats = one.stats();
    assert_eq!((stats.records, stats.appended_records, stats.queued_records), (100, 100, 0));
    assert!(stats.oldest_ms == Some(7) && stats.bytes > 0);
    one.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_given_back_and_the_next_owner_goes_on_there() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    for at in 0..40 {
        stored(&one, Lane::First, &format!("record {at}")).await;
    }
    let held = model.messages(Lane::First).len();
    one.acknowledge(Lane::First, Position(29)).unwrap();
    assert!(one.acknowledge(Lane::First, Position(40)).is_err(), "nothing durable is there");
    assert_eq!(one.cursor(Lane::First), Position(30));
    // The orderly end writes the cursor down, and hands over at once.
    let two = gateway_with(&broker, "edge-2", Bounds { lease: LONG, ..bounds() });
    tokio::task::spawn_blocking(move || one.close()).await.unwrap();
    owns(&two).await;
    assert_eq!((two.cursor(Lane::First), two.saved_cursor(Lane::First)), (Position(30), Position(30)));
    assert!(model.messages(Lane::First).len() <= held + 1 - 30);
    let (found, lost) = read_all(&two, Lane::First, Position(0)).await;
    assert_eq!((found.first().unwrap().0, found.len(), lost), (30, 10, 0));
    let heads = two.heads(Lane::First, two.cursor(Lane::First));
    let heads = tokio::task::spawn_blocking(move || heads.map(|head| head.position.0).collect::<Vec<_>>());
    assert_eq!(heads.await.unwrap(), (30..40).collect::<Vec<_>>());
    assert_eq!(stored(&two, Lane::First, "more").await, Position(40));
    two.acknowledge(Lane::First, Position(40)).unwrap();
    two.close();
    assert_eq!(model.messages(Lane::First).len(), 1, "the newest stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_replaced_appends_acknowledges_and_checkpoints_nothing_more() {
    let (_, broker) = model();
    let one = owner(&broker, "edge-1").await;
    stored(&one, Lane::Second, "before").await;
    let books = one.books().unwrap();
    let two = gateway(&broker, "edge-2");
    one.acknowledge(Lane::Second, Position(0)).unwrap();
    // edge-1 is stopped in its tracks: its thread does nothing.
    let (go_on, goes_on) = std::sync::mpsc::sync_channel::<()>(1);
    let (stopped, is_stopped) = tokio::sync::oneshot::channel();
    one.0.runtime.spawn(async move { stopped.send(()).is_ok() && goes_on.recv().is_err() });
    is_stopped.await.unwrap();
    let ticket = append(&one, Lane::Second, "too late").unwrap();
    owns(&two).await;
    assert_eq!(stored(&two, Lane::Second, "after").await.0, 1);
    assert!(!one.is_owner(), "its lease has run out by its own clock");
    assert_eq!(append(&one, Lane::Second, "refused").err(), Some(AppendError::Closed));
    drop(go_on);
    assert_eq!(ticket.await, Err(NotDurable::Unknown));
    stands_by(&one).await;
    let saved = tokio::task::spawn_blocking(move || books.save(b"of the past".to_vec())).await.unwrap();
    assert!(saved.is_err());
    let (found, lost) = read_all(&two, Lane::Second, Position(0)).await;
    assert!(
        lost == 0 && texts(&found).ends_with(&["after"]) && !texts(&found).contains(&"too late"),
        "{found:?}"
    );
    two.close();
    one.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_there_as_a_whole_for_whoever_takes_over() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    let books = one.books().unwrap();
    let large: Vec<u8> = (0..1_300_000_u32).map(|at| (at % 251) as u8).collect();
    let (told, first) = (books.clone(), large.clone());
    tokio::task::spawn_blocking(move || {
        assert_eq!(told.load().unwrap(), None);
        told.save(b"small".to_vec()).unwrap();
        told.save(first).unwrap();
    })
    .await
    .unwrap();
    one.kill();
    model.loses(10, 10, 3);
    let two = owner(&broker, "edge-2").await;
    let books = two.books().unwrap();
    let loaded = tokio::task::spawn_blocking(move || {
        let loaded = books.load().unwrap();
        books.save(b"next".to_vec()).unwrap();
        assert_eq!(books.load().unwrap().unwrap(), b"next");
        loaded
    });
    assert!(loaded.await.unwrap().unwrap() == large);
    model.loses(0, 0, 0);
    two.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_broker_refuses_what_it_did_not_take_and_takes_again_when_there_is_room() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    stored(&one, Lane::Second, "one").await;
    let held: usize = model.messages(Lane::Second).iter().map(|(_, message)| message.len()).sum();
    model.bound(Some(held as u64 + 10));
    let failures = one.failures(Lane::Second);
    assert_eq!(append(&one, Lane::Second, "two").unwrap().await, Err(NotDurable::Full));
    assert_eq!(one.failures(Lane::Second), failures + 1);
    let overtakes = one.append_since(Lane::Second, record("three"), failures, None);
    assert!(matches!(overtakes, Err(AppendError::Overtakes | AppendError::Full { .. })));
    model.bound(None);
    let room = one.room(Lane::Second, 10);
    tokio::time::timeout(LONG, room).await.unwrap();
    assert_eq!(stored(&one, Lane::Second, "four").await, Position(1));
    one.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_compare_is_found_out_and_what_it_let_in_is_void() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    stored(&one, Lane::Second, "good").await;
    let stamp =
        Stamp { lane: Lane::Second, epoch: 1, writer: 1, number: 1, expected: 0, first: 1, room: false };
    let last = model.messages(Lane::Second).last().unwrap().0;
    // Of an owner of long ago, behind what it did not expect.
    model.set(Lane::Second, last + 1, Some(group::encode(&stamp, &[record("of the past")])));
    let ticket = append(&one, Lane::Second, "behind it").unwrap();
    assert_eq!(ticket.await, Err(NotDurable::Unknown), "somebody else's stands there");
    owns_again(&one).await;
    stored(&one, Lane::Second, "after").await;
    let (found, lost) = read_all(&one, Lane::Second, Position(0)).await;
    assert_eq!((texts(&found), lost), (vec!["good", "after"], 0));
    // And one that tells us so itself.
    model.careless(true);
    model.set(Lane::Second, last + 9, None);
    let ticket = append(&one, Lane::Second, "not compared").unwrap();
    assert_eq!(ticket.await, Err(NotDurable::Unknown));
    model.careless(false);
    one.close();
}

/// After it has stood by.
async fn owns_again(gateway: &Replicated) {
    let looking = async {
        while !gateway.is_owner() {
            owns(gateway).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, looking).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_gone_is_named_and_the_rest_is_served() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    let sequences = five(&model, &one, Lane::Third).await;
    model.set(Lane::Third, sequences[1], None);
    let mut bytes =
        model.messages(Lane::Third).into_iter().find(|(at, _)| *at == sequences[3]).unwrap().1.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    model.set(Lane::Third, sequences[3], Some(bytes.into()));
    let (found, lost) = read_all(&one, Lane::Third, Position(0)).await;
    assert_eq!((texts(&found), lost), (vec!["record 0", "record 2", "record 4"], 2));
    assert_eq!(one.stats().corrupt_records, 2);
    one.close();
}

/// Of three replicas the leader cannot read a message, and then one more.
const SOME_READ: [[At; 3]; 2] =
    [[At::CannotRead, At::Reads, At::Reads], [At::CannotRead, At::CannotRead, At::Reads]];
const NOBODY_READS: [At; 3] = [At::CannotRead; 3];
const ROOM: u64 = GROUP_RECORDS as u64;

/// The owner's first records of a lane, each in a message of its own, and the sequences of those.
async fn five(model: &Model, owner: &Replicated, lane: Lane) -> Vec<u64> {
    let mut sequences = Vec::new();
    for at in 0..5 {
        stored(owner, lane, &format!("record {at}")).await;
        sequences.push(model.messages(lane).last().unwrap().0);
    }
    sequences
}

/// Positions of the heads of what waits, as whoever takes over goes over them before anything is read.
async fn heads(owner: &Replicated, lane: Lane) -> Vec<u64> {
    let heads = owner.heads(lane, owner.cursor(lane));
    tokio::task::spawn_blocking(move || heads.map(|head| head.position.0).collect()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_leader_cannot_read_and_any_replica_can_is_not_lost() {
    for at in SOME_READ {
        let (model, broker) = model();
        let one = owner(&broker, "edge-1").await;
        let sequences = five(&model, &one, Lane::Second).await;
        model.answer_for(Lane::Second, sequences[2], at);
        // It is the first that is asked for, so that the leader's answer comes before the others'.
        let (found, lost) = read_all(&one, Lane::Second, Position(2)).await;
        assert_eq!((texts(&found), lost), (vec!["record 2", "record 3", "record 4"], 0), "{at:?}");
        assert_eq!(one.stats().corrupt_records, 0);
        one.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_replica_may_have_is_not_given_up() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    let sequences = five(&model, &one, Lane::Second).await;
    model.answer_for(Lane::Second, sequences[2], [At::CannotRead, At::CannotRead, At::Silent]);
    let mut reader = one.reader(Lane::Second, Position(2));
    let (reader, read) = tokio::task::spawn_blocking(move || {
        let read = reader.next_batch(1 << 10);
        (reader, read)
    })
    .await
    .unwrap();
    assert!(read.unwrap_err().to_string().contains("does not answer"));
    assert_eq!((reader.position(), one.stats().corrupt_records), (Position(2), 0));
    model.answer_for(Lane::Second, sequences[2], [At::CannotRead, At::CannotRead, At::Reads]);
    let (found, lost) = read_all(&one, Lane::Second, reader.position()).await;
    assert_eq!((texts(&found), lost), (vec!["record 2", "record 3", "record 4"], 0));
    one.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_the_leader_cannot_read_and_any_replica_can_is_taken_over_whole() {
    for at in SOME_READ {
        let (model, broker) = model();
        let one = owner(&broker, "edge-1").await;
        let sequences = five(&model, &one, Lane::Second).await;
        one.kill();
        model.answer_for(Lane::Second, sequences[4], at);
        let two = owner(&broker, "edge-2").await;
        assert_eq!(heads(&two, Lane::Second).await, (0..5).collect::<Vec<_>>(), "{at:?}");
        assert_eq!(stored(&two, Lane::Second, "after").await, Position(5), "right behind what is there");
        let (found, lost) = read_all(&two, Lane::Second, Position(0)).await;
        let positions: Vec<u64> = found.iter().map(|(position, _)| *position).collect();
        assert_eq!((positions, lost), ((0..6).collect::<Vec<_>>(), 0));
        assert_eq!(found[4..], [(4, "record 4".to_owned()), (5, "after".to_owned())]);
        two.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_nobody_can_read_is_named_as_lost_and_its_positions_are_not_given_out_again() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    let sequences = five(&model, &one, Lane::Second).await;
    one.kill();
    for sequence in &sequences[3..] {
        model.answer_for(Lane::Second, *sequence, NOBODY_READS);
    }
    let two = owner(&broker, "edge-2").await;
    assert_eq!(heads(&two, Lane::Second).await, [0, 1, 2]);
    let next = 3 + 2 * ROOM;
    assert_eq!(two.stats().records, next, "what is not known counts as waiting");
    for (at, text) in (next..).zip(["after", "and after that"]) {
        assert_eq!(stored(&two, Lane::Second, text).await, Position(at));
    }
    let (found, lost) = read_all(&two, Lane::Second, Position(0)).await;
    assert_eq!(texts(&found), ["record 0", "record 1", "record 2", "after", "and after that"]);
    assert_eq!((found[3].0, lost, two.stats().corrupt_records), (next, next - 3, next - 3));
    // It is passed, and whoever comes next begins behind it.
    two.acknowledge(Lane::Second, Position(next)).unwrap();
    two.close();
    let three = owner(&broker, "edge-3").await;
    let (found, lost) = read_all(&three, Lane::Second, three.cursor(Lane::Second)).await;
    assert_eq!((found, lost), (vec![(next + 1, "and after that".to_owned())], 0));
    three.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_reads_after_all_is_delivered_before_what_came_later_and_nothing_is_called_lost() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    let sequences = five(&model, &one, Lane::Second).await;
    one.kill();
    model.answer_for(Lane::Second, sequences[4], NOBODY_READS);
    let two = owner(&broker, "edge-2").await;
    stored(&two, Lane::Second, "after").await;
    // A server that had it is back.
    model.answer_for(Lane::Second, sequences[4], SOME_READ[1]);
    let (found, lost) = read_all(&two, Lane::Second, Position(0)).await;
    assert_eq!(found[4..], [(4, "record 4".to_owned()), (4 + ROOM, "after".to_owned())]);
    assert_eq!((found.len(), lost, two.stats().corrupt_records), (6, 0, 0));
    two.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_of_which_nothing_reads_goes_on_behind_whatever_its_cursor_leaves_room_for() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    five(&model, &one, Lane::Second).await;
    one.acknowledge(Lane::Second, Position(4)).unwrap();
    one.close();
    // Everything was delivered, and the newest message is kept. What it held is not known any more.
    let [(last, _)] = model.messages(Lane::Second)[..] else { panic!("one message") };
    model.answer_for(Lane::Second, last, NOBODY_READS);
    let two = owner(&broker, "edge-2").await;
    assert_eq!(stored(&two, Lane::Second, "after").await, Position(5 + ROOM));
    two.kill();
    // And without a cursor.
    let messages = model.messages(Lane::Second);
    for (sequence, _) in &messages {
        model.answer_for(Lane::Second, *sequence, NOBODY_READS);
    }
    model.lose_state();
    let three = owner(&broker, "edge-3").await;
    let after = stored(&three, Lane::Second, "after").await;
    assert!(after > Position(5 + ROOM), "{after:?}");
    three.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_a_log_has_lost_is_named_although_everything_that_is_left_reads() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    five(&model, &one, Lane::Second).await;
    let name = one.spool_id();
    let is_written = async {
        let says = |value: bytes::Bytes| String::from_utf8(value.to_vec()).unwrap().contains(r#""end":5"#);
        while !model.value("cursors").is_some_and(says) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, is_written)
        .await
        .expect("where it ends is written down, though nothing is delivered");
    one.kill();
    model.cut_to(Lane::Second, 4);
    let two = owner(&broker, "edge-2").await;
    assert_ne!(two.spool_id(), name, "what its positions mean has changed");
    assert_eq!(stored(&two, Lane::Second, "after").await, Position(5));
    let (found, lost) = read_all(&two, Lane::Second, Position(0)).await;
    assert_eq!(texts(&found), ["record 0", "record 1", "record 2", "after"]);
    assert_eq!((lost, two.stats().corrupt_records), (2, 2));
    two.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_made_anew_keeps_what_it_gets_though_its_first_message_is_somebody_elses() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    five(&model, &one, Lane::Second).await;
    one.acknowledge(Lane::Second, Position(4)).unwrap();
    one.close();
    model.begin_anew(Lane::Second);
    model.set(Lane::Second, 1, Some(bytes::Bytes::from_static(b"of somebody else")));
    for (at, name) in ["edge-2", "edge-3"].into_iter().enumerate() {
        let next = owner(&broker, name).await;
        stored(&next, Lane::Second, &format!("record {at}")).await;
        let (found, _) = read_all(&next, Lane::Second, next.cursor(Lane::Second)).await;
        assert_eq!(texts(&found), ["record 0", "record 1"][..=at]);
        next.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_of_a_site_know_of_each_other_and_notice_who_falls_silent_or_leaves() {
    let (model, broker) = model();
    model.loses(10, 10, 5);
    let (one, two) = (gateway(&broker, "edge-1"), gateway(&broker, "edge-2"));
    let names = |gateway: &Replicated| -> Vec<(String, bool, u64)> {
        let known = gateway.neighbours().into_iter();
        known.map(|known| (known.name, known.is_present, known.presence.connections)).collect()
    };
    let until = async |gateway: &Replicated, expected: &[(&str, bool, u64)]| {
        let expected: Vec<_> =
            expected.iter().map(|(name, there, n)| ((*name).to_owned(), *there, *n)).collect();
        let looking = async {
            while names(gateway) != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let known = tokio::time::timeout(LONG, looking).await;
        assert!(known.is_ok(), "{:?}, not {expected:?}", names(gateway));
    };
    let told = |connections| Presence { connections, words: "x".repeat(1_000), ..Presence::default() };
    one.tell(told(3));
    two.tell(told(4));
    for gateway in [&one, &two] {
        until(gateway, &[("edge-1", true, 3), ("edge-2", true, 4)]).await;
    }
    let of_two = one.neighbours().pop().unwrap();
    assert_eq!((of_two.address.as_deref(), of_two.is_here), (Some("edge-2:7443"), false));
    assert!(of_two.presence.words.len() < 300);
    two.tell(told(5));
    until(&one, &[("edge-1", true, 3), ("edge-2", true, 5)]).await;
    two.kill();
    until(&one, &[("edge-1", true, 3), ("edge-2", false, 5)]).await;
    let three = gateway(&broker, "edge-3");
    three.tell(told(1));
    until(&one, &[("edge-1", true, 3), ("edge-2", false, 5), ("edge-3", true, 1)]).await;
    model.loses(0, 0, 0);
    tokio::task::spawn_blocking(move || three.close()).await.unwrap();
    until(&one, &[("edge-1", true, 3), ("edge-2", false, 5)]).await;
    one.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_behind_makes_nothing_lost() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    five(&model, &one, Lane::First).await;
    model.behind(3, false);
    let (found, lost) = read_all(&one, Lane::First, Position(0)).await;
    assert_eq!((found.len(), lost), (5, 0), "the leader has what the replica lacks");
    // While nobody has come that far the reader says so, and goes on where it was.
    model.behind(3, true);
    let mut reader = one.reader(Lane::First, Position(0));
    let (reader, refused) = tokio::task::spawn_blocking(move || {
        let mut read = 0;
        loop {
            match reader.next_batch(1 << 10) {
                Ok(batch) => {
                    assert!(batch.corrupt.is_empty() && !batch.is_empty());
                    read += batch.records.len();
                }
                Err(error) => break ((reader, read), error.to_string()),
            }
        }
    })
    .await
    .unwrap();
    let (mut reader, read) = reader;
    assert!(read < 5 && !refused.is_empty());
    model.behind(0, false);
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = 0;
        while rest < 5 - read {
            rest += reader.next_batch(1 << 10).unwrap().records.len();
        }
        rest
    });
    assert_eq!(read + rest.await.unwrap(), 5);
    // And whoever takes over appends behind what a replica lacks.
    model.behind(4, false);
    one.kill();
    let two = owner(&broker, "edge-2").await;
    assert_eq!(stored(&two, Lane::First, "after").await, Position(5));
    model.behind(0, false);
    two.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_for_which_there_is_no_room_is_written_when_there_is_and_nothing_of_the_attempts_stays()
{
    let (model, broker) = model();
    let checkpoint = |seed: u8| -> Vec<u8> { (0..1_300_000_u32).map(|at| (at % 251) as u8 ^ seed).collect() };
    let zero = owner(&broker, "edge-0").await;
    let (told, first) = (zero.books().unwrap(), checkpoint(1));
    tokio::task::spawn_blocking(move || told.save(first)).await.unwrap().unwrap();
    zero.kill();
    model.set_value("lines.1.2.0", b"of an attempt that was cut short by the end");
    let one = owner(&broker, "edge-1").await;
    let books = one.books().unwrap();
    for attempt in 2..5 {
        model.state_holds(Some(2_000_000));
        let (told, bytes) = (books.clone(), checkpoint(attempt));
        let full = tokio::task::spawn_blocking(move || told.save(bytes)).await.unwrap();
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull, "attempt {attempt}");
    }
    model.state_holds(None);
    let (told, last) = (books.clone(), checkpoint(9));
    let saved = last.clone();
    let saving = tokio::task::spawn_blocking(move || told.save(saved));
    tokio::time::timeout(LONG, saving).await.expect("hangs").unwrap().unwrap();
    let pieces: Vec<String> = model.keys().into_iter().filter(|key| key.starts_with("lines.")).collect();
    assert_eq!(pieces.len(), 3, "{pieces:?}");
    one.kill();
    let two = owner(&broker, "edge-2").await;
    let books = two.books().unwrap();
    let loaded = tokio::task::spawn_blocking(move || books.load().unwrap());
    assert!(loaded.await.unwrap().unwrap() == last);
    two.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_version_wrote_is_neither_replaced_nor_stepped_over() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    stored(&one, Lane::Second, "one").await;
    // A group of another version, whole.
    let (sequence, message) = model.messages(Lane::Second).pop().unwrap();
    let mut newer = message.to_vec();
    newer[8] = 2;
    let sum = crc32c::crc32c(&newer[8..group::HEAD_BYTES]);
    newer[4..8].copy_from_slice(&sum.to_le_bytes());
    model.set(Lane::Second, sequence, Some(newer.into()));
    let mut reader = one.reader(Lane::Second, Position(0));
    let read = tokio::task::spawn_blocking(move || reader.next_batch(1 << 10)).await.unwrap();
    assert!(read.unwrap_err().to_string().contains("version 2"));
    assert_eq!(one.stats().corrupt_records, 0);
    one.kill();
    // Whoever comes next reads the end of the lane, and leaves it to others.
    let two = gateway(&broker, "edge-2");
    let mut standing = two.standing();
    let barred = standing.wait_for(|standing| {
        matches!(standing, Standing::StandingBy { trouble: Some(trouble), .. } if trouble.contains("another version"))
    });
    tokio::time::timeout(LONG, barred).await.expect("never says why").unwrap();
    model.set_value("owner", br#"{"v":2,"epoch":9}"#);
    tokio::time::sleep(bounds().lease * 3).await;
    assert!(!two.is_owner());
    assert_eq!(model.value("owner").unwrap(), br#"{"v":2,"epoch":9}"#[..]);
    two.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_lost_delivers_again_what_is_there_and_calls_nothing_lost() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    for at in 0..40 {
        stored(&one, Lane::First, &format!("record {at}")).await;
    }
    one.acknowledge(Lane::First, Position(29)).unwrap();
    one.close();
    model.lose_state();
    let two = owner(&broker, "edge-2").await;
    let (found, lost) = read_all(&two, Lane::First, two.cursor(Lane::First)).await;
    assert_eq!((found.last().unwrap().1.as_str(), lost), ("record 39", 0));
    assert!(found[0].0 <= 30, "{}", found[0].0);
    two.kill();
    // The owner's record alone.
    for _ in 0..3 {
        let next = owner(&broker, "edge-2").await;
        next.kill();
    }
    model.forget_key("owner");
    let three = gateway(&broker, "edge-3");
    assert!(owns(&three).await > 4, "above the epoch of what it owns");
    three.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_have_one_name_through_all_take_overs_and_another_when_they_begin_anew() {
    let (model, broker) = model();
    let mut met = Vec::new();
    for accident in
        ["none", "none", "a log", "none", "the cursors", "none", "a log of which something is known", "none"]
    {
        match accident {
            "a log" => model.begin_anew(Lane::Second),
            "a log of which something is known" => {
                let owner = owner(&broker, "edge-1").await;
                let last = stored(&owner, Lane::Second, "delivered").await;
                owner.acknowledge(Lane::Second, last).unwrap();
                owner.close();
                model.begin_anew(Lane::Second);
            }
            "the cursors" => model.forget_key("cursors"),
            _ => {}
        }
        let owner = owner(&broker, "edge-1").await;
        let position = stored(&owner, Lane::Second, "record").await;
        let (found, lost) = read_all(&owner, Lane::Second, position).await;
        assert_eq!((texts(&found), lost), (vec!["record"], 0), "{accident}");
        let name = owner.spool_id().unwrap();
        // Nothing under one name means two things.
        assert!(!met.contains(&(name, position)), "{accident}: {met:?}");
        assert_eq!(met.last().is_none_or(|(last, _)| *last != name), accident != "none" || met.is_empty());
        met.push((name, position));
        owner.kill();
        assert_eq!(owner.spool_id(), None, "nothing goes by it when the term is over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_term_that_is_over_calls_nothing_lost() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    five(&model, &one, Lane::Second).await;
    // Asked while nobody answers, and answered when the term is over.
    model.away(true);
    let mut reader = one.reader(Lane::Second, Position(0));
    let reading = tokio::task::spawn_blocking(move || reader.next_batch(1 << 10));
    stands_by(&one).await;
    model.away(false);
    let read = tokio::time::timeout(LONG, reading).await.expect("hangs").unwrap();
    assert!(read.is_err() || read.is_ok_and(|batch| batch.corrupt.is_empty()));
    owns_again(&one).await;
    assert_eq!(one.stats().corrupt_records, 0);
    one.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_was_refused_is_tried_again_though_nothing_moves() {
    let (model, broker) = model();
    let one = owner(&broker, "edge-1").await;
    for at in 0..10 {
        stored(&one, Lane::Second, &format!("record {at}")).await;
    }
    model.purges(false);
    one.acknowledge(Lane::Second, Position(9)).unwrap();
    let saved = async {
        while one.saved_cursor(Lane::Second) < Position(10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, saved).await.unwrap();
    assert!(model.messages(Lane::Second).len() > 1);
    model.purges(true);
    let purged = async {
        while model.messages(Lane::Second).len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, purged).await.expect("never tried again");
    one.close();
}

/// Two gateways that are killed and cut off in turn, over a broker that loses a tenth of everything: what was promised is there once
/// more than never, in order, and nothing is invented.
async fn life(seed: u64) {
    let (model, broker) = model();
    let mut random = seed;
    let mut below = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut gateways = vec![gateway(&broker, "edge-0"), gateway(&broker, "edge-1")];
    let (mut promised, mut asked) = (BTreeMap::new(), 0_u64);
    let mut delivered: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..12 {
        model.loses(10, 10, seed + round);
        // Whoever is the owner takes some.
        let taking = async {
            loop {
                for (at, gateway) in gateways.iter().enumerate() {
                    let ours = gateway.standing().borrow().clone();
                    if let Standing::Ours { epoch } = ours {
                        gateway.serve(epoch);
                        if gateway.is_owner() {
                            return at;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let owner = tokio::time::timeout(LONG, taking).await.expect("nobody becomes the owner");
        let mut tickets = Vec::new();
        for _ in 0..below(30) {
            asked += 1;
            if let Ok(ticket) = append(&gateways[owner], Lane::Second, &format!("record {asked}")) {
                tickets.push((asked, ticket));
            }
        }
        match below(4) {
            // In the middle of it.
            0 => {
                gateways[owner].kill();
                gateways[owner] = gateway(&broker, &format!("edge-{owner}"));
            }
            1 => {
                model.away(true);
                tokio::time::sleep(Duration::from_millis(below(400))).await;
                model.away(false);
            }
            2 => gateways[owner].step_down(match &*gateways[owner].standing().borrow() {
                Standing::Ours { epoch } => *epoch,
                Standing::StandingBy { .. } => 0,
            }),
            _ => {}
        }
        for (number, ticket) in tickets {
            if let Ok(position) = tokio::time::timeout(LONG, ticket).await.expect("never answered") {
                let before = promised.insert(position.0, format!("record {number}"));
                assert_eq!(before, None, "one place was promised twice");
            }
        }
        // Some of what is there is delivered, and acknowledged.
        let reader = &gateways[owner];
        if reader.is_owner() {
            let (found, lost) = read_all(reader, Lane::Second, reader.cursor(Lane::Second)).await;
            if reader.is_owner() {
                assert_eq!(lost, 0);
                let take = below(found.len() as u64 + 1) as usize;
                for (position, text) in &found[..take] {
                    let before = delivered.insert(*position, text.clone());
                    assert!(before.is_none_or(|before| before == *text), "another stands at {position}");
                }
                if let Some((position, _)) = found[..take].last() {
                    let _ = reader.acknowledge(Lane::Second, Position(*position));
                }
            }
        }
    }
    model.loses(0, 0, 0);
    gateways.pop().unwrap().close();
    let last = gateways.pop().unwrap();
    owns_again(&last).await;
    let (rest, lost) = read_all(&last, Lane::Second, last.cursor(Lane::Second)).await;
    assert_eq!(lost, 0);
    for (position, text) in rest {
        let before = delivered.insert(position, text.clone());
        assert!(before.is_none_or(|before| before == text), "another stands at {position}");
    }
    for (position, text) in &promised {
        assert_eq!(delivered.get(position), Some(text), "promised at {position}, seed {seed}");
    }
    let numbers: Vec<u64> = delivered.values().map(|text| text["record ".len()..].parse().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "in order, each once: {numbers:?}, seed {seed}");
    last.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_or_cut_off_what_was_promised_is_there_once_and_in_order() {
    let lives = if std::env::var_os("PITHEAD_LONG").is_some_and(|value| value == "1") { 300 } else { 8 };
    for seed in 0..lives {
        life(seed).await;
    }
}

/// The tests of intake, relay, numbers and the refused area, unchanged, each over a broker in memory: this program once more.
#[test]
fn the_envelope_path_keeps_its_promises_over_this_engine_too() {
    // A file that is damaged is fetched anew under it, a record that is lost on a disk, a checkpoint in a file and a folder of before three
    // lanes are the other engine's.
    let others = [
        "a_large_envelope_that_the_disk_has_changed",
        "a_large_envelope_whose_record_is_lost",
        "a_checkpoint_with_a_flipped_bit",
        "what_a_gateway_with_one_lane_has_left",
    ];
    let passed = over_this_engine(
        &["envelopes::intake", "envelopes::relay", "envelopes::numbers", "envelopes::refused"],
        &others,
    );
    assert!(passed > 40, "{passed}");
}

/// The model of the whole contract, unchanged: this program once more. What happens to a disk there happens here to what is published
/// ([`super::stepped`]).
#[test]
fn the_whole_contract_holds_over_this_engine_too_whatever_breaks() {
    let passed = over_this_engine(&["envelopes::contract"], &[]);
    assert!(passed > 3, "{passed}");
}

/// How many tests have passed.
fn over_this_engine(tests: &[&str], but: &[&str]) -> u32 {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.env("PITHEAD_TEST_ENGINE", "replicated").env_remove("NEXTEST");
    command.args(tests);
    command.args(but.iter().flat_map(|name| ["--skip", name]));
    let ended = command.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    let passed = said.split(" passed").next().and_then(|text| text.rsplit(' ').next()?.parse().ok());
    passed.unwrap_or_else(|| panic!("{said}"))
}
