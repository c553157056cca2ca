//! The air between a vehicle and its gateway: a piece of TCP in this process, which counts and which breaks.
//!
//! Without coverage every connection is cut and new ones are refused, both by a reset. A cut comes in the middle of whatever is
//! being said: some bytes more go out, as many as are drawn, and then no more.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pithead_hop::connect::Endpoint;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::random::Random;

/// Connections of one vehicle at a time: one that delivers, one that asks for keys, and those that are on their way out.
const CONNECTIONS_MAX: usize = 8;
/// Read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// What still goes out when coverage ends, at most: less than a request, so that it is cut.
const LAST_BYTES: u64 = 1_500;
/// A vehicle that says nothing is cut after this.
const CUT_WITHIN: Duration = Duration::from_millis(200);

/// What went over the air. TCP payload, TLS included; the heads of TCP and IP are not seen here.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Bytes that the vehicle has given away.
    pub(super) up: AtomicU64,
    /// Bytes that it has been given.
    pub(super) down: AtomicU64,
    /// Connections that reached the gateway.
    pub(super) connections: AtomicU64,
    /// Of these, cut for want of coverage.
    pub(super) cut: AtomicU64,
    /// Connections that were refused for want of coverage.
    pub(super) refused: AtomicU64,
}

/// One vehicle's air. It is gone when dropped.
#[derive(Debug)]
pub(super) struct Air {
    address: SocketAddr,
    covered: watch::Sender<bool>,
    _stop: DropGuard,
}

impl Air {
    /// Listens on loopback and forwards to a gateway.
    pub(super) async fn start(to: &Endpoint, carried: Arc<Carried>, random: Random) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let covered = watch::Sender::new(true);
        let stop = CancellationToken::new();
        let road = Arc::new(Road {
            to: to.clone(),
            covered: covered.subscribe(),
            carried,
            random: Mutex::new(random),
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            stop: stop.clone(),
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(road.accept(listener)));
        Ok(Self { address, covered, _stop: stop.drop_guard() })
    }

    /// Where the vehicle connects to.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.address.into()
    }

    pub(super) fn set_covered(&self, covered: bool) {
        self.covered.send_replace(covered);
    }
}

struct Road {
    to: Endpoint,
    covered: watch::Receiver<bool>,
    carried: Arc<Carried>,
    random: Mutex<Random>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Road {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((near, _)) = listener.accept().await else {
                // No descriptor for it: there may be one in a moment.
                tokio::time::sleep(CUT_WITHIN).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                reset(&near);
                continue;
            };
            if !*self.covered.borrow() {
                count(&self.carried.refused, 1);
                reset(&near);
                continue;
            }
            let road = Arc::clone(&self);
            tokio::spawn(async move {
                let stop = road.stop.clone();
                stop.run_until_cancelled(road.carry(near)).await;
                drop(permit);
            });
        }
    }

    async fn carry(&self, near: TcpStream) {
        let Ok(far) = TcpStream::connect((self.to.host(), self.to.port())).await else {
            return reset(&near);
        };
        // Neither end waits for more, and so does not the air between them.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        count(&self.carried.connections, 1);
        let last = self.random.lock().unwrap_or_else(PoisonError::into_inner).below(LAST_BYTES);
        let left = AtomicU64::new(u64::MAX);
        if self.both_ways(&near, &far, &left, last).await {
            count(&self.carried.cut, 1);
            reset(&near);
            reset(&far);
        }
    }

    /// True if it was cut; false if one of the ends has ended it.
    async fn both_ways(&self, near: &TcpStream, far: &TcpStream, left: &AtomicU64, last: u64) -> bool {
        let mut covered = self.covered.clone();
        let shadow = async {
            // Its sender lives as long as the vehicle.
            let _ = covered.wait_for(|covered| !covered).await;
            left.store(last, Ordering::Relaxed);
            tokio::time::sleep(CUT_WITHIN).await;
        };
        tokio::select! {
            cut = one_way(near, far, &self.carried.up, left, true) => cut,
            cut = one_way(far, near, &self.carried.down, left, false) => cut,
            () = shadow => true,
        }
    }
}

/// True when there is nothing left to be carried of what may be; false at the end of either side.
async fn one_way(from: &TcpStream, to: &TcpStream, carried: &AtomicU64, left: &AtomicU64, up: bool) -> bool {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(read) = Half(from).read(&mut chunk).await else { return false };
        if read == 0 {
            return false;
        }
        let may = left.load(Ordering::Relaxed);
        let passed = usize::try_from(may).unwrap_or(usize::MAX).min(read);
        // What leaves the vehicle was on the air, also if nobody heard it.
        count(carried, if up { read as u64 } else { passed as u64 });
        if Half(to).write_all(&chunk[..passed]).await.is_err() {
            return false;
        }
        if may != u64::MAX {
            left.store(may - passed as u64, Ordering::Relaxed);
            if passed < read {
                return true;
            }
        }
    }
}

/// A connection, for one direction of it.
struct Half<'a>(&'a TcpStream);

impl Half<'_> {
    async fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            self.0.readable().await?;
            match self.0.try_read(chunk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.0.writable().await?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => bytes = &bytes[written?..],
            }
        }
        Ok(())
    }
}

/// Ends it without a goodbye, when it is dropped.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn echo() -> Endpoint {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address.into()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_carried_is_counted_and_a_shadow_cuts_in_the_middle_and_lets_nobody_in() {
        let carried = Arc::<Carried>::default();
        let air = Air::start(&echo().await, Arc::clone(&carried), Random::of(1, 1)).await.unwrap();
        let to = air.endpoint();
        let connect = || TcpStream::connect((to.host().to_owned(), to.port()));
        let mut stream = connect().await.unwrap();
        stream.write_all(&[7; 1_000]).await.unwrap();
        let mut back = [0; 1_000];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(
            (carried.up.load(Ordering::Relaxed), carried.down.load(Ordering::Relaxed)),
            (1_000, 1_000)
        );

        air.set_covered(false);
        // More than may still go out: some of it arrives, and then comes the reset.
        let sent = async {
            let mut writes = 0;
            while stream.write_all(&[7; 4_096]).await.is_ok() {
                writes += 1;
                tokio::task::yield_now().await;
            }
            writes
        };
        let _ = tokio::time::timeout(Duration::from_secs(20), sent).await.expect("it is cut");
        assert_eq!(carried.cut.load(Ordering::Relaxed), 1);
        // The reset may be here before the system has told of the connection.
        if let Ok(mut refused) = connect().await {
            let end = refused.read(&mut back).await;
            assert!(end.is_err() || end.is_ok_and(|read| read == 0));
        }
        assert_eq!(carried.refused.load(Ordering::Relaxed), 1);
        assert_eq!(carried.connections.load(Ordering::Relaxed), 1);

        air.set_covered(true);
        let mut stream = connect().await.unwrap();
        stream.write_all(b"again").await.unwrap();
        stream.read_exact(&mut back[..5]).await.unwrap();
        assert_eq!((carried.connections.load(Ordering::Relaxed), &back[..5]), (2, b"again".as_slice()));
    }
}
