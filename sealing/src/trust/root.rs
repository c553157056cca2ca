//! The trust root: who may sign, with what threshold, under which policy, and which keys are dead.
//!
//! ```text
//! { 1: 1, 2: authority, 3: version, 4: epoch, 5: issued_at, 6: expires_at,
//!   7: { 1: [threshold, [+ kid]], 2: [threshold, [+ kid]] },    role 1 signs roots, role 2 statements
//!   8: [1*16 [kid, alg, spki, label]], 9: [* fingerprint],      keys; denylist
//!   10: { 1: hold_down_s, 2: min_rsa_bits, 3: [+ suite], 4: max_statement_validity_s, ? 5: custody },
//!   ? 11: { ? 1: [+ gateway CA], ? 2: [+ gateway SPKI SHA-256] }, 12: digest of the previous payload }
//! ```

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use super::cbor::{self, CborError, Reader, Writer};
use super::cose::{ObjectType, Signed};
use super::digest::Sha256Digest;
use super::error::TrustError;
use super::keys::{Algorithm, Kid, RoleSpki};
use super::time::UnixTime;

/// Most keys in one root.
pub const MAX_ROOT_KEYS: usize = 16;
/// A payload has no room for more of anything; bounds what a count can make us expect.
const MAX_COUNT: usize = super::cose::MAX_PAYLOAD;

/// The keys of one role, and how many distinct ones must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// At least 1, at most the number of distinct kids.
    pub threshold: u64,
    /// Names of keys listed in [`RootFields::keys`].
    pub kids: Vec<Kid>,
}

/// A key that signs, with the label people know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootKey {
    /// The key; its kid and its algorithm follow from it.
    pub spki: RoleSpki,
    /// For people: who holds it.
    pub label: String,
}

/// Who can *cause* a signature of the statement role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Custody {
    /// A token that is kept offline.
    OfflineToken,
    /// A key in a cloud provider's HSM.
    CloudHsm,
    /// A file: whoever reads the file.
    KeyFile,
}

impl Custody {
    /// The number in the root.
    pub const fn number(self) -> u64 {
        match self {
            Custody::OfflineToken => 1,
            Custody::CloudHsm => 2,
            Custody::KeyFile => 3,
        }
    }

    fn from_number(number: u64) -> Result<Custody, CborError> {
        match number {
            1 => Ok(Custody::OfflineToken),
            2 => Ok(Custody::CloudHsm),
            3 => Ok(Custody::KeyFile),
            _ => Err(CborError::Range),
        }
    }
}

/// What statements under this root may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Operating seconds for which a key is announced before it may be used.
    pub hold_down_s: u64,
    /// Shortest modulus.
    pub min_rsa_bits: u64,
    /// Suites that keys may have.
    pub suites: Vec<i64>,
    /// Longest life of a statement.
    pub max_statement_validity_s: u64,
    /// Who can cause a signature, if declared.
    pub custody: Option<Custody>,
}

/// What a device may hold a gateway's TLS certificate against.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GatewayPins {
    /// Certificate authorities, DER. Empty means that the field is absent.
    pub ca_der: Vec<Vec<u8>>,
    /// SHA-256 of gateways' SPKIs. Empty means that the field is absent.
    pub spki_sha256: Vec<Sha256Digest>,
}

/// What a root says. Plain fields: reading them proves nothing, [`Root`] is the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFields {
    /// The authority's name, for example `acme-mining/prod`.
    pub authority: String,
    /// 1 for the first root, then one more each time.
    pub version: u64,
    /// Raised to undo what a stolen statement key has done.
    pub epoch: u64,
    /// When the root was made.
    pub issued_at: UnixTime,
    /// From here on it authorises no new statement.
    pub expires_at: UnixTime,
    /// Role 1.
    pub root_role: Role,
    /// Role 2.
    pub statement_role: Role,
    /// The keys that roles name.
    pub keys: Vec<RootKey>,
    /// Fingerprints of data keys that are never used again.
    pub denylist: Vec<Sha256Digest>,
    /// What statements may say.
    pub policy: Policy,
    /// Pins for TLS to gateways.
    pub gateways: Option<GatewayPins>,
    /// Digest of the previous root's payload, zeros for version 1.
    pub previous: Sha256Digest,
}

impl RootFields {
    /// The key with this name.
    pub fn key(&self, kid: &Kid) -> Option<&RootKey> {
        self.keys.iter().find(|key| key.spki.kid() == *kid)
    }

    /// Whether a data key is dead.
    pub fn denies(&self, fingerprint: &Sha256Digest) -> bool {
        self.denylist.contains(fingerprint)
    }

    /// The payload, in its one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.map(if self.gateways.is_some() { 12 } else { 11 });
        w.uint(1).uint(1).uint(2).text(&self.authority).uint(3).uint(self.version).uint(4).uint(self.epoch);
        w.uint(5).uint(self.issued_at.0).uint(6).uint(self.expires_at.0);
        w.uint(7).map(2);
        for (label, role) in [(1, &self.root_role), (2, &self.statement_role)] {
            w.uint(label).array(2).uint(role.threshold).array(role.kids.len());
            role.kids.iter().for_each(|kid| {
                w.bytes(kid.as_bytes());
            });
        }
        w.uint(8).array(self.keys.len());
        for RootKey { spki, label } in &self.keys {
            w.array(4)
                .bytes(spki.kid().as_bytes())
                .int(spki.algorithm().cose())
                .bytes(spki.der())
                .text(label);
        }
        w.uint(9).array(self.denylist.len());
        self.denylist.iter().for_each(|dead| {
            w.bytes(dead.as_bytes());
        });
        let policy = &self.policy;
        w.uint(10).map(if policy.custody.is_some() { 5 } else { 4 });
        w.uint(1).uint(policy.hold_down_s).uint(2).uint(policy.min_rsa_bits);
        w.uint(3).array(policy.suites.len());
        policy.suites.iter().for_each(|suite| {
            w.int(*suite);
        });
        w.uint(4).uint(policy.max_statement_validity_s);
        if let Some(custody) = policy.custody {
            w.uint(5).uint(custody.number());
        }
        if let Some(pins) = &self.gateways {
            w.uint(11).map(usize::from(!pins.ca_der.is_empty()) + usize::from(!pins.spki_sha256.is_empty()));
            if !pins.ca_der.is_empty() {
                w.uint(1).array(pins.ca_der.len());
                pins.ca_der.iter().for_each(|ca| {
                    w.bytes(ca);
                });
            }
            if !pins.spki_sha256.is_empty() {
                w.uint(2).array(pins.spki_sha256.len());
                pins.spki_sha256.iter().for_each(|pin| {
                    w.bytes(pin.as_bytes());
                });
            }
        }
        w.uint(12).bytes(self.previous.as_bytes());
        w.finish()
    }

    /// Reads a payload: `PARSE` if it is not deterministic CBOR, `ROOT_KEYS` if it is not a root.
    pub(in crate::trust) fn read_payload(payload: &[u8]) -> Result<RootFields, TrustError> {
        cbor::well_formed(payload).map_err(|_| TrustError::Parse)?;
        let root = RootFields::parse(payload).map_err(|_| TrustError::RootKeys)?;
        root.check_roles()?;
        if root.encode() == payload { Ok(root) } else { Err(TrustError::Parse) }
    }

    fn parse(payload: &[u8]) -> Result<RootFields, CborError> {
        let mut reader = Reader::new(payload);
        let mut fields = reader.map()?;
        if fields.required(1)?.uint()? != 1 {
            return Err(CborError::Range);
        }
        let authority = fields.required(2)?.text()?.to_owned();
        let version = fields.required(3)?.uint()?;
        let epoch = fields.required(4)?.uint()?;
        let issued_at = UnixTime(fields.required(5)?.uint()?);
        let expires_at = UnixTime(fields.required(6)?.uint()?);
        let mut roles = fields.required(7)?.map()?;
        let root_role = read_role(roles.required(1)?)?;
        let statement_role = read_role(roles.required(2)?)?;
        roles.finish()?;
        let keys = read_keys(fields.required(8)?)?;
        let denylist = read_digests(fields.required(9)?, 0)?;
        let mut limits = fields.required(10)?.map()?;
        let hold_down_s = limits.required(1)?.uint()?;
        let min_rsa_bits = limits.required(2)?.uint()?;
        let suites = limits.required(3)?;
        let suites = (0..suites.array(1, MAX_COUNT)?).map(|_| suites.int()).collect::<Result<_, _>>()?;
        let max_statement_validity_s = limits.required(4)?.uint()?;
        let custody = limits.optional(5)?.map(|r| r.uint().and_then(Custody::from_number)).transpose()?;
        limits.finish()?;
        let gateways = fields.optional(11)?.map(read_pins).transpose()?;
        let previous = Sha256Digest::from_bytes(fields.required(12)?.bytes_of()?);
        fields.finish()?;
        reader.finish()?;
        let policy = Policy { hold_down_s, min_rsa_bits, suites, max_statement_validity_s, custody };
        Ok(RootFields {
            authority,
            version,
            epoch,
            issued_at,
            expires_at,
            root_role,
            statement_role,
            keys,
            denylist,
            policy,
            gateways,
            previous,
        })
    }

    fn check_roles(&self) -> Result<(), TrustError> {
        let listed: BTreeSet<Kid> = self.keys.iter().map(|key| key.spki.kid()).collect();
        if listed.len() != self.keys.len() {
            return Err(TrustError::RootKeys);
        }
        let distinct = |role: &Role| role.kids.iter().copied().collect::<BTreeSet<Kid>>();
        let (root, statement) = (distinct(&self.root_role), distinct(&self.statement_role));
        for (role, kids) in [(&self.root_role, &root), (&self.statement_role, &statement)] {
            // A threshold of 0 would be met by nobody's signature; one above the keys by no one ever.
            let reachable = role.threshold >= 1 && role.threshold <= kids.len() as u64;
            if !reachable || !kids.is_subset(&listed) {
                return Err(TrustError::RootKeys);
            }
        }
        // One stolen key must not be two. Key files are one theft anyway, and say so.
        if self.policy.custody != Some(Custody::KeyFile) && !root.is_disjoint(&statement) {
            return Err(TrustError::RootKeys);
        }
        Ok(())
    }

    /// Reads an object's fields and the digest of its payload **without believing its signatures**: for display
    /// and for finding the roots that are newer than one's own.
    pub fn read_unverified(object: &[u8]) -> Result<(RootFields, Sha256Digest), TrustError> {
        let signed = Signed::read(object)?;
        signed.expect(ObjectType::Root)?;
        Ok((RootFields::read_payload(signed.payload)?, Sha256Digest::of(signed.payload)))
    }
}

fn read_role(reader: &mut Reader<'_>) -> Result<Role, CborError> {
    reader.array(2, 2)?;
    let threshold = reader.uint()?;
    let kids = (0..reader.array(1, MAX_COUNT)?)
        .map(|_| reader.bytes_of().map(Kid::from_bytes))
        .collect::<Result<_, _>>()?;
    Ok(Role { threshold, kids })
}

fn read_keys(reader: &mut Reader<'_>) -> Result<Vec<RootKey>, CborError> {
    let count = reader.array(1, MAX_ROOT_KEYS)?;
    let mut keys = Vec::with_capacity(count);
    for _ in 0..count {
        reader.array(4, 4)?;
        let kid = Kid::from_bytes(reader.bytes_of()?);
        let algorithm = Algorithm::from_cose(reader.int()?).ok_or(CborError::Range)?;
        let spki = RoleSpki::from_der(reader.bytes()?).map_err(|_| CborError::Range)?;
        if spki.kid() != kid || spki.algorithm() != algorithm {
            return Err(CborError::Range);
        }
        keys.push(RootKey { spki, label: reader.text()?.to_owned() });
    }
    Ok(keys)
}

fn read_digests(reader: &mut Reader<'_>, least: usize) -> Result<Vec<Sha256Digest>, CborError> {
    (0..reader.array(least, MAX_COUNT)?).map(|_| reader.bytes_of().map(Sha256Digest::from_bytes)).collect()
}

fn read_pins(reader: &mut Reader<'_>) -> Result<GatewayPins, CborError> {
    let mut fields = reader.map()?;
    let mut pins = GatewayPins::default();
    if let Some(reader) = fields.optional(1)? {
        let count = reader.array(1, MAX_COUNT)?;
        pins.ca_der = (0..count).map(|_| reader.bytes().map(<[u8]>::to_vec)).collect::<Result<_, _>>()?;
    }
    if let Some(reader) = fields.optional(2)? {
        pins.spki_sha256 = read_digests(reader, 1)?;
    }
    fields.finish()?;
    Ok(pins)
}

/// A root whose signatures have been verified against the one before it, or against itself if it was
/// provisioned. Cheap to clone; reads as its [`RootFields`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(Arc<SignedRoot>);

#[derive(Debug, PartialEq, Eq)]
struct SignedRoot {
    fields: RootFields,
    digest: Sha256Digest,
    object: Bytes,
}

impl Root {
    pub(in crate::trust) fn verified(fields: RootFields, digest: Sha256Digest, object: Bytes) -> Root {
        Root(Arc::new(SignedRoot { fields, digest, object }))
    }

    /// What the root says.
    pub fn fields(&self) -> &RootFields {
        &self.0.fields
    }

    /// SHA-256 of the payload.
    pub fn digest(&self) -> &Sha256Digest {
        &self.0.digest
    }

    /// The signed object, exactly as received.
    pub fn object(&self) -> &Bytes {
        &self.0.object
    }
}

impl Deref for Root {
    type Target = RootFields;
    fn deref(&self) -> &RootFields {
        &self.0.fields
    }
}
