//! The committed vectors hold, and the runner that says so can fail.
#![cfg(feature = "open")]
#![allow(clippy::unwrap_used)]

#[path = "../examples/conformance/envelope.rs"]
mod envelope;

type Outcome = (String, Result<(), String>);

fn vectors() -> serde_json::Value {
    serde_json::from_str(include_str!("vectors/envelope.json")).unwrap()
}

fn failures(vectors: &serde_json::Value) -> Vec<String> {
    envelope::run(vectors)
        .into_iter()
        .filter_map(|(case, outcome)| Some(format!("{case}: {}", outcome.err()?)))
        .collect()
}

#[test]
fn every_vector_holds() {
    let vectors = vectors();
    assert_eq!(failures(&vectors), [""; 0]);
    assert_eq!(envelope::run(&vectors).len(), 31);
}

#[test]
fn a_wrong_vector_is_told() {
    let mut wrong = vectors();
    wrong["positive"][1]["derived"]["commitment_hex"] = "00".repeat(32).into();
    wrong["positive"][2]["plaintext_b64"] = "AAAA".into();
    wrong["negative"][0]["class"] = "trailing".into();
    wrong["negative"][1]["sealed_b64"] = wrong["positive"][0]["sealed_b64"].clone();
    let failures = failures(&wrong);
    assert_eq!(failures.len(), 4, "{failures:?}");
}

#[test]
fn odd_files_are_reported_and_never_panic() {
    for odd in [
        "null",
        "[]",
        "{}",
        r#"{"keys":{"a":{}},"positive":[{}],"negative":[{"sealed_b64":"AgR4","class":"edk"},1,null]}"#,
    ] {
        let odd = serde_json::from_str(odd).unwrap();
        assert!(envelope::run(&odd).iter().all(|(_, outcome)| outcome.is_err()));
    }
    let mut bare = vectors();
    for case in bare["positive"].as_array_mut().unwrap() {
        let kept = ["id", "sealed_b64", "plaintext_b64"];
        case.as_object_mut().unwrap().retain(|name, _| kept.contains(&name.as_str()));
    }
    assert_eq!(failures(&bare), [""; 0], "without seeds and derived values a positive is just opened");
}
