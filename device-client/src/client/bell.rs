//! What wakes the thread that seals: a record that begins a batch, a full batch, a command, a finished write.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Wake, Waker},
    time::Duration,
};

use crate::state::lock;

/// Rung by anybody, heard by one thread. Rings that nobody waits for are kept as one.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    condvar: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        let mut rung = lock(&self.rung);
        if !*rung {
            *rung = true;
            drop(rung);
            self.condvar.notify_one();
        }
    }

    /// Waits for a ring, for at most `limit` if there is one.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let mut rung = lock(&self.rung);
        if !*rung {
            rung = match limit {
                None => self.condvar.wait_while(rung, |rung| !*rung).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let waited = self.condvar.wait_timeout_while(rung, limit, |rung| !*rung);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        *rung = false;
    }

    /// A waker that rings.
    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
