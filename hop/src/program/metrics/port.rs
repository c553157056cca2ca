//! What the accept layer counts, of both programs alike.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{Catalogue, Label, One, Values, advance, as_gauge};
use crate::accept::{AcceptStats, Ended, Handshake, Refused};

const HOW: &str = "how";

/// The metrics of a program's ports for its peers.
#[derive(Debug, Clone)]
pub struct PortMetrics {
    taking_over: Arc<Mutex<()>>,
    connections: Gauge,
    handshaking: Gauge,
    accepted: Counter,
    refused: Family<One, Counter>,
    handshakes: Family<One, Counter>,
    ended: Family<One, Counter>,
    listener_errors: Counter,
    streams: Counter,
    requests: Counter,
    requests_refused: Counter,
    throttled: Counter,
    oversize_headers: Counter,
    noise_frames: Counter,
}

impl PortMetrics {
    /// Declares them.
    pub fn declare(all: &mut Catalogue) -> Self {
        let how = |values| [Label { name: HOW, values: Values::Of(values) }];
        Self {
            taking_over: Arc::default(),
            connections: all
                .gauge("pithead_connections", "Connections that are open, those in their handshake included"),
            handshaking: all.gauge("pithead_connections_handshaking", "Of them, those in their handshake"),
            accepted: all
                .counter("pithead_connections_accepted_total", "Connections taken from the listener"),
            refused: all.counters(
                "pithead_connections_refused_total",
                &how(&Refused::NAMES),
                "Connections turned away before their handshake, by reason",
            ),
            handshakes: all.counters(
                "pithead_handshakes_total",
                &how(&Handshake::NAMES),
                "Handshakes that ended, by how",
            ),
            ended: all.counters(
                "pithead_connections_ended_total",
                &how(&Ended::NAMES),
                "Connections that ended after a good handshake, by how",
            ),
            listener_errors: all.counter(
                "pithead_listener_errors_total",
                "Errors of the listener itself, such as no more file descriptors",
            ),
            streams: all.counter(
                "pithead_streams_total",
                "Calls that peers began, those included that HTTP/2 refused by itself",
            ),
            requests: all
                .counter("pithead_requests_total", "Calls that reached a service, or were throttled"),
            requests_refused: all.counter(
                "pithead_requests_refused_total",
                "Calls answered with an error at once: bad messages, refusals, the rate of an identity",
            ),
            throttled: all.counter(
                "pithead_requests_throttled_total",
                "Calls turned away by the rate of their identity",
            ),
            oversize_headers: all
                .counter("pithead_oversize_headers_total", "Calls whose headers were larger than allowed"),
            noise_frames: all.counter(
                "pithead_noise_frames_total",
                "HTTP/2 frames that ask for nothing: PING, SETTINGS, RST_STREAM, empty DATA and the like",
            ),
        }
    }

    /// Takes over what the accept layer has counted. Every reason is on the page from the start, at 0.
    pub fn take(&self, stats: &AcceptStats) {
        // Two pages at a time would each add what is new.
        let _one = self.taking_over.lock().unwrap_or_else(PoisonError::into_inner);
        self.connections.set(as_gauge(stats.open));
        self.handshaking.set(as_gauge(stats.handshaking));
        let plain = [
            (&self.accepted, stats.accepted),
            (&self.listener_errors, stats.listener_errors),
            (&self.streams, stats.streams),
            (&self.requests, stats.requests),
            (&self.requests_refused, stats.requests_refused),
            (&self.throttled, stats.throttled),
            (&self.oversize_headers, stats.oversize_headers),
            (&self.noise_frames, stats.noise_frames),
        ];
        for (counter, count) in plain {
            advance(counter, count);
        }
        let to = |family: &Family<One, Counter>, how, count| {
            advance(&family.get_or_create(&One::new(HOW, how)), count);
        };
        for why in Refused::ALL {
            to(&self.refused, why.name(), stats.refused(why));
        }
        for outcome in Handshake::ALL {
            to(&self.handshakes, outcome.name(), stats.handshakes(outcome));
        }
        for how in Ended::ALL {
            to(&self.ended, how.name(), stats.ended(how));
        }
    }
}
