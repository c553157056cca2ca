//! Envelopes of anybody: sealed as the real client seals, with names and keys that a real device would not use.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use pithead_hop::keys::KeyFile;
use pithead_proto::batch::{self, v1::Batch};
use pithead_sealing::{
    DeviceId, Run, Seq, Site, StreamName,
    envelope::{
        ContentType, Context, DeviceSigningKey, KernelEntropy, Session, SessionClock, SessionContext,
    },
    trust::{Bundle, Clock, Device, Statement, StatementFields, VerifiedKey, verify},
};
use prost::Message as _;

use crate::{
    authority::{self, AUTHORITY, Authority},
    kms::KmsKey,
    site::SITE,
};

/// Seals to one key.
#[derive(Clone, Debug)]
pub struct Forge {
    key: VerifiedKey,
}

/// Seals the numbers of one line under one data key: as a device does it, and quick.
#[derive(Debug)]
pub struct ForgedLine(Session);

impl ForgedLine {
    /// The next envelope of the line, or any other.
    pub fn seal(&mut self, seq: u64, plaintext: &[u8]) -> anyhow::Result<Bytes> {
        let sealed = self.0.seal(Seq::new(seq)?, plaintext, Duration::ZERO, &mut KernelEntropy)?;
        Ok(sealed.bytes().clone())
    }

    /// What all of its envelopes say in clear.
    #[must_use]
    pub fn context(&self) -> &Context {
        self.0.context()
    }
}

/// Whose an envelope says it is.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The site.
    pub site: &'a str,
    /// The device.
    pub device: &'a str,
    /// The run.
    pub run: u64,
    /// The number in it.
    pub seq: u64,
}

impl<'a> Claim<'a> {
    /// Number 1 of run 1 of a device of the site.
    #[must_use]
    pub fn of(device: &'a str) -> Self {
        Self { site: SITE, device, run: 1, seq: 1 }
    }
}

impl Forge {
    /// To the key of a site's bundle.
    pub fn new(authority: &Authority) -> anyhow::Result<Self> {
        let bundle = read_bundle(&authority.bundle(SITE))?;
        Self::believing(authority, bundle.bundle)
    }

    /// To a key that no statement of the authority names: this forge alone believes in it, with the help of the statement
    /// key.
    pub fn with_unknown_key(authority: &Authority, key: &KmsKey) -> anyhow::Result<Self> {
        let last = last_statement(authority)?;
        let mut fields = last.fields().clone();
        let [only, ..] = fields.keys.as_mut_slice() else { anyhow::bail!("a statement without keys") };
        only.arn = key.arn().parse().context("an ARN")?;
        only.fingerprint = pithead_sealing::trust::Sha256Digest::of(key.spki_der());
        fields.keys.truncate(1);
        let object = authority::sign(&fields, &authority.stolen_statement_key()?)?;
        let spki = Bytes::copy_from_slice(key.spki_der());
        Self::believing(authority, Bundle { roots: Vec::new(), statement: Some(object), spkis: vec![spki] })
    }

    /// Seals a batch on the stream `can`, as a device does.
    pub fn seal_batch(&self, claim: Claim<'_>, batch: &Batch) -> anyhow::Result<Bytes> {
        let mut session = self.start(claim, "can", batch::v1::CONTENT_TYPE, None)?;
        let plaintext = batch.encode_to_vec();
        let sealed = session.seal(Seq::new(claim.seq)?, &plaintext, Duration::ZERO, &mut KernelEntropy)?;
        Ok(sealed.bytes().clone())
    }

    fn believing(authority: &Authority, bundle: Bundle) -> anyhow::Result<Self> {
        let site = Site::new(SITE)?;
        let root = std::fs::read(authority.root())?;
        let clock = Clock::default();
        let mut device = Device::provision(AUTHORITY, &site, &root, clock).context("the root")?;
        device.apply(&bundle.newer_than(1), clock).context("the statement")?;
        Ok(Self { key: device.verified_key(clock).context("the key")? })
    }

    /// Seals one message.
    pub fn seal(&self, claim: Claim<'_>, plaintext: &[u8]) -> anyhow::Result<Bytes> {
        self.line(claim)?.seal(claim.seq, plaintext)
    }

    /// One message that only the cloud can see is damaged: the tag of its last frame is not that of its bytes, which nobody
    /// without the data key can tell.
    pub fn poison(&self, claim: Claim<'_>, plaintext: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut bytes = self.seal(claim, plaintext)?.to_vec();
        *bytes.last_mut().context("an empty envelope")? ^= 1;
        Ok(bytes)
    }

    /// Begins a line: what is sealed is what `claim` says, but for the number.
    pub fn line(&self, claim: Claim<'_>) -> anyhow::Result<ForgedLine> {
        Ok(ForgedLine(self.session(claim)?))
    }

    /// The same, its session signed with a device's key.
    pub fn signed_line(&self, claim: Claim<'_>, key: &DeviceSigningKey) -> anyhow::Result<ForgedLine> {
        Ok(ForgedLine(self.start(claim, "forged", "text/plain", Some(key))?))
    }

    /// A session of the claimed device and run, for many messages.
    pub fn session(&self, claim: Claim<'_>) -> anyhow::Result<Session> {
        self.start(claim, "forged", "text/plain", None)
    }

    /// The public key that is sealed to.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        self.key.spki_der()
    }

    fn start(
        &self,
        claim: Claim<'_>,
        stream: &str,
        content_type: &str,
        signer: Option<&DeviceSigningKey>,
    ) -> anyhow::Result<Session> {
        let (site, device) = (Site::new(claim.site)?, DeviceId::new(claim.device)?);
        let context =
            SessionContext::new(site, device, StreamName::new(stream)?, ContentType::new(content_type)?);
        let clock = SessionClock { boot: Duration::ZERO, now: authority::now() };
        let run = Run::new(claim.run)?;
        Ok(Session::start(&self.key, &context, run, signer, clock, &mut KernelEntropy)?)
    }
}

/// A bundle file.
pub fn read_bundle(path: &Path) -> anyhow::Result<KeyFile> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    KeyFile::decode(bytes.into()).context("a bundle")
}

/// The statement in the authority's bundle, its signature verified.
pub fn last_statement(authority: &Authority) -> anyhow::Result<Statement> {
    let bundle = read_bundle(&authority.bundle(SITE))?.bundle;
    let root = verify::first_root(AUTHORITY, bundle.roots.first().context("no root")?).context("the root")?;
    let object = bundle.statement.context("no statement")?;
    Ok(verify::statement(&root, &object).context("the statement")?.statement)
}

/// The authority's bundle with another statement in it, and other public keys if there are any, as a file.
pub fn write_bundle(
    authority: &Authority,
    statement: Bytes,
    spkis: &[&KmsKey],
    path: &Path,
) -> anyhow::Result<()> {
    let mut file = read_bundle(&authority.bundle(SITE))?;
    file.bundle.statement = Some(statement);
    if !spkis.is_empty() {
        file.bundle.spkis = spkis.iter().map(|key| Bytes::copy_from_slice(key.spki_der())).collect();
    }
    std::fs::write(path, file.encode()).with_context(|| path.display().to_string())
}

/// What the statement after `last` says if nothing changes.
#[must_use]
pub fn successor(last: &Statement) -> StatementFields {
    StatementFields { sequence: last.sequence + 1, previous: *last.digest(), ..last.fields().clone() }
}
