//! Spans, by the real programs, as they are built with the feature `otlp`: to a collector that takes them, to one that is not there, and
//! to one that never answers.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::Arc;

use pithead_hop::ingest::Answer;
use pithead_hop::ingest::send::{PlainFile, SendOptions, Sender, send_upload};
use pithead_hop::trace::{TraceParent, Traced};
use pithead_tests::binaries::Binaries;
use pithead_tests::client::Client;
use pithead_tests::collector::{Collector, Received, section};
use pithead_tests::command;
use pithead_tests::forge::{Claim, Forge};
use pithead_tests::program::free_address;
use pithead_tests::site::{Site, SiteOptions};

const ONE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OTHER: &str = "00-aaaabbbbccccddddeeeeffff00001111-1111222233334444-01";
const NOT_SAMPLED: &str = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00";

const APPEND: &str = "pithead.ingest.v1.IngestService/Append";
const OPEN_UPLOAD: &str = "pithead.ingest.v1.IngestService/OpenUpload";

fn parent(text: &str) -> TraceParent {
    TraceParent::parse(text).unwrap()
}

/// A site whose programs send spans as `section` says.
async fn site(section: &str) -> Site {
    let site = Site::create(SiteOptions { exporting_spans: true, ..SiteOptions::default() }).await.unwrap();
    for file in [site.gateway_config(), site.decryptor_config()] {
        let mut file = OpenOptions::new().append(true).open(file).unwrap();
        file.write_all(section.as_bytes()).unwrap();
    }
    site
}

/// Has a device bring small envelopes in one `Append` call, which ends when they are answered.
async fn append(site: &Site, device: &str, trace: Option<&str>, count: u64) {
    let client = Client::of(site, device).await.unwrap();
    let mut line = Forge::new(&site.authority).unwrap().line(Claim::of(device)).unwrap();
    let service = Traced::new(client.connection(), trace.map(parent));
    let mut sender = Sender::open(service, &SendOptions::new("a test"), Vec::new()).await.unwrap();
    for seq in 1..=count {
        sender.send(seq, line.seal(seq, b"small").unwrap(), Vec::new()).unwrap();
    }
    let mut answered = 0;
    while answered < count {
        let answers = sender.answers().await.unwrap();
        assert!(answers.iter().all(|one| one.answer == Answer::Stored), "{answers:?}");
        answered += answers.len() as u64;
    }
}

async fn upload(site: &Site, device: &str, trace: &str) {
    let client = Client::of(site, device).await.unwrap();
    let sealed = Forge::new(&site.authority).unwrap().seal(Claim::of(device), &vec![7; 2 << 20]).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&sealed).unwrap();
    let source = Arc::new(PlainFile::open(file).unwrap());
    let service = Traced::new(client.connection(), Some(parent(trace)));
    assert_eq!(send_upload(service, source, Vec::new(), None, |_| {}).await.unwrap(), Answer::Stored);
}

fn find<'a>(all: &'a [Received], service: &str, name: &str, trace: [u8; 16]) -> Option<&'a Received> {
    all.iter().find(|one| one.service == service && one.span.name == name && one.span.trace_id == trace)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_followed_from_the_device_over_both_hops_and_a_batch_links_to_whoever_is_in_it() {
    let mut collector = Collector::start().await.unwrap();
    // Nobody but who says so is followed.
    let mut site = site(&collector.section(0.0)).await;
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();

    // A large envelope: one trace, from the device to the private operation.
    upload(&site, "truck-9", ONE).await;
    let trace = parent(ONE).trace_id();
    let all = collector
        .until("the trace of the large envelope", |all| {
            ["relay.upload"].iter().all(|name| find(all, "pithead-gateway", name, trace).is_some())
                && [OPEN_UPLOAD, "decryptor.unwrap"]
                    .iter()
                    .all(|name| find(all, "pithead-decryptor", name, trace).is_some())
                && find(all, "pithead-gateway", OPEN_UPLOAD, trace).is_some()
        })
        .await
        .unwrap();
    let here = &find(&all, "pithead-gateway", OPEN_UPLOAD, trace).unwrap().span;
    let relayed = find(&all, "pithead-gateway", "relay.upload", trace).unwrap();
    let there = &find(&all, "pithead-decryptor", OPEN_UPLOAD, trace).unwrap().span;
    let unwrapped = &find(&all, "pithead-decryptor", "decryptor.unwrap", trace).unwrap().span;
    assert_eq!(here.parent_span_id, parent(ONE).span_id());
    assert_eq!(relayed.span.parent_span_id, here.span_id);
    assert_eq!(there.parent_span_id, relayed.span.span_id);
    assert_eq!(unwrapped.parent_span_id, there.span_id);
    assert!(relayed.text("pithead.envelope").unwrap().contains("truck-9"));

    // Small ones of two devices that leave together, and of one whose call is not followed.
    site.link.cut();
    append(&site, "truck-1", Some(ONE), 3).await;
    append(&site, "truck-2", Some(OTHER), 2).await;
    append(&site, "truck-3", Some(NOT_SAMPLED), 1).await;
    append(&site, "truck-4", None, 1).await;
    site.link.heal();
    let all = collector
        .until("a batch that links to both calls", |all| {
            let both = [parent(ONE).trace_id(), parent(OTHER).trace_id()];
            find(all, "pithead-gateway", APPEND, both[0]).is_some()
                && all.iter().filter(|one| one.span.name == "relay.batch").any(|one| {
                    both.iter().all(|trace| one.span.links.iter().any(|link| link.trace_id == *trace))
                })
        })
        .await
        .unwrap();
    let call = &find(&all, "pithead-gateway", APPEND, trace).unwrap().span;
    let batch = &find(&all, "pithead-gateway", "ingest.batch", trace).unwrap().span;
    assert_eq!(call.parent_span_id, parent(ONE).span_id());
    assert_eq!(batch.parent_span_id, call.span_id);
    for relayed in all.iter().filter(|one| one.span.name == "relay.batch") {
        assert_eq!(relayed.service, "pithead-gateway");
        assert!(relayed.span.parent_span_id.is_empty(), "a batch of many is nobody's child");
        let traces = [parent(ONE), parent(OTHER)].map(|parent| parent.trace_id().to_vec());
        assert!(relayed.span.links.iter().all(|link| traces.contains(&link.trace_id)));
    }
    let linked = all.iter().find(|one| one.span.links.iter().any(|link| link.span_id == batch.span_id));
    assert_eq!(linked.unwrap().span.name, "relay.batch", "the link is to the batch that brought it");

    // Keys, once in minutes: always followed, and a part of it at the other end.
    let refresh = all.iter().find(|one| one.span.name == "keys.refresh").unwrap();
    let asked = collector
        .until("the other end of a refresh", |all| {
            all.iter().any(|one| {
                one.service == "pithead-decryptor" && one.span.parent_span_id == refresh.span.span_id
            })
        })
        .await
        .unwrap();
    assert!(asked.iter().any(|one| one.span.name == "pithead.keys.v1.KeyService/GetKeyBundle"));

    // Nothing of the others, and nothing that is nobody's business.
    assert!(asked.iter().all(|one| one.span.trace_id != parent(NOT_SAMPLED).trace_id()));
    assert!(asked.iter().all(|one| one.text("pithead.peer").is_none_or(|peer| !peer.contains("truck-4"))));
    let exported = site.gateway().unwrap().admin();
    assert!(exported.metric_where("pithead_trace_spans_total", "outcome=\"exported\"").await.unwrap() > 0.0);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_just_ended_is_sent_before_the_program_does() {
    let mut collector = Collector::start().await.unwrap();
    let mut site = site(&collector.section(1.0)).await;
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    append(&site, "truck-1", Some(ONE), 1).await;
    site.stop().await.unwrap();
    // Without waiting for it: it is there, or it never comes.
    let trace = parent(ONE).trace_id();
    let all = collector.until("everything", |_| true).await.unwrap();
    assert!(find(&all, "pithead-gateway", APPEND, trace).is_some(), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_or_never_answers_holds_up_nobody_and_no_end() {
    // The second takes connections, and never says a word.
    let mute = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    for to in [free_address().unwrap(), mute.local_addr().unwrap()] {
        let mut site = site(&section(to, 1.0)).await;
        site.start_decryptor().await.unwrap();
        site.start_gateway().await.unwrap();
        append(&site, "truck-1", Some(ONE), 20).await;
        upload(&site, "truck-2", OTHER).await;
        let log = |program: &str| site.folder().join(format!("{program}.log"));
        let logs = ["gateway", "decryptor"].map(log);
        let gateway = site.gateway().unwrap();
        gateway
            .until("all of it is delivered", async |admin| {
                admin.metric("pithead_spool_records").await.is_ok_and(|records| records == 0.0)
            })
            .await
            .unwrap();
        // Only who has tried has anything to wait for at the end.
        gateway
            .until("has missed the collector", async |_| {
                std::fs::read_to_string(&logs[0]).is_ok_and(|log| log.contains("traces.away"))
            })
            .await
            .unwrap();
        let admin = site.gateway().unwrap().admin();
        assert_eq!(
            admin.metric_where("pithead_trace_spans_total", "outcome=\"exported\"").await.unwrap(),
            0.0
        );
        site.stop().await.unwrap();
        for log in logs {
            let log = std::fs::read_to_string(log).unwrap();
            assert!(log.contains("traces.lost"), "what is lost is counted: {log}");
            assert!(!log.contains("stop.limit_ran_out"), "nothing had to be cut off: {log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_says_that_it_can_export() {
    let programs = Binaries::exporting_spans().unwrap();
    for program in [programs.gateway(), programs.decryptor()] {
        let said = command::run(&program, ["version"], &[]).await.unwrap().ok().unwrap();
        assert!(said.stdout.contains("otlp: compiled in"), "{}", said.stdout);
    }
}
