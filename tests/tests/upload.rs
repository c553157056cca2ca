//! A large envelope over the whole way, cut again and again: device, gateway, decryptor, sink.
//!
//! 256 MiB; 5 GiB with `PITHEAD_LONG=1`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::large::{hash_of_file, peak_memory_of, write_file};
use pithead_tests::{
    device::Device,
    link::Link,
    program::{PATIENCE, free_address},
    site::{SITE, SinkKind, Site, SiteOptions},
};

/// What a program may hold at most, in bytes of resident memory.
const MEMORY_MAX: u64 = 64 << 20;
/// How often each wire is cut.
const CUTS: u64 = 10;
/// Of the envelope, what may go over a wire twice: one in a hundred.
const RESENT_PART: u64 = 100;
/// Where that is less than the cuts have to cost: each loses what is on its way in the stream's window and the request of
/// which a part had arrived, 256 KiB each. What had arrived before is synced when the far end notices the cut.
const LOST_BY_A_CUT: u64 = 512 << 10;

fn options() -> SiteOptions {
    SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() }
}

/// Puts a wire between a device and its gateway.
async fn wired(site: &Site, device: &Device) -> Link {
    let link = Link::start(free_address().unwrap(), site.gateway_address()).await.unwrap();
    Site::edit(&device.config(), &site.gateway_address().to_string(), &link.address().to_string()).unwrap();
    link
}

/// Seals a file and gives the sealed one.
async fn sealed(site: &Site, device: &Device, plain: &Path) -> PathBuf {
    let sealed = site.folder().join("survey.sealed");
    device.key().await.unwrap();
    let arguments = ["seal", plain.to_str().unwrap(), "-O", sealed.to_str().unwrap()];
    device.run(&arguments).await.unwrap().ok().unwrap();
    sealed
}

/// The one file below the sink that is not being written.
fn delivered(site: &Site) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if !path.ends_with(".tmp") {
                    walk(&path, found);
                }
            } else {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&site.sink(), &mut found);
    found
}

/// Cuts a wire every time that a part of `bytes` has gone up; each time, somebody has come back since the cut before.
async fn cut_again_and_again(link: &Link, bytes: u64) {
    let before = link.carried().up;
    for cut in 1..=CUTS {
        link.until(|carried| carried.up - before >= cut * bytes / (CUTS + 1)).await;
        let connections = link.connections();
        link.reset();
        link.until(|carried| carried.connections > connections).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_is_cut_ten_times_on_each_way_arrives_bit_for_bit_in_constant_memory() {
    let bytes = if pithead_tests::long() { 5 << 30 } else { 256 << 20 };
    let mut site = Site::start(options()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let near = wired(&site, &device).await;
    let plain = site.folder().join("survey.bin");
    let written = write_file(&plain, bytes);
    let sealed = sealed(&site, &device, &plain).await;
    std::fs::remove_file(&plain).unwrap();
    let total = sealed.metadata().unwrap().len();

    let uploading = device.start(&["upload", sealed.to_str().unwrap()]).unwrap();
    let pids = [uploading.pid(), site.gateway().unwrap().pid(), site.decryptor().unwrap().pid()];
    let watching = pids.map(|pid| tokio::spawn(peak_memory_of(pid.unwrap())));
    // The first wire while the file goes to the gateway, the second while it goes on from there.
    cut_again_and_again(&near, total).await;
    let far = &site.link;
    let (done, ()) = tokio::join!(uploading.finish_within(20), cut_again_and_again(far, total));
    let report = done.unwrap().ok().unwrap();
    assert_eq!(report.json::<serde_json::Value>().unwrap()["outcome"], "stored", "{}", report.stdout);
    site.until_relayed().await.unwrap();

    let found = delivered(&site);
    let [file] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(file.metadata().unwrap().len(), bytes);
    assert_eq!(hash_of_file(file), written);
    for (what, link) in [("to the gateway", &near), ("to the cloud", &site.link)] {
        // TLS and gRPC cost something as well: a record of 16 KiB has 22 bytes more.
        let framing = total / 400;
        let resent = link.carried().up.saturating_sub(total + framing);
        let allowed = (total / RESENT_PART).max(CUTS * LOST_BY_A_CUT);
        assert!(resent < allowed, "{what}: {resent} of {total} bytes went twice");
    }
    // Nothing of it is left on the way, as soon as no crash can bring its record back.
    for folder in [site.gateway_data(), site.decryptor_data()] {
        let uploads = folder.join("uploads");
        let gone = async {
            while uploads.read_dir().unwrap().count() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .unwrap_or_else(|_| panic!("left in {}", uploads.display()));
    }
    site.stop().await.unwrap();
    for (what, peak) in ["device", "gateway", "decryptor"].into_iter().zip(watching) {
        let peak = peak.await.unwrap();
        assert!(peak > 1 << 20, "the {what} was not watched");
        assert!(peak < MEMORY_MAX, "the {what} held {} MiB", peak >> 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_survives_the_kill_of_every_program_and_is_applied_once() {
    let mut site = Site::start(options()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let near = wired(&site, &device).await;
    let plain = site.folder().join("survey.bin");
    let bytes = 24 << 20;
    let written = write_file(&plain, bytes);
    let sealed = sealed(&site, &device, &plain).await;
    let total = sealed.metadata().unwrap().len();
    let upload = ["upload", sealed.to_str().unwrap()];

    // The device dies on its way, the gateway while it takes, and again when it has everything.
    site.link.cut();
    let uploading = device.start(&upload).unwrap();
    near.until(|carried| carried.up > total / 4).await;
    drop(uploading);
    let uploading = device.start(&upload).unwrap();
    near.until(|carried| carried.up > total / 2).await;
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();
    uploading.finish_within(10).await.unwrap().ok().unwrap();
    site.kill_gateway().await.unwrap();
    site.start_gateway().await.unwrap();

    // The decryptor dies while it takes.
    site.link.heal();
    let before = site.link.carried().up;
    site.link.until(|carried| carried.up - before > total / 3).await;
    site.kill_decryptor().await.unwrap();
    site.start_decryptor().await.unwrap();
    site.until_relayed().await.unwrap();
    let found = delivered(&site);
    let [file] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(hash_of_file(file), written);

    // Once more is a duplicate, at the gateway without a byte of the body, and nothing is delivered twice.
    let before = near.carried().up;
    let again = device.run(&upload).await.unwrap().ok().unwrap();
    assert_eq!(again.json::<serde_json::Value>().unwrap()["outcome"], "duplicate", "{}", again.stdout);
    assert!(near.carried().up - before < 1 << 20);
    site.until_relayed().await.unwrap();
    assert_eq!(delivered(&site).len(), 1);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn small_records_pass_a_large_file_on_its_way_to_the_cloud() {
    let mut options = options();
    options.gateway_lines.push(("relay", "rate = \"4MiB\"".to_owned()));
    let mut site = Site::start(options).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let plain = site.folder().join("survey.bin");
    // A minute at that rate; nobody waits for its end here.
    write_file(&plain, 240 << 20);
    let sealed = sealed(&site, &device, &plain).await;
    device.run(&["upload", sealed.to_str().unwrap()]).await.unwrap().ok().unwrap();
    let before = site.link.carried().up;
    site.link.until(|carried| carried.up - before > 2 << 20).await;
    device.send("status", &["one".to_owned(), "two".to_owned()]).await.unwrap();
    let sink = site.sink().join(SITE);
    tokio::time::timeout(Duration::from_secs(30), async {
        while delivered(&site).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("nothing passed: {}", sink.display()));
    // The file is still on its way: it did not have to end first.
    assert!(site.gateway_data().join("uploads").read_dir().unwrap().count() > 0);
    assert_eq!(delivered(&site).len(), 1);
    site.stop().await.unwrap();
}
