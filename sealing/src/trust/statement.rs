//! The key statement: all keys of a site in one signed object, so that nobody can mix and match.
//!
//! ```text
//! { 1: 1, 2: authority, 3: [1*16 site], 4: root_version, 5: epoch, 6: sequence,
//!   7: issued_at, 8: refresh_by, 9: expires_at, 10: digest of the previous payload, 11: [1*8 key], ? 13: ticket }
//! key = { 1: ARN, 2: suite, 3: fingerprint, 4: bits, 5: status, 6: not_before, 7: seal_until,
//!         ? 8: decrypt_until, ? 9: reason }
//! ```

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::names::Site;

use super::arn::KeyArn;
use super::cbor::{CborError, Reader, Writer};
use super::cose::{ObjectType, Signed};
use super::digest::Sha256Digest;
use super::error::TrustError;
use super::time::UnixTime;

/// Most sites that one statement is for.
pub const MAX_SITES: usize = 16;
/// Most keys in one statement.
pub const MAX_KEYS: usize = 8;
/// RSAES-OAEP with SHA-256, MGF1 with SHA-256, empty label (COSE -41).
pub const SUITE_RSA_OAEP_SHA256: i64 = -41;

/// Where a key stands in its life. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyStatus {
    /// Announced: will be active.
    Next,
    /// Sealed to.
    Active,
    /// Not sealed to any more, still decrypted with.
    Retired,
    /// Never to be used again.
    Revoked,
}

impl KeyStatus {
    /// The number in the statement.
    pub const fn number(self) -> u64 {
        self as u64
    }

    fn from_number(number: u64) -> Result<KeyStatus, CborError> {
        match number {
            0 => Ok(KeyStatus::Next),
            1 => Ok(KeyStatus::Active),
            2 => Ok(KeyStatus::Retired),
            3 => Ok(KeyStatus::Revoked),
            _ => Err(CborError::Range),
        }
    }

    /// Next or active: the time in this state counts as announcement.
    pub const fn is_listed(self) -> bool {
        matches!(self, KeyStatus::Next | KeyStatus::Active)
    }
}

/// One key of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementKey {
    /// The full KMS ARN.
    pub arn: KeyArn,
    /// How to seal to it: COSE number of the suite.
    pub suite: i64,
    /// SHA-256 of the SPKI in DER.
    pub fingerprint: Sha256Digest,
    /// Length of the modulus.
    pub bits: u64,
    /// Where it stands.
    pub status: KeyStatus,
    /// Active from here on.
    pub not_before: UnixTime,
    /// Nothing is sealed to it from here on.
    pub seal_until: UnixTime,
    /// The authority promises to be able to decrypt until then.
    pub decrypt_until: Option<UnixTime>,
    /// Why it was retired or revoked, for people.
    pub reason: Option<String>,
}

/// What a statement says. Plain fields: reading them proves nothing, [`Statement`] is the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementFields {
    /// The authority's name.
    pub authority: String,
    /// The sites that it is for.
    pub sites: Vec<Site>,
    /// Version of the root that it was made under.
    pub root_version: u64,
    /// That root's epoch.
    pub epoch: u64,
    /// At least 1, rising within an epoch.
    pub sequence: u64,
    /// When it was signed.
    pub issued_at: UnixTime,
    /// Stale after this.
    pub refresh_by: UnixTime,
    /// Expired from here on.
    pub expires_at: UnixTime,
    /// Digest of the previous statement's payload.
    pub previous: Sha256Digest,
    /// The keys.
    pub keys: Vec<StatementKey>,
    /// The change request behind it, for people.
    pub ticket: Option<String>,
}

impl StatementFields {
    /// The payload, in its one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.map(if self.ticket.is_some() { 12 } else { 11 });
        w.uint(1).uint(1).uint(2).text(&self.authority).uint(3).array(self.sites.len());
        self.sites.iter().for_each(|site| {
            w.text(site.as_str());
        });
        w.uint(4).uint(self.root_version).uint(5).uint(self.epoch).uint(6).uint(self.sequence);
        w.uint(7).uint(self.issued_at.0).uint(8).uint(self.refresh_by.0).uint(9).uint(self.expires_at.0);
        w.uint(10).bytes(self.previous.as_bytes());
        w.uint(11).array(self.keys.len());
        self.keys.iter().for_each(|key| key.write(&mut w));
        if let Some(ticket) = &self.ticket {
            w.uint(13).text(ticket);
        }
        w.finish()
    }

    /// Reads a payload; `PARSE` unless it is strictly a statement.
    pub(in crate::trust) fn read_payload(payload: &[u8]) -> Result<StatementFields, TrustError> {
        let statement = StatementFields::parse(payload).map_err(|_| TrustError::Parse)?;
        let arns: BTreeSet<_> = statement.keys.iter().map(|key| &key.arn).collect();
        let fingerprints: BTreeSet<_> = statement.keys.iter().map(|key| &key.fingerprint).collect();
        // A key that stands there twice could be active in one place and revoked in the other.
        if arns.len() != statement.keys.len() || fingerprints.len() != statement.keys.len() {
            return Err(TrustError::Parse);
        }
        if statement.encode() == payload { Ok(statement) } else { Err(TrustError::Parse) }
    }

    fn parse(payload: &[u8]) -> Result<StatementFields, CborError> {
        let mut reader = Reader::new(payload);
        let mut fields = reader.map()?;
        if fields.required(1)?.uint()? != 1 {
            return Err(CborError::Range);
        }
        let authority = fields.required(2)?.text()?.to_owned();
        let sites = fields.required(3)?;
        let sites = (0..sites.array(1, MAX_SITES)?)
            .map(|_| Site::new(sites.text()?).map_err(|_| CborError::Range))
            .collect::<Result<_, _>>()?;
        let root_version = fields.required(4)?.uint()?;
        let epoch = fields.required(5)?.uint()?;
        let sequence = fields.required(6)?.uint()?;
        if sequence == 0 {
            return Err(CborError::Range);
        }
        let issued_at = UnixTime(fields.required(7)?.uint()?);
        let refresh_by = UnixTime(fields.required(8)?.uint()?);
        let expires_at = UnixTime(fields.required(9)?.uint()?);
        let previous = Sha256Digest::from_bytes(fields.required(10)?.bytes_of()?);
        let keys = fields.required(11)?;
        let keys =
            (0..keys.array(1, MAX_KEYS)?).map(|_| StatementKey::read(keys)).collect::<Result<_, _>>()?;
        let ticket = fields.optional(13)?.map(|r| r.text().map(str::to_owned)).transpose()?;
        fields.finish()?;
        reader.finish()?;
        Ok(StatementFields {
            authority,
            sites,
            root_version,
            epoch,
            sequence,
            issued_at,
            refresh_by,
            expires_at,
            previous,
            keys,
            ticket,
        })
    }

    /// Reads an object's fields and the digest of its payload **without believing its signatures**: for display.
    pub fn read_unverified(object: &[u8]) -> Result<(StatementFields, Sha256Digest), TrustError> {
        let signed = Signed::read(object)?;
        signed.expect(ObjectType::Statement)?;
        Ok((StatementFields::read_payload(signed.payload)?, Sha256Digest::of(signed.payload)))
    }

    /// The key with this fingerprint.
    pub fn key(&self, fingerprint: &Sha256Digest) -> Option<&StatementKey> {
        self.keys.iter().find(|key| key.fingerprint == *fingerprint)
    }

    /// The key with this ARN.
    pub fn key_by_arn(&self, arn: &KeyArn) -> Option<&StatementKey> {
        self.keys.iter().find(|key| key.arn == *arn)
    }
}

impl StatementKey {
    fn write(&self, w: &mut Writer) {
        w.map(7 + usize::from(self.decrypt_until.is_some()) + usize::from(self.reason.is_some()));
        w.uint(1).text(self.arn.as_str()).uint(2).int(self.suite).uint(3).bytes(self.fingerprint.as_bytes());
        w.uint(4).uint(self.bits).uint(5).uint(self.status.number());
        w.uint(6).uint(self.not_before.0).uint(7).uint(self.seal_until.0);
        if let Some(decrypt_until) = self.decrypt_until {
            w.uint(8).uint(decrypt_until.0);
        }
        if let Some(reason) = &self.reason {
            w.uint(9).text(reason);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<StatementKey, CborError> {
        let mut fields = reader.map()?;
        let key = StatementKey {
            arn: KeyArn::new(fields.required(1)?.text()?).map_err(|_| CborError::Range)?,
            suite: fields.required(2)?.int()?,
            fingerprint: Sha256Digest::from_bytes(fields.required(3)?.bytes_of()?),
            bits: fields.required(4)?.uint()?,
            status: fields.required(5)?.uint().and_then(KeyStatus::from_number)?,
            not_before: UnixTime(fields.required(6)?.uint()?),
            seal_until: UnixTime(fields.required(7)?.uint()?),
            decrypt_until: fields.optional(8)?.map(|r| r.uint().map(UnixTime)).transpose()?,
            reason: fields.optional(9)?.map(|r| r.text().map(str::to_owned)).transpose()?,
        };
        fields.finish()?;
        Ok(key)
    }
}

/// A statement whose signatures have been verified against a root. Cheap to clone; reads as its
/// [`StatementFields`]. It says what the authority stated, not that a device may act on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement(Arc<SignedStatement>);

#[derive(Debug, PartialEq, Eq)]
struct SignedStatement {
    fields: StatementFields,
    digest: Sha256Digest,
    object: Bytes,
}

impl Statement {
    pub(in crate::trust) fn verified(
        fields: StatementFields,
        digest: Sha256Digest,
        object: Bytes,
    ) -> Statement {
        Statement(Arc::new(SignedStatement { fields, digest, object }))
    }

    /// What the statement says.
    pub fn fields(&self) -> &StatementFields {
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

    /// (epoch, sequence): rises with every newer statement.
    pub fn version(&self) -> (u64, u64) {
        (self.0.fields.epoch, self.0.fields.sequence)
    }
}

impl Deref for Statement {
    type Target = StatementFields;
    fn deref(&self) -> &StatementFields {
        &self.0.fields
    }
}
