//! Envelope vectors: `keys` (by name: `private_pkcs8_pem`, `public_spki_der_b64`, `key_arn`), `positive` and `negative`.
//!
//! A positive is sealed again, byte for byte, where it gives data key, message id and seeds; opened with every key that
//! it is sealed to, in memory and in pieces; and every intermediate value that it gives is compared. A negative must be
//! refused by its class. Fields that are absent are not compared.

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64ct::{Base64, Encoding};
use bytes::Bytes;
use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
use pithead_sealing::envelope::open::{OpenError, Opened, Opening, open_message};
use pithead_sealing::envelope::{Context, Edk, FormatError, StructureChecker, Unwrapped, check};
use pithead_sealing::trust::KeyArn;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Outcome;

/// A key of the file. Test keys only.
struct Key {
    name: String,
    private: OaepPrivateDecryptingKey,
    spki_der: Option<Vec<u8>>,
    arn: String,
}

/// Runs all cases of a file; a file without cases has no outcomes.
pub(crate) fn run(vectors: &Value) -> Vec<Outcome> {
    let (keys, mut outcomes) = read_keys(&vectors["keys"]);
    for (kind, case) in ["positive", "negative"]
        .iter()
        .flat_map(|kind| vectors[kind].as_array().into_iter().flatten().map(move |case| (*kind, case)))
    {
        let name = case["id"].as_str().unwrap_or("(without id)").to_owned();
        let refuse = kind == "negative" && case["expect"].as_str() != Some("accept");
        let outcome = if refuse { negative(case, &keys) } else { positive(case, &keys) };
        outcomes.push((name, outcome));
    }
    outcomes
}

fn read_keys(section: &Value) -> (Vec<Key>, Vec<Outcome>) {
    let named: Vec<(String, &Value)> = match section {
        Value::Object(map) => map.iter().map(|(name, key)| (name.clone(), key)).collect(),
        Value::Array(list) => {
            list.iter().map(|key| (key["id"].as_str().unwrap_or_default().to_owned(), key)).collect()
        }
        _ => Vec::new(),
    };
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    for (name, key) in named {
        let private = key["private_pkcs8_pem"].as_str().and_then(private_key);
        let arn = key["key_arn"].as_str();
        match (private, arn) {
            (Some(private), Some(arn)) => {
                keys.push(Key {
                    name,
                    private,
                    spki_der: bytes_of(key, "public_spki_der"),
                    arn: arn.to_owned(),
                });
            }
            _ => faults.push((format!("key {name}"), Err("has no usable private key or ARN".to_owned()))),
        }
    }
    (keys, faults)
}

fn negative(case: &Value, keys: &[Key]) -> Result<(), String> {
    let sealed = Bytes::from(bytes_of(case, "sealed").ok_or("has no sealed bytes")?);
    let whole = open(&sealed, keys, |_| true);
    let found = match &whole {
        Ok(_) => return Err("was opened".to_owned()),
        Err(error) => class(error),
    };
    if let Some(expected) = case["class"].as_str() {
        same("class", &found, &expected)?;
    }
    for chunk in [1, 7, 4096] {
        let pieces = open_in_pieces(&sealed, keys, chunk);
        match &pieces {
            Ok(_) => return Err(format!("was opened in pieces of {chunk}")),
            Err(error) => same(&format!("class in pieces of {chunk}"), &class(error), &found)?,
        }
    }
    // What the key-less check refuses, the opener refuses; by the same class, unless a key shows something earlier.
    if let Err(error) = check(sealed.clone()) {
        let by_key = ["edk", "commitment", "header-tag", "frame-tag"];
        if !by_key.contains(&found) {
            same("class without a key", &error.class(), &found)?;
        }
    }
    Ok(())
}

fn positive(case: &Value, keys: &[Key]) -> Result<(), String> {
    let plaintext = bytes_of(case, "plaintext");
    let given = bytes_of(case, "sealed");
    let again = seal_again(case, keys, plaintext.as_deref(), given.as_deref())?;
    let sealed = Bytes::from(given.or(again).ok_or("has neither sealed bytes nor what to seal from")?);
    if let Some(expected) = case["sealed_len"].as_u64() {
        same("sealed_len", &(sealed.len() as u64), &expected)?;
    }
    if let Some(expected) = bytes_of(case, "sealed_sha256") {
        same("sealed_sha256", &hex::encode(Sha256::digest(&sealed)), &hex::encode(expected))?;
    }
    structure_holds(case, &sealed)?;
    let header = Opening::begin(&sealed).map_err(|error| error.to_string())?;
    let mut opened_by = 0;
    for edk in header.header().edks() {
        let Some(key) = keys.iter().find(|key| edk.is_kms_rsa() && edk.provider_info() == key.arn.as_bytes())
        else {
            continue;
        };
        let opened = open(&sealed, keys, |arn| arn.as_str() == key.arn)
            .map_err(|error| format!("is refused with {}: {}", key.name, class(&error)))?;
        if let Some(plaintext) = &plaintext {
            same_bytes("plaintext", &opened.plaintext, plaintext)?;
        }
        if let Some(expected) = bytes_of(case, "plaintext_sha256") {
            same_bytes("plaintext_sha256", &Sha256::digest(&opened.plaintext), &expected)?;
        }
        if let Some(expected) = context_of(case)? {
            same("encryption_context", opened.header.context(), &expected)?;
        }
        for chunk in [13, 65_536] {
            let pieces = open_in_pieces(&sealed, keys, chunk).map_err(|error| class(&error).to_owned())?;
            same_bytes("plaintext in pieces", &pieces, &opened.plaintext)?;
        }
        opened_by += 1;
    }
    if opened_by == 0 { Err("none of the file's keys opens it".to_owned()) } else { Ok(()) }
}

/// Seals anew what the case gives the material for, compares, and compares the derived values.
fn seal_again(
    case: &Value,
    keys: &[Key],
    plaintext: Option<&[u8]>,
    given: Option<&[u8]>,
) -> Result<Option<Vec<u8>>, String> {
    let Some(context) = context_of(case)? else { return Ok(None) };
    let derived = &case["derived"];
    if let Some(expected) = bytes_of(derived, "serialized_ec") {
        same_bytes("serialized_ec", context.as_bytes(), &expected)?;
    }
    if let Some(expected) = bytes_of(derived, "ec_sha384") {
        same_bytes("ec_sha384", context.digest().as_bytes(), &expected)?;
    }
    let (Some(data_key), Some(message_id)) = (array_of(case, "data_key"), array_of(case, "message_id"))
    else {
        return Ok(None);
    };
    let frame_length = case["frame_length"].as_u64().and_then(|length| u32::try_from(length).ok());
    let edks = match case["edks"].as_array() {
        Some(edks) => edks.iter().map(|edk| fixed_edk(edk, keys)).collect::<Option<Vec<_>>>(),
        None => None,
    };
    let mut message = FixedMessage {
        context,
        edks: edks.clone().unwrap_or_default(),
        frame_length: frame_length.unwrap_or(65_536),
        data_key,
        message_id,
        empty_final_frame: false,
    };
    let (encryption_key, commitment) = message.derived();
    if let Some(expected) = bytes_of(derived, "encryption_key") {
        same_bytes("encryption_key", &encryption_key, &expected)?;
    }
    if let Some(expected) = bytes_of(derived, "commitment") {
        same_bytes("commitment", &commitment, &expected)?;
    }
    let (Some(plaintext), Some(_), true) = (plaintext, edks, frame_length.is_some_and(|length| length > 0))
    else {
        return Ok(None);
    };
    edks_hold(case, &message, keys)?;
    let seal = |message: &FixedMessage| message.seal(plaintext).map_err(|error| error.to_string());
    let sealed = seal(&message)?;
    let Some(given) = given else { return Ok(Some(sealed)) };
    if sealed != given && !plaintext.is_empty() && plaintext.len() % message.frame_length as usize == 0 {
        // The other convention for a plaintext that fills its frames, as the Python SDK writes it.
        message.empty_final_frame = true;
        same_bytes("sealed again with an empty final frame", &seal(&message)?, given)?;
    } else {
        same_bytes("sealed again", &sealed, given)?;
    }
    Ok(Some(given.to_vec()))
}

/// An EDK to make again from its seed, or else to take as it is.
fn fixed_edk(edk: &Value, keys: &[Key]) -> Option<FixedEdk> {
    let provider_id = edk["provider_id"].as_str().unwrap_or("aws-kms-rsa");
    let provider_info = edk["provider_info"].as_str();
    let key = keys.iter().find(|key| edk["key"].as_str() == Some(&key.name));
    let spki_der = key.and_then(|key| key.spki_der.clone());
    match (array_of(edk, "oaep_seed"), spki_der, provider_info) {
        (Some(oaep_seed), Some(spki_der), Some(info)) if provider_id == "aws-kms-rsa" => {
            Some(FixedEdk::Wrap { provider_info: info.to_owned(), spki_der, oaep_seed })
        }
        _ => Some(FixedEdk::Literal {
            provider_id: provider_id.as_bytes().to_vec(),
            // Plain text is taken as it stands: some of it could be read as hexadecimal.
            provider_info: match provider_info {
                Some(info) => info.as_bytes().to_vec(),
                None => bytes_of(edk, "provider_info")?,
            },
            ciphertext: bytes_of(edk, "ciphertext")?,
        }),
    }
}

fn edks_hold(case: &Value, message: &FixedMessage, keys: &[Key]) -> Result<(), String> {
    let made = message.edks().map_err(|error| error.to_string())?;
    for (edk, given) in made.iter().zip(case["edks"].as_array().into_iter().flatten()) {
        if let Some(expected) = bytes_of(given, "ciphertext") {
            same_bytes("EDK ciphertext", edk.ciphertext(), &expected)?;
        }
        let key = keys.iter().find(|key| given["key"].as_str() == Some(&key.name));
        if let (Some(expected), Some(key)) = (bytes_of(given, "oaep_plaintext"), key) {
            let plaintext = decrypt(key, edk.ciphertext()).ok_or("the EDK does not decrypt")?;
            same_bytes("EDK plaintext", &plaintext, &expected)?;
        }
    }
    Ok(())
}

fn structure_holds(case: &Value, sealed: &Bytes) -> Result<(), String> {
    let checked =
        check(sealed.clone()).map_err(|error| format!("is refused without a key: {}", error.class()))?;
    let (header, structure) = (checked.header(), checked.structure());
    let derived = &case["derived"];
    for (name, found) in [
        ("header_body_len", header.body().len() as u64),
        ("body_offset", structure.header_len),
        ("frames", u64::from(structure.frames)),
    ] {
        if let Some(expected) = derived[name].as_u64() {
            same(name, &found, &expected)?;
        }
    }
    if let Some(expected) = bytes_of(derived, "header_tag") {
        same_bytes("header_tag", header.tag(), &expected)?;
    }
    if let Some(expected) = array_of(case, "message_id") {
        same_bytes("message_id", header.message_id().as_bytes(), &expected)?;
    }
    if let Some(expected) = case["frame_length"].as_u64() {
        same("frame_length", &u64::from(header.frame_length()), &expected)?;
    }
    let sizes = header.sizes().of_total(sealed.len() as u64).map_err(|error| error.to_string())?;
    same("plaintext length by arithmetic", &sizes.plaintext_len, &structure.plaintext_len)?;
    for chunk in [1, 100_000] {
        let mut checker = StructureChecker::with_declared_len(sealed.len() as u64);
        sealed.chunks(chunk).try_for_each(|piece| checker.push(piece)).map_err(|error| error.to_string())?;
        let (_, in_pieces) = checker.finish().map_err(|error| error.to_string())?;
        same("structure in pieces", &in_pieces, structure)?;
    }
    Ok(())
}

fn open(sealed: &Bytes, keys: &[Key], allowed: impl Fn(&KeyArn) -> bool) -> Result<Opened, OpenError> {
    let known = |arn: &KeyArn| keys.iter().any(|key| key.arn == arn.as_str());
    open_message(sealed, |arn| known(arn) && allowed(arn), |arn, edk| unwrap(keys, arn, edk))
}

fn open_in_pieces(sealed: &Bytes, keys: &[Key], chunk: usize) -> Result<Vec<u8>, OpenError> {
    let mut input = Pieces { rest: sealed, chunk };
    let chosen =
        Opening::read_from(&mut input)?.choose(|arn| keys.iter().any(|key| key.arn == arn.as_str()))?;
    let refused = FormatError::Edk(pithead_sealing::envelope::EdkFault::Unwrap);
    let unwrapped = unwrap(keys, chosen.key_arn(), chosen.edk()).ok_or(refused)?;
    let mut plaintext = Vec::new();
    chosen.unlock(&unwrapped)?.into_body().open_all(&mut input, &mut plaintext)?;
    Ok(plaintext)
}

/// A reader that gives at most `chunk` bytes at once.
struct Pieces<'a> {
    rest: &'a [u8],
    chunk: usize,
}

impl std::io::Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let length = out.len().min(self.chunk);
        self.rest.read(&mut out[..length])
    }
}

fn unwrap(keys: &[Key], arn: &KeyArn, edk: &Edk) -> Option<Unwrapped> {
    let key = keys.iter().find(|key| key.arn == arn.as_str())?;
    Unwrapped::read(&decrypt(key, edk.ciphertext())?).ok()
}

/// PKCS#8 in PEM, unencrypted.
fn private_key(pem: &str) -> Option<OaepPrivateDecryptingKey> {
    let base64: String = pem.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
    let key = PrivateDecryptingKey::from_pkcs8(&Base64::decode_vec(&base64).ok()?).ok()?;
    OaepPrivateDecryptingKey::new(key).ok()
}

fn decrypt(key: &Key, ciphertext: &[u8]) -> Option<Vec<u8>> {
    let mut plaintext = vec![0; key.private.min_output_size()];
    let opened = key.private.decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut plaintext, None).ok()?;
    Some(opened.to_vec())
}

fn class(error: &OpenError) -> &'static str {
    error.class().unwrap_or("an input or output error")
}

fn context_of(case: &Value) -> Result<Option<Context>, String> {
    let pairs = match &case["encryption_context"] {
        Value::Null => return Ok(None),
        Value::Object(map) => map,
        _ => return Err("its encryption_context is not an object".to_owned()),
    };
    let pairs = pairs
        .iter()
        .map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect::<Option<Vec<_>>>()
        .ok_or("its encryption_context holds something else than text")?;
    Context::from_pairs(pairs).map(Some).map_err(|error| error.to_string())
}

/// A field of bytes, in hex or base64, by any of its names.
fn bytes_of(case: &Value, name: &str) -> Option<Vec<u8>> {
    let text = |suffix: &str| case[format!("{name}{suffix}")].as_str();
    if let Some(base64) = text("_b64") {
        return Base64::decode_vec(base64).ok();
    }
    hex::decode(text("_hex").or_else(|| text(""))?).ok()
}

fn array_of(case: &Value, name: &str) -> Option<[u8; 32]> {
    bytes_of(case, name)?.try_into().ok()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:?}, not {expected:?}")) }
}

fn same_bytes(what: &str, found: &[u8], expected: &[u8]) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Err(format!("{what} differs at byte {at} ({} bytes, expected {})", found.len(), expected.len()))
}
