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

#[test]
fn provider_info_that_could_be_hexadecimal_is_still_text() {
    use pithead_sealing::envelope::Context;
    use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
    let mut vectors = vectors();
    let array = |value: &serde_json::Value| -> [u8; 32] {
        hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
    };
    let literal = |id: &str, info: &str, ciphertext: Vec<u8>| FixedEdk::Literal {
        provider_id: id.into(),
        provider_info: info.into(),
        ciphertext,
    };
    let case = &mut vectors["positive"][0];
    let ours = &case["edks"][0];
    let ciphertext = hex::decode(ours["ciphertext_hex"].as_str().unwrap()).unwrap();
    let edks = vec![
        literal("raw", "c0ffee", vec![7; 9]),
        literal("aws-kms-rsa", ours["provider_info"].as_str().unwrap(), ciphertext),
    ];
    let message = FixedMessage {
        context: Context::EMPTY,
        edks,
        frame_length: 65_536,
        data_key: array(&case["data_key_hex"]),
        message_id: array(&case["message_id_hex"]),
        empty_final_frame: false,
    };
    let raw = serde_json::json!({"provider_id": "raw", "provider_info": "c0ffee", "ciphertext_hex": "07".repeat(9)});
    case["sealed_b64"] =
        <base64ct::Base64 as base64ct::Encoding>::encode_string(&message.seal(b"").unwrap()).into();
    case["edks"].as_array_mut().unwrap().insert(0, raw);
    for derived in ["sealed_len", "sealed_sha256", "derived"] {
        case.as_object_mut().unwrap().remove(derived);
    }
    assert_eq!(failures(&vectors), [""; 0]);
}
