//! What looks on while the rest works, and goes after it.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::within;

/// A task that is told to stop when everything that it looks at has ended.
pub(super) struct Onlooker<T> {
    stop: CancellationToken,
    task: JoinHandle<T>,
}

impl<T: Send + 'static> Onlooker<T> {
    /// Begins.
    pub(super) fn spawn<F>(work: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(work(stop.clone()));
        Self { stop, task }
    }

    /// Tells it, and waits no longer than `limit`.
    pub(super) async fn end(self, part: &'static str, limit: Duration) {
        self.stop.cancel();
        within(part, limit, async {
            let _ = self.task.await;
        })
        .await;
    }
}
