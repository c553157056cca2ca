//! What a fleet costs, before it is started and after.
//!
//! Measured with 100 vehicles of one stream (records of 100 bytes at 10/s, 20 s of coverage and 60 s without, the whole process at
//! its peak): 494 threads and 69 MB of memory. What is asked for is more: reads of the disk may take two threads more of each
//! client, and larger records take more memory.

use std::{fs, path::Path};

use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Threads of a client with one stream of records: one that seals, one that delivers, three for reads, two of the log.
const THREADS: u64 = 7;
/// One for files, and two of their log.
const THREADS_FOR_FILES: u64 = 3;
/// Descriptors: the log's files and locks, the runtime's, and three ends of TCP.
const DESCRIPTORS: u64 = 40;
/// Memory, in bytes: stacks, the runtime, TLS, and batches on their way.
const MEMORY_BYTES: u64 = 2 << 20;
/// What this process needs beside its vehicles.
const DESCRIPTORS_ASIDE: u64 = 64;

/// What a fleet is going to need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    pub(super) vehicles: u64,
    pub(super) files: bool,
    /// Bytes on the disk of one vehicle, at most.
    pub(super) disk_bytes: u64,
}

impl Needs {
    pub(super) fn threads(&self) -> u64 {
        self.vehicles * (THREADS + if self.files { THREADS_FOR_FILES } else { 0 })
    }

    /// Whether this machine and this process have it. Raises the process's own limit of descriptors as far as it may.
    ///
    /// # Errors
    /// Which limit it is, and how far it reaches.
    pub(super) fn check(&self, folder: &Path) -> Result<(), ProgramError> {
        let too_many = |what: &str, needed: u64, there: u64, todo: &str| {
            let vehicles = self.vehicles;
            let what = format!("{vehicles} vehicles need about {needed} {what}, and there are {there}");
            ProgramError::new(ErrorReason::ConfigInvalid, what).todo(todo).exit(ExitCode::USAGE)
        };
        let descriptors = self.vehicles * DESCRIPTORS + DESCRIPTORS_ASIDE;
        let may = raise_descriptors(descriptors);
        if may < descriptors {
            let todo = "raise the limit (`ulimit -n`), or ask for fewer vehicles";
            return Err(too_many("open files", descriptors, may, todo));
        }
        let threads = threads_left();
        if threads.is_some_and(|left| left < self.threads()) {
            let todo = "raise the limit of processes (`ulimit -u`, pids.max), or ask for fewer vehicles";
            return Err(too_many("threads", self.threads(), threads.unwrap_or(0), todo));
        }
        let memory = self.vehicles * MEMORY_BYTES;
        if let Some(there) = available_memory().filter(|there| *there < memory) {
            return Err(too_many("bytes of memory", memory, there, "ask for fewer vehicles"));
        }
        let disk = self.vehicles.saturating_mul(self.disk_bytes);
        if let Ok(stat) = rustix::fs::statvfs(folder) {
            let there = stat.f_bavail.saturating_mul(stat.f_frsize);
            if there < disk {
                let todo = "give another folder with --dir, a smaller --budget, or ask for fewer vehicles";
                return Err(too_many("bytes of disk", disk, there, todo));
            }
        }
        Ok(())
    }
}

/// How many descriptors this process may have then.
fn raise_descriptors(wanted: u64) -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let (current, most) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    if current < wanted {
        limit.current = Some(wanted.min(most));
        if setrlimit(Resource::Nofile, limit).is_err() {
            return current;
        }
    }
    current.max(wanted.min(most))
}

/// Threads that may still be begun, as far as the system says.
fn threads_left() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let here = number("/sys/fs/cgroup/pids.current").unwrap_or(0);
    let in_group = number("/sys/fs/cgroup/pids.max").map(|max| max.saturating_sub(here));
    let limits = [in_group, number("/proc/sys/kernel/threads-max"), getrlimit(Resource::Nproc).current];
    limits.into_iter().flatten().min()
}

fn available_memory() -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:").map(|kib| kib * 1_024)
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What this process has taken: threads now, and resident memory at its peak. Nothing where the system does not say.
pub(super) fn taken() -> (Option<u64>, Option<u64>) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    (kib_of(&status, "Threads:"), kib_of(&status, "VmHWM:").map(|kib| kib * 1_024))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_fleet_that_does_not_fit_is_told_what_is_short() {
        let folder = tempfile::tempdir().unwrap();
        let needs = |vehicles, disk_bytes| Needs { vehicles, files: false, disk_bytes };
        needs(1, 1 << 20).check(folder.path()).unwrap();
        let short = needs(1, u64::MAX).check(folder.path()).unwrap_err();
        assert!(
            short.to_string().contains("bytes of disk") && short.to_string().contains("--budget"),
            "{short}"
        );
        let short = needs(100_000_000, 1).check(folder.path()).unwrap_err();
        assert_eq!(short.exit, ExitCode::USAGE);
        let (threads, memory) = taken();
        assert!(threads.unwrap() >= 1 && memory.unwrap() > 1 << 20);
    }
}
