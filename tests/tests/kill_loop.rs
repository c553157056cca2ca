//! Gateway, decryptor and devices, killed at random moments under load, again and again.
//!
//! Short by default (20 kills); `PITHEAD_LONG=1` kills 200 times. `PITHEAD_SEED` chooses the moments; a failure prints it.
//!
//! The books are kept here: what was given to each device, in order. What a device had not read or sealed when it was killed is
//! nobody's loss; what it had sealed is in its outbox and goes out later; so of what was given to one process, the sink has a
//! beginning without a gap, and all of it if that process was not killed.

use std::time::Duration;

use pithead_tests::{
    device::{Device, Sending},
    random::Random,
    site::{SinkKind, Site, SiteOptions},
};

const DEVICES: usize = 3;
/// Given to each device that runs, every [`TICK`].
const RECORDS: usize = 4;
/// Records come at the pace of a bus.
const TICK: Duration = Duration::from_millis(5);
/// Ticks between two kills, at most: a quarter of a second, so that some hit a program while it starts.
const TICKS: u64 = 50;

fn kills() -> u64 {
    if pithead_tests::long() { 200 } else { 20 }
}

/// What one process of a device was given.
struct Given {
    records: usize,
    killed: bool,
}

struct Truck {
    number: usize,
    device: Device,
    sending: Option<Sending>,
    processes: Vec<Given>,
}

impl Truck {
    async fn enrol(site: &Site, number: usize) -> Self {
        let device = site.enroll(&format!("truck-{number}")).await.unwrap();
        device.key().await.unwrap();
        Self { number, device, sending: None, processes: Vec::new() }
    }

    fn start(&mut self) {
        self.sending = Some(self.device.start_sending_with("can", &["--linger", "2ms"]).unwrap());
        self.processes.push(Given { records: 0, killed: false });
    }

    async fn give(&mut self) {
        let (Some(sending), Some(given)) = (&mut self.sending, self.processes.last_mut()) else { return };
        let process = given.records;
        for at in given.records..given.records + RECORDS {
            sending.record(&text(self.number, self.processes.len(), at)).await.unwrap();
        }
        sending.flush().await.unwrap();
        self.processes.last_mut().unwrap().records = process + RECORDS;
    }

    async fn kill(&mut self) {
        self.sending.take().unwrap().kill().await.unwrap();
        self.processes.last_mut().unwrap().killed = true;
        self.start();
    }

    /// Of every process a beginning, in order; all of it if it ended well.
    fn check(&self, delivered: &[&[u8]]) {
        let mut rest = delivered.iter().map(|record| String::from_utf8_lossy(record)).peekable();
        for (process, given) in (1..).zip(&self.processes) {
            let mut arrived = 0;
            while arrived < given.records
                && rest.next_if(|record| *record == text(self.number, process, arrived)).is_some()
            {
                arrived += 1;
            }
            assert!(
                given.killed || arrived == given.records,
                "process {process} of truck {}: {arrived} of {} records arrived, and it was not killed",
                self.number,
                given.records
            );
        }
        assert_eq!(rest.next(), None, "truck {}: a record that is not due here", self.number);
    }
}

fn text(truck: usize, process: usize, at: usize) -> String {
    format!("truck {truck} process {process} record {at}")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_whenever_what_was_acknowledged_arrives_once_and_is_proven_to() {
    let seed = match std::env::var("PITHEAD_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => getrandom::u64().unwrap(),
    };
    println!("PITHEAD_SEED={seed}");
    let mut random = Random(seed);
    let mut site =
        Site::start(SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() }).await.unwrap();
    let mut trucks = Vec::new();
    for number in 0..DEVICES {
        trucks.push(Truck::enrol(&site, number).await);
    }
    trucks.iter_mut().for_each(Truck::start);
    let mut killed = [0; 3];
    for kill in 0..kills() {
        for _ in 0..=random.below(TICKS) {
            for truck in &mut trucks {
                truck.give().await;
            }
            tokio::time::sleep(TICK).await;
        }
        // Each of them at least once.
        let victim = if kill < 3 { kill as usize } else { random.below(3) as usize };
        killed[victim] += 1;
        match victim {
            0 => {
                site.kill_gateway().await.unwrap();
                site.launch_gateway().unwrap();
            }
            1 => {
                site.kill_decryptor().await.unwrap();
                site.launch_decryptor().unwrap();
            }
            _ => trucks[random.below(DEVICES as u64) as usize].kill().await,
        }
    }
    let mut acknowledged = 0;
    for truck in &mut trucks {
        truck.give().await;
        let summary = truck.sending.take().unwrap().finish().await.unwrap();
        assert_eq!(summary.refused, 0);
        acknowledged += summary.acknowledged;
        assert_eq!(truck.device.outbox().await.unwrap(), 0, "everything that was sealed was acknowledged");
    }
    assert!(acknowledged > 0);
    site.decryptor().unwrap().ready().await.unwrap();
    site.until_relayed().await.unwrap();

    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    let decryptor = site.decryptor().unwrap().admin();
    let conflicts = decryptor.metric_where("pithead_decryptor_envelopes_total", "conflict").await.unwrap();
    assert_eq!(conflicts, 0.0);
    for truck in &trucks {
        truck.check(&delivered.records_of(truck.device.name()));
    }
    // Of a killed process nobody but its successor says how far it had come: the books know no number that is not here.
    let config = site.decryptor_config().display().to_string();
    let proof = site.decryptor_command(&["verify", "-c", &config]).await.unwrap();
    assert_eq!(proof.code, Some(0), "{}{}", proof.stdout, proof.stderr);
    let (envelopes, records) = (delivered.envelopes(), delivered.records());
    println!("killed {killed:?} (gateway, decryptor, devices): {envelopes} envelopes, {records} records");
    site.stop().await.unwrap();
}
