//! What cannot go to the sink is kept beside it, still sealed: `DATA/refused` (poison, with its reason) and `DATA/conflicts`
//! (other bytes under a used identity).
//!
//! One file per envelope, and the name says it all:
//! `<area>/<site>/<device>/<stream>-<run>-<seq>-<first 8 bytes of SHA-256>.<PH-code>.envelope`. The same bytes for the same
//! reason are one file however often they come. Each device has at most [`PER_DEVICE_BYTES`] and [`PER_DEVICE_ENVELOPES`] in
//! each area, so that one broken device cannot fill the disk; beyond that nothing is kept, and the answer says so (the
//! sender keeps what is refused as well).

use pithead_hop::program::disk::{create_folder, sync_folder};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{DeviceId, Identity, Site};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Bytes kept per device and area. A week of conflicts of a broken device is far less; what is more is not looked at by hand.
pub const PER_DEVICE_BYTES: u64 = 64 * 1024 * 1024;

/// Envelopes kept per device and area.
pub const PER_DEVICE_ENVELOPES: u64 = 1_000;

/// What an envelope is called that is kept beside a sink.
#[must_use]
pub fn name_of(identity: &Identity, sha256: &[u8; 32], reason: ErrorReason) -> String {
    format!(
        "{}-{}-{:020}-{}.{}.envelope",
        identity.stream,
        identity.run,
        identity.seq.get(),
        hex::encode(&sha256[..8]),
        reason.code(),
    )
}

/// Whether an envelope was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Written now, and durable.
    New,
    /// The same bytes were kept before.
    Already,
    /// This device's share is used up.
    Full,
}

#[derive(Debug, Default, Clone, Copy)]
struct Share {
    bytes: u64,
    envelopes: u64,
}

/// One of the two areas. Synchronous, with one owner.
#[derive(Debug)]
pub struct Area {
    root: PathBuf,
    shares: HashMap<(Site, DeviceId), Share>,
    total: Share,
}

impl Area {
    /// Opens the area below the data directory and counts what is in it.
    pub fn open(root: &Path) -> io::Result<Self> {
        create_folder(root)?;
        let mut area = Self { root: root.to_owned(), shares: HashMap::new(), total: Share::default() };
        for site in fs::read_dir(root)? {
            let site = site?;
            let Some(site_name) = site.file_name().to_str().and_then(|name| Site::new(name).ok()) else {
                continue;
            };
            for device in fs::read_dir(site.path())? {
                let device = device?;
                let Some(name) = device.file_name().to_str().and_then(|n| DeviceId::new(n).ok()) else {
                    continue;
                };
                for file in fs::read_dir(device.path())? {
                    let file = file?;
                    if file.path().extension().is_some_and(|ext| ext == "part") {
                        // A killed process left it.
                        fs::remove_file(file.path())?;
                    } else {
                        area.count((site_name.clone(), name.clone()), file.metadata()?.len());
                    }
                }
            }
        }
        Ok(area)
    }

    fn count(&mut self, device: (Site, DeviceId), bytes: u64) {
        for share in [self.shares.entry(device).or_default(), &mut self.total] {
            share.bytes += bytes;
            share.envelopes += 1;
        }
    }

    /// Envelopes and bytes in the area.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.total.envelopes, self.total.bytes)
    }

    /// Keeps a sealed envelope; durable when this returns.
    pub fn keep(
        &mut self,
        identity: &Identity,
        sha256: &[u8; 32],
        reason: ErrorReason,
        sealed: &[u8],
    ) -> io::Result<Kept> {
        let folder = self.root.join(identity.site.as_str()).join(identity.device.as_str());
        let name = name_of(identity, sha256, reason);
        let path = folder.join(name);
        if path.try_exists()? {
            sync_folder(&folder)?;
            return Ok(Kept::Already);
        }
        let device = (identity.site.clone(), identity.device.clone());
        let share = self.shares.get(&device).copied().unwrap_or_default();
        if share.envelopes >= PER_DEVICE_ENVELOPES
            || share.bytes.saturating_add(sealed.len() as u64) > PER_DEVICE_BYTES
        {
            return Ok(Kept::Full);
        }
        if let Some(site_folder) = folder.parent() {
            create_folder(site_folder)?;
        }
        create_folder(&folder)?;
        let part = path.with_extension("part");
        let mut file = File::create(&part)?;
        file.write_all(sealed)?;
        file.sync_data()?;
        renameat_with(CWD, &part, CWD, &path, RenameFlags::NOREPLACE)?;
        sync_folder(&folder)?;
        self.count(device, sealed.len() as u64);
        Ok(Kept::New)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::testing::identity;

    #[test]
    fn poison_is_kept_once_with_its_reason_in_the_name() {
        let data = tempfile::tempdir().unwrap();
        let root = data.path().join("refused");
        let mut area = Area::open(&root).unwrap();
        let keep = |area: &mut Area| {
            area.keep(&identity("t", 9), &[7; 32], ErrorReason::EnvelopeFrameTag, b"sealed").unwrap()
        };
        assert_eq!(keep(&mut area), Kept::New);
        assert_eq!(keep(&mut area), Kept::Already);
        let mut reopened = Area::open(&root).unwrap();
        assert_eq!(reopened.totals(), (1, 6));
        assert_eq!(keep(&mut reopened), Kept::Already);
        let file =
            root.join("pit-7/t/can-0000000300000001-00000000000000000009-0707070707070707.PH-2009.envelope");
        assert_eq!(fs::read(file).unwrap(), b"sealed");
    }

    #[test]
    fn one_device_fills_its_own_share_only() {
        let data = tempfile::tempdir().unwrap();
        let mut area = Area::open(&data.path().join("conflicts")).unwrap();
        let big = vec![0; 40 << 20];
        let keep = |area: &mut Area, device: &str, seq| {
            area.keep(&identity(device, seq), &[seq as u8; 32], ErrorReason::Conflict, &big).unwrap()
        };
        assert_eq!(keep(&mut area, "a", 1), Kept::New);
        assert_eq!(keep(&mut area, "a", 2), Kept::Full);
        assert_eq!(keep(&mut area, "b", 1), Kept::New);
    }
}
