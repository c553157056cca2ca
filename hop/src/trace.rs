//! W3C trace context: by which a device's call can be found again on the hops behind it.
//!
//! A `traceparent` is read where a call comes in, and only in its one exact form: version 00, 55 bytes, small letters, no zeros. What
//! is anything else counts as not there, and so does one of two. It names the call in our own log lines and goes out again with a
//! parent of ours. Where spans are exported ([`span`]) its flag says whether this call's are; nothing else depends on it: a stranger's
//! word decides over no storage and no refusal.
//!
//! **What is carried to the second hop**: a large envelope's. It is one device's call, and the relay's own upload of it is its child.
//! It is kept in memory beside the upload that is open, so a restart forgets it, and so few are held as uploads are. And a call that one
//! gateway of a site passes on to another: it is the same call.
//! **What is not**: small envelopes. The relay's batches mix those of many devices, so that no single parent is theirs; what links them
//! is the envelope's identity, which both ends log, and where spans are exported the batch's links.

pub mod span;

use std::fmt;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderValue, Request};
use tower_service::Service;

use crate::backoff::random;

/// The header.
pub const HEADER: &str = "traceparent";

/// Which trace a call belongs to, and which span is its parent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: [u8; 16],
    parent: [u8; 8],
    flags: u8,
}

impl TraceParent {
    /// Of a request's headers: nothing if there is none, more than one, or one that is not exactly as it should be.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(HEADER).iter();
        let (first, None) = (all.next()?, all.next()) else { return None };
        Self::parse(first.to_str().ok()?)
    }

    /// `00-<32 hexadecimal digits>-<16>-<2>`
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() {
            return None;
        }
        let [flags] = digits(flags)?;
        let found = Self { trace: digits(trace)?, parent: digits(parent)?, flags };
        (found.trace != [0; 16] && found.parent != [0; 8]).then_some(found)
    }

    /// Of the same trace, with a parent of ours. Of the flags the one that says "sampled" is handed on.
    #[must_use]
    pub fn child(&self, random: u64) -> Self {
        Self { trace: self.trace, parent: random.max(1).to_be_bytes(), flags: self.flags & 1 }
    }

    /// The beginning of a trace of ours, which is followed.
    fn fresh() -> Self {
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&random().to_be_bytes());
        trace[8..].copy_from_slice(&random().max(1).to_be_bytes());
        Self { trace, parent: random().max(1).to_be_bytes(), flags: 1 }
    }

    /// Whether whoever began the trace follows this call.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The trace's identity.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    /// The span's.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        self.parent
    }

    /// The trace's name.
    #[must_use]
    pub fn trace(&self) -> String {
        self.trace.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Exactly so many bytes in small hexadecimal digits.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-", self.trace())?;
        self.parent.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceParent({self})")
    }
}

/// A connection whose calls carry a parent, if there is one.
#[derive(Debug, Clone)]
pub struct Traced<S> {
    inner: S,
    parent: Option<HeaderValue>,
}

impl<S> Traced<S> {
    /// Calls over `inner` carry this.
    pub fn new(inner: S, parent: Option<TraceParent>) -> Self {
        let parent = parent.and_then(|parent| HeaderValue::try_from(parent.to_string()).ok());
        Self { inner, parent }
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Traced<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(parent) = &self.parent {
            request.headers_mut().insert(HEADER, parent.clone());
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_the_one_form_is_a_parent() {
        let parent = TraceParent::parse(GOOD).unwrap();
        assert_eq!(parent.to_string(), GOOD);
        for bad in [
            "",
            "00",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
            "00-4bf92f3577b34da6a3ce929d0e0e47\u{e9}-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
        assert_eq!(TraceParent::parse(&"0".repeat(100_000)), None);
    }

    #[test]
    fn one_of_two_is_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(TraceParent::of(&headers), None);
        headers.append(HEADER, GOOD.parse().unwrap());
        assert!(TraceParent::of(&headers).is_some());
        headers.append(HEADER, GOOD.parse().unwrap());
        assert_eq!(TraceParent::of(&headers), None);
    }

    #[test]
    fn a_child_is_of_the_same_trace_with_another_parent_and_no_flag_that_we_do_not_know() {
        let parent = TraceParent::parse(&GOOD.replace("-01", "-ff")).unwrap();
        assert_eq!(parent.child(7).to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01");
        assert!(TraceParent::parse(&parent.child(0).to_string()).is_some(), "a parent of zeros is none");
    }
}
