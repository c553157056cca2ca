//! A truck that reaches one gateway alone, whichever: what it hands in there goes on to the one that takes the site's envelopes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pithead_hop::identity::{Assurance, GatewayName, Peer, PeerId};
use pithead_hop::ingest::pass;
use pithead_hop::status::Remote;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1::{SubmitRequest, ingest_service_client::IngestServiceClient};
use pithead_tests::certificates::Certificate;
use pithead_tests::client::Client;

use super::*;

/// By which gateways the records of a device came, in order, and how each knew the one before it.
fn ways(world: &World, device: &str) -> BTreeMap<Vec<String>, u64> {
    let sink = std::fs::read_to_string(world.site.sink()).unwrap();
    let mut ways = BTreeMap::new();
    for line in sink.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line["device"] == device {
            let hops = line["hops"].as_array().unwrap().iter().map(|hop| {
                format!("{} {}", hop["gateway"].as_str().unwrap(), hop["assurance"].as_str().unwrap())
            });
            *ways.entry(hops.collect()).or_default() += 1;
        }
    }
    ways
}

const NAMES: [&str; 2] = ["edge-1", "edge-2"];

impl World {
    fn addresses(&self) -> [SocketAddr; 2] {
        [self.site.gateway_address(), self.second.address()]
    }

    async fn metric(&self, at: usize, name: &str, label: &str) -> f64 {
        self.admins()[at].metric_where(name, label).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truck_that_knows_only_the_gateway_that_stands_by_hands_everything_in_there() {
    let Some(mut world) = World::start(3).await else { return };
    let owner = world.owner().await;
    let other = 1 - owner;
    let mut truck = Truck::knowing(&world.site, "truck-1", &[world.addresses()[other]]).await;
    let mut neighbour = Truck::knowing(&world.site, "truck-2", &[world.addresses()[owner]]).await;
    let mut took = [Duration::ZERO; 2];
    for _ in 0..20 {
        for (truck, took) in [&mut truck, &mut neighbour].into_iter().zip(&mut took) {
            let began = Instant::now();
            truck.record(25);
            truck.flush().await;
            *took += began.elapsed();
        }
    }
    println!(
        "25 records until they are acknowledged: {:?} by way of the other, {:?} at the owner",
        took[0] / 20,
        took[1] / 20
    );
    let status = world.admins()[other].status().await.unwrap();
    assert_eq!(status["spool"]["passing_on_calls"], 1, "{status:#}");
    let words = status["dimensions"]["ingest"]["words"].as_str().unwrap();
    assert!(words.contains(&format!("{} at ", NAMES[owner])) && words.contains("passed on"), "{words}");
    // Each envelope at both, and none of it stored where it came in.
    let given = world.metric(other, "pithead_passed_on_envelopes_total", "\"given\"").await;
    let taken = world.metric(owner, "pithead_passed_on_envelopes_total", "\"taken\"").await;
    assert!(given >= 25.0 && given == taken, "{given} {taken}");
    assert_eq!(world.metric(other, "pithead_ingest_envelopes_total", "\"stored\"").await, 0.0);
    assert_eq!(world.metric(owner, "pithead_ingest_envelopes_total", "\"duplicate\"").await, 0.0);

    balance(&mut world, &[truck, neighbour]).await;
    let word = |at: usize| format!("{} vouched", NAMES[at]);
    let by = |device| ways(&world, device).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(by("truck-1"), BTreeSet::from([vec![word(other), word(owner)]]));
    assert_eq!(by("truck-2"), BTreeSet::from([vec![word(owner)]]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_is_killed_while_it_is_passed_on_to_and_then_the_next_one() {
    let Some(mut world) = World::start(3).await else { return };
    // Each knows one gateway, so one of them is always passed on.
    let [first, second] = world.addresses();
    let mut trucks = vec![
        Truck::knowing(&world.site, "truck-1", &[first]).await,
        Truck::knowing(&world.site, "truck-2", &[second]).await,
    ];
    let mut given = [0.0; 2];
    for round in 0..if long() { 40 } else { 4 } {
        let owner = world.owner().await;
        let other = 1 - owner;
        for truck in &mut trucks {
            truck.record_for(Duration::from_millis(300)).await;
        }
        // Under way when it is killed, on a call that is passed on.
        let mut passing = false;
        let began = Instant::now();
        while !passing {
            assert!(began.elapsed() < PATIENCE, "nothing is passed on\n{}", world.site.log_tails());
            trucks[other].record(50);
            passing = world.admins()[other].metric("pithead_passing_on_calls").await.unwrap() > 0.0;
        }
        given[other] = world.metric(other, "pithead_passed_on_envelopes_total", "\"given\"").await;
        world.kill_gateway(owner).await;
        for truck in &mut trucks {
            truck.record_for(Duration::from_millis(300)).await;
        }
        // The one whose own gateway is gone waits for it; the other one goes on at the next owner.
        trucks[other].flush().await;
        assert_eq!(world.owner().await, other, "round {round}");
        world.launch_gateway(owner);
        for truck in &trucks {
            truck.flush().await;
        }
    }
    assert!(given.iter().all(|given| *given > 0.0), "{given:?}");
    let began = Instant::now();
    balance(&mut world, &trucks).await;
    println!("balanced in {:?}; passed on {given:?}", began.elapsed());
    let through_both: u64 = ["truck-1", "truck-2"]
        .iter()
        .flat_map(|device| ways(&world, device))
        .filter(|(way, _)| way.len() == 2)
        .map(|(_, records)| records)
        .sum();
    assert!(through_both > 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_that_it_brings_another_ones_call_is_refused_unless_it_is_a_gateway_of_the_site() {
    let Some(mut world) = World::start(1).await else { return };
    let owner = world.owner().await;
    let truck = Peer {
        id: PeerId::from_uri(&format!("spiffe://{SITE}/device/truck-1")).unwrap(),
        certificate_sha256: Some([7; 32]),
        assurance: Assurance::Vouched,
        passed_on_by: None,
    };
    let folder = world.site.folder().join("certificates");
    let papers = |name: &str| {
        world
            .site
            .ca
            .client(&format!("spiffe://{SITE}/{name}"), &folder.join(name.replace('/', "-")))
            .unwrap()
    };
    let ca = world.site.ca.path().to_owned();
    let claim = async |papers: &Certificate, at: SocketAddr, word_of: &str| {
        let client = Client::connect(at, &ca, Some(papers)).await.unwrap().unwrap();
        let mut request = tonic::Request::new(SubmitRequest { envelope: b"no envelope".as_slice().into() });
        pass::mark(request.metadata_mut(), &GatewayName::new(word_of).unwrap(), &truck);
        let answer = IngestServiceClient::new(client.connection()).submit(request).await;
        Remote::from_status(&answer.expect_err("it is no envelope")).reason.unwrap()
    };
    let liar = papers("device/truck-2");
    for at in world.addresses() {
        assert_eq!(claim(&liar, at, NAMES[1 - owner]).await, ErrorReason::PassingOnRefused);
    }
    // What a gateway brings is looked at: this is no envelope. Another gateway's word is not taken from it.
    let gateway = papers(&format!("gateway/{}", NAMES[1 - owner]));
    let at = world.addresses()[owner];
    assert_eq!(claim(&gateway, at, NAMES[1 - owner]).await, ErrorReason::EnvelopeUnsupportedVersion);
    assert_eq!(claim(&gateway, at, NAMES[owner]).await, ErrorReason::RequestInvalid);
    // And it goes on to nobody from one that stands by.
    let stands_by = world.addresses()[1 - owner];
    assert_eq!(claim(&gateway, stands_by, NAMES[1 - owner]).await, ErrorReason::StandingBy);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_shares_its_spool_with_nobody_takes_no_calls_that_are_passed_on() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let papers =
        site.ca.client(&format!("spiffe://{SITE}/gateway/edge-2"), &site.folder().join("edge-2")).unwrap();
    let client =
        Client::connect(site.gateway_address(), site.ca.path(), Some(&papers)).await.unwrap().unwrap();
    let id = PeerId::from_uri(&format!("spiffe://{SITE}/device/truck-1")).unwrap();
    let truck =
        Peer { id, certificate_sha256: Some([7; 32]), assurance: Assurance::Vouched, passed_on_by: None };
    let mut request = tonic::Request::new(SubmitRequest { envelope: b"no envelope".as_slice().into() });
    pass::mark(request.metadata_mut(), &GatewayName::new("edge-2").unwrap(), &truck);
    let refused = IngestServiceClient::new(client.connection()).submit(request).await.unwrap_err();
    assert_eq!(Remote::from_status(&refused).reason, Some(ErrorReason::PassingOnRefused), "{refused}");
    site.stop().await.unwrap();
}
