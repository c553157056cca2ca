//! kill -9 of each program while records flow: the books balance afterwards.

use pithead_tests::{
    device::{Device, Summary},
    ledger::{Delivered, hash_of},
    program::Admin,
    site::{SinkKind, Site, SiteOptions},
};

const DEVICES: usize = 3;
/// Records of each device between two kills.
const ROUND: usize = 400;

fn record(device: usize, at: usize) -> String {
    format!("truck {device} record {at:06}")
}

/// Devices that send round after round, each round in small batches.
struct Fleet {
    devices: Vec<Device>,
    given: usize,
}

impl Fleet {
    async fn enrol(site: &Site) -> Self {
        let mut devices = Vec::new();
        for number in 0..DEVICES {
            let device = site.enroll(&format!("truck-{number}")).await.unwrap();
            // Without a key there is nothing to seal to, and `send` says so and ends: they have met the gateway once.
            device.key().await.unwrap();
            devices.push(device);
        }
        Self { devices, given: 0 }
    }

    /// Starts a round; `while_sending` happens when its first half has been handed to the devices.
    async fn round(&mut self, while_sending: impl AsyncFnOnce()) -> Vec<Summary> {
        let mut sending = Vec::new();
        for device in &self.devices {
            sending.push(device.start_sending_with("can", &["--linger", "5ms"]).unwrap());
        }
        let (first, rest) = (self.given..self.given + ROUND / 2, self.given + ROUND / 2..self.given + ROUND);
        for at in first {
            for (number, device) in sending.iter_mut().enumerate() {
                device.record(&record(number, at)).await.unwrap();
                if at % 20 == 0 {
                    device.flush().await.unwrap();
                }
            }
            if at % 20 == 0 {
                // Records come at the pace of a bus, not of a pipe: so that there are many envelopes.
                tokio::time::sleep(std::time::Duration::from_millis(6)).await;
            }
        }
        while_sending().await;
        for at in rest {
            for (number, device) in sending.iter_mut().enumerate() {
                device.record(&record(number, at)).await.unwrap();
            }
        }
        self.given += ROUND;
        let mut summaries = Vec::new();
        for device in sending {
            summaries.push(device.finish().await.unwrap());
        }
        summaries
    }

    /// Everything that was given is there, in order, once; and as many envelopes as the devices say.
    fn check(&self, site: &Site, summaries: &[Summary]) {
        let sum = |of: fn(&Summary) -> u64| summaries.iter().map(of).sum::<u64>();
        assert_eq!(sum(|summary| summary.records), (DEVICES * self.given) as u64);
        assert_eq!(sum(|summary| summary.acknowledged), sum(|summary| summary.envelopes));
        assert_eq!(sum(|summary| summary.refused), 0);
        let delivered = site.delivered().unwrap();
        assert_eq!(delivered.envelopes(), sum(|summary| summary.envelopes));
        self.check_records(&delivered);
    }

    fn check_records(&self, delivered: &Delivered) {
        assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
        for (number, device) in self.devices.iter().enumerate() {
            let sent = (0..self.given).map(|at| record(number, at));
            assert_eq!(hash_of(delivered.records_of(device.name())), hash_of(sent), "{}", device.name());
        }
    }
}

async fn at_least(admin: Admin, name: &str, value: f64) -> bool {
    admin.metric(name).await.is_ok_and(|is| is >= value)
}

/// A site with devices, and what they say of four rounds with a kill in the middle of each.
async fn killed(options: SiteOptions, kill: impl AsyncFn(&mut Site)) -> (Site, Fleet, Vec<Summary>) {
    let mut site = Site::start(options).await.unwrap();
    let mut fleet = Fleet::enrol(&site).await;
    let mut summaries = Vec::new();
    for _ in 0..4 {
        summaries.extend(fleet.round(async || kill(&mut site).await).await);
    }
    site.until_relayed().await.unwrap();
    (site, fleet, summaries)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_again_and_again_under_load_loses_and_repeats_nothing() {
    let options = SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() };
    let kill = async |site: &mut Site| {
        let taken = async |admin| at_least(admin, "pithead_ingest_envelopes_total", 1.0).await;
        site.gateway().unwrap().until("takes envelopes", taken).await.unwrap();
        site.kill_gateway().await.unwrap();
        site.start_gateway().await.unwrap();
    };
    let (mut site, fleet, summaries) = killed(options, kill).await;
    fleet.check(&site, &summaries);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decryptor_killed_again_and_again_under_load_delivers_each_envelope_once() {
    let options = SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() };
    decryptor_killed(options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decryptor_killed_while_it_appends_json_lines_leaves_no_line_twice_and_none_torn() {
    decryptor_killed(SiteOptions::default()).await;
}

async fn decryptor_killed(options: SiteOptions) {
    let shows_heartbeats = options.sink == SinkKind::Folder;
    let kill = async |site: &mut Site| {
        let applied = async |admin| at_least(admin, "pithead_decryptor_records_total", 1.0).await;
        site.decryptor().unwrap().until("delivers", applied).await.unwrap();
        site.kill_decryptor().await.unwrap();
        site.start_decryptor().await.unwrap();
    };
    let (mut site, fleet, summaries) = killed(options, kill).await;
    if shows_heartbeats {
        fleet.check(&site, &summaries);
    } else {
        let delivered = site.delivered().unwrap();
        assert_eq!(delivered.records(), (DEVICES * fleet.given) as u64);
        fleet.check_records(&delivered);
    }
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_killed_again_and_again_delivers_everything_that_it_had_sealed() {
    const ROUNDS: usize = 6;
    let options = SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() };
    let mut site = Site::start(options).await.unwrap();
    let device = site.enroll("truck-0").await.unwrap();
    for round in 0..ROUNDS {
        let stored = site.gateway().unwrap().admin().metric("pithead_ingest_envelopes_total").await.unwrap();
        let mut sending = device.start_sending_with("can", &["--linger", "1ms"]).unwrap();
        sending.record(&record(round, 0)).await.unwrap();
        sending.flush().await.unwrap();
        let first = async |admin| at_least(admin, "pithead_ingest_envelopes_total", stored + 1.0).await;
        site.gateway().unwrap().until("takes the first envelope", first).await.unwrap();
        for at in 1..200 {
            sending.record(&record(round, at)).await.unwrap();
            if at % 10 == 9 {
                sending.flush().await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            }
        }
        sending.kill().await.unwrap();
    }
    // What waits in the outbox goes out as the bytes that it was.
    let drained = device.drain().await.unwrap();
    assert_eq!(drained.refused, 0);
    assert_eq!(device.outbox().await.unwrap(), 0);
    site.until_relayed().await.unwrap();

    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    let conflicts =
        site.decryptor().unwrap().admin().metric_where("pithead_decryptor_envelopes_total", "conflict");
    assert_eq!(conflicts.await.unwrap(), 0.0);
    // Of each round the beginning is there, without a gap: what was sealed before the kill. Whether something was read and
    // not sealed yet is the luck of the kill.
    let texts: Vec<String> = delivered
        .records_of("truck-0")
        .iter()
        .map(|record| String::from_utf8_lossy(record).into_owned())
        .collect();
    let mut rest = texts.as_slice();
    for round in 0..ROUNDS {
        let count = rest.iter().take_while(|text| text.starts_with(&format!("truck {round} "))).count();
        let expected: Vec<String> = (0..count).map(|at| record(round, at)).collect();
        assert_eq!(rest[..count], expected, "round {round}");
        assert!(count > 0, "round {round} had envelopes acknowledged before it was killed");
        rest = &rest[count..];
    }
    assert!(rest.is_empty(), "records out of order: {rest:?}");
    site.stop().await.unwrap();
}
