//! What went wrong with a store, parsed once.

use std::error::Error as _;
use std::time::Duration;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};
use pithead_proto::errors::v1::ErrorReason;

/// Of what a store says, so many bytes are kept: enough for its code and a sentence.
const CAUSE_MAX: usize = 300;

/// What is wrong, as far as the answer differs for whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Who asks may not do that, or is not believed.
    #[error("access denied")]
    Denied,
    /// There is no such bucket or folder.
    #[error("there is no such bucket")]
    NoBucket,
    /// There is no such object, or no such multipart upload.
    #[error("there is no such object")]
    NotFound,
    /// Too many requests: come back later.
    #[error("slow down")]
    Throttled,
    /// No answer, or not in time, or a fault on the other side.
    #[error("no answer")]
    Unreachable,
    /// It cannot do what is asked of it.
    #[error("not supported")]
    Unsupported,
    /// It was understood and is not done, now or later: parts that do not make an object, say.
    #[error("refused")]
    Refused,
    /// An answer that is none.
    #[error("not understood")]
    Other,
}

impl Fault {
    /// What an error of the client below says, for who asks it directly.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        fault_of(error, &shown(error))
    }

    /// Whether the same request may succeed without anybody changing anything.
    #[must_use]
    pub const fn may_retry(self) -> bool {
        matches!(self, Self::Throttled | Self::Unreachable | Self::Other)
    }

    /// Whether a request that changes something may have been carried out all the same.
    #[must_use]
    pub const fn may_have_happened(self) -> bool {
        matches!(self, Self::Unreachable | Self::Other)
    }

    /// The reason in the registry.
    #[must_use]
    pub const fn reason(self) -> ErrorReason {
        match self {
            Self::Denied => ErrorReason::StoreDenied,
            Self::NoBucket | Self::NotFound => ErrorReason::StoreNotFound,
            Self::Throttled => ErrorReason::StoreThrottled,
            Self::Unreachable | Self::Refused | Self::Other => ErrorReason::StoreUnreachable,
            Self::Unsupported => ErrorReason::StoreUnsuitable,
        }
    }
}

/// A request to a store that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what} {name}: {fault} ({cause})")]
pub struct StoreError {
    /// What was asked: `put`, `get`, ...
    pub what: &'static str,
    /// Of which object.
    pub name: String,
    /// What is wrong.
    pub fault: Fault,
    /// What the store or the way to it said, in one line and shortened.
    pub cause: String,
}

impl StoreError {
    pub(super) fn new(what: &'static str, name: &str, fault: Fault, cause: impl Into<String>) -> Self {
        Self { what, name: name.to_owned(), fault, cause: cause.into() }
    }

    pub(super) fn timed_out(what: &'static str, name: &str, after: Duration) -> Self {
        Self::new(what, name, Fault::Unreachable, format!("nothing within {} s", after.as_secs()))
    }

    pub(super) fn of(what: &'static str, name: &str, error: &Error) -> Self {
        let text = shown(error);
        Self::new(what, name, fault_of(error, &text), shortened(text))
    }
}

/// The text of an error with what is behind it, in one line.
fn shown(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = inner.source();
    }
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.collect::<String>()
}

fn fault_of(error: &Error, text: &str) -> Fault {
    // The client gives no code of the store, but its text. Of a missing bucket and a missing object it makes the same error.
    let says = |code: &str| text.contains(&format!("<Code>{code}</Code>"));
    if says("NoSuchBucket") {
        return Fault::NoBucket;
    }
    if ["SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling"].iter().any(|code| says(code))
    {
        return Fault::Throttled;
    }
    match error {
        Error::NotFound { .. } => Fault::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Fault::Denied,
        Error::NotImplemented { .. } | Error::NotSupported { .. } => Fault::Unsupported,
        _ if is_unanswered(error) => Fault::Unreachable,
        _ if text.contains("status code: 501") => Fault::Unsupported,
        _ if text.contains("status code: 503") || text.contains("status code: 429") => Fault::Throttled,
        _ if text.contains("status code: 5") => Fault::Unreachable,
        // The signature, the clock, a token that has run out, another region: all of it is said with 400 as well.
        _ if ["ExpiredToken", "InvalidToken", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed"]
            .iter()
            .any(|code| says(code)) =>
        {
            Fault::Denied
        }
        // And so is a body that came too slowly.
        _ if says("RequestTimeout") || text.contains("status code: 408") => Fault::Unreachable,
        // Two at a time.
        _ if text.contains("status code: 409") || text.contains("status code: 412") => Fault::Other,
        // The end of a multipart upload may say it in an answer that begins well.
        _ if ["InvalidPart", "InvalidPartOrder", "EntityTooSmall"].iter().any(|code| says(code)) => {
            Fault::Refused
        }
        _ if text.contains("status code: 4") => Fault::Refused,
        _ => Fault::Other,
    }
}

fn is_unanswered(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(http) = inner.downcast_ref::<HttpError>() {
            return !matches!(http.kind(), HttpErrorKind::Decode);
        }
        source = inner.source();
    }
    false
}

fn shortened(mut text: String) -> String {
    if text.len() > CAUSE_MAX {
        text.truncate(text.floor_char_boundary(CAUSE_MAX));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> StoreError {
        StoreError::of("put", "bundles/a", &Error::Generic { store: "S3", source: text.to_owned().into() })
    }

    #[test]
    fn what_a_store_says_is_parsed_for_whoever_has_to_act() {
        for (text, fault) in [
            ("<Code>NoSuchBucket</Code>", Fault::NoBucket),
            ("<Code>SlowDown</Code>", Fault::Throttled),
            ("status code: 503", Fault::Throttled),
            ("status code: 429", Fault::Throttled),
            ("status code: 500", Fault::Unreachable),
            ("status code: 501", Fault::Unsupported),
            ("<Code>RequestTimeTooSkewed</Code>", Fault::Denied),
            ("<Code>ExpiredToken</Code>", Fault::Denied),
            ("<Code>AuthorizationHeaderMalformed</Code> status code: 400", Fault::Denied),
            ("status code: 400 <Code>RequestTimeout</Code>", Fault::Unreachable),
            ("status code: 400 <Code>InvalidPart</Code>", Fault::Refused),
            ("<Code>EntityTooSmall</Code>", Fault::Refused),
            ("status code: 409", Fault::Other),
            ("an answer that is none", Fault::Other),
        ] {
            assert_eq!(of(text).fault, fault, "{text}");
        }
    }

    #[test]
    fn what_a_store_says_is_kept_in_one_line_and_not_without_end() {
        let said = of(&format!("line\nline <Code>SlowDown</Code>{}", "é".repeat(10_000)));
        assert_eq!(said.fault, Fault::Throttled);
        let shown = said.to_string();
        assert!(!shown.contains('\n') && shown.len() < 400 && shown.ends_with("...)"), "{shown}");
    }
}
