//! From an admitted envelope to an opened one: the way that both sources share. Which keys are allowed, who unwraps, who may
//! sign, and how much is opened at once, stand here alone.

use super::answer::Again;
use super::open::{self, INLINE_BYTES, Parcel, Stopped};
use super::scribe::Opened;
use crate::alarms::Alarms;
use crate::books::Books;
use crate::devices::{self, Barred, Devices, Origin};
use crate::metrics::Metrics;
use crate::unwrap::{DataKeys, Sender, SessionKey};
use arc_swap::ArcSwap;
use pithead_hop::trace::span::Span;
use pithead_sealing::envelope::Profile;
use pithead_sealing::envelope::open::{Chosen, Unlocked};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Envelopes being opened at once: they compute, and each may hold an inflated batch of 64 MiB.
const OPENING: usize = 4;

/// Large envelopes being opened at once, beside them: each may take minutes, and nobody's small one waits for that.
const OPENING_LARGE: usize = 2;

/// Opens envelopes. One for the whole program.
#[derive(Debug)]
pub struct Opener {
    /// Which keys are known.
    pub books: Arc<ArcSwap<Books>>,
    /// Data keys.
    pub data_keys: Arc<DataKeys>,
    /// Whose session signatures are believed.
    pub devices: Arc<ArcSwap<Devices>>,
    alarms: Alarms,
    opening: Semaphore,
    opening_large: Semaphore,
}

impl Opener {
    /// Opens what is sealed to the keys of these books.
    #[must_use]
    pub fn new(
        books: Arc<ArcSwap<Books>>,
        data_keys: Arc<DataKeys>,
        devices: Arc<ArcSwap<Devices>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            books,
            data_keys,
            devices,
            alarms: Alarms::new(metrics),
            opening: Semaphore::new(OPENING),
            opening_large: Semaphore::new(OPENING_LARGE),
        }
    }

    /// Chooses the EDK that policy allows.
    pub fn choose(&self, parcel: &Parcel) -> Result<Chosen, Stopped> {
        let books = self.books.load();
        open::choose(parcel, |arn| books.knows(arn))
    }

    /// Its data key: one private operation at most, and none if it is at hand. Cancel safe.
    pub async fn data_key(&self, chosen: &Chosen, sender: &Sender) -> Result<Arc<SessionKey>, Stopped> {
        Ok(self.data_keys.data_key(chosen, sender).await?)
    }

    /// The same; if it takes a private operation, within that span.
    pub async fn data_key_within(
        &self,
        chosen: &Chosen,
        sender: &Sender,
        span: impl Fn() -> Span,
    ) -> Result<Arc<SessionKey>, Stopped> {
        Ok(self.data_keys.data_key_within(chosen, sender, span).await?)
    }

    /// Who sealed it, and whether that will do as things stand; `bar` is asked with the registry of devices that was in force.
    pub fn judge<F: FnOnce(&Devices, &Origin) -> Option<Barred>>(
        &self,
        profile: &Profile,
        session: &Arc<SessionKey>,
        bar: F,
    ) -> impl FnOnce(&Unlocked) -> Result<Origin, Barred> + use<F> {
        let devices = self.devices.load_full();
        let (profile, session) = (profile.clone(), Arc::clone(session));
        move |unlocked| {
            let origin = devices::prove(unlocked, &profile, &session, &devices)?;
            match bar(&devices, &origin) {
                Some(barred) => Err(barred),
                None => Ok(origin),
            }
        }
    }

    /// Opens it, here if that is a moment's work, else on a thread that may block. A large one goes into a file in `staging`.
    pub async fn open(
        &self,
        parcel: &Parcel,
        chosen: Chosen,
        session: Arc<SessionKey>,
        staging: &Path,
        judge: impl FnOnce(&Unlocked) -> Result<Origin, Barred> + Send + 'static,
    ) -> Result<Opened, Stopped> {
        let opening = if parcel.large.is_some() { &self.opening_large } else { &self.opening };
        let _opening = opening.acquire().await.map_err(|_| Stopped::Again(super::lost()))?;
        if let Some(large) = &parcel.large {
            let (parcel, large, staging) = (parcel.clone(), large.clone(), staging.to_owned());
            return tokio::task::spawn_blocking(move || {
                open::open_large(&parcel, &large, &staging, chosen, session.unwrapped(), judge)
            })
            .await
            .map_err(|_| Stopped::Again(super::lost()))?;
        }
        if parcel.sealed.len() <= INLINE_BYTES && parcel.profile.encoding().is_none() {
            return open::open(parcel, chosen, session.unwrapped(), judge);
        }
        let parcel = parcel.clone();
        tokio::task::spawn_blocking(move || open::open(&parcel, chosen, session.unwrapped(), judge))
            .await
            .map_err(|_| Stopped::Again(super::lost()))?
    }

    /// Computes on a thread that may block, as one who opens.
    pub async fn blocking<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Again> {
        let _opening = self.opening.acquire().await.map_err(|_| super::lost())?;
        tokio::task::spawn_blocking(compute).await.map_err(|_| super::lost())
    }

    /// The same for a large envelope: these have places of their own.
    pub async fn blocking_large<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Again> {
        let _opening = self.opening_large.acquire().await.map_err(|_| super::lost())?;
        tokio::task::spawn_blocking(compute).await.map_err(|_| super::lost())
    }

    /// An envelope was authentic: what it says of its device's statement is held against the books.
    pub fn saw(&self, profile: &Profile) {
        let books = self.books.load();
        self.alarms.saw(&books, profile.identity(), profile.statement(), profile.created());
    }
}
