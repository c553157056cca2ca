//! A spool on a disk that crashes, whose work is done when the caller says so: for the tests of crates that stand on a spool.
//!
//! Only the feature `crash` makes it, and only dev-dependencies turn that on. What [`Spool::open`] gives to threads of its own
//! lies in [`Steps`] here: nothing is written, synced or given back between two calls of the test. So one seed is one life, and
//! a life that goes wrong can be lived again and shortened.
//!
//! The disk forgets what a disk may forget: see [`CrashDisk::crash`].

use crate::crash::CrashFs;
use crate::error::OpenError;
use crate::fs::Lock;
use crate::options::Options;
use crate::owner::{Owner, Preparer, Work};
use crate::recover::Recovery;
use crate::shared::Shared;
use crate::spool::{Spool, assemble};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
pub struct CrashDisk(CrashFs);

/// The work of a spool, step by step. Dropping it is the end of the process: whoever waits is told.
pub struct Steps {
    shared: Arc<Shared>,
    owner: Owner,
    preparer: Preparer,
    _lock: Box<dyn Lock>,
}

impl CrashDisk {
    /// An empty disk. The seed decides what survives its crashes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(CrashFs::new(seed))
    }

    /// Opens the spool that lies here, or begins one.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn open(&self, options: Options) -> Result<(Spool, Steps, Recovery), OpenError> {
        let parts = assemble(Arc::new(self.0.clone()), Path::new("/spool"), options)?;
        let spool = Spool::without_threads(Arc::clone(&parts.shared));
        let steps =
            Steps { shared: parts.shared, owner: parts.owner, preparer: parts.preparer, _lock: parts.lock };
        Ok((spool, steps, parts.recovery))
    }

    /// As [`CrashDisk::open`], with threads of its own as [`Spool::open`] gives it.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn run(&self, options: Options) -> Result<(Spool, Recovery), OpenError> {
        let dir = Path::new("/spool");
        Spool::run(assemble(Arc::new(self.0.clone()), dir, options)?, dir)
    }

    /// From now on no sync returns, as on a disk whose cable is out; until it is told otherwise.
    pub fn hang_syncs(&self, hang: bool) {
        let hanging = Arc::clone(&self.0.disk().hanging);
        *hanging.0.lock().unwrap_or_else(PoisonError::into_inner) = hang;
        hanging.1.notify_all();
    }

    /// The power goes before the n-th write, sync or change of a name from now on; until [`CrashDisk::crash`] nothing works.
    pub fn cut_power_after(&self, operations: u64) {
        self.0.disk().cut_after = Some(operations);
    }

    /// The n-th sync of data from now on fails: some of it is on the disk, and the rest calls itself clean.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.0.disk().fail_sync_after = Some(syncs);
    }

    /// Files can grow by so many bytes; by any number with `None`.
    pub fn limit(&self, bytes: Option<u64>) {
        self.0.disk().space = bytes;
    }

    /// The power is off.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.0.disk().is_dead()
    }

    /// The power goes, and comes back. Of what was not synced, each sector of 512 bytes survives by chance, in any version
    /// written since the last sync; changes of names survive up to some point. What a former process holds is void.
    pub fn crash(&self) {
        self.0.disk().crash();
    }

    /// The process is killed; what it has written stays. What it holds is void.
    pub fn kill(&self) {
        self.0.disk().kill();
    }
}

impl Steps {
    /// Writes and syncs one group of each lane that has something waiting. False if there was nothing.
    pub fn commit(&mut self) -> bool {
        let waits = self.owner.work(&self.shared.lock()) == Some(Work::Commit);
        if waits {
            self.owner.commit();
        }
        waits
    }

    /// Writes down what was acknowledged, and gives back what lies before.
    pub fn save_cursors(&mut self) {
        self.owner.save_cursors();
    }

    /// Makes the spare segments that are wanted.
    pub fn prepare(&mut self) {
        let lanes = self.shared.lock().lanes.len();
        (0..lanes).for_each(|lane| self.preparer.prepare(lane));
    }

    /// A while has passed since the disk was full.
    pub fn retry_full(&mut self) {
        self.owner.retry_full();
    }

    /// The orderly end: everything that waits is written, and the closing mark. Lets go of the disk.
    pub fn close(mut self) {
        self.shared.lock().closing = true;
        while self.commit() {}
        // A mark that could not be written costs a second delivery, and nothing else.
        let _ = self.owner.close();
    }
}

impl fmt::Debug for CrashDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashDisk").field("dead", &self.is_dead()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lane, Record};
    use std::time::{Duration, Instant};

    #[test]
    fn a_sync_that_does_not_return_shows_as_work_that_lasts_and_waiting_for_work_does_not() {
        let disk = CrashDisk::new(1);
        let (spool, _) = disk.run(Options::outbox()).unwrap();
        let append = || spool.append(Lane::First, Record::new(1, 0, &b"head"[..], &b"body"[..])).unwrap();
        append().wait().unwrap();
        let until = |what: &str, holds: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !holds() {
                assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
                std::thread::yield_now();
            }
        };
        until("idle", &|| spool.busy_for().is_none());
        let syncs = spool.stats().sync_times.counts.iter().sum::<u64>();
        assert_eq!(syncs, spool.stats().syncs);
        disk.hang_syncs(true);
        let ticket = append();
        until("stuck for long", &|| spool.busy_for() > Some(Duration::from_millis(50)));
        disk.hang_syncs(false);
        ticket.wait().unwrap();
        until("idle again", &|| spool.busy_for().is_none());
        let stats = spool.stats();
        assert!(stats.sync_times.sum_us >= 50_000, "{:?}", stats.sync_times);
    }
}
