//! The console: one page for whoever stands in front of this gateway, at `/` of the admin port.
//!
//! Drawn by the server out of real numbers, complete without scripts: with them it refreshes itself, by one small script out of
//! this binary. Nothing is fetched from anywhere else, and the page's policy says so to the browser. The admin port has no
//! authentication, so the page gives no orders, and answers to known names alone (see [`hosts`]).
//!
//! ```text
//! intake ──> activity   what came of each device      ┐
//! once a second ──> history   readings and outages    ├─> view (plain values) ─> words, plot, page ─> HTML
//! log ──> recent   the last events                    ┘
//! ```
//!
//! It shows what the gateway knows, and that is never what envelopes hold: they are sealed.

pub mod activity;
pub mod devices;
pub mod history;
pub mod hosts;
pub mod page;
pub mod plot;
pub mod view;
pub mod words;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pithead_hop::program::recent::Recent;
use pithead_sealing::DeviceId;
use tokio_util::sync::CancellationToken;

use crate::admin::Facts;
use crate::clock::since_boot;
use activity::Activity;
use history::{History, Reading};
use view::{Asked, View};

/// How often the gateway is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the lines are asked what is missing: it walks over all of them, under their lock.
const ASK_LINES: Duration = Duration::from_secs(10);
/// Characters of a filter: as many as a device's name has.
const FILTER_MAX: usize = 63;

/// Everything that a browser may do with the page: show it, by our own style sheet, and let our own script ask for it again.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action \
                      'self'; base-uri 'none'; frame-ancestors 'none'";

/// How far back plots reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    name: &'static str,
    words: &'static str,
    seconds: u64,
}

/// What can be chosen.
pub const SPANS: [Span; 4] = [
    Span { name: "5min", words: "5 minutes", seconds: 300 },
    Span { name: "1h", words: "hour", seconds: 3_600 },
    Span { name: "24h", words: "day", seconds: 86_400 },
    Span { name: "7d", words: "week", seconds: 604_800 },
];

impl Span {
    /// Its name in the address.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// For people: the last so much.
    #[must_use]
    pub fn words(self) -> &'static str {
        self.words
    }

    /// Its length.
    #[must_use]
    pub fn length(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn named(name: &str) -> Option<Self> {
        SPANS.into_iter().find(|span| span.name == name)
    }
}

/// What the console remembers.
#[derive(Debug, Default)]
pub struct Console {
    /// What came of each device.
    pub activity: Activity,
    /// The last events.
    pub recent: Recent,
    /// Names by which the admin port may be called.
    pub names: Vec<String>,
    history: Mutex<History>,
    unexplained: Mutex<Arc<HashMap<DeviceId, (u64, u64)>>>,
}

impl Console {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(activity: Activity, recent: Recent, names: Vec<String>) -> Self {
        Self { activity, recent, names, ..Self::default() }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    fn unexplained(&self) -> Arc<HashMap<DeviceId, (u64, u64)>> {
        lock(&self.unexplained).clone()
    }

    /// Looks at the gateway, for the history.
    fn look(&self, facts: &Facts, now: Duration) {
        let (reading, latencies) = (self.reading(facts, now), self.activity.totals().2);
        self.history().take(reading, latencies);
    }

    fn reading(&self, facts: &Facts, now: Duration) -> Reading {
        let (came, came_bytes, _) = self.activity.totals();
        let (stats, relay) = (facts.spool.stats(), facts.relay.get());
        Reading {
            at: now,
            came,
            came_bytes,
            left: relay.acknowledged,
            left_bytes: facts.metrics.relayed_bytes(),
            waiting: stats.records,
            waiting_bytes: if stats.records == 0 { 0 } else { stats.bytes },
            link: view::link(facts.control.is_some(), &relay),
        }
    }
}

/// A panic while a lock was held leaves whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at the gateway once a second until told to stop.
pub async fn watch(facts: Arc<Facts>, stop: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut asked: Option<Duration> = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = stop.cancelled() => return,
        }
        let now = since_boot();
        facts.console.look(&facts, now);
        if asked.is_none_or(|at| now >= at + ASK_LINES) {
            asked = Some(now);
            let numbers = facts.retry.numbers.clone();
            if let Ok(found) = tokio::task::spawn_blocking(move || numbers.unexplained()).await {
                *lock(&facts.console.unexplained) = Arc::new(found);
            }
        }
    }
}

/// The page and what it is made of.
pub fn routes() -> Router<Arc<Facts>> {
    Router::new()
        .route("/", get(console))
        .route(
            "/console/style.css",
            get(async || asset("text/css; charset=utf-8", include_str!("style.css"))),
        )
        .route(
            "/console/refresh.js",
            get(async || asset("text/javascript; charset=utf-8", include_str!("refresh.js"))),
        )
        .route("/console/icon.svg", get(async || asset("image/svg+xml", include_str!("icon.svg"))))
}

async fn console(State(facts): State<Arc<Facts>>, uri: Uri) -> Response {
    let asked = asked(uri.query().unwrap_or(""));
    let view = View::of(&facts, &asked);
    asset("text/html; charset=utf-8", page::page(&view).into_string())
}

fn asset(kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    let set = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in set {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Turns away whoever calls the port by a name that is not its own: see [`hosts`].
pub async fn by_known_names(State(facts): State<Arc<Facts>>, request: Request, next: Next) -> Response {
    // One that is not even text is nobody's name.
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or(""));
    if hosts::may_call(request.uri().path(), host, &facts.console.names) {
        return next.run(request).await;
    }
    let words = "this port answers to localhost, to addresses, and to the names in [admin] names of the gateway's configuration\n";
    (StatusCode::MISDIRECTED_REQUEST, words).into_response()
}

/// What the address asks for. What it gets wrong counts as not asked.
fn asked(query: &str) -> Asked {
    let mut asked = Asked::default();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "span" => asked.span = Span::named(value),
            "device" => asked.device = plain(value).trim().chars().take(FILTER_MAX).collect(),
            _ => {}
        }
    }
    asked
}

/// A value out of a query.
fn plain(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.first_chunk::<2>().filter(|_| *first == b'%');
        let decoded = hex.and_then(|digits| hex::decode(digits).ok()).and_then(|byte| byte.first().copied());
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_asks_for_a_span_and_a_device_and_nonsense_asks_for_nothing() {
        let of = |query: &str| asked(query);
        assert_eq!(
            of("span=24h&device=truck-1"),
            Asked { span: Span::named("24h"), device: "truck-1".into() }
        );
        assert_eq!(of("device=+tr%75ck%2D1+").device, "truck-1");
        assert_eq!(of("device=%3Cscript%3E").device, "<script>");
        assert_eq!(of("device=%zz%4").device, "%zz%4");
        assert_eq!(of("span=9y&x&&=&device"), Asked::default());
        assert_eq!(of(&format!("device={}", "a".repeat(9_000))).device.len(), FILTER_MAX);
    }

    #[test]
    fn the_policy_lets_nothing_in_from_elsewhere_and_nothing_inline() {
        let response = asset("text/html; charset=utf-8", String::new());
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
    }
}
