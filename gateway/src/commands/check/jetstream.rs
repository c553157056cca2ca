//! What `check` says of the streams that the spool stands on, where it stands on JetStream.

use std::time::Duration;

use pithead_hop::identity::GatewayName;
use pithead_hop::objects::{Fault, StoreError};
use pithead_hop::program::check::{CONNECTIVITY, Finding, Grade, PRODUCTION, Report};
use pithead_hop::program::human;
use pithead_proto::errors::v1::ErrorReason;

use crate::config::{Config, Engine};
use crate::envelopes::copies::{CopyError, try_store};
use crate::envelopes::replicated::{Inspected, Sync, inspect, sync_of};
use crate::run::joining;

/// Looks at servers and streams, and changes nothing.
pub(super) async fn look(config: &Config, name: &GatewayName, limit: Duration, report: &mut Report) {
    if config.spool.engine == Engine::Embedded {
        return;
    }
    let joining = match joining(config, name) {
        Ok(Some(joining)) => joining,
        Ok(None) => return,
        Err(error) => return report.add(CONNECTIVITY, "jetstream", Finding::of(&error, Grade::Failure)),
    };
    let finding = match inspect(&joining, limit).await {
        Ok(Inspected { missing: 0 }) => Finding::ok("the streams are there, and as they have to be"),
        Ok(Inspected { missing }) => {
            Finding::ok(format!("{missing} streams are not there yet: they are made at the next start"))
        }
        Err(error) => Finding::of(&error, Grade::Failure),
    };
    report.add(CONNECTIVITY, "jetstream", finding);
    for monitor in joining.monitors() {
        let asked = monitor.clone();
        let found = tokio::task::spawn_blocking(move || sync_of(&asked)).await;
        report.add(
            PRODUCTION,
            "jetstream sync",
            match found {
                Ok(Sync::Always) => Finding::ok(format!("{monitor} syncs before it acknowledges")),
                Ok(Sync::Interval(every)) => Finding::failure(
                    ErrorReason::SpoolUnsafe,
                    format!("{monitor} syncs every {every}, and acknowledges before"),
                )
                .todo("set jetstream { sync_interval: always } in its file, and restart it"),
                Ok(Sync::Unseen(why)) => unseen(&why),
                Err(error) => unseen(&error.to_string()),
            },
        );
    }
    if joining.monitors().is_empty() {
        report.add(PRODUCTION, "jetstream sync", unseen("[spool.jetstream] names no monitor"));
    }
    report.add(CONNECTIVITY, "large envelopes", large(config, limit).await);
}

/// Whether the store for copies of large envelopes takes one and lets go of it.
async fn large(config: &Config, limit: Duration) -> Finding {
    let Some((large, set)) = config.large_store() else {
        return Finding::ok("not taken: [spool.jetstream.large] names no store for their copies");
    };
    let settings = match large.settings() {
        Ok(settings) => settings,
        Err(error) => {
            let what = format!("[spool.jetstream.large] ca: {error}");
            return Finding::failure(ErrorReason::ConfigUnreadable, what);
        }
    };
    let no_answer = || {
        CopyError::Store(StoreError {
            what: "reach",
            name: large.url.clone(),
            fault: Fault::Unreachable,
            cause: format!("no answer within {}", human::span(limit)),
        })
    };
    let tried = tokio::time::timeout(limit, try_store(&settings, &set)).await;
    match tried.unwrap_or_else(|_| Err(no_answer())) {
        // All gateways have to say the same.
        Ok(Some(id)) => {
            Finding::ok(format!("{} takes their copies; it is store {id:016x}, on all gateways", large.url))
        }
        Ok(None) => Finding::ok(format!("{} takes their copies, and holds none yet", large.url)),
        Err(error) => Finding::warning(error.to_string())
            .because(error.reason())
            .todo("large envelopes are refused until it does: mount it, or see its policy and the way there"),
    }
}

fn unseen(why: &str) -> Finding {
    Finding::warning(format!("whether it syncs before it acknowledges cannot be seen from here: {why}"))
        .todo("name the servers' monitoring ports in [spool.jetstream] monitor")
}
