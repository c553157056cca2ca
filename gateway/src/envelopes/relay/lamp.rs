//! What the relay says of itself: its lamp, its metrics, its line on the status page.

use super::control::{Cause, Pause};
use super::report::Report;
use super::{Ended, Relay};
use crate::clock::since_boot;
use crate::health::Level;
use crate::metrics::{Dimension, PauseCause};

impl Relay {
    pub(super) fn up(&self) {
        self.metrics.relay_up(true);
        self.metrics.relay_paused(None);
        self.report.change(|report| {
            report.up = true;
            report.was_up = true;
            report.refused_area_full = false;
            report.failure = None;
        });
        if self.health.set(Dimension::Relay, Level::Ok, "the far end takes envelopes", since_boot()) {
            tracing::info!(event = "relay.up");
        }
    }

    /// Degraded, whoever has said so: devices are served all the same.
    pub(super) fn paused(&self, pause: &Pause) {
        let words = pause.words();
        let cause = match pause.cause {
            Cause::Hand => PauseCause::Hand,
            Cause::Refusals { .. } => PauseCause::Refusals,
            Cause::ForeignBundle { .. } => PauseCause::ForeignBundle,
        };
        self.metrics.relay_up(false);
        self.metrics.relay_paused(Some(cause));
        self.report.change(|report| {
            report.up = false;
            report.failure = None;
            report.paused = Some(*pause);
            report.refused_area_full = false;
        });
        self.health.set(Dimension::Relay, Level::Degraded, words.clone(), since_boot());
        match pause.cause {
            Cause::Hand => tracing::warn!(event = "relay.paused", why = words),
            Cause::Refusals { .. } | Cause::ForeignBundle { .. } => {
                tracing::error!(event = "relay.paused", why = words)
            }
        }
    }

    /// Another gateway of the site relays now. Whoever looks at this one must not see what it did when it was cut short.
    pub(crate) fn stand_down(&self) {
        self.metrics.relay_up(false);
        self.metrics.relay_paused(None);
        self.metrics.relay_window(0);
        self.metrics.relay_in_flight(0);
        self.report.change(|report| {
            let (acknowledged, acknowledged_at) = (report.acknowledged, report.acknowledged_at);
            *report = Report { acknowledged, acknowledged_at, ..Report::default() };
        });
    }

    pub(super) fn down(&self, ended: &Ended) {
        let (now, reason) = (since_boot(), ended.reason());
        self.metrics.relay_up(false);
        self.metrics.relay_ended(reason);
        let said = ended.to_string();
        let words = match reason {
            // What the far end refused says its code itself.
            Some(reason) if !said.starts_with(&reason.code()) => {
                format!("{} {}: {said}", reason.code(), reason.name())
            }
            _ => said,
        };
        let full = matches!(ended, Ended::Refused(error) if error.is_full());
        self.report.change(|report| {
            report.up = false;
            report.refused_area_full = full;
            report.failure = Some((reason, ended.to_string(), now));
        });
        self.metrics.relay_paused(full.then_some(PauseCause::RefusedAreaFull));
        if full {
            tracing::error!(event = "relay.paused", why = words);
        }
        if self.health.set(Dimension::Relay, Level::Degraded, words.clone(), now) {
            tracing::warn!(event = "relay.down", why = words);
        }
    }
}
