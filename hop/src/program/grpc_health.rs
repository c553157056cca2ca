//! The gRPC health service: each service is serving while the dimensions that it needs are not down and the program does not drain.

use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::health::{Lamps, Level};

/// A service, by its full name (or none, for the program), and the dimensions that it needs.
pub type Service = (&'static str, &'static [&'static str]);

/// Follows the lamps until told to stop; then nothing is serving.
pub async fn follow(
    lamps: Lamps,
    reporter: HealthReporter,
    services: &'static [Service],
    stop: CancellationToken,
) {
    let mut changes = lamps.watch_changes();
    loop {
        changes.mark_unchanged();
        for (service, needs) in services {
            reporter.set_service_status(*service, status(&lamps, needs)).await;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { break },
            () = stop.cancelled() => break,
        }
    }
    for (service, _) in services {
        reporter.set_service_status(*service, ServingStatus::NotServing).await;
    }
}

fn status(lamps: &Lamps, needs: &[&str]) -> ServingStatus {
    let report = lamps.report();
    let works = |dimension: &&str| report.get(*dimension).is_some_and(|lamp| lamp.level != Level::Down);
    if needs.iter().all(works) && !lamps.is_draining() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn keys_are_served_while_the_disk_is_full_and_nothing_is_while_it_drains() {
        let lamps = Lamps::new(&["ingest", "keys", "disk"], &["ingest", "keys", "disk"], Duration::ZERO);
        for dimension in ["ingest", "keys"] {
            lamps.set(dimension, Level::Degraded, "", Duration::ZERO);
        }
        assert_eq!(status(&lamps, &["ingest", "disk"]), ServingStatus::NotServing);
        assert_eq!(status(&lamps, &["ingest", "keys"]), ServingStatus::Serving);
        lamps.drain();
        assert_eq!(status(&lamps, &["ingest", "keys"]), ServingStatus::NotServing);
    }
}
