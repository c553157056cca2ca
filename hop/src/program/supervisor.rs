//! What the supervisor is told: that the program is ready, how it is, that it lives, and that it stops. For systemd, and for whatever
//! else listens at `NOTIFY_SOCKET`; where nobody does, nothing is told.
//!
//! | told | when |
//! |---|---|
//! | `READY=1` | once, when `/readyz` says yes for the first time |
//! | `STATUS=` | whenever the one-sentence state changes |
//! | `WATCHDOG=1` | three times in each `WatchdogSec`, while what matters is proven to move |
//! | `STOPPING=1` | when the program begins to drain |
//!
//! What is proven before `WATCHDOG=1`: the runtime takes up a task that was just given to it and ends it, and the thread that makes
//! things durable has not been at one piece of work for half of `WatchdogSec`. A thread that waits for work is well, however long it
//! waits. So a program whose disk never returns from a sync is restarted between one and one and a half of `WatchdogSec` later, and
//! one that serves nobody because nobody comes is not.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::Lamps;

/// Longest sentence that is told, in bytes.
const STATUS_MAX: usize = 480;
/// A runtime that does not take up a task for this share of the watchdog's time does not answer.
const TURN_SHARE: u32 = 3;

/// What a supervisor has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// How long it waits for a sign of life, if it does.
    pub watchdog: Option<Duration>,
}

impl Asked {
    /// As the environment says. For programs alone.
    #[must_use]
    pub fn from_environment() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled().filter(|time| !time.is_zero()) }
    }
}

/// Tells the supervisor of this process, until `stop`. `busy_for` says for how long the thread that makes things durable has been at
/// one piece of work; it must not wait for anything.
pub async fn follow(
    asked: Asked,
    lamps: Lamps,
    busy_for: impl Fn() -> Option<Duration> + Send + 'static,
    stop: CancellationToken,
) {
    let tell = |states: &[NotifyState<'_>]| {
        // A supervisor that is gone has nobody to restart us; the program goes on.
        let _ = sd_notify::notify(states);
    };
    follow_with(asked, lamps, busy_for, tell, stop).await;
}

/// As [`follow`], told in another way.
pub async fn follow_with(
    asked: Asked,
    lamps: Lamps,
    busy_for: impl Fn() -> Option<Duration>,
    tell: impl Fn(&[NotifyState<'_>]),
    stop: CancellationToken,
) {
    let mut changes = lamps.watch_changes();
    let (mut ready, mut stopping, mut said) = (false, false, String::new());
    let mut withheld = false;
    let every = asked.watchdog.map_or(Duration::MAX, |time| time / 3);
    let mut next = Instant::now();
    loop {
        changes.mark_unchanged();
        if !ready && lamps.is_ready() {
            ready = true;
            tell(&[NotifyState::Ready]);
        }
        if !stopping && lamps.is_draining() {
            stopping = true;
            tell(&[NotifyState::Stopping]);
        }
        let words = one_line(&lamps.summary().words);
        if words != said {
            tell(&[NotifyState::Status(&words)]);
            said = words;
        }
        // Before it is ready, the time-out of a start is what the supervisor goes by.
        if let Some(time) = asked.watchdog.filter(|_| ready && Instant::now() >= next) {
            match stuck(time, busy_for()).await {
                None => {
                    if std::mem::take(&mut withheld) {
                        tracing::warn!(event = "watchdog.fed_again");
                    }
                    tell(&[NotifyState::Watchdog]);
                }
                Some(why) => {
                    if !std::mem::replace(&mut withheld, true) {
                        tracing::error!(
                            event = "watchdog.withheld",
                            why,
                            "the supervisor will restart this program"
                        );
                    }
                }
            }
            next = Instant::now() + every;
        }
        let tick = async {
            match asked.watchdog {
                Some(_) if ready => tokio::time::sleep_until(next).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tick => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What does not move, if anything.
async fn stuck(watchdog: Duration, busy_for: Option<Duration>) -> Option<&'static str> {
    if busy_for.is_some_and(|busy| busy > watchdog / 2) {
        return Some("the thread that makes things durable does not come back from the disk");
    }
    let turn = tokio::spawn(async {});
    match tokio::time::timeout(watchdog / TURN_SHARE, turn).await {
        Ok(_) => None,
        Err(_) => Some("the runtime does not take up a task"),
    }
}

fn one_line(words: &str) -> String {
    let mut line: String =
        words.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let end = (0..=STATUS_MAX.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    line.truncate(end);
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::health::Level;
    use std::sync::{Arc, Mutex};

    const WATCHDOG: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn it_is_fed_while_the_disk_comes_back_and_not_while_it_does_not() {
        let lamps = Lamps::new(&["intake"], &["intake"], Duration::ZERO);
        let (told, busy) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
        let stop = CancellationToken::new();
        let (told_by, busy_by) = (told.clone(), busy.clone());
        let tell = move |states: &[NotifyState<'_>]| {
            told_by.lock().unwrap().extend(states.iter().map(ToString::to_string));
        };
        let busy_for = move || *busy_by.lock().unwrap();
        let asked = Asked { watchdog: Some(WATCHDOG) };
        let following = tokio::spawn(follow_with(asked, lamps.clone(), busy_for, tell, stop.clone()));
        let beats = |told: &Mutex<Vec<String>>| {
            told.lock().unwrap().iter().filter(|line| *line == "WATCHDOG=1").count()
        };
        tokio::time::sleep(WATCHDOG * 3).await;
        assert_eq!(beats(&told), 0, "not before it is ready");
        lamps.set("intake", Level::Ok, "listening", Duration::ZERO);
        tokio::time::sleep(WATCHDOG).await;
        assert!(told.lock().unwrap().contains(&"READY=1".to_owned()));
        let fed = beats(&told);
        assert!((3..=4).contains(&fed), "{fed} in one period");
        // Work that takes its time is no reason.
        *busy.lock().unwrap() = Some(WATCHDOG / 2);
        tokio::time::sleep(WATCHDOG).await;
        assert!(beats(&told) >= fed + 3);
        *busy.lock().unwrap() = Some(WATCHDOG / 2 + Duration::from_millis(1));
        tokio::time::sleep(WATCHDOG / 3).await;
        let fed = beats(&told);
        tokio::time::sleep(WATCHDOG * 5).await;
        assert_eq!(beats(&told), fed, "it is stuck");
        *busy.lock().unwrap() = None;
        tokio::time::sleep(WATCHDOG).await;
        assert!(beats(&told) >= fed + 2, "it moves again");
        lamps.drain();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let heard = told.lock().unwrap().clone();
        assert!(
            heard.contains(&"STOPPING=1".to_owned())
                && heard.contains(&"STATUS=draining; all is well".to_owned()),
            "{heard:?}"
        );
        stop.cancel();
        following.await.unwrap();
    }

    #[test]
    fn a_sentence_is_one_line_and_no_letter_is_cut() {
        assert_eq!(one_line("a\nREADY=1\tb"), "a READY=1 b");
        let long = one_line(&"é".repeat(1000));
        assert!(long.len() <= STATUS_MAX && long.chars().all(|letter| letter == 'é'));
    }
}
