//! A real authority for tests: real signatures, a public key without a private half.

use bytes::Bytes;
use pithead_sealing::Site;
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{
    Bundle, Custody, KeyArn, KeyStatus, Policy, Role, RootFields, RootKey, SUITE_RSA_OAEP_SHA256,
    Sha256Digest, Statement, StatementFields, StatementKey, UnixTime, verify,
};

pub(crate) const AUTHORITY: &str = "acme-mining/prod";
pub(crate) const ISSUED: u64 = 1_790_000_000;
const YEAR: u64 = 365 * 86_400;

pub(crate) fn site() -> Site {
    Site::new("pit-7").unwrap()
}

pub(crate) fn arn(number: u8) -> KeyArn {
    KeyArn::new(&format!("arn:aws:kms:ap-southeast-2:111122223333:key/key-{number}")).unwrap()
}

/// The strict DER of a public key of 2048 bits that nobody has the private half of.
pub(crate) fn spki(number: u8) -> Bytes {
    const BEFORE: [u8; 33] = [
        0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
        0x05, 0x00, 0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00,
    ];
    let mut der = BEFORE.to_vec();
    der.extend([0xc1; 254]);
    der.extend([number, 0x01]);
    der.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    der.into()
}

fn number_of(arn: &KeyArn) -> u8 {
    arn.key_id().rsplit('-').next().and_then(|number| number.parse().ok()).unwrap()
}

pub(crate) struct Authority {
    root_key: SigningKey,
    statement_key: SigningKey,
    pub(crate) root: Bytes,
    fields: RootFields,
    sequence: u64,
    previous: Sha256Digest,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::with_root_key(1)
    }

    pub(crate) fn with_root_key(seed: u8) -> Self {
        let (root_key, statement_key) = (SigningKey::ed25519(&[seed; 32]), SigningKey::ed25519(&[2; 32]));
        let listed = |key: &SigningKey, label: &str| RootKey { spki: key.public(), label: label.into() };
        let role = |key: &SigningKey| Role { threshold: 1, kids: vec![key.public().kid()] };
        let fields = RootFields {
            authority: AUTHORITY.into(),
            version: 1,
            epoch: 1,
            issued_at: UnixTime(ISSUED),
            expires_at: UnixTime(ISSUED + 2 * YEAR),
            root_role: role(&root_key),
            statement_role: role(&statement_key),
            keys: vec![listed(&root_key, "root"), listed(&statement_key, "statement")],
            denylist: vec![],
            policy: Policy {
                hold_down_s: 0,
                min_rsa_bits: 2048,
                suites: vec![SUITE_RSA_OAEP_SHA256],
                max_statement_validity_s: YEAR,
                custody: Some(Custody::KeyFile),
            },
            gateways: None,
            previous: Sha256Digest::ZERO,
        };
        let mut authority = Self {
            root_key,
            statement_key,
            root: Bytes::new(),
            fields,
            sequence: 0,
            previous: Sha256Digest::ZERO,
        };
        authority.root = authority.sign_root();
        authority
    }

    fn sign_root(&self) -> Bytes {
        let mut draft = Draft::root(&self.fields).unwrap();
        draft.sign(&self.root_key).unwrap();
        draft.finish().unwrap()
    }

    /// The next root, with these fingerprints dead.
    pub(crate) fn next_root(&mut self, denylist: Vec<Sha256Digest>) -> Bytes {
        let (_, digest) = RootFields::read_unverified(&self.root).unwrap();
        self.fields.version += 1;
        self.fields.previous = digest;
        self.fields.denylist = denylist;
        self.root = self.sign_root();
        self.root.clone()
    }

    /// The next statement as bytes.
    pub(crate) fn statement_object(&mut self, keys: &[(&KeyArn, KeyStatus)]) -> Bytes {
        self.sequence += 1;
        let issued = ISSUED + self.sequence * 60;
        let key = |(arn, status): &(&KeyArn, KeyStatus)| StatementKey {
            arn: (*arn).clone(),
            suite: SUITE_RSA_OAEP_SHA256,
            fingerprint: Sha256Digest::of(&spki(number_of(arn))),
            bits: 2048,
            status: *status,
            not_before: UnixTime(ISSUED),
            seal_until: UnixTime(ISSUED + YEAR),
            decrypt_until: None,
            reason: None,
        };
        let fields = StatementFields {
            authority: AUTHORITY.into(),
            sites: vec![site()],
            root_version: self.fields.version,
            epoch: self.fields.epoch,
            sequence: self.sequence,
            issued_at: UnixTime(issued),
            refresh_by: UnixTime(issued + 86_400),
            expires_at: UnixTime(issued + 30 * 86_400),
            previous: self.previous,
            keys: keys.iter().map(key).collect(),
            ticket: None,
        };
        let mut draft = Draft::statement(&fields).unwrap();
        draft.sign(&self.statement_key).unwrap();
        self.previous = draft.digest();
        draft.finish().unwrap()
    }

    /// The next statement, verified.
    pub(crate) fn statement(&mut self, keys: &[(&KeyArn, KeyStatus)]) -> Statement {
        let root = verify::first_root(AUTHORITY, &self.first_root()).unwrap();
        let object = self.statement_object(keys);
        verify::statement(&root, &object).unwrap().statement
    }

    /// The next statement with the keys that it names.
    pub(crate) fn bundle(&mut self, keys: &[(&KeyArn, KeyStatus)]) -> Bundle {
        let spkis = keys.iter().map(|(arn, _)| spki(number_of(arn))).collect();
        Bundle { roots: vec![], statement: Some(self.statement_object(keys)), spkis }
    }

    fn first_root(&self) -> Bytes {
        Self::new_root_of(self)
    }

    fn new_root_of(&self) -> Bytes {
        if self.fields.version == 1 { self.root.clone() } else { Self::new().root }
    }
}
