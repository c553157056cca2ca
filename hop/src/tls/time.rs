//! Time as the TLS client may know it: trusted, or only a lower bound.
//!
//! A vehicle's battery clock is not believed. What a vehicle without a trusted clock does know is that it is *not
//! earlier* than the last signed time that it has seen, and that whoever made a certificate made it before now.

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// What is known about now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownTime {
    /// By a trusted clock: NTS, authenticated PTP or set by an operator; on a gateway or in the cloud, the system's.
    Trusted(UnixTime),
    /// Not earlier than this; how much later nobody can say.
    AtLeast(UnixTime),
}

/// Where the client's time comes from. The device client answers with its trusted clock or its signed floor; gateway and
/// decryptor with [`SystemClock`].
pub trait TimeSource: std::fmt::Debug + Send + Sync {
    /// What is known now.
    fn now(&self) -> KnownTime;
}

/// The system's clock, for machines whose clock is looked after.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl TimeSource for SystemClock {
    fn now(&self) -> KnownTime {
        KnownTime::Trusted(UnixTime::now())
    }
}

/// Hands rustls the bound; the verifier in [`super::client`] decides what to make of it.
#[derive(Debug)]
pub(super) struct Bound(pub(super) std::sync::Arc<dyn TimeSource>);

impl TimeProvider for Bound {
    fn current_time(&self) -> Option<UnixTime> {
        match self.0.now() {
            KnownTime::Trusted(now) | KnownTime::AtLeast(now) => Some(now),
        }
    }
}
