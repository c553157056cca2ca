//! The calls that are served, under the names of OpenTelemetry's conventions.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

use super::{Catalogue, Kind, Label, Values, durations};
use crate::accept::calls::{BOUNDS_S, CODES, Calls, METHODS};

/// `rpc_server_call_duration_seconds` of a program's ports.
#[derive(Debug, Clone, Default)]
pub struct RpcMetrics(Arc<Mutex<Vec<Calls>>>);

impl RpcMetrics {
    /// Declares it.
    pub fn declare(all: &mut Catalogue) -> Self {
        all.declare(
            Kind::Histogram,
            "rpc_server_call_duration_seconds",
            &[
                Label::of("rpc_system_name", &["grpc"]),
                Label::new("rpc_method", Values::Some(&METHODS)),
                Label::new("rpc_response_status_code", Values::Some(&CODES)),
            ],
            "Calls that were served, from the request to the end of the answer; a stream lasts as long as it is open",
            Self::default(),
        )
    }

    /// Shows the calls of one more port.
    pub fn watch(&self, calls: Calls) {
        self.lock().push(calls);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Calls>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for RpcMetrics {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        // Two ports of one program may serve the same method.
        let mut sums = std::collections::BTreeMap::<_, ([u64; BOUNDS_S.len() + 1], u64)>::new();
        for port in self.lock().iter() {
            for (method, code, times) in port.iter() {
                let (counts, sum_us) = sums.entry((method, code)).or_default();
                counts.iter_mut().zip(times.counts()).for_each(|(all, one)| *all += one);
                *sum_us += times.sum_us();
            }
        }
        for ((method, code), (counts, sum_us)) in sums {
            let labels =
                [("rpc_system_name", "grpc"), ("rpc_method", method), ("rpc_response_status_code", code)];
            durations::encode(&mut encoder.encode_family(&labels)?, &BOUNDS_S, &counts, sum_us)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }

    fn is_empty(&self) -> bool {
        self.lock().iter().all(|port| port.iter().next().is_none())
    }
}
