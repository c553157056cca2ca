//! A fleet out of one process, `pithead-device simulate`, that knows both gateways, while any process is killed: a server, either gateway,
//! the decryptor, the fleet itself, and a machine with a server and a gateway on it.
//!
//! No books are kept here, so none can be kept wrongly. A record carries its number in the process that made it; each start of a vehicle
//! tells the cloud how far the one before had come on its disk; the decryptor knows which numbers it has; and the fleet's last process says
//! what was acknowledged to it.

use std::path::PathBuf;

use pithead_tests::ledger::Delivered;
use pithead_tests::program::free_address;
use serde_json::Value;

use super::*;

const VEHICLES: usize = 4;
/// Records a second of each.
const RATE: &str = "50";
/// Records that come through when a site is at work: about half a second of the fleet, and more than is under way at a time.
const FLOWING: u64 = 100;
/// Envelopes that wait when the cloud is away.
const WAITING: f64 = 20.0;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Server,
    Owner,
    StandingBy,
    Decryptor,
    Fleet,
    /// A server and the owner.
    Machine,
    /// A server and the gateway that stands by.
    OtherMachine,
}

impl Victim {
    const ALL: [Self; 7] = [
        Self::Server,
        Self::Owner,
        Self::StandingBy,
        Self::Decryptor,
        Self::Fleet,
        Self::Machine,
        Self::OtherMachine,
    ];

    fn has_server(self) -> bool {
        matches!(self, Self::Server | Self::Machine | Self::OtherMachine)
    }

    /// Which gateway goes, if one does.
    fn gateway(self, owner: usize) -> Option<usize> {
        match self {
            Self::Owner | Self::Machine => Some(owner),
            Self::StandingBy | Self::OtherMachine => Some(1 - owner),
            Self::Server | Self::Decryptor | Self::Fleet => None,
        }
    }
}

/// The process, and where it is at home.
struct Fleet {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Program>,
    processes: usize,
}

fn name(vehicle: usize) -> String {
    format!("truck-{vehicle}")
}

impl Fleet {
    /// Each vehicle knows both gateways, and every second one would rather have the second.
    async fn start(world: &World, seed: u64) -> Self {
        let site = &world.site;
        let bundle = site.authority.bundle(SITE).display().to_string();
        let [first, second] = [site.gateway_address(), world.second.address()];
        for vehicle in 0..VEHICLES {
            let device = site.enroll_with(&name(vehicle), &["--bundle", &bundle]).await.unwrap();
            let both = match vehicle % 2 {
                0 => format!("\"{first}\", \"{second}\""),
                _ => format!("\"{second}\", \"{first}\""),
            };
            Site::edit(&device.config(), &format!("\"{first}\""), &both).unwrap();
        }
        let devices = site.folder().join("devices").display().to_string();
        // It goes on there when it was killed, for as long as nobody tells it to end.
        let home = site.folder().join("fleet").display().to_string();
        let words = format!(
            "-o json simulate --rate {RATE} --linger 100ms --duration 24h --drain 50s --seed {seed} --devices"
        );
        let words = words.split(' ').map(str::to_owned);
        let arguments = words.chain([devices, "--dir".to_owned(), home]).collect();
        let (program, log) = (site.programs().device(), site.folder().join("fleet.log"));
        let mut fleet = Self { program, arguments, log, process: None, processes: 0 };
        fleet.launch();
        fleet
    }

    fn launch(&mut self) {
        // It has no admin port: it is watched at both ends.
        let nowhere = free_address().unwrap();
        let started = Program::start(&self.program, &self.arguments, &[], nowhere, &self.log).unwrap();
        self.process = Some(started);
        self.processes += 1;
    }

    async fn kill(&mut self) {
        self.process.take().unwrap().kill().await.unwrap();
    }

    /// It records no more, hands in what waits, and says how that went.
    async fn finish(&mut self) -> Value {
        let status = self.process.take().unwrap().stop().await.unwrap();
        let log = std::fs::read_to_string(&self.log).unwrap();
        assert!(status.success(), "{status}\n{log}");
        let report =
            log.lines().rev().find(|line| line.contains("\"ledger\"")).expect("it ends with a report");
        serde_json::from_str(report).unwrap()
    }
}

async fn until(world: &World, what: &str, holds: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}\n{}", world.site.log_tails());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// So many more records of the fleet have come through to the cloud.
async fn flows(world: &World, records: u64) {
    let decryptor = Admin(world.site.decryptor_admin());
    let there = async || decryptor.metric("pithead_decryptor_records_total").await.unwrap_or_default() as u64;
    let enough = there().await + records;
    until(world, "the fleet's records come through", async || there().await >= enough).await;
}

/// How many records of each process of a vehicle are there: of each a beginning without a gap, and one process after the other.
fn beginnings(vehicle: usize, delivered: &Delivered) -> Vec<u64> {
    let mut of_each = Vec::new();
    for record in delivered.records_of(&name(vehicle)) {
        let number = u64::from_be_bytes(*record.first_chunk().expect("a number"));
        match of_each.last_mut() {
            Some(newest) if number == *newest + 1 => *newest = number,
            _ if number == 1 => of_each.push(1),
            newest => panic!("vehicle {vehicle}: record {number} stands behind {newest:?}"),
        }
    }
    of_each
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_process_is_killed_a_simulated_fleet_has_each_record_delivered_once_and_in_order() {
    let seed = seed();
    let mut random = Random(seed);
    let Some(mut world) = World::start(3).await else { return };
    let mut fleet = Fleet::start(&world, seed).await;
    let turns = if long() { 70 } else { Victim::ALL.len() };
    for turn in 0..turns {
        // Each of them at least once.
        let victim = Victim::ALL.get(turn).copied();
        let victim = victim.unwrap_or_else(|| Victim::ALL[random.below(Victim::ALL.len() as u64) as usize]);
        // The moment is drawn as well.
        flows(&world, random.below(2 * FLOWING)).await;
        let (owner, server) = (world.owner().await, random.below(3) as usize);
        let gateway = victim.gateway(owner);
        println!("turn {turn}: {victim:?}, server {server}, owner {owner}");

        if victim.has_server() {
            world.nats.kill(server).await.unwrap();
        }
        if let Some(at) = gateway {
            world.kill_gateway(at).await;
        }
        match victim {
            Victim::Decryptor => {
                world.site.kill_decryptor().await.unwrap();
                let here = world.admins()[owner];
                let waits = async || {
                    here.metric("pithead_spool_records").await.is_ok_and(|waiting| waiting >= WAITING)
                };
                until(&world, "what is taken waits at the site", waits).await;
                world.site.start_decryptor().await.unwrap();
            }
            Victim::Fleet => {
                fleet.kill().await;
                fleet.launch();
            }
            // The site goes on without.
            _ => {
                if gateway == Some(owner) {
                    let there = world.admins()[1 - owner];
                    until(&world, "the other gateway takes over", async || owns(there).await).await;
                }
                flows(&world, FLOWING).await;
            }
        }

        // One at a time: two of three are what a majority needs.
        if victim.has_server() {
            world.nats.launch(server).unwrap();
            world.nats.healthy(server).await.unwrap();
        }
        if let Some(at) = gateway {
            world.launch_gateway(at);
            world.program(at).ready().await.unwrap();
        }
    }
    // Of every vehicle's last process.
    flows(&world, 2 * FLOWING).await;
    let report = fleet.finish().await;
    let said = &report["ledger"];
    let count = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("{name} in {report:#}"));
    assert_eq!(report["balanced"], true, "{report:#}");
    for name in ["waiting", "refused", "refused_envelopes", "lost", "dropped", "conflicts"] {
        assert_eq!(count(name), 0, "{name} in {report:#}");
    }
    let (sealed, acknowledged) = (count("waited_before") + count("sealed"), count("delivered"));
    assert_eq!((count("recorded"), sealed), (count("held"), acknowledged), "{report:#}");

    world.relayed().await;
    let delivered = world.site.delivered().unwrap();
    assert_eq!((delivered.repeated(), delivered.disordered()), (0, 0), "applied once, in order");
    let mut of_the_last = 0;
    for vehicle in 0..VEHICLES {
        let of_each = beginnings(vehicle, &delivered);
        assert!((2..=fleet.processes).contains(&of_each.len()), "vehicle {vehicle}: {of_each:?}");
        of_the_last += of_each.last().unwrap();
    }
    assert_eq!(of_the_last, count("recorded"), "all that the last process has recorded: {report:#}");

    // A process that was killed says nothing of what was acknowledged to it. The next one has said how far it had come on its disk, so
    // what is missing of it would show, also at its end.
    let config = world.site.decryptor_config().display().to_string();
    let books = world.site.decryptor_command(&["verify", "-c", &config, "-o", "json"]).await.unwrap();
    let books: Value = books.ok().unwrap().json().unwrap();
    let streams = books["streams"].as_array().unwrap();
    assert_eq!(streams.len(), VEHICLES, "{books:#}");
    for stream in streams {
        let open = (stream["missing"].as_u64(), stream["runs_without_an_end"].as_u64());
        assert_eq!(open, (Some(0), Some(0)), "{stream:#}");
    }
    println!("{turns} kills, {} records, {} processes of the fleet", delivered.records(), fleet.processes);
    world.stop().await;
}
