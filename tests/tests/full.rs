//! No room: the gateway's disk is full, or its spool is, because the far end has been away for too long.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use pithead_hop::status::Remote;
use pithead_proto::errors::v1::ErrorReason;
use pithead_tests::{
    fleet::Stub,
    forge::Forge,
    ledger::lines_in_order,
    site::{Site, SiteOptions},
};

/// A file system of its own, in memory. It is gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this process may not mount.
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "pithead-test"]).arg(at);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    /// Somebody else takes what is left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("of somebody else")).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that fails leaves programs behind that still hold it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Submits numbers from `next` on, large ones and then ever smaller ones, until the smallest is refused: its number, and how.
async fn fill_up(stub: &mut Stub, mut next: u64) -> (u64, Remote) {
    let mut last = None;
    for bytes in [400_000, 20_000, 1] {
        let mut plaintext = vec![0; bytes];
        getrandom::fill(&mut plaintext).unwrap();
        last = loop {
            let envelope = stub.seal(next, &plaintext).unwrap();
            match stub.client().submit(envelope).await {
                Ok(_) => next += 1,
                Err(refused) => break Some(refused),
            }
        };
    }
    (next, last.unwrap())
}

fn is_full(refused: &Remote) {
    assert_eq!(refused.reason, Some(ErrorReason::SpoolFull), "{refused:?}");
    assert!(
        refused.retry_after.is_some_and(|after| !after.is_zero()),
        "it says when to come back: {refused:?}"
    );
}

/// From being refused to everything delivered, with nobody's help.
async fn recovers(site: &mut Site, stub: &mut Stub, next: u64) {
    let envelope = stub.seal(next, b"there is room again").unwrap();
    let client = stub.client().clone();
    let takes = async |_| client.submit(envelope.clone()).await.is_ok();
    site.gateway().unwrap().until("takes envelopes again", takes).await.unwrap();
    site.until_relayed().await.unwrap();
    let lines = lines_in_order(&site.sink()).unwrap();
    assert_eq!(lines.values().sum::<u64>(), next, "each acknowledged envelope once, and in order: {lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_loses_nothing_and_recovers_when_the_relay_drains() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    let Some(disk) = SmallDisk::mount(&site.gateway_data(), 28 << 20) else {
        println!("SKIPPED: no right to mount a file system");
        return;
    };
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let forge = Forge::new(&site.authority).unwrap();
    let mut stub = Stub::connect(&site, &forge, "truck-1", 1).await.unwrap();
    site.link.cut();
    let (next, refused) = fill_up(&mut stub, 1).await;
    assert!(next > 20, "the disk takes some twenty megabytes: {next}");
    is_full(&refused);
    // Not a byte is left, not even for the gateway's own notes. And it is killed, and starts all the same.
    disk.fill();
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    let mut stub = Stub::connect(&site, &forge, "truck-1", 1).await.unwrap();
    let (same, refused) = fill_up(&mut stub, next).await;
    assert_eq!(same, next);
    is_full(&refused);

    site.link.heal();
    recovers(&mut site, &mut stub, next).await;
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decryptor_that_is_away_for_longer_than_the_spool_lasts_costs_waiting_and_nothing_else() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    Site::edit(&site.gateway_config(), "max_size = \"2GiB\"", "max_size = \"25MiB\"").unwrap();
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let truck = site.enroll("truck-2").await.unwrap();
    truck.key().await.unwrap();
    site.kill_decryptor().await.unwrap();

    let forge = Forge::new(&site.authority).unwrap();
    let mut stub = Stub::connect(&site, &forge, "truck-1", 1).await.unwrap();
    let (next, refused) = fill_up(&mut stub, 1).await;
    is_full(&refused);
    // A vehicle goes on recording: it keeps what the gateway cannot take.
    let refusals = async |admin: pithead_tests::program::Admin| {
        admin.metric_where("pithead_ingest_refusals_total", "SPOOL_FULL").await.unwrap()
    };
    let before = refusals(site.gateway().unwrap().admin()).await;
    let mut sending = truck.start_sending("can").unwrap();
    for at in 0..500 {
        sending.record(&format!("record {at}")).await.unwrap();
    }
    sending.flush().await.unwrap();
    // The stub says nothing meanwhile.
    let refuses = async |admin| refusals(admin).await > before;
    site.gateway().unwrap().until("has refused the truck as well", refuses).await.unwrap();

    site.start_decryptor().await.unwrap();
    let sent = sending.finish().await.unwrap();
    assert_eq!((sent.records, sent.acknowledged, sent.refused), (500, sent.envelopes, 0));
    let envelope = stub.seal(next, b"there is room again").unwrap();
    stub.client().submit(envelope).await.unwrap();
    site.until_relayed().await.unwrap();
    let lines = lines_in_order(&site.sink()).unwrap();
    let forged = lines.iter().find(|(line, _)| line.device == "truck-1").map(|(_, count)| *count);
    assert_eq!(forged, Some(next), "{lines:?}");
    let delivered = site.delivered().unwrap();
    assert_eq!(delivered.records_of("truck-2").len(), 500);
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    site.stop().await.unwrap();
}
