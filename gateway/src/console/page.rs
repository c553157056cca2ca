//! The page: values in, HTML out. What comes from elsewhere (events, names in certificates) is text, never markup.

use std::time::Duration;

use maud::{DOCTYPE, Markup, html};
use pithead_hop::program::human::count;
use pithead_sealing::trust::{Custody, KeyStatus, Sha256Digest};

use super::activity::Took;
use super::devices::{ROWS_MAX, Row};
use super::history::{Outage, RATE_OVER, Reading};
use super::plot::{Ahead, Line, MIDDLE, NARROW, Plot, Shade, Size, WIDE, strip};
use super::view::{KeyView, View};
use super::words::{Urgency, bytes, bytes_per_s, rate, short, span};
use super::{SPANS, Span};
use crate::devices::doors::word;
use crate::devices::registry::Stamp;
use crate::envelopes::replicated::Neighbour;
use crate::health::Level;

/// Events on the page; the rest is in the log.
const EVENTS_SHOWN: usize = 40;
/// Points of a line at most: there are no more pixels.
const POINTS_MAX: usize = 480;
/// Refreshing, with scripts and without.
const REFRESH_MS: u64 = 5_000;
const REFRESH_YOUNG_MS: u64 = 1_000;
const REFRESH_PLAIN_S: u64 = 15;

/// Draws it.
#[must_use]
pub fn page(view: &View) -> Markup {
    let refresh_ms = if view.span == SPANS[0] { REFRESH_YOUNG_MS } else { REFRESH_MS };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title(view)) }
                link rel="icon" href="/console/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/console/style.css";
                noscript { meta http-equiv="refresh" content=(REFRESH_PLAIN_S); }
                script src="/console/refresh.js" defer {}
            }
            body data-version=(env!("CARGO_PKG_VERSION")) {
                p #silence role="alert" hidden {}
                header { (heading(view)) }
                main data-refresh-ms=(refresh_ms) #main {
                    section #health data-live { (health(view)) }
                    section #meaning data-live { (meaning(view)) }
                    div .column {
                        section #backlog data-live { (backlog(view)) }
                        section #flow data-live { (flow(view)) }
                    }
                    section #key data-live { (key(view)) }
                    @if !view.gateways.is_empty() { section #gateways data-live { (gateways(view)) } }
                    section #devices {
                        h2 { "Devices" }
                        (filter(view))
                        div #fleet data-live { (devices(view)) }
                    }
                    section #events data-live { (events(view)) }
                }
                footer {
                    p { "Everything here is sealed: this gateway sees who sends how much and when, and cannot read what." }
                }
            }
        }
    }
}

fn title(view: &View) -> String {
    let worst = view.lamps.iter().map(|(_, lamp, _)| lamp.level).max().unwrap_or(Level::Down);
    let off: Vec<&str> = view
        .lamps
        .iter()
        .filter(|(_, lamp, _)| lamp.level == worst && worst != Level::Ok)
        .map(|(name, ..)| *name)
        .collect();
    match off.as_slice() {
        [] => format!("well · {} {}", view.site, view.gateway),
        names => format!("{} {} · {} {}", names.join(", "), worst.name(), view.site, view.gateway),
    }
}

fn heading(view: &View) -> Markup {
    html! {
        h1 { span .site { (view.site) } " " span .gateway { (view.gateway) } }
        p #clock data-live {
            (time(view.wall_ms)) " · up " (span(view.uptime)) " · pithead-gateway " (env!("CARGO_PKG_VERSION"))
        }
    }
}

fn health(view: &View) -> Markup {
    html! {
        h2 .unseen { "Health" }
        ul .lamps {
            @for (name, lamp, age) in &view.lamps {
                @let (class, word) = level(lamp.level);
                li class={ "lamp " (class) } data-lamp=(name) data-level=(lamp.level.name()) {
                    (sign(lamp.level))
                    h3 { (name) " " span .word { (word) } }
                    p .words { (lamp.words) }
                    p .age { "for " (span(*age)) }
                }
            }
        }
    }
}

fn level(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::Ok => ("ok", "well"),
        Level::Degraded => ("degraded", "degraded"),
        Level::Down => ("down", "down"),
    }
}

/// A lamp has a shape besides its colour: a disc with a tick, a triangle, an octagon with a cross.
fn sign(level: Level) -> Markup {
    html! {
        svg .sign viewBox="0 0 24 24" aria-hidden="true" {
            @match level {
                Level::Ok => {
                    circle .shape cx="12" cy="12" r="11" {}
                    path .mark d="M7 12.5l3.4 3.4L17 9" {}
                }
                Level::Degraded => {
                    path .shape d="M12 1.5L23.3 22.5H.7Z" {}
                    path .mark d="M12 9v6.4M12 18.6v.6" {}
                }
                Level::Down => {
                    path .shape d="M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4Z" {}
                    path .mark d="M8 8l8 8M16 8l-8 8" {}
                }
            }
        }
    }
}

fn meaning(view: &View) -> Markup {
    let class = match view.meaning.urgency {
        Urgency::Calm => "calm",
        Urgency::Look => "look",
        Urgency::Act => "act",
    };
    html! {
        h2 { "What this means" }
        div class={ "meaning " (class) } {
            p .urgency { (view.meaning.urgency.word()) }
            p .sentence { (coded(&view.meaning.sentence)) }
            @for further in &view.meaning.besides {
                p .further { (coded(further)) }
            }
        }
    }
}

/// Between backticks stands what one types.
fn coded(sentence: &str) -> Markup {
    html! {
        @for (number, part) in sentence.split('`').enumerate() {
            @if number % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

fn figure(name: &str, value: impl maud::Render, more: impl maud::Render) -> Markup {
    html! {
        div .figure {
            dt { (name) }
            dd { span .value { (value) } " " span .more { (more) } }
        }
    }
}

fn backlog(view: &View) -> Markup {
    let used = view.capacity_bytes.saturating_sub(view.room_bytes);
    let percent = used as f64 * 100.0 / view.capacity_bytes.max(1) as f64;
    let lasts = match view.full_in {
        Some(full) => format!("full in {} at this rate", span(full)),
        None => format!("room for {} more", bytes(view.room_bytes)),
    };
    html! {
        h2 { (if view.has_relay { "Waiting for the cloud" } else { "Waiting to be carried away" }) }
        dl .figures {
            (figure("Waiting", count(view.waiting), plural(view.waiting, "envelope")))
            (figure("On disk", bytes(view.waiting_bytes), "of segments, sealed"))
            (figure("Oldest", view.oldest.filter(|_| view.waiting > 0).map_or_else(|| "none".to_owned(), span), "waiting"))
            (figure("Disk", format!("{percent:.0} %"), format!("of {} taken, {lasts}", bytes(view.capacity_bytes))))
        }
        progress .disk value=(percent.round()) max="100" aria-label="How much of the spool is taken" { (format!("{percent:.0} %")) }
        (backlog_plot(view))
        (legend(view))
        (spans(view))
        @if view.refused.0 > 0 {
            p .note {
                (count(view.refused.0)) " " (plural(view.refused.0, "envelope")) " (" (bytes(view.refused.1))
                ") the cloud will not take; " code { "pithead-gateway refused list" } " says why."
            }
        }
    }
}

fn plural(number: u64, word: &str) -> String {
    if number == 1 { word.to_owned() } else { format!("{word}s") }
}

fn backlog_plot(view: &View) -> Markup {
    let past = view.span.length().as_secs_f64();
    let future = if view.full_in.is_some() { past / 5.0 } else { 0.0 };
    let last = view.readings.last().map_or(0.0, |reading| reading.waiting as f64);
    let ahead = view.full_in.zip(view.grows_per_s).map(|(full, grows)| {
        let seconds = full.as_secs_f64().min(future);
        Ahead { seconds, value: last + grows * seconds, full: full.as_secs_f64() <= future }
    });
    let points = thinned(&view.readings, POINTS_MAX);
    let line = Line {
        class: "waiting",
        points: points.iter().map(|(reading, most)| (back(view, reading.at), *most as f64)).collect(),
        filled: true,
    };
    let title =
        format!("Envelopes that waited, over the last {}; {} now", view.span.words(), count(view.waiting));
    draw(WIDE, "backlog", &title, view, (past, future), &[line], ahead)
}

fn flow_plot(view: &View) -> Markup {
    let points = thinned(&view.readings, POINTS_MAX / 4);
    let rates = |of: fn(&Reading) -> u64| -> Vec<(f64, f64)> {
        let pairs = points.iter().zip(points.iter().skip(1));
        pairs
            .map(|((before, _), (after, _))| {
                (before, after, after.at.saturating_sub(before.at).as_secs_f64())
            })
            // The newest reading may be of this moment: one envelope in a few milliseconds is no rate.
            .filter(|(_, _, seconds)| *seconds >= 0.5)
            .map(|(before, after, seconds)| {
                (back(view, after.at), of(after).saturating_sub(of(before)) as f64 / seconds)
            })
            .collect()
    };
    let came = Line { class: "came", points: rates(|reading| reading.came), filled: false };
    let left = Line { class: "left", points: rates(|reading| reading.left), filled: false };
    let title = format!("Envelopes a second that came in and went out, over the last {}", view.span.words());
    let lines = if view.has_relay { vec![came, left] } else { vec![came] };
    draw(MIDDLE, "rates", &title, view, (view.span.length().as_secs_f64(), 0.0), &lines, None)
}

/// Twice: for screens and for a phone, of which the style sheet shows one.
fn draw(
    size: Size,
    id: &str,
    title: &str,
    view: &View,
    (past, future): (f64, f64),
    lines: &[Line],
    ahead: Option<Ahead>,
) -> Markup {
    let shades = shades(view, past);
    let plot = Plot { id, title, past, future, lines, shades: &shades, ahead, label: |value| rate(value) };
    html! { (plot.svg(size, "wide")) (plot.svg(NARROW, "narrow")) }
}

fn shades(view: &View, past: f64) -> Vec<Shade> {
    let outage = |outage: &Outage| Shade {
        class: if outage.paused { "paused" } else { "down" },
        from: back(view, outage.from),
        to: outage.to.map_or(0.0, |to| back(view, to)),
    };
    let mut shades: Vec<Shade> = view.outages.iter().map(outage).collect();
    let uptime = view.uptime.as_secs_f64();
    if uptime < past {
        shades.push(Shade { class: "before", from: -past, to: -uptime });
    }
    shades
}

/// Seconds from now.
fn back(view: &View, at: Duration) -> f64 {
    at.as_secs_f64() - view.now.as_secs_f64()
}

/// Not more readings than can be seen, each with the most that waited since the one before it: a peak is not thinned away.
fn thinned(readings: &[Reading], most: usize) -> Vec<(Reading, u64)> {
    let together = readings.len().div_ceil(most).max(1);
    let chunks = readings.chunks(together);
    chunks
        .filter_map(|chunk| {
            let peak = chunk.iter().map(|reading| reading.waiting).max()?;
            chunk.last().map(|last| (*last, peak))
        })
        .collect()
}

fn legend(view: &View) -> Markup {
    let past = view.span.length().as_secs_f64();
    let kinds: Vec<&str> = shades(view, past).iter().map(|shade| shade.class).collect();
    let words =
        [("down", "link down"), ("paused", "relay paused"), ("before", "before this gateway started")];
    html! {
        ul .legend {
            li .waiting { "envelopes waiting" }
            @if view.full_in.is_some() { li .ahead { "at this rate" } }
            @for (class, words) in words {
                @if kinds.contains(&class) { li class=(class) { (words) } }
            }
        }
    }
}

fn spans(view: &View) -> Markup {
    let device =
        if view.filter.is_empty() { String::new() } else { format!("&device={}", encoded(&view.filter)) };
    let current = |span: Span| (span == view.span).then_some("page");
    html! {
        nav .spans aria-label="How far back" {
            "The last "
            @for span in SPANS {
                a href={ "/?span=" (span.name()) (device) } aria-current=[current(span)] { (span.words()) }
                " "
            }
        }
    }
}

/// For an address.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let byte = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}

fn flow(view: &View) -> Markup {
    let over = RATE_OVER.min(view.uptime);
    let took = |took: Option<Took>| match took {
        Some(Took::Within(time)) => short(time),
        Some(Took::Longer(time)) => format!("over {}", short(time)),
        None => "none".to_owned(),
    };
    let (acks, half, most) = view.acks;
    html! {
        h2 { "In and out" }
        dl .figures .pairwise {
            @match view.flow {
                Some(flow) => {
                    (figure("In", rate(flow.came), format!("envelopes/s, {}", bytes_per_s(flow.came_bytes))))
                    @if view.has_relay {
                        (figure("Out", rate(flow.left), format!("envelopes/s, {}", bytes_per_s(flow.left_bytes))))
                    }
                }
                None => { (figure("In", "…", "the first second is not over")) }
            }
            (figure("Acknowledged within", took(half), if acks > 0 { "half of them" } else { "in the last minute" }))
            @if acks > 0 { (figure("and within", took(most), "99 % of them")) }
        }
        (flow_plot(view))
        ul .legend {
            li .came { "in" }
            @if view.has_relay { li .left { "out" } }
            li .plain { "envelopes/s; figures over " (span(over)) }
        }
    }
}

fn key(view: &View) -> Markup {
    html! {
        h2 { "Key in force" }
        @match &view.key {
            None => p { "None: no statement was ever accepted here." },
            Some(key) => (key_facts(view, key)),
        }
    }
}

fn key_facts(view: &View, key: &KeyView) -> Markup {
    let now = view.wall_ms / 1000;
    let from_now = |at: u64| match at.checked_sub(now) {
        Some(left) => format!("in {}", span(Duration::from_secs(left))),
        None => format!("{} ago", span(Duration::from_secs(now - at))),
    };
    let (under, all) = key.adopted;
    html! {
        @match &key.in_use {
            Some((arn, digest, bits)) => {
                p .fingerprint { (fingerprint(digest)) }
                p .note { "Its fingerprint: SHA-256 of the public key, RSA " (bits) ". Read it aloud and compare it with the authority's record and with "
                    code { "pithead-device key" } "." }
                dl .pairs {
                    dt { "Key" } dd .arn { (arn.as_str()) }
                    dt { "Taken up" } dd { (adoption(under, all)) }
                    (statement_facts(key, &from_now))
                }
            }
            None => {
                p .fingerprint { "none may be sealed to" }
                dl .pairs { (statement_facts(key, &from_now)) }
            }
        }
        @if !key.others.is_empty() {
            h3 { "Other keys of the statement" }
            ul .keys {
                @for (arn, digest, status) in &key.others {
                    li { strong { (status_word(*status)) } " " span .arn { (arn.as_str()) } " " span .small-print { (fingerprint(digest)) } }
                }
            }
        }
    }
}

fn statement_facts(key: &KeyView, from_now: &dyn Fn(u64) -> String) -> Markup {
    html! {
        dt { "Statement" } dd { (key.version.0) "." (key.version.1) ", issued " (from_now(key.issued_at)) }
        dt { "Signed by" } dd {
            (key.authority) ": " (key.signers.join(", "))
            @if let Some(custody) = key.custody { " (" (custody_words(custody)) ")" }
        }
        dt { "Newer one by" } dd { (day(key.refresh_by)) ", " (from_now(key.refresh_by)) }
        dt { "Ends" } dd { (day(key.expires_at)) ", " (from_now(key.expires_at)) }
    }
}

fn adoption(under: usize, all: usize) -> String {
    match (under, all) {
        (_, 0) => "no device has sealed within the last 24 h".to_owned(),
        (under, all) if under == all => format!("all {} that sealed within 24 h", devices_word(all)),
        (under, all) => format!("{under} of {} that sealed within 24 h", devices_word(all)),
    }
}

fn devices_word(number: usize) -> String {
    let number = number as u64;
    format!("{} {}", count(number), plural(number, "device"))
}

fn status_word(status: KeyStatus) -> &'static str {
    match status {
        KeyStatus::Next => "next",
        KeyStatus::Active => "active",
        KeyStatus::Retired => "retired",
        KeyStatus::Revoked => "revoked",
    }
}

fn custody_words(custody: Custody) -> &'static str {
    match custody {
        Custody::OfflineToken => "an offline token",
        Custody::CloudHsm => "a cloud HSM",
        Custody::KeyFile => "a key file",
    }
}

/// In fours, so that two people can compare it over a radio.
fn fingerprint(digest: &Sha256Digest) -> String {
    let hex = digest.to_string();
    let fours: Vec<&str> =
        hex.as_bytes().chunks(4).filter_map(|four| std::str::from_utf8(four).ok()).collect();
    fours.join(" ")
}

fn gateways(view: &View) -> Markup {
    let (all, there) =
        (view.gateways.len() as u64, view.gateways.iter().filter(|one| one.is_present).count());
    html! {
        h2 { "Gateways of the site" }
        p .note { (count(all)) " " (plural(all, "gateway")) " known, " (there) " heard of lately. All serve keys; one takes the envelopes." }
        div .wide-table {
            table {
                caption .unseen { "Gateways that share the site's lanes" }
                thead {
                    tr {
                        th scope="col" { "Gateway" }
                        th scope="col" { "State" }
                        th scope="col" { "Envelopes" }
                        th scope="col" { "Statement" }
                        th scope="col" .number { "Connections" }
                        th scope="col" { "What it says" }
                    }
                }
                tbody {
                    @for one in &view.gateways { (neighbour(view, one)) }
                }
            }
        }
    }
}

fn neighbour(view: &View, one: &Neighbour) -> Markup {
    let presence = &one.presence;
    let (class, state) = match (one.is_present, presence.ready) {
        (true, true) => ("there", "ready".to_owned()),
        (true, false) => ("there", "not ready".to_owned()),
        (false, _) => ("never", format!("silent for {}", span(one.silent_for))),
    };
    let takes = view.owner.as_deref() == Some(one.name.as_str());
    html! {
        tr class=(class) data-gateway=(one.name) {
            th scope="row" { (one.name) @if one.is_here { " " span .more { "this one" } } }
            td { (state) }
            td { (if takes { "takes them" } else { "stands by" }) }
            td { @match &presence.statement { Some(served) => { (served.epoch) "." (served.sequence) } None => { "none" } } }
            td .number { (count(presence.connections)) }
            td .fields { (presence.words) }
        }
    }
}

fn filter(view: &View) -> Markup {
    html! {
        form method="get" action="/" role="search" {
            @if view.span != SPANS[0] { input type="hidden" name="span" value=(view.span.name()); }
            label for="device" { "Name holds" }
            input #device type="search" name="device" value=(view.filter) maxlength="63" autocomplete="off" spellcheck="false";
            button type="submit" { "Show" }
            @if !view.filter.is_empty() { a href={ "/?span=" (view.span.name()) } { "all" } }
        }
    }
}

fn devices(view: &View) -> Markup {
    let devices = &view.devices;
    html! {
        p .note {
            (devices_word(devices.known)) " known, " (devices.connected) " connected"
            @if devices.with_missing > 0 { ", " (devices.with_missing) " with missing numbers" }
            @if !view.filter.is_empty() { "; " (devices.matching) " of them hold “" (view.filter) "”" }
            @if devices.matching > devices.rows.len() { "; the first " (ROWS_MAX) " are shown, the worst first" }
            "."
        }
        @if !devices.rows.is_empty() {
            div .wide-table {
                table {
                    caption .unseen { "Devices, the worst first" }
                    thead {
                        tr {
                            th scope="col" { "Device" }
                            th scope="col" { "Last seen" }
                            th scope="col" .strip-column { "Last 24 h" }
                            th scope="col" { "Last envelope" }
                            th scope="col" .number { "Missing" }
                            th scope="col" .number { "Dropped" }
                        }
                    }
                    tbody {
                        @for row in &devices.rows { (device(view, row)) }
                    }
                }
            }
            p .note {
                "Missing: numbers that did not come here and that the device has not explained; they may be on their way. Dropped: the device \
                 gave them up by its own policy, and said so. Strips and counts are since this gateway started, " (span(view.uptime)) " ago."
            }
        }
    }
}

fn device(view: &View, row: &Row) -> Markup {
    let place = match (row.revoked, row.connected, row.last_ago) {
        (true, ..) => ("revoked", "revoked".to_owned()),
        (_, Some(assurance), _) => ("there", format!("connected, {}", word(assurance))),
        (_, None, Some(ago)) => ("gone", format!("{} ago", span(ago))),
        (_, None, None) => ("never", "not since the start".to_owned()),
    };
    let none = || vec![false; 96];
    let coverage = row.seen.as_ref().map_or_else(none, |seen| seen.coverage(view.now));
    html! {
        tr class=(place.0) data-device=(row.device) {
            th scope="row" { (row.device) }
            td { (place.1) }
            td .strip-column { (strip(&coverage, view.quarters_unknown)) }
            td {
                @match &row.seen {
                    Some(seen) => {
                        "sealed, " (bytes(seen.bytes)) " " span .more { (seen.stream) ", " (span(view.now.saturating_sub(seen.at))) " ago" }
                    }
                    None => { span .more { "none" } }
                }
            }
            td .number .missing[row.missing > 0] { (count(row.missing)) }
            td .number { (count(row.declared)) }
        }
    }
}

fn events(view: &View) -> Markup {
    html! {
        h2 { "Recent events" }
        @if view.events.is_empty() {
            p { "None yet." }
        } @else {
            div .wide-table {
                table {
                    caption .unseen { "Recent events, the newest first" }
                    thead {
                        tr {
                            th scope="col" { "When" }
                            th scope="col" { "Level" }
                            th scope="col" { "Event" }
                            th scope="col" { "What it says" }
                        }
                    }
                    tbody {
                        @for event in view.events.iter().take(EVENTS_SHOWN) {
                            @let level = event.level.as_str().to_ascii_lowercase();
                            tr class={ "event " (level) } {
                                td .when { (clock(event.at_ms)) }
                                td .level { (level) }
                                th scope="row" { (event.name) @if event.times > 1 { " ×" (count(event.times)) } }
                                td .fields {
                                    @for (name, value) in &event.fields {
                                        @if *name == "message" { (value) " " } @else { span .field { span .name { (name) "=" } (value) } " " }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `2026-11-26T18:00:00Z`
fn stamp(seconds: u64) -> String {
    Stamp(seconds).to_string()
}

fn time(ms: u64) -> Markup {
    let stamp = stamp(ms / 1000);
    html! { time datetime=(stamp) { (stamp.replace('T', " ").replace('Z', " UTC")) } }
}

/// With the seconds and without the day, which stands above.
fn clock(ms: u64) -> Markup {
    let stamp = stamp(ms / 1000);
    let short = stamp.get(5..19).map_or_else(|| stamp.clone(), |rest| rest.replace('T', " "));
    html! { time datetime=(stamp) { (short) } }
}

fn day(seconds: u64) -> String {
    stamp(seconds).get(..10).unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests;
