//! What `check` says of the streams that the spool stands on, where it stands on JetStream.

use std::time::Duration;

use pithead_hop::identity::GatewayName;
use pithead_hop::program::check::{CONNECTIVITY, Finding, Grade, PRODUCTION, Report};

use crate::config::{Config, Engine};
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
                    pithead_proto::errors::v1::ErrorReason::SpoolUnsafe,
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
}

fn unseen(why: &str) -> Finding {
    Finding::warning(format!("whether it syncs before it acknowledges cannot be seen from here: {why}"))
        .todo("name the servers' monitoring ports in [spool.jetstream] monitor")
}
