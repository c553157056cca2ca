//! What happened at the port, counted. Every connection is refused for one reason, or its handshake ends in one way; and if
//! it ended well, the connection ends in one way. So the numbers add up:
//!
//! ```text
//! accepted         = refused + handshakes under way + handshakes by outcome
//! handshakes ok    = connections that are served now + ended by reason
//! ```

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

macro_rules! outcomes {
    ($(#[doc = $kind:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[doc = $kind])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// Their names in metrics and logs.
            pub const NAMES: [&'static str; Self::ALL.len()] = [$($label),+];

            /// Its name in metrics and logs.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

outcomes! {
    /// Why a connection was turned away before its handshake.
    Refused {
        /// As many connections as there may be.
        Full = "full",
        /// Too many connections from one address.
        PerAddress = "per_address",
        /// More new connections in a second than there may be, from this address or in all.
        Rate = "rate",
    }
}

outcomes! {
    /// How a handshake ended.
    Handshake {
        /// Well: a peer that we know.
        Ok = "ok",
        /// Noise, another protocol, another version, or the other end went away.
        Failed = "failed",
        /// No certificate, one that does not hold or is revoked, or one that names nobody.
        Certificate = "certificate",
        /// Without HTTP/2 in ALPN.
        NoAlpn = "no_alpn",
        /// It took too long.
        TimedOut = "timed_out",
        /// Cut: we waited for it for long, and the port was full.
        MadeRoom = "made_room",
        /// The port was closed meanwhile.
        Stopped = "stopped",
    }
}

outcomes! {
    /// How a connection ended whose handshake had ended well.
    Ended {
        /// By the other end, in good order.
        Closed = "closed",
        /// The other end or the way to it is gone.
        Broken = "broken",
        /// Cut: no request after the handshake.
        NoFirstRequest = "no_first_request",
        /// Nothing was asked for long, and it was told to go.
        Idle = "idle",
        /// It was told to go because of its age.
        Aged = "aged",
        /// Cut: it did not go in time after it was told to.
        Killed = "killed",
        /// Cut: the peer takes nothing of what it has asked for.
        Stalled = "stalled",
        /// Cut: the peer answers no ping.
        Dead = "dead",
        /// Cut: a newer connection of the same identity took the place.
        Replaced = "replaced",
        /// Cut by hand, or because the identity was revoked.
        Cut = "cut",
        /// The port was closed, and it went in time.
        Stopped = "stopped",
        /// Cut: not HTTP/2 as we speak it.
        ProtocolError = "protocol_error",
        /// Cut: too many CONTINUATION frames, or headers far above their limit.
        HeaderFlood = "header_flood",
        /// Cut: calls that were opened and reset (rapid reset).
        RapidReset = "rapid_reset",
        /// Cut: errors that had us reset calls (MadeYouReset), or calls far above their number.
        ResetFlood = "reset_flood",
        /// Cut: too many small or empty DATA frames.
        DataFlood = "data_flood",
        /// Cut: too many frames that ask for nothing (PING, SETTINGS, ...), or calls that go on although they are too many.
        Noise = "noise",
        /// The other end said that we had made a mistake.
        PeerError = "peer_error",
    }
}

impl Ended {
    /// What an error of the HTTP/2 layer means, and what that layer has told the peer.
    pub(super) fn of(error: &hyper::Error, farewell: Option<Self>) -> Self {
        if error.is_timeout() {
            return Self::Dead;
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(h2) = error.downcast_ref::<h2::Error>() {
                return Self::of_h2(h2, farewell);
            }
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return Self::of_io(io);
            }
            cause = error.source();
        }
        Self::ProtocolError
    }

    /// Of a connection whose other end is gone: whether it was told to go before.
    pub(super) fn or_broken(self) -> Self {
        if self == Self::Closed { Self::Broken } else { self }
    }

    fn of_h2(error: &h2::Error, farewell: Option<Self>) -> Self {
        if let Some(io) = error.get_io() {
            return Self::of_io(io);
        }
        if error.is_remote() {
            return Self::PeerError;
        }
        match error.reason() {
            // One reason for every flood; which of them, it has told the peer alone.
            Some(h2::Reason::ENHANCE_YOUR_CALM) => farewell.unwrap_or(Self::ProtocolError),
            Some(_) | None => Self::ProtocolError,
        }
    }

    /// Our own streams below HTTP/2 say by an error's kind, and by a cause of their own, why they gave up.
    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut if error.get_ref().is_some() => Self::Stalled,
            io::ErrorKind::QuotaExceeded => Self::Noise,
            _ => Self::Broken,
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Live counters.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Count,)+
            refused: [Count; Refused::ALL.len()],
            handshakes: [Count; Handshake::ALL.len()],
            ended: [Count; Ended::ALL.len()],
        }

        /// The counters at one moment. All only ever grow, but for `open` and `handshaking`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct AcceptStats {
            $($(#[doc = $doc])+ pub $name: u64,)+
            refused: [u64; Refused::ALL.len()],
            handshakes: [u64; Handshake::ALL.len()],
            ended: [u64; Ended::ALL.len()],
        }

        impl AcceptStats {
            /// Two ports together, such as those of one program.
            #[must_use]
            pub fn and(&self, other: &Self) -> Self {
                Self {
                    $($name: self.$name + other.$name,)+
                    refused: std::array::from_fn(|at| self.refused[at] + other.refused[at]),
                    handshakes: std::array::from_fn(|at| self.handshakes[at] + other.handshakes[at]),
                    ended: std::array::from_fn(|at| self.ended[at] + other.ended[at]),
                }
            }
        }

        impl Counters {
            pub(super) fn read(&self) -> AcceptStats {
                AcceptStats {
                    $($name: self.$name.get(),)+
                    refused: std::array::from_fn(|at| self.refused[at].get()),
                    handshakes: std::array::from_fn(|at| self.handshakes[at].get()),
                    ended: std::array::from_fn(|at| self.ended[at].get()),
                }
            }
        }
    };
}

counters! {
    /// Connections that are open now, those in their handshake included.
    open,
    /// Of them, those in their handshake.
    handshaking,
    /// TCP connections taken from the listener.
    accepted,
    /// Calls that were begun by peers, at the level of HTTP/2.
    streams,
    /// Of them, those that reached a service or were throttled. HTTP/2 answered the others by itself: too many at once, bad or
    /// oversize headers, reset before their turn.
    requests,
    /// Calls whose headers were larger than they may be.
    oversize_headers,
    /// Frames that ask for nothing: PING, SETTINGS, RST_STREAM, PRIORITY, empty DATA, unknown kinds.
    noise_frames,
    /// Requests that were answered with an error before anything else: bad messages, refusals, the rate of the identity.
    requests_refused,
    /// Of them, those turned away by the identity's rate.
    throttled,
    /// Errors of the listener itself, such as no more file descriptors.
    listener_errors,
}

impl Counters {
    pub(super) fn refused(&self, why: Refused) {
        self.refused[why as usize].add();
    }

    pub(super) fn handshake(&self, outcome: Handshake) {
        self.handshakes[outcome as usize].add();
    }

    pub(super) fn ended(&self, how: Ended) {
        self.ended[how as usize].add();
    }

    pub(super) fn ended_as(&self, how: Ended) -> u64 {
        self.ended[how as usize].get()
    }
}

impl AcceptStats {
    /// Connections that were turned away for this reason.
    pub fn refused(&self, why: Refused) -> u64 {
        self.refused[why as usize]
    }

    /// Handshakes that ended so.
    pub fn handshakes(&self, outcome: Handshake) -> u64 {
        self.handshakes[outcome as usize]
    }

    /// Connections that ended so.
    pub fn ended(&self, how: Ended) -> u64 {
        self.ended[how as usize]
    }
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.add_many(1);
    }

    pub(super) fn add_many(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn sub(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_name_of_its_own_and_its_own_number() {
        let counters = Counters::default();
        let mut names: Vec<&str> = Ended::ALL.iter().map(|ended| ended.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Ended::ALL.len());
        for (count, ended) in (1..).zip(Ended::ALL) {
            (0..count).for_each(|_| counters.ended(ended));
        }
        let stats = counters.read();
        for (count, ended) in (1..).zip(Ended::ALL) {
            assert_eq!(stats.ended(ended), count, "{}", ended.name());
        }
    }

    #[test]
    fn our_own_streams_say_why_they_gave_up() {
        let ours = |kind| io::Error::new(kind, "ours");
        assert_eq!(Ended::of_io(&ours(io::ErrorKind::TimedOut)), Ended::Stalled);
        assert_eq!(Ended::of_io(&ours(io::ErrorKind::QuotaExceeded)), Ended::Noise);
        // The kernel gave the path up: nobody is to blame.
        assert_eq!(Ended::of_io(&io::ErrorKind::TimedOut.into()), Ended::Broken);
        assert_eq!(Ended::of_io(&io::ErrorKind::ConnectionReset.into()), Ended::Broken);
    }
}
