//! The connections that live, each with what it was let in by: so that it can be judged again. And when each device was
//! last there.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::Instant;

use super::{door::Door, permits::Cut, stats::Ended};
use crate::identity::{Peer, PeerId};

/// One connection that lives.
#[derive(Debug, Clone)]
pub struct Connected {
    /// Who it is.
    pub peer: Peer,
    /// Where it comes from.
    pub from: SocketAddr,
    /// When its handshake had ended.
    pub since: Instant,
}

/// As many as there are connections, so as many as the port allows.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Entries>);

/// Devices that are remembered as seen. Each has shown a certificate of its site's CA, or has an address that the operator
/// has named; past this many, new ones are not remembered.
const SEEN_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    all: BTreeMap<u64, Entry>,
    /// When each device's last connection began or ended.
    seen: BTreeMap<PeerId, Instant>,
}

impl Entries {
    fn see(&mut self, peer: &Peer) {
        let room = self.seen.len() < SEEN_MAX || self.seen.contains_key(&peer.id);
        if room && peer.device().is_some() {
            self.seen.insert(peer.id.clone(), Instant::now());
        }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    connected: Connected,
    chain: Arc<[CertificateDer<'static>]>,
    cut: Cut,
}

impl Live {
    pub(super) fn enter(
        self: &Arc<Self>,
        connected: Connected,
        chain: Arc<[CertificateDer<'static>]>,
        cut: Cut,
    ) -> LivePlace {
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
        entries.see(&connected.peer);
        entries.all.insert(number, Entry { connected, chain, cut });
        LivePlace { all: self.clone(), number }
    }

    /// Cuts everybody whom `door` would not let in at `now`; says how many. Signatures are verified, so it takes a fraction
    /// of a millisecond for each, and not under the lock.
    pub(super) fn cut_who_is_not_admitted(&self, door: &Door, now: UnixTime) -> usize {
        let entries: Vec<Entry> = self.lock().all.values().cloned().collect();
        let unwanted = entries.iter().filter(|entry| {
            let Connected { peer, from, .. } = &entry.connected;
            !door.admits(peer, &entry.chain, *from, now)
        });
        unwanted.map(|entry| entry.cut.now(Ended::Cut)).count()
    }

    /// Cuts everybody whose peer is `unwanted`; says how many. Whoever is not in here yet is judged by the door when it is.
    pub(super) fn cut(&self, unwanted: impl Fn(&Peer) -> bool) -> usize {
        let entries: Vec<Entry> = self.lock().all.values().cloned().collect();
        let found = entries.iter().filter(|entry| unwanted(&entry.connected.peer));
        found.map(|entry| entry.cut.now(Ended::Cut)).count()
    }

    pub(super) fn list(&self) -> Vec<Connected> {
        self.lock().all.values().map(|entry| entry.connected.clone()).collect()
    }

    /// When each device was last connected.
    pub(super) fn seen(&self) -> BTreeMap<PeerId, Instant> {
        let mut entries = self.lock();
        let there: Vec<Peer> = entries.all.values().map(|entry| entry.connected.peer.clone()).collect();
        there.iter().for_each(|peer| entries.see(peer));
        entries.seen.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Every change is whole inserts and removes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's entry; dropping it takes it out.
#[derive(Debug)]
pub(super) struct LivePlace {
    all: Arc<Live>,
    number: u64,
}

impl Drop for LivePlace {
    fn drop(&mut self) {
        let mut entries = self.all.lock();
        if let Some(entry) = entries.all.remove(&self.number) {
            entries.see(&entry.connected.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_in_is_cut_by_name_and_nobody_else() {
        let live = Arc::new(Live::default());
        let enter = |name: &str| {
            let id = PeerId::from_uri(&format!("spiffe://pit/device/{name}")).expect("good");
            let assurance = crate::identity::Assurance::Vouched;
            let peer = Peer { id, certificate_sha256: None, assurance, passed_on_by: None };
            let from = SocketAddr::from(([10, 0, 0, 1], 40_000));
            let cut = Cut::default();
            // Alone: with no place in the roster yet, as in the moment between its handshake and its first call.
            let place =
                live.enter(Connected { peer, from, since: Instant::now() }, Arc::from([]), cut.clone());
            (place, cut)
        };
        let (stolen, honest) = (enter("stolen"), enter("honest"));
        assert_eq!(live.cut(|peer| peer.id.to_string().ends_with("/stolen")), 1);
        assert_eq!(stolen.1.why(), Some(Ended::Cut));
        assert_eq!(honest.1.why(), None);
        drop(stolen.0);
        assert_eq!(live.cut(|_| true), 1, "who has gone is not counted");
    }
}
