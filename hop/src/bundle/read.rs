//! Reading: strict, bounded, without panics, whoever has written the bytes.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use pithead_proto::bundle::v1 as wire;
use pithead_proto::ingest::v1::Hop;
use pithead_sealing::Site;
use pithead_spool::{Lane, Position};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use sha2::{Digest as _, Sha256};

use super::names::{BundleName, Hour, LargeName, SpoolId};
use super::{BUNDLE_MAX, ENTRIES_MAX, ENVELOPE_MAX, INDEX_MAX, MAGIC, VERSION};
use crate::identity::GatewayName;
use crate::ingest::admit::HOPS_MAX;
use crate::ingest::upload::UPLOAD_MAX;

pub(super) const SUM_BYTES: usize = 32;

/// Bytes that say how long the front is: magic and length.
pub const FRONT_MIN: usize = MAGIC.len() + 4;

/// Why bytes are no bundle. None of it is cured by reading the same bytes again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It begins with something else.
    #[error("not a bundle: it does not begin with PHBUNDL1")]
    Magic,
    /// An index of another version.
    #[error("the index is of version {0}, and this program reads version {VERSION}")]
    Version(u32),
    /// More than a bundle may have.
    #[error("{bytes} bytes of {what}; at most {most}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// So many.
        bytes: u64,
        /// The bound.
        most: u64,
    },
    /// The object is not as long as its index says.
    #[error("the object has {found} bytes and its index says {expected}")]
    Length {
        /// As the index says.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// The index is not what was written.
    #[error("the checksum of the index does not fit")]
    Checksum,
    /// The index says what no packer writes.
    #[error("the index: {0}")]
    Index(&'static str),
    /// It lies under a name that is not its own.
    #[error("the index is not that of the name that it lies under")]
    Name,
}

/// Whether custody can be shown and stored: what a packer writes and a reader takes.
pub(super) fn hops_are_sound(hops: &[Hop]) -> Result<(), &'static str> {
    if !(1..=HOPS_MAX).contains(&hops.len()) {
        return Err("custody has 1 to 8 hops");
    }
    for hop in hops {
        if GatewayName::new(&hop.gateway).is_err() {
            return Err("a hop has the name of no gateway");
        }
        if !matches!(hop.certificate_sha256.len(), 0 | 32) {
            return Err("a hop's certificate_sha256 is not 32 bytes");
        }
    }
    Ok(())
}

/// A large envelope: an object of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Large {
    /// What the object is called.
    pub name: LargeName,
    /// Bytes of it.
    pub total: u64,
    /// SHA-256 of the envelope's header with its tag.
    pub header_sha256: [u8; 32],
}

impl Large {
    pub(super) fn to_wire(&self) -> wire::Large {
        wire::Large {
            key: self.name.to_string(),
            total: self.total,
            header_sha256: Bytes::copy_from_slice(&self.header_sha256),
        }
    }

    fn from_wire(large: &wire::Large, site: &Site) -> Result<Self, BundleError> {
        let name = LargeName::parse(&large.key)
            .map_err(|_| BundleError::Index("a large envelope has a name that is none"))?;
        let header_sha256: [u8; 32] = large
            .header_sha256
            .as_ref()
            .try_into()
            .map_err(|_| BundleError::Index("a large envelope's header_sha256 is not 32 bytes"))?;
        if name != LargeName::new(name.identity.clone(), &header_sha256) {
            return Err(BundleError::Index("a large envelope's name is not that of its header"));
        }
        if name.identity.site != *site {
            return Err(BundleError::Index("a large envelope is of another site"));
        }
        if !(1..=UPLOAD_MAX).contains(&large.total) {
            return Err(BundleError::Index("a large envelope has 1 byte to 1 TiB"));
        }
        Ok(Self { name, total: large.total, header_sha256 })
    }
}

/// Where an envelope lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// In this bundle.
    Here {
        /// Its bytes.
        length: u32,
        /// CRC32C of them.
        crc32c: u32,
    },
    /// In an object of its own.
    Large(Box<Large>),
}

/// One line of an index.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its place in the lane.
    pub position: Position,
    /// When the packing gateway took it in, by its clock: microseconds since 1970.
    pub received_us: u64,
    /// Other bytes came under its identity; both are sent.
    pub conflict: bool,
    /// Where it lies.
    pub stored: Stored,
    custody: Arc<[Hop]>,
}

impl Entry {
    /// Its custody, the oldest first, as it would travel beside it over the wire.
    #[must_use]
    pub fn hops(&self) -> Vec<Hop> {
        let mut hops = self.custody.to_vec();
        if let Some(own) = hops.last_mut() {
            (own.received_us, own.conflict) = (self.received_us, self.conflict);
        }
        hops
    }

    fn here_bytes(&self) -> u64 {
        match self.stored {
            Stored::Here { length, .. } => length.into(),
            Stored::Large(_) => 0,
        }
    }
}

/// The front of a bundle: what is in it and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    /// The site that every envelope is of.
    pub site: Site,
    /// Whose spool it is: see [`BundleName::gateway`].
    pub gateway: GatewayName,
    /// From which spool.
    pub spool: SpoolId,
    /// From which lane of it.
    pub lane: Lane,
    /// At least one, in ascending order of their places.
    pub entries: Vec<Entry>,
    front_bytes: u64,
}

impl Index {
    /// Bytes from the beginning to the first envelope, told by the first [`FRONT_MIN`] bytes: what to ask a store for to know
    /// what a bundle holds without its envelopes.
    ///
    /// # Errors
    /// [`BundleError`]: fewer bytes than that, no bundle, or an index above its bound.
    pub fn front_bytes(begin: &[u8]) -> Result<u64, BundleError> {
        let Some((magic, rest)) = begin.split_first_chunk::<{ MAGIC.len() }>() else {
            return Err(short(FRONT_MIN as u64, begin));
        };
        if *magic != MAGIC {
            return Err(BundleError::Magic);
        }
        let Some((length, _)) = rest.split_first_chunk::<4>() else {
            return Err(short(FRONT_MIN as u64, begin));
        };
        let (length, most) = (u64::from(u32::from_le_bytes(*length)), INDEX_MAX as u64);
        if length > most {
            return Err(BundleError::TooLarge { what: "index", bytes: length, most });
        }
        Ok((FRONT_MIN + SUM_BYTES) as u64 + length)
    }

    /// Reads the front of a bundle; what lies behind it is not looked at.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn read(bytes: &[u8]) -> Result<Self, BundleError> {
        let front_bytes = Self::front_bytes(bytes)?;
        // It fits: a front is at most some bytes more than INDEX_MAX.
        let Some(front) = bytes.get(..front_bytes as usize) else { return Err(short(front_bytes, bytes)) };
        let (signed, sum) = front.split_at(front.len() - SUM_BYTES);
        if Sha256::digest(signed).as_slice() != sum {
            return Err(BundleError::Checksum);
        }
        let index = &signed[FRONT_MIN..];
        count(index)?;
        let read = wire::BundleIndex::decode(index);
        let read = read.map_err(|_| BundleError::Index("it is not the message that it should be"))?;
        if read.version != VERSION {
            return Err(BundleError::Version(read.version));
        }
        if read.encode_to_vec() != index {
            return Err(BundleError::Index(
                "it holds what this program does not know, or is spelled otherwise",
            ));
        }
        Self::from_wire(&read, front_bytes)
    }

    fn from_wire(index: &wire::BundleIndex, front_bytes: u64) -> Result<Self, BundleError> {
        let refused = BundleError::Index;
        let site = Site::new(&index.site).map_err(|_| refused("the site is none"))?;
        let gateway = GatewayName::new(&index.gateway).map_err(|_| refused("the gateway is none"))?;
        let spool =
            index.spool.as_ref().try_into().map_err(|_| refused("the spool's name is not 16 bytes"))?;
        let lane = Lane::from_index(index.lane as usize).ok_or(refused("there is no such lane"))?;
        if !(1..=ENTRIES_MAX).contains(&index.entries.len()) {
            return Err(refused("a bundle has 1 to 65,536 entries"));
        }
        let custodies = Custodies::read(&index.custodies)?;
        let mut read =
            Self { site, gateway, spool: SpoolId::new(spool), lane, entries: Vec::new(), front_bytes };
        read.entries.reserve_exact(index.entries.len());
        let mut named = 0;
        let mut last: Option<Position> = None;
        let mut received_us = 0_u64;
        for entry in &index.entries {
            let position = match last {
                None if entry.position_delta == 0 => Some(index.first_position),
                None => None,
                Some(last) => last.0.checked_add(1).and_then(|next| next.checked_add(entry.position_delta)),
            };
            let position = position.map(Position).ok_or(refused("a place that is none"))?;
            // In the order in which entries name them: one spelling.
            let number = entry.custody as usize;
            let custody = (number <= named).then(|| custodies.0.get(number).cloned()).flatten();
            named = named.max(number + 1);
            received_us = received_us.wrapping_add_signed(entry.received_us_delta);
            read.entries.push(Entry {
                position,
                received_us,
                conflict: entry.conflict,
                stored: Self::stored(entry, &read.site)?,
                custody: custody.ok_or(refused("custody is named that is not there, or out of turn"))?,
            });
            last = Some(position);
        }
        if named != custodies.0.len() {
            return Err(refused("custody is there that no entry names"));
        }
        match read.total_bytes() {
            bytes if bytes > BUNDLE_MAX => {
                Err(BundleError::TooLarge { what: "bundle", bytes, most: BUNDLE_MAX })
            }
            _ => Ok(read),
        }
    }

    fn stored(entry: &wire::Entry, site: &Site) -> Result<Stored, BundleError> {
        match &entry.large {
            Some(large) if entry.length == 0 && entry.crc32c == 0 => {
                Ok(Stored::Large(Box::new(Large::from_wire(large, site)?)))
            }
            Some(_) => Err(BundleError::Index("an envelope is here and in an object of its own")),
            None if (1..=ENVELOPE_MAX).contains(&entry.length) => {
                // It fits: at most ENVELOPE_MAX.
                Ok(Stored::Here { length: entry.length as u32, crc32c: entry.crc32c })
            }
            None => Err(BundleError::Index("an envelope has 1 byte to 4 MiB")),
        }
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.front_bytes + self.entries.iter().map(Entry::here_bytes).sum::<u64>()
    }

    /// The name of the bundle that has this index.
    #[must_use]
    pub fn name(&self) -> BundleName {
        let Self { site, gateway, spool, lane, entries, .. } = self;
        // No index has no entries.
        let (first, us) =
            entries.first().map_or((Position::START, 0), |entry| (entry.position, entry.received_us));
        let (site, gateway, hour) = (site.clone(), gateway.clone(), Hour::of_us(us));
        BundleName { site, hour, gateway, spool: *spool, lane: *lane, first }
    }

    /// Whether it is the index of that name: who can put objects into a store, but not read them, gains nothing by a copy
    /// under another name.
    ///
    /// # Errors
    /// [`BundleError::Name`].
    pub fn is_of(&self, name: &BundleName) -> Result<(), BundleError> {
        if self.name() == *name { Ok(()) } else { Err(BundleError::Name) }
    }
}

/// Counts what a table is made of before one is made: two bytes in a message are a hundred in memory.
fn count(index: &[u8]) -> Result<(), BundleError> {
    const CUSTODIES: u32 = 7;
    const ENTRIES: u32 = 8;
    const HOPS: u32 = 1;
    let (mut custodies, mut entries) = (0, 0);
    each_field(index, |tag, field| {
        match tag {
            CUSTODIES => {
                custodies += 1;
                let mut hops = 0;
                each_field(field, |tag, _| {
                    hops += usize::from(tag == HOPS);
                    if hops > HOPS_MAX { Err(BundleError::Index("custody has 1 to 8 hops")) } else { Ok(()) }
                })?;
            }
            ENTRIES => entries += 1,
            _ => {}
        }
        match custodies.max(entries) {
            count if count > ENTRIES_MAX => Err(BundleError::Index("a bundle has 1 to 65,536 entries")),
            _ => Ok(()),
        }
    })
}

fn each_field(
    mut message: &[u8],
    mut each: impl FnMut(u32, &[u8]) -> Result<(), BundleError>,
) -> Result<(), BundleError> {
    let not_one = |_| BundleError::Index("it is not the message that it should be");
    while !message.is_empty() {
        let (tag, kind) = decode_key(&mut message).map_err(not_one)?;
        if kind == WireType::LengthDelimited {
            let length = decode_varint(&mut message).map_err(not_one)?;
            let field = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length));
            let Some((field, rest)) = field else {
                return Err(BundleError::Index("it is not the message that it should be"));
            };
            each(tag, field)?;
            message = rest;
        } else {
            skip_field(kind, tag, &mut message, DecodeContext::default()).map_err(not_one)?;
        }
    }
    Ok(())
}

fn short(expected: u64, found: &[u8]) -> BundleError {
    BundleError::Length { expected, found: found.len() as u64 }
}

/// Lists of hops, each once.
struct Custodies(Vec<Arc<[Hop]>>);

impl Custodies {
    fn read(custodies: &[wire::Custody]) -> Result<Self, BundleError> {
        let mut seen = HashSet::new();
        let mut read = Vec::with_capacity(custodies.len());
        for custody in custodies {
            hops_are_sound(&custody.hops).map_err(BundleError::Index)?;
            if custody.hops.last().is_some_and(|own| own.received_us != 0 || own.conflict) {
                return Err(BundleError::Index("custody says what each entry says"));
            }
            if !seen.insert(custody.encode_to_vec()) {
                return Err(BundleError::Index("the same custody is there twice"));
            }
            read.push(custody.hops.clone().into());
        }
        Ok(Self(read))
    }
}

/// An envelope, or where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'a> {
    /// Its bytes, as they were packed.
    Envelope(Bytes),
    /// Its bytes, which are not those that were packed: as they are, for who wants to keep them.
    Damaged(Bytes),
    /// An object of its own.
    Large(&'a Large),
}

/// A whole bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    index: Index,
    bytes: Bytes,
}

impl Bundle {
    /// Reads a whole bundle. Copies no envelope, and looks at none: [`parts`](Self::parts) does.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn read(bytes: Bytes) -> Result<Self, BundleError> {
        let index = Index::read(&bytes)?;
        let (expected, found) = (index.total_bytes(), bytes.len() as u64);
        if expected != found {
            return Err(BundleError::Length { expected, found });
        }
        Ok(Self { index, bytes })
    }

    /// What is in it.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// Each entry with its envelope, in the index's order. One that is damaged says so and hides no other.
    pub fn parts(&self) -> impl Iterator<Item = (&Entry, Part<'_>)> {
        // It fits: the whole object is in memory.
        let mut at = self.index.front_bytes as usize;
        self.index.entries.iter().map(move |entry| {
            let part = match &entry.stored {
                Stored::Here { length, crc32c } => {
                    let envelope = self.bytes.slice(at..at + *length as usize);
                    at += envelope.len();
                    if crc32c::crc32c(&envelope) == *crc32c {
                        Part::Envelope(envelope)
                    } else {
                        Part::Damaged(envelope)
                    }
                }
                Stored::Large(large) => Part::Large(large),
            };
            (entry, part)
        })
    }
}
