//! `check`: whether this decryptor would serve, and go on serving, with what is to be mended.
//!
//! In the order in which somebody would look: the file and what it names; KMS, with a limit; the machine; and what a decryptor
//! that runs says of itself. `--pre` is for before the first start.
//!
//! KMS is asked for the public half of each key that a statement names (DescribeKey, GetPublicKey) and not to decrypt: a check
//! costs no unwrapping, and proves no permission to unwrap.

use crate::authority::{Folder, overview};
use crate::books::Published;
use crate::commands::authority::Output;
use crate::commands::{run, status};
use crate::config::{Config, SinkKind, SourceKind};
use crate::devices;
use crate::kms::{Kms, KmsTimeouts};
use crate::sites;
use crate::source::sqs::Queue;
use crate::store;
use crate::unwrap::LocalKeys;
use pithead_hop::program::check::{
    CONFIGURATION, CONNECTIVITY, Finding, Grade, PRODUCTION, RUNNING, Report,
    machine::{self, Budget, Mark},
    papers,
};
use pithead_hop::program::paint::Paint;
use pithead_hop::program::{ExitCode, ProgramError, clock, files, human, units};
use pithead_hop::tls::Pem;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{KeyArn, KeyStatus, Sha256Digest, UnixTime};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `check`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "decryptor.toml")]
    pub config: PathBuf,
    /// What can be known before the first start: the ports are to be free, and no decryptor is asked how it is
    #[arg(long)]
    pub pre: bool,
    /// How long each answer may take
    #[arg(long, default_value = "5s", value_name = "TIME")]
    pub timeout: units::Duration,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Checks, and says what was found.
///
/// # Errors
/// None: what is wrong is in the report.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub async fn run(args: &Args, paint: Paint) -> Result<ExitCode, ProgramError> {
    let mut report = Report::default();
    match Config::load(&args.config) {
        Ok(config) => {
            let what = format!("{}: every key is known and has a value that can be", args.config.display());
            report.add(CONFIGURATION, "file", Finding::ok(what));
            look(args, &config, &mut report).await;
        }
        Err(error) => {
            report.add(CONFIGURATION, "file", Finding::of(&ProgramError::from(error), Grade::Failure));
        }
    }
    match args.output {
        Output::Json => println!("{:#}", serde_json::to_value(&report).unwrap_or_default()),
        Output::Table => print!("{}", report.table(paint)),
    }
    Ok(report.exit())
}

async fn look(args: &Args, config: &Config, report: &mut Report) {
    let local = configuration(config, report);
    let published = bundles(config, report);
    let limit = args.timeout.get();
    let asked = kms(config, &published, local.as_ref(), limit);
    let (keys, synchronised) = tokio::join!(asked, machine::synchronised(limit));
    for (name, finding) in keys {
        report.add(CONNECTIVITY, name, finding);
    }
    let now = clock::wall_s();
    let in_bucket = config.source.kind == SourceKind::S3;
    if in_bucket {
        buckets(config, limit, report).await;
    }
    let began = Pem::read(&config.decryptor.certificate).ok().and_then(|pem| papers::validity(&pem));
    let began = began.map(|validity| Mark { what: "this certificate begins".into(), at_s: validity.from_s });
    let issued = published.iter().map(|one| Mark {
        what: format!("the statement of {} was issued", one.site),
        at_s: one.statement.issued_at.as_secs(),
    });
    let marks: Vec<Mark> = began.into_iter().chain(issued).collect();
    report.add(PRODUCTION, "clock", machine::clock(now, &marks));
    report.add(PRODUCTION, "time service", synchronised);
    dated(config, in_bucket, now, report);
    for one in &published {
        let another =
            "issue another: pithead-decryptor authority statement, or let [authority] do it by itself";
        let finding = papers::statement(one.statement.fields(), now, another);
        report.add(PRODUCTION, format!("statement of {}", one.site), finding);
    }
    if in_bucket {
        report.add(PRODUCTION, "disk", machine::disk(&config.decryptor.data_dir));
    } else {
        disk(config, report);
        report.add(PRODUCTION, "open files", open_files(config));
    }
    report.add(PRODUCTION, "admin port", machine::admin_port(&config.admin.listen));
    if args.pre {
        if !in_bucket {
            report.add(PRODUCTION, "[ingest] listen", machine::port(config.ingest.listen));
        }
        report.add(PRODUCTION, "[admin] listen", machine::admin_listen(&config.admin.listen));
        return;
    }
    match status::statusz(&config.admin.listen) {
        Ok(status) => running(&status, report),
        Err(error) => {
            let finding = Finding::of(&error, Grade::Warning)
                .todo("start it; before the first start `check --pre` looks at what can be known then");
            report.add(RUNNING, "decryptor", finding);
        }
    }
}

/// What the file names. Gives the private keys that are here.
fn configuration(config: &Config, report: &mut Report) -> Option<LocalKeys> {
    if config.source.kind == SourceKind::S3 {
        let names: Vec<&str> = config.sites.iter().map(|site| site.name.as_str()).collect();
        report.add(CONFIGURATION, "sites", Finding::ok(names.join(", ")));
    } else {
        let tls = run::tls(config).and_then(|tls| Ok(tls.build().map(drop)?));
        report.add(
            CONFIGURATION,
            "certificates",
            match tls {
                Ok(()) => Finding::ok("certificate, key, and the CAs of the sites fit"),
                Err(error) => Finding::of(&error, Grade::Failure),
            },
        );
    }
    if let Some(known) = sites::list(config).ok().filter(|_| config.source.kind == SourceKind::Grpc) {
        let names: Vec<String> = known.iter().map(|site| site.name.to_string()).collect();
        if !names.is_empty() {
            report.add(CONFIGURATION, "sites", Finding::ok(names.join(", ")));
        }
    }
    report.add(
        CONFIGURATION,
        "device registry",
        match devices::list(&config.decryptor.data_dir) {
            Ok(known) => Finding::ok(human::some(known.len() as u64, "device", "devices")),
            Err(error) => Finding::of(&error.into(), Grade::Failure),
        },
    );
    if let Some(section) = &config.authority {
        let now = UnixTime(clock::wall_s());
        let shown = Folder::open(&section.dir).and_then(|folder| overview(&folder, now));
        report.add(
            CONFIGURATION,
            "authority",
            match shown {
                Ok(shown) => Finding::ok(format!(
                    "{}, root version {} until {}, statements signed by: {}",
                    shown.authority, shown.root_version, shown.root_expires_at, shown.custody
                )),
                Err(error) => {
                    Finding::failure(error.reason(), error.to_string()).todo("check [authority] dir")
                }
            },
        );
    }
    if config.unwrap.local.is_empty() {
        return None;
    }
    let files = config.unwrap.local.iter().map(|key| (key.arn.clone(), key.private_key.as_path()));
    match LocalKeys::load(files) {
        Ok(keys) => {
            let count = human::some(config.unwrap.local.len() as u64, "private key", "private keys");
            report.add(CONFIGURATION, "[[unwrap.local]]", Finding::ok(format!("{count} in files")));
            Some(keys)
        }
        Err(error) => {
            let finding = Finding::failure(ErrorReason::ConfigInvalid, error.to_string());
            report.add(CONFIGURATION, "[[unwrap.local]]", finding.todo("check [[unwrap.local]]"));
            None
        }
    }
}

/// The newest bundle of each site, out of the files that are named and the authority's folder.
fn bundles(config: &Config, report: &mut Report) -> Vec<Published> {
    let mut paths = config.keys.bundles.clone();
    if let Some(authority) = &config.authority {
        // It is made with the first bundle.
        let entries = std::fs::read_dir(authority.dir.join("bundles")).into_iter().flatten().flatten();
        let found =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ext| ext == "pb"));
        paths.extend(found);
    }
    let mut newest: BTreeMap<String, Published> = BTreeMap::new();
    for path in &paths {
        match Published::read(path) {
            Ok(one) => {
                let name = one.site.to_string();
                let is_newer = |held: &Published| one.statement.version() > held.statement.version();
                if newest.get(&name).is_none_or(is_newer) {
                    newest.insert(name, one);
                }
            }
            Err(error) => {
                let finding = Finding::failure(error.reason(), error.to_string()).todo(
                    "have the authority write it again: pithead-decryptor authority statement --out FILE",
                );
                report.add(CONFIGURATION, "bundle", finding);
            }
        }
    }
    if newest.is_empty() {
        let finding = Finding::warning("no bundle: gateways get no keys from here until there is one")
            .because(ErrorReason::KeysNotReady)
            .todo("pithead-decryptor authority statement --out FILE, and name the file in [keys] bundles");
        report.add(CONFIGURATION, "bundle", finding);
    } else {
        let names: Vec<&str> = newest.keys().map(String::as_str).collect();
        report.add(CONFIGURATION, "bundle", Finding::ok(format!("verified, of {}", names.join(", "))));
    }
    newest.into_values().collect()
}

/// Every key that something may be sealed to, and who unwraps it.
async fn kms(
    config: &Config,
    published: &[Published],
    local: Option<&LocalKeys>,
    limit: Duration,
) -> Vec<(String, Finding)> {
    let mut keys: BTreeMap<KeyArn, Option<(KeyStatus, Sha256Digest)>> =
        config.keys.allow.iter().map(|arn| (arn.clone(), None)).collect();
    for key in published.iter().flat_map(|one| &one.statement.keys) {
        if key.status != KeyStatus::Revoked {
            keys.insert(key.arn.clone(), Some((key.status, key.fingerprint)));
        }
    }
    if keys.is_empty() {
        return vec![("keys".to_owned(), Finding::skipped("no statement here names a key yet"))];
    }
    let kms = match config.unwrap.kms {
        true => Some(Kms::from_environment(KmsTimeouts::default()).await),
        false => None,
    };
    let asked = keys.iter().map(|(arn, stated)| {
        let kms = kms.as_ref();
        async move {
            let status =
                stated.map_or("allowed".to_owned(), |(status, _)| format!("{status:?}").to_lowercase());
            let held = local.is_some_and(|local| crate::unwrap::KeyUnwrapper::may_hold(local, arn));
            let finding = match kms {
                _ if held => Finding::ok(format!("{arn} is in a file here")),
                Some(kms) => kms_key(kms, arn, stated.map(|(_, fingerprint)| fingerprint), limit).await,
                None => Finding::failure(ErrorReason::KmsKeyNotFound, format!("nobody unwraps {arn}"))
                    .todo("set [unwrap] kms, or name its private key in [[unwrap.local]]"),
            };
            (format!("{status} key"), finding)
        }
    });
    futures_util::future::join_all(asked).await
}

async fn kms_key(kms: &Kms, arn: &KeyArn, stated: Option<Sha256Digest>, limit: Duration) -> Finding {
    let explained = |reason: ErrorReason| format!("pithead-decryptor explain {}", reason.code());
    match tokio::time::timeout(limit, kms.sealing_key(arn)).await {
        Err(_) => {
            let what = format!("{arn}: no answer within {}", human::span(limit));
            Finding::failure(ErrorReason::KmsUnreachable, what).todo(explained(ErrorReason::KmsUnreachable))
        }
        Ok(Err(error)) if error.fault.reason() == ErrorReason::KmsDenied => {
            // A role that may decrypt and nothing else is as it should be.
            Finding::warning(format!("{arn}: KMS answers, and this role may not look at the key"))
                .because(ErrorReason::KmsDenied)
                .todo("allow kms:DescribeKey and kms:GetPublicKey for the check, or see with the first envelope that it may decrypt")
        }
        Ok(Err(error)) => {
            let reason = error.fault.reason();
            Finding::failure(reason, format!("{arn}: {}", error.cause())).todo(explained(reason))
        }
        Ok(Ok(spki)) if stated.is_some_and(|stated| stated != spki.fingerprint()) => Finding::failure(
            ErrorReason::KmsFingerprint,
            format!("{arn}: KMS has another key than was stated"),
        )
        .todo("find out which is wrong before anything else"),
        Ok(Ok(_)) => Finding::ok(format!("{arn} is enabled, and is the one that was stated")),
    }
}

/// Whether the buckets and the queue answer, and the sink's creates once what is created.
async fn buckets(config: &Config, limit: Duration, report: &mut Report) {
    let silent = |what: &str| {
        let words = format!("{what}: no answer within {}", human::span(limit));
        Finding::failure(ErrorReason::StoreUnreachable, words)
            .todo("check endpoint and region, and the way there")
    };
    let source = async {
        let opened = store::open_source(&config.source).await?;
        let mut found = 0_u64;
        // One page says that it may be listed.
        let below = opened.root.clone().join("bundles");
        let mut listing = opened.store.list(Some(&below));
        while let Some(object) = futures_util::StreamExt::next(&mut listing).await {
            object.map_err(|error| store::refused("source", &error))?;
            found += 1;
            if found == 1_000 {
                break;
            }
        }
        Ok::<_, ProgramError>(found)
    };
    let finding = match tokio::time::timeout(limit, source).await {
        Err(_) => silent(config.source.url()),
        Ok(Ok(1_000)) => Finding::ok(format!("{}: it is listed, 1,000 bundles or more", config.source.url())),
        Ok(Ok(found)) => {
            let bundles = human::some(found, "bundle", "bundles");
            Finding::ok(format!("{}: it is listed, {bundles}", config.source.url()))
        }
        Ok(Err(error)) => Finding::of(&error, Grade::Failure),
    };
    report.add(CONNECTIVITY, "[source] url", finding);
    let sink = async {
        let opened = store::open_sink(&config.sink).await?;
        store::probe(&opened, config.sink.url()).await
    };
    let finding = match tokio::time::timeout(limit, sink).await {
        Err(_) => silent(config.sink.url()),
        Ok(Ok(())) => Finding::ok(format!("{}: what is created is created once", config.sink.url())),
        Ok(Err(error)) => Finding::of(&error, Grade::Failure),
    };
    report.add(CONNECTIVITY, "[sink] url", finding);
    let Some(url) = &config.source.queue else { return };
    let (region, visibility) = (config.source.region.as_deref(), config.source.visibility.get());
    let asked = async { Queue::from_environment(url, region, visibility).await.attributes().await };
    let finding = match tokio::time::timeout(limit, asked).await {
        Err(_) => silent(url),
        Ok(Err(error)) => Finding::failure(error.reason(), error.to_string())
            .todo("check [source] queue, and what the role may do with it"),
        Ok(Ok(queue)) if !queue.has_dead_letters => Finding::warning(
            "the queue has no dead-letter queue: a message that is no bundle's comes for ever",
        )
        .todo("set a redrive policy on the queue"),
        Ok(Ok(queue)) => Finding::ok(format!("{} waiting, {} in flight", queue.waiting, queue.in_flight)),
    };
    report.add(CONNECTIVITY, "[source] queue", finding);
}

fn dated(config: &Config, in_bucket: bool, now: u64, report: &mut Report) {
    let own = &config.decryptor;
    if !in_bucket {
        let renew = "have its CA sign it again, put it in its place, and have the decryptor reload (SIGHUP)";
        report.add(PRODUCTION, "certificate", papers::certificate(&own.certificate, now, renew));
        let thief = "be this decryptor towards gateways";
        report.add(PRODUCTION, "private key", papers::private_file(&own.private_key, thief));
    }
    for key in &config.unwrap.local {
        let finding = papers::private_file(&key.private_key, "read everything that was sealed to it");
        report.add(PRODUCTION, "key of an opener", finding);
    }
    let statement_key = config.authority.as_ref().filter(|one| one.statement_kms_key.is_none());
    if let Some(authority) = statement_key {
        let path = authority.statement_key.clone();
        let path = path.unwrap_or_else(|| authority.dir.join("keys/statement-1.pem"));
        let finding = papers::private_file(&path, "name keys to every device");
        report.add(PRODUCTION, "statement key", finding);
    }
    if in_bucket {
        return;
    }
    for site in sites::list(config).unwrap_or_default() {
        let renew =
            "have the site make a new one, put it beside the old one in the same file, and reload (SIGHUP)";
        report.add(PRODUCTION, format!("CA of {}", site.name), papers::certificate(&site.ca, now, renew));
        for path in &site.crls {
            let finding = papers::revocation_list(path, now, false);
            report.add(PRODUCTION, format!("revocation list of {}", site.name), finding);
        }
    }
}

fn disk(config: &Config, report: &mut Report) {
    let data = &config.decryptor.data_dir;
    report.add(PRODUCTION, "disk", machine::disk(data));
    if data.is_dir() {
        let budgets = [Budget { name: "uploads", bytes: config.uploads.max_size.get() }];
        report.add(PRODUCTION, "disk space", machine::space(data, &budgets));
        report.add(PRODUCTION, "sync latency", machine::sync_latency(data));
    }
    let mut sink = machine::sync_latency(&beside(&config.sink.path, config.sink.kind));
    if sink.grade == Grade::Failure {
        sink.reason = Some(ErrorReason::SinkFailed);
        sink.todo = Some("make the folder that sink.path is in, or give it to this user".into());
    } else {
        sink.words = format!("{}: {}", config.sink.path.display(), sink.words);
    }
    report.add(PRODUCTION, "sink", sink);
}

/// Where a file can be tried without being taken for something that was delivered.
fn beside(sink: &Path, kind: SinkKind) -> PathBuf {
    let own = sink.join(".tmp");
    match kind {
        SinkKind::Folder if own.is_dir() => own,
        SinkKind::Folder | SinkKind::Jsonl | SinkKind::Objects => {
            sink.parent().map_or_else(PathBuf::new, Path::to_owned)
        }
    }
}

fn open_files(config: &Config) -> Finding {
    let files = files::raise_limit();
    let mut limits = config.ingest.limits.clone();
    match limits.fit_files(files) {
        None => Finding::ok(format!("{files} for {} connections, for this user here", limits.connections)),
        Some(room) => Finding::warning(format!(
            "{files}: there is room for {room} of the {} connections in [ingest.limits]",
            config.ingest.limits.connections
        ))
        .todo("raise the hard limit (LimitNOFILE= of the unit), or lower `connections`"),
    }
}

fn running(status: &serde_json::Value, report: &mut Report) {
    let (version, own) = (status["version"].as_str().unwrap_or("?"), env!("CARGO_PKG_VERSION"));
    report.add(
        RUNNING,
        "decryptor",
        if !status::serves(status) {
            let phase = status["phase"].as_str().unwrap_or("?");
            Finding::failure(ErrorReason::NotReady, format!("it does not serve: {phase}"))
                .todo("see its log; `status` says more")
        } else if version != own {
            Finding::warning(format!("it is of version {version}, and this program of {own}"))
                .todo("restart it with the new program")
        } else {
            Finding::ok(format!("version {version}, serving"))
        },
    );
    for what in status::attention(status) {
        report.add(RUNNING, "to be looked at", Finding::warning(what));
    }
}
