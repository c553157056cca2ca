//! Data keys that were unwrapped before (envelope document, 2.3).
//!
//! Filed under SHA-256(key ARN || 0 || EDK ciphertext), at most 50,000 of them, each for at most an hour. Promised:
//!
//! - **One flight per EDK.** A thousand envelopes of one session that arrive at once cost one private operation. What
//!   that flight fails with is told to all who waited, and forgotten: the next one asks anew.
//! - **An invalid EDK is remembered apart** (10,000, one hour), fed by "invalid ciphertext" alone, so that resending
//!   rubbish costs nothing. Throttling or a denied call never gets there: it would turn an outage into lost envelopes.
//! - **The digest of this message's context is compared on every hit, in constant time.** A mismatch condemns the
//!   message, never the EDK: whoever copies a good EDK into a bad envelope must not be able to poison the good ones.
//! - **Budgets** are charged for private operations alone, by whoever leads the flight.
//!
//! - **A session's signature is judged once** for each state of the registry of device keys, and kept with the data key.
//!
//! Data keys are cleared when the last user drops them; [`DataKeys::sweep`] lets an idle program forget on time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pithead_hop::trace::span::Span;
use pithead_sealing::envelope::open::Chosen;
use pithead_sealing::envelope::{ContextDigest, Edk, EdkFault, EdkHash, SessionVerdict, Unwrapped};
use pithead_sealing::trust::KeyArn;
use pithead_sealing::{DeviceId, Site};

use super::KeyUnwrapper;
use super::budget::{Bucket, Budgets, MAX_SENDERS, Sender, take};
use super::error::{BudgetOf, UnwrapError};

/// How much is remembered, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Data keys: 50,000 sessions are 500 devices' day. About 15 MiB.
    pub keys: u64,
    /// From unwrapping on, however often it is used: a key that KMS would refuse now is not used much longer.
    pub key_age: Duration,
    /// Invalid EDKs: 32 bytes each.
    pub invalid: u64,
    /// How long they are remembered.
    pub invalid_age: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { keys: 50_000, key_age: hour, invalid: 10_000, invalid_age: hour }
    }
}

/// What has happened here since the start.
#[derive(Debug, Default)]
pub struct UnwrapCounters {
    hits: AtomicU64,
    unwraps: AtomicU64,
    unwrap_failures: AtomicU64,
    invalid_remembered: AtomicU64,
    context_mismatches: AtomicU64,
    over_budget: AtomicU64,
}

impl UnwrapCounters {
    /// (name, count) of each counter.
    pub fn snapshot(&self) -> [(&'static str, u64); 6] {
        [
            ("hits", self.hits()),
            ("unwraps", self.unwraps()),
            ("unwrap_failures", self.failures()),
            ("invalid_remembered", self.invalid_remembered.load(Ordering::Relaxed)),
            ("context_mismatches", self.context_mismatches.load(Ordering::Relaxed)),
            ("over_budget", self.over_budget()),
        ]
    }

    /// Data keys that were at hand, or under way for somebody else.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Private operations that failed.
    pub fn failures(&self) -> u64 {
        self.unwrap_failures.load(Ordering::Relaxed)
    }

    /// Data keys that were not unwrapped because a budget was used up.
    pub fn over_budget(&self) -> u64 {
        self.over_budget.load(Ordering::Relaxed)
    }

    /// Private operations begun: calls of the [`KeyUnwrapper`].
    pub fn unwraps(&self) -> u64 {
        self.unwraps.load(Ordering::Relaxed)
    }
}

/// What is kept of a session: its data key, and what its signature was found to say.
#[derive(Debug)]
pub struct SessionKey {
    unwrapped: Unwrapped,
    judged: Mutex<Option<(u64, SessionVerdict)>>,
}

impl SessionKey {
    /// Of a data key that was just unwrapped; nothing is judged yet.
    #[must_use]
    pub fn new(unwrapped: Unwrapped) -> Self {
        Self { unwrapped, judged: Mutex::new(None) }
    }

    /// The data key with its context's digest.
    #[must_use]
    pub fn unwrapped(&self) -> &Unwrapped {
        &self.unwrapped
    }

    /// The verdict on the session by the registry of this generation: the one that is kept, or else what `judge` finds. Many
    /// who ask at once wait for one verification.
    pub fn verdict(&self, generation: u64, judge: impl FnOnce() -> SessionVerdict) -> SessionVerdict {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        match *judged {
            // An envelope that is late with an older registry leaves the newer verdict alone.
            Some((of, verdict)) if of == generation => verdict,
            Some((of, _)) if of > generation => judge(),
            _ => {
                let verdict = judge();
                *judged = Some((generation, verdict));
                verdict
            }
        }
    }
}

type Shared<K> = moka::sync::Cache<K, Arc<Mutex<Bucket>>>;

/// Data keys by EDK: the cache, its budgets and the unwrapper behind them. Shared by all connections.
pub struct DataKeys {
    unwrapper: Arc<dyn KeyUnwrapper>,
    keys: moka::future::Cache<EdkHash, Arc<SessionKey>>,
    invalid: moka::sync::Cache<EdkHash, ()>,
    budgets: Budgets,
    devices: Shared<(Site, DeviceId)>,
    gateways: Shared<(Site, String)>,
    total: Mutex<Bucket>,
    counters: UnwrapCounters,
}

impl DataKeys {
    /// An empty cache in front of `unwrapper`.
    pub fn new(unwrapper: Arc<dyn KeyUnwrapper>, limits: CacheLimits, budgets: Budgets) -> DataKeys {
        let keys =
            moka::future::Cache::builder().max_capacity(limits.keys).time_to_live(limits.key_age).build();
        let invalid = moka::sync::Cache::builder()
            .max_capacity(limits.invalid)
            .time_to_live(limits.invalid_age)
            .build();
        DataKeys {
            unwrapper,
            keys,
            invalid,
            budgets,
            devices: forgetful(),
            gateways: forgetful(),
            total: Mutex::new(Bucket::full(budgets.total_per_s, budgets.total_burst, Instant::now())),
            counters: UnwrapCounters::default(),
        }
    }

    /// Whether anybody here may hold the private half of this key.
    #[must_use]
    pub fn may_unwrap(&self, arn: &KeyArn) -> bool {
        self.unwrapper.may_hold(arn)
    }

    /// The data key of the EDK that was chosen for an envelope. Version, suite and policy have been judged: only then
    /// is there a [`Chosen`].
    ///
    /// One private operation at most. Cancel safe: if the one who leads a flight is dropped, another waiter leads.
    ///
    /// # Errors
    /// [`UnwrapError`]; its class says what to do with the envelope.
    pub async fn data_key(&self, chosen: &Chosen, sender: &Sender) -> Result<Arc<SessionKey>, UnwrapError> {
        self.data_key_within(chosen, sender, Span::default).await
    }

    /// The same; if it takes a private operation, within that span.
    ///
    /// # Errors
    /// As [`DataKeys::data_key`].
    pub async fn data_key_within(
        &self,
        chosen: &Chosen,
        sender: &Sender,
        span: impl Fn() -> Span,
    ) -> Result<Arc<SessionKey>, UnwrapError> {
        let context = chosen.header().context().digest();
        self.unwrapped(chosen.key_arn(), chosen.edk(), &context, sender, span).await
    }

    async fn unwrapped(
        &self,
        arn: &KeyArn,
        edk: &Edk,
        context: &ContextDigest,
        sender: &Sender,
        span: impl Fn() -> Span,
    ) -> Result<Arc<SessionKey>, UnwrapError> {
        let hash = edk.hash();
        let session = loop {
            if self.invalid.contains_key(&hash) {
                self.counters.invalid_remembered.fetch_add(1, Ordering::Relaxed);
                return Err(UnwrapError::InvalidCiphertext);
            }
            let leads = AtomicBool::new(false);
            let flight = async {
                leads.store(true, Ordering::Relaxed);
                self.fly(arn, edk, hash, sender, span()).await
            };
            match self.keys.try_get_with(hash, flight).await {
                Ok(session) => {
                    if !leads.load(Ordering::Relaxed) {
                        self.counters.hits.fetch_add(1, Ordering::Relaxed);
                    }
                    break session;
                }
                // Another sender's budget says nothing of this one's. Each sender ends the loop as its own leader.
                Err(error)
                    if !leads.load(Ordering::Relaxed) && matches!(*error, UnwrapError::Budget { .. }) => {}
                Err(error) => return Err((*error).clone()),
            }
        };
        // Equality of digests is constant in time.
        if session.unwrapped().context_digest() != context {
            self.counters.context_mismatches.fetch_add(1, Ordering::Relaxed);
            return Err(UnwrapError::Edk(EdkFault::ContextDigest));
        }
        Ok(session)
    }

    async fn fly(
        &self,
        arn: &KeyArn,
        edk: &Edk,
        hash: EdkHash,
        sender: &Sender,
        mut span: Span,
    ) -> Result<Arc<SessionKey>, UnwrapError> {
        self.charge(sender, Instant::now())
            .inspect_err(|_| {
                self.counters.over_budget.fetch_add(1, Ordering::Relaxed);
            })
            .inspect_err(|error| span.failed(|| error.reason().name().to_owned()))?;
        self.counters.unwraps.fetch_add(1, Ordering::Relaxed);
        match self.unwrapper.unwrap(arn, edk.ciphertext()).await {
            Ok(unwrapped) => Ok(Arc::new(SessionKey::new(unwrapped))),
            Err(error) => {
                span.failed(|| error.reason().name().to_owned());
                self.counters.unwrap_failures.fetch_add(1, Ordering::Relaxed);
                if matches!(error, UnwrapError::InvalidCiphertext) {
                    self.invalid.insert(hash, ());
                }
                Err(error)
            }
        }
    }

    fn charge(&self, sender: &Sender, now: Instant) -> Result<(), UnwrapError> {
        let limits = &self.budgets;
        let fresh = |per_s, burst| Arc::new(Mutex::new(Bucket::full(per_s, burst, now)));
        let device = (sender.site.clone(), sender.device.clone());
        let device = self.devices.get_with(device, || fresh(limits.device_per_s, limits.device_burst));
        let gateway = sender.gateway.as_ref().map(|gateway| {
            let gateway = (sender.site.clone(), gateway.clone());
            self.gateways.get_with(gateway, || fresh(limits.gateway_per_s, limits.gateway_burst))
        });
        // Always in this order, so that no two of them wait for each other.
        let mut device = lock(&device);
        let mut gateway = gateway.as_deref().map(lock);
        let mut total = lock(&self.total);
        let mut buckets = Vec::with_capacity(3);
        buckets.push((BudgetOf::Device, &mut *device));
        buckets.extend(gateway.as_deref_mut().map(|gateway| (BudgetOf::Gateway, gateway)));
        buckets.push((BudgetOf::Total, &mut *total));
        take(&mut buckets, now)
    }

    /// What has happened here.
    pub fn counters(&self) -> &UnwrapCounters {
        &self.counters
    }

    /// Data keys held.
    pub fn held(&self) -> u64 {
        self.keys.entry_count()
    }

    /// Clears what has expired. Expired keys are never used, but their memory is cleared at the next use of the cache
    /// only: a program that may be idle calls this every minute.
    pub async fn sweep(&self) {
        self.keys.run_pending_tasks().await;
        self.invalid.run_pending_tasks();
    }
}

fn forgetful<K: std::hash::Hash + Eq + Send + Sync + 'static>() -> Shared<K> {
    moka::sync::Cache::builder().max_capacity(MAX_SENDERS).time_to_idle(Duration::from_secs(3600)).build()
}

fn lock(bucket: &Mutex<Bucket>) -> std::sync::MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for DataKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKeys")
            .field("unwrapper", &self.unwrapper)
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}
