//! `check`: whether this gateway would serve, and go on serving, with what is to be mended.
//!
//! In the order in which somebody would look: the file and what it names; whoever it talks to, each with a limit; the machine;
//! and what a gateway that runs says of itself. `--pre` is for before the first start: the ports have to be free, and nobody
//! is asked who cannot be there yet.
//!
//! A WAN that is away is a warning: a gateway without it is degraded and ready. No statement, here or from the source, is a
//! failure: devices could not be told of a key.

mod jetstream;
mod remote;

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use pithead_hop::program::check::{
    CONFIGURATION, CONNECTIVITY, Finding, Grade, PRODUCTION, RUNNING, Report,
    machine::{self, Budget, Mark},
    papers,
};
use pithead_hop::program::paint::Paint;
use pithead_hop::program::{ExitCode, ProgramError, clock, files, human, units};
use pithead_hop::tls::{CrlExpiry, Pem};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::Device;

use self::remote::Remote;
use super::certificate::papers_of;
use super::key::last_known_good;
use super::meaning::text;
use super::reading::{Rates, Reading, since_start};
use crate::cli::Output;
use crate::config::Config;
use crate::devices::file::RegistryFile;
use crate::run::directory::DirectoryError;
use crate::run::material::Material;

/// A gateway alone should hold out for a day: that is when somebody comes on a working day.
const HEADROOM_MIN: Duration = Duration::from_secs(86_400);
/// Rates are measured over at least this long.
const MEASURED_MIN: Duration = Duration::from_secs(1);

/// `check ...`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: crate::cli::ConfigArg,
    /// What can be known before the first start: the ports are to be free, and no gateway is asked how it is.
    #[arg(long)]
    pre: bool,
    /// How long each step of each connection may take.
    #[arg(long, default_value = "5s", value_name = "TIME")]
    timeout: units::Duration,
    #[command(flatten)]
    output: crate::cli::OutputArg,
}

/// Checks, and says what was found.
///
/// # Errors
/// When the result cannot be written.
pub fn run(args: &Args, paint: Paint, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let mut report = Report::default();
    match Config::load(&args.config.config) {
        Ok(config) => {
            let what =
                format!("{}: every key is known and has a value that can be", args.config.config.display());
            report.add(CONFIGURATION, "file", Finding::ok(what));
            let failed = |error: std::io::Error| ProgramError::new(ErrorReason::Internal, error.to_string());
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            runtime.block_on(look(args, &config, &mut report));
            // A look-up that nobody waits for any more goes on on its own thread.
            runtime.shutdown_background();
        }
        Err(error) => {
            report.add(CONFIGURATION, "file", Finding::of(&ProgramError::from(error), Grade::Failure));
        }
    }
    let text = match args.output.output {
        Output::Json => super::json(&serde_json::to_value(&report).unwrap_or_default()),
        Output::Table => report.table(paint),
    };
    super::write(out, &text)?;
    Ok(report.exit())
}

async fn look(args: &Args, config: &Config, report: &mut Report) {
    // Read first, and again when everything else is done: what came in between is the rate.
    let first = if args.pre { None } else { Some(Reading::take(&config.admin.listen)) };
    let material = configuration(config, report);
    let (kept, damaged) = match last_known_good(&config.gateway.data_dir) {
        Ok((_, device)) => (Some(device), None),
        Err(error) if error.reason == ErrorReason::KeysNotReady => (None, None),
        Err(error) => (None, Some(error)),
    };
    let limit = args.timeout.get();
    let synchronised = machine::synchronised(limit);
    let asked = async {
        match &material {
            Some(material) => Some(Remote { config, material, kept: kept.as_ref(), limit }.ask(report).await),
            None => {
                let why = "not asked: the files that it takes are not in order";
                report.add(CONNECTIVITY, "peers", Finding::skipped(why));
                None
            }
        }
    };
    let (fetched, synchronised) = tokio::join!(asked, synchronised);
    if let Some(material) = &material {
        jetstream::look(config, &material.name, limit, report).await;
    }
    let now = clock::wall_s();
    machine_clock(config, kept.as_ref(), now, synchronised, report);
    dated(config, now, report);
    disk(config, report);
    let fetched = fetched.flatten();
    let statement = damaged.map_or_else(
        || statement(kept.as_ref(), fetched.as_ref(), now),
        |error| Finding::of(&error, Grade::Failure),
    );
    report.add(PRODUCTION, "key statement", statement);
    report.add(PRODUCTION, "open files", open_files(config));
    report.add(PRODUCTION, "admin port", machine::admin_port(&config.admin.listen));
    match first {
        None => ports(config, report),
        Some(Err(error)) => {
            let finding = Finding::of(&error, Grade::Warning)
                .todo("start it; before the first start `check --pre` looks at what can be known then");
            report.add(RUNNING, "gateway", finding);
        }
        Some(Ok(first)) => {
            tokio::time::sleep_until((first.at + MEASURED_MIN).into()).await;
            let second = Reading::take(&config.admin.listen);
            running(&first, report);
            report.add(
                PRODUCTION,
                "headroom",
                second.map_or_else(
                    |error| Finding::of(&error, Grade::Warning),
                    |second| headroom(&first, &second),
                ),
            );
        }
    }
}

/// What the file names. Gives it, if all of it is good.
fn configuration(config: &Config, report: &mut Report) -> Option<Material> {
    let loaded = Material::load(config);
    report.add(
        CONFIGURATION,
        "files",
        match &loaded {
            Ok(material) => Finding::ok(format!(
                "certificates, keys, CAs and trust root fit: gateway {} of site {}, authority {}",
                material.name, config.gateway.site, config.trust.authority
            )),
            Err(error) => Finding::of(error, Grade::Failure),
        },
    );
    let data = &config.gateway.data_dir;
    if data.is_dir() {
        report.add(
            CONFIGURATION,
            "device registry",
            match RegistryFile::below(data).read() {
                Ok(registry) => {
                    Finding::ok(human::some(registry.devices().count() as u64, "device", "devices"))
                }
                Err(error) => Finding::of(&error.into(), Grade::Failure),
            },
        );
    }
    // Whether there is a NAT, nobody here can know.
    report.add(
        CONFIGURATION,
        "connections",
        Finding::ok(format!(
            "at most {} at a time, {} of one address: raise connections_per_ip for a NAT",
            config.asked_connections(),
            config.ingest.limits.connections_per_ip
        )),
    );
    loaded.ok()
}

fn machine_clock(
    config: &Config,
    kept: Option<&Device>,
    now: u64,
    synchronised: Finding,
    report: &mut Report,
) {
    let began = Pem::read(&config.gateway.certificate).ok().and_then(|pem| papers::validity(&pem));
    let issued = kept.and_then(|device| device.statement()).map(|statement| statement.fields().issued_at);
    let began = began
        .map(|validity| Mark { what: "this gateway's certificate begins".into(), at_s: validity.from_s });
    let issued = issued.map(|at| Mark { what: "the key statement was issued".into(), at_s: at.as_secs() });
    let marks: Vec<Mark> = began.into_iter().chain(issued).collect();
    report.add(PRODUCTION, "clock", machine::clock(now, &marks));
    report.add(PRODUCTION, "time service", synchronised);
}

fn dated(config: &Config, now: u64, report: &mut Report) {
    for (what, path) in papers_of(config) {
        let renew = match (what, &config.enroll) {
            ("this gateway's certificate", Some(_)) => "pithead-gateway certificate renew",
            ("this gateway's certificate", None) => {
                "have the CA that signed it sign it again, put it in its place, and reload"
            }
            _ => {
                "have a new one made, put it beside the old one in the same file, and reload, before anything is signed by it"
            }
        };
        report.add(PRODUCTION, what, papers::certificate(&path, now, renew));
    }
    for path in &config.ingest.crls {
        let refuses = config.ingest.crl_expiry == CrlExpiry::Refuse;
        report.add(PRODUCTION, "revocation list", papers::revocation_list(path, now, refuses));
    }
    let own = papers::private_file(&config.gateway.private_key, "be this gateway");
    report.add(PRODUCTION, "private key", own);
    if let Some(enroll) = &config.enroll {
        let ca = papers::private_file(&enroll.ca_key, "be any device or gateway of this site");
        report.add(PRODUCTION, "key of the device CA", ca);
    }
}

fn disk(config: &Config, report: &mut Report) {
    let data = &config.gateway.data_dir;
    report.add(PRODUCTION, "disk", machine::disk(data));
    if !data.is_dir() {
        return;
    }
    let budgets = [
        Budget { name: "spool", bytes: config.spool.max_size.get() },
        Budget { name: "uploads", bytes: config.uploads.max_size.get() },
        Budget { name: "refused", bytes: config.relay.as_ref().map_or(0, |relay| relay.refused_size.get()) },
    ];
    report.add(PRODUCTION, "disk space", machine::space(data, &budgets));
    report.add(PRODUCTION, "sync latency", machine::sync_latency(data));
}

/// The statement on this disk; where there is none, the one that was just fetched.
fn statement(kept: Option<&Device>, fetched: Option<&Device>, now: u64) -> Finding {
    let held = |device: Option<&Device>| device.and_then(|device| device.statement().cloned());
    let Some(statement) = held(kept) else {
        return match held(fetched) {
            Some(_) => Finding::ok("none here yet; it comes from the source with the start"),
            None => Finding::failure(
                ErrorReason::KeysNotReady,
                "no statement was ever accepted here, and none could be fetched",
            )
            .todo("connect the source in [keys], or carry a bundle in with `key import`"),
        };
    };
    let another = "see why the source gives no newer one, or carry a bundle in with `key import`";
    papers::statement(statement.fields(), now, another)
}

fn open_files(config: &Config) -> Finding {
    let limit = files::raise_limit();
    match config.fitted(limit) {
        (.., None) => {
            Finding::ok(format!("{limit} for {} connections, for this user here", config.asked_connections()))
        }
        (.., Some(room)) => Finding::warning(format!(
            "{limit}: there is room for {room} of the {} connections in [ingest.limits] and [network.limits]",
            config.asked_connections()
        ))
        .todo("raise the hard limit (LimitNOFILE= of the unit), or lower `connections`"),
    }
}

/// What has to be free before the first start.
fn ports(config: &Config, report: &mut Report) {
    let network = config.network.as_ref().map(|network| ("[network] listen", network.listen));
    let enroll =
        config.enroll.as_ref().and_then(|enroll| enroll.listen).map(|listen| ("[enroll] listen", listen));
    let ingest = [("[ingest] listen", config.ingest.listen)];
    for (name, address) in ingest.into_iter().chain(network).chain(enroll) {
        report.add(PRODUCTION, name, machine::port(address));
    }
    report.add(PRODUCTION, "[admin] listen", machine::admin_listen(&config.admin.listen));
    report.add(PRODUCTION, "data directory", nobody_works_in(&config.gateway.data_dir));
}

/// Looks at the lock and makes none: what is made here would belong to whoever checks.
fn nobody_works_in(data: &Path) -> Finding {
    let lock = data.join("LOCK");
    match File::open(&lock).map(|lock| lock.try_lock_shared()) {
        Ok(Ok(())) => Finding::ok("nobody works in it"),
        Ok(Err(TryLockError::WouldBlock)) => {
            Finding::of(&DirectoryError::Locked(data.to_owned()).into(), Grade::Failure)
        }
        Ok(Err(TryLockError::Error(error))) => Finding::skipped(format!("{}: {error}", lock.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && data.is_dir() => {
            Finding::ok("nobody has worked in it")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::of(&DirectoryError::Missing(data.to_owned()).into(), Grade::Failure)
        }
        Err(source) => Finding::of(&DirectoryError::Unwritable { path: lock, source }.into(), Grade::Failure),
    }
}

/// The lamps of a gateway that runs.
fn running(reading: &Reading, report: &mut Report) {
    let status = &reading.status;
    let version = text(&status["version"]);
    let own = env!("CARGO_PKG_VERSION");
    report.add(
        RUNNING,
        "gateway",
        if status["draining"] == true {
            Finding::failure(ErrorReason::Draining, "it is stopping")
        } else if version != own {
            Finding::warning(format!("it is of version {version}, and this program of {own}"))
                .todo("restart it with the new program")
        } else {
            let up = human::seconds(status["uptime_s"].as_u64().unwrap_or(0));
            Finding::ok(format!("version {version}, up {up}"))
        },
    );
    for (name, lamp) in status["dimensions"].as_object().into_iter().flatten() {
        let age = human::seconds(lamp["for_s"].as_u64().unwrap_or(0));
        let words = format!("{} for {age}: {}", text(&lamp["level"]), text(&lamp["words"]));
        report.add(
            RUNNING,
            name.clone(),
            match lamp["level"].as_str() {
                Some("ok") => Finding::ok(words),
                // Without a far end it is degraded and ready.
                Some("degraded") => Finding::warning(words),
                _ if name == "relay" => Finding::warning(words).because(ErrorReason::PeerUnreachable),
                _ => {
                    Finding::failure(ErrorReason::NotReady, words).todo("see `status`, and the gateway's log")
                }
            },
        );
    }
    for what in super::meaning::of(status, &reading.numbers).attention {
        let lamp = status["dimensions"]
            .as_object()
            .is_some_and(|lamps| lamps.keys().any(|name| what.starts_with(&format!("{name}: "))));
        // The lamps are said above.
        if !lamp {
            report.add(RUNNING, "to be looked at", Finding::warning(what));
        }
    }
}

/// How long the spool holds out if nothing leaves.
fn headroom(first: &Reading, second: &Reading) -> Finding {
    let left = second.status["spool"]["available_bytes"].as_u64().unwrap_or(0);
    let now = Rates::between(first, second).map_or(0.0, |rates| rates.in_bytes);
    // A moment may be quiet, and the long run may be behind: the busier of the two counts.
    let rate = now.max(since_start(second).unwrap_or(0.0));
    lasts(rate, left)
}

fn lasts(rate: f64, left: u64) -> Finding {
    if rate < 1.0 {
        return Finding::ok(format!("nothing comes in now; {} are left", human::bytes(left)));
    }
    let lasts = Duration::from_secs_f64((left as f64 / rate).min(1e12));
    let words = format!(
        "at {} taken in, the spool is full in {} if nothing leaves",
        human::rate(rate),
        human::seconds(lasts.as_secs())
    );
    if lasts < HEADROOM_MIN {
        Finding::warning(words).todo("give the spool more room ([spool] max_size), or have devices send less")
    } else {
        Finding::ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn a_spool_that_does_not_last_a_day_is_said() {
        assert_eq!(lasts(0.0, 0).grade, Grade::Ok);
        assert_eq!(lasts(1_000.0, 1_000 * DAY).grade, Grade::Ok);
        let short = lasts(1_000.0, 1_000 * 3_600);
        assert_eq!(short.grade, Grade::Warning);
        assert!(short.words.contains("full in 1 h if nothing leaves"), "{short:?}");
        assert_eq!(lasts(1.0, u64::MAX).grade, Grade::Ok);
    }
}
