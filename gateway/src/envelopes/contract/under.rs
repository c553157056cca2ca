//! What lies under the gateway: the embedded engine on a disk that crashes, or the replicated one over a broker and a network that loses.
//! Both do their work when a life says so, by the same steps.

use std::time::Duration;

use pithead_spool::Options;
use pithead_spool::stepped::{self, CrashDisk};

use super::super::lanes::{LANES, Lanes};
use super::super::replicated::stepped::{self as replicated, SteppedBroker, Trouble};
use super::super::spool::EnvelopeSpool;
use super::super::testing;
use super::letters;

/// In which the replicated engine has written its cursors down, and tried again what was lost.
const BY_ITSELF: Duration = Duration::from_millis(260);

/// Small, so that lanes roll, fill up and give segments back within a life.
fn options() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 24 * 1024;
    options.max_group_bytes = 12 * 1024;
    options.lanes = LANES;
    options.max_bytes = 5 * 24 * 1024;
    options.queue_bytes = 24 * 1024;
    options.queue_records = 16;
    options.salt = 7;
    options
}

pub(super) enum Under {
    Disk(CrashDisk),
    Broker(SteppedBroker),
}

pub(super) enum Steps {
    Disk(Box<stepped::Steps>),
    Broker(replicated::Steps),
}

impl Under {
    pub(super) fn new(seed: u64) -> Self {
        match testing::replicated() {
            false => Self::Disk(CrashDisk::new(seed)),
            true => Self::Broker(SteppedBroker::new(seed)),
        }
    }

    /// Whether a machine that is lost with its disk loses nothing.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Broker(_))
    }

    pub(super) async fn open(&self) -> (EnvelopeSpool, Steps) {
        // One line of three goes first.
        let lanes = Lanes::new(&[letters::line(1).stream], &[]);
        match self {
            Self::Disk(disk) => {
                let (log, steps, recovery) =
                    disk.open(options()).expect("no state of the disk makes a start fail");
                assert_eq!(recovery.corrupt_records, 0, "a torn tail was taken for corruption");
                (EnvelopeSpool::over(log, lanes), Steps::Disk(Box::new(steps)))
            }
            Self::Broker(broker) => {
                let (log, steps) = broker.open(&options()).await;
                (EnvelopeSpool::over_replicated(log, lanes), Steps::Broker(steps))
            }
        }
    }

    /// The power goes before the n-th operation of the disk; or the gateway is cut off before its n-th publish.
    pub(super) fn cut_after(&self, operations: u64) {
        match self {
            Self::Disk(disk) => disk.cut_power_after(operations),
            Self::Broker(broker) => broker.cut_after(operations),
        }
    }

    /// The n-th sync fails; or one of the troubles that a publish can have, each with its share of the numbers.
    pub(super) fn fail_after(&self, syncs: u8) {
        match self {
            Self::Disk(disk) => disk.fail_sync_after(u64::from(syncs)),
            Self::Broker(broker) => {
                let trouble = Trouble::ALL[usize::from(syncs) % Trouble::ALL.len()];
                broker.trouble_after(u64::from(syncs), trouble);
            }
        }
    }

    pub(super) fn limit(&self, bytes: Option<u64>) {
        match self {
            Self::Disk(disk) => disk.limit(bytes),
            Self::Broker(broker) => broker.limit(bytes),
        }
    }

    /// The power is off; or the gateway is cut off, and stays so.
    pub(super) fn is_dead(&self) -> bool {
        match self {
            Self::Disk(disk) => disk.is_dead(),
            Self::Broker(broker) => broker.is_cut(),
        }
    }

    /// The power goes, and comes back. What a broker has, it has: there the machine of the gateway goes.
    pub(super) fn crash(&self) {
        match self {
            Self::Disk(disk) => disk.crash(),
            Self::Broker(broker) => broker.kill(),
        }
    }

    pub(super) fn kill(&self) {
        match self {
            Self::Disk(disk) => disk.kill(),
            Self::Broker(broker) => broker.kill(),
        }
    }
}

impl Steps {
    pub(super) fn commit(&mut self) -> bool {
        match self {
            Self::Disk(steps) => steps.commit(),
            Self::Broker(steps) => steps.commit(),
        }
    }

    /// A stream has no segments.
    pub(super) fn prepare(&mut self) {
        match self {
            Self::Disk(steps) => steps.prepare(),
            Self::Broker(_) => {}
        }
    }

    pub(super) async fn save_cursors(&mut self) {
        match self {
            Self::Disk(steps) => steps.save_cursors(),
            Self::Broker(_) => tokio::time::sleep(BY_ITSELF).await,
        }
    }

    /// The replicated engine looks every second how full its logs are.
    pub(super) fn retry_full(&mut self) {
        match self {
            Self::Disk(steps) => steps.retry_full(),
            Self::Broker(_) => {}
        }
    }

    pub(super) async fn close(self) {
        match self {
            Self::Disk(steps) => steps.close(),
            Self::Broker(steps) => steps.close().await,
        }
    }
}
