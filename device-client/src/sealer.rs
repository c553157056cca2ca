//! From plaintext to sealed envelope: key, session, number.
//!
//! A [`Sealer`] needs no network and no outbox: it is for those who carry the bytes themselves. It asks for the key at
//! every envelope, so that a denylisted or replaced key is not sealed to a moment longer, and starts a session when the
//! old one has ended, the key or the content has changed, or the line has begun a new run.
//!
//! The first session of a line after a start, or after a rest, ends at a random age: a fleet that has power again at one moment, or
//! begins its shift at one, would otherwise ask the cloud for all of its data keys in the same minute of every quarter of an hour,
//! for the rest of the day.
//!
//! With an identity key ([`Sealer::sign_with`]) every session is signed by it, so that the cloud knows the device without
//! believing the gateway (envelope document, 2.4). Without one nothing else changes.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use pithead_sealing::{
    envelope::{
        ContentType, DeviceSigningKey, Encoding, Entropy, EntropyError, FileName, KernelEntropy,
        SESSION_AGE_MAX, SealError as SessionError, SealedEnvelope, SealedStream, Session, SessionClock,
        SessionContext, StreamSealer,
    },
    names::{DeviceId, Identity, Run, Site, StreamName},
    trust::{Kid, TrustError, VerifiedKey},
};

use crate::{
    batch::LineMark,
    clock::DeviceClock,
    keys::{Keys, KeysError},
    sequence::{Sequence, SequenceError},
    state::{FileStore, StateError, lock},
};

/// A line that has sealed nothing for so long after its session's end begins anew: with records every few seconds it never does.
const REST: Duration = Duration::from_secs(60);

/// The first session of a line lives at least so long: what is over sooner is a data key, and a call of KMS, for nothing.
const FIRST_SESSION_MIN: Duration = Duration::from_secs(60);

/// What an envelope's plaintext is, as its context says in clear text. No secret belongs here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// Media type.
    pub content_type: ContentType,
    /// Set if the plaintext that is given was compressed.
    pub encoding: Option<Encoding>,
    /// A file's name.
    pub name: Option<FileName>,
}

impl Content {
    /// Of that media type, not compressed, without a name.
    #[must_use]
    pub fn new(content_type: ContentType) -> Self {
        Self { content_type, encoding: None, name: None }
    }

    /// A [`crate::batch`].
    #[must_use]
    pub fn batch() -> Self {
        Self::new(ContentType::batch())
    }

    /// The same with a file's name.
    #[must_use]
    pub fn named(self, name: FileName) -> Self {
        Self { name: Some(name), ..self }
    }
}

/// Why nothing was sealed. No number was used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// There is no key to seal to: fetch a bundle.
    #[error("no key to seal to: {0} ({code})", code = .0.code())]
    Key(#[from] TrustError),
    /// There is no number for it.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// Sealing itself.
    #[error(transparent)]
    Seal(#[from] pithead_sealing::envelope::SealError),
}

/// Seals for one device.
#[derive(Debug)]
pub struct Sealer {
    site: Site,
    device: DeviceId,
    keys: Keys,
    sequence: Arc<Mutex<Sequence>>,
    signer: Option<DeviceSigningKey>,
    sessions: BTreeMap<StreamName, (Content, Session)>,
    sessions_started: u64,
}

impl Sealer {
    /// A sealer for `device`, with its trust and its sequence state.
    #[must_use]
    pub fn new(device: DeviceId, keys: Keys, sequence: Sequence) -> Self {
        Self::sharing(device, keys, Arc::new(Mutex::new(sequence)))
    }

    /// Opens the trust and the numbers that are kept in `folder`, for one who carries the bytes: no outbox, no network.
    ///
    /// # Errors
    /// [`OpenError`]; locked while a client or another sealer is open on the folder.
    pub fn open(folder: &Path, site: &Site, device: DeviceId, clock: DeviceClock) -> Result<Self, OpenError> {
        let keys = Keys::open_to_move(folder, site, clock)?;
        let sequence = Sequence::open(Box::new(FileStore::new(folder, "sequence")), [], &mut KernelEntropy)?;
        Ok(Self::new(device, keys, sequence))
    }

    /// A sealer whose numbers the outbox writes down too, before it forgets.
    pub(crate) fn sharing(device: DeviceId, keys: Keys, sequence: Arc<Mutex<Sequence>>) -> Self {
        let site = keys.trust().site().clone();
        let sessions = BTreeMap::new();
        Self { site, device, keys, sequence, signer: None, sessions, sessions_started: 0 }
    }

    /// Signs every session from now on with the device's identity key, which is cleared when the sealer is dropped or given
    /// another one. Sessions that were begun without it end: the next envelope of each stream is in a signed one. The cloud
    /// believes the signature once it knows the key ([`DeviceSigningKey::spki_pem`]), and from the first signed session on
    /// nothing unsigned of this device.
    pub fn sign_with(&mut self, key: DeviceSigningKey) {
        self.sessions.clear();
        self.signer = Some(key);
    }

    /// The name of the key that signs the sessions, if there is one.
    #[must_use]
    pub fn signing_kid(&self) -> Option<Kid> {
        self.signer.as_ref().map(DeviceSigningKey::kid)
    }

    /// Whose envelopes these are.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The site whose key is sealed to.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The device's trust.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The device's trust, to take bundles in.
    pub fn keys_mut(&mut self) -> &mut Keys {
        &mut self.keys
    }

    /// Run and last held number of every stream since this opening: a heartbeat.
    #[must_use]
    pub fn marks(&self) -> Vec<LineMark> {
        lock(&self.sequence).marks()
    }

    /// The same with `stream` as it will stand when its next envelope is there: what that envelope itself may claim.
    pub fn marks_with_next(&mut self, stream: &StreamName) -> Vec<LineMark> {
        lock(&self.sequence).marks_with_next(stream)
    }

    /// Its numbers were lost when it was opened, and begin anew: see [`Sequence::began_anew`].
    #[must_use]
    pub fn began_anew(&self) -> bool {
        lock(&self.sequence).began_anew()
    }

    /// Sessions so far: each is one public-key operation here and one KMS call in the cloud.
    #[must_use]
    pub fn sessions_started(&self) -> u64 {
        self.sessions_started
    }

    /// Seals `plaintext` as the next number of `stream`.
    ///
    /// The number is used up: an envelope that is then thrown away is a hole that the cloud will see.
    pub fn seal(
        &mut self,
        stream: &StreamName,
        content: &Content,
        plaintext: &[u8],
    ) -> Result<SealedEnvelope, SealError> {
        let envelope = self.seal_next(stream, content, plaintext)?;
        self.held(envelope.identity());
        Ok(envelope)
    }

    /// Seals under the next number and uses it up. It is claimed to nobody before [`Sealer::held`].
    pub(crate) fn seal_next(
        &mut self,
        stream: &StreamName,
        content: &Content,
        plaintext: &[u8],
    ) -> Result<SealedEnvelope, SealError> {
        let (run, seq) = lock(&self.sequence).next(stream)?;
        let boot = DeviceClock::since_boot();
        let session = self.session(stream, content, run)?;
        let envelope = session.seal(seq, plaintext, boot, &mut KernelEntropy)?;
        lock(&self.sequence).commit(stream, run, seq);
        Ok(envelope)
    }

    /// The envelope is durable.
    pub(crate) fn held(&mut self, identity: &Identity) {
        lock(&self.sequence).held(&identity.stream, identity.run, identity.seq);
    }

    /// How many bytes an envelope of `plaintext_len` bytes will have.
    pub fn sealed_len(
        &mut self,
        stream: &StreamName,
        content: &Content,
        plaintext_len: u64,
    ) -> Result<Option<u64>, SealError> {
        let (run, _) = lock(&self.sequence).next(stream)?;
        Ok(self.session(stream, content, run)?.sealed_len(plaintext_len))
    }

    /// Seals a file of any length, up to 1 TiB, in constant memory: one message in a session of its own. On an error
    /// nothing was sealed, whatever `sealed` holds by then, and the number is not used.
    pub fn seal_stream(
        &mut self,
        stream: &StreamName,
        content: &Content,
        plaintext: &mut impl Read,
        sealed: &mut impl Write,
    ) -> Result<(Identity, SealedStream), SealError> {
        let (identity, message) = self.begin_stream(stream, content)?;
        let lengths = message.seal_all(plaintext, sealed)?;
        self.used(&identity);
        self.held(&identity);
        Ok((identity, lengths))
    }

    /// Begins a file as the next number, which is used once [`Sealer::used`] says so. Nothing else may be sealed on the
    /// stream meanwhile.
    pub(crate) fn begin_stream(
        &mut self,
        stream: &StreamName,
        content: &Content,
    ) -> Result<(Identity, StreamSealer), SealError> {
        let (run, seq) = lock(&self.sequence).next(stream)?;
        let key = self.keys.verified_key()?;
        let context = self.context(stream, content);
        let clock = self.session_clock();
        let mut session =
            Session::start_file(&key, &context, run, self.signer.as_ref(), clock, &mut KernelEntropy)?;
        self.sessions_started += 1;
        let message = session.seal_stream(seq, clock.boot, &mut KernelEntropy)?;
        Ok((message.identity().clone(), message))
    }

    /// The file of that number was sealed.
    pub(crate) fn used(&mut self, identity: &Identity) {
        lock(&self.sequence).commit(&identity.stream, identity.run, identity.seq);
    }

    /// What the first batch of a run tells of the run before it.
    #[must_use]
    pub fn previous(&self, stream: &StreamName) -> Option<LineMark> {
        lock(&self.sequence).previous(stream)
    }

    /// Begins a new run for a stream, after a conflict.
    pub fn begin_run(&mut self, stream: &StreamName) -> Result<Run, SequenceError> {
        lock(&self.sequence).begin_run(stream, &mut KernelEntropy)
    }

    /// Writes everything down: at shutdown.
    pub fn close(mut self) -> Result<(), CloseError> {
        lock(&self.sequence).save()?;
        Ok(self.keys.save()?)
    }

    fn session(
        &mut self,
        stream: &StreamName,
        content: &Content,
        run: Run,
    ) -> Result<&mut Session, SealError> {
        let key = self.keys.verified_key()?;
        if !self.goes_on(stream, content, run, &key) {
            let context = self.context(stream, content);
            let clock = self.session_clock();
            let signer = self.signer.as_ref();
            let mut session = Session::start(&key, &context, run, signer, clock, &mut KernelEntropy)?;
            if self.has_rested(stream, clock.boot) {
                session.end_at_age(first_age(&mut KernelEntropy).map_err(SessionError::from)?);
            }
            self.sessions_started += 1;
            self.sessions.insert(stream.clone(), (content.clone(), session));
        }
        let (_, session) = self.sessions.get_mut(stream).expect("it is there, or was just put there");
        Ok(session)
    }

    /// Whether nothing was sealed on the stream for a while after its last session had ended, or nothing at all so far.
    fn has_rested(&self, stream: &StreamName, boot: Duration) -> bool {
        self.sessions.get(stream).is_none_or(|(_, last)| last.age(boot) >= SESSION_AGE_MAX + REST)
    }

    fn goes_on(&self, stream: &StreamName, content: &Content, run: Run, key: &VerifiedKey) -> bool {
        self.sessions.get(stream).is_some_and(|(sealed, session)| {
            sealed == content
                && session.line().run == run
                && !session.key_changed(key)
                && session.needs_rotation(DeviceClock::since_boot()).is_none()
        })
    }

    fn context(&self, stream: &StreamName, content: &Content) -> SessionContext {
        let context = SessionContext::new(
            self.site.clone(),
            self.device.clone(),
            stream.clone(),
            content.content_type.clone(),
        );
        let context = match content.encoding {
            Some(encoding) => context.encoding(encoding),
            None => context,
        };
        match &content.name {
            Some(name) => context.file_name(name.clone()),
            None => context,
        }
    }

    fn session_clock(&self) -> SessionClock {
        let now = self.keys.trust().now(self.keys.clock().now());
        SessionClock { boot: DeviceClock::since_boot(), now }
    }
}

/// Evenly between the least and the greatest age, so that lines which began together end apart.
fn first_age(entropy: &mut dyn Entropy) -> Result<Duration, EntropyError> {
    let mut random = [0; 4];
    entropy.fill(&mut random)?;
    let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    Ok(FIRST_SESSION_MIN + (SESSION_AGE_MAX - FIRST_SESSION_MIN).mul_f64(share))
}

/// Why a sealer could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Its trust.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Its numbers.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
}

/// What could not be written down at shutdown. Nothing sealed is lost by it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Where the lines stand.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The trust record with its operating time.
    #[error("the trust record: {0}")]
    Keys(#[from] StateError),
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Same(u8);

    impl Entropy for Same {
        fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
            out.fill(self.0);
            Ok(())
        }
    }

    #[test]
    fn first_sessions_end_anywhere_between_a_minute_and_the_greatest_age() {
        let age = |byte| first_age(&mut Same(byte)).unwrap();
        assert_eq!((age(0), age(0xff)), (FIRST_SESSION_MIN, SESSION_AGE_MAX));
        let middle = age(0x7f);
        assert!(middle > SESSION_AGE_MAX * 2 / 5 && middle < SESSION_AGE_MAX * 3 / 5, "{middle:?}");
    }
}
