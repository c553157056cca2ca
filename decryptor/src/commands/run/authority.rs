//! `[authority]`: the authority's folder beside the decryptor. Its statements are issued again when they are due; what was issued is
//! in the books and with the gateways at once; every statement of the folder is known, also one that no bundle brought.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pithead_hop::program::{ProgramError, clock};
use pithead_sealing::Site;
use pithead_sealing::trust::UnixTime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::Status;
use crate::authority::{
    AuthorityError, DataKeyCheck, Failure, Folder, KeyPlace, Reissuer, SiteStanding, Turn, rfc3339,
};
use crate::books::Books;
use crate::config::Config;
use crate::kms::{Kms, KmsTimeouts};
use crate::metrics::{Metrics, ReasonLabel, SiteLabel};

/// How long an act may go on when the program stops: one call of KMS, and what is written after it.
pub(super) const STOP: Duration = Duration::from_secs(12);

/// The authority's folder, if there is one.
#[derive(Debug, Default)]
pub(super) struct Authority {
    folder: Option<Folder>,
    /// The newest statement of each site that the books have been told of.
    learned: BTreeMap<Site, u64>,
    issued: Arc<Notify>,
}

impl Authority {
    /// A folder or a key file that is not there is said at once. That KMS is away is not: nothing is due yet, perhaps.
    pub(super) async fn open(config: &Config) -> Result<Self, ProgramError> {
        let Some(authority) = &config.authority else { return Ok(Self::default()) };
        let refused = |error: AuthorityError| {
            ProgramError::new(error.reason(), format!("[authority]: {error}"))
                .affects("nothing is taken from any gateway")
                .todo("check [authority] dir and statement_key")
        };
        let folder = Folder::open(&authority.dir).map_err(refused)?;
        if let Some(key @ KeyPlace::File { .. }) = key_file(config) {
            key.open().await.map_err(refused)?;
        }
        Ok(Self { folder: Some(folder), ..Self::default() })
    }

    /// Tells the books of statements that they have not heard of: devices may name them.
    pub(super) fn learn(&mut self, books: &mut Books) {
        let Some(folder) = &self.folder else { return };
        if let Err(error) = learn(folder, &mut self.learned, books) {
            let reason = error.reason();
            tracing::error!(event = "authority.unreadable", code = reason.code(), reason = reason.name(), %error);
        }
    }

    /// Returns when bundles were written that nobody has looked at.
    pub(super) async fn issued(&self) {
        self.issued.notified().await;
    }

    /// Begins to issue statements again.
    pub(super) async fn start(
        &self,
        config: &Config,
        kms: Option<Kms>,
        metrics: Arc<Metrics>,
        status: &Status,
        stop: CancellationToken,
    ) -> Option<JoinHandle<()>> {
        let authority = config.authority.as_ref()?;
        let check = authority.check_data_keys.unwrap_or(config.unwrap.kms);
        let kms = match kms {
            // Asked for once: without it nobody looks for credentials and regions.
            None if check || authority.statement_kms_key.is_some() => {
                Some(Kms::from_environment(KmsTimeouts::default()).await)
            }
            kms => kms,
        };
        let key = match (&authority.statement_kms_key, &kms) {
            (Some(arn), Some(kms)) => KeyPlace::Kms { kms: kms.clone(), arn: arn.clone() },
            _ => key_file(config)?,
        };
        let elsewhere = config.unwrap.local.iter().map(|key| key.arn.clone()).collect();
        let check = kms.filter(|_| check).map(|kms| DataKeyCheck { kms, elsewhere });
        let reissuer =
            Reissuer::new(authority.dir.clone(), authority.every.get(), key, check).until(stop.clone());
        let standing = Arc::new(ArcSwap::from_pointee(Vec::new()));
        status.show_authority(Arc::clone(&standing));
        Some(tokio::spawn(work(reissuer, metrics, standing, Arc::clone(&self.issued), stop)))
    }
}

fn key_file(config: &Config) -> Option<KeyPlace> {
    let authority = config.authority.as_ref().filter(|authority| authority.statement_kms_key.is_none())?;
    let path = authority.statement_key.clone();
    let path: PathBuf = path.unwrap_or_else(|| authority.dir.join("keys/statement-1.pem"));
    Some(KeyPlace::File { path, passphrase_file: authority.statement_passphrase_file.clone() })
}

fn learn(
    folder: &Folder,
    learned: &mut BTreeMap<Site, u64>,
    books: &mut Books,
) -> Result<(), AuthorityError> {
    let roots = folder.roots()?;
    for site in folder.sites()? {
        let known = learned.entry(site.clone()).or_default();
        for statement in folder.statements_after(&site, *known, &roots)? {
            books.learn(&statement);
            *known = statement.sequence;
        }
    }
    Ok(())
}

/// Looks, sleeps until the next look, and tells of what has come of it.
async fn work(
    mut reissuer: Reissuer,
    metrics: Arc<Metrics>,
    standing: Arc<ArcSwap<Vec<SiteStanding>>>,
    issued: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        // Files and signatures: not on a thread that serves connections.
        let runtime = tokio::runtime::Handle::current();
        let turn = tokio::task::spawn_blocking(move || {
            let now = UnixTime(clock::wall_s());
            let turn = runtime.block_on(reissuer.turn(now, pithead_hop::backoff::random()));
            (reissuer, turn)
        });
        let turn = match turn.await {
            Ok((back, turn)) => {
                reissuer = back;
                turn
            }
            Err(error) => {
                tracing::error!(event = "authority.ended", %error, "no statement is issued again until a restart");
                return;
            }
        };
        tell(&turn, &metrics);
        if turn.bundles_changed {
            issued.notify_one();
        }
        let wait = turn.look_again.since(UnixTime(clock::wall_s())).max(1);
        standing.store(Arc::new(turn.standing));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(wait)) => {}
        }
    }
}

fn tell(turn: &Turn, metrics: &Metrics) {
    for issued in &turn.issued {
        metrics.authority_reissued.inc();
        let statement = &issued.statement;
        let sites: Vec<&str> = statement.sites.iter().map(Site::as_str).collect();
        tracing::info!(
            event = "authority.reissued", sites = sites.join(","), sequence = statement.sequence,
            digest = %statement.digest(), expires_at = rfc3339(statement.expires_at)
        );
    }
    for Failure { sites, error, retry_at } in &turn.failures {
        let reason = error.reason();
        metrics.authority_failures.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
        let sites: Vec<&str> = sites.iter().map(Site::as_str).collect();
        if let AuthorityError::DataKey { arn, .. } | AuthorityError::Fingerprint(arn) = error {
            tracing::error!(
                event = "authority.data_key", %arn, code = reason.code(), reason = reason.name(), %error,
                "vehicles seal to this key, or are to: enable it, or rotate"
            );
        }
        tracing::error!(
            event = "authority.reissue_failed", sites = sites.join(","), code = reason.code(), reason = reason.name(),
            %error, retry_at = rfc3339(*retry_at), "what was signed last goes on being served"
        );
    }
    for SiteStanding { site, issued_at, due_at, .. } in &turn.standing {
        let label = SiteLabel { site: site.to_string() };
        let seconds = |at: &UnixTime| i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
        metrics.authority_issued.get_or_create(&label).set(seconds(issued_at));
        metrics.authority_due.get_or_create(&label).set(seconds(due_at));
    }
    let failing = turn.standing.iter().filter(|site| site.retry_at.is_some()).count();
    metrics.authority_failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
}
