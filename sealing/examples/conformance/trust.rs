//! Runs conformance cases of trust: each a device and steps, with the expected code of each step and the end state.
//!
//! Every case runs twice: in one go, and with the device's state stored and restored between steps.

use bytes::Bytes;
use pithead_sealing::Site;
use pithead_sealing::trust::{Bundle, Clock, Device, UnixTime};
use serde_json::Value;

/// Runs every case of a list, or of an object's `cases`: the case's name, and what does not hold of it.
pub(crate) fn run(vectors: &Value) -> Vec<(String, Result<(), String>)> {
    let list = vectors.as_array().or_else(|| vectors["cases"].as_array());
    let cases = list.into_iter().flatten().enumerate();
    cases.map(|(index, case)| (name(index, case), check(case))).collect()
}

fn name(index: usize, case: &Value) -> String {
    case["name"].as_str().map_or_else(|| format!("case {index}"), str::to_owned)
}

fn check(case: &Value) -> Result<(), String> {
    run_case(case, false)?;
    run_case(case, true).map_err(|why| format!("with restarts: {why}"))
}

fn run_case(case: &Value, restarts: bool) -> Result<(), String> {
    let given = &case["device"];
    let text = |name: &str| given[name].as_str().ok_or(format!("device.{name} is not text"));
    let site = Site::new(text("site")?).map_err(|error| error.to_string())?;
    let root = hex::decode(text("root")?).map_err(|error| format!("device.root: {error}"))?;
    let mut device = Device::provision(text("authority")?, &site, &root, Clock::default())
        .map_err(|error| format!("the device's root is refused: {}", error.code()))?;
    let steps = case["steps"].as_array().ok_or("no steps")?;
    let mut clock = Clock::default();
    for (index, step) in steps.iter().enumerate() {
        clock.uptime_s += optional_number(&step["uptime_add"])?.unwrap_or(0);
        clock.trusted_now = optional_number(&step["trusted_now"])?.map(UnixTime);
        let bundle = bundle(step).map_err(|why| format!("step {index}: {why}"))?;
        let before = (device.encode(clock), device.revision());
        let code = match device.apply(&bundle, clock) {
            Ok(_) => "OK",
            Err(error) => error.code(),
        };
        let expected = step["expect"].as_str().ok_or(format!("step {index}: no expected code"))?;
        if code != expected {
            return Err(format!("step {index}: expected {expected}, got {code}"));
        }
        if (device.encode(clock) == before.0) != (device.revision() == before.1) {
            return Err(format!("step {index}: the revision does not tell whether the state has changed"));
        }
        if restarts {
            let stored = device.encode(clock);
            device =
                Device::restore(&stored).map_err(|_| format!("step {index}: the state is not restored"))?;
            clock.uptime_s = 0;
        }
    }
    let (epoch, sequence) = device.version();
    let finals = case.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("final_"));
    for (name, expected) in finals {
        let key = device.verified_key(clock).ok();
        let found = match name.as_str() {
            "final_status" => Value::from(device.status(clock).code()),
            "final_seq" => Value::from(sequence),
            "final_root" => Value::from(device.root_version()),
            "final_epoch" => Value::from(epoch),
            "final_arn" => key.map_or(Value::Null, |key| Value::from(key.arn().as_str())),
            "final_fingerprint" => key.map_or(Value::Null, |key| Value::from(key.fingerprint().to_string())),
            "final_digest" => device.statement().map_or(Value::Null, |s| Value::from(s.digest().to_string())),
            _ => return Err(format!("{name} is not known here")),
        };
        if found != *expected {
            return Err(format!("{name}: expected {expected}, got {found}"));
        }
    }
    Ok(())
}

fn bundle(step: &Value) -> Result<Bundle, String> {
    Ok(Bundle {
        roots: list(&step["roots"])?,
        statement: if step["stmt"].is_null() { None } else { Some(bytes(&step["stmt"])?) },
        spkis: list(&step["spki"])?,
    })
}

fn list(value: &Value) -> Result<Vec<Bytes>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(bytes).collect(),
        _ => Err("not a list".into()),
    }
}

fn bytes(value: &Value) -> Result<Bytes, String> {
    let text = value.as_str().ok_or("not hexadecimal text")?;
    hex::decode(text).map(Bytes::from).map_err(|error| error.to_string())
}

fn optional_number(value: &Value) -> Result<Option<u64>, String> {
    if value.is_null() { Ok(None) } else { value.as_u64().map(Some).ok_or("not a number".into()) }
}
