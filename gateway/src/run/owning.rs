//! Where the gateways of a site share their lanes: what this one does while it owns them, and what when it stands by.
//!
//! Keys are served all the time. What belongs to the lanes begins with a term and ends with it: the numbers are read from the lanes as
//! at a start, then envelopes are taken, and the relay runs. When the term is over, the relay is cut (what it has under way the next
//! owner sends again, and the far end recognises it), and devices are told who takes envelopes now.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pithead_hop::identity::GatewayName;
use pithead_hop::program::ProgramError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::Survey;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::since_boot;
use crate::config::{self, Config, Engine};
use crate::envelopes::numbers::Numbers;
use crate::envelopes::refused::Refused;
use crate::envelopes::relay::{Relay, Target};
use crate::envelopes::replicated::{Joining, Standing};
use crate::envelopes::spool::{self, EnvelopeSpool};
use crate::health::{Health, Level};
use crate::metrics::{Dimension, Metrics};

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
    let Ok(survey) = Survey::open(folder) else { return Ok(()) };
    let waits = survey.found().records;
    if waits == 0 {
        return Ok(());
    }
    let what = format!("{} still holds {waits} envelopes of the embedded engine", folder.display());
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
    pub(super) health: Health,
    pub(super) metrics: Metrics,
    /// Where devices connect.
    pub(super) address: SocketAddr,
    pub(super) relay: Option<(Relay, watch::Receiver<Target>)>,
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
            let relay = if self.begin(epoch).await {
                self.relay(&stop.child_token())
            } else {
                self.spool.step_down(epoch);
                None
            };
            let is_over = |standing: &Standing| *standing != Standing::Ours { epoch };
            let stopped = tokio::select! {
                over = standing.wait_for(is_over) => over.is_err(),
                () = stop.cancelled() => true,
            };
            if let Some(relay) = relay {
                if !stopped {
                    // It would wait for answers that count no more.
                    relay.abort();
                }
                let _ = relay.await;
            }
            if stopped {
                return;
            }
            tracing::warn!(event = "gateway.stands_by", epoch);
            self.forget().await;
        }
    }

    /// Reads what the lanes hold, and takes envelopes from then on. False if that was not possible.
    async fn begin(&self, epoch: u64) -> bool {
        let now = since_boot();
        self.health.set(Dimension::Ingest, Level::Degraded, "taking over: reading what waits", now);
        let (numbers, refused) = (self.numbers.clone(), self.refused.clone());
        let beginning = move || {
            let begun = numbers.begin();
            // What each device holds is counted anew from the lanes, and the refused area counts as well.
            refused.hold_again();
            begun
        };
        let begun = match tokio::task::spawn_blocking(beginning).await {
            Ok(begun) => begun.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = begun {
            tracing::error!(event = "gateway.not_taken_over", epoch, error);
            return false;
        }
        self.spool.serve(epoch);
        self.metrics.owner(true);
        let words = format!("listening on {}; takes the site's envelopes, term {epoch}", self.address);
        self.health.set(Dimension::Ingest, Level::Ok, words, since_boot());
        tracing::info!(event = "gateway.took_over", epoch, took_ms = (since_boot() - now).as_millis() as u64);
        true
    }

    fn relay(&self, stop: &CancellationToken) -> Option<JoinHandle<()>> {
        let (relay, targets) = self.relay.clone()?;
        Some(tokio::spawn(relay.run(targets, stop.clone())))
    }

    /// What was known of the lanes is somebody else's now.
    async fn forget(&self) {
        let (numbers, refused) = (self.numbers.clone(), self.refused.clone());
        let forgetting = move || {
            let forgotten = numbers.begin();
            refused.hold_again();
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
        let words = format!("listening on {}, standing by: {elsewhere}", self.address);
        self.health.set(Dimension::Ingest, level, words, now);
        if self.relay.is_some() {
            self.health.set(Dimension::Relay, Level::Ok, "standing by: the owner of the lanes relays", now);
        }
    }
}
