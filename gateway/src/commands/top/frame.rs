//! One frame: lines of painted words, cut to the width that there is.

use std::time::Duration;

use pithead_hop::program::paint::{Paint, Tone};
use pithead_hop::program::{clock, human};
use serde_json::Value;

use super::super::meaning::{self, text};
use super::super::reading::{Rates, Reading};
use super::super::status::tone;
use super::rates;

/// What is taken for the width where nobody says how wide it is.
pub(super) const WIDTH: usize = 100;
/// Devices that are shown: those that send most.
const DEVICES: usize = 12;

/// A line: words, each with what it is painted for.
type Line = Vec<(Option<Tone>, String)>;

/// A frame that was not cut yet.
#[derive(Debug)]
pub(super) struct Frame(Vec<Line>);

impl Frame {
    /// Of the newest reading, and the one before it if there was one. `away`: nobody has answered for so long, and why.
    pub(super) fn of(before: Option<&Reading>, now: &Reading, away: Option<(Duration, &str)>) -> Self {
        let mut frame = Self(Vec::new());
        frame.head(now, away);
        frame.lamps(now);
        frame.flow(now, rates(before, now).as_ref());
        frame.devices(before, now);
        frame
    }

    fn line(&mut self, words: Line) {
        self.0.push(words);
    }

    fn plain(&mut self, words: String) {
        self.line(vec![(None, words)]);
    }

    fn head(&mut self, now: &Reading, away: Option<(Duration, &str)>) {
        let status = &now.status;
        let up = human::seconds(status["uptime_s"].as_u64().unwrap_or(0));
        let name = format!("{} at {}", text(&status["gateway"]), text(&status["site"]));
        let rest = format!("  {}  up {up}  {}", text(&status["version"]), human::moment(clock::wall_s()));
        self.line(vec![(Some(Tone::Heading), name), (Some(Tone::Quiet), rest)]);
        if let Some((since, why)) = away {
            let what = format!("AWAY for {}: {why}. What is below is old.", human::span(since));
            self.line(vec![(Some(Tone::Bad), what)]);
        }
        let meaning = meaning::of(status, &now.numbers);
        self.plain(meaning.sentence);
        for what in meaning.attention {
            self.line(vec![(Some(Tone::Warning), "! ".to_owned()), (None, what)]);
        }
        self.plain(String::new());
    }

    fn lamps(&mut self, now: &Reading) {
        for (name, lamp) in now.status["dimensions"].as_object().into_iter().flatten() {
            let age = human::seconds(lamp["for_s"].as_u64().unwrap_or(0));
            self.line(vec![
                (None, format!("{name:8} ")),
                (Some(tone(&lamp["level"])), format!("{:9}", text(&lamp["level"]))),
                (Some(Tone::Quiet), format!(" {age:>11}  ")),
                (None, text(&lamp["words"])),
            ]);
        }
        self.plain(String::new());
    }

    fn flow(&mut self, now: &Reading, rates: Option<&Rates>) {
        let (spool, relay) = (&now.status["spool"], &now.status["relay"]);
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let per_second =
            |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s"));
        let bytes = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), human::rate);
        let heading = format!("{:10} {:>12} {:>12}  waiting", "", "in", "out");
        self.line(vec![(Some(Tone::Heading), heading)]);
        let oldest = spool["oldest_age_s"]
            .as_u64()
            .map_or_else(String::new, |age| format!(", the oldest for {}", human::seconds(age)));
        self.plain(format!(
            "{:10} {:>12} {:>12}  {}{oldest}",
            "envelopes",
            per_second(rates.map(|rates| rates.in_envelopes)),
            per_second(rates.map(|rates| rates.out_envelopes)),
            human::count(number(&spool["records"])),
        ));
        let (capacity, left) = (number(&spool["capacity_bytes"]), number(&spool["available_bytes"]));
        let full = (capacity.saturating_sub(left)) * 100 / capacity.max(1);
        self.plain(format!(
            "{:10} {:>12} {:>12}  {}, {} of {} left ({full} % full)",
            "bytes",
            bytes(rates.map(|rates| rates.in_bytes)),
            bytes(rates.map(|rates| rates.out_bytes)),
            human::bytes(number(&spool["bytes"])),
            human::bytes(left),
            human::bytes(capacity),
        ));
        self.plain(format!("{:10} {}", "forecast", forecast(rates, left)));
        let ack = rates.and_then(|rates| rates.ack_s).map_or_else(
            || "none in the last second".to_owned(),
            |(half, most)| format!("half within {}, 99 % within {}", latency(half), latency(most)),
        );
        self.plain(format!("{:10} {ack}", "acks"));
        let rate = relay["rate_bytes_per_s"]
            .as_u64()
            .map_or_else(|| "any rate".to_owned(), |rate| format!("at most {}/s", human::bytes(rate)));
        self.plain(format!(
            "{:10} {} under way, {rate}; {} refused for good",
            "relay",
            human::bytes(number(&relay["in_flight_bytes"])),
            human::count(number(&relay["refused_records"])),
        ));
        self.plain(String::new());
    }

    /// Those that send most now, then those that have sent most.
    fn devices(&mut self, before: Option<&Reading>, now: &Reading) {
        let sent =
            |reading: &Reading, device: &str| reading.devices["sent_bytes"][device].as_u64().unwrap_or(0);
        let took = before.map(|before| now.at.saturating_duration_since(before.at).as_secs_f64());
        let mut rows: Vec<(f64, u64, String)> = Vec::new();
        for (device, bytes) in now.devices["sent_bytes"].as_object().into_iter().flatten() {
            let bytes = bytes.as_u64().unwrap_or(0);
            let rate = match (before, took) {
                (Some(before), Some(took)) if took > 0.05 => {
                    bytes.saturating_sub(sent(before, device)) as f64 / took
                }
                _ => 0.0,
            };
            rows.push((rate, bytes, device.clone()));
        }
        rows.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then_with(|| a.2.cmp(&b.2)));
        let connections = now.status["ingest"]["connections"].as_u64().unwrap_or(0);
        let heading = format!(
            "{:24} {:>12} {:>12} {:>14}   {}",
            "devices by traffic",
            "now",
            "sent",
            "seen",
            human::some(connections, "connection", "connections")
        );
        self.line(vec![(Some(Tone::Heading), heading)]);
        let all = rows.len();
        for (rate, bytes, device) in rows.into_iter().take(DEVICES) {
            let seen = now.devices["seen_s_ago"][&device]
                .as_u64()
                .map_or_else(|| "-".to_owned(), |ago| format!("{} ago", human::seconds(ago)));
            self.plain(format!(
                "{device:24} {:>12} {:>12} {seen:>14}",
                human::rate(rate),
                human::bytes(bytes)
            ));
        }
        match all.saturating_sub(DEVICES) {
            0 if all == 0 => {
                self.line(vec![(Some(Tone::Quiet), "nobody has sent anything since the start".into())])
            }
            0 => {}
            more => self.line(vec![(Some(Tone::Quiet), format!("and {} more", human::count(more as u64)))]),
        }
    }

    /// As text, each line cut to `width` characters, and at most so many lines.
    pub(super) fn text(&self, width: usize, height: usize, paint: Paint) -> String {
        let mut text = String::new();
        for line in self.0.iter().take(height) {
            let mut left = width;
            let mut shown = String::new();
            for (tone, words) in line {
                let cut: String = words.chars().take(left).collect();
                left -= cut.chars().count();
                shown += &match tone {
                    Some(tone) if !cut.is_empty() => paint.word(*tone, &cut),
                    _ => cut,
                };
            }
            text += shown.trim_end();
            text.push('\n');
        }
        text
    }
}

fn latency(seconds: f64) -> String {
    match seconds {
        bound if bound.is_infinite() => "more than is measured".to_owned(),
        bound if bound < 1.0 => format!("{} ms", (bound * 100_000.0).round() / 100.0),
        bound => format!("{bound} s"),
    }
}

/// When the disk is full if it goes on like this.
fn forecast(rates: Option<&Rates>, left: u64) -> String {
    let Some(rates) = rates else { return "-".to_owned() };
    let grows = rates.in_bytes - rates.out_bytes;
    if grows >= 1.0 {
        format!("full in {} if it goes on like this", human::seconds((left as f64 / grows) as u64))
    } else if rates.in_bytes >= 1.0 {
        let alone = human::seconds((left as f64 / rates.in_bytes) as u64);
        format!("not filling; without the cloud, full in {alone}")
    } else {
        "nothing comes in".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::super::super::reading::Numbers;
    use super::*;

    fn reading(at_s: u64, sent: u64) -> Reading {
        Reading {
            at: Instant::now() + Duration::from_secs(at_s),
            status: json!({
                "gateway": "gw-1", "site": "pit-7", "version": "0.1.0", "uptime_s": 60 + at_s, "ready": true,
                "dimensions": { "relay": { "level": "ok", "words": "up", "for_s": 3 } },
                "ingest": { "connections": 1 },
                "spool": { "records": 7, "bytes": 2048, "capacity_bytes": 1 << 20, "available_bytes": 1 << 19, "oldest_age_s": 9 },
                "relay": { "in_flight_bytes": 0, "refused_records": 0 },
            }),
            numbers: Numbers::parse(&format!("pithead_ingest_stored_bytes_total {sent}\n")),
            devices: json!({ "sent_bytes": { "truck-1": sent, "truck-2": 5 }, "seen_s_ago": { "truck-1": 0 } }),
        }
    }

    #[test]
    fn a_frame_shows_rates_backlog_forecast_and_devices_by_traffic() {
        let (before, now) = (reading(0, 1024), reading(2, 1024 + 2 * 4096));
        let text = Frame::of(Some(&before), &now, None).text(WIDTH, usize::MAX, Paint::default());
        assert!(text.starts_with("gw-1 at pit-7  0.1.0  up 1 min 2 s"), "{text}");
        assert!(text.contains("relay    ok                3 s  up\n"), "{text}");
        assert!(text.contains("7, the oldest for 9 s"), "{text}");
        assert!(text.contains("512.0 KiB of 1.0 MiB left (50 % full)"), "{text}");
        assert!(text.contains("full in 2 min 8 s if it goes on like this"), "{text}");
        let devices: Vec<&str> = text.lines().filter(|line| line.starts_with("truck")).collect();
        assert!(devices[0].starts_with("truck-1") && devices[0].contains("4.0 KiB/s"), "{text}");
        assert!(devices[1].starts_with("truck-2") && devices[1].contains("0 B/s"), "{text}");
    }

    #[test]
    fn a_narrow_window_cuts_lines_and_a_low_one_cuts_the_end() {
        let now = reading(0, 1024);
        let frame = Frame::of(None, &now, Some((Duration::from_secs(5), "connection refused")));
        for width in [0, 1, 20, 500] {
            let text = frame.text(width, 6, Paint::default());
            assert!(
                text.lines().count() <= 6 && text.lines().all(|line| line.chars().count() <= width),
                "{text}"
            );
        }
        assert!(frame.text(200, 3, Paint::default()).contains("AWAY for 5 s: connection refused"));
    }

    #[test]
    fn a_forecast_needs_something_that_comes_in() {
        let rates = |in_bytes, out_bytes| Rates {
            in_envelopes: 0.0,
            in_bytes,
            out_envelopes: 0.0,
            out_bytes,
            ack_s: None,
        };
        assert_eq!(forecast(None, 1), "-");
        assert_eq!(forecast(Some(&rates(0.0, 9.0)), 1), "nothing comes in");
        assert_eq!(forecast(Some(&rates(10.0, 10.0)), 600), "not filling; without the cloud, full in 1 min");
        assert_eq!(latency(0.004), "4 ms");
        assert_eq!(latency(0.00025), "0.25 ms");
        assert_eq!(latency(f64::INFINITY), "more than is measured");
    }
}
