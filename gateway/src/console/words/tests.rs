use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn well() -> Situation {
    Situation {
        draining: false,
        ingest: None,
        keys: Keys::InForce(DAY * 170),
        relay: Relay::Up,
        relay_for: HOUR,
        disk: Disk::Room,
        waiting: 0,
        waiting_bytes: 0,
        oldest: None,
        full_in: None,
        room_bytes: 8 << 30,
        shrinks_per_s: 0.0,
    }
}

fn piled(waiting: u64) -> Situation {
    Situation { waiting, waiting_bytes: waiting * 2_048, oldest: Some(MINUTE * 12), ..well() }
}

fn said(now: &Situation) -> (Urgency, String) {
    let Meaning { urgency, sentence, besides } = meaning(now);
    assert!(besides.is_empty(), "{besides:?}");
    assert!(sentence.ends_with('.'), "{sentence}");
    (urgency, sentence)
}

#[test]
fn all_is_well_is_said_with_nothing_waiting_and_with_something_on_its_way() {
    let (urgency, words) = said(&well());
    assert_eq!(urgency, Urgency::Calm);
    assert!(words.starts_with("All is well") && words.ends_with("nothing waits."), "{words}");
    let young = Situation { oldest: Some(Duration::from_secs(2)), ..piled(1) };
    assert!(said(&young).1.ends_with("1 envelope is on the way."), "{:?}", said(&young));
}

#[test]
fn a_link_that_is_down_is_calm_and_says_how_much_waits_since_when_and_how_long_the_disk_lasts() {
    let mut now =
        Situation { relay: Relay::Down, relay_for: MINUTE * 12, full_in: Some(DAY * 9), ..piled(5_231) };
    let (urgency, words) = said(&now);
    assert_eq!(urgency, Urgency::Calm);
    for part in
        ["down for 12 min", "nothing is lost", "5,231 envelopes (10.2 MiB) wait safely", "full in 9 days"]
    {
        assert!(words.contains(part), "{part}: {words}");
    }
    now.full_in = None;
    assert!(said(&now).1.ends_with("there is room for 8.0 GiB more."));
    now.waiting = 0;
    assert!(said(&now).1.contains("as always, nothing waits yet, and there is room"), "{}", said(&now).1);
    now.waiting = 1;
    assert!(said(&now).1.contains("1 envelope (10.2 MiB) waits safely"));
}

#[test]
fn a_link_that_is_down_asks_for_more_as_the_disk_fills() {
    let down = |full_in, disk| {
        let now = Situation { relay: Relay::Down, full_in: Some(full_in), disk, ..piled(9) };
        said(&now).0
    };
    assert_eq!(down(DAY * 2, Disk::Room), Urgency::Calm);
    assert_eq!(down(DAY * 2, Disk::Low(20)), Urgency::Look);
    assert_eq!(down(HOUR * 20, Disk::Room), Urgency::Look);
    assert_eq!(down(HOUR, Disk::Low(3)), Urgency::Act);
}

#[test]
fn a_start_without_a_link_is_told_from_a_link_that_went() {
    let now = Situation { relay: Relay::NotYet, relay_for: MINUTE * 3, ..piled(0) };
    let (urgency, words) = said(&now);
    assert_eq!(urgency, Urgency::Calm);
    assert!(words.contains("not reached in the 3 min since this gateway started"), "{words}");
}

#[test]
fn who_turns_envelopes_away_is_told_from_a_link_that_is_down() {
    let now = Situation { relay: Relay::TurnedAway("PH-4101".into()), ..piled(3) };
    let (urgency, words) = said(&now);
    assert_eq!(urgency, Urgency::Look);
    assert!(words.contains("is reached and does not take") && words.contains("explain PH-4101"), "{words}");
}

#[test]
fn a_pause_says_who_caused_it_and_what_ends_it() {
    let paused = |relay| said(&Situation { relay, ..piled(3) });
    let (urgency, words) = paused(Relay::PausedByHand);
    assert_eq!(urgency, Urgency::Look);
    assert!(words.contains("Somebody has paused") && words.contains("relay resume"), "{words}");
    let (urgency, words) = paused(Relay::PausedByRefusals(12, 600));
    assert_eq!(urgency, Urgency::Act);
    assert!(words.contains("12 of 600") && words.contains("refused list"), "{words}");
    assert_eq!(paused(Relay::RefusedAreaFull).0, Urgency::Act);
}

#[test]
fn what_had_piled_up_goes_out_and_says_how_long_that_takes() {
    let now = Situation { shrinks_per_s: 10.0, ..piled(6_000) };
    let (urgency, words) = said(&now);
    assert_eq!(urgency, Urgency::Calm);
    assert!(words.contains("6,000 envelopes") && words.contains("about 10 min"), "{words}");
    let stuck = said(&piled(6_000)).1;
    assert!(stuck.contains("still wait") && !stuck.contains("going out"), "{stuck}");
}

#[test]
fn more_in_than_out_is_said_while_the_link_is_up_once_the_disk_is_in_sight() {
    let growing = |full_in, disk| Situation { full_in: Some(full_in), disk, ..piled(40_000) };
    let (urgency, words) = said(&growing(HOUR * 5, Disk::Room));
    assert_eq!(urgency, Urgency::Look);
    assert!(words.starts_with("More comes in than goes out") && words.contains("full in 5 h"), "{words}");
    assert_eq!(said(&growing(HOUR, Disk::Room)).0, Urgency::Act);
    assert_eq!(said(&growing(DAY * 30, Disk::Room)).0, Urgency::Calm);
    let (urgency, words) = said(&growing(DAY * 30, Disk::Low(1)));
    assert_eq!(urgency, Urgency::Look);
    assert!(words.contains("1 % of it is left"), "{words}");
}

#[test]
fn a_full_disk_and_a_failed_one_come_before_the_link_that_caused_them() {
    let full = Situation { disk: Disk::Full, relay: Relay::Down, full_in: Some(Duration::ZERO), ..piled(9) };
    let told = meaning(&full);
    assert_eq!(told.urgency, Urgency::Act);
    assert!(
        told.sentence.starts_with("The spool is full") && told.sentence.contains("when the link is back")
    );
    assert_eq!(told.besides.len(), 1);
    for (relay, way) in [
        (Relay::Absent, "spool export"),
        (Relay::PausedByHand, "relay resume"),
        (Relay::Up, "as the cloud takes"),
        (Relay::RefusedAreaFull, "refused list"),
    ] {
        let told = meaning(&Situation { relay, ..full.clone() });
        let all = format!("{} {}", told.sentence, told.besides.join(" "));
        assert!(all.contains("The spool is full") && all.contains(way), "{all}");
    }
    let failed = meaning(&Situation { disk: Disk::Failed, ..full });
    assert!(failed.sentence.starts_with("The disk has failed"));
}

#[test]
fn keys_are_spoken_of_when_they_end_are_stale_are_gone_or_never_came() {
    let keys = |keys| said(&Situation { keys, ..well() });
    assert_eq!(keys(Keys::InForce(DAY * 20)).0, Urgency::Calm);
    let (urgency, words) = keys(Keys::InForce(DAY * 13));
    assert_eq!(urgency, Urgency::Look);
    assert!(words.contains("ends in 13 days"), "{words}");
    assert!(keys(Keys::Stale(DAY * 150)).1.contains("another 150 days"));
    assert!(
        keys(Keys::Troubled("the last refresh was refused".into()))
            .1
            .contains("the last refresh was refused")
    );
    assert_eq!(keys(Keys::Ended).0, Urgency::Act);
    let (urgency, words) = keys(Keys::Never);
    assert_eq!(urgency, Urgency::Act);
    assert!(words.contains("key import"), "{words}");
}

#[test]
fn devices_that_cannot_hand_in_are_urgent_unless_the_gateway_is_stopping() {
    let ingest = Some((Level::Down, "the port is gone".to_owned()));
    let (urgency, words) = said(&Situation { ingest: ingest.clone(), ..well() });
    assert_eq!(urgency, Urgency::Act);
    assert!(words.contains("the port is gone"), "{words}");
    let (urgency, words) = said(&Situation { ingest, draining: true, ..well() });
    assert_eq!(urgency, Urgency::Look);
    assert!(words.contains("stopping") && words.contains("acknowledged is on its disk"), "{words}");
}

#[test]
fn the_most_urgent_comes_first_and_the_rest_is_said_as_well() {
    let now = Situation { keys: Keys::Ended, relay: Relay::Down, ..piled(5) };
    let told = meaning(&now);
    assert_eq!(told.urgency, Urgency::Act);
    assert!(told.sentence.starts_with("No key may be sealed to"));
    assert!(told.besides[0].starts_with("The link to the cloud"));
}

#[test]
fn a_site_without_a_link_says_what_to_carry() {
    let now = Situation { relay: Relay::Absent, ..piled(2) };
    assert!(said(&now).1.contains("2 envelopes (4.0 KiB) wait to be carried away by hand"));
    let now = Situation { relay: Relay::Absent, ..well() };
    assert!(said(&now).1.contains("nothing waits to be carried away"));
}

#[test]
fn numbers_are_said_with_the_digits_that_matter() {
    let s = Duration::from_secs;
    let spans: Vec<String> = [0, 119, 120, 7_199, 7_200, 12_000, 36_000, 172_799, 172_800, 86_400 * 900]
        .map(|t| span(s(t)))
        .into();
    let wanted =
        ["0 s", "119 s", "2 min", "119 min", "2 h", "3 h 20 min", "10 h", "47 h", "2 days", "2 years"];
    assert_eq!(spans, wanted);
    let sizes: Vec<String> = [0, 412, 999, 1_000, 1_023, 10_240, 104_857_600, 1 << 42].map(bytes).into();
    assert_eq!(sizes, ["0 B", "412 B", "999 B", "1.0 KiB", "1.0 KiB", "10.0 KiB", "100 MiB", "4.0 TiB"]);
    assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!([0.0, 0.04, 3.21, 9.96, 1_234.4].map(rate), ["0", "0.0", "3.2", "10", "1,234"]);
    let us = Duration::from_micros;
    assert_eq!([850, 2_340, 45_600, 1_400_000].map(|t| short(us(t))), ["850 µs", "2.3 ms", "45 ms", "1.4 s"]);
    assert_eq!(bytes_per_s(1536.0), "1.5 KiB/s");
}
