//! No room on the vehicle: a stream's budget is used up while the radio is away, or the disk is full of others' files.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use pithead_device_client::{
    MIN_BUDGET_BYTES,
    batch::BatchLimits,
    client::{DiskTrouble, RecordError, Status, StreamOptions, WhenFull},
};
use pithead_tests::{
    link::Link,
    long,
    site::{Site, SiteOptions},
};

use crate::losses::{
    row::balance,
    truck::{NAME, Truck, can},
};

/// A stream of the least budget, in envelopes of some twenty records of a thousand bytes.
fn small(when_full: WhenFull) -> StreamOptions {
    let limits = BatchLimits { records: 20, bytes: 64 << 10 };
    can().budget_bytes(MIN_BUDGET_BYTES).when_full(when_full).batch(limits)
}

async fn over_radio() -> (Site, Link) {
    let site = Site::start(SiteOptions::default()).await.unwrap();
    let radio = Link::start("127.0.0.1:0".parse().unwrap(), site.gateway_address()).await.unwrap();
    (site, radio)
}

/// Offers so many records, no faster than the disk takes them, and gives how the last one was refused that was.
async fn offer(truck: &mut Truck, count: u64) -> Option<RecordError> {
    let mut refused = None;
    for number in 0..count {
        if let Err(error) = truck.record() {
            refused = Some(error);
        }
        if number % 20 == 19 {
            truck.until_the_disk_follows(100).await;
        }
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_that_rejects_keeps_the_oldest_and_refuses_to_the_callers_face() {
    let (mut site, radio) = over_radio().await;
    let mut truck =
        Truck::start(&site, &[radio.address()], small(WhenFull::Reject)).await.with_records_of(1_000);
    truck.record_all(100);
    truck.flush().await;
    radio.cut();
    let outages = if long() { 12 } else { 3 };
    for outage in 0..outages {
        let refused = offer(&mut truck, 1_500).await;
        assert!(matches!(refused, Some(RecordError::Full)), "{refused:?}");
        // What was taken and has no place on the disk goes with the process: nobody said that it is held.
        let closed = truck.close();
        assert!(closed.refused > 0 && closed.dropped_records == 0, "{closed:?}");
        truck.open();
        // Every other time the radio comes back between two restarts.
        if outage % 2 == 1 {
            radio.heal();
            truck.flush().await;
            radio.cut();
        }
    }
    radio.heal();
    truck.flush().await;
    let takes = |status: &Status| status.streams.values().all(|stream| stream.trouble.is_none());
    truck.until("it takes records again", takes).await;
    truck.record_all(100);
    truck.finish().await;
    let row = balance(&mut site, &truck.books, "budget used up, `Reject`").await;
    assert!(row.refused > 1_000 && row.never_promised > 0 && row.declared == 0, "{row:#?}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_budget_that_drops_the_oldest_declares_every_number_over_several_restarts() {
    let (mut site, radio) = over_radio().await;
    let mut truck =
        Truck::start(&site, &[radio.address()], small(WhenFull::DropOldest)).await.with_records_of(1_000);
    truck.record_all(100);
    truck.flush().await;
    for outage in 0..if long() { 8 } else { 2 } {
        radio.cut();
        // The drops of one life are declared by another, which may be dropped itself.
        for life in 0..4 {
            let refused = offer(&mut truck, 1_000 + 300 * life + outage).await;
            assert!(refused.is_none(), "{refused:?}");
            truck.sync().await;
            truck.close();
            truck.open();
        }
        assert!(truck.books.dropped_records > 0);
        radio.heal();
        truck.record_all(40);
        truck.flush().await;
    }
    truck.finish().await;
    let row = balance(&mut site, &truck.books, "budget used up, `DropOldest`, over several restarts").await;
    assert!(row.declared > 3_000 && row.refused == 0 && row.never_promised == 0, "{row:#?}");
    site.stop().await.unwrap();
}

/// A file system of its own, in memory. It is gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this process may not mount.
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "pithead-test"]).arg(at);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    fn others(&self) -> PathBuf {
        self.0.join("of somebody else")
    }

    /// Somebody else takes so much.
    fn take(&self, bytes: usize) {
        std::fs::write(self.others(), vec![7; bytes]).unwrap();
    }

    /// Somebody else takes what is left, to the last byte.
    fn fill(&self) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.others()).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn tidy_up(&self) {
        std::fs::remove_file(self.others()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that fails leaves a client behind that still holds it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Everything of the vehicle is on a disk of 20 MiB, which is full before the stream's budget is: others have 8 MiB of it.
async fn on_a_small_disk(when_full: WhenFull) -> Option<(Site, Link, SmallDisk, Truck)> {
    let (site, radio) = over_radio().await;
    let disk = SmallDisk::mount(site.device(NAME).folder(), 20 << 20)?;
    disk.take(8 << 20);
    let limits = BatchLimits { records: 20, bytes: 64 << 10 };
    let options = can().budget_bytes(64 << 20).when_full(when_full).batch(limits);
    let mut truck = Truck::start(&site, &[radio.address()], options).await.with_records_of(1_000);
    truck.record_all(100);
    truck.flush().await;
    radio.cut();
    Some((site, radio, disk, truck))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_with_its_reason_loses_nothing_that_was_held_and_mends_itself() {
    let Some((mut site, radio, disk, mut truck)) = on_a_small_disk(WhenFull::Reject).await else {
        println!("SKIPPED: no right to mount a file system");
        return;
    };
    let refused = offer(&mut truck, 15_000).await;
    assert!(matches!(refused, Some(RecordError::Disk(DiskTrouble::NoSpace))), "{refused:?}");
    // Others take the rest; the vehicle goes on to refuse, and says why.
    disk.fill();
    let refused = offer(&mut truck, 500).await;
    assert!(matches!(refused, Some(RecordError::Disk(DiskTrouble::NoSpace))), "{refused:?}");
    let full = truck.status();
    assert!(full.held > 3_000 && full.dropped_records == 0, "{full:?}");
    // Somebody tidies up: with nobody's help the same process takes again, what waited in memory included.
    disk.tidy_up();
    let takes = |status: &Status| status.streams.values().all(|stream| stream.trouble.is_none());
    truck.until("it takes records again", takes).await;
    truck.record_all(20);
    radio.heal();
    truck.flush().await;
    truck.record_all(20);
    truck.finish().await;
    let row = balance(&mut site, &truck.books, "disk full, `Reject`").await;
    assert!(row.refused > 1_000 && row.never_promised == 0 && row.declared == 0, "{row:#?}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_a_stream_that_drops_the_oldest_keeps_the_newest_and_declares_the_rest() {
    let Some((mut site, radio, disk, mut truck)) = on_a_small_disk(WhenFull::DropOldest).await else {
        println!("SKIPPED: no right to mount a file system");
        return;
    };
    offer(&mut truck, 15_000).await;
    truck.sync().await;
    let dropped = truck.status().dropped_records;
    assert!(dropped > 0, "{:?}", truck.status());
    // Also with not a byte left: what is given up is written over.
    disk.fill();
    offer(&mut truck, 1_000).await;
    truck.sync().await;
    disk.tidy_up();
    radio.heal();
    truck.flush().await;
    truck.record_all(20);
    truck.finish().await;
    let row = balance(&mut site, &truck.books, "disk full, `DropOldest`").await;
    assert!(row.declared > 1_000 && row.never_promised == 0, "{row:#?}");
    site.stop().await.unwrap();
}
