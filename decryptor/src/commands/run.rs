//! `run`: the cloud end itself.
//!
//! Start: configuration, data directory, books, data keys, ledger and sink, ports; ready only when all of that stands.
//! Stop, each part within its own bound, and the log names the one that ran out: not ready; intake closed; pipeline drained
//! into the writing thread; last group and ledger; the authority's act, if one is under way; admin port.

mod authority;
mod bucket;
mod bundles;
mod onlooker;
mod reload;

use crate::admin::{Admin, Phase, Status};
use crate::aside::Area;
use crate::books::{Books, BooksError};
use crate::config::{Config, SinkKind, SourceKind};
use crate::devices::{Devices, DevicesError, Watch};
use crate::intake::pipeline::{Parts, Pipeline};
use crate::intake::registry::{Registry, RegistryBooks};
use crate::intake::scribe::{self, Scribe, ScribeError};
use crate::intake::service::Front;
use crate::kms::{Kms, KmsTimeouts};
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::sink::{FolderSink, JsonLinesSink, Sink, SinkError};
use crate::sites;
use crate::unwrap::{CacheLimits, DataKeys, KeyUnwrapper, KmsUnwrapper, LocalKeys, Unwrapping};
use crate::vitals;
use arc_swap::ArcSwap;
use bundles::{Bundles, Look};
use onlooker::Onlooker;
use pithead_hop::accept::Acceptor;
use pithead_hop::ingest::{IngestServer, UploadStore};
use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::reload::{Orders, Outcome};
use pithead_hop::program::stop::{Reloads, Signals};
use pithead_hop::program::supervisor::{self, Asked};
use pithead_hop::program::traces::{Exporting, FLUSH};
use pithead_hop::program::{ProgramError, clock, disk, files, grpc_health};
use pithead_hop::tls::{CrlExpiry, Pem, ServerTls};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::KeyArn;
use reload::Reloader;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// What each service needs, for whoever asks the gRPC health service.
const SERVICES: &[grpc_health::Service] = &[
    ("", &["intake", "sink", "disk"]),
    ("pithead.ingest.v1.IngestService", &["intake", "sink", "disk"]),
    ("pithead.keys.v1.KeyService", &["intake"]),
];

/// How often expired data keys are cleared from memory.
const SWEEP: Duration = Duration::from_secs(60);

/// Arguments of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "decryptor.toml")]
    pub config: PathBuf,
}

/// Where a running decryptor is reached.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// By gateways; port 0 where none connects.
    pub ingest: SocketAddr,
    /// By operators.
    pub admin: AdminAddress,
}

/// Runs until a signal says stop.
pub async fn run(args: Args) -> Result<(), ProgramError> {
    let signals = Signals::listen().map_err(|error| {
        ProgramError::new(ErrorReason::Internal, format!("cannot listen for signals: {error}"))
    })?;
    let (started, _) = oneshot::channel();
    serve(&args.config, signals.stop, Some(signals.reloads), started).await
}

/// Runs until `stop`; says where once it serves. What `run` does, without the signals.
pub async fn serve(
    path: &Path,
    stop: CancellationToken,
    mut reloads: Option<Reloads>,
    started: oneshot::Sender<Addresses>,
) -> Result<(), ProgramError> {
    let config = Config::load(path)?;
    if config.source.kind == SourceKind::S3 {
        return bucket::serve(path, config, stop, reloads, started).await;
    }
    let data_dir = config.decryptor.data_dir.clone();
    disk::probe(&data_dir).map_err(|error| cannot_write(&data_dir, &error))?;
    let tls = tls(&config)?;
    let mut limits = config.ingest.limits.clone();
    let files = files::raise_limit();
    if let Some(room) = limits.fit_files(files) {
        tracing::warn!(
            event = "accept.few_files",
            files,
            connections = room,
            asked = config.ingest.limits.connections,
            "raise the hard limit of open files (LimitNOFILE), or lower [ingest.limits] connections"
        );
    }
    let acceptor = Acceptor::bind(config.ingest.listen, tls.build()?, limits).await?;
    let admin = Admin::bind(&config.admin.listen).await?;
    let addresses = Addresses { ingest: acceptor.local_addr(), admin: admin.address().clone() };

    let mut books = Books::open(&data_dir, &config.keys.allow)?;
    let mut authority = authority::Authority::open(&config).await?;
    let mut bundles = Bundles::new(&config.keys.bundles, config.authority.as_ref());
    authority.learn(&mut books);
    bundles.look(&data_dir, &mut books);
    if books.served().is_empty() {
        tracing::warn!(
            event = "keys.none",
            "no bundle was accepted: gateways get no keys from here until one is"
        );
    }
    let (mut watch, registered) = Watch::open(&data_dir)?;
    let devices = Arc::new(ArcSwap::from_pointee(registered));
    let (unwrapper, kms) = unwrapper(&config).await?;
    let data_keys = Arc::new(DataKeys::new(unwrapper, CacheLimits::default(), config.unwrap.budgets));
    let metrics = Arc::new(Metrics::new());
    let traces = traces(&config)?;
    metrics.traces.follow(traces.counts());
    show_devices(&metrics, &devices.load());
    let calls = kms.as_ref().map(|kms| Arc::clone(kms.calls()));
    let handle = acceptor.handle();
    handle.trace(traces.spans());
    let folders = (config.sink.path.clone(), data_dir.clone());
    let expiries = tls.expiries();
    let (status, mut orders) = Status::new(
        Arc::clone(&metrics),
        Arc::clone(&data_keys),
        calls.clone(),
        Some(handle.clone()),
        folders,
        expiries,
    );
    let pages = Onlooker::spawn(|stop| admin.serve(Arc::clone(&status), stop));

    // Reading the ledger may take a while after a long life: the admin port answers "starting" meanwhile.
    let registry = Arc::new(Mutex::new(Registry::default()));
    let failed = CancellationToken::new();
    let scribe = {
        let (config, registry) = (config.clone(), Arc::clone(&registry));
        let books = RegistryBooks::new(registry.clone(), Arc::clone(&devices), Arc::clone(&metrics));
        let (metrics, failed) = (Arc::clone(&metrics), failed.clone());
        tokio::task::spawn_blocking(move || open_scribe(&config, registry, books, metrics, failed))
            .await
            .map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))??
    };
    if !watch.existed() && crate::intake::pipeline::lock(&registry).latches().next().is_some() {
        return Err(DevicesError::Gone { path: data_dir.join(crate::devices::FILE) }.into());
    }
    let staging = scribe.sink.staging();
    let uploads = open_uploads(&config, &registry).await?;
    let (jobs, queue) = mpsc::channel(scribe::QUEUE);
    let (scribe_ended, mut scribe_end) = oneshot::channel();
    std::thread::Builder::new()
        .name("scribe".into())
        .spawn(move || {
            let _ = scribe_ended.send(scribe.run(queue));
        })
        .map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?;

    let mut publisher = Publisher::new(stop.child_token());
    publisher.publish(&books);
    show_statement(&metrics, &books, &data_keys);
    let books = Arc::new(ArcSwap::from_pointee(books));
    status.show_books(Arc::clone(&books));
    let parts = vitals::Parts {
        health: status.health().clone(),
        metrics: Arc::clone(&metrics),
        books: Arc::clone(&books),
        data_keys: Arc::clone(&data_keys),
        kms: calls,
        registries: vec![Arc::clone(&registry)],
        uploads: Some(uploads.clone()),
        data: data_dir.clone(),
        sink: vitals::SinkOf::Disk(config.sink.path.clone()),
    };
    let looks = vitals::Looks::begin(parts, status.rates().clone()).await;
    let looks = Onlooker::spawn(|stop| looks.run(stop));
    let pipeline = Pipeline::new(Parts {
        books: Arc::clone(&books),
        data_keys: Arc::clone(&data_keys),
        devices: Arc::clone(&devices),
        registry,
        jobs,
        metrics: Arc::clone(&metrics),
        under_way_bytes: config.ingest.under_way.get_usize(),
        staging,
        spans: traces.spans(),
    });

    let intake_stop = CancellationToken::new();
    let front = Arc::new(Front::new(
        Arc::clone(&pipeline),
        uploads.clone(),
        Arc::clone(&books),
        Arc::clone(&metrics),
    ));
    let server = IngestServer::new(front, config.ingest.calls, intake_stop.clone());
    let (health, health_service) = tonic_health::server::health_reporter();
    let routes = Routes::new(server.into_service())
        .add_service(publisher.server().into_service())
        .add_service(health_service);
    let mut intake = tokio::spawn(acceptor.serve(routes, intake_stop.clone()));
    let act = authority.start(&config, kms, Arc::clone(&metrics), &status, stop.child_token()).await;
    status.enter(Phase::Serving);
    let follow = grpc_health::follow(status.health().lamps().clone(), health, SERVICES, stop.child_token());
    tokio::spawn(follow);
    let writing = metrics.writing.clone();
    let (lamps, busy_for) = (status.health().lamps().clone(), move || writing.busy_for());
    let supervisor =
        Onlooker::spawn(|stop| supervisor::follow(Asked::from_environment(), lamps, busy_for, stop));
    tracing::info!(event = "program.ready", ingest = %addresses.ingest, admin = %addresses.admin);
    let _ = started.send(addresses);

    let mut poll = tokio::time::interval(config.keys.poll.get());
    let mut reloader = Reloader::new(path, config, Arc::clone(&status));
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = failed.cancelled() => break,
            _ = sweep.tick() => {
                data_keys.sweep().await;
                let uploads = uploads.clone();
                tokio::task::spawn_blocking(move || uploads.expire(clock::since_boot()));
            }
            _ = poll.tick() => {
                take_in(&data_dir, &mut bundles, &mut authority, &books, &mut publisher, &metrics, &data_keys);
                look_at_devices(&mut watch, &devices, Some(&uploads), &metrics);
            }
            () = authority.issued() => {
                take_in(&data_dir, &mut bundles, &mut authority, &books, &mut publisher, &metrics, &data_keys);
            }
            order = next(&mut reloads, &mut orders) => {
                let mut outcome = reloader.turn(&handle).await;
                if outcome.is_taken() {
                    let keys = &reloader.in_force().keys;
                    books.store(Arc::new(books.load().allowing(&keys.allow)));
                    bundles.name(&keys.bundles);
                    if poll.period() != keys.poll.get() {
                        poll = tokio::time::interval(keys.poll.get());
                    }
                }
                bundles.forget();
                outcome.warnings.extend(take_in(
                    &data_dir, &mut bundles, &mut authority, &books, &mut publisher, &metrics, &data_keys,
                ));
                watch.forget();
                look_at_devices(&mut watch, &devices, Some(&uploads), &metrics);
                reloader.tell(&outcome);
                if let Some(answer) = order {
                    // Whoever asked may have gone away; it was done all the same.
                    let _ = answer.send(outcome);
                }
            }
        }
    }

    // Nobody is answered any more, and whoever waits is told so.
    drop(orders);
    status.enter(if failed.is_cancelled() { Phase::Failed } else { Phase::Stopping });
    intake_stop.cancel();
    // Bounded by the accept layer's own stop_grace.
    match (&mut intake).await {
        Ok(stopped) => tracing::info!(event = "stop.ended", part = "intake", killed = stopped.killed),
        Err(error) => tracing::error!(event = "stop.failed", part = "intake", %error),
    }
    let config = reloader.in_force();
    within("pipeline", config.stop.pipeline.get(), pipeline.drain()).await;
    let end = tokio::time::timeout(config.stop.ledger.get(), &mut scribe_end).await;
    let result = match end {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(error.into()),
        Ok(Err(_)) => {
            Err(ProgramError::new(ErrorReason::Internal, "the writing thread ended without a word"))
        }
        Err(_) => {
            tracing::error!(event = "stop.limit_ran_out", part = "ledger");
            Err(ProgramError::new(ErrorReason::DiskFailed, "the ledger was not closed in time")
                .affects("nothing that was acknowledged; the next start reads a little more"))
        }
    };
    if let Some(act) = act {
        within("authority", authority::STOP, async {
            let _ = act.await;
        })
        .await;
    }
    // The last spans are those of what has stopped by now.
    if !traces.stop().await {
        tracing::warn!(event = "stop.limit_ran_out", part = "traces", limit_ms = FLUSH.as_millis() as u64);
    }
    let limit = config.stop.admin.get();
    looks.end("looks", limit).await;
    pages.end("admin", limit).await;
    supervisor.end("supervisor", limit).await;
    tracing::info!(event = "program.stopped", ok = result.is_ok());
    result
}

async fn within(part: &'static str, limit: Duration, ending: impl Future<Output = ()>) {
    match tokio::time::timeout(limit, ending).await {
        Ok(()) => tracing::info!(event = "stop.ended", part),
        Err(_) => tracing::error!(event = "stop.limit_ran_out", part, limit_ms = limit.as_millis() as u64),
    }
}

/// The export of spans, if it is asked for.
fn traces(config: &Config) -> Result<Exporting, ProgramError> {
    let about = vec![
        ("service.name", "pithead-decryptor".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    Exporting::begin(config.traces.as_ref(), about)
        .map_err(|wrong| ProgramError::new(ErrorReason::ConfigInvalid, wrong.message()))
}

/// A signal, or an order with the place for its answer.
async fn next(reloads: &mut Option<Reloads>, orders: &mut Orders) -> Option<oneshot::Sender<Outcome>> {
    let signal = async {
        match reloads {
            Some(reloads) => reloads.next().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = signal => None,
        Some(answer) = orders.recv() => Some(answer),
    }
}

fn open_scribe(
    config: &Config,
    registry: Arc<Mutex<Registry>>,
    books: RegistryBooks,
    metrics: Arc<Metrics>,
    failed: CancellationToken,
) -> Result<Scribe<RegistryBooks>, ProgramError> {
    let data_dir = &config.decryptor.data_dir;
    let area = |name: &str| Area::open(&data_dir.join(name)).map_err(|error| cannot_write(data_dir, &error));
    let mut read = Registry::default();
    let ledger = Ledger::open(&data_dir.join("ledger"), |replay| read.replay(replay))?;
    let sink: Box<dyn Sink> = match config.sink.kind {
        SinkKind::Folder => Box::new(FolderSink::open(&config.sink.path)?),
        SinkKind::Jsonl => {
            let mut sink = JsonLinesSink::open(&config.sink.path, ledger.mark())?;
            sink.forget(|identity| read.holds(identity));
            Box::new(sink)
        }
        // The configuration is refused before.
        SinkKind::Objects => {
            return Err(ProgramError::new(
                ErrorReason::ConfigInvalid,
                "[sink] objects goes with a source in a bucket",
            ));
        }
    };
    metrics.lines.set(i64::try_from(read.lines()).unwrap_or(i64::MAX));
    *crate::intake::pipeline::lock(&registry) = read;
    Ok(Scribe {
        sink,
        ledger,
        refused: area("refused")?,
        conflicts: area("conflicts")?,
        books,
        metrics,
        failed,
    })
}

/// The folder of large envelopes. What was applied and not removed before a kill goes now.
async fn open_uploads(config: &Config, registry: &Arc<Mutex<Registry>>) -> Result<UploadStore, ProgramError> {
    let data_dir = config.decryptor.data_dir.clone();
    let (limits, registry) = (config.uploads, Arc::clone(registry));
    let opened = tokio::task::spawn_blocking(move || {
        let uploads = UploadStore::open(&data_dir.join("uploads"), limits, clock::since_boot())
            .map_err(|error| cannot_write(&data_dir, &error))?;
        for identity in uploads.undecided() {
            if crate::intake::pipeline::lock(&registry).holds(&identity) {
                uploads.release(&identity).map_err(|error| cannot_write(&data_dir, &error))?;
            }
        }
        Ok(uploads)
    });
    opened.await.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?
}

pub(in crate::commands) async fn unwrapper(
    config: &Config,
) -> Result<(Arc<dyn KeyUnwrapper>, Option<Kms>), ProgramError> {
    let local = if config.unwrap.local.is_empty() {
        None
    } else {
        let files = config.unwrap.local.iter().map(|key| (key.arn.clone(), key.private_key.as_path()));
        Some(LocalKeys::load(files).map_err(|error| {
            ProgramError::new(ErrorReason::ConfigInvalid, error.to_string()).todo("check [[unwrap.local]]")
        })?)
    };
    let kms =
        if config.unwrap.kms { Some(Kms::from_environment(KmsTimeouts::default()).await) } else { None };
    let unwrapper: Arc<dyn KeyUnwrapper> = match (local, kms.clone()) {
        (Some(local), Some(kms)) => Arc::new(LocalFirst { local, kms: KmsUnwrapper::new(kms) }),
        (Some(local), None) => Arc::new(local),
        (None, Some(kms)) => Arc::new(KmsUnwrapper::new(kms)),
        (None, None) => return Err(ProgramError::new(ErrorReason::ConfigInvalid, "[unwrap] names nobody")),
    };
    Ok((unwrapper, kms))
}

/// Private keys in files for those ARNs that have one, KMS for all others.
#[derive(Debug)]
struct LocalFirst {
    local: LocalKeys,
    kms: KmsUnwrapper,
}

impl KeyUnwrapper for LocalFirst {
    fn unwrap<'a>(&'a self, arn: &'a KeyArn, ciphertext: &'a [u8]) -> Unwrapping<'a> {
        if self.local.may_hold(arn) {
            self.local.unwrap(arn, ciphertext)
        } else {
            self.kms.unwrap(arn, ciphertext)
        }
    }

    fn may_hold(&self, arn: &KeyArn) -> bool {
        self.local.may_hold(arn) || self.kms.may_hold(arn)
    }
}

/// Certificate, key, and the sites that may connect.
pub(in crate::commands) fn tls(config: &Config) -> Result<ServerTls, ProgramError> {
    let sites = sites::trust(config)?;
    if sites.is_empty() {
        return Err(ProgramError::new(ErrorReason::ConfigInvalid, "no site is known: nobody could connect")
            .todo("add one: pithead-decryptor site add NAME --ca PEM"));
    }
    Ok(ServerTls {
        certificate: Pem::read(&config.decryptor.certificate)?,
        key: Pem::read(&config.decryptor.private_key)?,
        sites,
        crl_expiry: CrlExpiry::UseStale,
    })
}

/// Looks at the bundle files. What an operator should know of them.
fn take_in(
    data_dir: &Path,
    bundles: &mut Bundles,
    authority: &mut authority::Authority,
    books: &ArcSwap<Books>,
    publisher: &mut Publisher,
    metrics: &Metrics,
    data_keys: &DataKeys,
) -> Vec<String> {
    let mut fresh = Books::clone(&books.load());
    let Look { changed, withdrawn, warnings } = bundles.look(data_dir, &mut fresh);
    if changed || !withdrawn.is_empty() {
        authority.learn(&mut fresh);
        publisher.publish(&fresh);
        vitals::forget_statements(metrics, &withdrawn);
        show_statement(metrics, &fresh, data_keys);
        books.store(Arc::new(fresh));
    }
    warnings
}

/// Takes in the registry of devices if it has changed. Reading it is a moment's work, a second's for 100,000 devices.
fn look_at_devices(
    watch: &mut Watch,
    devices: &ArcSwap<Devices>,
    uploads: Option<&UploadStore>,
    metrics: &Metrics,
) {
    match watch.look() {
        Ok(None) => {}
        Ok(Some(fresh)) => {
            show_devices(metrics, &fresh);
            let (count, keys) = fresh.counts();
            tracing::info!(event = "devices.accepted", devices = count, keys);
            devices.store(Arc::new(fresh));
            // What was refused for its signature is judged anew when it comes again.
            let Some(uploads) = uploads else { return };
            uploads.forget_refusals(|refusal| {
                matches!(
                    refusal.reason,
                    ErrorReason::SignatureInvalid
                        | ErrorReason::SignatureRequired
                        | ErrorReason::SignatureRevoked
                        | ErrorReason::SignatureKeyUnknown
                )
            });
        }
        Err(error) => {
            metrics.device_registry_refused.set(1);
            tracing::error!(event = "devices.refused", %error, "the registry that was read before stays in force");
        }
    }
}

fn show_devices(metrics: &Metrics, devices: &Devices) {
    let (count, keys) = devices.counts();
    metrics.devices_registered.set(i64::try_from(count).unwrap_or(i64::MAX));
    metrics.device_keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
    metrics.device_registry_refused.set(0);
}

/// Tells of what gateways are given, and of keys in it that nobody here can unwrap: what devices seal to them would wait.
fn show_statement(metrics: &Metrics, books: &Books, data_keys: &DataKeys) {
    let listed = books.served().iter().flat_map(|(site, published)| {
        published.statement.keys.iter().filter(|key| key.status.is_listed()).map(move |key| (site, key))
    });
    for (site, key) in listed.filter(|(_, key)| !data_keys.may_unwrap(&key.arn)) {
        tracing::warn!(
            event = "keys.nobody_unwraps", %site, arn = %key.arn,
            "devices seal to this key, or are to: [unwrap] kms is off, and no [[unwrap.local]] names it"
        );
    }
    let newest = books.served().values().map(|published| published.statement.sequence).max().unwrap_or(0);
    vitals::show_statements(metrics, books);
    metrics.statement_sequence.set(i64::try_from(newest).unwrap_or(i64::MAX));
}

fn cannot_write(data_dir: &Path, error: &io::Error) -> ProgramError {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorReason::DiskFull,
        _ => ErrorReason::DataDirUnwritable,
    };
    ProgramError::new(reason, format!("the data directory {}: {error}", data_dir.display()))
        .affects("nothing is taken from any gateway")
        .todo("make it, mount it, or give it to this user; decryptor.data_dir names it")
}

impl From<LedgerError> for ProgramError {
    fn from(error: LedgerError) -> Self {
        let reason = error.reason();
        let todo = match reason {
            ErrorReason::DataDirLocked => {
                "stop the other decryptor, or give this one a data directory of its own"
            }
            ErrorReason::DiskFull => "make room on the disk",
            _ => "look at the disk and at the data directory's owner",
        };
        Self::new(reason, format!("the ledger: {error}"))
            .affects("nothing is taken from any gateway")
            .todo(todo)
    }
}

impl From<SinkError> for ProgramError {
    fn from(error: SinkError) -> Self {
        let reason = if error.is_full() { ErrorReason::DiskFull } else { ErrorReason::SinkFailed };
        Self::new(reason, format!("the sink: {error}"))
            .exit(pithead_hop::program::ExitCode::CANNOT_WRITE)
            .affects("nothing is taken from any gateway")
            .todo("sink.path must be writable, and its parent must exist")
    }
}

impl From<ScribeError> for ProgramError {
    fn from(error: ScribeError) -> Self {
        match error {
            ScribeError::Sink(error) => error.into(),
            ScribeError::Ledger(error) => error.into(),
        }
    }
}

impl From<BooksError> for ProgramError {
    fn from(error: BooksError) -> Self {
        Self::new(error.reason(), error.to_string()).todo("check the data directory and the bundle files")
    }
}
