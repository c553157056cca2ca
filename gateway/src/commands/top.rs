//! `top`: the running gateway on one screen, drawn anew each second.
//!
//! Everything on it comes over the admin port: two readings make the rates. A gateway that goes away is said to be away, and
//! looked for again; the screen stays. Without a terminal, or with `--once`, one frame is printed and that is all, so that it
//! can go into a pipe or a ticket.

mod frame;
mod screen;

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use pithead_hop::program::admin::AdminAddress;
use pithead_hop::program::paint::Paint;
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use self::frame::Frame;
use self::screen::Screen;
use super::reading::{Rates, Reading};
use crate::config::Config;

/// Between two readings.
const EVERY: Duration = Duration::from_secs(1);

/// `top ...`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: crate::cli::ConfigArg,
    /// Prints one frame and ends; so it is without a terminal.
    #[arg(long)]
    once: bool,
}

/// Shows it until `q`, Ctrl-C or SIGTERM.
///
/// # Errors
/// When no gateway answers at the start.
pub fn run(args: &Args, paint: Paint, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(&args.config.config)?;
    let admin = config.admin.listen;
    let first = Reading::take(&admin)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    if args.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let second = runtime.block_on(async {
            tokio::time::sleep_until((first.at + EVERY).into()).await;
            Reading::take(&admin)
        })?;
        let width = screen::size().map_or(frame::WIDTH, |(width, _)| width);
        let frame = Frame::of(Some(&first), &second, None);
        return super::done(out, &frame.text(width, usize::MAX, paint));
    }
    let live = runtime.block_on(live(admin, first, paint));
    // A key is still waited for on another thread.
    runtime.shutdown_background();
    live
}

fn failed(error: &io::Error) -> ProgramError {
    ProgramError::new(ErrorReason::Internal, format!("the terminal: {error}"))
}

async fn live(admin: AdminAddress, first: Reading, paint: Paint) -> Result<ExitCode, ProgramError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(&error))?;
    let mut resized = signal(SignalKind::window_change()).map_err(|error| failed(&error))?;
    // From here on the terminal is ours, until `screen` is dropped.
    let mut screen = Screen::take().map_err(|error| failed(&error))?;
    let mut keys = screen.keys();
    let mut tick = tokio::time::interval_at((first.at + EVERY).into(), EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut before, mut now): (Option<Reading>, Reading) = (None, first);
    let mut away: Option<(Instant, String)> = None;
    loop {
        let frame =
            Frame::of(before.as_ref(), &now, away.as_ref().map(|(at, why)| (at.elapsed(), why.as_str())));
        screen.draw(&frame, paint).map_err(|error| failed(&error))?;
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = resized.recv() => {}
            key = keys.recv() => match key {
                Some(b'q' | b'Q' | 0x03 | 0x04) | None => break,
                Some(_) => {}
            },
            _ = tick.tick() => {
                // It blocks for at most some seconds, and the keys are to be answered meanwhile.
                let admin = admin.clone();
                let reading = tokio::task::spawn_blocking(move || Reading::take(&admin)).await;
                match reading {
                    Ok(Ok(reading)) => {
                        before = Some(std::mem::replace(&mut now, reading));
                        away = None;
                    }
                    Ok(Err(error)) => {
                        let at = away.take().map_or_else(Instant::now, |(at, _)| at);
                        away = Some((at, error.what));
                    }
                    Err(_) => break,
                }
            }
        }
    }
    Ok(ExitCode::OK)
}

/// For the frame's own module: rates are those of two readings.
fn rates(before: Option<&Reading>, now: &Reading) -> Option<Rates> {
    Rates::between(before?, now)
}
