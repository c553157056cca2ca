//! SIGKILL of the vehicle's process under load.
//!
//! The process says of each record that it was taken, and how many are held; a pipe keeps what it said. What it has said to
//! be held arrives; of what it had in memory, the newest is lost, and was never said to be held.

use std::process::Stdio;

use pithead_tests::{
    device::Device,
    link::Link,
    long,
    program::PATIENCE,
    site::{Site, SiteOptions},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::losses::{
    row::{Expected, Row, gather},
    truck::{Truck, can, delivered},
};

/// Between the first numbers of two lives.
const LIFE: u64 = 1_000_000;

/// How the records are brought to the disk, as the process is told it.
type Sync = &'static [&'static str];

/// What a process had said when it was killed.
#[derive(Debug, Default)]
struct Said {
    taken: u64,
    held: u64,
}

impl Said {
    fn hear(&mut self, line: &str, first: u64) {
        match line.split_once(' ') {
            Some(("taken", number)) => self.taken = number.parse::<u64>().unwrap() + 1 - first,
            Some(("held", held)) => self.held = held.parse().unwrap(),
            _ => panic!("the vehicle says {line:?}"),
        }
    }
}

/// A life that ends when so many records were taken, at whatever moment of the disk and the network that is.
async fn live(device: &Device, radio: &Link, sync: Sync, first: u64, records: u64) -> Said {
    let mut process = Command::new(env!("CARGO_BIN_EXE_vehicle"))
        .arg(device.folder())
        .args([device.name(), "--gateway", &radio.address().to_string(), "--first", &first.to_string()])
        .args(sync)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut said = Said::default();
    let living = async {
        while said.taken < records {
            let line = lines.next_line().await.unwrap().expect("the vehicle ended");
            said.hear(&line, first);
        }
        process.start_kill().unwrap();
        while let Some(line) = lines.next_line().await.unwrap() {
            said.hear(&line, first);
        }
        process.wait().await.unwrap();
    };
    tokio::time::timeout(PATIENCE, living).await.expect("a life");
    said
}

async fn killed(scenario: &'static str, sync: Sync) -> Row<'static> {
    let lives = if long() { 60 } else { 6 };
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let radio = Link::start("127.0.0.1:0".parse().unwrap(), site.gateway_address()).await.unwrap();
    let device = site.enroll(crate::losses::truck::NAME).await.unwrap();
    device.key().await.unwrap();
    let mut all_said = Vec::new();
    for life in 0..lives {
        // Two lives of three have a gateway; the third adds to what waits.
        if life % 3 == 2 {
            radio.cut()
        } else {
            radio.heal()
        }
        let said = live(&device, &radio, sync, life * LIFE, 700 + 137 * (life % 7)).await;
        // The disk says so as well, of a life that no gateway has taken from.
        if life % 3 == 2 {
            let waiting: u64 =
                pithead_device_client::survey(device.folder()).unwrap().iter().map(|log| log.records).sum();
            assert!(waiting >= said.held, "{waiting} records wait, and the vehicle said {said:?}");
        }
        all_said.push(said);
    }
    radio.heal();
    let mut truck = Truck::of(device, &[radio.address()], can());
    truck.open();
    truck.finish().await;
    site.until_relayed().await.unwrap();

    let numbers = delivered(&site);
    let books = &mut truck.books;
    for (life, said) in (0..).zip(&all_said) {
        let first = life * LIFE;
        let arrived = (first..first + LIFE).take_while(|number| numbers.contains_key(number)).count() as u64;
        let of_this_life =
            numbers.keys().filter(|number| (first..first + LIFE).contains(*number)).count() as u64;
        assert_eq!(arrived, of_this_life, "life {life}: what is lost is the newest, and nothing before it");
        assert!(said.held <= arrived, "life {life}: {said:?}, and {arrived} have arrived");
        // It may have been killed between taking the last one and saying so.
        assert!(arrived <= said.taken + 1, "life {life}: {said:?}, and {arrived} have arrived");
        let taken = said.taken.max(arrived);
        books.taken.extend(first..first + taken);
        books.promised.extend(first..first + said.held);
        books.never_held += taken - arrived;
    }
    // Who was killed does not say what was acknowledged: the gateway does.
    let admin = site.gateway().unwrap().admin();
    let stored = admin.metric_where("pithead_ingest_envelopes_total", "\"stored\"").await.unwrap();
    books.acknowledged = stored as u64;
    let row = gather(&mut site, books, scenario, Expected::default()).await;
    assert_eq!(row.recorded, row.delivered + row.never_promised, "{row:#?}");
    assert!(row.held <= row.delivered && row.held > 0, "{row:#?}");
    site.stop().await.unwrap();
    row
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vehicle_that_is_killed_again_and_again_loses_nothing_that_it_said_to_hold() {
    killed("process killed, `Fsync::Always`", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vehicle_that_writes_once_in_an_interval_loses_what_was_in_memory_and_never_promised_it() {
    let row = killed("process killed, `Fsync::Interval(300 ms)`", &["--interval-ms", "300"]).await;
    assert!(row.never_promised > 0, "a kill costs what was recorded since the last write: {row:#?}");
}
