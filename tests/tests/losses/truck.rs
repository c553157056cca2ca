//! A truck with the client in it: it records numbers, is opened and closed, and its books are kept over all its lives.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use pithead_device_client::{
    batch::BatchLimits,
    client::{Client, RecordError, Status, StreamOptions, StreamStatus},
};
use pithead_hop::backoff::Policy;
use pithead_sealing::StreamName;
use pithead_tests::{device::Device, program::PATIENCE, site::Site, vehicle};

pub(crate) const NAME: &str = "truck-1";

/// Records in each envelope of [`exact`].
pub(crate) const PER_ENVELOPE: u64 = 10;

/// What the client said, summed up over its lives, and which numbers that was about.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// `record` said yes.
    pub(crate) taken: BTreeSet<u64>,
    /// The client said that they are on the device's disk.
    pub(crate) promised: BTreeSet<u64>,
    /// `record` said no.
    pub(crate) refused: u64,
    /// Taken, in memory when a life ended, and never said to be held.
    pub(crate) never_held: u64,
    pub(crate) lives: u64,
    pub(crate) sealed: u64,
    pub(crate) acknowledged: u64,
    pub(crate) dropped_records: u64,
    pub(crate) dropped_envelopes: u64,
    /// Of those that were acknowledged, how many the gateway had before.
    pub(crate) duplicates: u64,
}

pub(crate) struct Truck {
    device: Device,
    gateways: Vec<SocketAddr>,
    options: StreamOptions,
    client: Option<Client>,
    /// What this life has taken, in its order.
    taken: Vec<u64>,
    refused: u64,
    next: u64,
    bytes: usize,
    pub(crate) books: Books,
}

/// A stream whose envelopes have ten records each, if records come by the ten: nothing but a full batch is sealed.
pub(crate) fn exact() -> StreamOptions {
    let limits = BatchLimits { records: usize::try_from(PER_ENVELOPE).unwrap(), bytes: 64 << 10 };
    can().linger(Duration::from_secs(3_600)).batch(limits)
}

/// A stream as a vehicle has it, in a hurry.
pub(crate) fn can() -> StreamOptions {
    StreamOptions::records(StreamName::new("can").unwrap()).linger(Duration::from_millis(5))
}

impl Truck {
    /// Enrolled, with a key, and open.
    pub(crate) async fn start(site: &Site, gateways: &[SocketAddr], options: StreamOptions) -> Self {
        let device = site.enroll(NAME).await.unwrap();
        device.key().await.unwrap();
        let mut truck = Self::of(device, gateways, options);
        truck.open();
        truck
    }

    /// Of a device that is enrolled and has its key. Not open.
    pub(crate) fn of(device: Device, gateways: &[SocketAddr], options: StreamOptions) -> Self {
        Self {
            device,
            gateways: gateways.to_vec(),
            options,
            client: None,
            taken: Vec::new(),
            refused: 0,
            next: 0,
            bytes: 100,
            books: Books::default(),
        }
    }

    pub(crate) fn with_records_of(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn open(&mut self) {
        // A test waits for a gateway that is back, and not for a minute.
        let retry = Policy { first: Duration::from_millis(20), max: Duration::from_millis(200) };
        let client =
            vehicle::client_in(self.device.folder(), self.device.name(), &self.gateways, retry).unwrap();
        // Without heartbeats of its own but the one at the end, so that envelopes can be counted.
        let client = client.heartbeat_every(Duration::from_secs(3_600)).stream(self.options.clone());
        self.client = Some(client.open().unwrap());
    }

    pub(crate) fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    pub(crate) fn status(&self) -> StreamStatus {
        Self::can_of(&self.client().status())
    }

    fn can_of(status: &Status) -> StreamStatus {
        status.streams.values().next().unwrap().clone()
    }

    fn offer(
        &mut self,
        record: impl FnOnce(&Client, &[u8]) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        let data = vehicle::record(self.next, self.bytes);
        let offered = record(self.client(), data.as_bytes());
        match &offered {
            Ok(()) => self.taken.push(self.next),
            Err(_) => self.refused += 1,
        }
        // A number that was refused is never seen again.
        self.next += 1;
        offered
    }

    /// Records the next number.
    pub(crate) fn record(&mut self) -> Result<(), RecordError> {
        self.offer(|client, data| client.stream("can").unwrap().record(data))
    }

    /// Records the next number at that time of its owner's. Gives the number.
    pub(crate) fn record_at(&mut self, wall_us: i64) -> u64 {
        self.offer(|client, data| client.stream("can").unwrap().record_at(wall_us, "", data)).unwrap();
        self.next - 1
    }

    /// So many more, and all of them are taken.
    pub(crate) fn record_all(&mut self, count: u64) {
        (0..count).for_each(|_| self.record().unwrap());
    }

    /// Five every five milliseconds until it is enough.
    pub(crate) async fn record_until(&mut self, what: &str, mut enough: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        let mut beat = tokio::time::interval(Duration::from_millis(5));
        while !enough(self) {
            assert!(began.elapsed() < PATIENCE * 5, "not in time: {what}; {:?}", self.client().status());
            beat.tick().await;
            self.record_all(5);
        }
    }

    /// The same for so long.
    pub(crate) async fn record_for(&mut self, time: Duration) {
        let began = Instant::now();
        self.record_until("time goes by", |_| began.elapsed() >= time).await;
    }

    /// Waits while more records than that are not on the disk yet, for no other reason than that it is slow.
    pub(crate) async fn until_the_disk_follows(&self, records: u64) {
        let mut look = tokio::time::interval(Duration::from_millis(1));
        let began = Instant::now();
        loop {
            look.tick().await;
            let can = self.status();
            assert!(began.elapsed() < PATIENCE, "neither in trouble nor written: {can:?}");
            if can.trouble.is_some() || can.recorded - can.held <= records {
                return;
            }
        }
    }

    /// Everything that was taken is on the disk.
    pub(crate) async fn sync(&self) {
        self.client().sync(PATIENCE).await.unwrap();
    }

    /// Everything that was taken is with a gateway.
    pub(crate) async fn flush(&self) {
        let flushed = self.client().flush(PATIENCE).await;
        assert!(flushed.is_ok(), "{flushed:?} {:?}", self.client().status());
    }

    /// Waits until the client says so.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Status {
        let mut changes = self.client().changes();
        let waiting = async {
            loop {
                let status = self.client().status();
                if condition(&status) {
                    return status;
                }
                // Keys move without a word of delivery's.
                let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("not in time: {what}; {:?}", self.client().status()))
    }

    /// Ends this life in order, and enters it into the books. What waits stays on the disk.
    pub(crate) fn close(&mut self) -> StreamStatus {
        let client = self.client.take().unwrap();
        let closed = tokio::task::block_in_place(|| client.close(Duration::ZERO)).unwrap();
        let can = Self::can_of(&closed);
        let taken = std::mem::take(&mut self.taken);
        let refused = std::mem::take(&mut self.refused);
        assert_eq!((can.recorded, can.refused), (taken.len() as u64, refused), "{can:?}");
        assert!(can.held <= can.recorded, "{can:?}");
        let books = &mut self.books;
        // Held in the order in which they came.
        books.promised.extend(taken.iter().take(usize::try_from(can.held).unwrap()));
        books.taken.extend(taken);
        books.refused += refused;
        books.never_held += can.recorded - can.held;
        books.lives += 1;
        books.sealed += can.sealed;
        books.acknowledged += can.settled.stored + can.settled.duplicates;
        books.duplicates += can.settled.duplicates;
        books.dropped_records += can.dropped_records;
        books.dropped_envelopes += can.dropped_envelopes;
        assert_eq!((can.settled.conflicts, can.settled.refused, can.settled.lost), (0, 0, 0), "{can:?}");
        can
    }

    /// The last life ends when a gateway has everything.
    pub(crate) async fn finish(&mut self) {
        let finished = self.client().finish(PATIENCE).await;
        assert!(finished.is_ok(), "{finished:?} {:?}", self.client().status());
        let closed = self.close();
        assert_eq!(closed.waiting, 0, "{closed:?}");
    }
}

/// How often each number lies in the sink.
pub(crate) fn delivered(site: &Site) -> HashMap<u64, u64> {
    let mut numbers = HashMap::new();
    let delivered = site.delivered().unwrap();
    for record in delivered.records_of(NAME) {
        *numbers.entry(vehicle::number(record).expect("a number")).or_default() += 1;
    }
    numbers
}
