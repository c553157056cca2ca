//! A device's trust as stored bytes, about 3 kB, nothing secret.
//!
//! ```text
//! record = [ 1, body: bstr, SHA-256 of body ]                     deterministic CBOR, 1 is the format's version
//! body = { 1: authority, 2: site, 3: operated_s, 4: root object, 5: floor, 6: cosignature needed 0 / 1, ? 7: stored }
//! stored = { 1: statement object, 2: SPKI of the key in use, 3: floor,
//!            4: [* [fingerprint, listed since operated_s, in use 0 / 1]] }
//! floor = [ unix time, operated_s at which it was that time or later ]
//! ```
//!
//! No I/O here: the store with two slots belongs to whoever has the disk. The digest is against a damaged disk, not
//! against somebody who writes to it: who can write here can provision another root as well. The root is checked
//! against its own threshold again; the statement's signatures cannot be, since its root may be gone.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::announced::Announced;
use super::apply::prove;
use super::cbor::{CborError, Reader, Writer};
use super::cose::{ObjectType, Signed};
use super::device::{Device, Stored};
use super::digest::Sha256Digest;
use super::error::TrustError;
use super::floor::Floor;
use super::root::{Root, RootFields};
use super::statement::{KeyStatus, MAX_KEYS, Statement, StatementFields};
use super::time::{Clock, UnixTime};
use super::verify;
use crate::names::Site;

const FORMAT: u64 = 1;

/// Longest record: two objects, an SPKI and some numbers. A store may refuse to read more.
pub const MAX_STATE: usize = 40_960;

impl Device {
    /// The state as bytes, with the operating seconds up to `clock`.
    pub fn encode(&self, clock: Clock) -> Vec<u8> {
        let mut body = Writer::default();
        body.map(if self.stored.is_some() { 7 } else { 6 });
        body.uint(1).text(&self.root.authority).uint(2).text(self.site.as_str());
        body.uint(3).uint(self.operated_s(clock)).uint(4).bytes(self.root.object());
        body.uint(5).array(2).uint(self.root_floor.time.0).uint(self.root_floor.operated);
        body.uint(6).uint(u64::from(self.cosignature_needed));
        if let Some(stored) = &self.stored {
            body.uint(7).map(4).uint(1).bytes(stored.statement.object()).uint(2).bytes(stored.key.spki_der());
            body.uint(3).array(2).uint(stored.floor.time.0).uint(stored.floor.operated);
            body.uint(4).array(stored.announced.len());
            for known in &stored.announced {
                body.array(3)
                    .bytes(known.fingerprint.as_bytes())
                    .uint(known.since)
                    .uint(u64::from(known.in_use));
            }
        }
        let body = body.finish();
        let mut record = Writer::default();
        record.array(3).uint(FORMAT).bytes(&body).bytes(Sha256Digest::of(&body).as_bytes());
        record.finish()
    }

    /// Reads stored bytes back; the operating seconds of the new value's [`Clock`] begin at 0.
    ///
    /// Refuses with `STATE` what is damaged, of a newer format, or contradicts itself.
    pub fn restore(bytes: &[u8]) -> Result<Device, TrustError> {
        let device = read_record(bytes).map_err(|_| TrustError::State)?;
        if device.encode(Clock::default()) == bytes { Ok(device) } else { Err(TrustError::State) }
    }
}

/// Any reason not to believe stored bytes; the caller needs only to know that there is one.
struct Damaged;

impl From<CborError> for Damaged {
    fn from(_: CborError) -> Damaged {
        Damaged
    }
}

impl From<TrustError> for Damaged {
    fn from(_: TrustError) -> Damaged {
        Damaged
    }
}

fn holds(condition: bool) -> Result<(), Damaged> {
    if condition { Ok(()) } else { Err(Damaged) }
}

fn read_record(bytes: &[u8]) -> Result<Device, Damaged> {
    holds(bytes.len() <= MAX_STATE)?;
    let mut record = Reader::new(bytes);
    record.array(3, 3)?;
    holds(record.uint()? == FORMAT)?;
    let body = record.bytes()?;
    holds(Sha256Digest::from_bytes(record.bytes_of()?) == Sha256Digest::of(body))?;
    record.finish()?;

    let mut reader = Reader::new(body);
    let mut fields = reader.map()?;
    let authority = fields.required(1)?.text()?.to_owned();
    let site = Site::new(fields.required(2)?.text()?).map_err(|_| Damaged)?;
    let operated_before = fields.required(3)?.uint()?;
    let root = read_root(&authority, fields.required(4)?.bytes()?)?;
    let root_floor = read_floor(fields.required(5)?, operated_before)?;
    let cosignature_needed = read_flag(fields.required(6)?)?;
    let stored = fields.optional(7)?.map(|reader| read_stored(reader, &root, &site, operated_before));
    let stored = stored.transpose()?;
    fields.finish()?;
    reader.finish()?;
    holds(!(cosignature_needed && stored.is_some()))?;
    Ok(Device { site, root, root_floor, operated_before, cosignature_needed, stored, revision: 0 })
}

fn read_root(authority: &str, object: &[u8]) -> Result<Root, Damaged> {
    Ok(verify::first_root(authority, &Bytes::copy_from_slice(object))?)
}

fn read_flag(reader: &mut Reader<'_>) -> Result<bool, Damaged> {
    match reader.uint()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Damaged),
    }
}

fn read_floor(reader: &mut Reader<'_>, operated: u64) -> Result<Floor, Damaged> {
    reader.array(2, 2)?;
    let floor = Floor { time: UnixTime(reader.uint()?), operated: reader.uint()? };
    holds(floor.operated <= operated)?;
    Ok(floor)
}

fn read_stored(reader: &mut Reader<'_>, root: &Root, site: &Site, operated: u64) -> Result<Stored, Damaged> {
    let mut fields = reader.map()?;
    let statement = read_statement(fields.required(1)?.bytes()?, root, site)?;
    let spki = Bytes::copy_from_slice(fields.required(2)?.bytes()?);
    let floor = read_floor(fields.required(3)?, operated)?;
    let announced = read_announced(fields.required(4)?, &statement, operated)?;
    fields.finish()?;
    let fingerprint = Sha256Digest::of(&spki);
    let chosen = statement.key(&fingerprint).ok_or(Damaged)?;
    holds(chosen.status == KeyStatus::Active)?;
    holds(announced.iter().any(|known| known.fingerprint == fingerprint && known.in_use))?;
    let key = prove(chosen, &statement, &[spki])?;
    Ok(Stored { statement, key, announced, floor })
}

fn read_statement(object: &[u8], root: &RootFields, site: &Site) -> Result<Statement, Damaged> {
    let signed = Signed::read(object)?;
    signed.expect(ObjectType::Statement)?;
    let fields = StatementFields::read_payload(signed.payload)?;
    holds(fields.authority == root.authority && fields.epoch == root.epoch)?;
    holds(fields.root_version <= root.version && fields.sites.contains(site))?;
    let digest = Sha256Digest::of(signed.payload);
    Ok(Statement::verified(fields, digest, Bytes::copy_from_slice(object)))
}

/// The table lists exactly the statement's next and active keys, in its order.
fn read_announced(
    reader: &mut Reader<'_>,
    statement: &StatementFields,
    operated: u64,
) -> Result<Vec<Announced>, Damaged> {
    let count = reader.array(1, MAX_KEYS)?;
    let mut table = Vec::with_capacity(count);
    for _ in 0..count {
        reader.array(3, 3)?;
        let fingerprint = Sha256Digest::from_bytes(reader.bytes_of()?);
        let since = reader.uint()?;
        let in_use = read_flag(reader)?;
        let active = statement.key(&fingerprint).is_some_and(|key| key.status == KeyStatus::Active);
        holds(since <= operated && (active || !in_use))?;
        table.push(Announced { fingerprint, since, in_use });
    }
    let listed: BTreeSet<_> = table.iter().map(|known| known.fingerprint).collect();
    let expected: BTreeSet<_> =
        statement.keys.iter().filter(|key| key.status.is_listed()).map(|key| key.fingerprint).collect();
    holds(listed == expected && table.len() == expected.len())?;
    Ok(table)
}
