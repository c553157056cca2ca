//! `run` with a source in a bucket: no port for gateways, no ledger on disk, and as many of these programs as somebody likes.
//!
//! Start: configuration, data directory, buckets (is what they create created once?), books, data keys, the ledger of each site; ready
//! only when all of that stands. Stop, each part within its own bound, and the log names the one that ran out: not ready; the queue;
//! bundles under way, and the output of what was decided; what is left of the queue's messages, which are anybody's at once; admin
//! port.

use super::{
    Bundles, Look, Onlooker, cannot_write, look_at_devices, next, show_devices, show_statement, unwrapper,
    within,
};
use crate::admin::{Admin, Bucket as Shown, Phase, Status};
use crate::books::Books;
use crate::commands::run::Addresses;
use crate::config::Config;
use crate::devices::{DevicesError, Watch};
use crate::intake::opener::Opener;
use crate::intake::registry::Registry;
use crate::ledger::objects::CHECKPOINT_EVERY;
use crate::metrics::Metrics;
use crate::sink::ObjectsSink;
use crate::source::notice;
use crate::source::replica::{Failing, Pace, Replica};
use crate::source::site::{Bucket, Shared, SiteReplica};
use crate::source::sqs::{Feed, Queue, QueueError};
use crate::store;
use crate::unwrap::{CacheLimits, DataKeys};
use crate::vitals;
use arc_swap::ArcSwap;
use pithead_hop::objects::Location;
use pithead_hop::program::config::Effective;
use pithead_hop::program::config::change::{self, Live};
use pithead_hop::program::health::Level;
use pithead_hop::program::reload::Outcome;
use pithead_hop::program::stop::Reloads;
use pithead_hop::program::supervisor::{self, Asked};
use pithead_hop::program::{ProgramError, clock, disk};
use pithead_hop::tls::Expiries;
use pithead_proto::errors::v1::ErrorReason;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Notices between queue and replica: a replica that is behind receives no more.
const NOTICES: usize = 64;

/// Between two tries to read a ledger at a start, at first; a minute at last.
const OPEN_AGAIN: Duration = Duration::from_secs(2);

/// Runs until `stop`.
pub(super) async fn serve(
    path: &Path,
    config: Config,
    stop: CancellationToken,
    mut reloads: Option<Reloads>,
    started: oneshot::Sender<Addresses>,
) -> Result<(), ProgramError> {
    let data_dir = config.decryptor.data_dir.clone();
    disk::probe(&data_dir).map_err(|error| cannot_write(&data_dir, &error))?;
    let (source, sink) = (store::open_source(&config.source).await?, store::open_sink(&config.sink).await?);
    let admin = Admin::bind(&config.admin.listen).await?;
    let addresses = Addresses { ingest: SocketAddr::from(([0, 0, 0, 0], 0)), admin: admin.address().clone() };

    let mut books = Books::open(&data_dir, &config.keys.allow)?;
    let mut bundles = Bundles::new(&config.keys.bundles, None);
    bundles.look(&data_dir, &mut books);
    let (mut watch, registered) = Watch::open(&data_dir)?;
    let devices = Arc::new(ArcSwap::from_pointee(registered));
    let (unwrapper, kms) = unwrapper(&config).await?;
    let data_keys = Arc::new(DataKeys::new(unwrapper, CacheLimits::default(), config.unwrap.budgets));
    let metrics = Arc::new(Metrics::new());
    show_devices(&metrics, &devices.load());
    show_statement(&metrics, &books, &data_keys);
    let calls = kms.as_ref().map(|kms| Arc::clone(kms.calls()));
    let (status, mut orders) = Status::new(
        Arc::clone(&metrics),
        Arc::clone(&data_keys),
        calls.clone(),
        None,
        (config.sink.url().into(), data_dir.clone()),
        Expiries::default(),
    );
    let pages = Onlooker::spawn(|stop| admin.serve(Arc::clone(&status), stop));
    store::probe(&sink, config.sink.url()).await?;

    let books = Arc::new(ArcSwap::from_pointee(books));
    status.show_books(Arc::clone(&books));
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| ProgramError::new(ErrorReason::Internal, format!("no random bytes: {error}")))?;
    let room_bytes = config.source.under_way.get_usize().min(Semaphore::MAX_PERMITS);
    let prefix = source.root.to_string();
    let shared = Arc::new(Shared {
        bucket: Bucket { store: source.store, root: source.root },
        sink: ObjectsSink::new(sink.store, sink.root),
        opener: Opener::new(
            Arc::clone(&books),
            Arc::clone(&data_keys),
            Arc::clone(&devices),
            Arc::clone(&metrics),
        ),
        metrics: Arc::clone(&metrics),
        replica: id,
        room: Arc::new(Semaphore::new(room_bytes)),
        room_bytes,
        held: Arc::new(Semaphore::new(room_bytes)),
        checkpoint_every: CHECKPOINT_EVERY,
    });
    let (failing, broken) = (Failing::default(), CancellationToken::new());
    let Some(sites) = open_sites(&config, &shared, status.health(), &failing, &stop).await? else {
        pages.end("admin", config.stop.admin.get()).await;
        return Ok(());
    };
    let registries: Vec<_> = sites.iter().map(|site| site.registry()).collect();
    let signs = |registry: &std::sync::Mutex<Registry>| {
        crate::intake::pipeline::lock(registry).latches().next().is_some()
    };
    if !watch.existed() && registries.iter().any(|registry| signs(registry)) {
        return Err(DevicesError::Gone { path: data_dir.join(crate::devices::FILE) }.into());
    }

    status.show_bucket(Shown {
        source: config.source.url().to_owned(),
        queue: config.source.queue.clone(),
        replica: hex::encode(id),
        sites: config.sites.iter().map(|site| site.name.clone()).collect(),
        failing: failing.clone(),
    });
    let parts = vitals::Parts {
        health: status.health().clone(),
        metrics: Arc::clone(&metrics),
        books: Arc::clone(&books),
        data_keys: Arc::clone(&data_keys),
        kms: calls,
        registries,
        uploads: None,
        data: data_dir.clone(),
        sink: vitals::SinkOf::Bucket(failing.clone()),
    };
    let looks = vitals::Looks::begin(parts, status.rates().clone()).await;
    let looks = Onlooker::spawn(|stop| looks.run(stop));
    let pace = Pace {
        poll: config.source.poll(),
        sweep: config.source.sweep.get(),
        grace: config.source.grace.get(),
        retry_max: std::time::Duration::from_secs(60),
    };
    let (working, end) = (CancellationToken::new(), CancellationToken::new());
    let (notices, heard) = mpsc::channel(NOTICES);
    let replica =
        Replica::new(sites, id, pace, Arc::clone(&metrics), failing.clone(), broken.clone(), working.clone());
    let mut working_task = tokio::spawn(replica.run(heard));
    let feeding = match &config.source.queue {
        None => None,
        Some(url) => {
            let (region, visibility) = (config.source.region.as_deref(), config.source.visibility.get());
            let queue = Queue::from_environment(url, region, visibility).await;
            let feed = Feed::new(queue, Arc::clone(&metrics));
            let bucket = bucket_of(&config);
            let read = move |body: &str| notice::read(body, bucket.as_deref(), &prefix);
            let said = move |error: Option<&QueueError>| match error {
                Some(error) => failing.note("queue", error.to_string()),
                None => failing.clear(&["queue"]),
            };
            Some(tokio::spawn(feed.run(read, notices, said, working.clone(), end.clone())))
        }
    };

    status.enter(Phase::Serving);
    let writing = metrics.writing.clone();
    let (lamps, busy_for) = (status.health().lamps().clone(), move || writing.busy_for());
    let supervisor =
        Onlooker::spawn(|stop| supervisor::follow(Asked::from_environment(), lamps, busy_for, stop));
    tracing::info!(
        event = "program.ready", admin = %addresses.admin, source = config.source.url(), sink = config.sink.url(),
        replica = hex::encode(id)
    );
    let _ = started.send(addresses);

    let mut poll = tokio::time::interval(config.keys.poll.get());
    let mut sweep = tokio::time::interval(super::SWEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = broken.cancelled() => break,
            _ = sweep.tick() => data_keys.sweep().await,
            _ = poll.tick() => {
                take_in(&data_dir, &mut bundles, &books, &metrics, &data_keys);
                look_at_devices(&mut watch, &devices, None, &metrics);
            }
            order = next(&mut reloads, &mut orders) => {
                let mut outcome = read_again(path, &config);
                bundles.forget();
                outcome.warnings.extend(take_in(&data_dir, &mut bundles, &books, &metrics, &data_keys));
                watch.forget();
                look_at_devices(&mut watch, &devices, None, &metrics);
                // Whoever has read of it in the log finds it in the status.
                status.reload.last.note(outcome.clone(), clock::since_boot());
                outcome.log();
                if let Some(answer) = order {
                    // Whoever asked may have gone away; it was done all the same.
                    let _ = answer.send(outcome);
                }
            }
        }
    }

    status.enter(if broken.is_cancelled() { Phase::Failed } else { Phase::Stopping });
    working.cancel();
    within("pipeline", config.stop.pipeline.get(), async {
        if (&mut working_task).await.is_err() {
            tracing::error!(event = "stop.failed", part = "pipeline");
        }
    })
    .await;
    // What did not end in time is left to others: entries stand, and output is anybody's to write.
    working_task.abort();
    end.cancel();
    if let Some(feeding) = feeding {
        within("queue", config.stop.ledger.get(), async {
            let _ = feeding.await;
        })
        .await;
    }
    let limit = config.stop.admin.get();
    looks.end("looks", limit).await;
    pages.end("admin", limit).await;
    supervisor.end("supervisor", limit).await;
    let result = match broken.is_cancelled() {
        false => Ok(()),
        true => Err(ProgramError::new(
            ErrorReason::StateDamaged,
            "the ledger in the bucket is damaged; the log says where",
        )
        .affects("nothing is applied by any replica that has read so far")
        .todo("restore the object that is named, from a version of it or a backup; then start again")),
    };
    tracing::info!(event = "program.stopped", ok = result.is_ok());
    result
}

/// Reads the ledger of each site; none if it is told to stop meanwhile. A store that does not answer is asked again, for as long as it
/// takes, and health says so; a ledger that is damaged stops its own site, and the program only where no other is left.
async fn open_sites(
    config: &Config,
    shared: &Arc<Shared>,
    health: &vitals::Health,
    failing: &Failing,
    stop: &CancellationToken,
) -> Result<Option<Vec<Arc<SiteReplica>>>, ProgramError> {
    let (mut opened, mut damage) = (Vec::new(), None);
    for site in &config.sites {
        let mut failures = 0_u32;
        loop {
            let result = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                result = SiteReplica::open(Arc::clone(shared), site.name.clone()) => result,
            };
            let error = match result {
                Ok(site) => {
                    opened.push(Arc::new(site));
                    break;
                }
                Err(error) if error.is_fatal() => {
                    tracing::error!(event = "ledger.damaged", %error, site = %site.name, "nothing of this site is decided by this replica");
                    failing.broken(&site.name, error.to_string());
                    damage = damage.or(Some(error));
                    break;
                }
                Err(error) if error.is_passing() => error,
                Err(error) => return Err(error.into()),
            };
            let wait = OPEN_AGAIN.saturating_mul(1 << failures.min(5));
            failures += 1;
            let wait = pithead_hop::backoff::spread(wait, pithead_hop::backoff::random());
            tracing::warn!(event = "ledger.not_opened", %error, site = %site.name, wait_ms = wait.as_millis() as u64);
            health.set("disk", Level::Down, format!("the ledger of site {}: {error}", site.name));
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
    match damage {
        Some(error) if opened.is_empty() => Err(error.into()),
        _ => Ok(Some(opened)),
    }
}

/// Nothing in the file is taken by a replica that runs: what is another is named, and waits for a restart. A replica is restarted
/// whenever somebody likes.
fn read_again(path: &Path, in_force: &Config) -> Outcome {
    let read = || {
        let new = Config::load(path)?;
        let taken = change::take(&Effective::of(in_force)?, &Effective::of(&new)?, Live(&[]));
        Ok::<_, ProgramError>(Outcome { needs_restart: taken.needs_restart, ..Outcome::default() })
    };
    let outcome = read().unwrap_or_else(Outcome::from);
    // Whole, for whoever asks from another folder.
    Outcome { file: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), ..outcome }
}

/// The source's bucket, as events name it; none of a folder.
fn bucket_of(config: &Config) -> Option<String> {
    match store::settings_of_source(&config.source).location() {
        Ok(Location::Bucket { bucket, .. }) => Some(bucket),
        Ok(Location::Folder(_)) | Err(_) => None,
    }
}

fn take_in(
    data_dir: &std::path::Path,
    bundles: &mut Bundles,
    books: &ArcSwap<Books>,
    metrics: &Metrics,
    data_keys: &DataKeys,
) -> Vec<String> {
    let mut fresh = Books::clone(&books.load());
    // Nothing is ever withdrawn here: other names of files wait for a restart.
    let Look { changed, warnings, .. } = bundles.look(data_dir, &mut fresh);
    if changed {
        show_statement(metrics, &fresh, data_keys);
        books.store(Arc::new(fresh));
    }
    warnings
}

impl From<crate::ledger::objects::ChainError> for ProgramError {
    fn from(error: crate::ledger::objects::ChainError) -> Self {
        let todo = if error.is_fatal() {
            "restore the object that is named, from a version of it or a backup; entries of the ledger are never to expire"
        } else {
            "check [sink] url, the credentials, and what their policy allows"
        };
        Self::new(error.reason(), format!("the ledger: {error}")).affects("nothing is applied").todo(todo)
    }
}
