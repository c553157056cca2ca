//! The names and bytes of an upload on disk, drawn in the module above.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pithead_proto::ingest::v1::Hop;
use pithead_sealing::envelope::Header;
use pithead_sealing::{DeviceId, Identity, Run, Seq, Site, StreamName};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::program::disk;

/// Bytes under one checksum. What a cut connection costs is at most this and what was on the wire.
pub const BLOCK_BYTES: u64 = 32 << 10;

const MAGIC: [u8; 4] = *b"PHUP";
const VERSION: u16 = 1;
const PREFIX: usize = 16;
const PAGE: usize = 4096;
/// A header within the profile has some 2 kB, custody some 1 kB; a file that says more is none of ours.
const META_MAX: usize = 1 << 20;

/// SHA-256 of an envelope's header: what an upload is compared by.
pub(crate) type HeaderHash = [u8; 32];

pub(crate) fn header_hash(header: &Header) -> HeaderHash {
    Sha256::digest(header.wire()).into()
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredMeta {
    #[prost(uint64, tag = "1")]
    total: u64,
    #[prost(bytes = "bytes", tag = "2")]
    header: Bytes,
    #[prost(message, repeated, tag = "3")]
    hops: Vec<Hop>,
}

/// What an upload is, without its body.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    pub(crate) total: u64,
    pub(crate) header: Header,
    pub(crate) hops: Vec<Hop>,
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        let header = self.header.wire().clone();
        let message = StoredMeta { total: self.total, header, hops: self.hops.clone() }.encode_to_vec();
        let region = region_bytes(message.len());
        let mut out = Vec::with_capacity(region);
        out.extend(MAGIC);
        out.extend([0; 4]);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 2]);
        // A header is at most some hundred kB, which the reader of headers sees to.
        out.extend((message.len() as u32).to_le_bytes());
        out.extend(message);
        out.resize(region, 0);
        let sum = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Writes the file of checksums with none in it yet; whole or absent.
    pub(crate) fn write(&self, paths: &Paths) -> io::Result<()> {
        disk::replace(&paths.sums, &self.encode())
    }

    /// Reads it back, with the length of its region. Not one of ours, or damaged, is `InvalidData`.
    pub(crate) fn read(sums: &File) -> io::Result<(Self, u64)> {
        let not_ours = || io::Error::from(io::ErrorKind::InvalidData);
        let mut prefix = [0; PREFIX];
        sums.read_exact_at(&mut prefix, 0)?;
        let word =
            |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
        let length = word(12) as usize;
        if prefix[..4] != MAGIC || prefix[8..10] != VERSION.to_le_bytes() || length > META_MAX {
            return Err(not_ours());
        }
        let mut region = vec![0; region_bytes(length)];
        sums.read_exact_at(&mut region, 0)?;
        if crc32c::crc32c(&region[8..]) != word(4) {
            return Err(not_ours());
        }
        let message = Bytes::copy_from_slice(&region[PREFIX..PREFIX + length]);
        let stored = StoredMeta::decode(message).map_err(|_| not_ours())?;
        let header = Header::parse(&stored.header).map_err(|_| not_ours())?;
        Ok((Self { total: stored.total, header, hops: stored.hops }, region.len() as u64))
    }
}

fn region_bytes(message: usize) -> usize {
    (PREFIX + message).div_ceil(PAGE) * PAGE
}

/// What an upload is called, on the wire and on disk.
pub(crate) fn upload_name(identity: &Identity) -> String {
    let Identity { site, device, stream, run, seq } = identity;
    format!("{site}~{device}~{stream}~{run}~{seq:020}")
}

/// The identity in an upload's name.
pub(crate) fn identity_of(name: &str) -> Option<Identity> {
    let mut fields = name.split('~');
    let mut next = || fields.next();
    let identity = Identity {
        site: Site::new(next()?).ok()?,
        device: DeviceId::new(next()?).ok()?,
        stream: StreamName::new(next()?).ok()?,
        run: Run::new(u64::from_str_radix(next()?, 16).ok()?).ok()?,
        seq: Seq::new(next()?.parse().ok()?).ok()?,
    };
    // One spelling each: nobody can have two uploads of one identity.
    (upload_name(&identity) == name).then_some(identity)
}

/// Where the parts of an upload lie.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub(crate) part: PathBuf,
    pub(crate) envelope: PathBuf,
    pub(crate) sums: PathBuf,
}

const PART: &str = "part";
const ENVELOPE: &str = "envelope";
const SUMS: &str = "sums";

impl Paths {
    pub(crate) fn new(folder: &Path, identity: &Identity) -> Self {
        // None of the names holds a '~', a '/' or '..', and a device's may hold dots: the ending is appended.
        let stem = upload_name(identity);
        let ending = |ending: &str| folder.join(format!("{stem}.{ending}"));
        Self { part: ending(PART), envelope: ending(ENVELOPE), sums: ending(SUMS) }
    }

    /// The identity in a file's name, and whether it is the file of checksums.
    pub(crate) fn parse(name: &str) -> Option<(Identity, bool)> {
        let (stem, ending) = name.rsplit_once('.')?;
        let is_sums = match ending {
            SUMS => true,
            PART | ENVELOPE => false,
            _ => return None,
        };
        Some((identity_of(stem)?, is_sums))
    }

    /// What the whole envelope is called when its bytes are found damaged.
    fn aside(&self) -> PathBuf {
        let mut aside = self.envelope.as_os_str().to_owned();
        aside.push(".damaged");
        aside.into()
    }

    /// Gives the whole envelope a name that nobody reads, and removes the rest.
    pub(crate) fn set_aside(&self) -> io::Result<()> {
        match disk::publish(&self.envelope, &self.aside()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.remove()
    }

    /// Removes all of it. What cannot be removed is found again at the next start.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut failed = None;
        for path in [&self.part, &self.envelope, &self.sums] {
            match std::fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Whether no byte of an envelope lies in this folder of uploads: neither whole, nor set aside as damaged, nor a part. For
/// whoever looks on from outside; what cannot be looked at counts as there. Blocks.
#[must_use]
pub fn is_gone(folder: &Path, identity: &Identity) -> bool {
    let paths = Paths::new(folder, identity);
    [&paths.envelope, &paths.part, &paths.aside()].iter().all(|path| matches!(path.try_exists(), Ok(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_as_the_identity_that_it_was_made_of() {
        let identity = Identity {
            site: Site::new("pit-7").unwrap(),
            device: DeviceId::new("truck.42-a_b").unwrap(),
            stream: StreamName::new("files").unwrap(),
            run: Run::new(0x3_0000_0001).unwrap(),
            seq: Seq::new(7).unwrap(),
        };
        let paths = Paths::new(Path::new("/u"), &identity);
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name(&paths.part), "pit-7~truck.42-a_b~files~0000000300000001~00000000000000000007.part");
        assert_eq!(Paths::parse(&name(&paths.sums)), Some((identity.clone(), true)));
        assert_eq!(Paths::parse(&name(&paths.envelope)), Some((identity, false)));
        for other in
            ["x", "a~b.part", "pit-7~t~files~1~0.part", "pit-7~t~files~1~1.json", "pit-7~t~s~1~1~2.part"]
        {
            assert_eq!(Paths::parse(other), None, "{other}");
        }
    }
}
