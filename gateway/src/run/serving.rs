//! A gateway that serves: its tasks, and how they are started and stopped.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pithead_hop::accept::{Acceptor, Limits};
use pithead_hop::identity::GatewayName;
use pithead_hop::ingest::{IngestServer, UploadStore};
use pithead_hop::program::clock::wall_s;
use pithead_hop::program::config::Duration as ConfigDuration;
use pithead_hop::program::human;
use pithead_hop::program::recent::Recent;
use pithead_hop::program::reload::ReloadDesk;
use pithead_hop::program::supervisor::{self, Asked};
use pithead_hop::program::traces::{Exporting, FLUSH};
use pithead_hop::program::{ExitCode, ProgramError, files, grpc_health};
use pithead_hop::status::reason_of_trust;
use pithead_hop::tls::PeerTls;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::Recovery;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::directory::DataDir;
use super::material::Material;
use super::neighbours::Neighbours;
use super::owning::{self, Owning};
use super::stopping::part;
use crate::admin::{self, Facts};
use crate::clock::{GatewayClock, since_boot};
use crate::config::{self, Config};
use crate::console::activity::Activity;
use crate::console::{self, Console};
use crate::devices::doors::{Built, Doors, Ports};
use crate::devices::enroll::{self, Enrolment, Issuing, Told};
use crate::envelopes::budgets::Budgets;
use crate::envelopes::copies::Copies;
use crate::envelopes::followed::Followed;
use crate::envelopes::idle::Idle;
use crate::envelopes::intake::{Parts, SpoolIntake};
use crate::envelopes::numbers::Numbers;
use crate::envelopes::passing::{self, PassingOn, ToOwner};
use crate::envelopes::refused::Refused;
use crate::envelopes::relay::bundles::{Sender, StoreTarget, spool_id};
use crate::envelopes::relay::control::Control;
use crate::envelopes::relay::{Relay, RelayReport, Target, Way};
use crate::envelopes::retry::Retry;
use crate::envelopes::shares::{self, Shares};
use crate::envelopes::spool::{self, EnvelopeSpool};
use crate::envelopes::uploads;
use crate::health::{Health, Level};
use crate::keys::book::Book;
use crate::keys::history::History;
use crate::keys::keeper::{Keeper, OpenError, Origin};
use crate::keys::refresh::{Change, Intervals, NextChange, Refresh, SharedReport};
use crate::keys::service;
use crate::keys::spki_source::{KmsSpkis, SpkiSource};
use crate::keys::statement_source::{BundleFile, StatementSource, Upstream};
use crate::kms::Kms;
use crate::metrics::{Dimension, Metrics};
use crate::vitals::Vitals;

/// How often the disk's lamp is looked after.
const DISK_LOOK: Duration = Duration::from_secs(1);
/// How often lines are looked for that were quiet for long.
const IDLE_LOOK: Duration = Duration::from_secs(3600);
/// Below this share of the spool's capacity, in percent, the disk's lamp is not green.
const DISK_LOW_PERCENT: u64 = 30;

/// What each service needs, for whoever asks the gRPC health service.
const SERVICES: &[grpc_health::Service] = &[
    ("", &["ingest", "keys", "disk"]),
    ("pithead.ingest.v1.IngestService", &["ingest", "disk"]),
    ("pithead.keys.v1.KeyService", &["ingest", "keys"]),
];

/// What runs.
pub(super) struct Serving {
    health: Health,
    /// Wakes the refresh of keys.
    pub(super) poke: Arc<Notify>,
    /// What this gateway is called.
    pub(super) name: GatewayName,
    /// Told of reloads.
    pub(super) vitals: Vitals,
    doors: Arc<Doors>,
    /// What a reload brings to the refresh of keys.
    next_source: NextChange,
    keys_tls: Option<watch::Sender<Arc<ClientConfig>>>,
    relay_tls: Option<watch::Sender<Arc<ClientConfig>>>,
    peers: watch::Sender<PeerTls>,
    relay_target: Option<watch::Sender<Target>>,
    relay_store: Option<watch::Sender<StoreTarget>>,
    control: Control,
    shares: Shares,
    budgets: Budgets,
    issuing: Option<Arc<ArcSwap<Issuing>>>,
    spool: EnvelopeSpool,
    intake: (CancellationToken, Vec<JoinHandle<()>>),
    relay: (CancellationToken, Option<JoinHandle<()>>),
    traces: Exporting,
    admin: (CancellationToken, JoinHandle<()>),
    /// Fed until the very end: stopping has limits of its own.
    supervisor: (CancellationToken, JoinHandle<()>),
}

impl Serving {
    /// Starts everything. When this returns, devices are served. Whoever is told to stop by its admin port cancels `stop`.
    pub(super) async fn start(
        config: &Config,
        material: Material,
        data: &DataDir,
        stop: CancellationToken,
        reload: ReloadDesk,
        recent: Recent,
    ) -> Result<Self, ProgramError> {
        let started = since_boot();
        let metrics = Metrics::new();
        let health = Health::new(metrics.clone(), started);
        let vitals = Vitals::new(
            metrics.clone(),
            config.gateway.data_dir.clone(),
            config.trust.trusted_clock,
            material.server.expiries(),
        );

        let traces = traces(config, &material)?;
        metrics.traces(traces.counts());
        let followed = Followed::new(traces.spans());

        // Both ports first: nothing on disk is touched by a second gateway that was started by mistake.
        let files = files::raise_limit();
        let (limits, network_limits, room) = config.fitted(files);
        if let Some(room) = room {
            tracing::warn!(
                event = "accept.few_files",
                files,
                connections = room,
                asked = config.asked_connections(),
                "raise the hard limit of open files (LimitNOFILE), or lower `connections` in [ingest.limits] and [network.limits]"
            );
        }
        let registry = data.devices().read()?;
        let built = Built::new(material.server.clone(), &config.gateway.site, &registry)?;
        let registry = Arc::new(ArcSwap::from_pointee(registry));
        let acceptor = Acceptor::bind(config.ingest.listen, built.certificate.clone(), limits).await?;
        let network = match config.network.iter().zip(network_limits).next() {
            Some((network, limits)) => {
                Some(Acceptor::bind(network.listen, built.network.clone(), limits).await?)
            }
            None => None,
        };
        let enroll = enroll_port(config, &material, &built).await?;
        let admin_port = config.admin.listen.bind().await?;

        // Key path.
        let disk_failed = |error: &dyn std::fmt::Display| {
            ProgramError::new(ErrorReason::DiskFailed, error.to_string()).affects("keys cannot be served")
        };
        let (history, damaged) = History::open(&data.history()).map_err(|error| disk_failed(&error))?;
        for path in damaged {
            tracing::error!(event = "key.history_damaged", path = %path.display());
        }
        let history = Arc::new(history);
        let book = Book::default();
        let keeper = open_keeper(config, &material, data, &history, &book, &metrics).await?;
        let watched = |tls: &Option<Arc<ClientConfig>>| tls.clone().map(watch::Sender::new);
        let (keys_tls, relay_tls) = (watched(&material.keys), watched(&material.relay));
        let (poke, report) = (Arc::new(Notify::new()), SharedReport::default());
        let next_source = NextChange::default();
        let refresh = Refresh {
            keeper,
            source: source(config, keys_tls.as_ref())?,
            inbox: data.inbox(),
            intervals: intervals(config),
            clock: GatewayClock::start(config.trust.trusted_clock),
            health: health.clone(),
            metrics: metrics.clone(),
            report: report.clone(),
            history: history.clone(),
            poke: poke.clone(),
            next: next_source.clone(),
            spans: traces.spans(),
        };

        // Envelope path.
        let (spool, recovery) = match owning::joining(config, &material.name)? {
            None => {
                let (spool, recovery) = spool::open(&data.spool(), &config.spool)?;
                tracing::info!(
                    event = "spool.recovered",
                    records = recovery.records,
                    truncated_bytes = recovery.truncated_bytes,
                    corrupt_records = recovery.corrupt_records,
                );
                (spool, recovery)
            }
            Some(joining) => (owning::join(joining, data.spool(), &config.spool).await?, Recovery::default()),
        };
        metrics.spool_corrupt(recovery.corrupt_records);
        let shares = Shares::new(per_device(config), config.spool.max_size.get());
        let budgets = Budgets::new(config.ingest.per_device.sessions());
        let conflict_bytes = config.spool.conflicts_per_device.get();
        let idle = Idle::open(&data.idle()).map_err(|error| disk_failed(&error))?;
        let large = UploadStore::open(&data.uploads(), config.uploads, since_boot())
            .map_err(|error| disk_failed(&error))?;
        let numbers = Numbers::open(data.lines(), idle, &spool, conflict_bytes, shares.clone(), &large)
            .map_err(|error| disk_failed(&error))?;
        let refused_size = config.relay.as_ref().map_or(0, |relay| relay.refused_size.get());
        let refused = Refused::open(&data.refused(), refused_size, metrics.clone(), shares.clone())
            .and_then(|area| area.with_replica(spool.replica()));
        let refused = Arc::new(refused.map_err(|error| disk_failed(&error))?);
        let control =
            Control::open(data.orders(), configured_rate(config)).map_err(|error| disk_failed(&error))?;
        for head in recovery.corrupt.iter().flat_map(|range| &range.heads) {
            if let Some(identity) = numbers.quarantined(head) {
                tracing::error!(event = "spool.envelope_damaged", %identity);
            }
        }
        let activity = Activity::default();
        let clean = recovery.corrupt_records == 0;
        uploads::claim(&large, &numbers, &refused, clean).map_err(|error| disk_failed(&error))?;
        let (intake_stop, relay_stop, admin_stop) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let copies = copies(config, &large, &metrics, &intake_stop)?;
        let intake = Arc::new(SpoolIntake::start(Parts {
            gateway: material.name.clone(),
            history: history.clone(),
            book: book.clone(),
            budgets: budgets.clone(),
            numbers: numbers.clone(),
            shares: shares.clone(),
            spool: spool.clone(),
            uploads: large.clone(),
            copies: copies.clone(),
            metrics: metrics.clone(),
            registry: registry.clone(),
            activity: activity.clone(),
            followed: followed.clone(),
        }));

        // From here on nothing can fail.
        let keys = service::serve(&config.trust.authority, &config.gateway.site, &book, intake_stop.clone());
        let ingest = IngestServer::new(intake, config.ingest.envelopes, intake_stop.clone());
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let peers = watch::Sender::new(material.peers.clone());
        let keys = Routes::new(keys.into_service());
        let (routes, to_owner) = if spool.is_replicated() {
            acceptor.gateways_bring_devices();
            let to_owner = ToOwner::new(passing::Parts {
                spool: spool.clone(),
                site: config.gateway.site.clone(),
                gateway: material.name.clone(),
                tls: peers.subscribe(),
                metrics: metrics.clone(),
                stop: intake_stop.clone(),
            });
            let service = PassingOn::new(ingest, to_owner.clone()).into_service();
            (keys.add_service(service), Some(to_owner))
        } else {
            (keys.add_service(ingest.into_service()), None)
        };
        let mut routes = routes.add_service(health_service);
        if config.ingest.reflection {
            routes = routes.add_service(reflection()?);
        }
        let ports = Ports {
            certificate: acceptor.handle(),
            network: network.as_ref().map(Acceptor::handle),
            enroll: enroll.as_ref().map(|(port, ..)| port.handle()),
        };
        for port in
            [Some(&ports.certificate), ports.network.as_ref(), ports.enroll.as_ref()].into_iter().flatten()
        {
            metrics.calls_of(port.calls());
            port.trace(traces.spans());
        }
        let address = acceptor.local_addr();
        if let Some(network) = &network {
            tracing::info!(event = "network.listening", address = %network.local_addr());
        }
        let mut served = vec![serve(acceptor, routes.clone(), &intake_stop)];
        served.extend(network.map(|network| serve(network, routes, &intake_stop)));
        let issuing = enroll.as_ref().map(|(_, issuing)| issuing.clone());
        served.extend(enroll.map(|(port, issuing)| {
            tracing::info!(event = "enroll.listening", address = %port.local_addr());
            let (book, metrics) = (book.clone(), metrics.clone());
            let enrolment = Enrolment::new(data.devices(), issuing, book, metrics, wall_s);
            serve(port, Routes::new(enrolment.into_service()), &intake_stop)
        }));
        metrics.registry_good(true);
        let doors = Arc::new(Doors::new(config.gateway.site.clone(), built, registry, ports));
        let watch = doors.clone().follow(data.devices(), metrics.clone(), intake_stop.clone());
        let idle = put_idle_lines_away(numbers.clone(), intake_stop.clone());
        let follow = grpc_health::follow(health.lamps().clone(), reporter, SERVICES, intake_stop.clone());
        let disk = look_after_disk(health.clone(), spool.clone(), copies.clone(), intake_stop.clone());
        let retry = Retry {
            refused: refused.clone(),
            numbers: numbers.clone(),
            spool: spool.clone(),
            uploads: large.clone(),
            copies: copies.clone(),
        };
        if let Some(copies) = &copies {
            served.push(tokio::spawn(copies.clone().keep(refused.clone(), intake_stop.clone())));
        }
        let sweep = uploads::sweep(
            large.clone(),
            refused.clone(),
            retry.clone(),
            metrics.clone(),
            intake_stop.clone(),
        );
        served.extend([
            tokio::spawn(watch),
            tokio::spawn(refresh.run(intake_stop.clone())),
            tokio::spawn(disk),
            tokio::spawn(idle),
            tokio::spawn(sweep),
            tokio::spawn(follow),
            tokio::spawn(vitals.clone().watch(spool.clone(), intake_stop.clone())),
        ]);
        let now = since_boot();
        health.set(Dimension::Ingest, Level::Ok, format!("listening on {address}"), now);

        metrics.gateways(1);
        if spool.is_replicated() {
            let neighbours = Neighbours {
                spool: spool.clone(),
                health: health.clone(),
                doors: doors.clone(),
                book: book.clone(),
                history: history.clone(),
                report: report.clone(),
                poke: poke.clone(),
                metrics: metrics.clone(),
            };
            served.push(tokio::spawn(neighbours.follow(intake_stop.clone())));
        }

        let relay_report = RelayReport::default();
        let (mut relay_target, mut relay_store) = (None, None);
        let all_that_it_needs = || Relay {
            spool: spool.clone(),
            numbers: numbers.clone(),
            uploads: large.clone(),
            copies: copies.clone(),
            refused: refused.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            report: relay_report.clone(),
            control: control.clone(),
            followed: followed.clone(),
        };
        let section = config.relay.as_ref().map(|section| (section, section.peer(), section.store()));
        let relays = match (section, &relay_tls) {
            (Some((section, Some(peer), _)), Some(tls)) => {
                let target = watch::Sender::new(target(section, peer, tls)?);
                let targets = target.subscribe();
                relay_target = Some(target);
                Some((all_that_it_needs(), Way::OverCalls(targets)))
            }
            (Some((_, _, Some(store))), _) => {
                let target = watch::Sender::new(store_target(store)?);
                let targets = target.subscribe();
                relay_store = Some(target);
                let own = match spool.is_replicated() {
                    true => None,
                    false => Some(spool_id(&data.spool()).map_err(|error| {
                        ProgramError::new(ErrorReason::DiskFailed, format!("DATA/spool/id: {error}"))
                    })?),
                };
                let sender = Sender {
                    site: config.gateway.site.clone(),
                    gateway: material.name.clone(),
                    spool: own,
                    journals: data.relay_parts(),
                };
                Some((all_that_it_needs(), Way::IntoStore(sender, targets)))
            }
            _ => {
                health.set(Dimension::Relay, Level::Ok, "not configured: envelopes wait here", now);
                None
            }
        };
        let relay = match spool.standing() {
            None => relays.map(|(relay, way)| tokio::spawn(relay.follow(way, relay_stop.clone()))),
            Some(standing) => {
                let owning = Owning {
                    spool: spool.clone(),
                    numbers: numbers.clone(),
                    refused: refused.clone(),
                    uploads: large.clone(),
                    copies: copies.clone(),
                    health: health.clone(),
                    metrics: metrics.clone(),
                    address,
                    relay: relays,
                };
                Some(tokio::spawn(owning.follow(standing, relay_stop.clone())))
            }
        };

        let facts = Facts {
            site: config.gateway.site.clone(),
            name: material.name.clone(),
            started,
            health: health.clone(),
            metrics,
            rates: vitals.rates().clone(),
            vitals: vitals.clone(),
            book,
            history,
            refresh: report,
            poke: poke.clone(),
            spool: spool.clone(),
            to_owner,
            refused,
            retry,
            shares: shares.clone(),
            relay: relay_report,
            control: config.relay.is_some().then_some(control.clone()),
            doors: doors.clone(),
            stop,
            reload,
            console: Console::new(activity, recent, config.admin.names.clone()),
        };
        let facts = Arc::new(facts);
        // As long as the admin port answers: it shows how the rest stops.
        tokio::spawn(console::watch(facts.clone(), admin_stop.clone()));
        let supervisor_stop = CancellationToken::new();
        let writes = spool.clone();
        let supervisor = tokio::spawn(supervisor::follow(
            Asked::from_environment(),
            health.lamps().clone(),
            move || writes.busy_for(),
            supervisor_stop.clone(),
        ));
        let admin_address = admin_port.address();
        let told = admin_stop.clone();
        let admin = tokio::spawn(async move {
            let stop = async move { told.cancelled().await };
            if let Err(error) = admin::serve(admin_port, facts, stop).await {
                tracing::error!(event = "admin.failed", %error);
            }
        });
        tracing::info!(
            event = "gateway.started",
            site = %config.gateway.site,
            ingest = %address,
            admin = admin_address.map(tracing::field::display),
        );
        Ok(Self {
            health,
            poke,
            vitals,
            next_source,
            name: material.name,
            doors,
            keys_tls,
            relay_tls,
            peers,
            relay_target,
            relay_store,
            control,
            shares,
            budgets,
            issuing,
            spool,
            intake: (intake_stop, served),
            relay: (relay_stop, relay),
            traces,
            admin: (admin_stop, admin),
            supervisor: (supervisor_stop, supervisor),
        })
    }

    /// Puts in force what can be without a restart, which [`LIVE`](config::LIVE) names. New handshakes, of devices here and
    /// ours elsewhere, are done with the new certificates; live connections go on, but for those that would not be let in now.
    /// Returns how many were cut.
    ///
    /// What can fail comes first, so that all of it is in force or nothing.
    pub(super) async fn apply(&mut self, config: &Config, material: Material) -> Result<usize, ProgramError> {
        let keys_tls = match (&self.keys_tls, &material.keys) {
            (None, Some(tls)) => Some(watch::Sender::new(tls.clone())),
            _ => None,
        };
        let source = source(config, keys_tls.as_ref().or(self.keys_tls.as_ref()))?;
        let next_target = match (&config.relay, &self.relay_tls) {
            (Some(section), Some(tls)) => {
                section.peer().map(|peer| target(section, peer, tls)).transpose()?
            }
            _ => None,
        };
        let next_store =
            config.relay.as_ref().and_then(config::Relay::store).map(store_target).transpose()?;
        let issuing = config.enroll.as_ref().and_then(|section| issuing(config, section, &material));
        let (doors, server) = (self.doors.clone(), material.server);
        let cut = tokio::task::spawn_blocking(move || doors.reload(server));
        let cut =
            cut.await.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))??;

        if let Some(tls) = keys_tls {
            self.keys_tls = Some(tls);
        }
        for (ours, new) in [(&self.keys_tls, material.keys), (&self.relay_tls, material.relay)] {
            if let (Some(ours), Some(new)) = (ours, new) {
                ours.send_replace(new);
            }
        }
        self.peers.send_replace(material.peers);
        self.next_source.leave(Change { source, intervals: intervals(config) });
        self.poke.notify_one();
        if let (Some(ours), Some(next)) = (&self.relay_target, next_target) {
            ours.send_if_modified(|target| {
                let is_new = !target.is_same(&next);
                if is_new {
                    *target = next;
                }
                is_new
            });
        }
        if let (Some(ours), Some(next)) = (&self.relay_store, next_store) {
            ours.send_if_modified(|target| {
                let is_new = *target != next;
                *target = next;
                is_new
            });
        }
        if let (Some(ours), Some(issuing)) = (&self.issuing, issuing) {
            ours.store(Arc::new(issuing));
        }
        let (certificate, network, _) = config.fitted(files::raise_limit());
        self.doors.change_limits(certificate, network, enroll_limits(config));
        self.control.configure(configured_rate(config));
        self.shares.change(per_device(config), since_boot());
        self.budgets.change(config.ingest.per_device.sessions());
        Ok(cut)
    }

    /// Stops everything, in order.
    pub(super) async fn stop(self, limits: &config::Stop) {
        self.health.drain();
        tracing::info!(event = "gateway.draining");

        let (stop, tasks) = self.intake;
        stop.cancel();
        // The port cuts whoever is left when its own grace, which is the same limit, is over.
        part("intake", with_margin(limits.intake), join(tasks)).await;

        let (stop, task) = self.relay;
        stop.cancel();
        let aborts: Vec<_> = task.iter().map(JoinHandle::abort_handle).collect();
        if !part("relay", limits.relay.get(), join(task)).await {
            // What it had under way is not acknowledged, and is sent again.
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }

        let spool = self.spool;
        let close = tokio::task::spawn_blocking(move || spool.close());
        part("spool", limits.spool.get(), async {
            if let Ok(Err(error)) = close.await {
                tracing::warn!(event = "spool.not_closed", %error);
            }
        })
        .await;

        // The last spans are those of what has stopped by now.
        if !self.traces.stop().await {
            tracing::warn!(
                event = "stop.limit_ran_out",
                part = "traces",
                limit_ms = FLUSH.as_millis() as u64
            );
        }

        let (stop, task) = self.admin;
        stop.cancel();
        let abort = task.abort_handle();
        if !part("admin", limits.admin.get(), join([task])).await {
            abort.abort();
        }
        let (stop, task) = self.supervisor;
        stop.cancel();
        join([task]).await;
        tracing::info!(event = "gateway.stopped");
    }
}

fn serve(port: Acceptor, routes: Routes, stop: &CancellationToken) -> JoinHandle<()> {
    let stop = stop.clone();
    tokio::spawn(async move {
        port.serve(routes, stop).await;
    })
}

/// The export of spans, if it is asked for.
fn traces(config: &Config, material: &Material) -> Result<Exporting, ProgramError> {
    let about = vec![
        ("service.name", "pithead-gateway".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.namespace", config.gateway.site.to_string()),
        ("service.instance.id", material.name.as_str().to_owned()),
    ];
    Exporting::begin(config.traces.as_ref(), about)
        .map_err(|wrong| ProgramError::new(ErrorReason::ConfigInvalid, wrong.message()))
}

fn enroll_limits(config: &Config) -> Limits {
    Limits { stop_grace: config.stop.intake, ..enroll::limits() }
}

fn intervals(config: &Config) -> Intervals {
    Intervals { min: config.keys.min_interval.get(), max: config.keys.max_interval.get() }
}

fn configured_rate(config: &Config) -> Option<u64> {
    config.relay.as_ref().and_then(|relay| relay.rate).map(|rate| rate.get())
}

fn per_device(config: &Config) -> shares::Limits {
    shares::Limits {
        device_bytes: config.spool.per_device.get(),
        rate: config.ingest.per_device.rate.get(),
        burst: config.ingest.per_device.burst.get(),
        keeps_for_first: !config.spool.lanes.first.is_empty(),
    }
}

fn store_target(store: &config::RelayStore) -> Result<StoreTarget, ProgramError> {
    let settings = store.settings().map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("[relay.store] ca: {error}"))
    })?;
    Ok(StoreTarget {
        settings,
        bundle_bytes: store.bundle_size.get(),
        bundle_delay: store.bundle_delay.get(),
    })
}

/// Where copies of large envelopes go, if the gateways of the site share their lanes and it says where.
fn copies(
    config: &Config,
    uploads: &UploadStore,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<Option<Copies>, ProgramError> {
    let Some((large, set)) = config.large_store() else { return Ok(None) };
    let settings = large.settings().map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("[spool.jetstream.large] ca: {error}"))
    })?;
    Ok(Some(Copies::new(settings, set, uploads.clone(), metrics.clone(), stop.clone())))
}

fn target(
    section: &config::Relay,
    peer: config::RelayPeer<'_>,
    tls: &watch::Sender<Arc<ClientConfig>>,
) -> Result<Target, ProgramError> {
    Ok(Target {
        endpoint: peer.endpoint.clone(),
        name: server_name("[relay] name", peer.name, peer.endpoint)?,
        tls: tls.subscribe(),
        window_bytes: section.window.get(),
        answer_timeout: section.answer_timeout.get(),
    })
}

/// What devices are given that enrol here, if somebody signs them here.
fn issuing(config: &Config, section: &config::Enroll, material: &Material) -> Option<Issuing> {
    let told = Told {
        site: config.gateway.site.clone(),
        endpoints: section.endpoints.clone(),
        server_name: section.server_name.clone(),
        gateway_ca: material.gateway_ca.clone(),
    };
    Some(Issuing { ca: material.site_ca.clone()?, told })
}

/// The port where devices enrol, if there is one, and what they are given there.
async fn enroll_port(
    config: &Config,
    material: &Material,
    built: &Built,
) -> Result<Option<(Acceptor, Arc<ArcSwap<Issuing>>)>, ProgramError> {
    let Some(section) = &config.enroll else { return Ok(None) };
    let (Some(listen), Some(issuing)) = (section.listen, issuing(config, section, material)) else {
        return Ok(None);
    };
    let port = Acceptor::bind(listen, built.enroll.clone(), enroll_limits(config)).await?;
    Ok(Some((port, Arc::new(ArcSwap::from_pointee(issuing)))))
}

fn with_margin(limit: ConfigDuration) -> Duration {
    limit.get() + Duration::from_secs(1)
}

async fn join(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    for task in tasks {
        // A task that panicked has said so, and is over all the same.
        let _ = task.await;
    }
}

async fn open_keeper(
    config: &Config,
    material: &Material,
    data: &DataDir,
    history: &Arc<History>,
    book: &Book,
    metrics: &Metrics,
) -> Result<Keeper, ProgramError> {
    let kms: Option<Arc<dyn SpkiSource>> = match config.keys.kms {
        true => Some(Arc::new(KmsSpkis::new(Kms::from_environment().await, metrics.clone()))),
        false => None,
    };
    let (authority, site) = (&config.trust.authority, &config.gateway.site);
    let (root, history, book) = (material.root.clone(), history.clone(), book.clone());
    match Keeper::open(&data.keys(), authority, site, root, history, kms, book) {
        Ok((keeper, origin)) => {
            let version = keeper.device().version();
            match origin {
                Origin::Damaged => tracing::error!(event = "key.state_damaged"),
                Origin::Provisioned => tracing::info!(event = "key.provisioned"),
                Origin::Restored => {
                    tracing::info!(event = "key.restored", epoch = version.0, sequence = version.1);
                }
            }
            Ok(keeper)
        }
        Err(OpenError::Root(error)) => {
            let what = format!("{}: {error}", config.trust.root.display());
            Err(ProgramError::new(reason_of_trust(error), what).exit(ExitCode::CONFIG_INVALID))
        }
        Err(error @ OpenError::Foreign { .. }) => Err(ProgramError::new(
            ErrorReason::ConfigInvalid,
            error.to_string(),
        )
        .todo(
            "give each gateway a data directory of its own, or correct [trust] authority and [gateway] site",
        )),
        Err(error @ OpenError::AnotherRoot { .. }) => Err(ProgramError::new(
            ErrorReason::ConfigInvalid,
            error.to_string(),
        )
        .affects("no statement can be verified")
        .todo("put the old root back; or, to believe the new one alone, remove keys/trust.a and keys/trust.b there")),
        Err(error) => Err(ProgramError::new(ErrorReason::DiskFailed, error.to_string())),
    }
}

fn source(
    config: &Config,
    tls: Option<&watch::Sender<Arc<ClientConfig>>>,
) -> Result<Box<dyn StatementSource>, ProgramError> {
    match (&config.keys.upstream, tls, &config.keys.bundle) {
        (Some(endpoint), Some(tls), _) => Ok(Box::new(Upstream {
            endpoint: endpoint.clone(),
            name: server_name("[keys] upstream_name", config.keys.upstream_name.as_deref(), endpoint)?,
            tls: tls.subscribe(),
            authority: config.trust.authority.clone(),
            site: config.gateway.site.clone(),
        })),
        (_, _, Some(path)) => Ok(Box::new(BundleFile::new(path.clone()))),
        _ => Err(ProgramError::new(ErrorReason::ConfigInvalid, "[keys] names no source")),
    }
}

/// The name that is expected in the certificate of an endpoint.
pub(crate) fn server_name(
    key: &str,
    name: Option<&str>,
    endpoint: &pithead_hop::connect::Endpoint,
) -> Result<ServerName<'static>, ProgramError> {
    let Some(name) = name else { return Ok(endpoint.server_name()) };
    ServerName::try_from(name.to_owned()).map_err(|_| {
        ProgramError::new(ErrorReason::ConfigInvalid, format!("{key}: {name:?} is no host name"))
    })
}

/// What is served, for tools: who may connect may know it, and it stands in the repository.
fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    ProgramError,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pithead_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))
}

async fn put_idle_lines_away(numbers: Numbers, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(IDLE_LOOK) => {}
            () = stop.cancelled() => return,
        }
        let lines = numbers.clone();
        match tokio::task::spawn_blocking(move || lines.put_idle_away(since_boot())).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(count)) => tracing::info!(event = "lines.put_away", count, in_memory = numbers.in_memory()),
            Ok(Err(error)) => tracing::error!(event = "lines.not_put_away", %error),
        }
    }
}

async fn look_after_disk(
    health: Health,
    spool: EnvelopeSpool,
    copies: Option<Copies>,
    stop: CancellationToken,
) {
    loop {
        let (stats, available) = (spool.stats(), spool.available_bytes());
        let trouble = spool.elsewhere().and_then(|elsewhere| elsewhere.trouble);
        let (level, words) = if let Some(trouble) = trouble {
            (Level::Degraded, format!("JetStream: {trouble}"))
        } else if stats.lanes.iter().any(|lane| lane.poisoned) {
            (Level::Down, "the disk has failed; restart when it is mended".to_owned())
        } else if stats.disk_full || available == 0 {
            (
                Level::Degraded,
                format!(
                    "full: {}, devices are told to come back",
                    human::some(stats.records, "record waits", "records wait")
                ),
            )
        } else if available < stats.capacity_bytes / 100 * DISK_LOW_PERCENT {
            let percent = available * 100 / stats.capacity_bytes.max(1);
            (Level::Degraded, format!("{percent} % of the spool is left"))
        } else if let Some(trouble) = copies.as_ref().and_then(Copies::trouble) {
            (Level::Degraded, format!("no large envelope is taken: {trouble}"))
        } else {
            (Level::Ok, human::some(stats.records, "record waits", "records wait"))
        };
        if health.set(Dimension::Disk, level, words.clone(), since_boot()) {
            tracing::info!(event = "health.changed", dimension = "disk", lamp = level.name(), words);
        }
        tokio::select! {
            () = tokio::time::sleep(DISK_LOOK) => {}
            () = stop.cancelled() => return,
        }
    }
}
