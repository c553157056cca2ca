//! Where there is coverage, and for how long: a file that is driven through again and again.
//!
//! ```text
//! # the haul road: 20 s in sight of the mast, a minute behind the hill
//! on 20s
//! off 60s jitter 30%
//! ```

use std::{path::Path, str::FromStr, time::Duration};

use pithead_hop::program::{ProgramError, units};
use pithead_proto::errors::v1::ErrorReason;

use super::random::Random;

/// Lines at most, and bytes: a trace that is longer is a recording, which nobody drives through by hand.
const STEPS_MAX: usize = 10_000;
const BYTES_MAX: u64 = 1024 * 1024;

/// For so long there is coverage, or there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    on: bool,
    lasts: Duration,
    /// Of `lasts`, in both directions.
    jitter: f64,
}

/// At least one step with coverage, and none without end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Coverage {
    steps: Vec<Step>,
}

impl Coverage {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, ProgramError> {
        let refuse = |reason, what: String| {
            ProgramError::new(reason, format!("{}{what}", path.display()))
                .todo("write lines such as `on 20s` and `off 60s jitter 30%`")
        };
        let unreadable = |error: std::io::Error| refuse(ErrorReason::ConfigUnreadable, format!(": {error}"));
        if std::fs::metadata(path).map_err(unreadable)?.len() > BYTES_MAX {
            return Err(refuse(ErrorReason::ConfigInvalid, ": larger than 1 MiB".into()));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        text.parse().map_err(|what: String| refuse(ErrorReason::ConfigInvalid, what))
    }

    /// Somewhere on the road, and on from there without end: whether there is coverage, and for how long.
    pub(super) fn drive(&self, mut random: Random) -> impl Iterator<Item = (bool, Duration)> + use<> {
        let steps = self.steps.clone();
        let total: Duration = steps.iter().map(|step| step.lasts).sum();
        let mut into =
            Duration::from_nanos(random.below(u64::try_from(total.as_nanos()).unwrap_or(u64::MAX)));
        let mut at = 0;
        while into >= steps[at].lasts {
            into -= steps[at].lasts;
            at = (at + 1) % steps.len();
        }
        let first = (steps[at].on, steps[at].lasts - into);
        let rest = (at + 1..).map(move |at| {
            let step = steps[at % steps.len()];
            (step.on, random.about(step.lasts, step.jitter))
        });
        std::iter::once(first).chain(rest)
    }
}

impl FromStr for Coverage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if steps.len() >= STEPS_MAX {
                return Err(format!(":{number}: more than {STEPS_MAX} lines"));
            }
            steps.push(step(line).map_err(|what| format!(":{number}: {what}"))?);
        }
        if !steps.iter().any(|step| step.on && !step.lasts.is_zero()) {
            return Err(": there is no coverage anywhere in it".into());
        }
        Ok(Self { steps })
    }
}

fn step(line: &str) -> Result<Step, String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (state, lasts, jitter) = match words.as_slice() {
        [state, lasts] => (*state, *lasts, None),
        [state, lasts, "jitter", jitter] => (*state, *lasts, Some(*jitter)),
        _ => return Err(format!("`{line}` is not `on` or `off`, a time, and perhaps `jitter 30%`")),
    };
    let on = match state {
        "on" => true,
        "off" => false,
        other => return Err(format!("`{other}` is neither `on` nor `off`")),
    };
    let lasts: units::Duration = lasts.parse().map_err(|error: units::UnitError| error.to_string())?;
    let jitter = match jitter {
        None => 0.0,
        Some(jitter) => {
            let percent = jitter.strip_suffix('%').and_then(|number| number.parse::<u8>().ok());
            let percent = percent.filter(|percent| *percent <= 100);
            f64::from(percent.ok_or_else(|| format!("`{jitter}` is not 0% to 100%"))?) / 100.0
        }
    };
    Ok(Step { on, lasts: lasts.get(), jitter })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ROAD: &str = "# a road\non 20s\n\noff 60s jitter 30%  # the hill\n";

    #[test]
    fn each_vehicle_begins_somewhere_and_drives_through_it_again_and_again() {
        let road: Coverage = ROAD.parse().unwrap();
        let mut firsts = Vec::new();
        for vehicle in 0..200 {
            let driven: Vec<_> = road.drive(Random::of(7, vehicle)).take(9).collect();
            assert_eq!(driven, road.drive(Random::of(7, vehicle)).take(9).collect::<Vec<_>>());
            for pair in driven.windows(2) {
                assert_ne!(pair[0].0, pair[1].0);
            }
            for (on, lasts) in &driven[1..] {
                let expected = if *on { 20.0..=20.0 } else { 42.0..=78.0 };
                assert!(expected.contains(&lasts.as_secs_f64()), "{lasts:?}");
            }
            firsts.push(driven[0].0);
        }
        let covered = firsts.iter().filter(|on| **on).count();
        assert!((20..90).contains(&covered), "a quarter of the road is covered: {covered} of 200");
    }

    #[test]
    fn what_is_no_road_is_refused_with_its_line() {
        for (text, said) in [
            ("", "no coverage anywhere"),
            ("off 3s", "no coverage anywhere"),
            ("on 0s", "no coverage anywhere"),
            ("on 3s\noof 3s", ":2: `oof`"),
            ("on 3", ":1: `3` has no unit"),
            ("on 3s jitter 130%", "`130%` is not 0% to 100%"),
            ("on 3s for 2s", "is not `on` or `off`"),
        ] {
            let refused = text.parse::<Coverage>().unwrap_err();
            assert!(refused.contains(said), "{said:?} in {refused:?}");
        }
    }
}
