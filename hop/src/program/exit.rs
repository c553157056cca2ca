//! How a program ends, and what it says when it ends badly: a code, what happened, what it affects, what to do.
//!
//! ```text
//! error[PH-6003] PORT_TAKEN: 127.0.0.1:7443 is in use
//!   affects: no device can connect
//!   what to do: stop the other program, or set ingest.listen
//! ```

use std::{error::Error, fmt, process};

use pithead_proto::errors::v1::ErrorReason;

use crate::{connect::ConnectError, status::Remote, tls::TlsError};

/// A process's exit code. These are stable: scripts and units rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitCode(u8);

impl ExitCode {
    /// Done.
    pub const OK: Self = Self(0);
    /// Failed.
    pub const FAILED: Self = Self(1);
    /// The command line is wrong.
    pub const USAGE: Self = Self(2);
    /// Works, and something needs looking at.
    pub const DEGRADED: Self = Self(3);
    /// Runs, and does not serve yet or any more.
    pub const NOT_READY: Self = Self(4);
    /// The other end is away.
    pub const PEER_UNAVAILABLE: Self = Self(69);
    /// Cannot write.
    pub const CANNOT_WRITE: Self = Self(73);
    /// Try again later.
    pub const TRY_AGAIN: Self = Self(75);
    /// The other end does not take who we are, or we do not take who it is.
    pub const IDENTITY_REFUSED: Self = Self(77);
    /// The configuration is invalid.
    pub const CONFIG_INVALID: Self = Self(78);

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The code that goes with a reason, unless the caller knows better.
    pub fn of(reason: ErrorReason) -> Self {
        use ErrorReason as R;
        match reason {
            R::ConfigInvalid | R::ConfigUnreadable | R::SpoolUnsafe => Self::CONFIG_INVALID,
            R::DataDirUnwritable | R::DiskFull | R::DiskFailed | R::WouldOverwrite => Self::CANNOT_WRITE,
            R::CertificateRequired
            | R::CertificateInvalid
            | R::CertificateRevoked
            | R::RoleNotAllowed
            | R::ModeDowngrade
            | R::PeerUntrusted
            | R::AddressUnknown
            | R::EnrollTokenInvalid
            | R::EnrollTokenExpired
            | R::EnrollTokenUsed
            | R::DeviceRevoked
            | R::PassingOnRefused
            | R::DeviceMismatch
            | R::SiteMismatch => Self::IDENTITY_REFUSED,
            R::PeerUnreachable | R::KmsUnreachable | R::StoreUnreachable => Self::PEER_UNAVAILABLE,
            R::NotReady | R::KeysNotReady => Self::NOT_READY,
            other if crate::status::is_retryable(other) => Self::TRY_AGAIN,
            _ => Self::FAILED,
        }
    }
}

impl From<ExitCode> for process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.0)
    }
}

/// Why a program ends badly, for the person in front of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramError {
    /// The registry's reason.
    pub reason: ErrorReason,
    /// What happened.
    pub what: String,
    /// What it affects.
    pub affects: Option<String>,
    /// What to do.
    pub todo: Option<String>,
    /// What the process ends with.
    pub exit: ExitCode,
}

impl ProgramError {
    /// An error with the reason's own exit code.
    pub fn new(reason: ErrorReason, what: impl Into<String>) -> Self {
        Self { reason, what: what.into(), affects: None, todo: None, exit: ExitCode::of(reason) }
    }

    /// Says what it affects.
    #[must_use]
    pub fn affects(mut self, what: impl Into<String>) -> Self {
        self.affects = Some(what.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn todo(mut self, what: impl Into<String>) -> Self {
        self.todo = Some(what.into());
        self
    }

    /// Ends with another code than the reason's.
    #[must_use]
    pub fn exit(mut self, code: ExitCode) -> Self {
        self.exit = code;
        self
    }

    /// Prints it on stderr and gives the code to return from `main`.
    #[allow(clippy::print_stderr, reason = "the one place where a program's last words are printed")]
    pub fn report(&self) -> process::ExitCode {
        eprintln!("{self}");
        self.exit.into()
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}] {}: {}", self.reason.code(), self.reason.name(), self.what)?;
        if let Some(affects) = &self.affects {
            write!(f, "\n  affects: {affects}")?;
        }
        if let Some(todo) = &self.todo {
            write!(f, "\n  what to do: {todo}")?;
        }
        Ok(())
    }
}

impl Error for ProgramError {}

impl From<TlsError> for ProgramError {
    fn from(error: TlsError) -> Self {
        let reason = match &error {
            TlsError::Unreadable { .. } => ErrorReason::ConfigUnreadable,
            _ => ErrorReason::ConfigInvalid,
        };
        Self::new(reason, error.to_string()).todo("mend or replace the file that is named")
    }
}

impl From<ConnectError> for ProgramError {
    fn from(error: ConnectError) -> Self {
        let todo = match &error {
            ConnectError::Unreachable(_) | ConnectError::TimedOut(_) => {
                "check the address, that the other end runs, and what lies between"
            }
            ConnectError::Untrusted(_) => "check the CA file and the name that is expected of the other end",
            ConnectError::CertificateRequired => "configure a certificate and its key",
            ConnectError::CertificateRefused(_) => "ask the site's operator for a new certificate",
            ConnectError::Protocol => "check that the port is a Pithead's, without a proxy that ends TLS",
        };
        Self::new(error.reason(), error.to_string()).todo(todo)
    }
}

impl From<Remote> for ProgramError {
    fn from(remote: Remote) -> Self {
        let reason = remote.reason.unwrap_or(ErrorReason::Unspecified);
        let exit = match remote.reason {
            None if remote.is_connection() => ExitCode::PEER_UNAVAILABLE,
            _ => ExitCode::of(reason),
        };
        let error = Self::new(reason, format!("the other end refused: {}", remote.detail)).exit(exit);
        match remote.retry_after {
            Some(wait) => error.todo(format!("try again in {} s", wait.as_secs().max(1))),
            None => error,
        }
    }
}

/// An error with its causes, in one line, each said once.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_have_a_code_and_say_what_to_do() {
        let error = ProgramError::new(ErrorReason::PortTaken, "127.0.0.1:7443 is in use")
            .affects("no device can connect")
            .todo("stop the other program, or set ingest.listen");
        assert_eq!(
            error.to_string(),
            "error[PH-6003] PORT_TAKEN: 127.0.0.1:7443 is in use\n  affects: no device can connect\n  \
             what to do: stop the other program, or set ingest.listen"
        );
    }

    #[test]
    fn reasons_end_with_their_codes() {
        for (reason, code) in [
            (ErrorReason::ConfigInvalid, 78),
            (ErrorReason::PeerUntrusted, 77),
            (ErrorReason::PeerUnreachable, 69),
            (ErrorReason::DiskFull, 73),
            (ErrorReason::SpoolFull, 75),
            (ErrorReason::KeysNotReady, 4),
            (ErrorReason::EnvelopeTruncated, 1),
        ] {
            assert_eq!(ExitCode::of(reason).get(), code, "{reason:?}");
        }
    }
}
