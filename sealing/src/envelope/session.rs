//! Sessions (envelope document, 2.3): one data key, one EDK and one context for many messages.
//!
//! A public-key wrap for the device and a KMS call for the cloud are paid once per session. Each message has its own id
//! and so its own derived key. A session ends after 15 minutes, 100,000 messages or 16 GiB, when the key changes, and
//! in a forked child; it refuses to seal past its end, and the caller asks [`Session::needs_rotation`] ahead of that.

use std::time::Duration;

use super::context::Context;
use super::edk::{Edk, WrapError, wrap};
use super::keys::{DataKey, MessageId};
use super::profile::ProfileError;
use super::random::{Entropy, EntropyError};
use super::seal::{Material, seal_message};
use super::sealed::SealedEnvelope;
use super::session_context::{SessionContext, SignatureFields, within_profile};
use super::signature::DeviceSigningKey;
use super::sizes::FRAME_LENGTH;
use super::stream_seal::StreamSealer;
use crate::names::{Identity, Line, Run, Seq, Site};
use crate::trust::{TrustError, UnixTime, VerifiedKey};

/// Age at which a session ends: bounds what one leaked data key opens.
pub const SESSION_AGE_MAX: Duration = Duration::from_secs(15 * 60);
/// Messages at which a session ends.
pub const SESSION_MESSAGES_MAX: u64 = 100_000;
/// Bytes of plaintext at which a session ends: 16 GiB.
pub const SESSION_BYTES_MAX: u64 = 16 << 30;
/// Bytes of plaintext in a file at most: 1 TiB.
pub const FILE_LEN_MAX: u64 = 1 << 40;

/// What a session start needs to know of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionClock {
    /// `CLOCK_BOOTTIME`: runs on in suspend, and nobody can set it.
    pub boot: Duration,
    /// The device's best knowledge of the time of day: the key must be usable then.
    pub now: UnixTime,
}

/// Why a session seals nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rotation {
    /// It is 15 minutes old.
    Age,
    /// It sealed 100,000 messages; a file's session its one.
    Messages,
    /// It sealed 16 GiB.
    Bytes,
    /// This process is not the one that started it: parent and child would go on with one data key.
    Forked,
}

/// Why nothing was sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The key may not be sealed to at this time.
    #[error("the key may not be sealed to: {0}")]
    Key(#[from] TrustError),
    /// The context is not within the profile.
    #[error("the context is outside the profile: {0}")]
    Context(#[from] ProfileError),
    /// The data key could not be wrapped.
    #[error(transparent)]
    Wrap(#[from] WrapError),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The session has ended; start another.
    #[error("the session has ended: {0:?}")]
    Ended(Rotation),
    /// More plaintext than an envelope may have.
    #[error("the plaintext is longer than {FILE_LEN_MAX} bytes")]
    TooLong,
    /// Plaintext could not be read; what was written so far is no envelope.
    #[error("the plaintext could not be read")]
    Read(#[source] std::io::Error),
    /// The envelope could not be written.
    #[error("the envelope could not be written")]
    Write(#[source] std::io::Error),
}

/// A session: holds the data key in memory, and seals.
#[derive(Debug)]
pub struct Session {
    context: Context,
    edk: Edk,
    data_key: DataKey,
    key: VerifiedKey,
    site: Site,
    line: Line,
    limits: Limits,
}

#[derive(Debug)]
struct Limits {
    started: Duration,
    age_max: Duration,
    pid: u32,
    file: bool,
    messages: u64,
    bytes: u64,
}

impl Session {
    /// Starts a session for messages of one line, wrapping a fresh data key to `key`.
    ///
    /// With a `signer` the session is signed, and every message of it is of `run`.
    ///
    /// # Errors
    /// [`SealError::Key`] if the key is not usable now, [`SealError::Context`], [`SealError::Wrap`],
    /// [`SealError::Entropy`]. Nothing was sealed.
    pub fn start(
        key: &VerifiedKey,
        context: &SessionContext,
        run: Run,
        signer: Option<&DeviceSigningKey>,
        clock: SessionClock,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SealError> {
        Self::begin(key, context, run, signer, clock, entropy, false)
    }

    /// Starts the session of one file: one message of up to 1 TiB, whatever its duration.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start_file(
        key: &VerifiedKey,
        context: &SessionContext,
        run: Run,
        signer: Option<&DeviceSigningKey>,
        clock: SessionClock,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SealError> {
        Self::begin(key, context, run, signer, clock, entropy, true)
    }

    fn begin(
        key: &VerifiedKey,
        facts: &SessionContext,
        run: Run,
        signer: Option<&DeviceSigningKey>,
        clock: SessionClock,
        entropy: &mut dyn Entropy,
        file: bool,
    ) -> Result<Self, SealError> {
        key.usable_at(clock.now)?;
        let data_key = DataKey::draw(entropy)?;
        let arn = key.arn().as_str();
        let context = match signer {
            None => facts.build(key.statement_digest(), None)?,
            Some(signer) => {
                let mut fields =
                    SignatureFields { kid: signer.kid(), run, sid: data_key.session_id(), sig: None };
                let unsigned = facts.build(key.statement_digest(), Some(&fields))?;
                fields.sig = Some(signer.sign(arn, &unsigned));
                facts.build(key.statement_digest(), Some(&fields))?
            }
        };
        within_profile(&context)?;
        let edk = wrap(arn, key.spki_der(), &context, &data_key, entropy)?;
        Ok(Self {
            edk,
            context,
            data_key,
            key: key.clone(),
            site: facts.site().clone(),
            line: Line { device: facts.device().clone(), stream: facts.stream().clone(), run },
            limits: Limits {
                started: clock.boot,
                age_max: SESSION_AGE_MAX,
                pid: std::process::id(),
                file,
                messages: 0,
                bytes: 0,
            },
        })
    }

    /// The line whose messages it seals.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// The encryption context of all its messages.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The key that it seals to.
    pub fn key(&self) -> &VerifiedKey {
        &self.key
    }

    /// Messages sealed so far.
    pub fn messages(&self) -> u64 {
        self.limits.messages
    }

    /// Whether `current` is another *key* than this session's, which ends it at once. Another statement naming the same
    /// key ends nothing: the next session will name it.
    pub fn key_changed(&self, current: &VerifiedKey) -> bool {
        self.key.fingerprint() != current.fingerprint() || self.key.arn() != current.arn()
    }

    /// Ends it at this age already, if that is earlier than [`SESSION_AGE_MAX`]; nothing makes a session longer. For the first
    /// session after a start, a rest or a change of key: a fleet that has power again at one moment would otherwise begin its sessions in
    /// step for ever, and the cloud would be asked for all of their data keys in the same minute of every quarter of an hour.
    pub fn end_at_age(&mut self, age: Duration) {
        self.limits.age_max = self.limits.age_max.min(age);
    }

    /// How long ago it began, at `boot` (`CLOCK_BOOTTIME`).
    pub fn age(&self, boot: Duration) -> Duration {
        boot.saturating_sub(self.limits.started)
    }

    /// Whether the session has ended at `boot` (`CLOCK_BOOTTIME`). Asked between messages; sealing asks it again.
    pub fn needs_rotation(&self, boot: Duration) -> Option<Rotation> {
        self.limits.ended(boot, std::process::id())
    }

    /// Length in bytes of the envelope that `plaintext_len` bytes become.
    pub fn sealed_len(&self, plaintext_len: u64) -> Option<u64> {
        let header = super::sizes::header_len(self.context.wire_len(), [self.edk.field_lens()]);
        super::sizes::Sizes::new(header, FRAME_LENGTH).total(plaintext_len)
    }

    /// Seals one message as number `seq` of the line. One allocation, of the envelope's own size.
    ///
    /// The caller gives each number once. Every call draws a fresh message id: even a number given twice by mistake
    /// repeats no nonce.
    ///
    /// # Errors
    /// [`SealError::Ended`], [`SealError::Entropy`], [`SealError::TooLong`]. Nothing was sealed.
    pub fn seal(
        &mut self,
        seq: Seq,
        plaintext: &[u8],
        boot: Duration,
        entropy: &mut dyn Entropy,
    ) -> Result<SealedEnvelope, SealError> {
        let message_id = self.next(seq, boot, entropy)?;
        self.limits.bytes = self.limits.bytes.saturating_add(plaintext.len() as u64);
        let bytes = seal_message(&self.material(&message_id), plaintext).ok_or(SealError::TooLong)?;
        Ok(SealedEnvelope::new(bytes.into(), self.identity(seq)))
    }

    /// Begins a message whose plaintext comes in pieces, of a length that need not be known. Constant memory.
    ///
    /// # Errors
    /// [`SealError::Ended`], [`SealError::Entropy`].
    pub fn seal_stream(
        &mut self,
        seq: Seq,
        boot: Duration,
        entropy: &mut dyn Entropy,
    ) -> Result<StreamSealer, SealError> {
        let message_id = self.next(seq, boot, entropy)?;
        // The length is not known yet. Between messages 16 GiB is tested; of a message of this kind only 1 TiB is,
        // so it counts as the whole: the session ends with it.
        self.limits.bytes = SESSION_BYTES_MAX;
        Ok(StreamSealer::new(&self.material(&message_id), self.identity(seq)))
    }

    fn next(&mut self, seq: Seq, boot: Duration, entropy: &mut dyn Entropy) -> Result<MessageId, SealError> {
        if let Some(reason) = self.needs_rotation(boot) {
            return Err(SealError::Ended(reason));
        }
        let message_id = MessageId::draw(self.line.run, seq, entropy)?;
        self.limits.messages += 1;
        Ok(message_id)
    }

    fn material<'a>(&'a self, message_id: &'a MessageId) -> Material<'a> {
        Material {
            message_id,
            context: &self.context,
            edks: std::slice::from_ref(&self.edk),
            frame_length: FRAME_LENGTH,
            data_key: &self.data_key,
        }
    }

    fn identity(&self, seq: Seq) -> Identity {
        self.line.identity(&self.site, seq)
    }
}

impl Limits {
    fn ended(&self, boot: Duration, pid: u32) -> Option<Rotation> {
        let messages_max = if self.file { 1 } else { SESSION_MESSAGES_MAX };
        if pid != self.pid {
            Some(Rotation::Forked)
        } else if self.messages >= messages_max {
            Some(Rotation::Messages)
        } else if self.bytes >= SESSION_BYTES_MAX {
            Some(Rotation::Bytes)
        } else if !self.file && boot.saturating_sub(self.started) >= self.age_max {
            Some(Rotation::Age)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(messages: u64, bytes: u64, file: bool) -> Limits {
        Limits { started: Duration::from_secs(100), age_max: SESSION_AGE_MAX, pid: 7, file, messages, bytes }
    }

    #[test]
    fn a_session_ends_by_whichever_limit_comes_first() {
        let soon = Duration::from_secs(100 + 15 * 60 - 1);
        let late = Duration::from_secs(100 + 15 * 60);
        assert_eq!(limits(99_999, (16 << 30) - 1, false).ended(soon, 7), None);
        assert_eq!(limits(0, 0, false).ended(late, 7), Some(Rotation::Age));
        assert_eq!(limits(100_000, 0, false).ended(soon, 7), Some(Rotation::Messages));
        assert_eq!(limits(0, 16 << 30, false).ended(soon, 7), Some(Rotation::Bytes));
    }

    #[test]
    fn a_forked_child_does_not_go_on_with_its_parents_data_key() {
        assert_eq!(limits(0, 0, false).ended(Duration::from_secs(100), 8), Some(Rotation::Forked));
    }

    #[test]
    fn a_files_session_is_one_message_of_any_duration() {
        let years = Duration::from_secs(1 << 30);
        assert_eq!(limits(0, 0, true).ended(years, 7), None);
        assert_eq!(limits(1, 0, true).ended(years, 7), Some(Rotation::Messages));
    }
}
