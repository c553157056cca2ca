//! The process itself, under the names that every exporter uses: read from `/proc` when the page is asked for.

use std::fs;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::{Catalogue, Float, Kind, as_gauge};

type Seconds = Counter<f64, std::sync::atomic::AtomicU64>;

/// The usual metrics of a process.
#[derive(Debug, Clone)]
pub struct ProcessMetrics {
    start: Float,
    cpu: Seconds,
    resident: Gauge,
    virtual_memory: Gauge,
    open_files: Gauge,
    max_files: Gauge,
    threads: Gauge,
}

/// What `/proc` says of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Looked {
    started_s: f64,
    cpu_s: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_files: u64,
    max_files: u64,
    threads: u64,
}

impl ProcessMetrics {
    /// Declares them.
    pub fn declare(all: &mut Catalogue) -> Self {
        Self {
            start: all.float("process_start_time_seconds", "When this process started, since 1970"),
            cpu: all.declare(
                Kind::Counter,
                "process_cpu_seconds_total",
                &[],
                "Processor time used, in user and in kernel mode",
                Seconds::default(),
            ),
            resident: all.gauge("process_resident_memory_bytes", "Memory in RAM"),
            virtual_memory: all.gauge("process_virtual_memory_bytes", "Memory that is mapped"),
            open_files: all.gauge("process_open_fds", "File descriptors that are open"),
            max_files: all.gauge("process_max_fds", "File descriptors that may be open"),
            threads: all.gauge("process_threads", "Threads"),
        }
    }

    /// Looks at the process. Where `/proc` is missing, nothing changes.
    pub fn measure(&self) {
        let Some(now) = look() else { return };
        self.start.set(now.started_s);
        self.cpu.inc_by((now.cpu_s - self.cpu.get()).max(0.0));
        self.resident.set(as_gauge(now.resident_bytes));
        self.virtual_memory.set(as_gauge(now.virtual_bytes));
        self.open_files.set(as_gauge(now.open_files));
        self.max_files.set(as_gauge(now.max_files));
        self.threads.set(as_gauge(now.threads));
    }
}

fn look() -> Option<Looked> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot_s: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let open_files = fs::read_dir("/proc/self/fd").ok()?.count();
    parse(&stat, boot_s, &limits, open_files as u64)
}

/// Fields as `proc(5)` numbers them; behind the last parenthesis, which a program's name may hold too, come those from 3 on.
fn parse(stat: &str, boot_s: f64, limits: &str, open_files: u64) -> Option<Looked> {
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let max_files = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let max_files = match max_files.split_whitespace().next()? {
        "unlimited" => u64::MAX,
        number => number.parse().ok()?,
    };
    Some(Looked {
        started_s: boot_s + field(22)? as f64 / ticks,
        cpu_s: (field(14)? + field(15)?) as f64 / ticks,
        resident_bytes: field(24)? * rustix::param::page_size() as u64,
        virtual_bytes: field(23)?,
        open_files,
        max_files,
        threads: field(20)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_to_run_and_to_have_started_not_long_ago() {
        let now = look().expect("a /proc");
        let wall = crate::program::clock::wall_s() as f64;
        // The start of the machine is known to the second.
        assert!((-2.0..86_400.0).contains(&(wall - now.started_s)), "{now:?} at {wall}");
        assert!(now.resident_bytes > 1 << 20 && now.virtual_bytes > now.resident_bytes, "{now:?}");
        assert!(now.open_files >= 3 && now.max_files >= now.open_files && now.threads >= 1, "{now:?}");
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_moves_no_field() {
        let stat = |name: &str| {
            let numbers: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
            format!("17 ({name}) S {}", numbers.join(" "))
        };
        let limits = "Max open files            1024                 4096                 files\n";
        let plain = parse(&stat("plain"), 0.0, limits, 3).expect("fields");
        assert_eq!(plain, parse(&stat("a) S 1 (b"), 0.0, limits, 3).expect("fields"));
        assert_eq!((plain.threads, plain.virtual_bytes, plain.max_files), (20, 23, 1024));
    }
}
