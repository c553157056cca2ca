//! Plots as inline SVG, drawn here: no script, no outside resource, and no inline style, which the page's policy forbids.
//!
//! Time is in seconds from now: what was is negative, what is expected is positive. Colours and strokes are the style sheet's;
//! what a colour says is said by a word or a pattern as well.

use std::fmt::Write as _;

use maud::{Markup, html};

/// How large a plot is, in its own units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Across.
    pub width: f64,
    /// Down.
    pub height: f64,
    /// Of the letters.
    pub letters: f64,
    /// Labels on the axis of time at most.
    pub labels: usize,
}

/// For screens.
pub const WIDE: Size = Size { width: 960.0, height: 250.0, letters: 15.0, labels: 8 };
/// For screens, where there is less room.
pub const MIDDLE: Size = Size { width: 860.0, height: 200.0, letters: 14.0, labels: 8 };
/// For a phone.
pub const NARROW: Size = Size { width: 360.0, height: 200.0, letters: 13.0, labels: 4 };

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its class in the style sheet.
    pub class: &'static str,
    /// Seconds from now, and values.
    pub points: Vec<(f64, f64)>,
    /// Filled down to zero.
    pub filled: bool,
}

/// A time that is shaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shade {
    /// Its class in the style sheet.
    pub class: &'static str,
    /// Seconds from now.
    pub from: f64,
    /// Seconds from now.
    pub to: f64,
}

/// Where a line is expected to go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ahead {
    /// Seconds from now at the end of it.
    pub seconds: f64,
    /// The value there.
    pub value: f64,
    /// It ends there because the disk is full.
    pub full: bool,
}

/// A plot.
#[derive(Debug, Clone)]
pub struct Plot<'a> {
    /// Unique on the page: what refers to parts of it goes by it.
    pub id: &'a str,
    /// What it shows, for whoever does not see it.
    pub title: &'a str,
    /// Seconds of the past.
    pub past: f64,
    /// Seconds of the future.
    pub future: f64,
    /// The lines, the first on top.
    pub lines: &'a [Line],
    /// What is shaded.
    pub shades: &'a [Shade],
    /// Where the first line is expected to go.
    pub ahead: Option<Ahead>,
    /// How a value is written on its axis.
    pub label: fn(f64) -> String,
}

impl Plot<'_> {
    /// Draws it.
    #[must_use]
    pub fn svg(&self, size: Size, class: &str) -> Markup {
        let frame = Frame::new(self, size);
        let title = format!("{}-{class}-title", self.id);
        let pattern = |kind: &str| format!("{}-{class}-{kind}", self.id);
        let Size { width, height, letters, .. } = size;
        html! {
            svg class={ "plot " (class) } viewBox={ "0 0 " (width) " " (height) } role="img" aria-labelledby=(title) font-size=(letters) {
                title id=(title) { (self.title) }
                defs {
                    pattern id=(pattern("down")) class="stripes down" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                        rect width="8" height="8" {}
                        line x1="0" y1="0" x2="0" y2="8" {}
                    }
                    pattern id=(pattern("paused")) class="stripes paused" width="8" height="8" patternUnits="userSpaceOnUse" {
                        rect width="8" height="8" {}
                        circle cx="4" cy="4" r="1.4" {}
                    }
                    pattern id=(pattern("before")) class="stripes before" width="10" height="10" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)" {
                        line x1="0" y1="0" x2="0" y2="10" {}
                    }
                }
                @for shade in self.shades {
                    @let (from, to) = (frame.x(shade.from.max(-self.past)), frame.x(shade.to.min(0.0)));
                    // A cut of a second is seen as well.
                    rect class={ "shade " (shade.class) } x=(px(from)) y=(px(frame.top)) width=(px((to - from).max(1.5)))
                        height=(px(frame.bottom - frame.top)) fill={ "url(#" (pattern(shade.class)) ")" } {}
                }
                @for value in frame.values() {
                    line class="grid" x1=(px(frame.left)) x2=(px(frame.right)) y1=(px(frame.y(value))) y2=(px(frame.y(value))) {}
                }
                @if self.future > 0.0 {
                    line class="now" x1=(px(frame.x(0.0))) x2=(px(frame.x(0.0))) y1=(px(frame.top)) y2=(px(frame.bottom)) {}
                }
                @for line in self.lines.iter().rev().filter(|line| !line.points.is_empty()) {
                    @if line.filled {
                        path class={ "area " (line.class) } d=(frame.area(&line.points)) {}
                    }
                    path class={ "line " (line.class) } d=(frame.path(&line.points)) {}
                }
                @if let Some(ahead) = self.ahead {
                    @let from = self.lines.first().and_then(|line| line.points.last()).map_or(0.0, |last| last.1);
                    path class="line ahead" d=(frame.path(&[(0.0, from), (ahead.seconds, ahead.value)])) {}
                    @if ahead.full {
                        line class="full" x1=(px(frame.x(ahead.seconds))) x2=(px(frame.x(ahead.seconds))) y1=(px(frame.top)) y2=(px(frame.bottom)) {}
                        text class="full" x=(px(frame.x(ahead.seconds) - 5.0)) y=(px(frame.top + letters)) text-anchor="end" { "disk full" }
                    }
                }
                @for value in frame.values() {
                    text class="value" x=(px(frame.left + 3.0)) y=(px(frame.y(value) - 4.0)) { ((self.label)(value)) }
                }
                @for (seconds, words) in frame.times(self, size.labels) {
                    @let at = frame.x(seconds);
                    line class="tick" x1=(px(at)) x2=(px(at)) y1=(px(frame.bottom)) y2=(px(frame.bottom + 4.0)) {}
                    text class="time" x=(px(at)) y=(px(frame.bottom + letters + 6.0)) text-anchor=(frame.anchor(at)) { (words) }
                }
            }
        }
    }
}

/// Where what is drawn lies.
#[derive(Debug)]
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    past: f64,
    future: f64,
    most: f64,
    step: f64,
}

impl Frame {
    fn new(plot: &Plot<'_>, size: Size) -> Self {
        let values = plot.lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
        let most = values.chain(plot.ahead.map(|ahead| ahead.value)).fold(0.0, f64::max);
        let step = step(most.max(1.0) / 3.0);
        Self {
            left: 2.0,
            right: size.width - 2.0,
            top: size.letters + 8.0,
            bottom: size.height - size.letters - 12.0,
            past: plot.past,
            future: plot.future,
            most: (most.max(1.0) / step).ceil() * step,
            step,
        }
    }

    fn x(&self, seconds: f64) -> f64 {
        let part = (seconds + self.past) / (self.past + self.future);
        self.left + part.clamp(0.0, 1.0) * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - value / self.most * (self.bottom - self.top)
    }

    fn values(&self) -> impl Iterator<Item = f64> + use<> {
        let (step, most) = (self.step, self.most);
        (0..=4_u32).map(move |number| f64::from(number) * step).filter(move |value| *value <= most)
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (number, (seconds, value)) in points.iter().enumerate() {
            let letter = if number == 0 { 'M' } else { 'L' };
            // Writing to a String does not fail.
            let _ = write!(path, "{letter}{} {}", px(self.x(*seconds)), px(self.y(*value)));
        }
        path
    }

    fn area(&self, points: &[(f64, f64)]) -> String {
        let ends = points.first().zip(points.last());
        let Some((first, last)) = ends else { return String::new() };
        let (from, to) = (px(self.x(first.0)), px(self.x(last.0)));
        let ground = px(self.bottom);
        format!("{}L{to} {ground}L{from} {ground}Z", self.path(points))
    }

    /// The axis of time: now, and round distances from it.
    fn times(&self, plot: &Plot<'_>, most: usize) -> Vec<(f64, String)> {
        const ROUND: [f64; 15] = [
            10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0, 10_800.0, 21_600.0,
            43_200.0, 86_400.0, 172_800.0,
        ];
        let whole = plot.past + plot.future;
        let every = ROUND.into_iter().find(|every| whole / every <= most as f64).unwrap_or(604_800.0);
        let mut times = vec![(0.0, "now".to_owned())];
        let steps = |length: f64| {
            (1..=most).map(move |number| number as f64 * every).take_while(move |at| *at <= length + 0.5)
        };
        times.extend(steps(plot.past).map(|at| (-at, format!("−{}", distance(at)))));
        times.extend(steps(plot.future).map(|at| (at, format!("+{}", distance(at)))));
        times
    }

    /// The first and the last label stay inside.
    fn anchor(&self, x: f64) -> &'static str {
        let width = self.right - self.left;
        match (x - self.left) / width {
            part if part < 0.05 => "start",
            part if part > 0.95 => "end",
            _ => "middle",
        }
    }
}

/// 1, 2 or 5 and zeros: the first that is not below.
fn step(at_least: f64) -> f64 {
    let ten = 10_f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * ten)
        .find(|step| *step >= at_least * 0.999_999)
        .unwrap_or(at_least)
}

fn distance(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3_600.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 && s % 86_400.0 != 0.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// A coordinate, with a tenth of a unit.
fn px(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    if rounded.is_finite() { rounded.to_string() } else { "0".to_owned() }
}

/// A day in quarter-hours: where something came. `unknown` of them, the oldest, are from before the gateway started.
#[must_use]
pub fn strip(coverage: &[bool], unknown: usize) -> Markup {
    let known = coverage.len().saturating_sub(unknown);
    let covered = coverage.iter().skip(unknown).filter(|came| **came).count();
    let words = format!("something came in {covered} of the last {known} quarter-hours");
    html! {
        svg class="strip" viewBox="0 0 96 10" preserveAspectRatio="none" role="img" aria-label=(words) {
            rect class="empty" width="96" height="10" {}
            @if unknown > 0 {
                rect class="unknown" y="4" width=(unknown) height="2" {}
            }
            @for (from, length) in runs(coverage) {
                rect class="came" x=(from) width=(length) height="10" {}
            }
        }
    }
}

fn runs(coverage: &[bool]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, _) in coverage.iter().enumerate().filter(|(_, came)| **came) {
        match runs.last_mut().filter(|(from, length)| from + length == at) {
            Some((_, length)) => *length += 1,
            None => runs.push((at, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot<'a>(lines: &'a [Line], shades: &'a [Shade], ahead: Option<Ahead>) -> Plot<'a> {
        let future = if ahead.is_some() { 900.0 } else { 0.0 };
        Plot {
            id: "backlog",
            title: "a <title>",
            past: 3_600.0,
            future,
            lines,
            shades,
            ahead,
            label: |value| format!("{value:.0}"),
        }
    }

    fn line(points: &[(f64, f64)]) -> Line {
        Line { class: "waiting", points: points.to_vec(), filled: true }
    }

    #[test]
    fn now_is_at_the_right_edge_and_the_largest_value_below_the_top() {
        let lines = [line(&[(-3_600.0, 0.0), (0.0, 42.0)])];
        let svg = plot(&lines, &[], None).svg(WIDE, "wide").into_string();
        assert!(svg.contains("M2 223L958 "), "{svg}");
        assert_eq!(svg.matches("class=\"value\"").count(), 4, "0, 20, 40, 60: {svg}");
        assert!(svg.contains(">60<") && svg.contains(">−30 min<") && svg.contains(">now<"), "{svg}");
    }

    #[test]
    fn what_is_expected_lies_to_the_right_of_now_and_the_full_disk_has_words() {
        let lines = [line(&[(-60.0, 10.0), (0.0, 20.0)])];
        let ahead = Ahead { seconds: 450.0, value: 170.0, full: true };
        let svg = plot(&lines, &[], Some(ahead)).svg(WIDE, "wide").into_string();
        assert!(svg.contains("class=\"line ahead\"") && svg.contains(">disk full<"), "{svg}");
        assert!(svg.contains(">200<"), "it is within the scale: {svg}");
        let ahead = Ahead { full: false, ..ahead };
        assert!(!plot(&lines, &[], Some(ahead)).svg(WIDE, "wide").into_string().contains("disk full"));
    }

    #[test]
    fn a_shade_is_cut_at_the_edges_and_the_shortest_one_is_seen() {
        let shades = [
            Shade { class: "down", from: -9_000.0, to: -1_800.0 },
            Shade { class: "paused", from: -1.0, to: -0.9 },
        ];
        let svg = plot(&[], &shades, None).svg(WIDE, "wide").into_string();
        assert!(svg.contains("class=\"shade down\" x=\"2\" y=\"23\" width=\"478\""), "{svg}");
        assert!(svg.contains("class=\"shade paused\"") && svg.contains("width=\"1.5\""), "{svg}");
        assert!(svg.contains("fill=\"url(#backlog-wide-down)\""), "{svg}");
    }

    #[test]
    fn nothing_at_all_draws_axes_and_no_line_and_no_number_that_is_none() {
        for size in [WIDE, NARROW] {
            let svg = plot(&[line(&[])], &[], None).svg(size, "wide").into_string();
            assert!(!svg.contains("class=\"line") && svg.contains(">now<"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let lines = [line(&[(0.0, f64::NAN), (0.0, 1.0)])];
        assert!(!plot(&lines, &[], None).svg(WIDE, "wide").into_string().contains("NaN"));
    }

    #[test]
    fn titles_are_escaped_and_no_style_is_inline() {
        let svg = plot(&[], &[], None).svg(NARROW, "narrow").into_string();
        assert!(svg.contains("a &lt;title&gt;") && !svg.contains("style="), "{svg}");
    }

    #[test]
    fn a_strip_joins_neighbours_and_tells_what_is_not_known_from_what_did_not_come() {
        let mut coverage = vec![false; 96];
        for at in [90, 91, 92, 95] {
            coverage[at] = true;
        }
        let svg = strip(&coverage, 80).into_string();
        assert!(svg.contains("something came in 4 of the last 16 quarter-hours"), "{svg}");
        assert!(svg.contains("x=\"90\" width=\"3\"") && svg.contains("x=\"95\" width=\"1\""), "{svg}");
        assert!(svg.contains("class=\"unknown\" y=\"4\" width=\"80\""), "{svg}");
        assert!(!strip(&coverage, 0).into_string().contains("unknown"));
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([0.3, 1.0, 1.1, 3.0, 14.0, 700.0].map(step), [0.5, 1.0, 2.0, 5.0, 20.0, 1_000.0]);
    }
}
