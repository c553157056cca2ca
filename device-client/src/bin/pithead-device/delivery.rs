//! Waiting until a gateway has what is in the outbox, and what is told of it at the end: the same for `send`, `watch` and
//! `outbox drain`.

use std::time::Duration;

use indicatif::ProgressBar;
use pithead_device_client::{
    client::{Client, Status},
    uplink::Trouble,
};
use pithead_hop::program::{ExitCode, ProgramError, human, stop::Signals};
use pithead_proto::errors::v1::ErrorReason;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{config::Config, failure};

/// No limit: longer than any program runs.
pub(crate) const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// SIGTERM and SIGINT from now on.
pub(crate) fn signals() -> Result<Signals, ProgramError> {
    Signals::listen()
        .map_err(|error| ProgramError::new(ErrorReason::Internal, format!("no signals: {error}")))
}

/// Sums over the streams, what waited from before included.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) records: u64,
    pub(crate) envelopes: u64,
    pub(crate) acknowledged: u64,
    pub(crate) duplicates: u64,
    pub(crate) conflicts: u64,
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) dropped: u64,
    pub(crate) waiting: u64,
}

impl Told {
    pub(crate) fn of(status: &Status) -> Self {
        let mut told = Self::default();
        for stream in status.streams.values() {
            told.records += stream.held;
            told.envelopes += stream.sealed;
            told.acknowledged += stream.settled.stored + stream.settled.duplicates;
            told.duplicates += stream.settled.duplicates;
            told.conflicts += stream.settled.conflicts;
            told.refused += stream.settled.refused;
            told.lost += stream.settled.lost;
            told.dropped += stream.dropped_envelopes;
            told.waiting += stream.waiting;
        }
        told
    }

    /// As they are printed.
    pub(crate) fn fields(&self, sessions: u64) -> Vec<(&'static str, Value)> {
        vec![
            ("records", json!(self.records)),
            ("envelopes", json!(self.envelopes)),
            ("sessions", json!(sessions)),
            ("acknowledged", json!(self.acknowledged)),
            ("duplicates", json!(self.duplicates)),
            ("conflicts", json!(self.conflicts)),
            ("refused", json!(self.refused)),
            ("lost", json!(self.lost)),
            ("dropped", json!(self.dropped)),
            ("waiting", json!(self.waiting)),
        ]
    }
}

/// Draws how far delivery is.
pub(crate) fn show(client: &Client, bar: &ProgressBar) {
    let told = Told::of(&client.status());
    let done = told.acknowledged + told.conflicts + told.refused + told.lost;
    bar.set_length(done + told.waiting);
    bar.set_position(done);
}

/// How a client ended.
pub(crate) struct Ended {
    pub(crate) status: Status,
    /// Why nothing was being delivered, if nothing was.
    pub(crate) trouble: Option<Trouble>,
}

/// Takes nothing more, gives a gateway until `limit` or until `stop` to take what waits, and closes the client.
pub(crate) async fn finish(
    client: Client,
    limit: Duration,
    stop: &CancellationToken,
    bar: &ProgressBar,
) -> Result<Ended, ProgramError> {
    let finished = async {
        let mut changes = client.changes();
        let finish = client.finish(limit);
        tokio::pin!(finish);
        loop {
            tokio::select! {
                // What waits is counted and told below, whatever the reason.
                _ = &mut finish => return,
                () = changes.changed() => show(&client, bar),
            }
        }
    };
    stop.run_until_cancelled(finished).await;
    bar.finish_and_clear();
    let trouble = trouble(client.status());
    let closed = tokio::task::spawn_blocking(move || client.close(Duration::ZERO)).await;
    let closed = closed.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?;
    let status = closed.map_err(|error| failure::close(&error))?;
    Ok(Ended { status, trouble })
}

/// Why nothing is being delivered; where something is, why a large file is not.
fn trouble(status: Status) -> Option<Trouble> {
    let uploads = status.streams.into_values().filter_map(|stream| stream.upload_trouble);
    status.trouble.or_else(|| uploads.reduce(|one, other| if one.retryable { other } else { one }))
}

/// What the process ends with: something that waits, or that no gateway takes, is not all well.
pub(crate) fn verdict(
    config: &Config,
    told: &Told,
    trouble: Option<Trouble>,
) -> Result<ExitCode, ProgramError> {
    if told.waiting > 0 {
        return Err(waits(told.waiting, trouble));
    }
    if told.refused > 0 {
        let area = config.refused_area().folder().display().to_string();
        let what = format!("{} refused", human::some(told.refused, "envelope was", "envelopes were"));
        return Err(ProgramError::new(ErrorReason::RequestInvalid, what)
            .todo(format!("look at the reasons in {area}")));
    }
    Ok(ExitCode::OK)
}

fn waits(waiting: u64, trouble: Option<Trouble>) -> ProgramError {
    if let Some(trouble) = trouble.as_ref().filter(|trouble| !trouble.retryable) {
        return no_hope(trouble);
    }
    let trouble = trouble.map_or_else(String::new, |trouble| format!(": {}", trouble.detail));
    let what = format!("{waiting} envelopes wait in the outbox{trouble}");
    ProgramError::new(ErrorReason::PeerUnreachable, what)
        .affects("nothing is lost; they go out the next time the device sends")
        .exit(ExitCode::TRY_AGAIN)
}

pub(crate) fn no_hope(trouble: &Trouble) -> ProgramError {
    ProgramError::new(trouble.reason.unwrap_or(ErrorReason::PeerUnreachable), trouble.detail.clone())
        .affects("nothing is lost; what is not acknowledged stays in the outbox")
}
