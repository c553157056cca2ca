//! `pithead-gateway`: parses its arguments and delegates.

use std::process::ExitCode;

/// Why not the system's: what an envelope needs is allocated by one thread and freed by another, again and again, and a quarter
/// of the gateway's time went into that and into copying (docs/benchmarks.md). Elsewhere the system's is kept: this one is built for one size
/// of pages, and does not start where the kernel has another.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    pithead_gateway::cli::main()
}
