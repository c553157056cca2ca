//! A machine of the site is cut off from the others, with the NATS server and the gateway that are on it, and the trucks that reach no other
//! one.
//!
//! ```text
//! truck-1 ── edge-1 ── nats-1 ─┐
//!              └──────────────┼── nats-3        every line between machines is a wire that the test cuts
//!              ┌──────────────┼
//! truck-2 ── edge-2 ── nats-2 ─┘
//! ```

use pithead_tests::link::Link;
use pithead_tests::nats::Cut;

use super::*;

/// Where each gateway's own section of the file goes.
const PLACE: &str = "# here";

/// Two gateways, each at home at a server of its own.
struct Machines {
    world: World,
    /// To each of the gateways, for the other one.
    between: [Link; 2],
}

impl Machines {
    async fn start() -> Option<Self> {
        let binary = binary()?;
        let folder = tempfile::Builder::new().prefix("pithead-nats-").tempdir().unwrap();
        let wired = NatsOptions { wired: true, ..NatsOptions::default() };
        let nats = Nats::start(binary, folder.path(), wired).await.unwrap();
        let mut site = Site::create(options(PLACE)).await.unwrap();
        let second = site.create_second_gateway("edge-2").unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let [to_first, to_second] = [site.gateway_address(), second.address()];
        let between = [Link::start(any, to_first).await.unwrap(), Link::start(any, to_second).await.unwrap()];
        for (at, config) in [site.gateway_config(), second.config().to_owned()].iter().enumerate() {
            let section = format!("{}\naddress = \"{}\"", nats.section_at(at), between[at].address());
            Site::edit(config, PLACE, &section).unwrap();
        }
        site.start_decryptor().await.unwrap();
        site.start_gateway().await.unwrap();
        let mut world = World { nats, site, second, folder };
        // So that the one that is cut off first is the owner.
        assert_eq!(world.owner().await, 0);
        world.second.launch().unwrap().ready().await.unwrap();
        Some(Self { world, between })
    }

    fn cut_off(&self, at: usize, cut: Cut) {
        self.world.nats.cut_off(at, cut);
        self.between.iter().for_each(|wire| cut.apply(wire));
    }

    async fn heal(&mut self) {
        self.world.nats.heal();
        self.between.iter().for_each(Link::heal);
        for server in 0..self.world.nats.len() {
            self.world.nats.healthy(server).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_cut_off_with_its_server_acknowledges_nothing_and_nothing_is_lost() {
    let Some(mut machines) = Machines::start().await else { return };
    let [first, second] = [machines.world.site.gateway_address(), machines.world.second.address()];
    let mut trucks = vec![
        Truck::knowing(&machines.world.site, "truck-1", &[first]).await,
        Truck::knowing(&machines.world.site, "truck-2", &[second]).await,
    ];
    for round in 0..if long() { 40 } else { 4 } {
        let cut = if round % 2 == 0 { Cut::Silent } else { Cut::Reset };
        let owner = machines.world.owner().await;
        let other = 1 - owner;
        for truck in &mut trucks {
            truck.record_for(Duration::from_millis(200)).await;
            // Under way when the cable is cut.
            truck.record(100);
        }
        println!("round {round}: {owner} is cut off, {cut:?}");
        machines.cut_off(owner, cut);
        let acknowledged = |truck: &Truck| {
            truck.client.status().streams.values().map(|stream| stream.settled_up_to).sum::<u64>()
        };
        let took_over = async {
            while !owns(machines.world.admins()[other]).await {
                trucks[other].record(1);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, took_over).await.expect("the other side takes over");
        // The cut-off one knows by itself that it is the owner no more.
        let began = Instant::now();
        while owns(machines.world.admins()[owner]).await {
            assert!(began.elapsed() < PATIENCE, "two owners");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let held = acknowledged(&trucks[owner]);
        trucks[owner].record_for(Duration::from_millis(500)).await;
        trucks[other].record_for(Duration::from_millis(200)).await;
        trucks[other].flush().await;
        assert_eq!(acknowledged(&trucks[owner]), held, "nobody on that side can promise anything");
        machines.heal().await;
        // Both hand in at the gateway that they reach.
        for truck in &trucks {
            truck.flush().await;
        }
    }
    balance(&mut machines.world, &trucks).await;
    machines.world.stop().await;
}
