//! Who may have how many connections, and how many requests.
//!
//! Maps hold one entry per address or identity that has a connection now, so the bound on connections bounds them too.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::identity::{Peer, PeerId};

/// Connections per source address.
#[derive(Debug)]
pub(super) struct PerIp {
    limit: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

impl PerIp {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, counts: Mutex::default() })
    }

    /// A place for one more from this address, given back when dropped.
    pub(super) fn take(self: &Arc<Self>, ip: IpAddr) -> Option<IpPlace> {
        let ip = ip.to_canonical();
        let mut counts = lock(&self.counts);
        let count = counts.entry(ip).or_default();
        if *count >= self.limit {
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

/// The live connections by identity: counted, found and cut by it.
#[derive(Debug)]
pub(super) struct Roster {
    limit: usize,
    rate: Rate,
    holders: Mutex<Holders>,
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
}

#[derive(Debug)]
struct Entry {
    number: u64,
    peer: Peer,
    cut: CancellationToken,
}

impl Roster {
    pub(super) fn new(limit: usize, rate: Rate) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), rate, holders: Mutex::default() })
    }

    /// Enters a connection. If its identity has too many, the oldest is cut; the answer says whether.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: &Peer,
        cut: CancellationToken,
        now: Instant,
    ) -> (RosterPlace, bool) {
        let mut holders = lock(&self.holders);
        let number = holders.next;
        holders.next += 1;
        let holder = holders.by_id.entry(peer.id.clone()).or_insert_with(|| Holder {
            connections: VecDeque::new(),
            bucket: Arc::new(Mutex::new(Bucket { tokens: f64::from(self.rate.burst), at: now })),
        });
        let mut replaced = false;
        while holder.connections.len() >= self.limit {
            if let Some(oldest) = holder.connections.pop_front() {
                oldest.cut.cancel();
                replaced = true;
            }
        }
        holder.connections.push_back(Entry { number, peer: peer.clone(), cut });
        let place =
            RosterPlace { all: self.clone(), id: peer.id.clone(), number, bucket: holder.bucket.clone() };
        (place, replaced)
    }

    /// Cuts every connection whose peer is `unwanted`; says how many.
    pub(super) fn cut(&self, unwanted: impl Fn(&Peer) -> bool) -> usize {
        let holders = lock(&self.holders);
        let found = holders
            .by_id
            .values()
            .flat_map(|holder| &holder.connections)
            .filter(|entry| unwanted(&entry.peer));
        found.map(|entry| entry.cut.cancel()).count()
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
    bucket: Arc<Mutex<Bucket>>,
}

impl RosterPlace {
    /// Takes one request from the identity's rate; says how long to wait if there is none.
    pub(super) fn request(&self, now: Instant) -> Result<(), Duration> {
        lock(&self.bucket).take(self.all.rate, now)
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

/// Requests per second in the long run, and at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) per_second: u32,
    pub(super) burst: u32,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let per_second = f64::from(rate.per_second.max(1));
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * per_second;
        self.tokens = (self.tokens + gained).min(f64::from(rate.burst.max(1)));
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / per_second))
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
        Peer { id, certificate_sha256: None, assurance: Assurance::Vouched }
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
        let all = Roster::new(2, RATE);
        let now = Instant::now();
        let cuts: Vec<CancellationToken> = (0..4).map(|_| CancellationToken::new()).collect();
        let (_other, replaced) = all.enter(&peer("b"), cuts[3].clone(), now);
        assert!(!replaced);
        let places: Vec<_> = (0..3).map(|i| all.enter(&peer("a"), cuts[i].clone(), now)).collect();
        assert_eq!(places.iter().map(|(_, replaced)| *replaced).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(
            cuts.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        assert_eq!(all.peers().len(), 3);
        drop(places);
        assert_eq!(all.peers(), [peer("b")]);
        assert_eq!(all.cut(|peer| peer.id.to_string().ends_with("/b")), 1);
        assert!(cuts[3].is_cancelled());
    }

    #[test]
    fn a_burst_is_served_and_then_the_rate() {
        let all = Roster::new(4, RATE);
        let start = Instant::now();
        let (one, _) = all.enter(&peer("a"), CancellationToken::new(), start);
        let (two, _) = all.enter(&peer("a"), CancellationToken::new(), start);
        assert!(one.request(start).is_ok() && two.request(start).is_ok() && one.request(start).is_ok());
        let wait = two.request(start).expect_err("connections of one identity share its rate");
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
        assert!(two.request(start + wait).is_ok());
        assert!(two.request(start + Duration::from_secs(3600)).is_ok());
    }
}
