//! After the story, with `--keep`: the site goes on, with trucks that send, a console to look at and a WAN to cut.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use pithead_tests::{device::Sending, link::Link, site::Site};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    paper::{Paper, count},
    story::{STREAM, Truck},
};

/// Records of a truck in a second: a CAN bus of which every tenth frame is worth keeping.
const RECORDS_PER_S: usize = 50;
/// Lines of the keyboard that wait here: one is a whole cut.
const LINES_WAITING: usize = 4;

/// Goes on until `end`.
///
/// # Errors
/// When a truck or a program ended by itself.
pub(crate) async fn go_on(
    site: &mut Site,
    trucks: &[Truck],
    browser: bool,
    paper: Paper,
    end: &CancellationToken,
) -> anyhow::Result<()> {
    paper.title("The site goes on");
    let console = format!("http://{}/", site.gateway_admin());
    paper.line("");
    paper.fact("console", &console);
    paper.fact("folder", site.folder().display());
    paper.fact("trucks", format_args!("{} send {RECORDS_PER_S} records a second each", trucks.len()));
    if io::stdin().is_terminal() {
        paper.fact("Enter", "cuts the WAN, and heals it");
    }
    paper.fact("Ctrl-C", "ends it; the folder stays");
    if browser && io::stdout().is_terminal() && has_a_screen() {
        open_browser(&console, paper);
    }
    let mut wan = Wan { whole: true };
    let mut keyboard = keyboard();
    let mut sending = trucks
        .iter()
        .map(|truck| truck.device.start_sending_with(STREAM, &[]))
        .collect::<anyhow::Result<Vec<Sending>>>()?;
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut at = 0;
    loop {
        tokio::select! {
            () = end.cancelled() => break,
            Some(()) = keyboard.recv() => wan.turn(&site.link, paper),
            _ = second.tick() => {
                for (truck, device) in trucks.iter().zip(&mut sending) {
                    for line in truck.records.iter().cycle().skip(at % truck.records.len()).take(RECORDS_PER_S) {
                        device.record(line).await?;
                    }
                    device.flush().await?;
                }
                at += RECORDS_PER_S;
            }
        }
    }
    paper.line("");
    let mut sent = 0;
    for device in sending {
        sent += device.finish().await?.records;
    }
    if wan.whole {
        site.until_relayed().await?;
    }
    paper.fact("sent", format_args!("{} more, all acknowledged", count(sent, "record")));
    Ok(())
}

struct Wan {
    whole: bool,
}

impl Wan {
    fn turn(&mut self, link: &Link, paper: Paper) {
        self.whole = !self.whole;
        if self.whole {
            link.heal();
            paper.fact("WAN", "healed; what waited goes out");
        } else {
            link.cut();
            paper.fact("WAN", "cut; trucks are served all the same, and what they send waits");
        }
    }
}

/// One for every line that is typed. A thread of its own: whoever reads a terminal cannot be told to stop.
fn keyboard() -> mpsc::Receiver<()> {
    let (tell, typed) = mpsc::channel(LINES_WAITING);
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_err() || tell.blocking_send(()).is_err() {
                return;
            }
        }
    });
    typed
}

fn has_a_screen() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    cfg!(target_os = "macos") || is_set("DISPLAY") || is_set("WAYLAND_DISPLAY")
}

fn open_browser(console: &str, paper: Paper) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let opened = Command::new(program)
        .arg(console)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Err(error) = opened {
        paper.fact("browser", format_args!("{program}: {error}; open the address above"));
    }
}
