//! `cargo demo`: a whole site on loopback, its bad day, and the books at the end.
//!
//! The gateway, the decryptor and the devices are the shipped programs, run as processes with real TLS and throw-away
//! keys. Every number that is shown comes from what they print, their metrics and their files.

mod paper;
mod play;
mod records;
mod story;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// One mine site on loopback: devices seal, the gateway keeps and passes on, the cloud opens; and everything fails once.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// How many devices.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=64))]
    devices: u16,
    /// How many records each of them sends.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(12..=10_000_000))]
    records: u32,
    /// Replay this CAN recording (a log of `candump -l`) and not made-up telemetry.
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
    /// Make the site in this folder (new or empty), and keep it running after the story: trucks go on sending, Enter cuts and
    /// heals the WAN, Ctrl-C ends it. The folder stays, with a line for each program to run it by hand.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// With --keep: do not open the console in a browser.
    #[arg(long, requires = "keep")]
    no_browser: bool,
    /// Plain text.
    #[arg(long)]
    no_color: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let paper = paper::Paper::new(arguments.no_color);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            paper.bad(format_args!("no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let told = runtime.block_on(async {
        let end = CancellationToken::new();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let ending = end.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            ending.cancel();
        });
        story::tell(&arguments, paper, &end).await
    });
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            paper.bad(format_args!("\nThe demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
