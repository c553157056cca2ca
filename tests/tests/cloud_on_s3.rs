//! The cloud end without a server of ours: real devices, a real gateway that relays into a bucket, a queue that tells of what is there,
//! and replicas of the real decryptor that are killed.
//!
//! `PITHEAD_LONG=1` kills for long, `PITHEAD_SEED` chooses what happens.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use http::Method;
use pithead_tests::{
    command::{self, Finished},
    device::Device,
    ledger::Delivered,
    program::{Program, free_address},
    random::Random,
    s3::{Fault, TestS3},
    site::{KEY_ARN, KeySource, SITE, Site, SiteOptions},
    sqs::TestSqs,
};
use serde_json::{Value, json};

/// Where gateways put bundles, and where decryptors put what they make of them.
const PITS: &str = "pits";
const RECORDS: &str = "records";

/// With a queue that hides as fast as a test wants: what a killed replica had comes again after 60 of these.
const FAST: Duration = Duration::from_millis(50);

/// No queue: the bucket is looked at.
const LISTED: &str = "poll = \"100ms\"\nsweep = \"500ms\"";

fn rounds() -> u64 {
    if pithead_tests::long() { 120 } else { 10 }
}

/// A site whose gateway relays into a bucket, and what decryptors need to work on that.
struct Cloud {
    site: Site,
    s3: TestS3,
    sqs: TestSqs,
    /// Of what has come to be in the bucket, so much has been told.
    told: usize,
    started: u32,
}

/// A decryptor.
struct Replica {
    program: Program,
    config: PathBuf,
}

impl Replica {
    async fn stop(self) {
        assert!(self.program.stop().await.unwrap().success());
    }

    async fn status(&self) -> Value {
        serde_json::from_str(&self.program.admin().get("/statusz").await.unwrap().body).unwrap()
    }
}

impl Cloud {
    /// `second` is how long a second of the queue's hiding lasts; what was given to somebody `receives` times is a dead letter.
    async fn new(second: Duration, receives: u32) -> Self {
        let (s3, sqs) = (TestS3::start().await.unwrap(), TestSqs::start(second, receives).await.unwrap());
        let store = format!(
            "url = \"s3://{PITS}/sealed\"\nendpoint = \"{}\"\ncredentials = \"s3\"\nbundle_size = \"64KiB\"\n\
             bundle_delay = \"20ms\"",
            s3.url()
        );
        let lines = vec![("relay.store", store)];
        let options = SiteOptions { keys: KeySource::Bundle, gateway_lines: lines, ..SiteOptions::default() };
        let mut site = Site::create(options).await.unwrap();
        let far = format!("endpoint = \"{}\"\nca = \"cloud-ca.pem\"\n", site.link.address());
        Site::edit(&site.gateway_config(), &far, "kind = \"object_store\"\n").unwrap();
        let credentials = "[default]\naws_access_key_id = test\naws_secret_access_key = test\n";
        fs::write(site.gateway_config().with_file_name("s3"), credentials).unwrap();
        site.start_gateway().await.unwrap();
        Self { site, s3, sqs, told: 0, started: 0 }
    }

    async fn device(&self, name: &str) -> Device {
        let device = self.site.enroll(name).await.unwrap();
        device.key().await.unwrap();
        device
    }

    /// With the queue, and a listing so seldom that nothing is found by it.
    fn queued(&self) -> String {
        format!("queue = \"{}\"\npoll = \"1h\"\nsweep = \"1h\"", self.sqs.queue_url())
    }

    /// A file for a replica, with this in its `[source]`.
    fn configure(&mut self, admin: std::net::SocketAddr, source: &str) -> PathBuf {
        self.started += 1;
        let folder = self.site.folder().join(format!("replica-{}", self.started));
        fs::create_dir_all(folder.join("data")).unwrap();
        let (key, bundle) = (self.site.private_key(), self.site.authority.bundle(SITE));
        let (key, bundle, s3) = (key.display(), bundle.display(), self.s3.url());
        let file = format!(
            "[decryptor]\ndata_dir = \"data\"\n\n\
             [source]\nkind = \"s3\"\nurl = \"s3://{PITS}/sealed\"\nendpoint = \"{s3}\"\nregion = \"ap-southeast-2\"\n\
             grace = \"1s\"\n{source}\n\n\
             [[site]]\nname = \"{SITE}\"\n\n\
             [keys]\nbundles = [\"{bundle}\"]\n\n\
             [[unwrap.local]]\narn = \"{KEY_ARN}\"\nprivate_key = \"{key}\"\n\n\
             [sink]\nkind = \"objects\"\nurl = \"s3://{RECORDS}/cloud\"\nendpoint = \"{s3}\"\n\n\
             [admin]\nlisten = \"{admin}\"\n"
        );
        let path = folder.join("decryptor.toml");
        fs::write(&path, file).unwrap();
        path
    }

    fn launch(&mut self, source: &str) -> Replica {
        let admin = free_address().unwrap();
        let config = self.configure(admin, source);
        let arguments = ["run".as_ref(), "-c".as_ref(), config.as_os_str()];
        let (decryptor, log) = (self.site.programs().decryptor(), config.with_file_name("log"));
        let program = Program::start(&decryptor, &arguments, &TestS3::environment(), admin, &log).unwrap();
        Replica { program, config }
    }

    async fn start(&mut self, source: &str) -> Replica {
        let mut replica = self.launch(source);
        replica.program.ready().await.unwrap();
        replica
    }

    /// The queue is told of what has come to be in the bucket, the newest first; `times` says how often of each.
    fn tell(&mut self, mut times: impl FnMut() -> usize) {
        let created = self.s3.created();
        let new: Vec<&String> =
            created[self.told..].iter().filter(|key| key.starts_with("sealed/bundles/")).collect();
        for key in new.into_iter().rev() {
            let record = json!({
                "eventName": "ObjectCreated:Put",
                "s3": { "bucket": { "name": PITS }, "object": { "key": key, "size": 1 } },
            });
            for _ in 0..times() {
                self.sqs.send(json!({ "Records": [record] }).to_string());
            }
        }
        self.told = created.len();
    }

    /// How many objects a bucket has below a prefix.
    fn count(&self, bucket: &str, prefix: &str) -> usize {
        self.s3.objects(bucket).keys().filter(|key| key.starts_with(prefix)).count()
    }

    /// The lines of all outputs, in the order of the ledger.
    fn text(&self) -> String {
        let objects = self.s3.objects(RECORDS);
        let outputs = objects.iter().filter(|(key, _)| key.ends_with(".jsonl.zst"));
        let numbered: BTreeMap<&str, _> =
            outputs.map(|(key, object)| (key.rsplit('/').next().unwrap(), object)).collect();
        let texts = numbered.values().map(|object| zstd::decode_all(&object.bytes[..]).unwrap());
        String::from_utf8(texts.flatten().collect()).unwrap()
    }

    fn delivered(&self) -> Delivered {
        let path = self.site.folder().join("all.jsonl");
        fs::write(&path, self.text()).unwrap();
        Delivered::from_jsonl(&path).unwrap()
    }

    /// Waits until every bundle is decided and so many records are written.
    async fn until_written(&self, records: usize) {
        until("everything is decided and written", || {
            self.count(RECORDS, "cloud/ledger/pit-7/") == self.count(PITS, "sealed/bundles/")
                && self.text().lines().count() >= records
        })
        .await;
    }

    async fn verify(&self, replica: &Replica) -> Finished {
        let config = replica.config.display().to_string();
        let arguments = ["verify", "-c", &config, "--from-first", "-o", "json"];
        let decryptor = self.site.programs().decryptor();
        command::run(&decryptor, arguments, &TestS3::environment()).await.unwrap()
    }

    /// Every record of these devices is in the output once and in order, every envelope that a gateway has acknowledged is in the
    /// ledger, and each bundle in one entry.
    async fn assert_balanced(&self, replica: &Replica, acknowledged: u64, sent: &[(&str, Vec<String>)]) {
        let delivered = self.delivered();
        assert_eq!((delivered.repeated(), delivered.disordered(), delivered.holes()), (0, 0, 0));
        for (device, records) in sent {
            let found = delivered.records_of(device);
            assert!(found.iter().eq(&records.iter().map(String::as_bytes).collect::<Vec<_>>()), "{device}");
        }
        let verified = self.verify(replica).await;
        assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
        let report: Value = verified.json().unwrap();
        let streams = report["streams"].as_array().unwrap();
        let runs = streams.iter().flat_map(|stream| stream["runs"].as_array().unwrap());
        let envelopes: u64 = runs.map(|run| run["envelopes"].as_u64().unwrap()).sum();
        assert_eq!(envelopes, acknowledged);
        assert_eq!(self.count(RECORDS, "cloud/ledger/pit-7/"), self.count(PITS, "sealed/bundles/"));
        assert_eq!(self.count(RECORDS, "cloud/aside/"), 0);
    }
}

fn records(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|at| format!("record {at:06}")).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), waiting)
        .await
        .unwrap_or_else(|_| panic!("not so that {what}"));
}

/// At each kind of request: before it is carried out, and after, when nobody has heard the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_killed_at_any_step_leaves_nothing_undone_and_nothing_done_twice() {
    let mut cloud = Cloud::new(FAST, 4).await;
    let device = cloud.device("truck-1").await;
    let (mut sent, mut acknowledged) = (Vec::new(), 0);
    let steps = [
        (Method::GET, "/bundles/"),
        (Method::PUT, "/ledger/pit-7/"),
        (Method::PUT, "/out/"),
        (Method::HEAD, "/out/"),
        (Method::GET, "/ledger/pit-7/"),
    ];
    for fault in [Fault::Hang, Fault::DropAnswer] {
        for (method, key) in &steps {
            // What a start reads, and what it finishes for who was killed before, is met before there is anything new.
            cloud.s3.fail_next(fault, 1, method.clone(), key);
            let replica = cloud.launch(LISTED);
            let more = records(sent.len(), 40);
            acknowledged += device.send("can", &more).await.unwrap().acknowledged;
            sent.extend(more);
            until(&format!("{method} {key} has met {fault:?}"), || cloud.s3.planned() == 0).await;
            replica.program.kill().await.unwrap();
        }
    }
    // Sent away once although nothing is there, as of two that are made at a time both may be.
    for key in ["/ledger/pit-7/", "/out/"] {
        cloud.s3.fail_next(Fault::Taken, 1, Method::PUT, key);
    }
    let more = records(sent.len(), 40);
    acknowledged += device.send("can", &more).await.unwrap().acknowledged;
    sent.extend(more);
    let last = cloud.start(LISTED).await;
    until("both are met", || cloud.s3.planned() == 0).await;
    cloud.site.until_relayed().await.unwrap();
    cloud.until_written(sent.len()).await;
    cloud.assert_balanced(&last, acknowledged, &[("truck-1", sent)]).await;
    last.stop().await;
    cloud.site.stop().await.unwrap();
}

/// Told twice, out of order and not at all; a store that throttles, loses requests and answers and refuses a creation although nothing is
/// there; killed again and again.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_replicas_store_and_queue_the_ledger_balances() {
    let seed = match std::env::var("PITHEAD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => getrandom::u64().unwrap(),
    };
    println!("PITHEAD_SEED={seed}");
    let mut random = Random(seed);
    // Of replicas that are killed all the time, messages come again more often than anybody's redrive policy has it.
    let mut cloud = Cloud::new(FAST, 1_000).await;
    let mut below = |bound: usize| random.below(bound as u64) as usize;
    let sources = [cloud.queued(), cloud.queued(), LISTED.to_owned()];
    let mut replicas = Vec::new();
    for source in &sources {
        replicas.push(cloud.start(source).await);
    }
    let mut trucks = Vec::new();
    for name in ["truck-1", "truck-2", "truck-3"] {
        let sending = cloud.device(name).await.start_sending_with("can", &["--linger", "2ms"]).unwrap();
        trucks.push((name, sending, Vec::new()));
    }
    let faults = [Fault::DropAnswer, Fault::DropRequest, Fault::SlowDown, Fault::Internal, Fault::Taken];
    let steps = [
        (Method::GET, "/bundles/"),
        (Method::PUT, "/ledger/pit-7/"),
        (Method::GET, "/ledger/pit-7/"),
        (Method::PUT, "/out/"),
        (Method::HEAD, "/out/"),
        (Method::GET, ""),
        (Method::PUT, "/bundles/"),
    ];
    for round in 0..rounds() {
        for (_, sending, sent) in &mut trucks {
            for _ in 0..=below(20) {
                let more = records(sent.len(), 1 + below(9));
                for line in &more {
                    sending.record(line).await.unwrap();
                }
                sent.extend(more);
                sending.flush().await.unwrap();
            }
        }
        let (method, key) = &steps[below(steps.len())];
        let fault = faults[below(faults.len())];
        if fault != Fault::Taken || *method == Method::PUT {
            cloud.s3.fail_next(fault, 1 + below(3) as u32, method.clone(), key);
        }
        if round % 4 == 1 {
            let looked = cloud.s3.count(&Method::GET);
            cloud.s3.fail(Fault::SlowDown);
            until("everybody was told to slow down", || cloud.s3.count(&Method::GET) >= looked + 10).await;
            cloud.s3.heal();
        }
        cloud.tell(|| below(3));
        let at = below(replicas.len());
        replicas.remove(at).program.kill().await.unwrap();
        // It may start while the store is not well: then it is tried again, as whoever starts programs does.
        let started = loop {
            let mut replica = cloud.launch(&sources[at]);
            if replica.program.ready().await.is_ok() {
                break replica;
            }
        };
        replicas.insert(at, started);
    }
    let (mut acknowledged, mut all) = (0, Vec::new());
    for (name, sending, sent) in trucks {
        let summary = sending.finish().await.unwrap();
        assert_eq!(summary.refused, 0);
        acknowledged += summary.acknowledged;
        all.push((name, sent));
    }
    cloud.s3.heal();
    cloud.site.until_relayed().await.unwrap();
    cloud.tell(|| 1);
    cloud.until_written(all.iter().map(|(_, sent)| sent.len()).sum()).await;
    until("the queue is empty", || cloud.sqs.left() == 0).await;
    cloud.assert_balanced(&replicas[0], acknowledged, &all).await;
    let bundles = cloud.count(PITS, "sealed/bundles/");
    println!("{acknowledged} envelopes in {bundles} bundles, {} times a replica was killed", rounds());
    for replica in replicas {
        replica.stop().await;
    }
    cloud.site.stop().await.unwrap();
}

/// For as long as its bundle is worked on, however long that is; and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_kept_from_others_while_its_bundle_is_worked_on_and_is_anybodys_when_the_replica_stops()
{
    let mut cloud = Cloud::new(Duration::from_secs(1), 4).await;
    let device = cloud.device("truck-1").await;
    let sent = records(0, 20);
    let acknowledged = device.send("can", &sent).await.unwrap().acknowledged;
    cloud.site.until_relayed().await.unwrap();
    cloud.tell(|| 1);
    let told = cloud.sqs.left();
    // Asked for, and not answered: that is work, unlike a bundle that has to wait for somebody.
    cloud.s3.fail_next(Fault::Hang, u32::MAX, Method::GET, "/bundles/");
    let source = format!("{}\nvisibility = \"9s\"", cloud.queued());
    let first = cloud.start(&source).await;
    // A third of the time at a time: with the fourth more than all of it is over.
    until("each message was extended four times", || {
        cloud.sqs.count("ChangeMessageVisibility") >= 4 * told as u64
    })
    .await;
    assert_eq!(cloud.sqs.receptions(), vec![1; told], "nobody else was given it");
    assert_eq!(cloud.sqs.waiting(), 0);
    first.stop().await;
    assert_eq!(cloud.sqs.waiting(), told, "it was let go of");
    assert_eq!(cloud.count(RECORDS, "cloud/ledger/pit-7/"), 0);
    cloud.s3.heal();
    let second = cloud.start(&source).await;
    cloud.until_written(sent.len()).await;
    until("the queue is empty", || cloud.sqs.left() == 0).await;
    cloud.assert_balanced(&second, acknowledged, &[("truck-1", sent)]).await;
    second.stop().await;
    cloud.site.stop().await.unwrap();
}

/// What is nobody's goes to the dead letters by the queue's own count; a lost notification is found by the listing; a deletion that is
/// lost does no harm, nor does a bundle that comes damaged once. Afterwards a ledger that somebody has cut is not read on from.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_is_left_to_the_dead_letters_and_what_nobody_told_of_is_found() {
    let mut cloud = Cloud::new(FAST, 4).await;
    let device = cloud.device("truck-1").await;
    let replica = cloud.start(&format!("queue = \"{}\"\n{LISTED}", cloud.sqs.queue_url())).await;
    cloud.sqs.send("hello");
    cloud.s3.fail_next(Fault::Corrupt, 1, Method::GET, "/bundles/");
    cloud.sqs.lose_deletions(2);
    let mut acknowledged = device.send("can", &records(0, 10)).await.unwrap().acknowledged;
    cloud.site.until_relayed().await.unwrap();
    cloud.tell(|| 1);
    acknowledged += device.send("can", &records(10, 10)).await.unwrap().acknowledged;
    cloud.site.until_relayed().await.unwrap();
    cloud.tell(|| 0);
    cloud.until_written(20).await;
    until("the foreign one is a dead letter", || cloud.sqs.dead_letters() == ["hello"]).await;
    until("the bundles' are deleted", || cloud.sqs.left() == 0).await;
    let status = replica.status().await;
    let bundles = cloud.count(PITS, "sealed/bundles/");
    assert_eq!(status["bucket"]["ledgers"][0]["number"], bundles, "{status:#}");
    assert_eq!(status["bucket"]["ledgers"][0]["unfinished"], 0, "{status:#}");
    cloud.assert_balanced(&replica, acknowledged, &[("truck-1", records(0, 20))]).await;
    let config = replica.config.clone();
    replica.stop().await;

    // An entry that somebody has removed is not passed over, and nothing is decided behind it.
    cloud.s3.remove(RECORDS, &format!("cloud/ledger/{SITE}/{:020}", 1));
    for key in cloud.s3.objects(RECORDS).keys().filter(|key| key.contains("/checkpoints/")) {
        cloud.s3.remove(RECORDS, key);
    }
    let cut = Replica { program: cloud.launch(LISTED).program, config };
    let verified = cloud.verify(&cut).await;
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    assert_eq!(verified.json::<Value>().unwrap()["ledger_damaged"], 1);
    assert!(!cut.program.wait().await.unwrap().success());
    assert_eq!(cloud.count(RECORDS, "cloud/ledger/pit-7/"), bundles - 1);
    cloud.site.stop().await.unwrap();
}

/// A file, whose envelope is an object of its own: its plaintext is one too, whole or not named.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_an_object_that_a_line_names_though_who_wrote_it_was_killed() {
    let mut cloud = Cloud::new(FAST, 4).await;
    let device = cloud.device("truck-1").await;
    let (file, sealed) = (cloud.site.folder().join("scan.bin"), cloud.site.folder().join("scan.sealed"));
    let content: Vec<u8> = (0..24_usize << 20).map(|at| (at / 11) as u8).collect();
    fs::write(&file, &content).unwrap();
    let [file, sealed] = [&file, &sealed].map(|path| path.display().to_string());
    device.run(&["seal", &file, "-O", &sealed]).await.unwrap().ok().unwrap();
    device.run(&["upload", &sealed]).await.unwrap().ok().unwrap();
    cloud.site.until_relayed().await.unwrap();
    // Its second part gets no answer.
    cloud.s3.fail_after(1, Fault::Hang, Method::PUT, ".large");
    let first = cloud.start(LISTED).await;
    until("a part is on its way", || cloud.s3.planned() == 0).await;
    first.program.kill().await.unwrap();
    assert_eq!(cloud.count(RECORDS, "cloud/out/"), 0);
    let second = cloud.start(LISTED).await;
    until("it is written", || !cloud.text().is_empty()).await;
    let lines: Vec<Value> = cloud.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named: Vec<&str> = lines.iter().filter_map(|line| line["file"].as_str()).collect();
    assert_eq!((lines.len(), named.len()), (1, 1));
    let object = &cloud.s3.objects(RECORDS)[&format!("cloud/{}", named[0])];
    assert!(object.bytes == content, "{} bytes", object.bytes.len());
    let verified = cloud.verify(&second).await;
    assert_eq!(verified.code, Some(0), "{}", verified.stdout);
    second.stop().await;
    cloud.site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_of_bucket_and_queue_what_they_can_and_config_check_points_at_what_does_not_go_together() {
    let mut cloud = Cloud::new(FAST, 4).await;
    let source = cloud.queued();
    let config = cloud.configure(free_address().unwrap(), &source);
    let path = config.display().to_string();
    let decryptor = cloud.site.programs().decryptor();
    let run = async |arguments: &[&str]| {
        let all = arguments.iter().copied().chain(["-c", &path]);
        command::run(&decryptor, all, &TestS3::environment()).await.unwrap()
    };
    let checked = run(&["check", "--pre"]).await;
    for found in ["what is created is created once", "it is listed, 0 bundles", "0 waiting, 0 in flight"] {
        assert!(checked.stdout.contains(found), "{found}: {}", checked.stdout);
    }
    cloud.s3.fail(Fault::Deny);
    let denied = run(&["check", "--pre"]).await;
    assert_ne!(denied.code, Some(0));
    assert!(denied.stdout.contains("STORE_DENIED") || denied.stdout.contains("PH-50"), "{}", denied.stdout);
    cloud.s3.heal();
    // A store that writes over what is there has no ledger.
    cloud.s3.remove(RECORDS, "cloud/ledger/create-once");
    cloud.s3.fail(Fault::WritesOver);
    let refused = run(&["run"]).await;
    assert!(refused.stderr.contains("If-None-Match"), "{}", refused.stderr);
    cloud.s3.heal();
    assert_eq!(run(&["config", "check"]).await.code, Some(0));
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("kind = \"objects\"", "kind = \"jsonl\"\npath = \"out.jsonl\"")).unwrap();
    let wrong = run(&["config", "check"]).await;
    assert_eq!(wrong.code, Some(78));
    let said = [r#"needs [sink] kind = "objects""#, r#"kind = "jsonl""#];
    assert!(said.iter().all(|said| wrong.stderr.contains(said)), "{}", wrong.stderr);
    cloud.site.stop().await.unwrap();
}
