//! What the books prove about every stream: what is here, what the device has said that it will never send, and what is
//! missing.
//!
//! Numbers are dense from 1 in each run, so what is not here can be named. How far it can be named is a matter of what the
//! device has said inside its seals: its newest heartbeat, and, in the first batch of each run, the end of the run before.
//! Up to there everything is accounted for: it is here, it was declared, it was refused, or it is a hole. So a lost tail of a
//! run shows, and so does a run of which nothing arrived. Beyond the last word of the device nobody can know.

use crate::devices::DeviceName;
use crate::intake::registry::Registry;
use crate::ledger::record::LineFacts;
use pithead_hop::ingest::{Interval, IntervalSet};
use pithead_sealing::trust::Kid;
use pithead_sealing::{DeviceId, Line, Run, Site, StreamName};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is asked about; nothing is everything.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// This site alone.
    pub site: Option<Site>,
    /// This device alone.
    pub device: Option<DeviceId>,
    /// This stream alone.
    pub stream: Option<StreamName>,
}

impl Filter {
    fn takes(&self, site: &Site, line: &Line) -> bool {
        self.site.as_ref().is_none_or(|only| only == site)
            && self.device.as_ref().is_none_or(|only| *only == line.device)
            && self.stream.as_ref().is_none_or(|only| *only == line.stream)
    }
}

/// One run of a stream.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// The run.
    pub run: Run,
    /// The highest number that anybody has spoken of.
    pub to: u64,
    /// The number up to which the device has said that there is something: up to here, what is not a hole is no loss. 0 if
    /// it has not said.
    pub told_to: u64,
    /// Applied, or settled.
    pub held: IntervalSet,
    /// Declared by the device as never to come, and not here.
    pub declared: IntervalSet,
    /// How many more it has declared that are not here, so long ago that they are counted and no longer told apart from `held`.
    pub settled: u64,
    /// Refused for good, and not here.
    pub refused: IntervalSet,
    /// None of these.
    pub holes: IntervalSet,
    /// What the books count.
    pub facts: LineFacts,
}

impl RunReport {
    /// How many numbers were applied.
    #[must_use]
    pub fn came(&self) -> u64 {
        self.held.count().saturating_sub(self.settled)
    }

    /// Numbers that the device has declared, and that are not here.
    #[must_use]
    pub fn declared_in_all(&self) -> u64 {
        self.declared.count().saturating_add(self.settled)
    }

    /// Numbers that a policy of the device's has dropped, as far as they have not come after all.
    #[must_use]
    pub fn dropped_by_policy(&self) -> u64 {
        self.facts.dropped_by_policy.min(self.declared_in_all())
    }
}

/// One stream of a device, its runs in the order in which they began.
#[derive(Debug, Clone)]
pub struct StreamReport {
    /// The site.
    pub site: Site,
    /// The device.
    pub device: DeviceId,
    /// The stream.
    pub stream: StreamName,
    /// Its runs.
    pub runs: Vec<RunReport>,
}

impl StreamReport {
    fn sum(&self, of: impl Fn(&RunReport) -> u64) -> u64 {
        self.runs.iter().map(of).fold(0, u64::saturating_add)
    }

    /// The newest run and number up to which a hole would show.
    #[must_use]
    pub fn told_to(&self) -> Option<(Run, u64)> {
        self.runs.iter().rev().find(|run| run.told_to > 0).map(|run| (run.run, run.told_to))
    }

    /// Runs of which nobody has told the end, the newest one left out: what was lost of their tails does not show.
    #[must_use]
    pub fn runs_without_an_end(&self) -> usize {
        let before = self.runs.split_last().map_or(&[][..], |(_, before)| before);
        before.iter().filter(|run| run.told_to == 0).count()
    }
}

/// What the books prove.
#[derive(Debug, Clone)]
pub struct Report {
    /// In the order of site, device and stream.
    pub streams: Vec<StreamReport>,
    /// Devices that have signed, each with the keys that did and since when.
    pub latches: Vec<(DeviceName, Kid, u64)>,
    /// Entries of the books that cannot be read: as long as there are some, nothing is proven.
    pub damaged: u64,
    /// Of a ledger in a bucket, what is beside the streams.
    pub beside: Beside,
}

/// What the ledger in a bucket says, and the lines of no device do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Beside {
    /// Entries whose output is not whole in the sink: what they say is here, is decided, and nobody can read it yet.
    pub unwritten: u64,
    /// Objects that were no bundle: what was in them nobody can tell.
    pub bundles_refused: u64,
    /// Envelopes that were set aside and name nobody: whose they were nobody can tell. Where that device sent no good copy, it shows as
    /// missing.
    pub nameless_set_aside: u64,
}

impl Beside {
    /// Of two sites.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            unwritten: self.unwritten.saturating_add(other.unwritten),
            bundles_refused: self.bundles_refused.saturating_add(other.bundles_refused),
            nameless_set_aside: self.nameless_set_aside.saturating_add(other.nameless_set_aside),
        }
    }
}

impl Report {
    /// Draws it up, of books of which nothing is damaged.
    #[must_use]
    pub fn of(registry: &Registry, filter: &Filter) -> Self {
        let mut runs: BTreeMap<(Site, Line), RunReport> = BTreeMap::new();
        let run_of = |line: &Line| RunReport {
            run: line.run,
            to: 0,
            told_to: 0,
            held: IntervalSet::new(),
            declared: IntervalSet::new(),
            settled: 0,
            refused: IntervalSet::new(),
            holes: IntervalSet::new(),
            facts: LineFacts::default(),
        };
        for (site, lines) in registry.sites() {
            for (line, view) in lines.iter().filter(|(line, _)| filter.takes(site, line)) {
                let mut run = run_of(&line);
                run.to = view.newest;
                (run.held, run.declared, run.refused) = (view.held, view.declared, view.refused);
                run.settled = view.settled;
                runs.insert((site.clone(), line), run);
            }
        }
        for (site, line, facts) in registry.all_facts().filter(|(site, line, _)| filter.takes(site, line)) {
            let key = (site.clone(), line.clone());
            let run = runs.entry(key).or_insert_with(|| run_of(line));
            run.told_to = run.told_to.max(facts.heartbeat_last);
            run.facts = facts.clone();
            // A run says where the one before it ended, which may be one that never arrived.
            let Some(previous) = &facts.previous else { continue };
            let (Ok(stream), Ok(before)) = (StreamName::new(&previous.stream), Run::new(previous.run)) else {
                continue;
            };
            if stream == line.stream && previous.last > 0 {
                let before = Line { run: before, ..line.clone() };
                let run = runs.entry((site.clone(), before.clone())).or_insert_with(|| run_of(&before));
                run.told_to = run.told_to.max(previous.last);
            }
        }
        let mut streams: Vec<StreamReport> = Vec::new();
        for ((site, line), mut run) in runs {
            let spoken_of = [run.held.last(), run.declared.last(), run.refused.last(), Some(run.told_to)];
            run.to = spoken_of.into_iter().flatten().fold(run.to, u64::max);
            let known: IntervalSet =
                run.held.iter().chain(run.declared.iter()).chain(run.refused.iter()).collect();
            run.holes = known.gaps_within(1, run.to).collect();
            match streams.last_mut() {
                Some(last)
                    if last.site == site && last.device == line.device && last.stream == line.stream =>
                {
                    last.runs.push(run);
                }
                _ => streams.push(StreamReport {
                    site,
                    device: line.device,
                    stream: line.stream,
                    runs: vec![run],
                }),
            }
        }
        let takes = |name: &DeviceName| {
            filter.site.as_ref().is_none_or(|only| *only == name.site)
                && filter.device.as_ref().is_none_or(|only| *only == name.device)
        };
        let latches = registry.latches().filter(|(name, ..)| takes(name));
        let latches = latches.map(|(name, kid, since)| (name.clone(), *kid, since)).collect();
        Self { streams, latches, damaged: 0, beside: Beside::default() }
    }

    /// True if nothing is missing that nobody has explained, all of the books could be read, and all that they say is written.
    #[must_use]
    pub fn is_proof(&self) -> bool {
        let Beside { unwritten, bundles_refused, .. } = self.beside;
        self.missing() == 0 && self.damaged == 0 && unwritten == 0 && bundles_refused == 0
    }

    /// Numbers that are missing and that nobody has explained.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.streams.iter().map(|stream| stream.sum(|run| run.holes.count())).fold(0, u64::saturating_add)
    }

    /// For programs.
    #[must_use]
    pub fn as_json(&self) -> Value {
        let run = |run: &RunReport| {
            json!({
                "run": run.run.to_string(),
                "to": run.to,
                "told_to": run.told_to,
                "held": run.came(),
                "holes": ranges(&run.holes),
                "declared": ranges(&run.declared),
                "declared_in_all": run.declared_in_all(),
                "dropped_by_policy": run.dropped_by_policy(),
                "refused": ranges(&run.refused),
                "envelopes": run.facts.envelopes,
                "records": run.facts.records,
                "plaintext_bytes": run.facts.plaintext_bytes,
                "duplicates": run.facts.duplicates,
                "conflicts": run.facts.conflicts,
                "refused_envelopes": run.facts.refused,
                "signed": run.facts.signed,
                "unknown_key": run.facts.unknown_key,
                "refused_for_signature": {
                    "invalid": run.facts.refused_invalid,
                    "unsigned": run.facts.refused_unsigned,
                    "signed_by_revoked": run.facts.refused_revoked,
                    "unknown_key": run.facts.refused_unknown_key,
                },
                "first_us": run.facts.first_us,
                "last_us": run.facts.last_us,
                "heartbeat_us": run.facts.heartbeat_us,
            })
        };
        let stream = |stream: &StreamReport| {
            json!({
                "site": stream.site.as_str(),
                "device": stream.device.as_str(),
                "stream": stream.stream.as_str(),
                "missing": stream.sum(|run| run.holes.count()),
                "runs_without_an_end": stream.runs_without_an_end(),
                "runs": stream.runs.iter().map(run).collect::<Vec<_>>(),
            })
        };
        let latch = |(name, kid, since): &(DeviceName, Kid, u64)| {
            json!({
                "site": name.site.as_str(),
                "device": name.device.as_str(),
                "kid": kid.to_string(),
                "since_us": since,
            })
        };
        json!({
            "missing": self.missing(),
            "ledger_damaged": self.damaged,
            "unwritten": self.beside.unwritten,
            "bundles_refused": self.beside.bundles_refused,
            "nameless_set_aside": self.beside.nameless_set_aside,
            "signers": self.latches.iter().map(latch).collect::<Vec<_>>(),
            "streams": self.streams.iter().map(stream).collect::<Vec<_>>(),
        })
    }

    /// For people: a row for each stream, and below it what is missing.
    #[must_use]
    pub fn as_text(&self) -> String {
        const HEAD: [&str; 12] = [
            "STREAM",
            "RUNS",
            "FROM",
            "TO",
            "PROVEN TO",
            "ENVELOPES",
            "SIGNED",
            "MISSING",
            "POLICY",
            "REFUSED",
            "CONFLICTS",
            "DUPLICATES",
        ];
        let rows: Vec<[String; 12]> = self.streams.iter().map(row).collect();
        let width =
            |column: usize| rows.iter().map(|row| row[column].len()).fold(HEAD[column].len(), usize::max);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            format!("{}\n", padded.join("  ").trim_end())
        };
        let mut text = line(HEAD.to_vec());
        for (stream, row) in self.streams.iter().zip(&rows) {
            text += &line(row.iter().map(String::as_str).collect());
            for run in &stream.runs {
                for (what, set) in
                    [("missing ", &run.holes), ("declared", &run.declared), ("refused ", &run.refused)]
                {
                    for range in set.iter() {
                        text += &format!("  {what}  {}/{}\n", run.run, of_range(range));
                    }
                }
                if run.settled > 0 {
                    text += &format!(
                        "  declared  {}: {} numbers more, earlier, that are not listed any longer\n",
                        run.run, run.settled
                    );
                }
            }
            for (count, what) in [
                (
                    stream.sum(|run| run.facts.unknown_key),
                    "signed by a key that nobody registered; they are here as vouched for",
                ),
                (stream.sum(|run| run.facts.refused_invalid), "refused: the session signature did not hold"),
                (stream.sum(|run| run.facts.refused_unsigned), "refused: not signed, and the device signs"),
                (stream.sum(|run| run.facts.refused_revoked), "refused: signed by a key that was revoked"),
                (
                    stream.sum(|run| run.facts.refused_unknown_key),
                    "refused: signed by a key that nobody registered",
                ),
            ] {
                if count > 0 {
                    text += &format!("  {count} {what}\n");
                }
            }
            match stream.runs_without_an_end() {
                0 => {}
                count => {
                    text +=
                        &format!("  {count} earlier runs without a told end: a lost tail would not show\n");
                }
            }
        }
        for (name, kid, _) in &self.latches {
            text +=
                &format!("{name} signs with {kid}: nothing unsigned is taken while that key is registered\n");
        }
        text += &match self.missing() {
            0 if self.damaged > 0 => "no unexplained hole in what can be read\n".to_owned(),
            0 => "no unexplained hole\n".to_owned(),
            1 => "1 number is missing\n".to_owned(),
            missing => format!("{missing} numbers are missing\n"),
        };
        if self.damaged > 0 {
            text += &format!(
                "{} entries or segments of the ledger are damaged, and this is no proof: what they said may be listed as \
                 missing, or not at all\n",
                self.damaged
            );
        }
        for (count, what) in [
            (
                self.beside.unwritten,
                "entries without their output, and this is no proof: what they say is here cannot be read yet",
            ),
            (
                self.beside.bundles_refused,
                "objects that were no bundle, and this is no proof: nobody knows what was in them",
            ),
            (self.beside.nameless_set_aside, "envelopes set aside of which nobody knows whose they were"),
        ] {
            if count > 0 {
                text += &format!("{count} {what}\n");
            }
        }
        text
    }
}

fn row(stream: &StreamReport) -> [String; 12] {
    let at = |run: &RunReport, number: u64| format!("{}/{number}", run.run);
    let (first, last) = (stream.runs.first(), stream.runs.last());
    [
        format!("{}/{}/{}", stream.site, stream.device, stream.stream),
        stream.runs.len().to_string(),
        first.map(|run| at(run, 1)).unwrap_or_default(),
        last.map(|run| at(run, run.to)).unwrap_or_default(),
        stream.told_to().map_or_else(|| "-".to_owned(), |(run, number)| format!("{run}/{number}")),
        stream.sum(|run| run.facts.envelopes).to_string(),
        stream.sum(|run| run.facts.signed).to_string(),
        stream.sum(|run| run.holes.count()).to_string(),
        stream.sum(RunReport::dropped_by_policy).to_string(),
        stream.sum(|run| run.refused.count()).to_string(),
        stream.sum(|run| run.facts.conflicts).to_string(),
        stream.sum(|run| run.facts.duplicates).to_string(),
    ]
}

fn of_range(range: Interval) -> String {
    if range.first == range.last {
        range.first.to_string()
    } else {
        format!("{}-{}", range.first, range.last)
    }
}

fn ranges(set: &IntervalSet) -> Value {
    set.iter().map(|range| json!({ "from": range.first, "to": range.last })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::record::{Applied, Said, SaidGap, SaidLine, SetAside};
    use crate::ledger::{Entry, Replay};
    use crate::sink::testing::batch;
    use pithead_proto::errors::v1::ErrorReason;

    /// Number `seq` of a run is applied, and its batch says this.
    fn apply(registry: &mut Registry, run: u64, seq: u64, said: Option<Said>) {
        let mut applied = Applied::of(&batch("t", seq, 1), 100, false, None);
        if let Some(who) = &mut applied.who {
            who.run = run;
        }
        registry.replay(Replay::Entry(Box::new(Entry::Applied { applied, said })));
    }

    fn beat(run: u64, last: u64) -> Said {
        let line = SaidLine { stream: "can".into(), run, last };
        Said { gaps: Vec::new(), previous: None, heartbeat: vec![line] }
    }

    fn after(run: u64, last: u64) -> Said {
        let previous = Some(SaidLine { stream: "can".into(), run, last });
        Said { gaps: Vec::new(), previous, heartbeat: Vec::new() }
    }

    /// Numbers that a batch declares: run, first, last, and why.
    fn gone(gaps: &[(u64, u64, u64, u32)]) -> Vec<SaidGap> {
        let gap = |&(run, from, to, reason)| SaidGap { stream: "can".into(), run, from, to, reason };
        gaps.iter().map(gap).collect()
    }

    const POLICY: u32 = 1;
    const DAMAGED: u32 = 2;

    /// What `verify` answers 0 for, and says so; and the same when the books come out of a checkpoint.
    fn assert_proof(registry: &Registry) -> Report {
        let mut again = Registry::default();
        again.replay(Replay::Checkpoint(Box::new(registry.checkpoint())));
        let report = Report::of(registry, &Filter::default());
        assert_eq!(report.as_text(), Report::of(&again, &Filter::default()).as_text());
        assert!(report.is_proof(), "{}", report.as_text());
        assert!(report.as_text().ends_with("no unexplained hole\n"), "{}", report.as_text());
        assert_eq!(report.as_json()["missing"], 0);
        report
    }

    fn holes(registry: &Registry) -> Vec<(u64, u64, u64)> {
        let report = Report::of(registry, &Filter::default());
        let runs = report.streams.iter().flat_map(|stream| &stream.runs);
        runs.flat_map(|run| run.holes.iter().map(|hole| (run.run.get(), hole.first, hole.last))).collect()
    }

    #[test]
    fn a_hole_is_named_and_a_declared_one_is_explained() {
        let mut registry = Registry::default();
        for seq in [1, 2, 5, 9] {
            apply(&mut registry, 7, seq, None);
        }
        assert_eq!(holes(&registry), [(7, 3, 4), (7, 6, 8)]);
        let gap = SaidGap { stream: "can".into(), run: 7, from: 6, to: 8, reason: 1 };
        apply(&mut registry, 7, 10, Some(Said { gaps: vec![gap], previous: None, heartbeat: Vec::new() }));
        assert_eq!(holes(&registry), [(7, 3, 4)]);
        let report = Report::of(&registry, &Filter::default());
        assert_eq!(report.streams[0].runs[0].dropped_by_policy(), 3);
        assert_eq!(report.missing(), 2);
    }

    #[test]
    fn a_heartbeat_shows_a_lost_tail_and_says_how_far_nothing_is() {
        let mut registry = Registry::default();
        apply(&mut registry, 7, 1, Some(beat(7, 1)));
        assert_eq!(holes(&registry), []);
        apply(&mut registry, 7, 2, None);
        let report = Report::of(&registry, &Filter::default());
        assert_eq!(
            report.streams[0].told_to().map(|(_, number)| number),
            Some(1),
            "2 is here, and nobody vouches"
        );
        apply(&mut registry, 7, 3, Some(beat(7, 5)));
        assert_eq!(holes(&registry), [(7, 4, 5)]);
    }

    #[test]
    fn the_next_run_shows_a_lost_tail_and_a_run_of_which_nothing_came() {
        let mut registry = Registry::default();
        apply(&mut registry, 7, 1, None);
        apply(&mut registry, 8, 1, Some(after(7, 3)));
        assert_eq!(holes(&registry), [(7, 2, 3)]);
        // Run 9 is lost altogether.
        apply(&mut registry, 10, 1, Some(after(9, 4)));
        assert_eq!(holes(&registry), [(7, 2, 3), (9, 1, 4)]);
        let report = Report::of(&registry, &Filter::default());
        assert_eq!(report.streams[0].runs.len(), 4);
        assert_eq!(report.streams[0].runs_without_an_end(), 1, "nobody has told where run 8 ended");
        let device = Some(DeviceId::new("somebody-else").unwrap());
        assert_eq!(Report::of(&registry, &Filter { device, ..Filter::default() }).streams.len(), 0);
    }

    #[test]
    fn what_a_policy_dropped_in_several_runs_is_no_hole_in_any_of_them() {
        let mut registry = Registry::default();
        apply(&mut registry, 7, 1, None);
        apply(&mut registry, 7, 2, Some(beat(7, 6)));
        assert_eq!(holes(&registry), [(7, 3, 6)], "told of, and nobody has explained it yet");
        let said = Said { gaps: gone(&[(7, 3, 6, POLICY)]), ..after(7, 6) };
        apply(&mut registry, 8, 1, Some(said));
        // The later run speaks for both, and a number of its own that is above all that is here.
        apply(&mut registry, 8, 4, Some(Said { gaps: gone(&[(8, 2, 3, POLICY)]), ..beat(8, 4) }));
        let said = Said { gaps: gone(&[(8, 5, 9, POLICY), (9, 2, 2, POLICY)]), ..after(8, 9) };
        apply(&mut registry, 9, 1, Some(said));
        apply(&mut registry, 9, 3, Some(beat(9, 3)));
        let report = assert_proof(&registry);
        let runs = &report.streams[0].runs;
        let dropped: Vec<u64> = runs.iter().map(RunReport::dropped_by_policy).collect();
        assert_eq!((dropped, report.streams[0].runs_without_an_end()), (vec![4, 7, 1], 0));
        assert_eq!(runs[1].to, 9, "what was dropped off the end of a run is of the run");
    }

    #[test]
    fn a_run_whose_first_batch_was_dropped_leaves_no_hole_and_the_end_before_it_untold() {
        let mut registry = Registry::default();
        apply(&mut registry, 7, 1, None);
        // Number 1 of run 8 said where run 7 had ended, and was dropped.
        apply(&mut registry, 8, 2, Some(Said { gaps: gone(&[(8, 1, 1, POLICY)]), ..beat(8, 2) }));
        let report = assert_proof(&registry);
        assert_eq!(report.streams[0].runs_without_an_end(), 1);
        assert!(report.as_text().contains("1 earlier runs without a told end"), "{}", report.as_text());
        // A device that says it again beside the gap has lost nothing by it: it counts in any batch of the run.
        apply(&mut registry, 8, 3, Some(after(7, 1)));
        let report = assert_proof(&registry);
        assert_eq!(report.streams[0].runs_without_an_end(), 0);
        apply(&mut registry, 8, 4, Some(after(7, 2)));
        assert_eq!(holes(&registry), [(7, 2, 2)]);
    }

    #[test]
    fn the_end_of_the_run_before_is_taken_from_any_batch_and_what_an_older_one_says_takes_nothing_back() {
        let mut registry = Registry::default();
        apply(&mut registry, 7, 1, None);
        apply(&mut registry, 8, 3, Some(Said { gaps: gone(&[(8, 1, 2, POLICY)]), ..after(7, 3) }));
        assert_eq!(holes(&registry), [(7, 2, 3)]);
        // It was sealed before, and comes later; and one that says nothing leaves it.
        apply(&mut registry, 8, 2, Some(after(7, 1)));
        apply(&mut registry, 8, 4, Some(beat(8, 4)));
        assert_eq!(holes(&registry), [(7, 2, 3)]);
    }

    #[test]
    fn a_line_that_lost_something_and_said_so_three_thousand_times_is_explained_and_its_hole_is_named() {
        const CYCLES: u64 = 3_000;
        let mut registry = Registry::default();
        for cycle in 0..CYCLES {
            // Ten come and ten were dropped; of cycle 20 one number is lost beside.
            let first = cycle * 20 + 1;
            let gaps = match cycle {
                0 => Vec::new(),
                21 => gone(&[(7, first - 10, first - 6, POLICY), (7, first - 4, first - 1, POLICY)]),
                _ => gone(&[(7, first - 10, first - 1, POLICY)]),
            };
            apply(&mut registry, 7, first, Some(Said { gaps, ..beat(7, first) }));
            (first + 1..first + 10).for_each(|seq| apply(&mut registry, 7, seq, None));
            if cycle == CYCLES / 2 {
                let mut again = Registry::default();
                again.replay(Replay::Checkpoint(Box::new(registry.checkpoint())));
                registry = again;
            }
        }
        let hole = 20 * 20 + 16;
        assert_eq!(holes(&registry), [(7, hole, hole)]);
        let report = Report::of(&registry, &Filter::default());
        let run = &report.streams[0].runs[0];
        let declared = (CYCLES - 1) * 10 - 1;
        assert_eq!(
            (run.came(), run.declared_in_all(), run.dropped_by_policy()),
            (CYCLES * 10, declared, declared)
        );
        assert_eq!(run.facts.envelopes, CYCLES * 10);
        let (json, text) = (report.as_json(), report.as_text());
        let listed = json["streams"][0]["runs"][0]["declared"].as_array().unwrap().len() as u64;
        assert!(listed < CYCLES / 2, "{listed}");
        assert_eq!(json["streams"][0]["runs"][0]["declared_in_all"], declared);
        assert_eq!(json["streams"][0]["runs"][0]["held"], CYCLES * 10);
        let not_listed = format!(": {} numbers more, earlier, that are not listed any longer", run.settled);
        assert!(run.settled > 0 && text.contains(&not_listed), "{text}");
        assert!(text.ends_with("1 number is missing\n"), "{text}");
        // It comes after all, and nothing is left to explain.
        apply(&mut registry, 7, hole, None);
        let report = assert_proof(&registry);
        assert_eq!(report.streams[0].runs[0].came(), CYCLES * 10 + 1);
    }

    #[test]
    fn what_was_on_its_way_while_its_range_was_settled_is_counted_by_a_start_as_what_it_became() {
        const CYCLES: u64 = 600;
        let mut registry = Registry::default();
        // The ledger has it in the order in which it ended: 1 and 2 were offered first, declared, and opened last.
        for cycle in 1..=CYCLES {
            let first = 4 * cycle;
            let said = Said { gaps: gone(&[(7, first - 3, first - 1, POLICY)]), ..beat(7, first) };
            apply(&mut registry, 7, first, Some(said));
        }
        apply(&mut registry, 7, 1, None);
        let Some(mut who) = Applied::of(&batch("t", 2, 1), 100, false, None).who else {
            panic!("it has a name")
        };
        who.run = 7;
        let poison = SetAside {
            who: Some(who),
            reason: ErrorReason::ContentMalformed as i32,
            kept: true,
            ..SetAside::default()
        };
        registry.replay(Replay::Entry(Box::new(Entry::SetAside(poison))));
        let report = assert_proof(&registry);
        let run = &report.streams[0].runs[0];
        assert!(run.settled > 0);
        let counts = (run.came(), run.declared_in_all(), run.refused.count());
        assert_eq!(counts, (CYCLES + 1, 3 * CYCLES - 2, 1));
    }

    #[test]
    fn a_device_that_restarted_a_thousand_times_without_a_word_explains_all_of_it_at_once() {
        let mut registry = Registry::default();
        let gaps: Vec<_> = (1..=1_000).map(|run| (run, 1, 3, POLICY)).collect();
        apply(&mut registry, 1_001, 1, Some(Said { gaps: gone(&gaps), ..after(1_000, 3) }));
        let report = assert_proof(&registry);
        let dropped: u64 = report.streams[0].runs.iter().map(RunReport::dropped_by_policy).sum();
        assert_eq!((report.streams[0].runs.len(), dropped), (1_001, 3_000));
    }

    #[test]
    fn a_run_that_was_dropped_whole_is_explained_whole() {
        let mut registry = Registry::default();
        apply(&mut registry, 7, 1, None);
        // Run 8 named run 7 as the one before. Nothing of it came.
        let said = Said { gaps: gone(&[(7, 2, 3, POLICY), (8, 1, 4, POLICY)]), ..after(8, 4) };
        apply(&mut registry, 9, 1, Some(said));
        let report = assert_proof(&registry);
        let runs: Vec<_> = report.streams[0].runs.iter().map(|run| (run.run.get(), run.to)).collect();
        assert_eq!(runs, [(7, 3), (8, 4), (9, 1)]);
        // One number more than was declared is a hole, also of a run of which nothing is here.
        apply(&mut registry, 9, 2, Some(after(8, 5)));
        assert_eq!(holes(&registry), [(8, 5, 5)]);
    }

    #[test]
    fn a_device_that_restarted_fifty_times_and_explained_each_time_what_it_dropped_has_lost_nothing() {
        const RUNS: u64 = 50;
        let mut registry = Registry::default();
        for run in 1..=RUNS {
            // Of each run one batch was sent and two were dropped, which the next run says; every fifth run was dropped whole.
            let whole = |run: u64| run.is_multiple_of(5);
            if whole(run) {
                continue;
            }
            let mut gaps = Vec::new();
            if run > 1 {
                gaps.push((run - 1, if whole(run - 1) { 1 } else { 2 }, 3, POLICY));
            }
            if run > 2 && whole(run - 1) {
                gaps.push((run - 2, 2, 3, POLICY));
            }
            apply(
                &mut registry,
                run,
                1,
                Some(Said { gaps: gone(&gaps), ..after(run - 1, 3 * run.min(2) - 3) }),
            );
        }
        // The last run was one of those that were dropped; it is as if it never was until somebody names it.
        let report = assert_proof(&registry);
        assert_eq!(report.streams[0].runs.len(), RUNS as usize - 1);
        let dropped: u64 = report.streams[0].runs.iter().map(RunReport::dropped_by_policy).sum();
        // 39 runs with two each (the 49th says nothing of itself yet), 9 with three.
        assert_eq!(dropped, 39 * 2 + 9 * 3);
        let last = Said { gaps: gone(&[(49, 2, 3, POLICY), (50, 1, 3, POLICY)]), ..after(50, 3) };
        apply(&mut registry, 51, 1, Some(last));
        let report = assert_proof(&registry);
        assert_eq!(report.streams[0].runs.len(), RUNS as usize + 1);
        assert_eq!(report.as_text().matches("declared").count(), RUNS as usize);
    }

    #[test]
    fn what_is_declared_again_counts_once_and_damage_does_not_pass_for_policy() {
        let mut registry = Registry::default();
        apply(&mut registry, 7, 1, Some(beat(7, 9)));
        let first = Said { gaps: gone(&[(7, 2, 3, POLICY), (7, 4, 8, DAMAGED)]), ..Said::default() };
        apply(&mut registry, 7, 9, Some(first));
        // Killed before it knew that it had said so: the next run says it again, and the damage by another name.
        let again = Said { gaps: gone(&[(7, 2, 3, POLICY), (7, 4, 8, POLICY)]), ..after(7, 9) };
        apply(&mut registry, 8, 1, Some(again));
        let report = assert_proof(&registry);
        assert_eq!(report.streams[0].runs[0].dropped_by_policy(), 2);
        // What comes after all is here, and neither dropped nor declared.
        apply(&mut registry, 7, 2, None);
        let report = assert_proof(&registry);
        assert_eq!(report.streams[0].runs[0].declared.count(), 6);
    }
}
