//! The row that a scenario ends with.

use pithead_tests::site::Site;
use serde::Serialize;
use serde_json::Value;

use crate::losses::truck::{Books, NAME, PER_ENVELOPE, delivered};

/// What begins a line with a row on standard output.
const PREFIX: &str = "LOSS";

/// Records, if it does not say envelopes.
#[derive(Debug, Serialize)]
pub(crate) struct Row<'a> {
    pub(crate) scenario: &'a str,
    /// `record` said yes.
    pub(crate) recorded: u64,
    /// `record` said no, to the caller's face.
    pub(crate) refused: u64,
    /// The client said that it is on the device's disk.
    pub(crate) held: u64,
    /// In memory when the process ended, and never said to be held.
    pub(crate) never_promised: u64,
    /// In the sink, each number counted once.
    pub(crate) delivered: u64,
    /// In the sink once more.
    pub(crate) twice: u64,
    /// Dropped by policy, by the device's count.
    pub(crate) declared: u64,
    /// Lost by a gateway that had acknowledged it: in a hole that `verify` names.
    pub(crate) lost_by_gateway: u64,
    /// Held, and neither of these.
    pub(crate) undeclared: i64,
    /// Envelopes that a gateway has acknowledged.
    pub(crate) acknowledged_envelopes: u64,
    /// Envelopes in the decryptor's books.
    pub(crate) applied_envelopes: u64,
    /// Numbers that the books show as dropped by policy.
    pub(crate) declared_envelopes: u64,
    /// Numbers that the books cannot explain.
    pub(crate) missing_envelopes: u64,
    /// Envelopes that came to a hop which had them.
    pub(crate) resent_envelopes: u64,
}

/// What is expected to be lost on the way. Where it says nothing, nothing is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    /// Envelopes of ten that a gateway has taken into its grave.
    pub(crate) envelopes_lost_by_gateway: u64,
}

/// Gathers the row, checks it, and prints it. To be called when everything has left the truck.
pub(crate) async fn balance<'a>(site: &mut Site, books: &Books, scenario: &'a str) -> Row<'a> {
    balance_with(site, books, scenario, Expected::default()).await
}

pub(crate) async fn balance_with<'a>(
    site: &mut Site,
    books: &Books,
    scenario: &'a str,
    expected: Expected,
) -> Row<'a> {
    let row = gather(site, books, scenario, expected).await;
    assert_eq!(row.recorded, row.held + row.never_promised, "{row:#?}");
    assert_eq!(row.held, row.delivered + row.declared + row.lost_by_gateway, "{row:#?}");
    assert_eq!(row.applied_envelopes + row.missing_envelopes, row.acknowledged_envelopes, "{row:#?}");
    // The same in envelopes, by the device's count and by the cloud's. What was sealed and found no place on the disk was never
    // sent: the last batches of a life, or its goodbye alone.
    let kept = books.sealed - books.dropped_envelopes;
    assert!(row.acknowledged_envelopes <= kept, "{row:#?} {kept}");
    if books.never_held == 0 {
        assert!(kept - row.acknowledged_envelopes <= books.lives, "{row:#?} {kept}");
    }
    row
}

/// What holds of every row, also where the device could say nothing at its end.
pub(crate) async fn gather<'a>(
    site: &mut Site,
    books: &Books,
    scenario: &'a str,
    expected: Expected,
) -> Row<'a> {
    site.until_relayed().await.unwrap();
    let proof = verify(site, expected).await;
    let sum = |name: &str| proof.iter().map(|run| run[name].as_u64().unwrap()).sum::<u64>();
    let admin = site.decryptor().unwrap().admin();
    let again = admin.metric_where("pithead_decryptor_envelopes_total", "\"duplicate\"").await.unwrap();
    let numbers = delivered(site);
    let count = |number: usize| number as u64;
    let declared = books.dropped_records;
    let missing_envelopes = holes(&proof);
    let lost_by_gateway = missing_envelopes * PER_ENVELOPE;
    let not_there = count(books.promised.iter().filter(|number| !numbers.contains_key(*number)).count());
    let row = Row {
        scenario,
        recorded: count(books.taken.len()),
        refused: books.refused,
        held: count(books.promised.len()),
        never_promised: books.never_held,
        delivered: count(numbers.len()),
        twice: numbers.values().map(|times| times - 1).sum(),
        declared,
        lost_by_gateway,
        undeclared: not_there.cast_signed() - (declared + lost_by_gateway).cast_signed(),
        acknowledged_envelopes: books.acknowledged,
        applied_envelopes: sum("held"),
        declared_envelopes: sum("dropped_by_policy"),
        missing_envelopes,
        resent_envelopes: books.duplicates + again as u64,
    };
    row.print();
    let repeated = site.delivered().unwrap().repeated();
    assert_eq!((row.twice, repeated), (0, 0), "nothing is applied twice: {row:#?}");
    assert!(numbers.keys().all(|number| books.taken.contains(number)), "nothing is invented: {row:#?}");
    assert_eq!(row.undeclared, 0, "{row:#?}");
    assert_eq!(row.missing_envelopes, expected.envelopes_lost_by_gateway, "{row:#?}");
    assert_eq!(row.declared_envelopes, books.dropped_envelopes, "{row:#?}");
    // A gateway that stored an envelope and could not say so any more has not acknowledged it.
    assert!(row.applied_envelopes + row.missing_envelopes >= row.acknowledged_envelopes, "{row:#?}");
    row
}

impl Row<'_> {
    #[expect(clippy::print_stdout, reason = "what the table is made of")]
    pub(crate) fn print(&self) {
        println!("{PREFIX} {}", serde_json::to_string(self).unwrap());
    }
}

/// The runs of the truck's stream, by the real program, which ends well if nothing is missing.
async fn verify(site: &Site, expected: Expected) -> Vec<Value> {
    let config = site.decryptor_config().display().to_string();
    let said =
        site.decryptor_command(&["verify", "-c", &config, "--device", NAME, "-o", "json"]).await.unwrap();
    let code = if expected.envelopes_lost_by_gateway > 0 { 1 } else { 0 };
    assert_eq!(said.code, Some(code), "{}{}", said.stdout, said.stderr);
    let report: Value = said.json().unwrap();
    assert_eq!(report["streams"].as_array().unwrap().len(), 1, "{report:#}");
    let stream = &report["streams"][0];
    assert_eq!(stream["missing"].as_u64(), Some(expected.envelopes_lost_by_gateway), "{report:#}");
    stream["runs"].as_array().unwrap().clone()
}

/// Numbers in holes.
fn holes(runs: &[Value]) -> u64 {
    let ranges = runs.iter().flat_map(|run| run["holes"].as_array().unwrap());
    ranges.map(|range| range["to"].as_u64().unwrap() - range["from"].as_u64().unwrap() + 1).sum()
}
