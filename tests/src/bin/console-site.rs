//! A whole site that lives as long as its standard input, for tests of the console in a browser.
//!
//! One JSON line out when it is ready (`{"console":"http://127.0.0.1:PORT/", ...}`); then one command per line in, and one JSON line
//! out for each when it is done:
//!
//! | command | does |
//! |---|---|
//! | `cut`, `heal` | the wire between gateway and decryptor |
//! | `pause`, `resume` | the relay, as an operator would |
//! | `quiet N`, `talk N` | truck number N falls silent, or talks again |
//! | `stop` | the gateway, SIGTERM: the console goes away |
//! | `start` | the gateway again |

use std::process::ExitCode;

use anyhow::Context as _;
use pithead_tests::device::Sending;
use pithead_tests::site::{Site, SiteOptions};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Duration, MissedTickBehavior, interval};

const TRUCKS: usize = 8;
/// Each truck says something this often; a batch is sealed about once a second.
const TALK_EVERY: Duration = Duration::from_millis(100);

/// A truck that talks, or does not.
struct Truck {
    sending: Option<Sending>,
    said: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stderr, reason = "a program's own words")]
fn complain(words: &str) {
    eprintln!("{words}");
}

#[allow(clippy::print_stdout, reason = "what the suite reads")]
fn answer(value: &serde_json::Value) {
    println!("{value}");
}

async fn run() -> anyhow::Result<()> {
    let mut site = Site::create(SiteOptions { standby: true, ..SiteOptions::default() }).await?;
    // Room for days, as at a real site: what the page says of a link that is down depends on it.
    Site::edit(&site.gateway_config(), "max_size = \"2GiB\"", "max_size = \"64GiB\"")?;
    site.start_decryptor().await?;
    site.start_gateway().await?;
    let mut devices = Vec::new();
    for number in 1..=TRUCKS {
        devices.push(site.enroll(&format!("truck-{number:02}")).await?);
    }
    let fingerprint = devices[0].key().await?.fingerprint.context("the device has no key")?;
    let mut trucks = Vec::new();
    for device in &devices {
        trucks.push(Truck { sending: Some(device.start_sending("can")?), said: 0 });
    }
    answer(&json!({
        "fingerprint": fingerprint,
        "console": format!("http://{}/", site.gateway_admin()),
        "log": site.folder().join("gateway.log"),
    }));
    let mut commands = commands();
    let mut talk = interval(TALK_EVERY);
    talk.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = talk.tick() => speak(&mut trucks).await?,
            line = commands.recv() => {
                let Some(line) = line else { break };
                let done = perform(line.trim(), &mut site, &devices, &mut trucks).await;
                answer(&match done {
                    Ok(()) => json!({ "done": line.trim() }),
                    Err(error) => json!({ "failed": format!("{error:#}") }),
                });
            }
        }
    }
    // Dropped, the processes end with the site.
    Ok(())
}

/// What comes in, line by line; its end is the end of the channel.
fn commands() -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    told
}

async fn speak(trucks: &mut [Truck]) -> anyhow::Result<()> {
    for (number, truck) in trucks.iter_mut().enumerate() {
        let Some(sending) = &mut truck.sending else { continue };
        truck.said += 1;
        let said = truck.said;
        sending
            .record(&format!("{{\"truck\":{number},\"at\":{said},\"speed\":{}}}", 20 + (said * 7) % 40))
            .await?;
        sending.flush().await?;
    }
    Ok(())
}

async fn perform(
    command: &str,
    site: &mut Site,
    devices: &[pithead_tests::device::Device],
    trucks: &mut [Truck],
) -> anyhow::Result<()> {
    let (verb, number) =
        command.split_once(' ').map_or((command, None), |(verb, number)| (verb, Some(number)));
    let place = || -> anyhow::Result<usize> {
        let number: usize = number.context("which truck?")?.parse()?;
        number.checked_sub(1).filter(|place| *place < TRUCKS).context("no such truck")
    };
    match verb {
        "cut" => site.link.cut(),
        "heal" => site.link.heal(),
        "pause" | "resume" => {
            site.gateway_command(&["relay", verb]).await?.ok()?;
        }
        "quiet" => {
            let sending = trucks[place()?].sending.take();
            sending.context("it is silent already")?.finish().await?;
        }
        "talk" => {
            let place = place()?;
            anyhow::ensure!(trucks[place].sending.is_none(), "it talks already");
            trucks[place].sending = Some(devices[place].start_sending("can")?);
        }
        "stop" => site.stop_gateway().await?,
        "start" => site.start_gateway().await?,
        other => anyhow::bail!("no such command: {other:?}"),
    }
    Ok(())
}
