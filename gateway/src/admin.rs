//! The admin port: is it alive, is it ready, how is it, and its numbers. For people and probes, not for devices.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the console, a page for people: see [`console`] |
//! | `/livez` | 200 as long as the program answers at all |
//! | `/readyz` | 200 if devices can be sent here, 503 with the reason otherwise; a gateway that stands by is ready |
//! | `/readyz/ingest` | 200 if it is ready and takes envelopes itself, 503 otherwise |
//! | `/statusz` | everything as JSON, each state with its age |
//! | `/metrics` | OpenMetrics text |
//! | `/devices` | who is connected, how each is known, and when each device was last there, as JSON |
//! | `POST /drain/SECONDS` | not ready from now on, and so many seconds later it stops as by SIGTERM |
//! | `POST /reload` | reads the configuration again, as SIGHUP does, and says what came of it: JSON, 200 if it was taken and 409 if not |
//! | `POST /refresh` | asks the source of statements now |
//! | `POST /relay/pause`, `/relay/resume` | the relay stands still, or goes on |
//! | `POST /refused/retry/NAME` | an envelope that the far end refused waits for it again |
//! | `POST /relay/rate/...` | so many bytes a second, `none` for any amount, `configured` |
//!
//! No authentication: it listens on loopback unless configured otherwise, shows no secret, and whoever reaches it can
//! delay what goes to the cloud, stop the gateway, and lose nothing of what it has. A page in a browser on this machine reaches it as
//! well: an order that comes from one (it says so itself, by `Origin`) is refused, and so is whoever calls the port by a name that is
//! not its own ([`console::hosts`]).

use std::future::Future;
use std::io;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use pithead_hop::identity::GatewayName;
use pithead_hop::program::admin::{AdminListener, ORDERS_COME_FROM_PROGRAMS, is_order_of_a_page};
use pithead_hop::program::clock;
use pithead_hop::program::reload::ReloadDesk;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::{since_boot, wall_ms};
use crate::commands::spool as spool_facts;
use crate::console::{self, Console};
use crate::devices::doors::Doors;
use crate::envelopes::passing::ToOwner;
use crate::envelopes::refused::{Refused, TakeError};
use crate::envelopes::relay::RelayReport;
use crate::envelopes::relay::control::{Cause, Control, Rate};
use crate::envelopes::replicated::Neighbour;
use crate::envelopes::retry::{Retry, RetryError};
use crate::envelopes::shares::Shares;
use crate::envelopes::spool::EnvelopeSpool;
use crate::health::{Health, Lamp};
use crate::keys::book::Book;
use crate::keys::history::History;
use crate::keys::refresh::SharedReport;
use crate::metrics::Metrics;
use crate::rates::Rates;
use crate::vitals::Vitals;

/// What the pages are made of.
#[derive(Debug)]
pub struct Facts {
    /// The site that is served.
    pub site: Site,
    /// This gateway.
    pub name: GatewayName,
    /// Operating time at the start.
    pub started: Duration,
    /// The lamps.
    pub health: Health,
    /// The numbers.
    pub metrics: Metrics,
    /// What has come and gone lately.
    pub rates: Rates,
    /// Clock, certificates, configuration, disk.
    pub vitals: Vitals,
    /// The keys that are served.
    pub book: Book,
    /// Statements ever accepted.
    pub history: Arc<History>,
    /// How refreshing goes.
    pub refresh: SharedReport,
    /// Wakes the refresh.
    pub poke: Arc<Notify>,
    /// What waits.
    pub spool: EnvelopeSpool,
    /// Where calls of devices are passed on to, if several gateways share the spool.
    pub to_owner: Option<ToOwner>,
    /// What the far end will never take.
    pub refused: Arc<Refused>,
    /// Sends that again.
    pub retry: Retry,
    /// What each device holds.
    pub shares: Shares,
    /// How the relay goes.
    pub relay: RelayReport,
    /// What people say to the relay, if there is one.
    pub control: Option<Control>,
    /// The ports for devices.
    pub doors: Arc<Doors>,
    /// Has the program stop, as a signal does.
    pub stop: CancellationToken,
    /// Orders to reload, and what came of the last one.
    pub reload: ReloadDesk,
    /// What the console remembers.
    pub console: Console,
}

/// The longest that a gateway goes on serving while it says that it is not ready.
pub const GRACE_MAX: Duration = Duration::from_secs(3600);

/// Serves the pages until `stop` resolves.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: AdminListener,
    facts: Arc<Facts>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/readyz/ingest", get(readyz_ingest))
        .route("/statusz", get(statusz))
        .route("/devices", get(devices))
        .route("/metrics", get(metrics))
        .route("/drain/{seconds}", post(drain))
        .route("/reload", post(reload))
        .route("/refresh", post(refresh))
        .route("/relay/pause", post(relay_pause))
        .route("/relay/resume", post(relay_resume))
        .route("/relay/rate/{rate}", post(relay_rate))
        .route("/refused/retry/{name}", post(refused_retry))
        .merge(console::routes())
        .layer(middleware::from_fn(orders_come_from_programs))
        .layer(middleware::from_fn_with_state(facts.clone(), console::by_known_names))
        .with_state(facts);
    match listener {
        AdminListener::Tcp(listener) => axum::serve(listener, router).with_graceful_shutdown(stop).await,
        AdminListener::Unix(listener, _file) => {
            axum::serve(listener, router).with_graceful_shutdown(stop).await
        }
    }
}

async fn readyz(State(facts): State<Arc<Facts>>) -> Response {
    if facts.health.is_ready() {
        return match facts.spool.elsewhere() {
            None => "ready\n".into_response(),
            Some(elsewhere) => format!("ready, and standing by: {elsewhere}\n").into_response(),
        };
    }
    let mut why = String::from("not ready\n");
    if facts.health.is_draining() {
        why.push_str("draining\n");
    }
    for (name, lamp) in facts.health.report() {
        why.push_str(&format!("{name}: {}, {}\n", lamp.level.name(), lamp.words));
    }
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

async fn readyz_ingest(state: State<Arc<Facts>>) -> Response {
    match state.spool.elsewhere() {
        Some(elsewhere) if state.health.is_ready() => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("standing by: {elsewhere}\n")).into_response()
        }
        _ => readyz(state).await,
    }
}

async fn statusz(State(facts): State<Arc<Facts>>) -> Response {
    let body = format!("{:#}\n", facts.status());
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn devices(State(facts): State<Arc<Facts>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{:#}\n", facts.devices())).into_response()
}

async fn metrics(State(facts): State<Arc<Facts>>) -> Response {
    facts.measure();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], facts.metrics.page()).into_response()
}

async fn drain(State(facts): State<Arc<Facts>>, Path(seconds): Path<u64>) -> Response {
    let grace = Duration::from_secs(seconds);
    if grace > GRACE_MAX {
        return (StatusCode::BAD_REQUEST, format!("at most {} s\n", GRACE_MAX.as_secs())).into_response();
    }
    tracing::warn!(event = "gateway.drain_ordered", grace_s = seconds);
    facts.health.drain();
    let stop = facts.stop.clone();
    tokio::spawn(async move {
        // Another order, or a signal, may be sooner.
        tokio::select! {
            () = tokio::time::sleep(grace) => stop.cancel(),
            () = stop.cancelled() => {}
        }
    });
    (StatusCode::ACCEPTED, "draining\n").into_response()
}

async fn refresh(State(facts): State<Arc<Facts>>) -> Response {
    facts.poke.notify_one();
    (StatusCode::ACCEPTED, "asked\n").into_response()
}

async fn reload(State(facts): State<Arc<Facts>>) -> Response {
    let Some(outcome) = facts.reload.order().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping\n").into_response();
    };
    let status = if outcome.is_taken() { StatusCode::OK } else { StatusCode::CONFLICT };
    (status, Json(outcome.json())).into_response()
}

async fn orders_come_from_programs(request: Request, next: Next) -> Response {
    if is_order_of_a_page(request.method(), request.headers()) {
        return (StatusCode::FORBIDDEN, ORDERS_COME_FROM_PROGRAMS).into_response();
    }
    next.run(request).await
}

async fn relay_pause(State(facts): State<Arc<Facts>>) -> Response {
    order(&facts, "paused", |control| control.pause(Cause::Hand, wall_ms())).await
}

async fn relay_resume(State(facts): State<Arc<Facts>>) -> Response {
    order(&facts, "resumed", Control::resume).await
}

async fn relay_rate(State(facts): State<Arc<Facts>>, Path(rate): Path<String>) -> Response {
    match Rate::from_str(&rate) {
        Ok(rate) => order(&facts, "rate", move |control| control.set_rate(rate)).await,
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

async fn refused_retry(State(facts): State<Arc<Facts>>, Path(name): Path<String>) -> Response {
    // Goes on if whoever asked goes away: an entry half way is one that somebody has to look at.
    let retry = facts.retry.clone();
    let wanted = name.clone();
    let sent = tokio::spawn(async move { retry.send_again(&wanted).await }).await;
    match sent {
        Ok(Ok(())) => {
            tracing::info!(event = "refused.sent_again", name);
            (StatusCode::OK, "waits in the spool again\n").into_response()
        }
        Ok(Err(error)) => {
            tracing::warn!(event = "refused.not_sent_again", name, %error);
            let status = match &error {
                RetryError::Take(TakeError::Missing(_)) => StatusCode::NOT_FOUND,
                RetryError::Take(TakeError::Io { .. } | TakeError::Replica(_))
                | RetryError::NotDurable(_)
                | RetryError::Copy(_)
                | RetryError::Stopping => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::CONFLICT,
            };
            (status, format!("{error}\n")).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Gives an order off the async threads: it is synced.
async fn order(
    facts: &Facts,
    what: &'static str,
    give: impl FnOnce(&Control) -> io::Result<bool> + Send + 'static,
) -> Response {
    let Some(control) = facts.control.clone() else {
        return (StatusCode::CONFLICT, "this gateway has no relay\n").into_response();
    };
    match tokio::task::spawn_blocking(move || give(&control)).await {
        Ok(Ok(new)) => {
            tracing::warn!(event = "relay.order", what, new);
            (StatusCode::OK, if new { "done\n" } else { "so it was already\n" }).into_response()
        }
        Ok(Err(error)) => {
            tracing::error!(event = "relay.orders_not_written", what, %error);
            let words = format!("in force, and forgotten at the next start: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, words).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

impl Facts {
    /// Who is there, and how much each device has sent.
    fn devices(&self) -> Value {
        let mut devices = self.doors.devices();
        let sent: serde_json::Map<String, Value> = self
            .shares
            .sent()
            .into_iter()
            .map(|(device, bytes)| (device.to_string(), json!(bytes)))
            .collect();
        devices["sent_bytes"] = Value::Object(sent);
        devices
    }

    /// The gateways that share the site's lanes, by name.
    fn gateways(&self) -> Vec<Value> {
        let owner = self.spool.owner();
        let gateway = |one: Neighbour| {
            let statement = one.presence.statement;
            json!({
                "takes_envelopes": owner.as_deref() == Some(one.name.as_str()),
                "name": one.name,
                "here": one.is_here,
                "present": one.is_present,
                "silent_s": one.silent_for.as_secs(),
                "address": one.address,
                "version": one.presence.version,
                "ready": one.presence.ready,
                "words": one.presence.words,
                "connections": one.presence.connections,
                "statement": statement.as_ref().map(|served| format!("{}.{}", served.epoch, served.sequence)),
                "digest": statement.map(|served| served.digest),
            })
        };
        self.spool.neighbours().into_iter().map(gateway).collect()
    }

    /// Everything, each state with its age.
    #[must_use]
    pub fn status(&self) -> Value {
        let now = since_boot();
        let age = |at: Duration| now.saturating_sub(at).as_secs();
        let lamp = |lamp: &Lamp| json!({ "level": lamp.level.name(), "words": lamp.words, "for_s": age(lamp.since) });
        let dimensions: serde_json::Map<String, Value> =
            self.health.report().iter().map(|(name, held)| ((*name).to_owned(), lamp(held))).collect();
        let report = self.refresh.get();
        let in_use = report.standing.as_ref().and_then(|standing| standing.in_use.as_ref());
        let book = self.book.current();
        let (held, relay) = (self.refused.held(), self.relay.get());
        let (summary, lately, in_force) = (self.health.summary(), self.rates.lately(), report.in_force);
        let at = |seconds: u64| (seconds > 0).then_some(seconds);
        let gateways = self.spool.is_replicated().then(|| self.gateways());
        let mut spool = spool_facts::facts(&self.spool, wall_ms());
        spool["growth_bytes_per_s"] = json!(lately.growth_bytes_per_s.round() as i64);
        spool["full_in_s"] = json!(lately.full_in_s.map(|seconds| seconds.round() as u64));
        let passing = self.to_owner.as_ref().map(ToOwner::now);
        spool["passing_on_calls"] = json!(passing.map(|(calls, ..)| calls));
        spool["passed_on_envelopes"] = json!(passing.map(|(_, envelopes, _)| envelopes));
        spool["large"] = json!(self.retry.copies.as_ref().map(|copies| {
            let facts = copies.facts();
            json!({ "store": facts.url, "copies": facts.copies, "bytes": facts.bytes, "trouble": facts.trouble })
        }));
        spool["committing_s"] = json!(self.spool.busy_for().map(|busy| busy.as_secs_f64()));
        json!({
            "program": "pithead-gateway",
            "version": env!("CARGO_PKG_VERSION"),
            "site": self.site.as_str(),
            "gateway": self.name.as_str(),
            "uptime_s": age(self.started),
            "ready": self.health.is_ready(),
            "draining": self.health.is_draining(),
            "level": summary.level.name(),
            "words": summary.words,
            "dimensions": dimensions,
            "rates": lately.as_json(),
            "reload": self.reload.last.json(now),
            "gateways": gateways,
            "ingest": self.doors.counts(),
            "keys": {
                "epoch": book.as_ref().map(|keys| keys.version().epoch),
                "sequence": book.as_ref().map(|keys| keys.version().sequence),
                "digest": book.as_ref().map(|keys| keys.digest().to_string()),
                "root_version": book.as_ref().map(|keys| keys.root_version()),
                "statements_known": self.history.len(),
                "refreshed_s_ago": report.good_at.map(age),
                "failure": report.failure.as_ref().map(|(reason, text, _)| format!("{}: {text}", reason.code())),
                "failed_s_ago": report.failure.as_ref().map(|(_, _, at)| age(*at)),
                "arn": in_use.map(|(arn, _)| arn.to_string()),
                "fingerprint": in_use.map(|(_, fingerprint)| fingerprint.to_string()),
                "issued_at_s": at(in_force.issued_at),
                "refresh_by_s": at(in_force.refresh_by),
                "expires_at_s": at(in_force.expires_at),
                "expires_in_s": at(in_force.expires_at).map(|end| end as i64 - clock::wall_s() as i64),
                "seal_until_s": at(in_force.seal_until),
                "root_expires_at_s": at(in_force.root_expires_at),
            },
            "tls": self.vitals.tls(),
            "clock": self.vitals.clock(in_force.issued_at),
            "disk": self.vitals.disk(),
            "config": self.vitals.config(),
            "spool": spool,
            "relay": {
                "up": relay.up,
                "paused": relay.paused.map(|pause| pause.words()),
                "paused_s_ago": relay.paused.map(|pause| wall_ms().saturating_sub(pause.at_ms) / 1000),
                "rate_bytes_per_s": self.control.as_ref().and_then(|control| control.pace().rate()),
                "in_flight_bytes": relay.in_flight_bytes,
                "acknowledged": relay.acknowledged,
                "acknowledged_s_ago": relay.acknowledged_at.map(age),
                "failure": relay.failure.as_ref().map(|(reason, text, _)| coded(*reason, text)),
                "failed_s_ago": relay.failure.as_ref().map(|(_, _, at)| age(*at)),
                "refused_records": held.records,
                "refused_bytes": held.bytes,
                "refused_capacity_bytes": self.refused.capacity(),
            },
        })
    }

    /// Brings the metrics up to date that are looked at rather than counted.
    pub fn measure(&self) {
        self.metrics.spool(&self.spool.stats(), self.spool.available_bytes(), wall_ms());
        if let Some((calls, envelopes, bytes)) = self.to_owner.as_ref().map(ToOwner::now) {
            self.metrics.passing_on(calls, envelopes, bytes);
        }
        let (devices, most) = self.shares.holding();
        let incomplete = self.retry.numbers.incomplete();
        self.metrics.lines(self.retry.numbers.in_memory(), incomplete.lines, incomplete.numbers);
        self.vitals.measure(&self.spool, self.refresh.get().in_force.issued_at);
        self.metrics.devices_holding(devices, most, self.shares.per_device());
        self.metrics.relay_rate(self.control.as_ref().and_then(|control| control.pace().rate()));
        self.metrics.port(&self.doors.stats());
        if let Some(good_at) = self.refresh.get().good_at {
            self.metrics.key_refresh_age(since_boot().saturating_sub(good_at).as_secs_f64());
        }
    }
}

/// With its code, which what the far end refused says itself.
fn coded(reason: Option<ErrorReason>, text: &str) -> String {
    match reason.map(ErrorReason::code) {
        Some(code) if text.starts_with(&code) => text.to_owned(),
        Some(code) => format!("{code}: {text}"),
        None => format!("PH-0: {text}"),
    }
}
