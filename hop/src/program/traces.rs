//! `[traces]`: where spans go, and whether this program can send any.
//!
//! Only a program that was built with the feature `otlp` exports spans. Any other refuses the section: whoever asks for traces and
//! gets none should not have to find that out on the day when they are needed.
//!
//! The collector is one on this machine or in its network, without TLS: the usual agent, which takes spans on loopback and sends them on
//! as its own configuration says. Nothing in a span is secret, and names of devices are.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::config::Wrong;
use crate::trace::span::{SpanCounts, Spans};

/// Whether this program can export spans.
pub const COMPILED_IN: bool = cfg!(feature = "otlp");

/// How long the last spans may take when the program stops. Not in `[stop]`: a collector on this machine needs milliseconds, and
/// spans are not worth a longer wait.
pub const FLUSH: Duration = Duration::from_secs(2);

/// `[traces]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// The collector's port for OTLP over gRPC.
    pub endpoint: String,
    /// The share of calls that are followed, of those that bring no trace of their own.
    #[serde(default = "sample")]
    pub sample: f64,
}

/// One call in a hundred shows where time goes, and costs nothing that could be measured.
const fn sample() -> f64 {
    0.01
}

impl Traces {
    /// What is wrong with it.
    ///
    /// # Errors
    /// What, and of which key it is said.
    pub fn check(&self) -> Result<(), Wrong> {
        // Before anything that would show the line.
        if self.endpoint.contains('@') {
            let words = "[traces] `endpoint` has a user or a password in it, which `config show` and the log would say: name a collector on this machine, and have that one hold the credentials";
            return Err(Wrong::at("traces.endpoint", words).of_a_secret());
        }
        if !COMPILED_IN {
            return Err(Wrong::at(
                "traces.endpoint",
                "[traces] needs a program that was built with the feature `otlp`; this one exports no spans (`version` says so)",
            ));
        }
        self.address()?;
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(Wrong::at("traces.sample", "[traces] `sample` is a share, from 0.0 to 1.0"));
        }
        Ok(())
    }

    /// The collector.
    fn address(&self) -> Result<Uri, Wrong> {
        let wrong = |words: &str| Wrong::at("traces.endpoint", format!("[traces] `endpoint` {words}"));
        let uri: Uri =
            self.endpoint.parse().map_err(|_| wrong("is no URL, such as http://127.0.0.1:4317"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong(
                    "is http alone: name a collector on this machine, and have that one speak TLS to where spans go",
                ));
            }
            _ => return Err(wrong("begins with http://, such as http://127.0.0.1:4317")),
        }
        if uri.host().is_none_or(str::is_empty) || uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("is host and port and no more, such as http://127.0.0.1:4317"));
        }
        if uri.port_u16().is_none() {
            return Err(wrong("has no port, such as 4317 in http://127.0.0.1:4317"));
        }
        Ok(uri)
    }
}

/// The export of a program's spans, if it was asked for.
#[derive(Debug, Default)]
pub struct Exporting {
    spans: Spans,
    counts: Arc<SpanCounts>,
    task: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Exporting {
    /// Begins, if there is a section; `about` says who exports (`service.name`, ...). Inside a tokio runtime.
    ///
    /// # Errors
    /// As [`Traces::check`].
    pub fn begin(section: Option<&Traces>, about: Vec<(&'static str, String)>) -> Result<Self, Wrong> {
        let Some(section) = section else { return Ok(Self::default()) };
        section.check()?;
        section.start(about)
    }

    /// Where spans go.
    #[must_use]
    pub fn spans(&self) -> Spans {
        self.spans.clone()
    }

    /// What became of them.
    #[must_use]
    pub fn counts(&self) -> Arc<SpanCounts> {
        self.counts.clone()
    }

    /// Sends what waits, for at most [`FLUSH`]; the exporter itself ends before that, and says what it could not send. Whether it did.
    pub async fn stop(self) -> bool {
        let Some((stop, mut task)) = self.task else { return true };
        stop.cancel();
        let done = tokio::time::timeout(FLUSH, &mut task).await.is_ok();
        if !done {
            task.abort();
        }
        done
    }
}

#[cfg(feature = "otlp")]
impl Traces {
    fn start(&self, about: Vec<(&'static str, String)>) -> Result<Exporting, Wrong> {
        let (spans, ended, counts) = crate::trace::span::queue(self.sample);
        let stop = CancellationToken::new();
        let exporter = super::otlp::Exporter::new(self.address()?, about, counts.clone());
        tracing::info!(event = "traces.exporting", endpoint = self.endpoint, sample = self.sample);
        let task = tokio::spawn(exporter.run(ended, stop.clone()));
        Ok(Exporting { spans, counts, task: Some((stop, task)) })
    }
}

#[cfg(not(feature = "otlp"))]
impl Traces {
    fn start(&self, _about: Vec<(&'static str, String)>) -> Result<Exporting, Wrong> {
        // Refused by `check` before.
        Ok(Exporting::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(endpoint: &str, sample: f64) -> String {
        let traces = Traces { endpoint: endpoint.to_owned(), sample };
        traces.check().err().map_or_else(String::new, |wrong| wrong.message().to_owned())
    }

    #[test]
    fn an_endpoint_that_says_a_password_is_refused_and_not_said_again() {
        for endpoint in
            ["http://u:s3cret@127.0.0.1:4317", "http://s3cret@127.0.0.1:4317", "http://u:s3 cret@a"]
        {
            let said = wrong(endpoint, 0.5);
            assert!(said.contains("a user or a password") && !said.contains("s3"), "{said}");
        }
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn an_endpoint_is_a_collector_nearby_and_a_sample_is_a_share() {
        for good in ["http://127.0.0.1:4317", "http://[::1]:4317", "http://collector.site:4317/"] {
            assert_eq!(wrong(good, 0.5), "", "{good}");
        }
        for (bad, words) in [
            ("https://127.0.0.1:4317", "is http alone"),
            ("127.0.0.1:4317", "[traces] `endpoint`"),
            ("grpc://127.0.0.1:4317", "begins with http://"),
            ("http://127.0.0.1:4317/v1/traces", "host and port and no more"),
            ("", "is no URL"),
            ("http://127.0.0.1", "has no port"),
        ] {
            let said = wrong(bad, 0.5);
            assert!(said.contains(words), "{bad}: {said}");
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(wrong("http://127.0.0.1:4317", bad).contains("is a share"), "{bad}");
        }
    }

    #[tokio::test]
    async fn nothing_that_was_asked_for_makes_no_spans_and_stops_at_once() {
        let exporting = Exporting::begin(None, Vec::new()).unwrap();
        assert_eq!(exporting.spans().root("a", crate::trace::span::Kind::Internal).at(), None);
        assert!(exporting.stop().await);
    }
}
