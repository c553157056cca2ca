//! From plaintext to sealed envelope: key, session, number.
//!
//! A [`Sealer`] needs no network and no outbox: it is for those who carry the bytes themselves. It asks for the key at
//! every envelope, so that a denylisted or replaced key is not sealed to a moment longer, and starts a session when the
//! old one has ended, the key or the content has changed, or the line has begun a new run.
//!
//! The first session of a line after a start, after a rest or under another key ends at a random age: a fleet that has power again at one
//! moment, begins its shift at one, or hears of a new key at one, would otherwise ask the cloud for all of its data keys in the same
//! minute of every quarter of an hour, for the rest of the day.
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

/// A line that has sealed nothing for so long begins anew: its session has ended, whenever it began. After a shorter pause a line is
/// as it was: one that seals now and then would otherwise begin anew all day, and each time that costs a part of a data key.
const REST: Duration = SESSION_AGE_MAX;

/// A session that begins anew lives at least so long: what is over sooner is a data key, and a call of KMS, for nothing.
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
    sessions: BTreeMap<StreamName, Current>,
    sessions_started: u64,
}

/// What a line seals in.
#[derive(Debug)]
struct Current {
    content: Content,
    session: Session,
    /// `CLOCK_BOOTTIME` when it was last asked for.
    used: Duration,
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
        let session = self.session(stream, content, run, boot)?;
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
        Ok(self.session(stream, content, run, DeviceClock::since_boot())?.sealed_len(plaintext_len))
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
        let clock = self.session_clock(DeviceClock::since_boot());
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
        boot: Duration,
    ) -> Result<&mut Session, SealError> {
        let key = self.keys.verified_key()?;
        let last = self.sessions.get(stream);
        if !last.is_some_and(|last| last.goes_on(content, run, &key, boot)) {
            let age = age_of_next(last, &key, boot, &mut KernelEntropy).map_err(SessionError::from)?;
            let context = self.context(stream, content);
            let (signer, clock) = (self.signer.as_ref(), self.session_clock(boot));
            let mut session = Session::start(&key, &context, run, signer, clock, &mut KernelEntropy)?;
            session.end_at_age(age);
            self.sessions_started += 1;
            self.sessions.insert(stream.clone(), Current { content: content.clone(), session, used: boot });
        }
        let current = self.sessions.get_mut(stream).expect("it is there, or was just put there");
        current.used = boot;
        Ok(&mut current.session)
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

    fn session_clock(&self, boot: Duration) -> SessionClock {
        SessionClock { boot, now: self.keys.trust().now(self.keys.clock().now()) }
    }
}

impl Current {
    fn goes_on(&self, content: &Content, run: Run, key: &VerifiedKey, boot: Duration) -> bool {
        self.content == *content
            && self.session.line().run == run
            && !self.session.key_changed(key)
            && self.session.needs_rotation(boot).is_none()
    }
}

/// How long the session may live that a line begins at `boot`, after `last` if the program has sealed on it before.
///
/// The greatest age, unless the line begins anew: after a start, after a rest, or since the key is another one. That happens to a whole
/// fleet at one moment, so its sessions end anywhere between the least and the greatest age: what began together ends apart.
fn age_of_next(
    last: Option<&Current>,
    key: &VerifiedKey,
    boot: Duration,
    entropy: &mut dyn Entropy,
) -> Result<Duration, EntropyError> {
    let is_as_it_was =
        |last: &Current| boot.saturating_sub(last.used) < REST && !last.session.key_changed(key);
    if last.is_some_and(is_as_it_was) {
        return Ok(SESSION_AGE_MAX);
    }
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
    use crate::{keys::testing::case, state::MemoryStore};

    const MINUTE: Duration = Duration::from_secs(60);

    struct Same(u8);

    impl Entropy for Same {
        fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
            out.fill(self.0);
            Ok(())
        }
    }

    /// A sealer with a key, and a bundle with another one.
    struct Rig {
        sealer: Sealer,
        next_key: pithead_sealing::trust::Bundle,
    }

    impl Rig {
        fn new() -> Self {
            let (mut keys, mut bundles) = case("emergency-rotation");
            let next_key = bundles.pop().unwrap();
            keys.apply(&bundles.pop().unwrap()).unwrap();
            let sequence = Sequence::open(Box::<MemoryStore>::default(), [], &mut KernelEntropy).unwrap();
            Self { sealer: Sealer::new(DeviceId::new("truck-7").unwrap(), keys, sequence), next_key }
        }

        fn stream() -> StreamName {
            StreamName::new("can").unwrap()
        }

        /// Seals something at `boot`. If a session began for it: whether that will end before its time.
        fn seal(&mut self, boot: Duration) -> Option<bool> {
            let (before, run) = (self.sealer.sessions_started(), Run::new(1).unwrap());
            let session = self.sealer.session(&Self::stream(), &Content::batch(), run, boot).unwrap();
            let ends = session.needs_rotation(boot + SESSION_AGE_MAX - Duration::from_nanos(1)).is_some();
            (self.sealer.sessions_started() > before).then_some(ends)
        }

        /// How long a session may live that begins at `boot`, by the same draw each time.
        fn age(&self, boot: Duration, drawn: u8) -> Duration {
            let (last, key) = (self.sealer.sessions.get(&Self::stream()), self.sealer.keys.verified_key());
            age_of_next(last, &key.unwrap(), boot, &mut Same(drawn)).unwrap()
        }
    }

    #[test]
    fn the_first_session_of_a_line_ends_anywhere_between_a_minute_and_the_greatest_age() {
        let mut rig = Rig::new();
        assert_eq!((rig.age(MINUTE, 0), rig.age(MINUTE, 0xff)), (FIRST_SESSION_MIN, SESSION_AGE_MAX));
        let middle = rig.age(MINUTE, 0x7f);
        assert!(middle > SESSION_AGE_MAX * 2 / 5 && middle < SESSION_AGE_MAX * 3 / 5, "{middle:?}");
        assert_eq!(rig.seal(MINUTE), Some(true));
    }

    #[test]
    fn a_line_that_goes_on_has_sessions_of_the_greatest_age_and_one_that_has_rested_begins_anew() {
        let mut rig = Rig::new();
        rig.seal(MINUTE);
        let begun: Vec<bool> = [10, 18, 26].into_iter().filter_map(|at| rig.seal(at * MINUTE)).collect();
        assert!(!begun.is_empty() && begun.iter().all(|shortened| !shortened), "{begun:?}");
        // By its last envelope, and not by when its session began.
        let rested = 26 * MINUTE + REST;
        let nearly = rested - Duration::from_nanos(1);
        assert_eq!((rig.age(nearly, 0), rig.age(rested, 0)), (SESSION_AGE_MAX, FIRST_SESSION_MIN));
        assert_eq!(rig.seal(rested), Some(true));
    }

    #[test]
    fn the_session_after_a_change_of_key_begins_anew_and_the_one_after_it_does_not() {
        let mut rig = Rig::new();
        rig.seal(MINUTE);
        assert_eq!(rig.seal(MINUTE), None);
        rig.sealer.keys.apply(&rig.next_key).unwrap();
        assert_eq!(rig.age(MINUTE, 0), FIRST_SESSION_MIN);
        assert_eq!(rig.seal(MINUTE), Some(true));
        // Whenever that one has ended, the key is the same.
        assert_eq!(rig.age(MINUTE + SESSION_AGE_MAX - Duration::from_nanos(1), 0), SESSION_AGE_MAX);
    }

    #[test]
    fn a_line_that_seals_every_few_minutes_begins_anew_once() {
        let mut rig = Rig::new();
        let (mut at, mut begun) = (MINUTE, Vec::new());
        for record in 0..500 {
            begun.extend(rig.seal(at));
            at += MINUTE * (2 + record * 7 % 11);
        }
        assert!(begun.len() > 100, "{}", begun.len());
        assert!(begun[0] && begun[1..].iter().all(|shortened| !shortened), "{begun:?}");
    }
}
