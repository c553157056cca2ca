//! The real private key behind a door that can be held shut.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pithead_sealing::trust::KeyArn;
use tokio::sync::Semaphore;

use super::{KeyUnwrapper, LocalKeys, Unwrapping};
use crate::authority::testing::TestKey;
use crate::kms::{KmsError, KmsFault};

/// Nobody gets through the door while somebody holds all of it.
pub(crate) const WIDE: u32 = 1000;

/// Counts, waits for permits, and fails on demand; then it is the real thing.
#[derive(Debug)]
pub(crate) struct Door {
    real: LocalKeys,
    pub(crate) open: Semaphore,
    calls: AtomicU64,
    fault: Mutex<Option<KmsFault>>,
}

impl Door {
    pub(crate) fn of(key: &TestKey) -> Arc<Self> {
        Self::before(LocalKeys::load([(key.arn.clone(), key.pem.as_path())]).unwrap())
    }

    pub(crate) fn before(real: LocalKeys) -> Arc<Self> {
        let open = Semaphore::new(WIDE as usize);
        Arc::new(Self { real, open, calls: AtomicU64::new(0), fault: Mutex::default() })
    }

    pub(crate) fn fail(&self, fault: Option<KmsFault>) {
        *self.fault.lock().unwrap() = fault;
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl KeyUnwrapper for Door {
    fn unwrap<'a>(&'a self, arn: &'a KeyArn, ciphertext: &'a [u8]) -> Unwrapping<'a> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let _permit = self.open.acquire().await.unwrap();
            let fault = *self.fault.lock().unwrap();
            match fault {
                Some(fault) => Err(KmsError::new(fault, "on demand").into()),
                None => self.real.unwrap(arn, ciphertext).await,
            }
        })
    }

    fn may_hold(&self, arn: &KeyArn) -> bool {
        self.real.may_hold(arn)
    }
}
