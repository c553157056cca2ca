//! The WAN budget: how many bytes a second leave this site, whoever sends them.
//!
//! One pace is shared by all who send over the way to the cloud: the relay of envelopes, and that of uploads beside it.
//! Each keeps a [`Toll`] of its own and pays before it sends. Tokens are given out in slices, and whoever waits for one is
//! served in the order of asking: so a file of 50 GB and a stream of small envelopes get the same, slice by slice, as long
//! as both have something to send.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::super::bucket::Bucket;

/// Tokens are given out by so many bytes at most: at 1 MiB/s, each waits a sixteenth of a second for the other.
pub const SLICE: u64 = 64 << 10;
/// What an idle link may send at once, as a part of what it sends in a second: a quarter.
const BURST_PART: u64 = 4;

/// The pace. Clones share it.
#[derive(Debug, Clone)]
pub struct Pace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// Bytes a second; none is no bound.
    rate: watch::Sender<Option<u64>>,
    bucket: Mutex<Bucket>,
    /// Whoever asks next waits here: it serves in the order of asking.
    turn: tokio::sync::Mutex<()>,
}

fn burst(rate: u64) -> u64 {
    (rate / BURST_PART).max(SLICE)
}

impl Pace {
    /// A pace of so many bytes a second, or of none that anybody would notice.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Self {
        let began = Instant::now();
        let bytes = rate.unwrap_or(SLICE);
        let bucket = Mutex::new(Bucket::full(bytes, burst(bytes), began.elapsed()));
        Self(Arc::new(Inner {
            began,
            rate: watch::Sender::new(rate),
            bucket,
            turn: tokio::sync::Mutex::new(()),
        }))
    }

    /// Another rate, from now on. Whoever waits for tokens gets them by the new one.
    pub fn set(&self, rate: Option<u64>) {
        if let Some(bytes) = rate {
            self.bucket().change(bytes, burst(bytes), self.0.began.elapsed());
        }
        self.0.rate.send_replace(rate);
    }

    /// Bytes a second, if there is a bound.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        *self.0.rate.borrow()
    }

    /// An account of one who sends.
    #[must_use]
    pub fn toll(&self) -> Toll {
        Toll { pace: self.clone(), paid: 0 }
    }

    /// Waits for a slice of at most [`SLICE`] bytes, and takes it. Cancel safe: what was not taken is not spent.
    async fn slice(&self, bytes: u64) {
        let mut rate = self.0.rate.subscribe();
        let _turn = self.0.turn.lock().await;
        loop {
            if rate.borrow_and_update().is_none() {
                return;
            }
            let wait = {
                let now = self.0.began.elapsed();
                let mut bucket = self.bucket();
                let wait = bucket.wait_for(bytes, now);
                if wait.is_zero() {
                    bucket.spend(bytes, now);
                    return;
                }
                wait
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = rate.changed() => {}
            }
        }
    }

    fn bucket(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.0.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one who sends has paid for and not sent yet.
#[derive(Debug)]
pub struct Toll {
    pace: Pace,
    paid: u64,
}

impl Toll {
    /// Whether `bytes` may be sent now: they are paid for, or nobody asks for payment.
    #[must_use]
    pub fn covers(&self, bytes: u64) -> bool {
        self.paid >= bytes || self.pace.rate().is_none()
    }

    /// Pays until `bytes` are covered. Cancel safe: what was paid before stays paid.
    pub async fn pay(&mut self, bytes: u64) {
        while !self.covers(bytes) {
            let slice = (bytes - self.paid).min(SLICE);
            self.pace.slice(slice).await;
            self.paid += slice;
        }
    }

    /// `bytes` were sent.
    pub fn sent(&mut self, bytes: u64) {
        self.paid = self.paid.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    /// Sends envelopes of `bytes` for ever, and counts.
    fn sender(pace: &Pace, bytes: u64) -> Arc<AtomicU64> {
        let (mut toll, sent) = (pace.toll(), Arc::new(AtomicU64::new(0)));
        let count = sent.clone();
        tokio::spawn(async move {
            loop {
                toll.pay(bytes).await;
                toll.sent(bytes);
                count.fetch_add(bytes, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_go_out_in_a_minute_and_no_more_than_a_burst_beside() {
        let pace = Pace::new(Some(2 << 20));
        let sent = sender(&pace, 10_000);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let sent = sent.load(Ordering::Relaxed);
        assert!(sent <= 60 * (2 << 20) + burst(2 << 20), "{sent}");
        assert!(sent >= 59 * (2 << 20), "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_large_sender_and_one_of_small_envelopes_get_the_same() {
        let pace = Pace::new(Some(1 << 20));
        let (large, small) = (sender(&pace, 4 << 20), sender(&pace, SLICE));
        tokio::time::sleep(Duration::from_secs(64)).await;
        let (large, small) = (large.load(Ordering::Relaxed), small.load(Ordering::Relaxed));
        // The large one is counted when the whole of it is paid.
        assert!(large.abs_diff(small) <= 2 * (4 << 20), "{large} and {small}");
        assert!(large + small >= 56 << 20, "{large} and {small}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_that_was_too_small_is_raised_for_whoever_waits_already() {
        let pace = Pace::new(Some(1));
        let mut toll = pace.toll();
        toll.pay(SLICE).await;
        toll.sent(SLICE);
        let began = Instant::now();
        let other = pace.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            other.set(Some(SLICE));
        });
        toll.pay(SLICE).await;
        assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
        pace.set(None);
        assert!(toll.covers(u64::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_paid_before_a_cancelled_wait_stays_paid() {
        let pace = Pace::new(Some(SLICE));
        let mut toll = pace.toll();
        let began = Instant::now();
        while tokio::time::timeout(Duration::from_millis(300), toll.pay(8 * SLICE)).await.is_err() {}
        assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
