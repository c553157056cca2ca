//! What the decryptor's books say of every stream, asked of the real program.

use pithead_proto::batch::v1::{Batch, Gap, GapReason, Line, Record};
use pithead_tests::{
    client::Client,
    command::Finished,
    forge::{Claim, Forge},
    program::Admin,
    site::{SITE, Site, SiteOptions},
};
use serde_json::{Value, json};

const RUN: u64 = 3 << 32 | 7;

async fn verify(site: &Site, more: &[&str]) -> Finished {
    let config = site.decryptor_config().display().to_string();
    site.decryptor_command(&[&["verify", "-c", &config], more].concat()).await.unwrap()
}

/// The one stream, by the JSON answer.
async fn stream(site: &Site, code: i32) -> Value {
    let finished = verify(site, &["-o", "json"]).await;
    assert_eq!(finished.code, Some(code), "{}{}", finished.stdout, finished.stderr);
    let report: Value = finished.json().unwrap();
    assert_eq!(report["streams"].as_array().map(Vec::len), Some(1), "{report:#}");
    report["streams"][0].clone()
}

/// A relay of the site's that says what it likes to the decryptor.
struct Relay {
    client: Client,
    forge: Forge,
}

impl Relay {
    async fn new(site: &Site) -> Self {
        let stem = site.folder().join("certificates/edge-9");
        let identity = site.ca.client(&format!("spiffe://{SITE}/gateway/edge-9"), &stem).unwrap();
        let to = site.decryptor_address();
        let client = Client::connect(to, site.cloud_ca.path(), Some(&identity)).await.unwrap().unwrap();
        Self { client, forge: Forge::new(&site.authority).unwrap() }
    }

    /// One batch of one record, and what else is in it; the same bytes again on demand.
    async fn give(&self, run: u64, seq: u64, mut batch: Batch, times: usize) {
        batch.records = vec![Record { dt_us: 0, data: format!("record {seq}").into(), name: String::new() }];
        let claim = Claim { run, seq, ..Claim::of("truck-1") };
        let sealed = self.forge.seal_batch(claim, &batch).unwrap();
        for again in 0..times {
            let answer = self.client.submit(sealed.clone()).await.unwrap();
            assert_eq!(answer.duplicate.is_some(), again > 0);
        }
    }
}

fn line(run: u64, last_seq: u64) -> Line {
    Line { stream: "can".into(), run, last_seq }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_a_lost_tail_and_a_lost_run_are_named_and_a_declared_gap_is_explained() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    site.start_decryptor().await.unwrap();
    let relay = Relay::new(&site).await;
    relay.give(RUN, 1, Batch::default(), 3).await;
    relay.give(RUN, 2, Batch::default(), 1).await;
    let quiet = stream(&site, 0).await;
    assert_eq!((&quiet["runs"][0]["to"], &quiet["runs"][0]["told_to"]), (&json!(2), &json!(0)), "{quiet:#}");

    let gap = |from, to| Gap {
        stream: "can".into(),
        run: RUN,
        from,
        to,
        reason: GapReason::DroppedByPolicy.into(),
    };
    let said = Batch { gaps: vec![gap(8, 9)], heartbeat: vec![line(RUN, 12)], ..Batch::default() };
    relay.give(RUN, 5, said, 1).await;
    // While the decryptor runs. Behind its last word stands the heartbeat: 10 to 12 were sealed and are not here.
    let found = stream(&site, 1).await;
    let run = &found["runs"][0];
    assert_eq!(
        run["holes"],
        json!([{"from": 3, "to": 4}, {"from": 6, "to": 7}, {"from": 10, "to": 12}]),
        "{found:#}"
    );
    assert_eq!((&run["told_to"], &run["declared"]), (&json!(12), &json!([{"from": 8, "to": 9}])));
    assert_eq!((&run["dropped_by_policy"], &found["missing"]), (&json!(2), &json!(7)));
    // A later run says that there was one between, of which nothing came.
    relay.give(RUN + 2, 1, Batch { previous: Some(line(RUN + 1, 4)), ..Batch::default() }, 1).await;
    let found = stream(&site, 1).await;
    assert_eq!(found["runs"][1]["holes"], json!([{"from": 1, "to": 4}]), "{found:#}");
    assert_eq!(found["missing"], 11);

    // Duplicates are written down with the books: at the latest when it stops.
    site.stop().await.unwrap();
    let found = stream(&site, 1).await;
    assert_eq!(found["runs"][0]["duplicates"], 2, "{found:#}");
    let table = verify(&site, &[]).await;
    assert_eq!(table.code, Some(1));
    for words in ["pit-7/truck-1/can", "missing   0000000300000007/10-12", "11 numbers are missing"] {
        assert!(table.stdout.contains(words), "{words:?} in\n{}", table.stdout);
    }
    for other in [["--device", "truck-2"], ["--site", "pit-8"], ["--stream", "gps"]] {
        let nothing = verify(&site, &other).await.ok().unwrap();
        assert!(nothing.stdout.contains("no unexplained hole"), "{}", nothing.stdout);
    }

    // What was missing comes after all, from wherever it was.
    site.start_decryptor().await.unwrap();
    let relay = Relay::new(&site).await;
    for seq in [3, 4, 6, 7, 10, 11, 12] {
        relay.give(RUN, seq, Batch::default(), 1).await;
    }
    for seq in 1..=4 {
        relay.give(RUN + 1, seq, Batch::default(), 1).await;
    }
    let found = stream(&site, 0).await;
    assert_eq!(found["runs"][0]["duplicates"], 2, "counts survive a restart: {found:#}");
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_device_that_sent_everything_the_proof_reaches_to_its_last_number() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    let records: Vec<String> = (0..500).map(|at| format!("record {at}")).collect();
    device.send("can", &records).await.unwrap();
    device.send("can", &records).await.unwrap();
    site.until_relayed().await.unwrap();
    let found = stream(&site, 0).await;
    let runs = found["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &found["runs_without_an_end"]), (2, &json!(0)), "{found:#}");
    for run in runs {
        assert_eq!((&run["told_to"], &run["records"]), (&run["to"], &json!(500)), "{found:#}");
    }
    // A ledger of nobody is no good news.
    let nowhere = site.folder().join("nowhere").display().to_string();
    let missing = site.decryptor_command(&["verify", "--data-dir", &nowhere]).await.unwrap();
    assert_eq!(missing.code, Some(73), "{}", missing.stderr);
    // The decryptor never noticed that it was looked at.
    let healthy = async |admin: Admin| admin.get("/readyz").await.is_ok_and(|reply| reply.status == 200);
    site.decryptor().unwrap().until("is still ready", healthy).await.unwrap();
    let ledger = site.decryptor_data().join("ledger/lane-0");
    site.stop().await.unwrap();
    // Books that a disk has damaged prove nothing, however little is missing in what is left of them.
    for file in std::fs::read_dir(&ledger).unwrap().map(|file| file.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("seg-") {
            let segment = std::fs::File::options().write(true).open(&file).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&segment, &[0; 8192], 0).unwrap();
        }
    }
    let damaged = verify(&site, &[]).await;
    assert_eq!(damaged.code, Some(1), "{}", damaged.stdout);
    assert!(damaged.stdout.contains("of the ledger are damaged"), "{}", damaged.stdout);
}
