//! What every line of one site has seen: which numbers are held or were passed on, which are missing, which the device
//! dropped by its own word; and whether what comes now is new, a resend, or other bytes under a used number.
//!
//! Pure: time is an argument, and nothing is read or written. The owner persists by feeding [`Lines::recall`] from what is
//! stored, or by a checkpoint ([`Lines::encode`], [`Lines::decode`]) and the tail after it. A number is *held* from the
//! moment it was offered, and until [`Lines::stored`] or [`Lines::failed`] says how that ended it is *in flight*: a resend
//! meanwhile shares its ticket and its fate.
//!
//! Bounds, each with its reason: see the constants. A device can only hurt its own lines.

mod checkpoint;
mod device;
mod hashes;
mod line;
mod refusal;

use std::collections::HashMap;
use std::time::Duration;

use pithead_sealing::{DeviceId, Line, Seq};

pub use checkpoint::CheckpointError;
use device::Device;
pub use line::LineView;
pub use refusal::LineRefusal;

/// Numbers that a line may jump ahead: a corrupt or hostile number must not make everything after it "old".
pub const SEQ_JUMP_MAX: u64 = 1 << 32;
/// Intervals of what is accounted for on a line, and so the holes that nobody has explained: twice as many as a device of ours keeps
/// ranges that it has not declared yet, since until it has they are holes. 32 kB of memory for the worst of them.
pub const INTERVALS_PER_LINE: usize = 2_048;
/// The same for all of a device's lines together, beyond the one interval that each has anyway; and as much for what was refused.
pub const INTERVALS_PER_DEVICE: usize = 8_192;
/// Declared ranges of a line that are told apart from what came: half a day of driving that has 20 s of radio in every 80 and loses
/// something each time. Beyond, the lowest are settled, and a copy that comes after all is answered as a duplicate.
pub const DECLARED_PER_LINE: usize = 512;
/// The same for all of a device's lines together, beyond the one that each has anyway; the oldest runs are settled first.
pub const DECLARED_PER_DEVICE: usize = 8_192;
/// With [`Unseen::Elsewhere`], intervals of a line or of all lines of a device that wait here: two months of such driving while the way
/// on is down. What has left is let go beyond [`INTERVALS_PER_LINE`] and [`INTERVALS_PER_DEVICE`].
pub const WAITING_INTERVALS: usize = 65_536;
/// Streams of a device.
pub const STREAMS_PER_DEVICE: usize = 16;
/// New runs of a device at once: a one-shot command in a loop works.
pub const RUNS_BURST: u32 = 600;
/// Runs at once that a device only speaks of, in what it declares and in its heartbeats: twice as many as a device of ours keeps
/// ranges that it has not declared yet, each of which may be of another run.
pub const RUNS_SPOKEN_OF_BURST: u32 = 2_048;
/// New runs of a device per hour in the long run, of either kind: a run is kept for 30 days.
pub const RUNS_PER_HOUR: u32 = 60;
/// Hashes of a line that are kept after the envelope has left.
pub const HASHES_KEPT: usize = 1_024;
/// A line that was quiet for this long may be put away, see [`Lines::take_idle`].
pub const IDLE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a line waits for a number that did not get to the disk, before what lies beyond it is taken again: a sender that is
/// alive sends it within moments, and one that has given it up must not be kept waiting for ever.
pub const OWED_FOR: Duration = Duration::from_secs(10);
/// Devices of a site. Only the site's own CA, or a gateway of the site, can name more.
pub const DEVICES_MAX: usize = 100_000;

/// The first 8 bytes of an envelope's SHA-256: enough to tell a resend from other bytes, since whoever could make the two
/// collide has the right to the number anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShortHash(pub [u8; 8]);

impl From<&[u8; 32]> for ShortHash {
    fn from(sha256: &[u8; 32]) -> Self {
        let mut short = [0; 8];
        short.copy_from_slice(&sha256[..8]);
        Self(short)
    }
}

/// What numbers below the first one seen of a line are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unseen {
    /// Missing: lines begin at 1. The decryptor's view, which alone calls a gap a hole.
    Missing,
    /// Elsewhere: a line begins where the Hello says, or with the first number seen if that is at most [`SEQ_JUMP_MAX`], and later
    /// where its oldest intervals were let go because there are too many. A gateway's view: its far end recognises what is forgotten
    /// here, so holes never make it refuse what comes next.
    Elsewhere,
}

/// What is missing, of all lines together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Incomplete {
    /// Lines of which something is.
    pub lines: u64,
    /// Numbers.
    pub numbers: u64,
}

/// What an offered envelope is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<T> {
    /// Not seen before: store it under this ticket, then say [`Lines::stored`] or [`Lines::failed`].
    New(T),
    /// The same bytes are on their way to the disk: share that ticket and its fate.
    InFlight(T),
    /// The same bytes were stored before.
    Duplicate {
        /// The hash is no longer kept, so the bytes could not be compared.
        unverified: bool,
    },
    /// Other bytes were offered or stored under this identity.
    Conflict,
}

/// The lines of one site. `T` is the ticket by which an envelope in flight is waited for.
#[derive(Debug)]
pub struct Lines<T> {
    unseen: Unseen,
    devices: HashMap<DeviceId, Device<T>>,
}

impl<T: Clone> Lines<T> {
    /// No line yet.
    pub fn new(unseen: Unseen) -> Self {
        Self { unseen, devices: HashMap::new() }
    }

    /// Judges an envelope. If it is new, its number is taken from now on, and `ticket` makes what others wait for.
    ///
    /// `now` is time since any fixed point; it never runs backwards.
    ///
    /// # Errors
    /// [`LineRefusal`]; nothing has changed then.
    pub fn offer(
        &mut self,
        line: &Line,
        seq: Seq,
        hash: ShortHash,
        now: Duration,
        ticket: impl FnOnce() -> T,
    ) -> Result<Verdict<T>, LineRefusal> {
        let start = self.start(seq);
        // Also where a line may begin anywhere: the far end, which knows nothing else of the line, would refuse what was
        // acknowledged here. A message id that a stock SDK drew by itself comes with such a number.
        if seq.get() > SEQ_JUMP_MAX && !self.contains(line) {
            return Err(LineRefusal::SeqJump { newest: 0 });
        }
        let device = self.device(&line.device, now)?;
        let verdict = device.offer(line, seq, hash, now, start, ticket)?;
        if matches!(verdict, Verdict::Conflict) {
            device.change(line, |line| line.contested = true);
        }
        Ok(verdict)
    }

    /// What [`offer`](Self::offer) would answer, without taking anything; none where it would take the envelope. For a large
    /// one, before its bytes come.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    pub fn judge(
        &mut self,
        line: &Line,
        seq: Seq,
        hash: ShortHash,
        now: Duration,
    ) -> Result<Option<Verdict<T>>, LineRefusal> {
        let start = self.start(seq);
        if seq.get() > SEQ_JUMP_MAX && !self.contains(line) {
            return Err(LineRefusal::SeqJump { newest: 0 });
        }
        let device = self.device(&line.device, now)?;
        let verdict = device.judge(line, seq, hash, now, start)?;
        if matches!(verdict, Some(Verdict::Conflict)) {
            device.change(line, |line| line.contested = true);
        }
        Ok(verdict)
    }

    /// How a number that is held stands; none if it is not. Nothing is changed by asking, and no line begins.
    pub fn seen(&self, line: &Line, seq: Seq, hash: ShortHash) -> Option<Verdict<T>> {
        self.devices.get(&line.device)?.line(line)?.seen(seq.get(), hash)
    }

    /// Other bytes came under a number of that line, as whoever keeps them knows: at a start.
    pub fn contest(&mut self, line: &Line) {
        if let Some(device) = self.devices.get_mut(&line.device) {
            device.change(line, |line| line.contested = true);
        }
    }

    /// The envelope is durable.
    pub fn stored(&mut self, line: &Line, seq: Seq) {
        if let Some(device) = self.devices.get_mut(&line.device) {
            device.change_declared(line, |line| line.stored(seq.get()));
        }
    }

    /// It was not stored: the number is free again.
    pub fn failed(&mut self, line: &Line, seq: Seq) {
        if let Some(device) = self.devices.get_mut(&line.device) {
            device.change(line, |line| line.failed(seq.get()));
        }
    }

    /// It was not stored, and its sender has been told so, or will be: the number is free again, and until it comes again nothing
    /// beyond it is taken, or a line that was sent in order would not be kept in order. Ends with the number, with a Hello or a
    /// gap beyond it, or [`OWED_FOR`] after the line's last envelope.
    pub fn lost(&mut self, line: &Line, seq: Seq) {
        if let Some(device) = self.devices.get_mut(&line.device) {
            device.change(line, |line| line.lost(seq.get()));
        }
    }

    /// The ticket of the line's highest number that is on its way to the disk.
    pub fn in_flight(&self, line: &Line) -> Option<&T> {
        let state = self.devices.get(&line.device)?.line(line)?;
        state.in_flight.last_key_value().map(|(_, (_, ticket))| ticket)
    }

    /// A durable envelope has left: it was acknowledged by the next hop, or it was applied. Its number stays held, its
    /// hash is one of the last [`HASHES_KEPT`].
    pub fn passed_on(&mut self, line: &Line, seq: Seq) {
        if let Some(device) = self.devices.get_mut(&line.device) {
            device.change_declared(line, |line| line.passed_on(seq.get()));
        }
    }

    /// What was stored turned out to be damaged: the number is missing again, so that a good copy can still come.
    pub fn quarantined(&mut self, line: &Line, seq: Seq) {
        if let Some(device) = self.devices.get_mut(&line.device) {
            device.change(line, |line| line.quarantined(seq.get()));
        }
    }

    /// An envelope under this number was refused for good: the number is used, and no hole. Good bytes that come later
    /// win. False if there is no room to note it.
    pub fn refused(&mut self, line: &Line, seq: Seq, now: Duration) -> bool {
        let start = self.start(seq);
        self.device(&line.device, now)
            .is_ok_and(|device| device.open(line, start, now).is_ok() && device.refuse(line, seq))
    }

    /// The device dropped `from..=to` by its own policy, and says so. Data that comes later wins, until the range is settled. Gives
    /// how many numbers this has explained that were neither declared before nor came; none if there is no room to note it.
    ///
    /// With [`Unseen::Elsewhere`] it opens no line: what lies before the first number seen is not missing there.
    pub fn declare(&mut self, line: &Line, from: Seq, to: Seq, now: Duration) -> Option<u64> {
        if self.unseen == Unseen::Missing {
            self.speak_of(line, now).ok()?;
        }
        self.devices.get_mut(&line.device)?.declare(line, from, to)
    }

    /// The device speaks of a line, of which nothing need have come. It has its place among the device's lines from then on.
    ///
    /// # Errors
    /// [`LineRefusal`]: there is no place for it.
    pub fn speak_of(&mut self, line: &Line, now: Duration) -> Result<(), LineRefusal> {
        let start = self.start(Seq::FIRST);
        self.device(&line.device, now)?.open_spoken_of(line, start, now)
    }

    /// The device is about to send this line from `first_unacked` on. Answers up to which number nothing need be resent;
    /// 0 if it has to send all of it: that is also what is said of a line with a conflict, whose answer may have been lost.
    pub fn hello(&mut self, line: &Line, first_unacked: Seq, now: Duration) -> u64 {
        let start = self.start(first_unacked);
        let Ok(device) = self.device(&line.device, now) else { return 0 };
        if device.open(line, start, now).is_err() {
            return 0;
        }
        device.change(line, |line| line.owes_nothing_before(first_unacked.get()));
        device.line(line).map_or(0, |line| line.durable_from(first_unacked.get()))
    }

    /// Feeds back what is stored, at a start: the envelope is durable and here. No bound is asked: it was accepted once.
    pub fn recall(&mut self, line: &Line, seq: Seq, hash: ShortHash, now: Duration) {
        let start = self.start(seq);
        let unseen = self.unseen;
        let device = self.devices.entry(line.device.clone()).or_insert_with(|| Device::new(unseen, now));
        device.open_unbounded(line, start, now);
        device.change_declared(line, |line| line.recall(seq.get(), hash));
    }

    /// Before [`recall`](Self::recall) or [`refused`](Self::refused), for a number that is written down as new when it came: if it
    /// counts as settled here, it was on its way when the range around it was, and was left out of that. A start reads them in the
    /// order in which they were written, and so the other way round.
    pub fn unsettle(&mut self, line: &Line, seq: Seq) {
        if let Some(device) = self.devices.get_mut(&line.device) {
            device.change(line, |line| line.unsettle(seq.get()));
        }
    }

    /// What a line has seen.
    pub fn view(&self, line: &Line) -> Option<LineView> {
        Some(self.devices.get(&line.device)?.line(line)?.view())
    }

    /// True if the envelope of this number is durable here and has not left.
    pub fn is_here(&self, line: &Line, seq: Seq) -> bool {
        let device = self.devices.get(&line.device);
        device.and_then(|device| device.line(line)).is_some_and(|line| line.spooled.contains(seq.get()))
    }

    /// All lines, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Line, LineView)> + '_ {
        self.devices
            .iter()
            .flat_map(|(name, device)| device.lines(name).map(|(line, state)| (line, state.view())))
    }

    /// Of how many lines numbers are missing that nobody has explained, and how many numbers those are.
    pub fn incomplete(&self) -> Incomplete {
        let mut found = Incomplete::default();
        for missing in self.devices.values().flat_map(Device::missing) {
            found.lines += u64::from(missing > 0);
            found.numbers = found.numbers.saturating_add(missing);
        }
        found
    }

    /// How many numbers devices have declared that did not come.
    pub fn declared(&self) -> u64 {
        self.devices.values().flat_map(Device::declared).fold(0, u64::saturating_add)
    }

    /// For each device with lines in memory, how many of their numbers nobody has explained, and how many it has declared and never
    /// sent. Cheaper than the views, for a screen.
    pub fn unexplained(&self) -> impl Iterator<Item = (&DeviceId, u64, u64)> + '_ {
        self.devices.iter().map(|(name, device)| {
            let (missing, declared) = device.unexplained();
            (name, missing, declared)
        })
    }

    /// How many lines are in memory.
    pub fn len(&self) -> usize {
        self.devices.values().map(Device::len).sum()
    }

    /// True if there is no line.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// True if the line is in memory.
    pub fn contains(&self, line: &Line) -> bool {
        self.devices.get(&line.device).is_some_and(|device| device.line(line).is_some())
    }

    fn start(&self, seq: Seq) -> u64 {
        match self.unseen {
            Unseen::Missing => 1,
            Unseen::Elsewhere => seq.get(),
        }
    }

    fn device(&mut self, name: &DeviceId, now: Duration) -> Result<&mut Device<T>, LineRefusal> {
        if !self.devices.contains_key(name) && self.devices.len() >= DEVICES_MAX {
            return Err(LineRefusal::TooManyDevices);
        }
        let unseen = self.unseen;
        Ok(self.devices.entry(name.clone()).or_insert_with(|| Device::new(unseen, now)))
    }
}
