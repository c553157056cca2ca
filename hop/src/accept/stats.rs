//! What happened at the port, counted. Every way to be refused or cut has its own number.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Live counters.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Count,)+
        }

        /// The counters at one moment. All only ever grow, but for `open`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct AcceptStats {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl AcceptStats {
            /// Names and values, for a metrics page.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }

        impl Counters {
            pub(super) fn read(&self) -> AcceptStats {
                AcceptStats { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counters! {
    /// Connections that are open now, those in their handshake included.
    open,
    /// TCP connections taken from the listener.
    accepted,
    /// Handshakes that ended well.
    admitted,
    /// Turned away: as many connections as there may be.
    refused_full,
    /// Turned away: too many from one address.
    refused_ip,
    /// Handshakes that failed: certificates, versions, noise.
    handshake_failed,
    /// Handshakes that took too long.
    handshake_timed_out,
    /// Without HTTP/2 in ALPN.
    no_alpn,
    /// Cut: no request after the handshake.
    no_first_request,
    /// Closed: nothing asked for long.
    idle,
    /// Ended by an error of HTTP/2, a dead path, or a peer that takes nothing.
    failed,
    /// Asked to go because of their age.
    aged,
    /// Cut: a newer connection of the same identity took the place.
    replaced,
    /// Cut by hand, or because their identity was revoked.
    cut,
    /// Cut because they did not go in time after GOAWAY.
    killed,
    /// Requests turned away by the identity's rate.
    throttled,
    /// Errors of the listener itself, such as no more file descriptors.
    listener_errors,
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sub(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
