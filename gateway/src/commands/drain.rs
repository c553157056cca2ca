//! `drain`: the running gateway says that it is not ready, then stops in order, and this command ends when it has.
//!
//! Its end is seen by the lock on its data directory, which is the last thing that it lets go: from then on another may start
//! there. So a drain that ended well is followed by whatever needs the disk, with nothing in between.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pithead_hop::program::{ExitCode, ProgramError, human, units};
use pithead_proto::errors::v1::ErrorReason;

use super::admin_client;
use crate::config::{Config, Stop};

/// What comes on top of the limits of all parts.
const MARGIN: Duration = Duration::from_secs(5);

/// `drain ...`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: crate::cli::ConfigArg,
    /// How long it goes on serving while it says that it is not ready: a balancer needs that long to send devices elsewhere.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = grace)]
    grace: units::Duration,
    /// How long to wait for its end; the limits in [stop] together, the grace, and a little more if it is not given.
    #[arg(long, value_name = "TIME")]
    timeout: Option<units::Duration>,
}

fn grace(text: &str) -> Result<units::Duration, String> {
    let grace: units::Duration = text.parse().map_err(|error: units::UnitError| error.to_string())?;
    if grace.get() > crate::admin::GRACE_MAX {
        return Err(format!("at most {}", human::span(crate::admin::GRACE_MAX)));
    }
    Ok(grace)
}

/// Has it drain, and waits for its end.
///
/// # Errors
/// When none runs, or it has not ended in time.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(&args.config.config)?;
    let data = &config.gateway.data_dir;
    // Opened before anybody is told to stop: without it there is no end to be seen.
    let lock = File::open(data.join("LOCK")).map_err(|error| {
        // The first start makes it, and nobody removes it.
        if error.kind() == io::ErrorKind::NotFound && data.is_dir() {
            return admin_client::unreachable(
                &config.admin.listen,
                "no gateway was ever started on its data directory",
            );
        }
        ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", data.join("LOCK").display()))
            .affects("nobody was told to stop")
            .todo("give the command as the gateway's user, on its machine")
    })?;
    let limit = args.timeout.map_or_else(|| limit(&config.stop, args.grace.get()), units::Duration::get);
    let asked = Instant::now();
    admin_client::post(&config.admin.listen, &format!("/drain/{}", args.grace.as_secs()))?;
    if released(lock, limit).map_err(|error| {
        ProgramError::new(ErrorReason::DiskFailed, format!("the lock of {}: {error}", data.display()))
            .affects("the gateway was told to stop; whether it has ended is not known")
    })? {
        return super::done(out, &format!("stopped in {}\n", human::span(asked.elapsed())));
    }
    Err(ProgramError::new(
        ErrorReason::Draining,
        format!("the gateway was told to stop, and has not ended within {}", human::span(limit)),
    )
    .affects("it is not ready, and goes on stopping; nothing that was acknowledged is lost")
    .todo("see its log for the part that takes long; `drain` again waits on"))
}

fn limit(stop: &Stop, grace: Duration) -> Duration {
    let parts = stop.intake.get() + stop.relay.get() + stop.spool.get() + stop.admin.get();
    parts + grace + MARGIN
}

/// Waits until nobody holds the lock; false if that takes too long.
fn released(lock: File, limit: Duration) -> io::Result<bool> {
    let (told, hears) = mpsc::sync_channel(1);
    // Left to itself if it takes too long: the program ends then.
    std::thread::spawn(move || {
        // Shared, and let go at once: whoever starts next does not find it taken by us.
        let taken = lock.lock_shared();
        drop(lock);
        let _ = told.send(taken);
    });
    match hears.recv_timeout(limit) {
        Ok(taken) => taken.map(|()| true),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_start_there_is_nobody_to_drain() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        let written =
            crate::config::TEMPLATE.replace("/var/lib/pithead-gateway", folder.path().to_str().unwrap());
        std::fs::write(&path, written).unwrap();
        let config = crate::cli::ConfigArg { config: path };
        let args = Args { config, grace: units::Duration::from_secs(0), timeout: None };
        let error = run(&args, &mut Vec::new()).unwrap_err();
        assert_eq!(error.reason, ErrorReason::PeerUnreachable, "{error}");
        assert_eq!(error.exit, ExitCode::PEER_UNAVAILABLE);
    }

    #[test]
    fn the_end_is_when_the_lock_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        assert!(!released(File::open(&path).unwrap(), Duration::from_millis(20)).unwrap());
        let (waits, open) = (mpsc::sync_channel(1), File::open(&path).unwrap());
        std::thread::spawn(move || waits.0.send(released(open, Duration::from_secs(60))));
        drop(held);
        assert!(waits.1.recv().unwrap().unwrap());
        // And nobody holds it afterwards.
        File::create(&path).unwrap().try_lock().unwrap();
    }

    #[test]
    fn it_waits_as_long_as_all_parts_may_take() {
        let limit = limit(&Stop::default(), Duration::from_secs(7));
        assert_eq!(limit, Duration::from_secs(10 + 10 + 20 + 2 + 7) + MARGIN);
        assert!(grace("1h").is_ok() && grace("2h").is_err() && grace("7").is_err());
    }
}
