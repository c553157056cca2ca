//! The conformance vectors, through the same runner that the example offers for any file of that shape.

use serde_json::{Value, json};

#[path = "../../examples/conformance/trust.rs"]
mod conformance;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/trust.json")).unwrap()
}

fn failed(vectors: &Value) -> Vec<(String, String)> {
    let outcomes = conformance::run(vectors).into_iter();
    outcomes.filter_map(|(name, outcome)| outcome.err().map(|why| (name, why))).collect()
}

#[test]
fn every_conformance_case_holds() {
    assert_eq!(failed(&vectors()), []);
    assert_eq!(conformance::run(&vectors()).len(), 46);
}

#[test]
fn a_wrong_expectation_is_noticed_in_every_case() {
    for (field, wrong) in [
        ("final_root", json!(77)),
        ("final_seq", json!(77)),
        ("final_status", json!("FINE")),
        ("final_unheard_of", json!(1)),
    ] {
        let mut cases = vectors();
        cases.as_array_mut().unwrap().iter_mut().for_each(|case| case[field] = wrong.clone());
        assert_eq!(failed(&cases).len(), 46, "{field}");
    }
    let mut cases = vectors();
    for case in cases.as_array_mut().unwrap() {
        case["steps"].as_array_mut().unwrap().last_mut().unwrap()["expect"] = json!("STATE");
    }
    assert_eq!(failed(&cases).len(), 46);
}

#[test]
fn an_odd_file_is_a_failure_or_no_case_and_never_a_panic() {
    for odd in [json!(null), json!("text"), json!({}), json!({"cases": 3})] {
        assert_eq!(conformance::run(&odd).len(), 0);
    }
    let site = json!({"authority": "a", "site": "s", "root": "zz"});
    let odd = json!([null, 1, {"name": "x"}, {"device": site, "steps": []}]);
    assert_eq!(failed(&odd).len(), 4);
    assert_eq!(failed(&json!({"cases": vectors()})), []);
}
