//! Being told to stop, and to reload.
//!
//! SIGTERM and SIGINT cancel one token, from which every task's stopping begins. SIGHUP asks for a reload; several that
//! come while one is under way are one.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// The signals of this process.
#[derive(Debug)]
pub struct Signals {
    /// Cancelled by the first SIGTERM or SIGINT.
    pub stop: CancellationToken,
    /// One for every SIGHUP that was not yet answered.
    pub reloads: Reloads,
}

/// Requests to reload.
#[derive(Debug, Clone)]
pub struct Reloads(watch::Receiver<u64>);

impl Reloads {
    /// The next request; never, once the program is stopping. Cancel safe.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Signals {
    /// Listens from now on. Inside a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let stop = CancellationToken::new();
        let (reload, reloads) = watch::channel(0);
        let cancel = stop.clone();
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    _ = hangup.recv() => {
                        tracing::info!(event = "program.reload_asked", signal = "SIGHUP");
                        reload.send_modify(|count| *count += 1);
                        continue;
                    }
                };
                if cancel.is_cancelled() {
                    tracing::warn!(event = "program.stopping_already", signal = name);
                } else {
                    tracing::info!(event = "program.stopping", signal = name);
                    cancel.cancel();
                }
            }
        });
        Ok(Self { stop, reloads: Reloads(reloads) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_hangup_asks_for_a_reload_and_a_term_stops_once() {
        let mut signals = Signals::listen().unwrap();
        kill_process(getpid(), Signal::HUP).unwrap();
        timeout(LONG, signals.reloads.next()).await.expect("a reload is asked for");
        assert!(!signals.stop.is_cancelled());
        for _ in 0..2 {
            kill_process(getpid(), Signal::TERM).unwrap();
            timeout(LONG, signals.stop.cancelled()).await.expect("told to stop");
        }
        let none = timeout(Duration::from_millis(20), signals.reloads.next()).await;
        assert!(none.is_err(), "one hangup is one reload");
    }
}
