//! The connections that live, each with what it was let in by: so that it can be judged again.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::door::Door;
use crate::identity::Peer;

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

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    all: BTreeMap<u64, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    connected: Connected,
    chain: Arc<[CertificateDer<'static>]>,
    cut: CancellationToken,
}

impl Live {
    pub(super) fn enter(
        self: &Arc<Self>,
        connected: Connected,
        chain: Arc<[CertificateDer<'static>]>,
        cut: CancellationToken,
    ) -> LivePlace {
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
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
        unwanted.map(|entry| entry.cut.cancel()).count()
    }

    pub(super) fn list(&self) -> Vec<Connected> {
        self.lock().all.values().map(|entry| entry.connected.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Every change is one insert or one remove.
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
        self.all.lock().all.remove(&self.number);
    }
}
