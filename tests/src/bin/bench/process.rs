//! What the kernel says of a process.

use std::fs;

use anyhow::Context as _;
use rustix::param::clock_ticks_per_second;

/// Seconds of CPU that it has used, in user and kernel mode.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; behind the last of them the fields are numbers.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| -> anyhow::Result<u64> {
        Ok(fields.get(at).context("/proc/PID/stat is short")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) as f64 / clock_ticks_per_second() as f64)
}

/// MiB of memory that are its own (RSS).
pub(crate) fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    kib(pid, "VmRSS:").map(|kib| kib / 1024.0)
}

/// The most that it ever had, in MiB.
pub(crate) fn peak_mib(pid: u32) -> anyhow::Result<f64> {
    kib(pid, "VmHWM:").map(|kib| kib / 1024.0)
}

fn kib(pid: u32, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("not in /proc/PID/status")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}
