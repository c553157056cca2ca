use std::collections::{BTreeMap, HashMap};

use pithead_hop::identity::Assurance;
use pithead_hop::program::recent::Happened;
use pithead_sealing::trust::KeyArn;
use pithead_sealing::{DeviceId, StreamName};
use tracing::Level as Severity;

use super::super::activity::{Activity, Mark};
use super::super::devices::{Devices, devices};
use super::super::history::{Flow, Link};
use super::super::words::Meaning;
use super::*;
use crate::devices::doors::Known;
use crate::envelopes::replicated::{Presence, Served};
use crate::health::Lamp;

const NOW: Duration = Duration::from_secs(1_000_000);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn lamp(level: Level, words: &str) -> Lamp {
    Lamp { level, words: words.into(), since: Duration::ZERO }
}

fn fleet() -> Devices {
    let activity = Activity::default();
    let mark = Mark {
        device: DeviceId::new("truck-1").unwrap(),
        stream: StreamName::new("can").unwrap(),
        key: None,
        bytes: 412,
    };
    activity.came([(mark, Duration::ZERO)], NOW - s(3));
    let there = Known { connected: Some(Assurance::Vouched), seen_ago: Some(Duration::ZERO), revoked: false };
    let known = BTreeMap::from([(DeviceId::new("truck-1").unwrap(), there)]);
    let missing = HashMap::from([(DeviceId::new("truck-2").unwrap(), (3, 9))]);
    devices(&known, &activity.devices(), &missing, "", NOW)
}

fn view() -> View {
    let arn = "arn:aws:kms:ap-southeast-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let reading = |back: u64, waiting| Reading {
        at: NOW - s(back),
        came: 10_000 - back * 10,
        came_bytes: 0,
        left: 0,
        left_bytes: 0,
        waiting,
        waiting_bytes: waiting * 500,
        link: Link::Up,
    };
    View {
        site: "pit-7".into(),
        gateway: "edge-1".into(),
        wall_ms: 1_795_744_800_000,
        uptime: s(900),
        lamps: vec![
            ("ingest", lamp(Level::Ok, "listening"), s(900)),
            ("keys", lamp(Level::Ok, "statement 1.1 in force"), s(900)),
            ("relay", lamp(Level::Ok, "the far end takes envelopes"), s(9)),
            ("disk", lamp(Level::Ok, "12 records wait"), s(900)),
        ],
        meaning: Meaning {
            urgency: Urgency::Calm,
            sentence: "All is well; `pithead-gateway status` says the same.".into(),
            besides: vec![],
        },
        span: SPANS[1],
        now: NOW,
        readings: (0..600).rev().map(|back| reading(back, if back == 301 { 4_711 } else { 12 })).collect(),
        outages: vec![],
        has_relay: true,
        flow: Some(Flow { came: 10.0, came_bytes: 5_000.0, left: 9.0, left_bytes: 4_500.0 }),
        acks: (
            600,
            Some(Took::Within(Duration::from_micros(850))),
            Some(Took::Within(Duration::from_millis(4))),
        ),
        waiting: 12,
        waiting_bytes: 6_000,
        oldest: Some(s(2)),
        grows_per_s: None,
        full_in: None,
        capacity_bytes: 8 << 30,
        room_bytes: 6 << 30,
        refused: (0, 0),
        key: Some(KeyView {
            version: (1, 7),
            authority: "acme/prod".into(),
            custody: Some(Custody::CloudHsm),
            signers: vec!["signer-1".into()],
            issued_at: 1_795_741_200,
            refresh_by: 1_798_333_200,
            expires_at: 1_811_293_200,
            in_use: Some((KeyArn::new(arn).unwrap(), Sha256Digest::of(b"a key"), 3_072)),
            others: vec![(KeyArn::new(arn).unwrap(), Sha256Digest::of(b"next"), KeyStatus::Next)],
            adopted: (40, 42),
        }),
        gateways: vec![],
        owner: None,
        devices: fleet(),
        quarters_unknown: 95,
        filter: String::new(),
        events: vec![],
    }
}

fn drawn(view: &View) -> String {
    page(view).into_string()
}

#[test]
fn a_site_of_several_gateways_shows_them_all_and_who_takes_envelopes() {
    assert!(!drawn(&view()).contains("Gateways of the site"));
    let served = Served { epoch: 1, sequence: 7, digest: "ab".repeat(32) };
    let neighbour = |name: &str, is_present| Neighbour {
        name: name.into(),
        address: Some("10.1.0.5:7443".into()),
        presence: Presence {
            version: "0.1.0".into(),
            ready: true,
            words: "<b>ready</b>".into(),
            connections: 1_234,
            statement: Some(served.clone()),
        },
        is_here: name == "edge-1",
        is_present,
        silent_for: s(if is_present { 2 } else { 90 }),
    };
    let gateways = vec![neighbour("edge-1", true), neighbour("edge-2", true), neighbour("edge-3", false)];
    let html = drawn(&View { gateways, owner: Some("edge-2".into()), ..view() });
    for part in [
        "3 gateways known, 2 heard of lately",
        "edge-1 <span class=\"more\">this one</span>",
        "silent for 90 s",
        "&lt;b&gt;ready&lt;/b&gt;",
        "1,234",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    let row = html.split("data-gateway=\"edge-2\"").nth(1).unwrap().split("</tr>").next().unwrap();
    assert!(row.contains("takes them") && html.matches("takes them").count() == 1, "{row}");
}

#[test]
fn everything_that_is_known_is_on_the_page() {
    let html = drawn(&view());
    for part in [
        "<title>well · pit-7 edge-1</title>",
        "data-lamp=\"relay\" data-level=\"ok\"",
        "All is well; <code>pithead-gateway status</code> says the same.",
        ">12</span>",
        "room for 6.0 GiB more",
        "850 µs",
        "40 of 42 devices that sealed within 24 h",
        "acme/prod: signer-1 (a cloud HSM)",
        "sealed, 412 B",
        "connected, vouched",
        "2 devices known, 1 connected, 1 with missing numbers",
        "in 179 days",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    let digest = Sha256Digest::of(b"a key").to_string();
    let fours = format!("{} {} {}", &digest[..4], &digest[4..8], &digest[8..12]);
    assert!(html.contains(&fours), "{fours}");
}

#[test]
fn the_page_asks_for_nothing_from_elsewhere_and_has_no_style_or_script_of_its_own() {
    let mut full = view();
    full.events = vec![happened("relay.down", &[("why", "connect: refused")])];
    let html = drawn(&full);
    for forbidden in
        ["style=", "<style", "javascript:", "onload", "http://", "https://", "//cdn", "<img", "<iframe"]
    {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert_eq!(html.matches("<script").count(), 1);
    assert!(html.contains("<script src=\"/console/refresh.js\" defer></script>"));
    assert!(html.contains("<noscript><meta http-equiv=\"refresh\" content=\"15\"></noscript>"));
}

fn happened(name: &str, fields: &[(&'static str, &str)]) -> Happened {
    Happened {
        at_ms: 1_795_744_790_000,
        level: Severity::WARN,
        name: name.into(),
        fields: fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        times: 1,
    }
}

#[test]
fn what_comes_from_elsewhere_is_text_and_never_markup() {
    let evil = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>";
    let mut full = view();
    full.filter = evil.into();
    full.meaning.sentence = format!("`{evil}` {evil}");
    full.meaning.besides = vec![evil.into()];
    full.lamps[2].1 = lamp(Level::Degraded, evil);
    full.events = vec![happened(evil, &[("why", evil), ("message", evil)])];
    let key = full.key.as_mut().unwrap();
    key.authority = evil.into();
    key.signers = vec![evil.into()];
    let html = drawn(&full);
    assert!(!html.contains("<script>alert") && !html.contains("<img"), "{html}");
    assert!(!html.contains("\"'&<") && html.contains("&lt;script&gt;alert(1)"), "{html}");
    assert!(html.contains("href=\"/?span=5min&amp;device=%3Cscript%3Ealert%281%29"), "{html}");
}

#[test]
fn each_lamp_has_a_word_and_a_shape_of_its_own_besides_its_colour() {
    let mut signs = std::collections::HashSet::new();
    for (state, word) in [(Level::Ok, "well"), (Level::Degraded, "degraded"), (Level::Down, "down")] {
        let mut off = view();
        off.lamps[2].1 = lamp(state, "words");
        let html = drawn(&off);
        let at = html.find("data-lamp=\"relay\"").unwrap();
        let item = &html[at..at + html[at..].find("</li>").unwrap()];
        assert!(item.contains(&format!("<span class=\"word\">{word}</span>")), "{item}");
        assert!(signs.insert(sign(state).into_string()));
    }
    let mut off = view();
    off.lamps[2].1 = lamp(Level::Degraded, "away");
    assert!(drawn(&off).contains("<title>relay degraded · pit-7 edge-1</title>"));
}

#[test]
fn a_link_that_is_down_is_shaded_and_the_full_disk_is_drawn_where_it_is_expected() {
    let mut down = view();
    down.outages = vec![Outage { from: NOW - s(300), to: None, paused: false }];
    (down.grows_per_s, down.full_in) = (Some(10.0), Some(s(400)));
    let html = drawn(&down);
    assert!(html.contains("class=\"shade down\"") && html.contains(">link down<"), "{html}");
    assert!(html.contains(">disk full<") && html.contains("full in 6 min at this rate"), "{html}");
    down.full_in = Some(s(90_000));
    let html = drawn(&down);
    assert!(
        !html.contains(">disk full<")
            && html.contains("class=\"line ahead\"")
            && html.contains("full in 25 h")
    );
    assert!(drawn(&view()).contains(">before this gateway started<"));
}

#[test]
fn a_peak_between_two_points_is_not_thinned_away() {
    let all = view();
    let points = thinned(&all.readings, 50);
    assert!(points.len() <= 50);
    assert_eq!(points.iter().map(|(_, most)| *most).max(), Some(4_711));
    assert_eq!(points.last().unwrap().0.at, NOW);
    assert!(thinned(&[], 50).is_empty());
}

#[test]
fn a_gateway_that_has_just_started_and_knows_nothing_says_so() {
    let mut young = view();
    (young.flow, young.key, young.readings, young.acks) = (None, None, vec![], (0, None, None));
    (young.waiting, young.oldest, young.devices) = (0, None, Devices::default());
    let html = drawn(&young);
    for part in [
        "the first second is not over",
        "no statement was ever accepted here",
        "0 devices known",
        "None yet.",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    assert!(!html.contains("NaN"));
}

#[test]
fn a_site_without_a_relay_is_shown_no_way_out() {
    let mut alone = view();
    alone.has_relay = false;
    let html = drawn(&alone);
    assert!(
        html.contains("Waiting to be carried away")
            && !html.contains("<dt>Out</dt>")
            && !html.contains(">out<")
    );
}
