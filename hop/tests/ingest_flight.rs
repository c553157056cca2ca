//! The sending state machine against a model of a receiver, over a link that loses requests, replies and itself, and
//! that delivers what an abandoned connection still carried.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use pithead_hop::ingest::send::{Flight, ProtocolError, Window};
use pithead_hop::ingest::{Answer, LineRefusal, Lines, NotTaken, ShortHash, Unseen, Verdict};
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;
use pithead_proto::ingest::v1::outcome::What;
use pithead_sealing::{DeviceId, Line, Run, Seq, StreamName};
use proptest::prelude::*;

/// What an envelope is known by: its line and number.
type Token = (u8, u64);

const WINDOW: Window = Window { bytes: 400, envelopes: 12, envelope_bytes: 120 };
const NOW: Duration = Duration::from_secs(1);

fn line(index: u8) -> Line {
    Line {
        device: DeviceId::new("truck-1").unwrap(),
        stream: StreamName::new(["can", "status"][usize::from(index)]).unwrap(),
        run: Run::new(7).unwrap(),
    }
}

/// The bytes of a token's envelope, of a length that differs from one to the next.
fn envelope((line, seq): Token) -> Bytes {
    let mut bytes = vec![line];
    bytes.extend(seq.to_be_bytes());
    bytes.resize(20 + (seq as usize * 37) % 100, 0);
    bytes.into()
}

fn token(envelope: &Bytes) -> Token {
    (envelope[0], u64::from_be_bytes(envelope[1..9].try_into().unwrap()))
}

/// Some will never be taken.
fn is_poison((_, seq): Token) -> bool {
    seq.is_multiple_of(11)
}

#[derive(Debug)]
enum Due {
    Said(Option<What>),
    WhenDurable(Token, bool),
}

#[derive(Debug, Default)]
struct Call {
    last: u64,
    batches: VecDeque<(u64, u64, Vec<Due>)>,
    bytes: u64,
    envelopes: u64,
}

#[derive(Debug)]
struct Receiver {
    lines: Lines<()>,
    writing: VecDeque<Token>,
    durable: BTreeSet<Token>,
    order: Vec<Token>,
    refused: BTreeSet<Token>,
}

impl Receiver {
    fn new() -> Self {
        Self {
            lines: Lines::new(Unseen::Missing),
            writing: VecDeque::new(),
            durable: BTreeSet::new(),
            order: Vec::new(),
            refused: BTreeSet::new(),
        }
    }

    fn take(&mut self, call: &mut Call, batch: wire::Batch) {
        assert_eq!(batch.number, call.last + 1, "batches are numbered 1, 2, 3...");
        call.last = batch.number;
        let bytes = batch.items.iter().map(|item| item.envelope.len() as u64).sum();
        call.bytes += bytes;
        call.envelopes += batch.items.len() as u64;
        assert!(call.bytes <= WINDOW.bytes && call.envelopes <= WINDOW.envelopes, "the window is exceeded");
        let due = batch.items.iter().map(|item| self.offer(token(&item.envelope))).collect();
        call.batches.push_back((batch.number, bytes, due));
    }

    fn offer(&mut self, token: Token) -> Due {
        let (seq, hash) = (Seq::new(token.1).unwrap(), ShortHash(token.1.to_be_bytes()));
        if is_poison(token) {
            self.refused.insert(token);
            assert!(self.lines.refused(&line(token.0), seq, NOW));
            let refusal =
                wire::Refusal { reason: ErrorReason::EnvelopeTruncated as i32, detail: String::new() };
            return Due::Said(Some(What::Refusal(refusal)));
        }
        let verdict: Result<_, LineRefusal> = self.lines.offer(&line(token.0), seq, hash, NOW, || ());
        match verdict.unwrap() {
            Verdict::New(()) => {
                self.writing.push_back(token);
                Due::WhenDurable(token, false)
            }
            Verdict::InFlight(()) => Due::WhenDurable(token, true),
            Verdict::Duplicate { unverified } => {
                Due::Said(Some(What::Duplicate(wire::Duplicate { unverified })))
            }
            Verdict::Conflict => panic!("the same bytes are sent again, never other ones"),
        }
    }

    /// The disk has taken the oldest of what it was given.
    fn commit(&mut self, count: usize) {
        for token in self.writing.drain(..count.min(self.writing.len())) {
            self.lines.stored(&line(token.0), Seq::new(token.1).unwrap());
            assert!(self.durable.insert(token), "{token:?} was stored twice");
            self.order.push(token);
        }
    }

    /// The disk has failed: nothing that it was given is there.
    fn lose(&mut self) {
        for token in std::mem::take(&mut self.writing) {
            self.lines.failed(&line(token.0), Seq::new(token.1).unwrap());
        }
    }

    /// One acknowledgement for all that is answered whole, at most `batches`; an error if an envelope was lost.
    fn acknowledge(&self, call: &mut Call, batches: usize) -> Result<Option<wire::Ack>, ()> {
        let mut ack = None::<wire::Ack>;
        for _ in 0..batches {
            let Some((number, bytes, due)) = call.batches.front() else { break };
            let mut outcomes = Vec::new();
            for (index, due) in due.iter().enumerate() {
                let what = match due {
                    Due::Said(what) => what.clone(),
                    Due::WhenDurable(token, again) if self.durable.contains(token) => {
                        again.then_some(What::Duplicate(wire::Duplicate { unverified: false }))
                    }
                    Due::WhenDurable(token, _) if self.writing.contains(token) => return Ok(ack),
                    Due::WhenDurable(..) => return if ack.is_some() { Ok(ack) } else { Err(()) },
                };
                if what.is_some() {
                    outcomes.push(wire::Outcome { batch: *number, index: index as u32, what });
                }
            }
            let ack = ack.get_or_insert_default();
            ack.through = *number;
            ack.durability = wire::Durability::Disk as i32;
            ack.outcomes.extend(outcomes);
            call.bytes -= bytes;
            call.envelopes -= due.len() as u64;
            call.batches.pop_front();
        }
        Ok(ack)
    }
}

/// One connection: what is under way in both directions, and the receiver's end of it.
#[derive(Debug, Default)]
struct Link {
    requests: VecDeque<wire::Batch>,
    replies: VecDeque<wire::Ack>,
    call: Call,
}

#[derive(Debug)]
struct World {
    to_send: VecDeque<Token>,
    flight: Flight<Token>,
    link: Link,
    abandoned: Vec<Link>,
    receiver: Receiver,
    answers: BTreeMap<Token, Answer>,
}

#[derive(Debug, Clone)]
enum Op {
    Take(usize),
    Send,
    Request,
    Commit(usize),
    DiskFails,
    Acknowledge(usize),
    Reply,
    /// The connection is gone. What it carried is lost, or still arrives later.
    Cut {
        arrives_later: bool,
    },
    /// Something arrives that an abandoned connection carried.
    LateRequest,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..6usize).prop_map(Op::Take),
        6 => Just(Op::Send),
        6 => Just(Op::Request),
        4 => (1..6usize).prop_map(Op::Commit),
        1 => Just(Op::DiskFails),
        4 => (1..4usize).prop_map(Op::Acknowledge),
        5 => Just(Op::Reply),
        2 => any::<bool>().prop_map(|arrives_later| Op::Cut { arrives_later }),
        3 => Just(Op::LateRequest),
    ]
}

impl World {
    fn new(count: u64) -> Self {
        let to_send = (1..=count).flat_map(|seq| [(0, seq), (1, seq)]).collect();
        Self {
            to_send,
            flight: Flight::new(WINDOW, wire::Durability::Disk),
            link: Link::default(),
            abandoned: Vec::new(),
            receiver: Receiver::new(),
            answers: BTreeMap::new(),
        }
    }

    fn cut(&mut self, arrives_later: bool) {
        for token in self.flight.take_unanswered().into_iter().rev() {
            self.to_send.push_front(token);
        }
        self.flight = Flight::new(WINDOW, wire::Durability::Disk);
        let link = std::mem::take(&mut self.link);
        if arrives_later {
            self.abandoned.push(link);
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Take(count) => {
                for _ in 0..count {
                    let Some(token) = self.to_send.pop_front() else { break };
                    if let Err((token, why)) = self.flight.take(token, envelope(token), Vec::new()) {
                        assert_eq!(why, NotTaken::Full);
                        self.to_send.push_front(token);
                        break;
                    }
                }
            }
            Op::Send => self.link.requests.extend(self.flight.next_batch()),
            Op::Request => {
                if let Some(batch) = self.link.requests.pop_front() {
                    self.receiver.take(&mut self.link.call, batch);
                }
            }
            Op::LateRequest => {
                // Whichever has something: the first one's rest comes before the second's, as TCP has it.
                if let Some(link) = self.abandoned.iter_mut().find(|link| !link.requests.is_empty()) {
                    let batch = link.requests.pop_front().unwrap();
                    self.receiver.take(&mut link.call, batch);
                }
            }
            Op::Commit(count) => self.receiver.commit(count),
            Op::DiskFails => {
                self.receiver.lose();
                // All calls that have something in it end; and what was offered there is offered no more.
                self.abandoned.clear();
                self.cut(false);
            }
            Op::Acknowledge(batches) => match self.receiver.acknowledge(&mut self.link.call, batches) {
                Ok(ack) => self.link.replies.extend(ack),
                Err(()) => self.cut(false),
            },
            Op::Reply => {
                if let Some(ack) = self.link.replies.pop_front() {
                    self.answered(ack);
                }
            }
            Op::Cut { arrives_later } => self.cut(arrives_later),
        }
        assert!(
            self.flight.unanswered_bytes() <= WINDOW.bytes && self.flight.unanswered() <= WINDOW.envelopes
        );
    }

    fn answered(&mut self, ack: wire::Ack) {
        for answered in self.flight.acknowledged(ack).unwrap() {
            let (token, answer) = (answered.token, answered.answer);
            if answer.is_held() {
                assert!(
                    self.receiver.durable.contains(&token),
                    "{token:?} was acknowledged and is not there"
                );
            } else {
                assert!(is_poison(token), "{token:?} was refused: {answer:?}");
            }
            assert_eq!(self.answers.insert(token, answer), None, "{token:?} was answered twice");
        }
    }

    /// The link holds from now on.
    fn heal(&mut self, count: u64) {
        self.cut(true);
        for _ in 0..10_000 {
            if self.answers.len() as u64 == 2 * count {
                return;
            }
            for op in [
                Op::LateRequest,
                Op::Take(4),
                Op::Send,
                Op::Request,
                Op::Commit(3),
                Op::Acknowledge(2),
                Op::Reply,
            ] {
                self.step(op);
            }
        }
        panic!("{} of {} were answered", self.answers.len(), 2 * count);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn every_envelope_is_answered_once_whatever_the_link_does(ops in prop::collection::vec(op(), 0..150)) {
        const COUNT: u64 = 24;
        let mut world = World::new(COUNT);
        for op in ops {
            world.step(op);
        }
        world.heal(COUNT);
        let tokens = (1..=COUNT).flat_map(|seq| [(0, seq), (1, seq)]);
        for token in tokens {
            prop_assert_eq!(world.receiver.durable.contains(&token), !is_poison(token));
            prop_assert_eq!(world.receiver.refused.contains(&token), is_poison(token));
        }
        for index in [0, 1] {
            let order: Vec<u64> =
                world.receiver.order.iter().filter(|(line, _)| *line == index).map(|(_, seq)| *seq).collect();
            prop_assert!(order.is_sorted(), "line {} was stored out of order: {:?}", index, order);
            prop_assert!(world.receiver.lines.view(&line(index)).unwrap().missing.is_empty());
        }
    }

    #[test]
    fn no_acknowledgement_makes_the_sender_believe_what_was_not_sent(
        through in 0u64..6, batch in 0u64..6, index in 0u32..4, durability in 0i32..5, known in any::<bool>(),
    ) {
        let mut flight = Flight::new(WINDOW, wire::Durability::Disk);
        for seq in 1..=3 {
            flight.take((0, seq), envelope((0, seq)), Vec::new()).unwrap();
            flight.next_batch().unwrap();
        }
        let what = known.then_some(What::Conflict(wire::Conflict { kept: true }));
        let outcomes = vec![wire::Outcome { batch, index, what }];
        let result = flight.acknowledged(wire::Ack { through, durability, outcomes });
        let good = through <= 3 && (1..=3).contains(&durability) && (1..=through).contains(&batch) && index == 0 && known;
        prop_assert_eq!(result.is_ok(), good, "{:?}", result);
        let answered = result.map_or(0, |answered| answered.len());
        prop_assert_eq!(answered + flight.take_unanswered().len(), 3);
    }
}

fn ack(through: u64) -> wire::Ack {
    wire::Ack { through, durability: wire::Durability::Disk as i32, outcomes: Vec::new() }
}

#[test]
fn a_far_end_that_acknowledges_the_future_or_the_past_is_not_believed() {
    let mut flight = Flight::new(WINDOW, wire::Durability::Disk);
    flight.take((0, 1), envelope((0, 1)), Vec::new()).unwrap();
    // Taken is not sent.
    assert_eq!(flight.acknowledged(ack(1)), Err(ProtocolError::NotSent { through: 1, sent: 0 }));
    flight.next_batch().unwrap();
    assert_eq!(flight.acknowledged(ack(1)).unwrap().len(), 1);
    assert_eq!(flight.acknowledged(ack(1)), Ok(Vec::new()));
    assert_eq!(flight.acknowledged(ack(0)), Err(ProtocolError::Backwards));
}

#[test]
fn an_acknowledgement_may_mean_more_than_promised_and_never_less() {
    let mut flight = Flight::new(WINDOW, wire::Durability::Replicated);
    flight.take((0, 1), envelope((0, 1)), Vec::new()).unwrap();
    flight.next_batch().unwrap();
    assert_eq!(flight.acknowledged(ack(1)), Err(ProtocolError::Durability));
    let applied = wire::Ack { durability: wire::Durability::Applied as i32, ..ack(1) };
    assert_eq!(flight.acknowledged(applied).unwrap().len(), 1);
}

#[test]
fn the_same_envelope_is_not_answered_twice_in_one_acknowledgement() {
    let mut flight = Flight::new(WINDOW, wire::Durability::Disk);
    flight.take((0, 1), envelope((0, 1)), Vec::new()).unwrap();
    flight.next_batch().unwrap();
    let outcome = wire::Outcome {
        batch: 1,
        index: 0,
        what: Some(What::Duplicate(wire::Duplicate { unverified: false })),
    };
    let twice = wire::Ack { outcomes: vec![outcome.clone(), outcome], ..ack(1) };
    assert_eq!(flight.acknowledged(twice), Err(ProtocolError::Outcome));
}

#[test]
fn an_envelope_that_is_too_large_is_told_from_a_window_that_is_full() {
    let mut flight = Flight::new(WINDOW, wire::Durability::Disk);
    assert_eq!(flight.room_for(121), Err(NotTaken::TooLarge { max: 120 }));
    for seq in 0..3 {
        flight.take(seq, Bytes::from(vec![0; 120]), Vec::new()).unwrap();
    }
    assert_eq!(flight.take(3, Bytes::from(vec![0; 120]), Vec::new()), Err((3, NotTaken::Full)));
    flight.take(4, Bytes::from(vec![0; 40]), Vec::new()).unwrap();
    assert_eq!(flight.take_unanswered(), [0, 1, 2, 4]);
}
