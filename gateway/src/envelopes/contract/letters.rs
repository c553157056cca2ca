//! The envelopes of all lives, sealed once: a life takes them by line, number and version.

use std::sync::LazyLock;

use bytes::Bytes;
use pithead_sealing::envelope::{ContentType, KernelEntropy, Session, SessionClock, SessionContext};
use pithead_sealing::trust::{Clock, Device, KeyStatus, UnixTime};
use pithead_sealing::{DeviceId, Identity, Line, Run, Seq, StreamName};
use sha2::{Digest as _, Sha256};
use std::time::Duration;

use super::super::testing::truck;
use crate::keys::testing::{AUTHORITY, Authority, ISSUED, arn, site};

pub(super) const LINES: usize = 3;
/// Numbers of a line.
pub(super) const NUMBERS: u64 = 40;
/// Envelopes under one number; the first is the device's own.
const VERSIONS: usize = 2;

/// One envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Letter {
    pub(super) line: usize,
    pub(super) seq: u64,
    pub(super) version: usize,
}

struct Sealed {
    bytes: Bytes,
    sha256: [u8; 32],
}

static SEALED: LazyLock<Vec<Vec<[Sealed; VERSIONS]>>> = LazyLock::new(|| {
    let mut authority = Authority::new();
    let mut device = Device::provision(AUTHORITY, &site(), &authority.root, Clock::default()).unwrap();
    device.apply(&authority.bundle(&[(&arn(1), KeyStatus::Active)]), Clock::default()).unwrap();
    let key = device.verified_key(Clock::default()).unwrap();
    let clock = SessionClock { boot: Duration::ZERO, now: UnixTime(ISSUED + 60) };
    let content_type = ContentType::new("application/octet-stream").unwrap();
    let of_line = |number| {
        let Line { device, stream, run } = line(number);
        let context = SessionContext::new(site(), device, stream, content_type.clone());
        let mut session = Session::start(&key, &context, run, None, clock, &mut KernelEntropy).unwrap();
        let mut seal = |seq, version| {
            let text = format!("line {number} number {seq} version {version}");
            let sealed =
                session.seal(Seq::new(seq).unwrap(), text.as_bytes(), Duration::ZERO, &mut KernelEntropy);
            let bytes = sealed.unwrap().bytes().clone();
            Sealed { sha256: Sha256::digest(&bytes).into(), bytes }
        };
        (1..=NUMBERS).map(|seq| std::array::from_fn(|version| seal(seq, version))).collect()
    };
    (0..LINES).map(of_line).collect()
});

pub(super) fn line(number: usize) -> Line {
    let (stream, run) = [("can", 7), ("gps", 7), ("can", 8)][number];
    let device: DeviceId = truck().device().unwrap().clone();
    Line { device, stream: StreamName::new(stream).unwrap(), run: Run::new(run).unwrap() }
}

impl Letter {
    fn sealed(self) -> &'static Sealed {
        &SEALED[self.line][self.seq as usize - 1][self.version]
    }

    pub(super) fn bytes(self) -> Bytes {
        self.sealed().bytes.clone()
    }

    pub(super) fn sha256(self) -> [u8; 32] {
        self.sealed().sha256
    }

    /// Which one it is, if it is one of ours.
    pub(super) fn find(identity: &Identity, sha256: &[u8; 32]) -> Option<Self> {
        let line = (0..LINES).find(|number| line(*number) == identity.line())?;
        let seq = identity.seq.get();
        let letters = (0..VERSIONS).map(|version| Self { line, seq, version });
        letters.into_iter().find(|letter| letter.sha256() == *sha256)
    }
}
