//! An authority with its keys, and objects made by it: every test begins from a world in order and breaks one thing.
#![allow(dead_code)] // the fuzz targets use a part of it

use bytes::Bytes;
use pithead_sealing::Site;
use pithead_sealing::trust::authoring::{Draft, SigningKey};
use pithead_sealing::trust::{
    Bundle, Clock, Device, KeyArn, KeyStatus, Kid, Policy, Role, RootFields, RootKey, SUITE_RSA_OAEP_SHA256,
    Sha256Digest, StatementFields, StatementKey, TrustError, UnixTime,
};

pub const T0: u64 = 1_795_000_000;
pub const DAY: u64 = 86_400;
pub const YEAR: u64 = 365 * DAY;
pub const HOLD_DOWN: u64 = 3 * DAY;
pub const AUTHORITY: &str = "acme-mining/prod";

/// Three root key holders (two must sign), one statement key, one spare of the other algorithm.
pub struct World {
    pub holders: Vec<SigningKey>,
    pub signer: SigningKey,
    pub spare: SigningKey,
}

pub fn site() -> Site {
    Site::new("pilbara-3").unwrap()
}

pub fn up(seconds: u64) -> Clock {
    Clock::uptime(seconds)
}

pub fn at(now: u64) -> Clock {
    Clock::trusted(0, UnixTime(now))
}

/// The SPKI of data key `n`: an odd number with its top bit set. No RSA is done with it here.
pub fn data_spki(n: u8, bits: usize) -> Bytes {
    let mut modulus: Vec<u8> =
        (0..bits / 8 / 32).flat_map(|i| *Sha256Digest::of(&[n, i as u8]).as_bytes()).collect();
    modulus[0] |= 0x80;
    *modulus.last_mut().unwrap() |= 1;
    rsa_spki(&modulus, &[1, 0, 1])
}

pub fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let len = value.len();
    let head = match len {
        0..=0x7f => vec![tag, len as u8],
        0x80..=0xff => vec![tag, 0x81, len as u8],
        _ => vec![tag, 0x82, (len >> 8) as u8, len as u8],
    };
    [&head[..], value].concat()
}

pub fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Bytes {
    let signed = |number: &[u8]| if number[0] >= 0x80 { [&[0], number].concat() } else { number.to_vec() };
    let key = der(0x30, &[der(2, &signed(modulus)), der(2, &signed(exponent))].concat());
    let algorithm = hex::decode("300d06092a864886f70d0101010500").unwrap();
    der(0x30, &[algorithm, der(3, &[&[0], &key[..]].concat())].concat()).into()
}

pub fn arn(n: u8) -> KeyArn {
    KeyArn::new(&format!("arn:aws:kms:ap-southeast-2:111122223333:key/{n:08}-12ab-34cd-56ef-1234567890ab"))
        .unwrap()
}

pub fn fingerprint(n: u8) -> Sha256Digest {
    Sha256Digest::of(&data_spki(n, 3072))
}

pub fn key(n: u8, status: KeyStatus) -> StatementKey {
    StatementKey {
        arn: arn(n),
        suite: SUITE_RSA_OAEP_SHA256,
        fingerprint: fingerprint(n),
        bits: 3072,
        status,
        not_before: UnixTime(T0 - DAY + u64::from(n)),
        seal_until: UnixTime(T0 + 3 * YEAR),
        decrypt_until: None,
        reason: None,
    }
}

pub fn role_key(key: &SigningKey, label: &str) -> RootKey {
    RootKey { spki: key.public(), label: label.into() }
}

pub fn kid(key: &SigningKey) -> Kid {
    key.public().kid()
}

impl World {
    pub fn new() -> World {
        World {
            holders: (1..=3).map(|n| SigningKey::p256(&[n; 32]).unwrap()).collect(),
            signer: SigningKey::p256(&[9; 32]).unwrap(),
            spare: SigningKey::ed25519(&[10; 32]),
        }
    }

    pub fn root(&self) -> RootFields {
        let mut keys: Vec<_> = self.holders.iter().map(|holder| role_key(holder, "holder")).collect();
        keys.push(role_key(&self.signer, "signer"));
        RootFields {
            authority: AUTHORITY.into(),
            version: 1,
            epoch: 1,
            issued_at: UnixTime(T0),
            expires_at: UnixTime(T0 + 5 * YEAR),
            root_role: Role { threshold: 2, kids: self.holders.iter().map(kid).collect() },
            statement_role: Role { threshold: 1, kids: vec![kid(&self.signer)] },
            keys,
            denylist: vec![],
            policy: Policy {
                hold_down_s: HOLD_DOWN,
                min_rsa_bits: 3072,
                suites: vec![SUITE_RSA_OAEP_SHA256],
                max_statement_validity_s: 401 * DAY,
                custody: None,
            },
            gateways: None,
            previous: Sha256Digest::ZERO,
        }
    }

    pub fn after_root(&self, before: &RootFields) -> RootFields {
        RootFields {
            version: before.version + 1,
            issued_at: before.issued_at.plus(DAY),
            previous: Sha256Digest::of(&before.encode()),
            ..before.clone()
        }
    }

    pub fn raised_epoch(&self, before: &RootFields) -> RootFields {
        RootFields { epoch: before.epoch + 1, ..self.after_root(before) }
    }

    pub fn statement(&self) -> StatementFields {
        StatementFields {
            authority: AUTHORITY.into(),
            sites: vec![site()],
            root_version: 1,
            epoch: 1,
            sequence: 1,
            issued_at: UnixTime(T0),
            refresh_by: UnixTime(T0 + 30 * DAY),
            expires_at: UnixTime(T0 + 400 * DAY),
            previous: Sha256Digest::ZERO,
            keys: vec![key(0, KeyStatus::Active)],
            ticket: None,
        }
    }

    /// The statement of the next day with these keys.
    pub fn after(&self, before: &StatementFields, keys: Vec<StatementKey>) -> StatementFields {
        StatementFields {
            sequence: before.sequence + 1,
            issued_at: before.issued_at.plus(DAY),
            refresh_by: before.refresh_by.plus(DAY),
            expires_at: before.expires_at.plus(DAY),
            previous: Sha256Digest::of(&before.encode()),
            keys,
            ..before.clone()
        }
    }

    /// The first statement under a root: issued with it.
    pub fn first_under(&self, root: &RootFields) -> StatementFields {
        StatementFields {
            root_version: root.version,
            epoch: root.epoch,
            issued_at: root.issued_at,
            refresh_by: root.issued_at.plus(30 * DAY),
            expires_at: root.issued_at.plus(400 * DAY),
            ..self.statement()
        }
    }

    pub fn sign_root(&self, root: &RootFields) -> Bytes {
        sign_root(root, &[&self.holders[0], &self.holders[1]])
    }

    pub fn sign(&self, statement: &StatementFields) -> Bytes {
        sign(statement, &[&self.signer])
    }

    pub fn cosign(&self, statement: &StatementFields) -> Bytes {
        sign(statement, &[&self.signer, &self.holders[0], &self.holders[2]])
    }

    pub fn device(&self) -> Device {
        self.device_with(&self.root())
    }

    pub fn device_with(&self, root: &RootFields) -> Device {
        Device::provision(AUTHORITY, &site(), &self.sign_root(root), Clock::default()).unwrap()
    }

    /// A device that has accepted the first statement.
    pub fn enrolled(&self) -> (Device, StatementFields) {
        let mut device = self.device();
        let first = self.statement();
        offer(&mut device, self.sign(&first), up(0)).unwrap();
        (device, first)
    }
}

pub fn sign_root(root: &RootFields, keys: &[&SigningKey]) -> Bytes {
    let mut draft = Draft::root(root).unwrap();
    keys.iter().for_each(|key| draft.sign(key).unwrap());
    draft.finish().unwrap()
}

pub fn sign(statement: &StatementFields, keys: &[&SigningKey]) -> Bytes {
    let mut draft = Draft::statement(statement).unwrap();
    keys.iter().for_each(|key| draft.sign(key).unwrap());
    draft.finish().unwrap()
}

pub fn spkis() -> Vec<Bytes> {
    (0..5).map(|n| data_spki(n, 3072)).collect()
}

/// Offers a statement with every SPKI; an accepted one answers whether it was new.
pub fn offer(device: &mut Device, statement: Bytes, clock: Clock) -> Result<bool, TrustError> {
    let bundle = Bundle { roots: vec![], statement: Some(statement), spkis: spkis() };
    device.apply(&bundle, clock).map(|applied| applied.statement.unwrap().new)
}

pub fn offer_root(device: &mut Device, root: Bytes, clock: Clock) -> Result<(), TrustError> {
    let bundle = Bundle { roots: vec![root], ..Bundle::default() };
    device.apply(&bundle, clock).map(|applied| assert_eq!(applied.roots, 1))
}

/// The number of the data key in use.
pub fn sealing_to(device: &Device, clock: Clock) -> Result<u8, TrustError> {
    let key = device.verified_key(clock)?;
    Ok((0..5).find(|n| fingerprint(*n) == *key.fingerprint()).unwrap())
}

/// Writes CBOR and COSE without the library under test, so that it can be written wrongly.
pub mod raw {
    use super::*;

    pub fn head(major: u8, value: u64) -> Vec<u8> {
        let m = major << 5;
        match value {
            0..=23 => vec![m | value as u8],
            24..=0xff => vec![m | 24, value as u8],
            0x100..=0xffff => [&[m | 25], &(value as u16).to_be_bytes()[..]].concat(),
            0x1_0000..=0xffff_ffff => [&[m | 26], &(value as u32).to_be_bytes()[..]].concat(),
            _ => [&[m | 27], &value.to_be_bytes()[..]].concat(),
        }
    }

    pub fn bstr(value: &[u8]) -> Vec<u8> {
        [head(2, value.len() as u64), value.to_vec()].concat()
    }

    pub fn tstr(value: &str) -> Vec<u8> {
        [head(3, value.len() as u64), value.as_bytes().to_vec()].concat()
    }

    pub const ROOT: &str = "application/vnd.pithead.root";
    pub const STATEMENT: &str = "application/vnd.pithead.statement";

    pub fn body(typ: &str) -> Vec<u8> {
        [head(5, 1), head(0, 16), tstr(typ)].concat()
    }

    pub fn header(alg: i64, kid: &[u8]) -> Vec<u8> {
        let alg = if alg < 0 { head(1, !alg as u64) } else { head(0, alg as u64) };
        [head(5, 2), head(0, 1), alg, head(0, 4), bstr(kid)].concat()
    }

    pub fn to_be_signed(body: &[u8], header: &[u8], aad: &[u8], payload: &[u8]) -> Vec<u8> {
        [head(4, 5), tstr("Signature"), bstr(body), bstr(header), bstr(aad), bstr(payload)].concat()
    }

    /// (header, signature) of a key over a payload.
    pub fn signature(typ: &str, payload: &[u8], key: &SigningKey) -> (Vec<u8>, Vec<u8>) {
        let public = key.public();
        signature_as(typ, payload, key, public.algorithm().cose(), b"pithead/v1")
    }

    pub fn signature_as(
        typ: &str,
        payload: &[u8],
        key: &SigningKey,
        alg: i64,
        aad: &[u8],
    ) -> (Vec<u8>, Vec<u8>) {
        let header = header(alg, key.public().kid().as_bytes());
        let signature = key.sign(&to_be_signed(&body(typ), &header, aad, payload)).to_vec();
        (header, signature)
    }

    pub fn object(body: &[u8], payload: &[u8], signatures: &[(Vec<u8>, Vec<u8>)]) -> Bytes {
        let mut out = [head(6, 98), head(4, 4), bstr(body), head(5, 0), bstr(payload)].concat();
        out.extend(head(4, signatures.len() as u64));
        for (header, signature) in signatures {
            out.extend([head(4, 3), bstr(header), head(5, 0), bstr(signature)].concat());
        }
        out.into()
    }

    /// A correctly signed object with whatever payload.
    pub fn signed(typ: &str, payload: &[u8], keys: &[&SigningKey]) -> Bytes {
        let signatures: Vec<_> = keys.iter().map(|key| signature(typ, payload, key)).collect();
        object(&body(typ), payload, &signatures)
    }
}
