//! Where the gateways of a site share their lanes: what this one does while it owns them, and what when it stands by.
//!
//! Keys are served all the time. What belongs to the lanes begins with a term and ends with it: the numbers are read from the lanes as
//! at a start, then envelopes are taken, the relay runs, and beside it the folder of the refused area is brought in line. When the
//! term is over, the relay is cut (what it has under way the next owner sends again, and the far end recognises it), and devices are
//! told who takes envelopes now.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use pithead_hop::identity::GatewayName;
use pithead_hop::ingest::UploadStore;
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::{OpenError, Survey};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::since_boot;
use crate::config::{self, Config, Engine};
use crate::envelopes::copies::Copies;
use crate::envelopes::numbers::Numbers;
use crate::envelopes::refused::Refused;
use crate::envelopes::relay::{Relay, Way};
use crate::envelopes::replicated::{Joining, Standing};
use crate::envelopes::spool::{self, EnvelopeSpool};
use crate::envelopes::uploads;
use crate::health::{Health, Level};
use crate::metrics::{Dimension, Metrics};

/// Between two attempts to bring the refused area in line.
const AGAIN: Duration = Duration::from_secs(10);

/// How the streams of the site are joined, if the configuration says so.
///
/// # Errors
/// When it does not say where they are.
pub(crate) fn joining(config: &Config, name: &GatewayName) -> Result<Option<Joining>, ProgramError> {
    if config.spool.engine == Engine::Embedded {
        return Ok(None);
    }
    let section = config.spool.jetstream.as_ref().ok_or_else(|| {
        ProgramError::new(
            ErrorReason::ConfigInvalid,
            "[spool] `engine` = \"jetstream\" needs [spool.jetstream]",
        )
    })?;
    let listens = config.ingest.listen;
    let address = match &section.address {
        Some(address) => Some(address.to_string()),
        None => (!listens.ip().is_unspecified()).then(|| listens.to_string()),
    };
    Ok(Some(Joining::new(
        section,
        &config.spool,
        &config.gateway.site,
        config.ingest.envelopes.inline.get(),
        config.relay.as_ref().map_or(config::refused_size(), |relay| relay.refused_size).get(),
        name.as_str(),
        address,
    )))
}

/// Joins them.
///
/// # Errors
/// Why envelopes cannot be taken there; or that the embedded engine has left some on this disk, which nobody would deliver.
pub(super) async fn join(
    joining: Joining,
    embedded: PathBuf,
    config: &config::Spool,
) -> Result<EnvelopeSpool, ProgramError> {
    let config = config.clone();
    let joined = tokio::task::spawn_blocking(move || {
        nothing_is_left(&embedded)?;
        spool::join(&joining, &config)
    });
    joined.await.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?
}

fn nothing_is_left(folder: &Path) -> Result<(), ProgramError> {
    let survey = match Survey::open(folder) {
        Ok(survey) => survey,
        Err(OpenError::Missing { .. }) => return Ok(()),
        // What cannot be looked at may hold what nobody would deliver.
        Err(error) => return Err(spool::open_error(error)),
    };
    let found = survey.found();
    let what = match (found.records, found.damaged_segments) {
        (0, 0) => return Ok(()),
        (0, damaged) => {
            format!("{} holds {damaged} segments of the embedded engine that do not read", folder.display())
        }
        (waits, _) => format!("{} still holds {waits} envelopes of the embedded engine", folder.display()),
    };
    Err(ProgramError::new(ErrorReason::SpoolUnsafe, what)
        .affects("nobody would deliver them")
        .todo(
            "start with [spool] engine = \"embedded\" until the relay has drained it; or `spool export` it, move the folder away, \
             start, and `spool import` the export",
        ))
}

/// What begins and ends with a term.
pub(super) struct Owning {
    pub(super) spool: EnvelopeSpool,
    pub(super) numbers: Numbers,
    pub(super) refused: Arc<Refused>,
    pub(super) uploads: UploadStore,
    pub(super) copies: Option<Copies>,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
    /// Where devices connect.
    pub(super) address: SocketAddr,
    pub(super) relay: Option<(Relay, Way)>,
}

impl Owning {
    /// Follows who owns the lanes, until told to stop; then the relay ends as it does otherwise. The lanes are handed over when the
    /// spool is closed.
    pub(super) async fn follow(self, mut standing: watch::Receiver<Standing>, stop: CancellationToken) {
        loop {
            self.metrics.owner(false);
            let now = standing.borrow_and_update().clone();
            let epoch = match now {
                Standing::Ours { epoch } => epoch,
                Standing::StandingBy { .. } => {
                    self.stands_by();
                    tokio::select! {
                        changed = standing.changed() => if changed.is_err() { return },
                        () = stop.cancelled() => return,
                    }
                    continue;
                }
            };
            let begun = tokio::select! {
                begun = self.begin(epoch) => begun,
                () = stop.cancelled() => return,
            };
            if !begun {
                self.spool.step_down(epoch);
            }
            let is_over = |standing: &Standing| *standing != Standing::Ours { epoch };
            let stopped = {
                let mut working = pin!(self.work(begun, &stop));
                tokio::select! {
                    over = standing.wait_for(is_over) => over.is_err(),
                    () = &mut working => true,
                }
                // Dropped, the relay does not wait for answers that count no more.
            };
            if stopped {
                return;
            }
            self.metrics.owner(false);
            if let Some((relay, _)) = &self.relay {
                relay.stand_down();
            }
            tracing::warn!(event = "gateway.stands_by", epoch);
            self.forget().await;
        }
    }

    /// What an owner does beside taking envelopes, until told to stop. The relay may hear that the lanes are somebody else's before
    /// whoever follows the standing does, and ends then: that is no reason to follow no more.
    async fn work(&self, begun: bool, stop: &CancellationToken) {
        if !begun {
            return stop.cancelled().await;
        }
        // Beside the relay: what is refused meanwhile waits for it, and everything else need not.
        let in_line = async {
            while !self.bring_in_line().await {
                tokio::time::sleep(AGAIN).await;
            }
            std::future::pending::<()>().await;
        };
        let relaying = async {
            if let Some((relay, way)) = self.relay.clone() {
                relay.follow(way, stop.clone()).await;
            }
            stop.cancelled().await;
        };
        tokio::select! {
            () = relaying => {}
            () = in_line => {}
        }
    }

    /// The folder of the refused area has what its replica has. Nothing is set aside before that has succeeded; what is missing here until
    /// then lies in the replica.
    async fn bring_in_line(&self) -> bool {
        let refused = self.refused.clone();
        let error = match tokio::task::spawn_blocking(move || refused.bring_in_line()).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(event = "refused.not_in_line", error);
        false
    }

    /// Reads what the lanes hold, and takes envelopes from then on. False if that was not possible.
    async fn begin(&self, epoch: u64) -> bool {
        let now = since_boot();
        self.health.set(Dimension::Ingest, Level::Degraded, "taking over: reading what waits", now);
        let (numbers, refused, large) = (self.numbers.clone(), self.refused.clone(), self.uploads.clone());
        let beginning = move || {
            // Of the large ones that lie here, those are taken that the lanes name.
            uploads::stand_down(&large, &refused);
            let begun = numbers.begin();
            // What each device holds is counted anew from the lanes, and the refused area counts as well.
            refused.hold_again();
            let waiting = begun?;
            uploads::claim(&large, &numbers, &refused, waiting.complete)?;
            Ok::<_, std::io::Error>(waiting)
        };
        let begun = match tokio::task::spawn_blocking(beginning).await {
            Ok(begun) => begun.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let waiting = match begun {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::error!(event = "gateway.not_taken_over", epoch, error);
                return false;
            }
        };
        if !self.spool.serve(epoch) {
            tracing::warn!(
                event = "gateway.not_taken_over",
                epoch,
                error = "the term was over before all was read"
            );
            return false;
        }
        if let Some(copies) = &self.copies {
            // The term has lasted until all was read. Nothing is put before this.
            copies.begin(epoch, waiting);
        }
        self.metrics.owner(true);
        let words = format!("listening on {}; takes the site's envelopes, term {epoch}", self.address);
        self.health.set(Dimension::Ingest, Level::Ok, words, since_boot());
        tracing::info!(event = "gateway.took_over", epoch, took_ms = (since_boot() - now).as_millis() as u64);
        true
    }

    /// What was known of the lanes is somebody else's now.
    async fn forget(&self) {
        if let Some(copies) = &self.copies {
            copies.end();
        }
        let (numbers, refused, large) = (self.numbers.clone(), self.refused.clone(), self.uploads.clone());
        let forgetting = move || {
            let forgotten = numbers.forget();
            if let Err(error) = refused.stand_by() {
                tracing::warn!(event = "refused.not_counted", %error);
            }
            uploads::stand_down(&large, &refused);
            forgotten
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(forgetting).await {
            tracing::error!(event = "gateway.not_forgotten", %error);
        }
    }

    fn stands_by(&self) {
        let Some(elsewhere) = self.spool.elsewhere() else { return };
        let level = if elsewhere.owner.is_some() && elsewhere.trouble.is_none() {
            Level::Ok
        } else {
            Level::Degraded
        };
        let now = since_boot();
        // Only to one that says where it is.
        let passes = elsewhere.owner.as_ref().is_some_and(|owner| owner.address.is_some());
        let passes = if passes { ", and is passed on what comes here" } else { "" };
        let words = format!("listening on {}, standing by: {elsewhere}{passes}", self.address);
        self.health.set(Dimension::Ingest, level, words, now);
        if self.relay.is_some() {
            self.health.set(Dimension::Relay, Level::Ok, "standing by: the owner of the lanes relays", now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelopes::relay::RelayReport;
    use crate::envelopes::relay::control::Control;
    use crate::envelopes::testing::{Cloud, Door, LONG, until};
    use pithead_spool::{Options, Record, Spool};

    #[tokio::test]
    async fn a_relay_that_hears_first_that_the_term_is_over_does_not_end_what_follows_the_terms() {
        let folder = tempfile::tempdir().unwrap();
        let (door, cloud, metrics) = (Door::open(folder.path()), Cloud::start().await, Metrics::new());
        let health = Health::new(metrics.clone(), since_boot());
        let area = folder.path().join("refused");
        let refused = Refused::open(&area, 1 << 20, metrics.clone(), door.shares.clone()).unwrap();
        let refused = Arc::new(refused);
        let relay = Relay {
            spool: door.spool.clone(),
            numbers: door.numbers.clone(),
            uploads: door.uploads.clone(),
            copies: None,
            refused: refused.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            report: RelayReport::default(),
            control: Control::open(folder.path().join("relay"), None).unwrap(),
            followed: door.followed.clone(),
        };
        let targets = watch::Sender::new(cloud.target());
        let owning = Owning {
            spool: door.spool.clone(),
            numbers: door.numbers.clone(),
            refused,
            uploads: door.uploads.clone(),
            copies: None,
            health,
            metrics: metrics.clone(),
            address: SocketAddr::from(([127, 0, 0, 1], 7443)),
            relay: Some((relay, Way::OverCalls(targets.subscribe()))),
        };
        let shows = |line: &str| metrics.page().lines().any(|shown| shown == line);
        let (standing, stop) = (watch::Sender::new(Standing::Ours { epoch: 1 }), CancellationToken::new());
        let following = tokio::spawn(owning.follow(standing.subscribe(), stop.clone()));
        until("it relays", || shows("pithead_relay_up 1")).await;
        // The lanes are gone, and nobody has said so yet.
        door.spool.close().unwrap();
        until("the relay has ended", || shows("pithead_relay_up 0")).await;
        assert!(shows("pithead_spool_owner 1"));
        standing.send_replace(Standing::StandingBy { owner: None, trouble: None });
        until("it stands by", || shows("pithead_spool_owner 0")).await;
        stop.cancel();
        tokio::time::timeout(LONG, following).await.expect("it stops").unwrap();
    }

    #[tokio::test]
    async fn nobody_joins_the_streams_while_this_disk_holds_what_nobody_would_deliver_or_cannot_be_looked_at()
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        assert!(nothing_is_left(&path).is_ok(), "there never was one");
        std::fs::create_dir(&path).unwrap();
        let (log, _) = Spool::open(&path, Options::default()).unwrap();
        log.append(pithead_spool::Lane::First, Record::new(1, 0, &b"head"[..], &b"body"[..]))
            .unwrap()
            .await
            .unwrap();
        log.close().unwrap();
        drop(log);
        let refused = nothing_is_left(&path).unwrap_err();
        assert_eq!(refused.reason, ErrorReason::SpoolUnsafe);
        assert!(refused.to_string().contains("1 envelopes"), "{refused}");
        // A file where a folder was: it cannot be looked at.
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert!(nothing_is_left(&path).is_err());
    }
}
