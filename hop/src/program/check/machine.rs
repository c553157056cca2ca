//! The machine: its clock, its disk, its files.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pithead_proto::errors::v1::ErrorReason;
use tokio::process::Command;

use super::Finding;
use crate::program::admin::AdminAddress;
use crate::program::{human, units::ByteSize};

/// Something of which is known when it was made, so that no clock that is right stands before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What it is, such as `the key statement was issued`.
    pub what: String,
    /// When, in seconds since 1970.
    pub at_s: u64,
}

/// Whether the clock can be right: after everything of which the date is known. How far after, nobody here can know.
#[must_use]
pub fn clock(now_s: u64, marks: &[Mark]) -> Finding {
    let newest = marks.iter().max_by_key(|mark| mark.at_s);
    match newest {
        Some(mark) if now_s < mark.at_s => Finding::failure(
            ErrorReason::ClockWrong,
            format!(
                "it stands at {}, and {} at {}",
                human::moment(now_s),
                mark.what,
                human::moment(mark.at_s)
            ),
        )
        .todo("set this machine's clock; see the runbook of the wrong clock"),
        _ => Finding::ok(human::moment(now_s)),
    }
}

/// Whether somebody keeps the clock right: what `timedatectl` says, or else `chronyc`.
pub async fn synchronised(limit: Duration) -> Finding {
    let timedatectl = said("timedatectl", &["show", "--property=NTPSynchronized", "--value"], limit);
    let chronyc = said("chronyc", &["-n", "tracking"], limit);
    let (timedatectl, chronyc) = tokio::join!(timedatectl, chronyc);
    let by_systemd = timedatectl.as_deref().and_then(systemd_says);
    let by_chrony = chronyc.as_deref().and_then(chrony_says);
    match (by_systemd, by_chrony) {
        (Some(true), _) => Finding::ok("synchronised, as timedatectl says"),
        (_, Some(true)) => Finding::ok("synchronised, as chronyc says"),
        (Some(false), _) | (_, Some(false)) => {
            Finding::warning("the clock is not synchronised: ages and dates may be wrong by any amount")
                .todo("have chrony, systemd-timesyncd or a PTP daemon set it; the key path goes on without a right clock")
        }
        (None, None) => Finding::skipped("neither timedatectl nor chronyc answers here"),
    }
}

async fn said(program: &str, arguments: &[&str], limit: Duration) -> Option<String> {
    let run = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(limit, run).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn systemd_says(text: &str) -> Option<bool> {
    match text.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn chrony_says(text: &str) -> Option<bool> {
    let status = text.lines().find_map(|line| line.strip_prefix("Leap status"))?;
    Some(!status.contains("Not synchronised"))
}

/// What kind of file system something lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileSystem {
    /// Gone with the power.
    Memory(&'static str),
    /// Gone with the container.
    Overlay,
    /// As durable as its server says.
    Network(&'static str),
    /// A disk, or something that is taken for one.
    Disk,
}

impl FileSystem {
    /// By the number that the kernel gives it (statfs(2), linux/magic.h).
    fn of(kind: u64) -> Self {
        match kind {
            0x0102_1994 => Self::Memory("tmpfs"),
            0x8584_58f6 => Self::Memory("ramfs"),
            0x794c_7630 => Self::Overlay,
            0x6969 => Self::Network("NFS"),
            0xff53_4d42 => Self::Network("CIFS"),
            0xfe53_4d42 => Self::Network("SMB"),
            0x0102_1997 => Self::Network("9P"),
            0x6573_5546 => Self::Network("FUSE"),
            _ => Self::Disk,
        }
    }
}

/// Whether a folder is on a disk that keeps what was synced to it.
#[must_use]
pub fn disk(folder: &Path) -> Finding {
    let about = match rustix::fs::statfs(folder) {
        Ok(about) => about,
        Err(error) => return missing(folder, error.into()),
    };
    // The type of the field differs between architectures; the numbers have 32 bits everywhere.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "see above")]
    let kind = FileSystem::of(about.f_type as u64 & 0xffff_ffff);
    kept(kind, folder, on_root(folder))
}

fn kept(kind: FileSystem, folder: &Path, on_root: bool) -> Finding {
    let shown = folder.display();
    match kind {
        FileSystem::Memory(name) => {
            Finding::warning(format!("{shown} is on {name}: what is acknowledged is gone with the power"))
                .todo("mount a disk there")
        }
        FileSystem::Overlay => Finding::warning(format!(
            "{shown} is on the overlay of a container: what is acknowledged is gone with the container"
        ))
        .todo("mount a volume there"),
        FileSystem::Network(name) => Finding::warning(format!(
            "{shown} is on {name}: an acknowledgement is worth what its server's sync is worth"
        ))
        .todo("put it on a disk of this machine"),
        FileSystem::Disk if on_root => Finding::warning(format!(
            "{shown} is on the disk of the system itself: each can fill it for the other"
        ))
        .todo("give it a disk or a partition of its own, as large as its budgets"),
        FileSystem::Disk => Finding::ok(format!("{shown} is on a disk of its own")),
    }
}

fn on_root(folder: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|about| about.dev()).ok();
    device(folder).is_some() && device(folder) == device(Path::new("/"))
}

fn missing(folder: &Path, error: io::Error) -> Finding {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorReason::DiskFull,
        _ => ErrorReason::DataDirUnwritable,
    };
    Finding::failure(reason, format!("{}: {error}", folder.display()))
        .todo("mount its disk, or create it and give it to this program's user")
}

/// What a program may write below a folder, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Such as `spool`: the file or folder below the data directory.
    pub name: &'static str,
    /// What it may take.
    pub bytes: u64,
}

/// Whether the disk has the room that the configuration promises.
#[must_use]
pub fn space(folder: &Path, budgets: &[Budget]) -> Finding {
    let about = match rustix::fs::statvfs(folder) {
        Ok(about) => about,
        Err(error) => return missing(folder, error.into()),
    };
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    // What is there already needs no more room.
    let wanted = budgets.iter().map(|budget| budget.bytes.saturating_sub(used(&folder.join(budget.name))));
    enough(free, wanted.fold(0, u64::saturating_add), budgets)
}

fn enough(free: u64, wanted: u64, budgets: &[Budget]) -> Finding {
    let names: Vec<String> = budgets
        .iter()
        .filter(|budget| budget.bytes > 0)
        .map(|budget| format!("{} {}", budget.name, ByteSize::from_bytes(budget.bytes)))
        .collect();
    let (names, shown) = (names.join(", "), human::bytes(free));
    if free < SPACE_MIN {
        Finding::failure(ErrorReason::DiskFull, format!("{shown} free")).todo("make room on the disk")
    } else if free < wanted {
        Finding::warning(format!(
            "{shown} free, and {} may still be written ({names}): the disk is full before the budget is",
            human::bytes(wanted)
        ))
        .todo("give it a larger disk, or lower the budgets")
    } else {
        Finding::ok(format!("{shown} free; {} may still be written ({names})", human::bytes(wanted)))
    }
}

/// With less than this, nothing starts: a segment file, and what a start writes.
const SPACE_MIN: u64 = 64 << 20;

/// Bytes that a file or a folder takes on its disk; what cannot be read counts as nothing.
#[must_use]
pub fn used(path: &Path) -> u64 {
    let Ok(about) = fs::symlink_metadata(path) else { return 0 };
    let own = about.blocks().saturating_mul(512);
    if !about.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.fold(own, |sum, entry| sum.saturating_add(used(&entry.path())))
}

/// Syncs that are measured.
const SYNCS: usize = 16;
/// What each of them writes: a page.
const SYNC_BYTES: usize = 4096;
/// Above this, every acknowledgement is late: a disk in trouble, or a card that is none.
const SYNC_SLOW: Duration = Duration::from_millis(50);

/// How long the disk takes to make a page durable, measured in a file that is removed again.
#[must_use]
pub fn sync_latency(folder: &Path) -> Finding {
    // Whoever stops in between leaves a name that the next one takes.
    let path = folder.join(".check.part");
    let measured = measure(&path);
    let _ = fs::remove_file(&path);
    match measured {
        Ok(took) => speed(took),
        Err(error) if error.kind() == io::ErrorKind::NotFound => missing(folder, error),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => missing(folder, error),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => missing(folder, error),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => missing(folder, error),
        Err(error) => Finding::failure(ErrorReason::DiskFailed, format!("{}: {error}", folder.display()))
            .todo("look at the disk and the system's log"),
    }
}

fn measure(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = File::create(path)?;
    let page = [0x5a; SYNC_BYTES];
    let mut took = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&page)?;
        let asked = Instant::now();
        file.sync_data()?;
        took.push(asked.elapsed());
    }
    Ok(took)
}

fn speed(mut took: Vec<Duration>) -> Finding {
    took.sort_unstable();
    let shown = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let (Some(median), Some(longest)) = (took.get(took.len() / 2).copied(), took.last().copied()) else {
        return Finding::skipped("nothing was measured");
    };
    let words = format!("a sync takes {}, {} at most of {}", shown(median), shown(longest), took.len());
    if median > SYNC_SLOW {
        Finding::warning(format!("{words}: every acknowledgement waits for one"))
            .todo("look for what else works on the disk, for a worn card, and for a controller without a cache that keeps")
    } else {
        Finding::ok(words)
    }
}

/// Whether an admin port stays on this machine.
#[must_use]
pub fn admin_port(listen: &AdminAddress) -> Finding {
    let AdminAddress::Tcp(address) = listen else {
        return Finding::ok(format!("{listen}, for its owner and the group of its folder"));
    };
    if address.ip().to_canonical().is_loopback() {
        Finding::ok(format!("{address}, on this machine alone"))
    } else {
        Finding::warning(format!(
            "{address} can be reached from elsewhere, and asks nobody who they are: status, names of devices, and orders"
        ))
        .todo("listen on 127.0.0.1, and put a proxy with authentication before it where others have to look")
    }
}

/// Whether the admin port can be taken: nobody answers there.
#[must_use]
pub fn admin_listen(listen: &AdminAddress) -> Finding {
    let AdminAddress::Unix(path) = listen else {
        return listen.socket_addr().map_or_else(|| Finding::skipped("no address"), port);
    };
    if UnixStream::connect(path).is_ok() {
        return Finding::failure(ErrorReason::PortTaken, format!("{listen} is in use"))
            .todo("stop the other program, or listen elsewhere");
    }
    match path.parent() {
        Some(folder) if folder.is_dir() => Finding::ok(format!("{listen} is free")),
        _ => Finding::failure(ErrorReason::ConfigInvalid, format!("{listen}: there is no such folder"))
            .todo("make the folder; its group decides who may ask (RuntimeDirectory= of the unit)"),
    }
}

/// Whether an address can be listened on: nobody else does.
#[must_use]
pub fn port(address: SocketAddr) -> Finding {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Finding::ok(format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Finding::failure(ErrorReason::PortTaken, format!("{address} is in use"))
                .todo("stop the other program, or listen elsewhere")
        }
        Err(error) => Finding::failure(ErrorReason::ConfigInvalid, format!("{address}: {error}"))
            .todo("listen on an address of this machine, on a port that this program's user may take"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn a_clock_before_a_known_date_is_wrong() {
        let mark = |what: &str, at_s| Mark { what: what.into(), at_s };
        let marks = [mark("the certificate began", 1_000), mark("the statement was issued", 2_000)];
        let wrong = clock(1_999, &marks);
        assert_eq!((wrong.grade, wrong.reason), (Grade::Failure, Some(ErrorReason::ClockWrong)));
        assert!(wrong.words.contains("the statement was issued at 1970-01-01T00:33:20Z"), "{wrong:?}");
        assert_eq!(clock(2_000, &marks).grade, Grade::Ok);
        assert_eq!(clock(0, &[]).grade, Grade::Ok);
    }

    #[test]
    fn what_others_say_of_the_clock_is_understood_and_nothing_else_is() {
        assert_eq!(systemd_says("yes\n"), Some(true));
        assert_eq!(systemd_says("no\n"), Some(false));
        assert_eq!(systemd_says("Failed to connect to bus"), None);
        assert_eq!(chrony_says("Stratum         : 3\nLeap status     : Normal\n"), Some(true));
        assert_eq!(chrony_says("Leap status     : Not synchronised\n"), Some(false));
        assert_eq!(chrony_says("506 Cannot talk to daemon\n"), None);
    }

    #[test]
    fn memory_overlays_and_networks_are_told_from_disks() {
        for (kind, grade) in [
            (0x0102_1994, Grade::Warning),
            (0x794c_7630, Grade::Warning),
            (0x6969, Grade::Warning),
            (0xfe53_4d42, Grade::Warning),
            (0xef53, Grade::Ok),
            (0x5846_5342, Grade::Ok),
        ] {
            assert_eq!(kept(FileSystem::of(kind), Path::new("/data"), false).grade, grade, "{kind:x}");
        }
        let on_root = kept(FileSystem::Disk, Path::new("/data"), true);
        assert_eq!(on_root.grade, Grade::Warning, "{on_root:?}");
        assert!(on_root.words.contains("of the system itself"));
        let nowhere = disk(Path::new("/nowhere"));
        assert_eq!((nowhere.grade, nowhere.reason), (Grade::Failure, Some(ErrorReason::DataDirUnwritable)));
    }

    #[test]
    fn room_is_counted_against_what_may_still_be_written() {
        let budgets = [Budget { name: "spool", bytes: 8 << 30 }, Budget { name: "uploads", bytes: 0 }];
        assert_eq!(enough(9 << 30, 8 << 30, &budgets).grade, Grade::Ok);
        let tight = enough(5 << 30, 8 << 30, &budgets);
        assert_eq!(tight.grade, Grade::Warning);
        assert!(tight.words.starts_with("5.0 GiB free, and 8.0 GiB may still be written (spool 8GiB)"));
        assert_eq!(enough(1 << 20, 0, &budgets).reason, Some(ErrorReason::DiskFull));

        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("spool")).unwrap();
        let before = used(&folder.path().join("spool"));
        fs::write(folder.path().join("spool/a"), vec![1; 100_000]).unwrap();
        File::open(folder.path().join("spool/a")).unwrap().sync_all().unwrap();
        assert!(used(&folder.path().join("spool")) >= before + 100_000);
        assert_eq!(used(&folder.path().join("uploads")), 0);
        // More than any disk of a test has.
        let large = [Budget { name: "spool", bytes: 1 << 60 }];
        assert_eq!(space(folder.path(), &large).grade, Grade::Warning);
    }

    #[test]
    fn a_slow_sync_is_said_and_the_file_is_gone_afterwards() {
        let ms = Duration::from_millis;
        assert_eq!(speed(vec![ms(1), ms(900), ms(2)]).grade, Grade::Ok);
        let slow = speed(vec![ms(60), ms(51), ms(1)]);
        assert_eq!(slow.grade, Grade::Warning);
        assert!(slow.words.starts_with("a sync takes 51.0 ms, 60.0 ms at most of 3"), "{slow:?}");

        let folder = tempfile::tempdir().unwrap();
        assert_ne!(sync_latency(folder.path()).grade, Grade::Failure);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(sync_latency(Path::new("/nowhere")).reason, Some(ErrorReason::DataDirUnwritable));
    }

    #[test]
    fn a_port_for_operators_stays_at_home_and_a_taken_one_is_said() {
        assert_eq!(admin_port(&"127.0.0.1:7480".parse().unwrap()).grade, Grade::Ok);
        assert_eq!(admin_port(&"[::1]:7480".parse().unwrap()).grade, Grade::Ok);
        assert_eq!(admin_port(&"unix:/run/pithead/admin.sock".parse().unwrap()).grade, Grade::Ok);
        assert_eq!(admin_port(&"0.0.0.0:7480".parse().unwrap()).grade, Grade::Warning);
        assert_eq!(admin_port(&"10.1.2.3:7480".parse().unwrap()).grade, Grade::Warning);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(port(address).reason, Some(ErrorReason::PortTaken));
        drop(taken);
        assert_eq!(port(address).grade, Grade::Ok);
    }

    #[tokio::test]
    async fn who_does_not_answer_is_not_waited_for() {
        assert_eq!(said("sleep", &["60"], Duration::from_millis(20)).await, None);
        assert_eq!(said("no-such-program-here", &[], Duration::from_secs(5)).await, None);
        assert_eq!(said("echo", &["yes"], Duration::from_secs(20)).await.as_deref(), Some("yes\n"));
    }
}
