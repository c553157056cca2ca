//! Stopping: each part has its own limit, and the log names the one that ran out.

use std::future::Future;
use std::time::Duration;

/// Waits for a part to end, for at most `limit`. Whether it did.
pub(super) async fn part(name: &'static str, limit: Duration, ending: impl Future<Output = ()>) -> bool {
    let began = tokio::time::Instant::now();
    let ended = tokio::time::timeout(limit, ending).await.is_ok();
    let took_ms = began.elapsed().as_millis() as u64;
    if ended {
        tracing::info!(event = "stop.ended", part = name, took_ms);
    } else {
        tracing::warn!(event = "stop.limit_ran_out", part = name, limit_ms = limit.as_millis() as u64);
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_hangs_is_left_behind_when_its_limit_is_over() {
        assert!(part("quick", Duration::from_secs(5), async {}).await);
        assert!(!part("stuck", Duration::from_millis(5), std::future::pending()).await);
    }
}
