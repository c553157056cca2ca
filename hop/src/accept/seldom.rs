//! Lines about strangers, which may not fill the disk.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Says yes at most once per this long.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    began: Instant,
    next_ms: AtomicU64,
}

impl Seldom {
    /// Says yes from now on; the first time at once.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        Self { every, began: Instant::now(), next_ms: AtomicU64::new(0) }
    }

    /// Whether it is time again. Of many who ask at once, one is told so.
    pub fn is_time(&self) -> bool {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = ms(self.began.elapsed());
        let next = self.next_ms.load(Ordering::Relaxed);
        let after = now.saturating_add(ms(self.every));
        now >= next
            && self.next_ms.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn once_and_then_when_the_time_has_gone_by() {
        let seldom = Seldom::new(Duration::from_secs(1));
        assert_eq!([seldom.is_time(), seldom.is_time(), seldom.is_time()], [true, false, false]);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert!(!seldom.is_time());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!([seldom.is_time(), seldom.is_time()], [true, false]);
    }
}
