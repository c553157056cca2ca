//! The profile: what an envelope of ours must say of itself (envelope document, 2.2 and 2.5).
//!
//! Applied when we seal and at admission of both hops. It reads clear text only; whether that is what was sealed is the
//! opener's to say.

use std::sync::Arc;

use base64ct::{Base64UrlUnpadded, Encoding as _};

use super::context::Context;
use super::edk::{Edk, EdkHash};
use super::header::Header;
use super::profile_values::{ContentType, Encoding, FileName, is_rfc3339};
use crate::names::{DeviceId, Identity, Run, Seq, Site, StreamName};
use crate::trust::{KeyArn, Kid};

/// Pairs in a context at most.
pub const CONTEXT_PAIRS_MAX: usize = 16;
/// Bytes of a serialised context at most.
pub const CONTEXT_LEN_MAX: usize = 1_024;

const OURS: &str = "pithead:";
const AMAZONS: &str = "aws-crypto-";

/// The keys of the context that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // named one to one like the rows of the table they come from
#[non_exhaustive]
pub enum ContextKey {
    ContentType,
    Created,
    Device,
    Encoding,
    Kid,
    Name,
    Run,
    Seq,
    Sid,
    Sig,
    Site,
    Statement,
    Stream,
    V,
}

impl ContextKey {
    const ALL: [Self; 14] = [
        Self::ContentType,
        Self::Created,
        Self::Device,
        Self::Encoding,
        Self::Kid,
        Self::Name,
        Self::Run,
        Self::Seq,
        Self::Sid,
        Self::Sig,
        Self::Site,
        Self::Statement,
        Self::Stream,
        Self::V,
    ];

    /// The key as it stands in the context.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ContentType => "pithead:content-type",
            Self::Created => "pithead:created",
            Self::Device => "pithead:device",
            Self::Encoding => "pithead:encoding",
            Self::Kid => "pithead:kid",
            Self::Name => "pithead:name",
            Self::Run => "pithead:run",
            Self::Seq => "pithead:seq",
            Self::Sid => "pithead:sid",
            Self::Sig => "pithead:sig",
            Self::Site => "pithead:site",
            Self::Statement => "pithead:statement",
            Self::Stream => "pithead:stream",
            Self::V => "pithead:v",
        }
    }
}

impl std::fmt::Display for ContextKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which rule of the profile is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// More than 16 pairs or 1,024 bytes.
    #[error("the encryption context has {pairs} pairs and {bytes} bytes, above 16 pairs or 1024 bytes")]
    ContextTooLarge {
        /// Pairs found.
        pairs: usize,
        /// Bytes found.
        bytes: usize,
    },
    /// A key or value is empty.
    #[error("the encryption context holds an empty key or value")]
    ContextEmptyText,
    /// A key or value is not printable ASCII.
    #[error("the encryption context holds a byte that is not printable ASCII")]
    ContextNotPrintable,
    /// A key begins with `aws-crypto-`.
    #[error("the encryption context holds a key with the reserved prefix aws-crypto-")]
    ReservedKey,
    /// A key begins with `pithead:` and is none of ours.
    #[error("the encryption context holds an unknown pithead: key")]
    UnknownKey,
    /// A required key is absent.
    #[error("{0} is missing from the encryption context")]
    Missing(ContextKey),
    /// A value does not follow its grammar.
    #[error("{0} has a value that it cannot have")]
    BadValue(ContextKey),
    /// `pithead:v` is a version that is not known here.
    #[error("pithead:v is not 1")]
    Version,
    /// The message id carries run 0 or a sequence number of 0 or above 2^63 - 1.
    #[error("the message id carries no run or no sequence number")]
    NoIdentity,
    /// Some but not all of `pithead:kid`, `pithead:run`, `pithead:sid` and `pithead:sig` are there.
    #[error("the session signature is incomplete")]
    SignatureIncomplete,
    /// A signed session has more than one EDK.
    #[error("a signed session has exactly one encrypted data key")]
    SignatureEdks,
    /// `pithead:seq` in a signed session, whose message ids are our own.
    #[error("pithead:seq does not go with a session signature")]
    SeqInSignedSession,
    /// An EDK is of another provider than `aws-kms-rsa`.
    #[error("an encrypted data key is not of provider aws-kms-rsa")]
    EdkProvider,
    /// An EDK names its key by something else than a full key ARN.
    #[error("an encrypted data key does not name its key by a full key ARN")]
    EdkKeyArn,
    /// An EDK is for a key that no statement accepted here has ever named.
    #[error("an encrypted data key is for a key that no accepted statement has named")]
    KeyUnknown,
}

impl ProfileError {
    /// The stable name of the rule.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ContextTooLarge { .. } => "context-too-large",
            Self::ContextEmptyText => "context-empty-text",
            Self::ContextNotPrintable => "context-not-printable",
            Self::ReservedKey => "context-reserved-key",
            Self::UnknownKey => "context-unknown-key",
            Self::Missing(_) => "context-missing-key",
            Self::BadValue(_) => "context-bad-value",
            Self::Version => "context-version",
            Self::NoIdentity => "no-identity",
            Self::SignatureIncomplete => "signature-incomplete",
            Self::SignatureEdks => "signature-edks",
            Self::SeqInSignedSession => "signature-seq",
            Self::EdkProvider => "edk-provider",
            Self::EdkKeyArn => "edk-key-arn",
            Self::KeyUnknown => "key-unknown",
        }
    }
}

/// The session signature as the context carries it. Unproven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureClaim {
    /// The device key by name: first 16 bytes of SHA-256 of its SPKI.
    pub kid: Kid,
    /// The run that the signature is for.
    pub run: Run,
    /// The session's name, which only a holder of the data key can compute.
    pub sid: [u8; 32],
    /// ECDSA P-256, r and s.
    pub sig: [u8; 64],
}

/// What a context of ours says, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContextFacts {
    pub(super) site: Site,
    pub(super) device: DeviceId,
    pub(super) stream: StreamName,
    pub(super) content_type: ContentType,
    pub(super) statement: Option<[u8; 16]>,
    pub(super) encoding: Option<Encoding>,
    pub(super) created: Option<String>,
    pub(super) name: Option<FileName>,
    pub(super) foreign_seq: Option<(Run, Seq)>,
    pub(super) signature: Option<SignatureClaim>,
}

/// What an envelope says of itself, within the profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    identity: Identity,
    said: Arc<SessionFacts>,
}

/// What the context and the EDKs say: the same in all envelopes of a session.
#[derive(Debug, PartialEq, Eq)]
struct SessionFacts {
    context: ContextFacts,
    edks: Vec<(KeyArn, EdkHash)>,
}

/// The session of the envelope that was read before. The next one of a device is mostly of the same session, and what its
/// context and EDKs were found to say need not be found again: they are compared byte for byte. A few KiB.
#[derive(Default)]
pub struct LastSession {
    context: Vec<u8>,
    edks: Vec<Edk>,
    said: Option<Arc<SessionFacts>>,
}

impl Profile {
    /// Reads a header within the profile. Which keys are known is asked separately, with
    /// [`Profile::keys_are_named`].
    ///
    /// # Errors
    /// [`ProfileError`] with the first rule broken.
    pub fn of(header: &Header) -> Result<Self, ProfileError> {
        Self::with(Arc::new(SessionFacts::read(header)?), header)
    }

    /// As [`of`](Self::of), for an envelope that came after another one. True if it is of the same session.
    ///
    /// # Errors
    /// As [`of`](Self::of); the session before stays the last one.
    pub fn after(last: &mut LastSession, header: &Header) -> Result<(Self, bool), ProfileError> {
        if let Some(said) = last.said_by(header) {
            return Ok((Self::with(said, header)?, true));
        }
        let said = Arc::new(SessionFacts::read(header)?);
        let profile = Self::with(Arc::clone(&said), header)?;
        last.remember(header, said);
        Ok((profile, false))
    }

    fn with(said: Arc<SessionFacts>, header: &Header) -> Result<Self, ProfileError> {
        let facts = &said.context;
        let (run, seq) = match facts.foreign_seq {
            Some(pair) => pair,
            None => {
                let id = header.message_id();
                (
                    id.run().map_err(|_| ProfileError::NoIdentity)?,
                    id.seq().map_err(|_| ProfileError::NoIdentity)?,
                )
            }
        };
        let identity = Identity {
            site: facts.site.clone(),
            device: facts.device.clone(),
            stream: facts.stream.clone(),
            run,
            seq,
        };
        Ok(Self { identity, said })
    }

    /// What the envelope is filed under. From the message id, or from `pithead:seq` where a stock SDK sealed.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Media type of the plaintext.
    pub fn content_type(&self) -> &ContentType {
        &self.said.context.content_type
    }

    /// First 16 bytes of SHA-256 of the key statement's payload. Our clients always say it.
    pub fn statement(&self) -> Option<&[u8; 16]> {
        self.said.context.statement.as_ref()
    }

    /// How the plaintext was compressed before it was sealed.
    pub fn encoding(&self) -> Option<Encoding> {
        self.said.context.encoding
    }

    /// RFC 3339 time of a file.
    pub fn created(&self) -> Option<&str> {
        self.said.context.created.as_deref()
    }

    /// Name of a file.
    pub fn file_name(&self) -> Option<&FileName> {
        self.said.context.name.as_ref()
    }

    /// The session signature that the context carries, unproven.
    pub fn signature(&self) -> Option<&SignatureClaim> {
        self.said.context.signature.as_ref()
    }

    /// True if the identity comes from `pithead:seq`: a stock SDK sealed this.
    pub fn is_foreign(&self) -> bool {
        self.said.context.foreign_seq.is_some()
    }

    /// Key and hash of each EDK, in the order of the header; one to three.
    pub fn edks(&self) -> &[(KeyArn, EdkHash)] {
        &self.said.edks
    }

    /// Holds every EDK's key against what statements have named.
    ///
    /// # Errors
    /// [`ProfileError::KeyUnknown`].
    pub fn keys_are_named(&self, mut key_named: impl FnMut(&KeyArn) -> bool) -> Result<(), ProfileError> {
        if self.edks().iter().all(|(arn, _)| key_named(arn)) { Ok(()) } else { Err(ProfileError::KeyUnknown) }
    }
}

impl SessionFacts {
    fn read(header: &Header) -> Result<Self, ProfileError> {
        let context = ContextFacts::read(header.context())?;
        let mut edks = Vec::with_capacity(header.edks().len());
        for edk in header.edks() {
            if !edk.is_kms_rsa() {
                return Err(ProfileError::EdkProvider);
            }
            edks.push((edk.key_arn().ok_or(ProfileError::EdkKeyArn)?, edk.hash()));
        }
        if context.signature.is_some() && edks.len() != 1 {
            return Err(ProfileError::SignatureEdks);
        }
        Ok(Self { context, edks })
    }
}

impl LastSession {
    fn said_by(&self, header: &Header) -> Option<Arc<SessionFacts>> {
        let same = self.context == header.context().as_bytes() && self.edks == header.edks();
        self.said.as_ref().filter(|_| same).map(Arc::clone)
    }

    /// In bytes of its own: a header is a part of its envelope, and would keep all of that in memory.
    fn remember(&mut self, header: &Header, said: Arc<SessionFacts>) {
        self.context.clear();
        self.context.extend_from_slice(header.context().as_bytes());
        self.edks = header.edks().iter().map(Edk::detached).collect();
        self.said = Some(said);
    }
}

impl std::fmt::Debug for LastSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LastSession").field("said", &self.said).finish_non_exhaustive()
    }
}

impl ContextFacts {
    pub(super) fn read(context: &Context) -> Result<Self, ProfileError> {
        let found = Found::collect(context)?;
        if found.required(ContextKey::V)? != "1" {
            return Err(ProfileError::Version);
        }
        let facts = Self {
            site: found.required_as(ContextKey::Site, |text| Site::new(text).ok())?,
            device: found.required_as(ContextKey::Device, |text| DeviceId::new(text).ok())?,
            stream: found.required_as(ContextKey::Stream, |text| StreamName::new(text).ok())?,
            content_type: found.required_as(ContextKey::ContentType, |text| ContentType::new(text).ok())?,
            statement: found.optional_as(ContextKey::Statement, base64)?,
            encoding: found.optional_as(ContextKey::Encoding, Encoding::from_name)?,
            created: found
                .optional_as(ContextKey::Created, |text| is_rfc3339(text).then(|| text.to_owned()))?,
            name: found.optional_as(ContextKey::Name, |text| FileName::from_encoded(text).ok())?,
            foreign_seq: found.optional_as(ContextKey::Seq, foreign_seq)?,
            signature: found.signature()?,
        };
        if facts.signature.is_some() && facts.foreign_seq.is_some() {
            return Err(ProfileError::SeqInSignedSession);
        }
        Ok(facts)
    }
}

/// The values of our keys, each at its key's place.
struct Found<'a>([Option<&'a str>; ContextKey::ALL.len()]);

impl<'a> Found<'a> {
    fn collect(context: &'a Context) -> Result<Self, ProfileError> {
        let (pairs, bytes) = (context.pairs(), context.wire_len());
        if pairs > CONTEXT_PAIRS_MAX || bytes > CONTEXT_LEN_MAX {
            return Err(ProfileError::ContextTooLarge { pairs, bytes });
        }
        let mut found = Self([None; ContextKey::ALL.len()]);
        for (key, value) in context.iter() {
            if key.is_empty() || value.is_empty() {
                return Err(ProfileError::ContextEmptyText);
            }
            if !key.bytes().chain(value.bytes()).all(|byte| (0x20..=0x7e).contains(&byte)) {
                return Err(ProfileError::ContextNotPrintable);
            }
            if key.starts_with(AMAZONS) {
                return Err(ProfileError::ReservedKey);
            }
            if key.starts_with(OURS) {
                let known = ContextKey::ALL.iter().find(|known| known.as_str() == key);
                found.0[*known.ok_or(ProfileError::UnknownKey)? as usize] = Some(value);
            }
        }
        Ok(found)
    }

    fn get(&self, key: ContextKey) -> Option<&'a str> {
        self.0[key as usize]
    }

    fn required(&self, key: ContextKey) -> Result<&'a str, ProfileError> {
        self.get(key).ok_or(ProfileError::Missing(key))
    }

    fn required_as<T>(&self, key: ContextKey, read: impl Fn(&str) -> Option<T>) -> Result<T, ProfileError> {
        read(self.required(key)?).ok_or(ProfileError::BadValue(key))
    }

    fn optional_as<T>(
        &self,
        key: ContextKey,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ProfileError> {
        self.get(key).map(|text| read(text).ok_or(ProfileError::BadValue(key))).transpose()
    }

    fn signature(&self) -> Result<Option<SignatureClaim>, ProfileError> {
        let parts = (
            self.optional_as(ContextKey::Kid, base64)?,
            self.optional_as(ContextKey::Run, |text| text.parse().ok())?,
            self.optional_as(ContextKey::Sid, base64)?,
            self.optional_as(ContextKey::Sig, base64)?,
        );
        match parts {
            (Some(kid), Some(run), Some(sid), Some(sig)) => {
                Ok(Some(SignatureClaim { kid: Kid::from_bytes(kid), run, sid, sig }))
            }
            (None, None, None, None) => Ok(None),
            _ => Err(ProfileError::SignatureIncomplete),
        }
    }
}

/// base64url without padding of exactly N bytes, in its one canonical spelling.
fn base64<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let decoded = Base64UrlUnpadded::decode(text, &mut bytes).ok()?;
    (decoded.len() == N).then_some(bytes)
}

fn foreign_seq(text: &str) -> Option<(Run, Seq)> {
    let (run, seq) = text.split_once('/')?;
    Some((run.parse().ok()?, seq.parse().ok()?))
}
