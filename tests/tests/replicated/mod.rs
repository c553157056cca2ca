//! A site on NATS JetStream: three real servers, two real gateways, a truck that knows both, and whoever is killed, frozen or stopped
//! among them.
//!
//! Short by default; `PITHEAD_LONG=1` goes on for an hour. `PITHEAD_SEED` chooses the moments; a failure prints it.

mod cut;
mod fleet;
mod large;
mod looking;
mod passing;
mod refused;
mod truths;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use pithead_device_client::{batch::BatchLimits, client::Client, client::StreamOptions};
use pithead_hop::backoff::Policy;
use pithead_sealing::StreamName;
use pithead_tests::{
    command,
    device::Device,
    long,
    nats::{Nats, NatsOptions, binary},
    program::{Admin, PATIENCE, Program},
    random::Random,
    site::{SITE, SecondGateway, SinkKind, Site, SiteOptions},
    vehicle,
};
use rustix::process::Signal;

/// Longer than an owner's lease.
const LEASE: Duration = Duration::from_secs(5);

struct World {
    nats: Nats,
    site: Site,
    second: SecondGateway,
    folder: tempfile::TempDir,
}

fn options(section: &str) -> SiteOptions {
    let gateway_lines =
        vec![("spool", "engine = \"jetstream\"".to_owned()), ("spool.jetstream", section.to_owned())];
    SiteOptions { gateway_lines, ..SiteOptions::default() }
}

impl World {
    /// None where there is no nats-server.
    async fn start(servers: usize) -> Option<Self> {
        Self::start_with(servers, SinkKind::default(), Vec::new()).await
    }

    /// With more lines in the gateways' files.
    async fn start_with(servers: usize, sink: SinkKind, lines: Vec<(&'static str, String)>) -> Option<Self> {
        let binary = binary()?;
        let folder = tempfile::Builder::new().prefix("pithead-nats-").tempdir().unwrap();
        let nats = Nats::start(binary, folder.path(), NatsOptions { servers, ..NatsOptions::default() })
            .await
            .unwrap();
        let mut options = SiteOptions { sink, ..options(&nats.section()) };
        options.gateway_lines.extend(lines);
        let site = Site::start(options).await.unwrap();
        let second = site.second_gateway("edge-2").await.unwrap();
        let mut world = Self { nats, site, second, folder };
        world.owner().await;
        Some(world)
    }

    fn admins(&self) -> [Admin; 2] {
        [Admin(self.site.gateway_admin()), Admin(self.second.admin())]
    }

    /// Which of the two gateways takes envelopes, when one does.
    async fn owner(&mut self) -> usize {
        let began = Instant::now();
        loop {
            for (at, admin) in self.admins().into_iter().enumerate() {
                if owns(admin).await {
                    return at;
                }
            }
            assert!(began.elapsed() < PATIENCE, "nobody takes envelopes\n{}", self.site.log_tails());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn kill_gateway(&mut self, at: usize) {
        match at {
            0 => self.site.kill_gateway().await.unwrap(),
            _ => self.second.kill().await.unwrap(),
        }
    }

    fn launch_gateway(&mut self, at: usize) {
        match at {
            0 => drop(self.site.launch_gateway().unwrap()),
            _ => drop(self.second.launch().unwrap()),
        }
    }

    fn program(&mut self, at: usize) -> &mut Program {
        match at {
            0 => self.site.gateway().unwrap(),
            _ => self.second.program(),
        }
    }

    fn signal(&mut self, at: usize, what: Signal) {
        self.program(at).signal(what).unwrap();
    }

    /// Runs a command of one of the two gateways to its end.
    async fn command(&self, at: usize, arguments: &[&str]) -> command::Finished {
        let config = match at {
            0 => self.site.gateway_config(),
            _ => self.second.config().to_owned(),
        };
        let config = config.display().to_string();
        let arguments = arguments.iter().copied().chain(["-c", &config]);
        command::run(&self.site.programs().gateway(), arguments, &[]).await.unwrap()
    }

    /// Until the owner has passed everything on.
    async fn relayed(&mut self) {
        let began = Instant::now();
        loop {
            let owner = self.owner().await;
            let admin = self.admins()[owner];
            if matches!(admin.metric("pithead_spool_records").await, Ok(0.0)) && owns(admin).await {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "never passed on\n{}", self.site.log_tails());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(mut self) {
        self.second.stop().await.unwrap();
        self.site.stop().await.unwrap();
    }
}

/// Whoever has to find out why a test failed has the logs in its output: the files go with it.
impl Drop for World {
    #[expect(clippy::print_stdout, reason = "it is shown with the failure")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut logs: Vec<(String, String)> = (1..=self.nats.len())
            .map(|number| format!("nats-{number}.log"))
            .map(|name| (self.folder.path().join(&name), name))
            .map(|(path, name)| (name, std::fs::read_to_string(path).unwrap_or_default()))
            .collect();
        let first = std::fs::read_to_string(self.site.folder().join("gateway.log"));
        logs.push(("edge-1".to_owned(), first.unwrap_or_default()));
        for name in ["edge-2", "decryptor", "fleet"] {
            let text = std::fs::read_to_string(self.site.folder().join(format!("{name}.log")));
            logs.push((name.to_owned(), text.unwrap_or_default()));
        }
        for (name, text) in logs {
            let lines: Vec<&str> = text.lines().collect();
            println!("--- {name} ends:\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
        }
    }
}

/// Of each log, in the output of a test that failed.
const LOG_LINES: usize = 80;

/// What chooses the moments.
#[expect(clippy::print_stdout, reason = "whoever wants the same moments again needs it")]
fn seed() -> u64 {
    let seed = match std::env::var("PITHEAD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => getrandom::u64().unwrap(),
    };
    println!("PITHEAD_SEED={seed}");
    seed
}

async fn owns(admin: Admin) -> bool {
    matches!(admin.metric("pithead_spool_owner").await, Ok(1.0))
}

/// A truck with the client in it, which knows both gateways.
struct Truck {
    device: Device,
    client: Client,
    next: u64,
}

impl Truck {
    async fn start(world: &World, name: &str, first: usize) -> Self {
        let mut gateways = [world.site.gateway_address(), world.second.address()];
        gateways.rotate_left(first);
        Self::knowing(&world.site, name, &gateways).await
    }

    /// One that knows these gateways.
    async fn knowing(site: &Site, name: &str, gateways: &[SocketAddr]) -> Self {
        let device = site.enroll(name).await.unwrap();
        device.key().await.unwrap();
        let retry = Policy { first: Duration::from_millis(20), max: Duration::from_millis(200) };
        let limits = BatchLimits { records: 20, bytes: 64 << 10 };
        let can = StreamOptions::records(StreamName::new("can").unwrap());
        let can = can.linger(Duration::from_millis(5)).batch(limits);
        let client = vehicle::client_in(device.folder(), device.name(), gateways, retry).unwrap();
        let client = client.heartbeat_every(Duration::from_secs(3_600)).stream(can).open().unwrap();
        Self { device, client, next: 0 }
    }

    fn record(&mut self, count: u64) {
        for _ in 0..count {
            let data = vehicle::record(self.next, 100);
            self.client.stream("can").unwrap().record(data.as_bytes()).unwrap();
            self.next += 1;
        }
    }

    async fn record_for(&mut self, time: Duration) {
        let began = Instant::now();
        let mut beat = tokio::time::interval(Duration::from_millis(5));
        while began.elapsed() < time {
            beat.tick().await;
            self.record(5);
        }
    }

    /// Everything is with a gateway.
    async fn flush(&self) {
        let flushed = self.client.flush(PATIENCE).await;
        assert!(flushed.is_ok(), "{flushed:?} {:?}", self.client.status());
    }
}

/// What was acknowledged is what was delivered, each once and in the order of its line, and the cloud's own books know of no hole. Whichever
/// gateway has taken what: a device begins a call with the first number that has no answer and goes on from there, and so does a relay. So
/// each number comes first behind the one before it, also where an old call still brings what a new one has brought.
async fn balance(world: &mut World, trucks: &[Truck]) {
    world.relayed().await;
    let delivered = world.site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated(), delivered.disordered()), (0, 0, 0));
    for truck in trucks {
        let mut times = BTreeMap::new();
        for record in delivered.records_of(truck.device.name()) {
            *times.entry(vehicle::number(record).expect("a number")).or_insert(0_u64) += 1;
        }
        let expected: BTreeMap<u64, u64> = (0..truck.next).map(|number| (number, 1)).collect();
        let wrong: Vec<u64> =
            (0..truck.next).filter(|number| times.get(number) != expected.get(number)).take(10).collect();
        assert!(times == expected, "{}: wrong at {wrong:?} of {}", truck.device.name(), truck.next);
    }
    let config = world.site.decryptor_config().display().to_string();
    let proof = world.site.decryptor_command(&["verify", "-c", &config]).await.unwrap();
    assert_eq!(proof.code, Some(0), "{}{}", proof.stdout, proof.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_gateway_takes_envelopes_and_the_other_serves_keys_says_who_does_and_takes_over_at_once() {
    let Some(mut world) = World::start(1).await else { return };
    let owner = world.owner().await;
    let other = 1 - owner;
    let [here, there] = [world.admins()[owner], world.admins()[other]];
    for admin in [here, there] {
        assert_eq!(admin.get("/readyz").await.unwrap().status, 200);
    }
    assert_eq!(here.get("/readyz/ingest").await.unwrap().status, 200);
    let stands_by = there.get("/readyz/ingest").await.unwrap();
    let name = ["edge-1", "edge-2"][owner];
    assert!(stands_by.status == 503 && stands_by.body.contains(name), "{stands_by:?}");
    let status = there.status().await.unwrap();
    assert_eq!(status["spool"]["engine"], "jetstream");
    assert!(status["spool"]["standing_by"].as_str().unwrap().contains(name), "{status:#}");

    // A truck that asks the wrong one first is sent on.
    let mut truck = Truck::start(&world, "truck-1", other).await;
    truck.record(200);
    truck.flush().await;
    let stored = async |admin: Admin| {
        admin.metric_where("pithead_ingest_envelopes_total", "\"stored\"").await.unwrap()
    };
    assert!(stored(here).await >= 10.0);
    assert_eq!(stored(there).await, 0.0);

    // An orderly stop hands over without waiting for the lease.
    truck.record(100);
    match owner {
        0 => world.site.stop_gateway().await.unwrap(),
        _ => world.second.stop().await.unwrap(),
    }
    assert_eq!(world.owner().await, other);
    let log = world.program(other).log_text();
    let claims: Vec<&str> = log.lines().filter(|line| line.contains("spool.claimed")).collect();
    assert!(
        claims.last().is_some_and(|claim| claim.contains("handed over")),
        "it waited for the lease: {claims:?}"
    );
    truck.record(100);
    truck.flush().await;
    assert!(stored(there).await > 0.0);
    world.launch_gateway(owner);
    balance(&mut world, &[truck]).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_alone_or_together_what_was_acknowledged_arrives_once() {
    let mut random = Random(seed());
    let Some(mut world) = World::start(3).await else { return };
    let mut trucks = vec![Truck::start(&world, "truck-1", 0).await, Truck::start(&world, "truck-2", 1).await];
    let mut counted = [0; 4];
    let rounds = if long() { 300 } else { 6 };
    for round in 0..rounds {
        for truck in &mut trucks {
            truck.record_for(Duration::from_millis(random.below(400))).await;
        }
        let owner = world.owner().await;
        let server = random.below(3) as usize;
        // Each of them at least once.
        let what = if round < 4 { round as usize } else { random.below(4) as usize };
        counted[what] += 1;
        println!("round {round}: {what}, server {server}, owner {owner}");
        match what {
            // A server.
            0 => world.nats.kill(server).await.unwrap(),
            // The owner.
            1 => world.kill_gateway(owner).await,
            // A machine with both on it.
            2 => {
                world.nats.kill(server).await.unwrap();
                world.kill_gateway(owner).await;
            }
            // A server that is there and says nothing.
            _ => world.nats.freeze(server).unwrap(),
        }
        for truck in &mut trucks {
            truck.record_for(Duration::from_millis(random.below(1_500))).await;
        }
        if what == 3 {
            tokio::time::sleep(LEASE).await;
            world.nats.thaw(server).unwrap();
        }
        if matches!(what, 0 | 2) {
            world.nats.launch(server).unwrap();
        }
        if matches!(what, 1 | 2) {
            world.launch_gateway(owner);
        }
        // One at a time: two of three are what a majority needs.
        world.nats.healthy(server).await.unwrap();
        if matches!(what, 1 | 2) {
            match owner {
                0 => world.site.gateway().unwrap().ready().await.unwrap(),
                _ => world.second.program().ready().await.unwrap(),
            }
        }
        for truck in &trucks {
            truck.flush().await;
        }
    }
    balance(&mut world, &trucks).await;
    println!("killed or frozen {counted:?} (server, owner, both, frozen server)");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_slept_through_its_lease_wakes_up_as_one_that_stands_by() {
    let Some(mut world) = World::start(1).await else { return };
    let owner = world.owner().await;
    let other = 1 - owner;
    let mut trucks =
        vec![Truck::start(&world, "truck-1", owner).await, Truck::start(&world, "truck-2", other).await];
    for truck in &mut trucks {
        truck.record(500);
        truck.flush().await;
        // Under way when it falls asleep.
        truck.record(500);
    }
    world.signal(owner, Signal::STOP);
    let there = world.admins()[other];
    let began = Instant::now();
    while !owns(there).await {
        assert!(began.elapsed() < PATIENCE, "nobody takes over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    trucks[1].record_for(Duration::from_secs(1)).await;
    world.signal(owner, Signal::CONT);
    let slept = world.admins()[owner];
    let began = Instant::now();
    while owns(slept).await {
        assert!(began.elapsed() < PATIENCE, "it does not notice");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = slept.get("/readyz/ingest").await.unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    for truck in &mut trucks {
        truck.record(100);
        truck.flush().await;
    }
    assert!(owns(there).await && !owns(slept).await);
    balance(&mut world, &trucks).await;
    world.stop().await;
}

/// Starts a gateway that must not start, and gives what it said.
async fn refused(section: &str) -> String {
    let site = Site::create(options(section)).await.unwrap();
    let config = site.gateway_config().display().to_string();
    let ended = command::run(&site.programs().gateway(), ["run", "-c", &config], &[]).await.unwrap();
    assert_eq!(ended.code, Some(78), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("SPOOL_UNSAFE"), "{}", ended.stderr);
    ended.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_streams_that_would_make_an_acknowledgement_a_lie_are_refused_and_named() {
    let Some(binary) = binary() else { return };
    let folder = tempfile::Builder::new().prefix("pithead-nats-").tempdir().unwrap();
    let one = NatsOptions { servers: 1, ..NatsOptions::default() };
    for (name, options, words) in [
        ("sync", NatsOptions { sync: None, ..one }, "sync_interval: always"),
        ("payload", NatsOptions { max_payload: "1MB", ..one }, "max_payload"),
    ] {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let nats = Nats::start(binary.clone(), &folder, options).await.unwrap();
        let said = refused(&nats.section()).await;
        assert!(said.contains(words), "{said}");
    }
    let nats = Nats::start(binary, folder.path(), one).await.unwrap();
    let said = refused(&nats.section().replace("replicas = 1", "replicas = 3")).await;
    assert!(said.contains("replicas"), "{said}");
    // Somebody else has made the stream, and not as it has to be.
    let client = async_nats::connect(nats.client(0).to_string()).await.unwrap();
    let name = format!("pithead-{SITE}-second");
    let made = stream::Config {
        name: name.clone(),
        subjects: vec![format!("pithead-{SITE}.lane.second")],
        max_age: Duration::from_secs(60),
        discard: stream::DiscardPolicy::Old,
        ..stream::Config::default()
    };
    jetstream::new(client.clone()).create_stream(made).await.unwrap();
    let said = refused(&nats.section()).await;
    for words in [name.as_str(), "max_age is 60 s", "discard is old"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // It was not altered.
    let stream = jetstream::new(client).get_stream(&name).await.unwrap();
    assert_eq!(stream.cached_info().config.discard, stream::DiscardPolicy::Old);
}
