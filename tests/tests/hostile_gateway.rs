//! A hostile gateway over real TLS: it holds the real one's certificate, and answers whatever serves the thief. Whatever it
//! says, a device seals to the key that its authority named, or not at all.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pithead_device_client::{
    clock::DeviceClock,
    keys::{Keys, KeysError},
    state::MemoryStore,
    uplink::{Gateways, RefreshError, Uplink},
};
use pithead_hop::{backoff::Policy, status::reason_of_trust, tls::Pem};
use pithead_proto::{errors::v1::ErrorReason, keys::v1::KeyBundle};
use pithead_sealing::{
    Site as SiteName,
    trust::{
        KeyArn, KeyStatus, Role, RootFields, RootKey, Sha256Digest, StatementFields, UnixTime,
        authoring::{Draft, SigningKey},
        verify,
    },
};
use pithead_tests::{
    authority::{AUTHORITY, sign},
    device::Device,
    forge::{last_statement, read_bundle, successor},
    kms::KmsKey,
    program::Admin,
    rogue::Rogue,
    site::{KEY_ARN, NEXT_KEY_ARN, SITE, Site, SiteOptions},
};
use serde_json::Value;

/// A device in this process with clocks that the test turns.
struct Truck {
    keys: Keys,
    uplink: Uplink,
    operated_s: Arc<AtomicU64>,
    trusted_now: Arc<Mutex<Option<UnixTime>>>,
}

impl Truck {
    fn enroll(site: &Site, authority: &str, name: &SiteName, root: &[u8]) -> Self {
        let operated_s = Arc::new(AtomicU64::new(0));
        let trusted_now = Arc::new(Mutex::new(None));
        let (meter, trusted) = (Arc::clone(&operated_s), Arc::clone(&trusted_now));
        let clock = DeviceClock::metered(
            Arc::new(move || Duration::from_secs(meter.load(Ordering::Relaxed))),
            Some(Arc::new(move || *trusted.lock().unwrap())),
        );
        let keys = Keys::enroll(authority, name, root, Box::new(MemoryStore::default()), clock).unwrap();
        let identity = site.identity_of("truck-1").unwrap();
        let read = |path: &Path| Pem::read(path).unwrap();
        let endpoints = vec![site.gateway_address().to_string().parse().unwrap()];
        let gateways = Gateways::new(endpoints, read(site.ca.path()))
            .identity(read(&identity.certificate), read(&identity.key))
            .retry(Policy::default());
        let uplink = Uplink::new(gateways, &keys).unwrap();
        Self { keys, uplink, operated_s, trusted_now }
    }

    /// Asks the gateway; the name of the reason if what it says is refused.
    async fn refresh(&mut self) -> &'static str {
        match self.uplink.refresh(&mut self.keys).await {
            Ok(_) => "OK",
            Err(RefreshError::Keys(KeysError::Trust(error))) => reason_of_trust(error).name(),
            Err(RefreshError::Fetch(error)) => error.reason().name(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn hex_of(value: &Value) -> Bytes {
    hex::decode(value.as_str().unwrap()).unwrap().into()
}

fn all_hex(value: &Value) -> Vec<Bytes> {
    value.as_array().into_iter().flatten().map(hex_of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_conformance_case_of_trust_holds_over_the_wire() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let rogue = Rogue::start(&site).await.unwrap();
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../sealing/tests/vectors/trust.json");
    let cases: Value = serde_json::from_slice(&std::fs::read(vectors).unwrap()).unwrap();
    let mut reached = BTreeSet::new();
    for case in cases.as_array().unwrap() {
        let (title, given) = (case["name"].as_str().unwrap(), &case["device"]);
        let (authority, name) = (given["authority"].as_str().unwrap(), given["site"].as_str().unwrap());
        let mut truck =
            Truck::enroll(&site, authority, &SiteName::new(name).unwrap(), &hex_of(&given["root"]));
        for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            truck.operated_s.fetch_add(step["uptime_add"].as_u64().unwrap_or(0), Ordering::Relaxed);
            *truck.trusted_now.lock().unwrap() = step["trusted_now"].as_u64().map(UnixTime);
            rogue.say_once(KeyBundle {
                authority: authority.to_owned(),
                site: name.to_owned(),
                roots: all_hex(&step["roots"]),
                statement: if step["stmt"].is_null() { Bytes::new() } else { hex_of(&step["stmt"]) },
                spkis: all_hex(&step["spki"]),
            });
            let answer = truck.refresh().await;
            let expected = step["expect"].as_str().unwrap();
            assert_eq!(answer.strip_prefix("TRUST_").unwrap_or(answer), expected, "{title}, step {number}");
            reached.insert(expected.to_owned());
        }
        let trust = truck.keys.trust();
        let key = truck.keys.verified_key().ok();
        let found = |field: &str| match field {
            "final_status" => Value::from(truck.keys.status().code()),
            "final_seq" => Value::from(trust.version().1),
            "final_epoch" => Value::from(trust.version().0),
            "final_root" => Value::from(trust.root_version()),
            "final_arn" => Value::from(key.as_ref().map(|key| key.arn().as_str().to_owned())),
            "final_fingerprint" => Value::from(key.as_ref().map(|key| key.fingerprint().to_string())),
            "final_digest" => Value::from(trust.statement().map(|statement| statement.digest().to_string())),
            other => panic!("{title} has {other}"),
        };
        for (field, expected) in
            case.as_object().unwrap().iter().filter(|(field, _)| field.starts_with("final_"))
        {
            assert_eq!(&found(field), expected, "{title}, {field}");
        }
    }
    println!("{} cases, {} codes: {reached:?}", cases.as_array().unwrap().len(), reached.len());
    assert!(reached.len() >= 24, "the cases were meant to reach more codes: {reached:?}");
}

/// The site with a gateway that has been stolen, and a truck that had met the real one.
struct Stolen {
    site: Site,
    truck: Device,
    rogue: Rogue,
    good: Option<String>,
    thief: KmsKey,
    statement_key: SigningKey,
}

impl Stolen {
    async fn gateway() -> Self {
        let mut site = Site::start(SiteOptions::default()).await.unwrap();
        let truck = site.enroll("truck-1").await.unwrap();
        site.authority.statement(SITE, &["--no-standby".into()]).await.unwrap().ok().unwrap();
        let second =
            async |admin: Admin| admin.metric("pithead_key_sequence").await.is_ok_and(|at| at == 2.0);
        site.gateway().unwrap().until("has the second statement", second).await.unwrap();
        let good = truck.key().await.unwrap().fingerprint;
        site.kill_gateway().await.unwrap();
        let rogue = Rogue::start(&site).await.unwrap();
        let thief = KmsKey::generate(NEXT_KEY_ARN, 2048).unwrap();
        let statement_key = site.authority.stolen_statement_key().unwrap();
        Self { site, truck, rogue, good, thief, statement_key }
    }

    /// The truck asks, refuses with that reason, and holds to the key it had.
    async fn is_refused(&self, reason: ErrorReason) {
        let refused = self.truck.run(&["key"]).await.unwrap();
        let (code, name) = (reason.code(), reason.name());
        assert!(refused.refused_with(&code, name), "{name}: {}{}", refused.stdout, refused.stderr);
        assert_eq!(refused.code, Some(1), "{name}");
        assert_eq!(self.truck.key_offline().await.unwrap().fingerprint, self.good, "{name}");
    }

    fn root(&self) -> RootFields {
        let root = verify::first_root(AUTHORITY, &self.site_root()).unwrap();
        let fields = root.fields().clone();
        RootFields { version: 2, previous: *root.digest(), ..fields }
    }

    fn site_root(&self) -> Bytes {
        std::fs::read(self.site.authority.root()).unwrap().into()
    }

    /// The public half of the good key.
    fn spki(&self) -> Bytes {
        let bundle = read_bundle(&self.site.authority.bundle(SITE)).unwrap();
        bundle.bundle.spkis[0].clone()
    }

    fn root_keys(&self) -> Vec<SigningKey> {
        ["root-1", "root-2"].map(|name| self.site.authority.stolen_key(name).unwrap()).into()
    }
}

fn signed_root(fields: &RootFields, keys: &[SigningKey]) -> Bytes {
    let mut draft = Draft::root(fields).unwrap();
    keys.iter().for_each(|key| draft.sign(key).unwrap());
    draft.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_and_statements_that_are_mixed_swapped_or_made_up_move_no_truck() {
    let stolen = Stolen::gateway().await;
    let last = last_statement(&stolen.site.authority).unwrap();
    let own = SigningKey::p256(&[9; 32]).unwrap();
    let good_spki = stolen.spki();
    let say =
        |roots: Vec<Bytes>, statement: Bytes| stolen.rogue.say(roots, statement, vec![good_spki.clone()]);

    // A root that skips the past, and one that the thief gives himself a vote in.
    let mut rootless = stolen.root();
    rootless.previous = Sha256Digest::of(b"another past");
    say(vec![signed_root(&rootless, &stolen.root_keys())], Bytes::new());
    stolen.is_refused(ErrorReason::TrustRootPrev).await;
    let mut taken = stolen.root();
    taken.keys.push(RootKey { spki: own.public(), label: "thief".into() });
    taken.root_role = Role { threshold: 1, kids: vec![own.public().kid()] };
    taken.keys.retain(|key| taken.statement_role.kids.contains(&key.spki.kid()) || key.label == "thief");
    say(vec![signed_root(&taken, std::slice::from_ref(&own))], Bytes::new());
    stolen.is_refused(ErrorReason::TrustThresholdOld).await;
    // Holders of the old keys who hand over to keys that never signed.
    say(vec![signed_root(&taken, &stolen.root_keys())], Bytes::new());
    stolen.is_refused(ErrorReason::TrustThresholdNew).await;
    say(vec![stolen.site_root()], last.object().clone());
    let same = stolen.truck.key().await.unwrap();
    assert_eq!(same.fingerprint, stolen.good, "the root that it has is no news");

    // Statements: of a root that is withheld, of a second truth, and of a key that is none.
    let with = |change: &dyn Fn(&mut StatementFields)| {
        let mut fields = successor(&last);
        change(&mut fields);
        sign(&fields, &stolen.statement_key).unwrap()
    };
    say(Vec::new(), with(&|fields| fields.root_version = 2));
    stolen.is_refused(ErrorReason::TrustNeedRoot).await;
    say(
        Vec::new(),
        with(&|fields| {
            fields.sequence = last.sequence;
            fields.previous = last.previous;
            fields.ticket = Some("a second truth".into());
        }),
    );
    stolen.is_refused(ErrorReason::TrustEquivocation).await;
    // Beside the good key, held down; alone, never announced.
    let thiefs = |fields: &mut StatementFields| {
        let mut key = fields.keys[0].clone();
        key.arn = KeyArn::new(NEXT_KEY_ARN).unwrap();
        key.fingerprint = Sha256Digest::of(stolen.thief.spki_der());
        key.status = KeyStatus::Active;
        key
    };
    let alone = with(&|fields| fields.keys = vec![thiefs(fields)]);
    let spkis = vec![good_spki.clone(), Bytes::copy_from_slice(stolen.thief.spki_der())];
    stolen.rogue.say(Vec::new(), alone, spkis.clone());
    stolen.is_refused(ErrorReason::TrustUnannounced).await;
    let beside = with(&|fields| {
        let key = thiefs(fields);
        fields.keys.push(key);
    });
    stolen.rogue.say(Vec::new(), beside.clone(), spkis.clone());
    assert_eq!(
        stolen.truck.key().await.unwrap().fingerprint,
        stolen.good,
        "both are active, one was announced"
    );
    // The good one is dropped a moment later: a thief who gets as far as `beside` gets no further.
    let (fields, digest) = StatementFields::read_unverified(&beside).unwrap();
    let dropped = StatementFields {
        sequence: fields.sequence + 1,
        previous: digest,
        keys: vec![fields.keys[1].clone()],
        ..fields
    };
    stolen.rogue.say(Vec::new(), sign(&dropped, &stolen.statement_key).unwrap(), spkis);
    stolen.is_refused(ErrorReason::TrustUnannounced).await;

    // A newcomer has nothing to compare with, and believes no more for that: not a key that is none, and not silence.
    let newcomer = stolen.site.enroll("truck-2").await.unwrap();
    let mut rubbish = last.fields().clone();
    rubbish.keys[0].fingerprint = Sha256Digest::of(b"rubbish");
    let statement = sign(&rubbish, &stolen.statement_key).unwrap();
    stolen.rogue.say(Vec::new(), statement, vec![Bytes::from_static(b"rubbish")]);
    let refused = newcomer.run(&["key"]).await.unwrap();
    assert!(refused.refused_with("PH-1028", "TRUST_SPKI_PARSE"), "{}", refused.stderr);
    stolen.rogue.freeze();
    let refused = newcomer.run(&["key"]).await.unwrap();
    assert!(refused.refused_with("PH-1029", "NO_KEY"), "{}", refused.stderr);

    // What it seals after all that opens with the good key, and it never asked a gateway whether it may.
    let (plain, sealed) = (stolen.site.folder().join("plain"), stolen.site.folder().join("sealed"));
    std::fs::write(&plain, b"tonnes").unwrap();
    let asked = stolen.rogue.asked();
    let arguments = ["seal", plain.to_str().unwrap(), "-O", sealed.to_str().unwrap()];
    stolen.truck.run(&arguments).await.unwrap().ok().unwrap();
    assert_eq!(stolen.rogue.asked(), asked);
    let (key, opened) = (stolen.site.private_key(), stolen.site.folder().join("opened"));
    let arguments = [
        "open",
        sealed.to_str().unwrap(),
        "--private-key",
        key.to_str().unwrap(),
        "--key",
        KEY_ARN,
        "-o",
        opened.to_str().unwrap(),
    ];
    stolen.site.decryptor_command(&arguments).await.unwrap().ok().unwrap();
    assert_eq!(std::fs::read(&opened).unwrap(), b"tonnes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truck_that_is_told_nothing_seals_on_until_its_statement_ends_and_then_not_at_all() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let name = SiteName::new(SITE).unwrap();
    let root = std::fs::read(site.authority.root()).unwrap();
    let mut truck = Truck::enroll(&site, AUTHORITY, &name, &root);
    assert_eq!(truck.refresh().await, "OK");
    let statement = last_statement(&site.authority).unwrap();
    let lives = statement.expires_at.0 - statement.issued_at.0;
    let fresh = statement.refresh_by.0 - statement.issued_at.0;
    site.kill_gateway().await.unwrap();
    let rogue = Rogue::start(&site).await.unwrap();
    rogue.freeze();
    for (operated, status) in
        [(fresh, "FRESH"), (fresh + 1, "STALE"), (lives - 1, "STALE"), (lives, "EXPIRED")]
    {
        truck.operated_s.store(operated, Ordering::Relaxed);
        assert_eq!(truck.refresh().await, "OK", "nothing new is no error");
        assert_eq!(truck.keys.status().code(), status, "after {operated} s");
        assert_eq!(truck.keys.verified_key().is_ok(), status != "EXPIRED");
    }
}
