//! What waits to be put: a bundle per lane that is being filled, and before it what a large envelope has made ready.
//!
//! Bounded: a lane holds one bundle that is full, and what is under way is another one. At eight megabytes a bundle, four of them
//! are what the relay needs in memory, and some heads.

use std::collections::VecDeque;
use std::time::Duration;

use pithead_hop::bundle::{
    Content, Large as StoredLarge, LargeName, Origin, PackError, Packed, Packer, SpoolId,
};
use pithead_hop::identity::GatewayName;
use pithead_hop::ingest::Hop;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Line;
use pithead_spool::{Lane, Position, Record};
use tokio::time::Instant;

use super::super::feeds::Feeds;
use super::super::large::{Large, LargeSent};
use super::super::progress::Progress;
use super::super::turns::Turns;
use super::super::{Ended, Relay, Sent};
use super::{Call, Sender};
use crate::envelopes::lanes::LANES;
use crate::envelopes::record::Head;

/// A bundle on its way, with all that is needed when it is answered.
pub(super) struct Outgoing {
    pub(super) packed: Packed,
    pub(super) members: Vec<Sent>,
    records: Vec<Record>,
    /// The line of the large envelope that its one entry names, if it is such a bundle.
    pub(super) large: Option<Line>,
    released: bool,
}

impl Outgoing {
    pub(super) fn lane(&self) -> Lane {
        self.packed.name.lane
    }

    pub(super) fn len(&self) -> usize {
        self.members.len() + usize::from(self.large.is_some())
    }
}

/// A bundle that is being filled.
struct Filling {
    packer: Packer,
    members: Vec<Sent>,
    records: Vec<Record>,
    since: Instant,
    /// The next record of its lane did not fit.
    closed: bool,
}

impl Filling {
    fn new(packer: Packer) -> Self {
        Self { packer, members: Vec::new(), records: Vec::new(), since: Instant::now(), closed: false }
    }

    fn is_full(&self) -> bool {
        self.closed || self.packer.is_full()
    }

    fn is_due(&self, delay: Duration) -> bool {
        !self.packer.is_empty() && (self.is_full() || self.since.elapsed() >= delay)
    }

    /// Gives back what does not fit.
    #[expect(clippy::result_large_err, reason = "it is what came in, and goes into the next one at once")]
    fn push(
        &mut self,
        own: &GatewayName,
        sent: Sent,
        record: Record,
    ) -> Result<(), (PackError, Sent, Record)> {
        let hops = custody(&sent.head, own, record.at_ms, sent.conflict);
        match self.packer.push(sent.position, &hops, Content::Here(sent.envelope.clone())) {
            Ok(()) => {
                if self.members.is_empty() {
                    self.since = Instant::now();
                }
                self.members.push(sent);
                self.records.push(record);
                Ok(())
            }
            Err(error) => Err((error, sent, record)),
        }
    }

    fn into_records(self) -> impl DoubleEndedIterator<Item = (Position, Record)> {
        self.members.into_iter().map(|sent| sent.position).zip(self.records)
    }

    fn finish(self, released: bool) -> Option<Outgoing> {
        let Self { packer, members, records, .. } = self;
        Some(Outgoing { packed: packer.finish()?, members, records, large: None, released })
    }
}

/// Who took it in. A record that was refused before custody was kept with it has none: then it is this gateway's word alone.
fn custody(head: &Head, gateway: &GatewayName, at_ms: u64, conflict: bool) -> Vec<Hop> {
    let mut hops = head.hops.clone();
    if hops.is_empty() {
        let (gateway, received_us) = (gateway.to_string(), at_ms.saturating_mul(1_000));
        hops.push(Hop { gateway, received_us, ..Hop::default() });
    }
    if let Some(own) = hops.last_mut() {
        own.conflict |= conflict;
    }
    hops
}

#[derive(Default)]
struct LaneGathered {
    /// Bundles that name a large envelope: before everything else of the lane.
    large: VecDeque<(Outgoing, u64)>,
    /// What waited behind a large one of its line. Lower places than in `usual`, so a bundle of its own, and before that.
    released: Option<Filling>,
    usual: Option<Filling>,
}

/// See the module above.
pub(super) struct Gathered {
    origin: Origin,
    size: u64,
    lanes: [LaneGathered; LANES],
    turns: Turns,
}

impl Gathered {
    pub(super) fn new(sender: &Sender, (gateway, spool): (GatewayName, SpoolId), size: u64) -> Self {
        let origin = Origin { site: sender.site.clone(), gateway, spool, lane: Lane::First };
        Self { origin, size, lanes: Default::default(), turns: Turns::default() }
    }

    fn filling(
        &mut self,
        lane: Lane,
        which: impl Fn(&mut LaneGathered) -> &mut Option<Filling>,
    ) -> &mut Filling {
        let Self { origin, size, lanes, .. } = self;
        which(&mut lanes[lane.index()]).get_or_insert_with(|| Filling::new(packer(origin, lane, *size)))
    }

    fn usual(&mut self, lane: Lane) -> &mut Filling {
        self.filling(lane, |here| &mut here.usual)
    }

    /// For what waited behind a large one. What has been gathered beside it goes out as it is: what is read from now on lies behind
    /// both on its line, and so does the name of the bundle that it goes into.
    fn released(&mut self, lane: Lane) -> &mut Filling {
        if let Some(usual) = self.lanes[lane.index()].usual.as_mut().filter(|usual| !usual.packer.is_empty())
        {
            usual.closed = true;
        }
        self.filling(lane, |here| &mut here.released)
    }

    /// A large envelope is whole in the store: a bundle that names it.
    pub(super) fn add_large(
        &mut self,
        own: &GatewayName,
        line: &Line,
        sent: LargeSent,
    ) -> Result<(), PackError> {
        let mut packer = packer(&self.origin, sent.lane, self.size);
        let hops = custody(&sent.head, own, sent.at_ms, false);
        let header_sha256 = sent.head.sha256;
        let name = LargeName::new(sent.head.identity.clone(), &header_sha256);
        let content = Content::Large(StoredLarge { name, total: sent.total, header_sha256 });
        packer.push(sent.position, &hops, content)?;
        let bytes = packer.bytes();
        if let Some(packed) = packer.finish() {
            let (members, records, large) = (Vec::new(), Vec::new(), Some(line.clone()));
            let outgoing = Outgoing { packed, members, records, large, released: false };
            self.lanes[sent.lane.index()].large.push_back((outgoing, bytes));
        }
        Ok(())
    }

    /// What each lane would put now.
    fn first(&self, delay: Duration) -> [Option<u64>; LANES] {
        self.lanes.each_ref().map(|lane| {
            let large = lane.large.front().map(|(_, bytes)| *bytes);
            // Nothing is gained by waiting: it has waited behind a large one.
            let released = || lane.released.as_ref().filter(|filling| !filling.packer.is_empty());
            let usual = || lane.usual.as_ref().filter(|filling| filling.is_due(delay));
            let bytes = |filling: &Filling| filling.packer.bytes();
            large.or_else(|| released().map(bytes)).or_else(|| usual().map(bytes))
        })
    }

    /// Whose turn it is, and for how many bytes.
    pub(super) fn next(&self, delay: Duration) -> Option<(Lane, u64)> {
        let first = self.first(delay);
        let lane = self.turns.next(&first)?;
        Some((Lane::from_index(lane)?, first[lane]?))
    }

    /// Takes the bundle of a lane whose turn it is.
    pub(super) fn take(&mut self, lane: Lane) -> Option<Outgoing> {
        // Everything that has been gathered counts for whose turn is next: it is as good as due when this one is through.
        let first = self.first(Duration::ZERO);
        self.turns.sent(lane.index(), &first);
        let here = &mut self.lanes[lane.index()];
        if let Some((outgoing, _)) = here.large.pop_front() {
            return Some(outgoing);
        }
        if let Some(filling) = here.released.take() {
            return filling.finish(true);
        }
        here.usual.take()?.finish(false)
    }

    /// When the next bundle is old enough to go out as it is.
    pub(super) fn old_at(&self, delay: Duration) -> Option<Instant> {
        let filling = self.lanes.iter().filter_map(|lane| lane.usual.as_ref());
        filling
            .filter(|filling| !filling.packer.is_empty() && !filling.is_due(delay))
            .map(|f| f.since + delay)
            .min()
    }

    /// What was packed and is not in the store goes back to where it came from, and what was gathered behind it too; whoever
    /// takes it again passes over what has been settled since.
    pub(super) fn give_back(&mut self, outgoing: Outgoing, feeds: &mut Feeds, large: &mut Large) {
        let (lane, released) = (outgoing.lane(), outgoing.released);
        let here = &mut self.lanes[lane.index()];
        let behind = if released { here.released.take() } else { here.usual.take() };
        let behind = behind.into_iter().flat_map(Filling::into_records);
        let packed = outgoing.members.into_iter().map(|sent| sent.position).zip(outgoing.records);
        for (position, record) in packed.chain(behind).rev() {
            match released {
                true => large.put_back((lane, position, record)),
                false => feeds.put_back(lane, position, record),
            }
        }
    }
}

fn packer(origin: &Origin, lane: Lane, size: u64) -> Packer {
    Packer::new(Origin { lane, ..origin.clone() }, size)
}

impl Relay {
    /// Fills the bundles with what has been read, each lane in its order; reads on where there is room.
    pub(super) async fn gather(&self, call: &mut Call, progress: &mut Progress) -> Result<(), Ended> {
        loop {
            while let Some(lane) = call.feeds.at_once() {
                self.read(&mut call.feeds, lane).await?;
            }
            self.gather_released(call, progress).await?;
            let mut took = false;
            for lane in Lane::ALL {
                took |= self.gather_lane(call, lane, progress).await?;
            }
            if !took {
                return Ok(());
            }
        }
    }

    async fn gather_released(&self, call: &mut Call, progress: &mut Progress) -> Result<(), Ended> {
        while let Some((lane, position, record)) = call.large.take_ready() {
            let Some((sent, record)) =
                self.goes_now(&mut call.large, (lane, position, record), true, progress)
            else {
                continue;
            };
            let filling = call.gathered.released(lane);
            if filling.is_full() {
                call.large.put_back((lane, position, record));
                return Ok(());
            }
            match filling.push(&call.own, sent, record) {
                Ok(()) => {}
                // Another one, behind this one: also where two lines have been released out of the order of their places.
                Err((PackError::Full | PackError::Order, _, record)) => {
                    filling.closed = true;
                    call.large.put_back((lane, position, record));
                    return Ok(());
                }
                Err((error, sent, _)) => self.not_packed(&sent, error, progress).await?,
            }
        }
        Ok(())
    }

    async fn gather_lane(&self, call: &mut Call, lane: Lane, progress: &mut Progress) -> Result<bool, Ended> {
        let mut took = false;
        loop {
            let filling = call.gathered.usual(lane);
            // What was put back waits behind no large one, and large ones wait for it.
            if filling.is_full() || call.large.is_full() && !call.feeds.is_put_back(lane) {
                return Ok(took);
            }
            let Some((position, record)) = call.feeds.take(lane) else { return Ok(took) };
            took = true;
            let Some((sent, record)) =
                self.goes_now(&mut call.large, (lane, position, record), false, progress)
            else {
                continue;
            };
            match filling.push(&call.own, sent, record) {
                Ok(()) => progress.sent(lane, position),
                Err((PackError::Full, _, record)) => {
                    filling.closed = true;
                    call.feeds.put_back(lane, position, record);
                    return Ok(took);
                }
                Err((error, sent, _)) => self.not_packed(&sent, error, progress).await?,
            }
        }
    }

    /// No bundle can hold it.
    async fn not_packed(&self, sent: &Sent, error: PackError, progress: &mut Progress) -> Result<(), Ended> {
        let reason = match error {
            PackError::Size => ErrorReason::EnvelopeTooLarge,
            _ => ErrorReason::RequestInvalid,
        };
        Ok(self.not_sent(sent, reason, error.to_string(), progress).await?)
    }
}
