//! Packing: records in the order of their places, until the bundle is full.

use std::collections::HashMap;

use bytes::Bytes;
use pithead_proto::bundle::v1 as wire;
use pithead_proto::ingest::v1::Hop;
use pithead_sealing::Site;
use pithead_spool::{Lane, Position};
use prost::Message as _;
use prost::encoding::encoded_len_varint;
use sha2::{Digest as _, Sha256};

use super::names::{BundleName, Hour, LargeName, SpoolId};
use super::read::{Large, SUM_BYTES, hops_are_sound};
use super::{BUNDLE_MAX, ENTRIES_MAX, ENVELOPE_MAX, INDEX_MAX, MAGIC, VERSION};
use crate::identity::GatewayName;
use crate::ingest::upload::UPLOAD_MAX;

/// The scalar fields of an index at most: two names, an id, three numbers, their tags.
const HEAD_BYTES: usize = 256;

/// Who packs, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The site that every envelope is of.
    pub site: Site,
    /// Whose spool it is: see [`BundleName::gateway`].
    pub gateway: GatewayName,
    /// That spool.
    pub spool: SpoolId,
    /// The lane that is packed.
    pub lane: Lane,
}

/// What an entry stands for.
#[derive(Debug, Clone)]
pub enum Content {
    /// An envelope that goes into the bundle.
    Here(Bytes),
    /// An envelope that lies whole in the store already.
    Large(Large),
}

impl Content {
    const fn here_bytes(&self) -> u64 {
        match self {
            Self::Here(envelope) => envelope.len() as u64,
            Self::Large(_) => 0,
        }
    }
}

/// Why an entry was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// It goes into the next one.
    #[error("the bundle is full")]
    Full,
    /// Its place is not behind that of the entry before.
    #[error("the places of a bundle ascend")]
    Order,
    /// No bundle can hold it: empty, or larger than what is sent inline.
    #[error("an envelope in a bundle has 1 byte to 4 MiB, a large one up to 1 TiB")]
    Size,
    /// The name of a large one does not fit its site or its header.
    #[error("a large envelope is of the bundle's site, and named by its header")]
    Name,
    /// Who took it in is not told, or not in a form that a reader takes.
    #[error("custody: {0}")]
    Custody(&'static str),
}

/// A bundle that is being filled.
#[derive(Debug)]
pub struct Packer {
    origin: Origin,
    size: u64,
    index: wire::BundleIndex,
    custodies: HashMap<Vec<u8>, u32>,
    last: Option<(Position, u64)>,
    first_us: u64,
    index_bytes: usize,
    envelopes: Vec<Bytes>,
    envelope_bytes: u64,
}

impl Packer {
    /// An empty one, which is full when another entry would make its envelopes larger than `size` bytes, at most
    /// [`BUNDLE_MAX`] with its index. A single envelope larger than `size` is a bundle by itself.
    #[must_use]
    pub fn new(origin: Origin, size: u64) -> Self {
        let index = wire::BundleIndex {
            version: VERSION,
            site: origin.site.to_string(),
            gateway: origin.gateway.to_string(),
            spool: Bytes::copy_from_slice(origin.spool.bytes()),
            lane: origin.lane.index() as u32,
            ..wire::BundleIndex::default()
        };
        Self {
            origin,
            size: size.min(BUNDLE_MAX - INDEX_MAX as u64 - FRONT_BYTES as u64),
            index,
            custodies: HashMap::new(),
            last: None,
            first_us: 0,
            index_bytes: HEAD_BYTES,
            envelopes: Vec::new(),
            envelope_bytes: 0,
        }
    }

    /// Takes an entry in, or leaves everything as it was. `hops` is its custody, the oldest first; the last is the packing
    /// gateway's own word, and says when it was taken in and whether it is one of two that conflict.
    ///
    /// # Errors
    /// [`PackError`]; of these [`Full`](PackError::Full) alone says anything of the bundle.
    pub fn push(&mut self, position: Position, hops: &[Hop], content: Content) -> Result<(), PackError> {
        let (before, before_us) = match self.last {
            Some((last, us)) if position > last => (Some(last), us),
            Some(_) => return Err(PackError::Order),
            None => (None, 0),
        };
        hops_are_sound(hops).map_err(PackError::Custody)?;
        let Some((own, earlier)) = hops.split_last() else { return Err(PackError::Custody("no hop")) };
        self.check(&content)?;
        let here = content.here_bytes();
        if !self.is_empty() && self.envelope_bytes + here > self.size || self.len() == ENTRIES_MAX {
            return Err(PackError::Full);
        }
        let shared = Hop { received_us: 0, conflict: false, ..own.clone() };
        let custody = wire::Custody { hops: earlier.iter().cloned().chain([shared]).collect() };
        let key = custody.encode_to_vec();
        let known = self.custodies.get(&key).copied();
        let new_number = self.index.custodies.len() as u32;
        let entry = wire::Entry {
            position_delta: before.map_or(0, |before| position.0 - before.0 - 1),
            length: here,
            crc32c: match &content {
                Content::Here(envelope) => crc32c::crc32c(envelope),
                Content::Large(_) => 0,
            },
            custody: known.unwrap_or(new_number),
            // Both ways modulo 2^64, so that no clock is too wrong.
            received_us_delta: own.received_us.wrapping_sub(before_us).cast_signed(),
            conflict: own.conflict,
            large: match &content {
                Content::Here(_) => None,
                Content::Large(large) => Some(large.to_wire()),
            },
        };
        let framed = |bytes: usize| 1 + encoded_len_varint(bytes as u64) + bytes;
        let more = framed(entry.encoded_len()) + if known.is_none() { framed(key.len()) } else { 0 };
        if self.index_bytes + more > INDEX_MAX {
            return Err(PackError::Full);
        }
        self.index_bytes += more;
        if known.is_none() {
            self.custodies.insert(key, new_number);
            self.index.custodies.push(custody);
        }
        if before.is_none() {
            self.index.first_position = position.0;
            self.first_us = own.received_us;
        }
        self.last = Some((position, own.received_us));
        self.index.entries.push(entry);
        self.envelope_bytes += here;
        if let Content::Here(envelope) = content {
            self.envelopes.push(envelope);
        }
        Ok(())
    }

    fn check(&self, content: &Content) -> Result<(), PackError> {
        let (bytes, most) = match content {
            Content::Here(envelope) => (envelope.len() as u64, ENVELOPE_MAX),
            Content::Large(large) => (large.total, UPLOAD_MAX),
        };
        if !(1..=most).contains(&bytes) {
            return Err(PackError::Size);
        }
        match content {
            Content::Large(Large { name, header_sha256, .. })
                if name.identity.site != self.origin.site
                    || *name != LargeName::new(name.identity.clone(), header_sha256) =>
            {
                Err(PackError::Name)
            }
            Content::Here(_) | Content::Large(_) => Ok(()),
        }
    }

    /// True if nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.entries.is_empty()
    }

    /// Entries in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.entries.len()
    }

    /// Bytes of the envelopes in it.
    #[must_use]
    pub const fn envelope_bytes(&self) -> u64 {
        self.envelope_bytes
    }

    /// Bytes of the bundle as it is now, at most: with the index.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        (FRONT_BYTES + self.index_bytes) as u64 + self.envelope_bytes
    }

    /// True if it has as many bytes as it should: nothing is gained by waiting.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.envelope_bytes >= self.size || self.len() == ENTRIES_MAX
    }

    /// The bundle, if anything is in it.
    #[must_use]
    pub fn finish(self) -> Option<Packed> {
        let (last, _) = self.last?;
        let Origin { site, gateway, spool, lane } = self.origin;
        let first = Position(self.index.first_position);
        let name = BundleName { site, hour: Hour::of_us(self.first_us), gateway, spool, lane, first };
        let index_bytes = self.index.encoded_len();
        let mut front = Vec::with_capacity(FRONT_BYTES + index_bytes);
        front.extend(MAGIC);
        // `push` keeps it below INDEX_MAX.
        front.extend((index_bytes as u32).to_le_bytes());
        front.extend(self.index.encode_to_vec());
        let sum = Sha256::digest(&front);
        front.extend(sum);
        Some(Packed { name, last, front: front.into(), envelopes: self.envelopes })
    }
}

/// Magic, length and checksum: what is in front besides the index.
const FRONT_BYTES: usize = MAGIC.len() + 4 + SUM_BYTES;

/// A bundle as it goes out.
#[derive(Debug, Clone)]
pub struct Packed {
    /// What it is called.
    pub name: BundleName,
    /// The place of its last entry.
    pub last: Position,
    front: Bytes,
    envelopes: Vec<Bytes>,
}

impl Packed {
    /// Bytes of the object.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.chunks().map(|chunk| chunk.len() as u64).sum()
    }

    /// Its bytes, piece by piece: no envelope is copied.
    pub fn chunks(&self) -> impl Iterator<Item = Bytes> + '_ {
        [&self.front].into_iter().chain(&self.envelopes).cloned()
    }

    /// Its bytes in one piece.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.total_bytes() as usize);
        self.chunks().for_each(|chunk| bytes.extend_from_slice(&chunk));
        bytes.into()
    }
}
