//! Who may have how many connections, and how many requests.
//!
//! Maps hold one entry per address or identity that has a connection now, so the bound on connections bounds them too; and one
//! per address that came lately, which has a bound of its own.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{asking::Unfinished, stats::Ended};
use crate::identity::{Peer, PeerId};

/// The address that a host is counted by: one host of IPv6 has a whole /64.
pub fn host_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// Connections per source address.
#[derive(Debug)]
pub(super) struct PerIp {
    limit: AtomicUsize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

impl PerIp {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), counts: Mutex::default() })
    }

    /// From now on so many. Whoever has more keeps them.
    pub(super) fn change(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// A place for one more from this address, given back when dropped.
    pub(super) fn take(self: &Arc<Self>, ip: IpAddr) -> Option<IpPlace> {
        let ip = host_of(ip);
        let mut counts = lock(&self.counts);
        let count = counts.entry(ip).or_default();
        if *count >= self.limit.load(Ordering::Relaxed) {
            return None;
        }
        *count += 1;
        Some(IpPlace { all: self.clone(), ip })
    }
}

#[derive(Debug)]
pub(super) struct IpPlace {
    all: Arc<PerIp>,
    ip: IpAddr,
}

impl Drop for IpPlace {
    fn drop(&mut self) {
        let mut counts = lock(&self.all.counts);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

/// Addresses whose rate is remembered. Beyond that the rate of all alone counts: whoever has so many addresses is not held by
/// a rate of each.
const ADDRESSES_MAX: usize = 16_384;
/// As many as this are looked through at the first time, and then whenever there are twice as many as were left.
const ADDRESSES_LOOK: usize = 1_024;

/// How fast new connections come, in all and from one address.
#[derive(Debug)]
pub(super) struct Arrivals {
    state: Mutex<Lately>,
}

#[derive(Debug)]
struct Lately {
    rate: Rate,
    per_ip: Rate,
    all: Bucket,
    /// Of addresses that are not at their full burst again.
    by_ip: HashMap<IpAddr, Bucket>,
    look_at: usize,
}

impl Arrivals {
    pub(super) fn new(rate: Rate, per_ip: Rate, now: Instant) -> Self {
        let all = Bucket::full(rate, now);
        let lately = Lately { rate, per_ip, all, by_ip: HashMap::new(), look_at: ADDRESSES_LOOK };
        Self { state: Mutex::new(lately) }
    }

    /// From now on other rates. Nobody gets back what was used up.
    pub(super) fn change(&self, rate: Rate, per_ip: Rate) {
        let mut state = lock(&self.state);
        (state.rate, state.per_ip) = (rate, per_ip);
    }

    /// Whether one more may come from there now. One address that comes too fast takes nothing from the others.
    pub(super) fn take(&self, ip: IpAddr, now: Instant) -> bool {
        let ip = host_of(ip);
        let mut state = lock(&self.state);
        let Lately { rate, per_ip, all, by_ip, look_at } = &mut *state;
        let (rate, per_ip) = (*rate, *per_ip);
        let mut own = by_ip.get(&ip).copied().unwrap_or_else(|| Bucket::full(per_ip, now));
        if own.take(per_ip, now).is_err() || all.take(rate, now).is_err() {
            return false;
        }
        if by_ip.len() >= *look_at {
            by_ip.retain(|_, bucket| !bucket.is_full(per_ip, now));
            *look_at = (by_ip.len() * 2).clamp(ADDRESSES_LOOK, ADDRESSES_MAX);
        }
        if by_ip.len() < ADDRESSES_MAX || by_ip.contains_key(&ip) {
            by_ip.insert(ip, own);
        }
        true
    }
}

/// A connection is left alone for so long while we wait for its half of the handshake: the round trips of a bad radio, and our own
/// queue when a whole fleet comes back.
const LEFT_ALONE: Duration = Duration::from_secs(2);

/// Connections whose half of the handshake we wait for, by when we began to. When the port is full, whoever has been silent for
/// longest makes room for whoever comes: so those who say nothing cannot shut out those who speak.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_age: BTreeMap<(Instant, u64), CancellationToken>,
}

impl Silent {
    /// We wait from now on, until the place is dropped. `go` is cancelled if it has to make room.
    pub(super) fn wait(self: &Arc<Self>, go: CancellationToken, now: Instant) -> SilentPlace {
        let mut waiting = lock(&self.0);
        let key = (now, waiting.next);
        waiting.next += 1;
        waiting.by_age.insert(key, go);
        SilentPlace { all: self.clone(), key }
    }

    /// Cuts whoever has been silent for longest, if that is long enough. Whether there was one.
    pub(super) fn make_room(&self, now: Instant) -> bool {
        let mut waiting = lock(&self.0);
        match waiting.by_age.first_entry() {
            Some(oldest) if now.saturating_duration_since(oldest.key().0) >= LEFT_ALONE => {
                oldest.remove().cancel();
                true
            }
            Some(_) | None => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct SilentPlace {
    all: Arc<Silent>,
    key: (Instant, u64),
}

impl Drop for SilentPlace {
    fn drop(&mut self) {
        lock(&self.all.0).by_age.remove(&self.key);
    }
}

/// The end of a connection from outside: asked for once, with its reason.
#[derive(Debug, Clone, Default)]
pub(super) struct Cut(Arc<(CancellationToken, OnceLock<Ended>)>);

impl Cut {
    /// The first reason counts.
    pub(super) fn now(&self, why: Ended) {
        let _ = self.0.1.set(why);
        self.0.0.cancel();
    }

    /// Why it was asked for, if it was.
    #[cfg(test)]
    pub(super) fn why(&self) -> Option<Ended> {
        self.0.1.get().copied()
    }

    /// Resolves when it is asked for.
    pub(super) async fn asked(&self) -> Ended {
        self.0.0.cancelled().await;
        self.0.1.get().copied().unwrap_or(Ended::Cut)
    }
}

/// The live connections by identity: counted by it, and the oldest cut when they are too many.
#[derive(Debug)]
pub(super) struct Roster {
    bounds: ArcSwap<Bounds>,
    holders: Mutex<Holders>,
}

/// What one identity may.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    limit: usize,
    rate: Rate,
    /// Bytes of requests that it may have begun and not ended.
    unfinished: usize,
}

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    by_id: HashMap<PeerId, Holder>,
}

#[derive(Debug)]
struct Holder {
    /// Oldest first.
    connections: VecDeque<Entry>,
    bucket: Arc<Mutex<Bucket>>,
    unfinished: Arc<Unfinished>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    peer: Peer,
    cut: Cut,
}

impl Roster {
    pub(super) fn new(limit: usize, rate: Rate, unfinished: usize) -> Arc<Self> {
        let bounds = Bounds { limit: limit.max(1), rate, unfinished };
        Arc::new(Self { bounds: ArcSwap::from_pointee(bounds), holders: Mutex::default() })
    }

    /// From now on other bounds; that of unfinished bytes for those who are not connected yet.
    pub(super) fn change(&self, limit: usize, rate: Rate, unfinished: usize) {
        self.bounds.store(Arc::new(Bounds { limit: limit.max(1), rate, unfinished }));
    }

    /// Enters a connection, of one who may ask for as much as so many devices. If its identity has too many connections, the oldest is
    /// cut; the answer says whether.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: &Peer,
        devices: u32,
        cut: Cut,
        now: Instant,
    ) -> (RosterPlace, bool) {
        let Bounds { limit, rate, unfinished } = **self.bounds.load();
        let (rate, unfinished) = (rate.times(devices), unfinished.saturating_mul(devices as usize));
        let mut holders = lock(&self.holders);
        let number = holders.next;
        holders.next += 1;
        let holder = holders.by_id.entry(peer.id.clone()).or_insert_with(|| Holder {
            connections: VecDeque::new(),
            bucket: Arc::new(Mutex::new(Bucket::full(rate, now))),
            unfinished: Unfinished::new(unfinished),
        });
        let mut replaced = false;
        while holder.connections.len() >= limit {
            if let Some(oldest) = holder.connections.pop_front() {
                oldest.cut.now(Ended::Replaced);
                replaced = true;
            }
        }
        holder.connections.push_back(Entry { number, peer: peer.clone(), cut });
        let place = RosterPlace {
            all: self.clone(),
            id: peer.id.clone(),
            number,
            devices,
            bucket: holder.bucket.clone(),
            unfinished: holder.unfinished.clone(),
        };
        (place, replaced)
    }

    /// Everybody who is connected, each once per connection.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let holders = lock(&self.holders);
        holders
            .by_id
            .values()
            .flat_map(|holder| &holder.connections)
            .map(|entry| entry.peer.clone())
            .collect()
    }
}

/// One connection's entry; dropping it takes it out.
#[derive(Debug)]
pub(super) struct RosterPlace {
    all: Arc<Roster>,
    id: PeerId,
    number: u64,
    devices: u32,
    bucket: Arc<Mutex<Bucket>>,
    unfinished: Arc<Unfinished>,
}

impl RosterPlace {
    /// What the identity has begun to send and not ended, over all its connections.
    pub(super) fn unfinished(&self) -> Arc<Unfinished> {
        self.unfinished.clone()
    }

    /// Takes one request from the identity's rate; says how long to wait if there is none.
    pub(super) fn request(&self, now: Instant) -> Result<(), Duration> {
        lock(&self.bucket).take(self.all.bounds.load().rate.times(self.devices), now)
    }
}

impl Drop for RosterPlace {
    fn drop(&mut self) {
        let mut holders = lock(&self.all.holders);
        if let Some(holder) = holders.by_id.get_mut(&self.id) {
            holder.connections.retain(|entry| entry.number != self.number);
            if holder.connections.is_empty() {
                holders.by_id.remove(&self.id);
            }
        }
    }
}

/// So many per second in the long run, and so many at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) per_second: u32,
    pub(super) burst: u32,
}

impl Rate {
    /// Of so many together.
    fn times(self, many: u32) -> Self {
        let times = |one: u32| one.saturating_mul(many);
        Self { per_second: times(self.per_second), burst: times(self.burst) }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst.max(1)), at: now }
    }

    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.take_many(1, rate, now)
    }

    /// Takes so many, all or none; says how long to wait until that many are there.
    pub(super) fn take_many(&mut self, many: u32, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.tokens = self.holds(rate, now);
        self.at = now;
        let many = f64::from(many);
        if self.tokens >= many {
            self.tokens -= many;
            return Ok(());
        }
        Err(Duration::from_secs_f64((many - self.tokens) / f64::from(rate.per_second.max(1))))
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.holds(rate, now) >= f64::from(rate.burst.max(1))
    }

    fn holds(&self, rate: Rate, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate.per_second.max(1));
        (self.tokens + gained).min(f64::from(rate.burst.max(1)))
    }
}

/// A panic while the lock was held leaves whole entries behind: every change here is a single step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Assurance;

    fn peer(name: &str) -> Peer {
        let id = PeerId::from_uri(&format!("spiffe://pit/device/{name}")).expect("good");
        Peer { id, certificate_sha256: None, assurance: Assurance::Vouched, passed_on_by: None }
    }

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn an_address_gets_its_places_back() {
        let all = PerIp::new(2);
        let ip: IpAddr = "10.0.0.1".parse().expect("an address");
        let (first, _second) = (all.take(ip).expect("one"), all.take(ip).expect("two"));
        assert!(
            all.take("::ffff:10.0.0.1".parse().expect("mapped")).is_none(),
            "the same host in another spelling"
        );
        assert!(all.take("10.0.0.2".parse().expect("another")).is_some());
        drop(first);
        assert!(all.take(ip).is_some());
        drop(_second);
        assert!(lock(&all.counts).is_empty(), "an address without connections leaves nothing behind");
    }

    #[test]
    fn one_connection_too_many_cuts_the_oldest_of_that_identity_only() {
        let all = Roster::new(2, RATE, 1 << 20);
        let now = Instant::now();
        let cuts: Vec<Cut> = (0..4).map(|_| Cut::default()).collect();
        let asked = |cut: &Cut| cut.0.0.is_cancelled();
        let (_other, replaced) = all.enter(&peer("b"), 1, cuts[3].clone(), now);
        assert!(!replaced);
        let places: Vec<_> = (0..3).map(|i| all.enter(&peer("a"), 1, cuts[i].clone(), now)).collect();
        assert_eq!(places.iter().map(|(_, replaced)| *replaced).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(cuts.iter().map(asked).collect::<Vec<_>>(), [true, false, false, false]);
        assert_eq!(all.peers().len(), 3);
        drop(places);
        assert_eq!(all.peers(), [peer("b")]);
        assert!(!asked(&cuts[3]));
        assert_eq!(cuts[0].0.1.get(), Some(&Ended::Replaced));
    }

    #[test]
    fn whoever_brings_many_devices_may_ask_for_as_much_as_they() {
        let all = Roster::new(4, RATE, 1 << 20);
        let start = Instant::now();
        let (gateway, _) = all.enter(&peer("a"), 10, Cut::default(), start);
        let (device, _) = all.enter(&peer("b"), 1, Cut::default(), start);
        let asks = |place: &RosterPlace, now| (0..1_000).take_while(|_| place.request(now).is_ok()).count();
        assert_eq!((asks(&gateway, start), asks(&device, start)), (30, 3));
        let later = start + Duration::from_millis(100);
        assert_eq!((asks(&gateway, later), asks(&device, later)), (10, 1));
    }

    #[test]
    fn a_burst_is_served_and_then_the_rate() {
        let all = Roster::new(4, RATE, 1 << 20);
        let start = Instant::now();
        let (one, _) = all.enter(&peer("a"), 1, Cut::default(), start);
        let (two, _) = all.enter(&peer("a"), 1, Cut::default(), start);
        assert!(one.request(start).is_ok() && two.request(start).is_ok() && one.request(start).is_ok());
        let wait = two.request(start).expect_err("connections of one identity share its rate");
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
        assert!(two.request(start + wait).is_ok());
        assert!(two.request(start + Duration::from_secs(3600)).is_ok());
    }
    #[test]
    fn whoever_has_been_silent_for_longest_makes_room_and_nobody_before_its_time() {
        let silent = Arc::new(Silent::default());
        let start = Instant::now();
        let tokens: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        let mut places: Vec<_> = (0..3)
            .map(|at| silent.wait(tokens[at as usize].clone(), start + Duration::from_millis(at)))
            .collect();
        assert!(!silent.make_room(start + LEFT_ALONE - Duration::from_millis(1)));
        // The first has spoken meanwhile.
        places.remove(0);
        assert!(!silent.make_room(start + LEFT_ALONE));
        assert!(silent.make_room(start + LEFT_ALONE + Duration::from_millis(1)));
        assert_eq!(
            tokens.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>(),
            [false, true, false]
        );
        drop(places);
        assert!(lock(&silent.0).by_age.is_empty());
    }

    #[test]
    fn other_bounds_count_for_whoever_comes_next_and_take_nothing_from_those_who_are_there() {
        let (start, ip) = (Instant::now(), IpAddr::from([10, 0, 0, 1]));
        let places = PerIp::new(2);
        let _held: Vec<_> = (0..2).map(|_| places.take(ip).expect("one of two")).collect();
        places.change(1);
        assert!(places.take(ip).is_none());
        places.change(3);
        assert!(places.take(ip).is_some());

        let slow = Rate { per_second: 1, burst: 1 };
        let arrivals = Arrivals::new(RATE, slow, start);
        assert!(arrivals.take(ip, start) && !arrivals.take(ip, start));
        arrivals.change(RATE, Rate { per_second: 100, burst: 10 });
        assert!(!arrivals.take(ip, start), "what was used up is");
        assert!(arrivals.take(ip, start + Duration::from_millis(10)));

        let roster = Roster::new(2, slow, 1 << 20);
        let (first, _) = roster.enter(&peer("a"), 1, Cut::default(), start);
        assert!(first.request(start).is_ok() && first.request(start).is_err());
        roster.change(1, Rate { per_second: 100, burst: 10 }, 1 << 20);
        assert!(
            first.request(start + Duration::from_millis(10)).is_ok(),
            "who is connected has the new rate"
        );
        let (_second, replaced) = roster.enter(&peer("a"), 1, Cut::default(), start);
        assert!(replaced, "and one connection where there may be one");
    }

    #[test]
    fn one_host_of_ipv6_is_one_however_many_addresses_it_has() {
        let all = PerIp::new(1);
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let _place = all.take(ip("2001:db8:1:2::1")).expect("one");
        assert!(all.take(ip("2001:db8:1:2:ffff::9")).is_none());
        assert!(all.take(ip("2001:db8:1:3::1")).is_some());
    }

    #[test]
    fn an_address_that_comes_too_fast_is_turned_away_and_takes_nothing_from_the_others() {
        let start = Instant::now();
        let arrivals =
            Arrivals::new(Rate { per_second: 1, burst: 5 }, Rate { per_second: 1, burst: 2 }, start);
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let from = |last: u8, now| arrivals.take(ip(last), now);
        assert_eq!([from(1, start), from(1, start)], [true, true]);
        for _ in 0..100 {
            assert!(!from(1, start));
        }
        assert_eq!([from(2, start), from(3, start), from(4, start)], [true; 3]);
        assert!(!from(5, start), "the rate of all is used up");
        let later = start + Duration::from_secs(1);
        assert!(from(1, later) && !from(1, later));
    }

    #[test]
    fn addresses_are_forgotten_when_they_have_their_burst_again_and_never_more_than_so_many_are_kept() {
        let rate = Rate { per_second: u32::MAX, burst: u32::MAX };
        let start = Instant::now();
        let arrivals = Arrivals::new(rate, Rate { per_second: 1, burst: 2 }, start);
        let ip = |number: u32| IpAddr::from(number.to_be_bytes());
        for number in 0..ADDRESSES_MAX as u32 + 5_000 {
            assert!(arrivals.take(ip(number), start));
        }
        assert_eq!(lock(&arrivals.state).by_ip.len(), ADDRESSES_MAX);
        assert!(arrivals.take(ip(u32::MAX), start + Duration::from_secs(2)));
        assert_eq!(lock(&arrivals.state).by_ip.len(), 1);
    }
}
