//! A verified key the only way there is one, and what tests of the envelope share.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, clippy::unwrap_used)]

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use pithead_sealing::envelope::open::{OpenError, Opened, open_message};
use pithead_sealing::envelope::{
    ContentType, Edk, Entropy, EntropyError, SealedEnvelope, Session, SessionClock, SessionContext, Unwrapped,
};
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::root::{Policy, Role, RootFields, RootKey};
use pithead_sealing::trust::statement::{KeyStatus, SUITE_RSA_OAEP_SHA256, StatementFields, StatementKey};
use pithead_sealing::trust::{Bundle, Clock, Device, KeyArn, Sha256Digest, UnixTime, VerifiedKey};
use pithead_sealing::{DeviceId, Run, Seq, Site, StreamName};

pub const NOW: UnixTime = UnixTime(1_800_000_000);

pub struct TestKey {
    pub private: OaepPrivateDecryptingKey,
    pub spki_der: Vec<u8>,
    pub arn: KeyArn,
}

/// The vectors' test key of this many bits: making one takes longer than all tests.
pub fn test_key(bits: &str) -> TestKey {
    use base64ct::{Base64, Encoding};
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../vectors/envelope.json")).unwrap();
    let key = &vectors["keys"][format!("rsa{bits}")];
    let pem = key["private_pkcs8_pem"].as_str().unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let private = PrivateDecryptingKey::from_pkcs8(&Base64::decode_vec(&base64).unwrap()).unwrap();
    TestKey {
        private: OaepPrivateDecryptingKey::new(private).unwrap(),
        spki_der: Base64::decode_vec(key["public_spki_der_b64"].as_str().unwrap()).unwrap(),
        arn: KeyArn::new(key["key_arn"].as_str().unwrap()).unwrap(),
    }
}

pub static KEY: LazyLock<TestKey> = LazyLock::new(|| test_key("2048"));
pub static OTHER_KEY: LazyLock<TestKey> = LazyLock::new(|| test_key("3072"));
pub static VERIFIED: LazyLock<VerifiedKey> = LazyLock::new(|| verified(&KEY, 1));

impl TestKey {
    pub fn unwrap(&self, edk: &Edk) -> Option<Unwrapped> {
        let mut plaintext = vec![0; self.private.min_output_size()];
        let opened =
            self.private.decrypt(&OAEP_SHA256_MGF1SHA256, edk.ciphertext(), &mut plaintext, None).ok()?;
        Unwrapped::read(opened).ok()
    }

    pub fn open(&self, envelope: &Bytes) -> Result<Opened, OpenError> {
        open_message(envelope, |arn| *arn == self.arn, |_, edk| self.unwrap(edk))
    }
}

pub fn site() -> Site {
    Site::new("pit-7").unwrap()
}

/// Signs a root and a statement that names `key`, and has a device verify both.
pub fn verified(key: &TestKey, sequence: u64) -> VerifiedKey {
    let signer = SigningKey::ed25519(&[7; 32]);
    let statement_signer = SigningKey::ed25519(&[8; 32]);
    let role = |key: &SigningKey| Role { threshold: 1, kids: vec![key.public().kid()] };
    let listed = |key: &SigningKey| RootKey { spki: key.public(), label: "test".to_owned() };
    let root = RootFields {
        authority: "acme-mining/test".to_owned(),
        version: 1,
        epoch: 1,
        issued_at: UnixTime(NOW.0 - 1_000),
        expires_at: NOW.plus(100_000_000),
        root_role: role(&signer),
        statement_role: role(&statement_signer),
        keys: vec![listed(&signer), listed(&statement_signer)],
        denylist: Vec::new(),
        policy: Policy {
            hold_down_s: 0,
            min_rsa_bits: 2048,
            suites: vec![SUITE_RSA_OAEP_SHA256],
            max_statement_validity_s: 100_000_000,
            custody: None,
        },
        gateways: None,
        previous: Sha256Digest::ZERO,
    };
    let statement = StatementFields {
        authority: root.authority.clone(),
        sites: vec![site()],
        root_version: 1,
        epoch: 1,
        sequence,
        issued_at: NOW,
        refresh_by: NOW.plus(1_000),
        expires_at: NOW.plus(10_000),
        previous: Sha256Digest::ZERO,
        keys: vec![StatementKey {
            arn: key.arn.clone(),
            suite: SUITE_RSA_OAEP_SHA256,
            fingerprint: Sha256Digest::of(&key.spki_der),
            bits: key.private.key_size_bits() as u64,
            status: KeyStatus::Active,
            not_before: UnixTime(NOW.0 - 1_000),
            seal_until: NOW.plus(10_000),
            decrypt_until: None,
            reason: None,
        }],
        ticket: None,
    };
    let sign = |draft: Result<Draft, _>, signer: &SigningKey| {
        let mut draft: Draft = draft.unwrap();
        draft.sign(signer).unwrap();
        draft.finish().unwrap()
    };
    let clock = Clock::trusted(0, NOW);
    let mut device =
        Device::provision(&root.authority, &site(), &sign(Draft::root(&root), &signer), clock).unwrap();
    let bundle = Bundle {
        roots: Vec::new(),
        statement: Some(sign(Draft::statement(&statement), &statement_signer)),
        spkis: vec![key.spki_der.clone().into()],
    };
    device.apply(&bundle, clock).unwrap();
    device.verified_key(clock).unwrap()
}

/// Repeatable bytes: good for tests alone.
pub struct Counter(pub u64);

impl Entropy for Counter {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        use sha2::Digest;
        for piece in out.chunks_mut(32) {
            self.0 += 1;
            let block = sha2::Sha256::digest(self.0.to_be_bytes());
            piece.copy_from_slice(&block[..piece.len()]);
        }
        Ok(())
    }
}

pub fn context() -> SessionContext {
    SessionContext::new(
        site(),
        DeviceId::new("truck-0042").unwrap(),
        StreamName::new("telemetry").unwrap(),
        ContentType::batch(),
    )
}

pub fn run() -> Run {
    Run::from_parts(3, 0x1234_5678).unwrap()
}

pub fn seq(value: u64) -> Seq {
    Seq::new(value).unwrap()
}

pub const CLOCK: SessionClock = SessionClock { boot: Duration::from_secs(100), now: NOW };

pub fn session(entropy: u64) -> Session {
    Session::start(&VERIFIED, &context(), run(), None, CLOCK, &mut Counter(entropy)).unwrap()
}

pub fn sealed(plaintext: &[u8]) -> SealedEnvelope {
    session(1).seal(seq(1), plaintext, CLOCK.boot, &mut Counter(100)).unwrap()
}
