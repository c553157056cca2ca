//! Tells the other gateways of the site how this one is, and compares the statements that they serve with those that were accepted here.
//!
//! A split view: two gateways serve different statements under one number. Each was signed, so whoever holds the statement key has
//! signed two truths, and shows one of them to some trucks. A single gateway cannot see that; two that compare can. What is
//! in force stays in force at both: which one is the authority's only its log can say.

use std::sync::Arc;
use std::time::Duration;

use pithead_proto::errors::v1::ErrorReason;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::devices::doors::Doors;
use crate::envelopes::replicated::{Neighbour, Presence, Served};
use crate::envelopes::spool::EnvelopeSpool;
use crate::health::Health;
use crate::keys::book::Book;
use crate::keys::history::History;
use crate::keys::refresh::SharedReport;
use crate::metrics::Metrics;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

/// What is told, and what it is compared with.
pub(super) struct Neighbours {
    pub(super) spool: EnvelopeSpool,
    pub(super) health: Health,
    pub(super) doors: Arc<Doors>,
    pub(super) book: Book,
    pub(super) history: Arc<History>,
    pub(super) report: SharedReport,
    /// Wakes the refresh, which shows a split view, and asks its source whether there is something newer.
    pub(super) poke: Arc<Notify>,
    pub(super) metrics: Metrics,
}

impl Neighbours {
    /// Until told to stop.
    pub(super) async fn follow(self, stop: CancellationToken) {
        loop {
            self.spool.tell(self.presence());
            let neighbours = self.spool.neighbours();
            self.metrics.gateways(neighbours.iter().filter(|one| one.is_present).count());
            let split = split_view(&neighbours, &self.history);
            self.metrics.split_view(split.is_some());
            if let Some(words) = &split
                && self.report.get().split.as_ref() != Some(words)
            {
                tracing::error!(
                    event = "key.split_view",
                    code = ErrorReason::TrustEquivocation.code(),
                    words
                );
            }
            if self.report.split_view(split) {
                self.poke.notify_one();
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn presence(&self) -> Presence {
        let statement = self.book.current().map(|keys| {
            let version = keys.version();
            Served { epoch: version.epoch, sequence: version.sequence, digest: keys.digest().to_string() }
        });
        Presence {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.health.is_ready(),
            words: self.health.summary().words,
            connections: self.doors.open(),
            statement,
        }
    }
}

/// Whether another gateway serves another statement under a number that was accepted here, in words.
fn split_view(neighbours: &[Neighbour], history: &History) -> Option<String> {
    neighbours.iter().filter(|one| !one.is_here).find_map(|one| {
        let served = one.presence.statement.as_ref()?;
        let ours = history.digest_of((served.epoch, served.sequence))?.to_string();
        (ours != served.digest).then(|| {
            format!(
                "{} serves another statement {}.{} than was accepted here: {} there, {ours} here",
                one.name, served.epoch, served.sequence, served.digest
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::{Authority, arn};
    use pithead_sealing::trust::KeyStatus;

    fn neighbour(name: &str, sequence: u64, digest: &str) -> Neighbour {
        let served = Served { epoch: 1, sequence, digest: digest.to_owned() };
        let presence = Presence { statement: Some(served), ..Presence::default() };
        Neighbour {
            name: name.to_owned(),
            address: None,
            presence,
            is_here: false,
            is_present: true,
            silent_for: Duration::ZERO,
        }
    }

    #[test]
    fn another_statement_under_a_number_that_was_accepted_here_is_a_split_view_and_a_newer_or_older_one_is_not()
     {
        let folder = tempfile::tempdir().unwrap();
        let (history, _) = History::open(folder.path()).unwrap();
        let statement = Authority::new().statement(&[(&arn(1), KeyStatus::Active)]);
        history.keep(&statement).unwrap();
        let (_, sequence) = statement.version();
        let same = neighbour("edge-2", sequence, &statement.digest().to_string());
        let newer = neighbour("edge-3", sequence + 1, &"ab".repeat(32));
        assert_eq!(split_view(&[same.clone(), newer.clone()], &history), None);
        let other = neighbour("edge-4", sequence, &"ab".repeat(32));
        let words = split_view(&[same, newer, other.clone()], &history).unwrap();
        assert!(words.starts_with("edge-4 serves another statement"), "{words}");
        assert_eq!(split_view(&[Neighbour { is_here: true, ..other }], &history), None);
    }
}
