//! For how long a thread has been at one piece of work: so that one which never comes back from the disk can be told from one that
//! waits for work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pulse of one thread. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Mutex<Option<Instant>>>);

/// A piece of work, until it is dropped.
#[derive(Debug)]
pub struct Work<'a>(&'a Pulse);

impl Pulse {
    /// A piece of work begins.
    #[must_use]
    pub fn begin(&self) -> Work<'_> {
        self.set(Some(Instant::now()));
        Work(self)
    }

    /// Since when the thread is at what it is at; nothing while it waits.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_busy_until_its_work_is_over() {
        let pulse = Pulse::default();
        assert_eq!(pulse.busy_for(), None);
        let work = pulse.begin();
        assert!(pulse.busy_for().is_some());
        drop(work);
        assert_eq!(pulse.busy_for(), None);
    }
}
