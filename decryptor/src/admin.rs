//! Health and metrics over HTTP, on loopback: `/livez`, `/readyz`, `/statusz`, `/metrics`; and `POST /reload`, which reads the
//! configuration again, as SIGHUP does, and says what came of it: JSON, 200 if it was taken and 409 if not. An order that comes from a page in a
//! browser says so itself, by `Origin`, and is refused.

use crate::authority::{SiteStanding, rfc3339};
use crate::books::Books;
use crate::kms::{KmsCalls, KmsOperation};
use crate::metrics::{KmsLabel, Metrics, Outcome, SiteLabel};
use crate::source::replica::Failing;
use crate::unwrap::DataKeys;
use crate::vitals::{Health, Rates};
use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use pithead_hop::accept::AcceptHandle;
use pithead_hop::program::admin::{
    AdminAddress, AdminListener, ORDERS_COME_FROM_PROGRAMS, is_order_of_a_page,
};
use pithead_hop::program::disk::Room;
use pithead_hop::program::health::Level;
use pithead_hop::program::metrics::advance;
use pithead_hop::program::reload::{Orders, ReloadDesk};
use pithead_hop::program::{ProgramError, clock};
use pithead_hop::tls::Expiries;
use pithead_sealing::Site;
use pithead_sealing::trust::UnixTime;
use serde_json::{Value, json};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where the program stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Reading its books.
    Starting = 0,
    /// Taking envelopes.
    Serving = 1,
    /// Finishing what it has.
    Stopping = 2,
    /// The disk cannot be believed any more.
    Failed = 3,
}

impl Phase {
    const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

/// What the pages are drawn from.
#[derive(Debug)]
pub struct Status {
    phase: AtomicU8,
    metrics: Arc<Metrics>,
    data_keys: Arc<DataKeys>,
    kms: Option<Arc<KmsCalls>>,
    accept: Option<AcceptHandle>,
    sink: PathBuf,
    data: PathBuf,
    health: Health,
    rates: Rates,
    started: Duration,
    reloads: Mutex<Reloads>,
    books: OnceLock<Arc<ArcSwap<Books>>>,
    authority: OnceLock<Arc<ArcSwap<Vec<SiteStanding>>>>,
    bucket: OnceLock<Bucket>,
    /// Orders to reload, and what came of the last one.
    pub reload: ReloadDesk,
}

/// A source in a bucket, for the status page.
#[derive(Debug)]
pub struct Bucket {
    /// Where bundles come from.
    pub source: String,
    /// The queue that tells of them.
    pub queue: Option<String>,
    /// Who this is.
    pub replica: String,
    /// Its sites.
    pub sites: Vec<Site>,
    /// What does not work at the moment.
    pub failing: Failing,
}

impl Bucket {
    fn json(&self, metrics: &Metrics) -> Value {
        let bucket = &metrics.bucket;
        let site = |site: &Site| {
            let label = SiteLabel { site: site.to_string() };
            json!({
                "site": site.as_str(),
                "number": bucket.ledger_number.get_or_create(&label).get(),
                "unfinished": bucket.unfinished.get_or_create(&label).get(),
                "oldest_s": bucket.oldest_for(&label, clock::wall_s()),
            })
        };
        json!({
            "source": self.source,
            "queue": self.queue,
            "replica": self.replica,
            "ledgers": self.sites.iter().map(site).collect::<Vec<_>>(),
            "waiting": bucket.waiting.get(),
            "entries_won": bucket.entries_won.get(),
            "entries_lost": bucket.entries_lost.get(),
            "source_bytes": bucket.source_bytes.get(),
            "sink_bytes": bucket.sink_bytes.get(),
            "failing": self.failing.now(),
        })
    }
}

#[derive(Debug)]
struct Reloads {
    expiries: Expiries,
    loaded_at: Duration,
    last_good: bool,
}

impl Status {
    /// Of a program that is starting.
    #[must_use]
    pub fn new(
        metrics: Arc<Metrics>,
        data_keys: Arc<DataKeys>,
        kms: Option<Arc<KmsCalls>>,
        accept: Option<AcceptHandle>,
        (sink, data): (PathBuf, PathBuf),
        expiries: Expiries,
    ) -> (Arc<Self>, Orders) {
        metrics.tls.show(&expiries);
        if let Some(accept) = &accept {
            metrics.rpc.watch(accept.calls());
        }
        for operation in KmsOperation::ALL {
            if let Some(calls) = &kms {
                metrics.kms_times.watch(operation.label(), calls.times(operation));
            }
        }
        let started = clock::since_boot();
        let (reload, orders) = ReloadDesk::open();
        let status = Arc::new(Self {
            health: Health::new(Arc::clone(&metrics)),
            rates: Rates::default(),
            started,
            reloads: Mutex::new(Reloads { expiries, loaded_at: started, last_good: true }),
            books: OnceLock::new(),
            data,
            phase: AtomicU8::new(Phase::Starting as u8),
            metrics,
            data_keys,
            kms,
            accept,
            sink,
            authority: OnceLock::new(),
            bucket: OnceLock::new(),
            reload,
        });
        (status, orders)
    }

    /// Shows how the authority's sites stand as well.
    pub fn show_authority(&self, standing: Arc<ArcSwap<Vec<SiteStanding>>>) {
        // Set once, by whoever starts the program.
        let _ = self.authority.set(standing);
    }

    /// Shows a source in a bucket as well.
    pub fn show_bucket(&self, bucket: Bucket) {
        // Set once, by whoever starts the program.
        let _ = self.bucket.set(bucket);
    }

    /// Shows the statements as well.
    pub fn show_books(&self, books: Arc<ArcSwap<Books>>) {
        // Set once, by whoever starts the program.
        let _ = self.books.set(books);
    }

    /// The lamps.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What has come lately.
    #[must_use]
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// A reload was done, with certificates of these ages; or it was refused.
    pub fn reloaded(&self, in_force: Option<Expiries>) {
        self.metrics.config.reloaded(in_force.is_some(), clock::wall_s());
        let mut reloads = self.reloads.lock().unwrap_or_else(PoisonError::into_inner);
        reloads.last_good = in_force.is_some();
        if let Some(expiries) = in_force {
            self.metrics.tls.show(&expiries);
            (reloads.expiries, reloads.loaded_at) = (expiries, clock::since_boot());
        }
    }

    /// Moves on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        match phase {
            Phase::Starting => {}
            Phase::Serving if self.accept.is_none() => {
                self.health.set("intake", Level::Ok, "the bucket is read");
            }
            Phase::Serving => self.health.set("intake", Level::Ok, "gateways are served"),
            Phase::Stopping => self.health.drain(),
            Phase::Failed => {
                self.health.drain();
                self.health.set(
                    "disk",
                    Level::Down,
                    "the ledger or the sink cannot be believed any more; restart when the disk is mended",
                );
            }
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            2 => Phase::Stopping,
            _ => Phase::Failed,
        }
    }

    /// Takes over the counters that other parts keep for themselves.
    fn gather(&self) {
        let counters = self.data_keys.counters();
        advance(&self.metrics.data_key_hits, counters.hits());
        advance(&self.metrics.unwraps, counters.unwraps());
        advance(&self.metrics.unwrap_failures, counters.failures());
        advance(&self.metrics.over_budget, counters.over_budget());
        for (operation, outcome, count) in self.kms.iter().flat_map(|calls| calls.snapshot()) {
            if operation == KmsOperation::Decrypt {
                advance(&self.metrics.kms_decrypt_calls.get_or_create(&KmsLabel { outcome }), count);
            }
        }
        self.metrics.data_keys_held.set(i64::try_from(self.data_keys.held()).unwrap_or(i64::MAX));
        if let Some(accept) = &self.accept {
            self.metrics.port(&accept.stats());
        }
    }

    fn json(&self) -> Value {
        self.gather();
        let metrics = &self.metrics;
        let envelopes = |outcome| metrics.envelopes_with(outcome);
        let summary = self.health.lamps().summary();
        let (tls, config) = self.reloads_json();
        let peers = self.accept.iter().flat_map(AcceptHandle::peers);
        let peers: Vec<String> = peers.map(|peer| peer.id.to_string()).collect();
        json!({
            "program": "pithead-decryptor",
            "version": env!("CARGO_PKG_VERSION"),
            "phase": self.phase().word(),
            "sink": self.sink.display().to_string(),
            "uptime_s": clock::since_boot().saturating_sub(self.started).as_secs(),
            "ready": self.is_ready(),
            "draining": self.health.lamps().is_draining(),
            "level": summary.level.name(),
            "words": summary.words,
            "dimensions": self.dimensions(),
            "committing_s": metrics.writing.busy_for().map(|busy| busy.as_secs_f64()),
            "rates": self.rates.as_json(),
            "sites": self.books.get().map(|books| sites_json(&books.load())),
            "tls": tls,
            "config": config,
            "reload": self.reload.last.json(clock::since_boot()),
            "disk": room(&self.data),
            "sink_disk": room(&self.sink),
            "envelopes": {
                "applied": envelopes(Outcome::Applied),
                "duplicate": envelopes(Outcome::Duplicate),
                "conflict": envelopes(Outcome::Conflict),
                "conflict_unkept": envelopes(Outcome::ConflictUnkept),
                "refused": envelopes(Outcome::Refused),
                "not_admitted": envelopes(Outcome::NotAdmitted),
                "retry": envelopes(Outcome::Retry),
                "under_way": metrics.under_way.get(),
                "oldest_under_way_s": metrics.oldest_under_way.get(),
            },
            "signatures": {
                "signed": metrics.envelopes_judged("signed"),
                "unsigned": metrics.envelopes_judged("unsigned"),
                "unknown_key": metrics.envelopes_judged("unknown-key"),
                "invalid": metrics.envelopes_judged("invalid"),
                "unsigned_refused": metrics.envelopes_judged("unsigned-refused"),
                "signed_by_revoked": metrics.envelopes_judged("signed-by-revoked"),
                "unknown_key_refused": metrics.envelopes_judged("unknown-key-refused"),
                "devices_registered": metrics.devices_registered.get(),
                "registry_refused": metrics.device_registry_refused.get() > 0,
            },
            "records": metrics.records.get(),
            "sealed_bytes": metrics.sealed_bytes.get(),
            "plaintext_bytes": metrics.plaintext_bytes.get(),
            "unwraps": metrics.unwraps.get(),
            "data_key_hits": metrics.data_key_hits.get(),
            "data_keys_held": metrics.data_keys_held.get(),
            "kms_decrypt_calls": self.kms.as_ref().map(|calls| calls.total(KmsOperation::Decrypt)),
            "lines": metrics.lines.get(),
            "statement_sequence": metrics.statement_sequence.get(),
            "authority": self.authority.get().map(|standing| authority_json(&standing.load())),
            "frozen_devices": metrics.frozen_devices.get(),
            "unknown_statement_devices": metrics.unknown_statement_devices.get(),
            "peers": peers,
            "bucket": self.bucket.get().map(|bucket| bucket.json(metrics)),
        })
    }
}

impl Status {
    /// Serving, and nothing that is needed is down.
    fn is_ready(&self) -> bool {
        self.phase() == Phase::Serving && self.health.lamps().is_ready()
    }

    fn dimensions(&self) -> Value {
        let now = clock::since_boot();
        let lamps = self.health.lamps().report();
        let lamps = lamps.iter().map(|(name, lamp)| {
            let for_s = now.saturating_sub(lamp.since).as_secs();
            ((*name).to_owned(), json!({ "level": lamp.level.name(), "words": lamp.words, "for_s": for_s }))
        });
        Value::Object(lamps.collect())
    }

    fn reloads_json(&self) -> (Value, Value) {
        let reloads = self.reloads.lock().unwrap_or_else(PoisonError::into_inner);
        let Expiries { own, client_ca, crl } = reloads.expiries;
        let now = i64::try_from(clock::wall_s()).unwrap_or(i64::MAX);
        let tls = json!({
            "certificate_expires_at_s": own,
            "certificate_expires_in_s": own.map(|end| end.saturating_sub(now)),
            "client_ca_expires_at_s": client_ca,
            "crl_next_update_s": crl,
        });
        let loaded_s_ago = clock::since_boot().saturating_sub(reloads.loaded_at).as_secs();
        let last_reload = if reloads.last_good { "ok" } else { "refused" };
        (tls, json!({ "loaded_s_ago": loaded_s_ago, "last_reload": last_reload }))
    }
}

fn room(path: &std::path::Path) -> Value {
    let room = Room::of(path).ok();
    json!({
        "size_bytes": room.map(|room| room.size_bytes),
        "available_bytes": room.map(|room| room.available_bytes),
    })
}

fn sites_json(books: &Books) -> Value {
    let sites = books.served().iter().map(|(site, published)| {
        let statement = &published.statement;
        json!({
            "site": site.as_str(),
            "sequence": statement.sequence,
            "issued_at_s": statement.issued_at.as_secs(),
            "refresh_by_s": statement.refresh_by.as_secs(),
            "expires_at_s": statement.expires_at.as_secs(),
        })
    });
    sites.collect()
}

fn authority_json(standing: &[SiteStanding]) -> Value {
    let now = UnixTime(clock::wall_s());
    let site = |site: &SiteStanding| {
        json!({
            "site": site.site.as_str(), "sequence": site.sequence, "issued_at": rfc3339(site.issued_at),
            "age_s": now.since(site.issued_at), "due_at": rfc3339(site.due_at),
            "retry_at": site.retry_at.map(rfc3339),
        })
    };
    standing.iter().map(site).collect()
}

async fn livez(State(status): State<Arc<Status>>) -> impl IntoResponse {
    match status.phase() {
        Phase::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed\n"),
        Phase::Starting | Phase::Serving | Phase::Stopping => (StatusCode::OK, "ok\n"),
    }
}

async fn readyz(State(status): State<Arc<Status>>) -> impl IntoResponse {
    if status.is_ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let mut why = format!("not ready\n{}\n", status.phase().word());
    for (name, lamp) in status.health.lamps().report() {
        why.push_str(&format!("{name}: {}, {}\n", lamp.level.name(), lamp.words));
    }
    (StatusCode::SERVICE_UNAVAILABLE, why)
}

async fn statusz(State(status): State<Arc<Status>>) -> impl IntoResponse {
    Json(status.json())
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    status.gather();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], status.metrics.text())
}

async fn reload(State(status): State<Arc<Status>>) -> Response {
    let Some(outcome) = status.reload.order().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the decryptor is stopping\n").into_response();
    };
    let code = if outcome.is_taken() { StatusCode::OK } else { StatusCode::CONFLICT };
    (code, Json(outcome.json())).into_response()
}

async fn orders_come_from_programs(request: Request, next: Next) -> Response {
    if is_order_of_a_page(request.method(), request.headers()) {
        return (StatusCode::FORBIDDEN, ORDERS_COME_FROM_PROGRAMS).into_response();
    }
    next.run(request).await
}

/// The bound admin port.
#[derive(Debug)]
pub struct Admin {
    listener: AdminListener,
    address: AdminAddress,
}

impl Admin {
    /// Takes the port, or the socket.
    pub async fn bind(address: &AdminAddress) -> Result<Self, ProgramError> {
        let listener = address.bind().await?;
        let address = listener.address().unwrap_or_else(|| address.clone());
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Serves until `stop`.
    pub async fn serve(self, status: Arc<Status>, stop: CancellationToken) -> io::Result<()> {
        let pages = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/statusz", get(statusz))
            .route("/metrics", get(metrics))
            .route("/reload", post(reload))
            .layer(middleware::from_fn(orders_come_from_programs))
            .with_state(status);
        let stop = stop.cancelled_owned();
        match self.listener {
            AdminListener::Tcp(listener) => axum::serve(listener, pages).with_graceful_shutdown(stop).await,
            AdminListener::Unix(listener, _file) => {
                axum::serve(listener, pages).with_graceful_shutdown(stop).await
            }
        }
    }
}
