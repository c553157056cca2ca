//! Large envelopes at a site on JetStream: a folder, or a bucket, that both gateways reach, and the one that gathered them is lost.

use std::fs;
use std::path::{Path, PathBuf};

use pithead_tests::{
    command::{Finished, Running},
    s3::{Fault, TestS3},
    site::SinkKind,
};
use sha2::{Digest as _, Sha256};

use super::*;

/// Of one file: three parts of a bucket.
const BYTES: usize = 20 << 20;

/// A world whose gateways put copies where `section` says.
struct Large {
    world: World,
    device: Device,
    written: [u8; 32],
    sealed: PathBuf,
}

impl Large {
    async fn start(servers: usize, section: String) -> Option<Self> {
        let more = vec![("spool.jetstream.large", section)];
        let world = World::start_with(servers, SinkKind::Folder, more).await?;
        let device = world.site.enroll("truck-1").await.unwrap();
        device.key().await.unwrap();
        let (written, sealed) = seal(&world.site, &device, "survey").await;
        Some(Self { world, device, written, sealed })
    }

    /// Below a folder that both mount.
    async fn in_folder(servers: usize, shared: &Path) -> Option<Self> {
        let store = shared.join("large");
        fs::create_dir_all(&store).unwrap();
        Self::start(servers, format!("url = \"file://{}\"", store.display())).await
    }

    async fn upload(&self) -> Finished {
        self.begin_upload().finish_within(3).await.unwrap()
    }

    fn begin_upload(&self) -> Running {
        self.device.start(&["upload", self.sealed.to_str().unwrap()]).unwrap()
    }

    /// The machine of a gateway burns down.
    async fn lose(&mut self, at: usize) {
        self.world.kill_gateway(at).await;
        fs::remove_dir_all(self.data(at)).unwrap();
    }

    fn data(&self, at: usize) -> PathBuf {
        match at {
            0 => self.world.site.gateway_data(),
            _ => self.world.second.config().with_file_name("data"),
        }
    }

    /// The same gateway on a new machine.
    async fn replace(&mut self, at: usize) {
        fs::create_dir(self.data(at)).unwrap();
        self.world.launch_gateway(at);
        self.world.program(at).ready().await.unwrap();
    }

    async fn until(&mut self, at: usize, what: &str, condition: impl AsyncFn(Admin) -> bool) {
        self.world.program(at).until(what, condition).await.unwrap();
    }

    /// Until it has told the truck to come again.
    async fn until_refused(&mut self, at: usize) {
        let refused = async |admin: Admin| {
            let label = "\"NOT_DURABLE\"";
            admin.metric_where("pithead_ingest_refusals_total", label).await.is_ok_and(|count| count > 0.0)
        };
        self.until(at, "has told the truck to come again", refused).await;
    }

    async fn copies(&self, at: usize, event: &str) -> f64 {
        let label = format!("\"{event}\"");
        self.world.admins()[at].metric_where("pithead_large_copy_events_total", &label).await.unwrap()
    }

    /// The one file that the cloud has got is the one that was sealed.
    fn assert_delivered_once(&self) {
        let delivered = files(&self.world.site.sink());
        let [file] = delivered.as_slice() else { panic!("{delivered:?}") };
        assert_eq!(hash(file), self.written);
    }
}

/// Seals a file that no two places share, and gives its hash.
async fn seal(site: &Site, device: &Device, name: &str) -> ([u8; 32], PathBuf) {
    let plain = site.folder().join(format!("{name}.bin"));
    let sealed = site.folder().join(format!("{name}.sealed"));
    let words = (0..BYTES as u64 / 8).flat_map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    let bytes: Vec<u8> = words.collect();
    fs::write(&plain, &bytes).unwrap();
    let arguments = ["seal", plain.to_str().unwrap(), "-O", sealed.to_str().unwrap()];
    device.run(&arguments).await.unwrap().ok().unwrap();
    (Sha256::digest(&bytes).into(), sealed)
}

fn hash(file: &Path) -> [u8; 32] {
    Sha256::digest(fs::read(file).unwrap()).into()
}

/// Files below a folder that are not being written.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true if !path.ends_with(".tmp") => folders.push(path),
                true => {}
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}

/// Copies that lie in a store that is a folder.
fn objects(shared: &Path) -> Vec<PathBuf> {
    files(shared)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "envelope"))
        .collect()
}

fn outcome(finished: Finished) -> String {
    let report: serde_json::Value = finished.ok().unwrap().json().unwrap();
    report["outcome"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_envelope_outlives_the_machine_that_acknowledged_it_and_arrives_once_bit_for_bit() {
    let shared = tempfile::tempdir().unwrap();
    let Some(mut large) = Large::in_folder(3, shared.path()).await else { return };
    let owner = large.world.owner().await;
    let other = 1 - owner;
    // Nothing goes on to the cloud before that is wanted. The truck knows the first gateway, whichever that is.
    large.world.site.link.cut();
    assert_eq!(outcome(large.upload().await), "stored");
    let [object] = objects(shared.path()).try_into().expect("one copy");
    assert_eq!(
        fs::read(&object).unwrap(),
        fs::read(&large.sealed).unwrap(),
        "the envelope as it is on the wire"
    );
    let opened = large.world.site.folder().join("opened");
    let key = large.world.site.private_key();
    let open = ["open", object.to_str().unwrap(), "-o", opened.to_str().unwrap(), "--private-key"];
    let open = [&open[..], &[key.to_str().unwrap()]].concat();
    large.world.site.decryptor_command(&open).await.unwrap().ok().unwrap();
    assert_eq!(hash(&opened), large.written);

    large.lose(owner).await;
    assert_eq!(large.world.owner().await, other);
    let status = large.world.admins()[other].status().await.unwrap();
    assert_eq!(status["spool"]["large"]["copies"], 1, "{status:#}");
    assert_eq!(files(&large.data(other).join("uploads")), [] as [PathBuf; 0]);
    large.world.site.link.heal();
    large.world.relayed().await;
    large.assert_delivered_once();
    assert_eq!(large.copies(other, "fetched").await, 1.0);
    large.until(other, "has removed the copy", async |_| objects(shared.path()).is_empty()).await;
    // Whoever has it sealed may send it again, to whomever.
    large.replace(owner).await;
    assert_eq!(outcome(large.upload().await), "duplicate");
    large.world.relayed().await;
    large.assert_delivered_once();
    large.world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "as a mount that falls off, and comes back")]
async fn while_the_store_is_away_a_large_envelope_is_not_acknowledged_and_small_ones_are() {
    let shared = tempfile::tempdir().unwrap();
    let Some(mut large) = Large::in_folder(1, shared.path()).await else { return };
    let owner = large.world.owner().await;
    large.world.site.link.cut();
    let (store, aside) = (shared.path().join("large"), shared.path().join("aside"));
    fs::rename(&store, &aside).unwrap();
    let uploading = large.begin_upload();
    large.until_refused(owner).await;
    let admin = large.world.admins()[owner];
    assert_eq!(admin.metric("pithead_spool_records").await.unwrap(), 0.0);
    assert_eq!(admin.metric("pithead_large_store_up").await.unwrap(), 0.0);
    let disk = async |admin: Admin| admin.status().await.unwrap()["dimensions"]["disk"].clone();
    large
        .until(owner, "says so", async |admin| {
            let lamp = disk(admin).await;
            lamp["level"] == "degraded" && lamp["words"].as_str().unwrap().contains("large envelope")
        })
        .await;
    assert_eq!(admin.get("/readyz").await.unwrap().status, 200, "small ones are taken");
    let mut truck = Truck::start(&large.world, "truck-2", owner).await;
    truck.record(100);
    truck.flush().await;

    let check = large.world.second.command(&["check", "-o", "json"]).await.unwrap();
    let says = |words| check.stdout.contains(words);
    assert!(says("large envelopes") && says("STORE_NOT_FOUND"), "{}", check.stdout);
    fs::rename(&aside, &store).unwrap();
    assert_eq!(outcome(uploading.finish_within(3).await.unwrap()), "stored");
    assert_eq!(objects(shared.path()).len(), 1);
    large.world.site.link.heal();
    large.world.relayed().await;
    large.until(owner, "has removed the copy", async |_| objects(shared.path()).is_empty()).await;
    large.until(owner, "says that it is well", async |admin| disk(admin).await["level"] == "ok").await;
    large.world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_removes_what_nobody_names_and_keeps_what_waits() {
    let shared = tempfile::tempdir().unwrap();
    let Some(mut large) = Large::in_folder(1, shared.path()).await else { return };
    let owner = large.world.owner().await;
    let other = 1 - owner;
    large.world.site.link.cut();
    assert_eq!(outcome(large.upload().await), "stored");
    let [named] = objects(shared.path()).try_into().expect("one copy");
    // Put whole, and in part, by somebody who died before the record was appended.
    let text = named.to_str().unwrap();
    let (stem, _) = text.rsplit_once('-').unwrap();
    let whole = PathBuf::from(format!("{stem}-0000000000000001.envelope"));
    let half = PathBuf::from(format!("{stem}-0000000000000002.envelope#1"));
    fs::copy(&named, &whole).unwrap();
    fs::write(&half, b"the beginning").unwrap();

    match owner {
        0 => large.world.site.stop_gateway().await.unwrap(),
        _ => large.world.second.stop().await.unwrap(),
    }
    assert_eq!(large.world.owner().await, other);
    large.until(other, "has removed both", async |_| !whole.exists() && !half.exists()).await;
    assert_eq!(large.copies(other, "orphan").await, 1.0);
    assert!(named.exists());
    large.world.site.link.heal();
    large.world.relayed().await;
    large.assert_delivered_once();
    large.until(other, "has removed the copy", async |_| !named.exists()).await;
    large.world.launch_gateway(owner);
    large.world.program(owner).ready().await.unwrap();
    large.world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_does_as_well_as_a_folder() {
    const BUCKET: &str = "pit-7";
    let s3 = TestS3::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials");
    fs::write(&credentials, "[default]\naws_access_key_id = test\naws_secret_access_key = test\n").unwrap();
    let section = format!(
        "url = \"s3://{BUCKET}/site\"\nendpoint = \"{}\"\ncredentials = \"{}\"",
        s3.url(),
        credentials.display()
    );
    let Some(mut large) = Large::start(1, section).await else { return };
    let owner = large.world.owner().await;
    let other = 1 - owner;
    large.world.site.link.cut();
    s3.fail(Fault::Deny);
    let uploading = large.begin_upload();
    large.until_refused(owner).await;
    s3.heal();
    assert_eq!(outcome(uploading.finish_within(3).await.unwrap()), "stored");
    let copies = || {
        let objects = s3.objects(BUCKET);
        objects.into_iter().filter(|(name, _)| name.ends_with(".envelope")).collect::<Vec<_>>()
    };
    let [(_, object)] = copies().try_into().expect("one copy");
    assert_eq!(object.bytes, fs::read(&large.sealed).unwrap());
    assert_eq!(s3.open_uploads(BUCKET), 0);

    large.lose(owner).await;
    assert_eq!(large.world.owner().await, other);
    large.world.site.link.heal();
    large.world.relayed().await;
    large.assert_delivered_once();
    large.until(other, "has removed the copy", async |_| copies().is_empty()).await;
    assert_eq!(large.copies(other, "fetched").await, 1.0);
    large.replace(owner).await;
    large.world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_for_them_large_envelopes_are_refused_by_the_name_of_the_key() {
    let Some(mut world) = World::start(1).await else { return };
    world.owner().await;
    let device = world.site.enroll("truck-1").await.unwrap();
    device.key().await.unwrap();
    let (_, sealed) = seal(&world.site, &device, "survey").await;
    let refused = device.run(&["upload", sealed.to_str().unwrap()]).await.unwrap();
    assert!(refused.refused_with("PH-3014", "UPLOADS_NOT_SUPPORTED"), "{}", refused.stderr);
    assert!(refused.stderr.contains("[spool.jetstream.large]"), "{}", refused.stderr);
    world.stop().await;
}
