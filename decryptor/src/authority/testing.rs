//! A real authority in a temporary folder, real RSA keys, and envelopes sealed to them.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use bytes::Bytes;
use pithead_sealing::envelope::{
    ContentType, Encoding, KernelEntropy, Session, SessionClock, SessionContext,
};
use pithead_sealing::trust::authoring::SigningKey;
use pithead_sealing::trust::{KeyArn, KeyStatus, RsaSpki, UnixTime, VerifiedKey};
use pithead_sealing::{DeviceId, Run, Seq, Site, StreamName};

use super::{
    AuthorityDir, AuthorityError, InitOptions, Issued, KeyFileSigner, OfferedKey, StatementRequest, init,
    issue, read_signing_key,
};

pub(crate) const DAY: u64 = 86_400;
/// 2026-11-23T00:00:00Z
pub(crate) const START: UnixTime = UnixTime(1_795_392_000);

pub(crate) fn site(name: &str) -> Site {
    Site::new(name).unwrap()
}

pub(crate) fn arn(number: u32) -> KeyArn {
    KeyArn::new(&format!("arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-0000-0000-{number:012}"))
        .unwrap()
}

/// An RSA key pair, its private half in a file.
pub(crate) struct TestKey {
    pub(crate) arn: KeyArn,
    pub(crate) spki: RsaSpki,
    pub(crate) pem: PathBuf,
}

impl TestKey {
    pub(crate) fn generate(folder: &Path, number: u32, size: KeySize) -> TestKey {
        let private = PrivateDecryptingKey::generate(size).unwrap();
        let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
        let document = pkcs8::SecretDocument::try_from(der.as_ref()).unwrap();
        let pem = folder.join(format!("data-{number}.pem"));
        document.write_pem_file(&pem, "PRIVATE KEY", pkcs8::LineEnding::LF).unwrap();
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        TestKey { arn: arn(number), spki: RsaSpki::from_der(spki.as_ref()).unwrap(), pem }
    }

    pub(crate) fn offered(&self, status: KeyStatus) -> OfferedKey {
        OfferedKey { arn: self.arn.clone(), spki: Some(self.spki.clone()), status }
    }
}

pub(crate) struct TestAuthority {
    pub(crate) folder: tempfile::TempDir,
    signer: KeyFileSigner,
}

impl TestAuthority {
    pub(crate) fn new() -> TestAuthority {
        let folder = tempfile::tempdir().unwrap();
        let options = InitOptions { min_rsa_bits: 2048, ..InitOptions::new("acme-mining/prod") };
        let dir = folder.path().join("authority");
        init(&dir, &options, START).unwrap();
        let key = read_signing_key(&dir.join("keys/statement-1.pem"), None).unwrap();
        TestAuthority { folder, signer: KeyFileSigner::new(key) }
    }

    /// One with a key in force at `pit-7`.
    pub(crate) async fn with_key() -> (TestAuthority, TestKey, VerifiedKey) {
        let authority = TestAuthority::new();
        let key = authority.key(1);
        let verified = authority.list(&[key.offered(KeyStatus::Active)], START).await.unwrap().in_force;
        (authority, key, verified)
    }

    pub(crate) fn key(&self, number: u32) -> TestKey {
        TestKey::generate(self.folder.path(), number, KeySize::Rsa2048)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("authority")
    }

    /// A key of the folder, such as `root-1`.
    pub(crate) fn role_key(&self, name: &str) -> SigningKey {
        read_signing_key(&self.dir().key_path(name), None).unwrap()
    }

    pub(crate) fn dir(&self) -> AuthorityDir {
        AuthorityDir::open(&self.folder.path().join("authority")).unwrap()
    }

    pub(crate) async fn issue(
        &self,
        request: &StatementRequest,
        now: UnixTime,
    ) -> Result<Issued, AuthorityError> {
        issue(&self.dir(), &self.signer, &[], request, now).await
    }

    /// The same, with the root keys' signatures beside.
    pub(crate) async fn issue_cosigned(
        &self,
        request: &StatementRequest,
        now: UnixTime,
    ) -> Result<Issued, AuthorityError> {
        let root_keys = ["root-1", "root-2"].map(|name| self.role_key(name));
        issue(&self.dir(), &self.signer, &root_keys, request, now).await
    }

    /// A statement for `pit-7` with these keys, and no rule about a standby.
    pub(crate) async fn list(&self, keys: &[OfferedKey], now: UnixTime) -> Result<Issued, AuthorityError> {
        self.issue(&request(keys), now).await
    }
}

pub(crate) fn request(keys: &[OfferedKey]) -> StatementRequest {
    StatementRequest { keys: keys.to_vec(), no_standby: true, ..StatementRequest::to(vec![site("pit-7")]) }
}

/// Starts a session of `truck-1` at `pit-7`.
pub(crate) fn session(key: &VerifiedKey, stream: &str, encoding: Option<Encoding>) -> Session {
    let content_type = ContentType::new("text/plain").unwrap();
    let device = DeviceId::new("truck-1").unwrap();
    let context = SessionContext::new(site("pit-7"), device, StreamName::new(stream).unwrap(), content_type);
    let context = match encoding {
        Some(encoding) => context.encoding(encoding),
        None => context,
    };
    let clock = SessionClock { boot: Duration::ZERO, now: key.seal_until().0.saturating_sub(DAY).into() };
    Session::start(key, &context, Run::new(7).unwrap(), None, clock, &mut KernelEntropy).unwrap()
}

pub(crate) fn seal(session: &mut Session, seq: u64, plaintext: &[u8]) -> Bytes {
    let sealed = session.seal(Seq::new(seq).unwrap(), plaintext, Duration::ZERO, &mut KernelEntropy).unwrap();
    sealed.bytes().clone()
}
