//! What must never happen, whatever is offered in whatever order.
//!
//! An authority that may be robbed of its statement key, a carrier that replays, reorders and damages, and a device
//! that restarts. Beside the device stands a small independent model of the announcements.

use std::collections::BTreeMap;

use bytes::Bytes;
use pithead_sealing::trust::{
    Bundle, Clock, Device, KeyStatus, RootFields, Sha256Digest, StatementFields, StatementKey, UnixTime,
};
use proptest::prelude::*;

use crate::world::*;

#[derive(Debug, Clone)]
enum Op {
    /// A statement that follows on the newest, with these statuses (4: not listed) for three keys.
    State {
        statuses: [u8; 3],
        cosigned: bool,
        skip: u64,
        days: u64,
    },
    Root {
        raise: bool,
        deny: Option<u8>,
        signers: u8,
        skip: bool,
    },
    Replay(prop::sample::Index),
    Damage(prop::sample::Index, prop::sample::Index),
    Forged,
    Operate(u64),
    Restart,
    Clock(Option<u64>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (prop::array::uniform3(0u8..5), prop::bool::weighted(0.2), 0u64..3, 0u64..3)
            .prop_map(|(statuses, cosigned, skip, days)| Op::State { statuses, cosigned, skip, days }),
        4 => (0u8..3).prop_map(|n| {
            let mut statuses = [4; 3];
            statuses[0] = 1;
            statuses[usize::from(n)] = u8::from(n == 0);
            Op::State { statuses, cosigned: false, skip: 0, days: 1 }
        }),
        2 => (prop::bool::weighted(0.3), prop::option::weighted(0.3, 0u8..3), 1u8..4, prop::bool::weighted(0.1))
            .prop_map(|(raise, deny, signers, skip)| Op::Root { raise, deny, signers, skip }),
        2 => any::<prop::sample::Index>().prop_map(Op::Replay),
        1 => (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(a, b)| Op::Damage(a, b)),
        1 => Just(Op::Forged),
        3 => (0..2 * HOLD_DOWN).prop_map(Op::Operate),
        1 => Just(Op::Restart),
        1 => prop::option::of(T0..T0 + 500 * DAY).prop_map(Op::Clock),
    ]
}

struct Site {
    world: World,
    device: Device,
    clock: Clock,
    /// Newest root and statement that the authority has made in good faith.
    root: RootFields,
    statement: StatementFields,
    offered: Vec<Bundle>,
    /// Operating seconds in the device's life, counted here.
    operated: u64,
    /// Per key: listed without a break since, and in use. By the rules, not by the code.
    model: BTreeMap<Sha256Digest, (u64, bool)>,
    first: bool,
    epoch_open: bool,
}

fn keys(statuses: [u8; 3]) -> Vec<StatementKey> {
    let status =
        |s| [KeyStatus::Next, KeyStatus::Active, KeyStatus::Retired, KeyStatus::Revoked][usize::from(s)];
    (0u8..3).zip(statuses).filter(|(_, s)| *s < 4).map(|(n, s)| key(n, status(s))).collect()
}

impl Site {
    fn new() -> Site {
        let world = World::new();
        let root = world.root();
        let statement = StatementFields { sequence: 0, ..world.statement() };
        Site {
            device: world.device(),
            world,
            clock: up(0),
            root,
            statement,
            offered: vec![],
            operated: 0,
            model: BTreeMap::new(),
            first: true,
            epoch_open: false,
        }
    }

    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Operate(seconds) => {
                self.clock.uptime_s += seconds;
                self.operated += seconds;
            }
            Op::Restart => {
                self.device = Device::restore(&self.device.encode(self.clock)).unwrap();
                self.clock.uptime_s = 0;
            }
            Op::Clock(now) => self.clock.trusted_now = now.map(UnixTime),
            Op::State { statuses, cosigned, skip, days } => {
                let keys = keys(statuses);
                if keys.is_empty() {
                    return Ok(());
                }
                let mut next = self.world.after(&self.statement, keys);
                next.sequence += skip;
                next.root_version = self.root.version;
                next.epoch = self.root.epoch;
                next.issued_at = UnixTime(self.root.issued_at.max(self.statement.issued_at).0 + days * DAY);
                next.refresh_by = next.issued_at.plus(30 * DAY);
                next.expires_at = next.issued_at.plus(400 * DAY);
                let object = if cosigned { self.world.cosign(&next) } else { self.world.sign(&next) };
                let accepted =
                    self.offer(Bundle { roots: vec![], statement: Some(object), spkis: spkis() })?;
                if accepted {
                    self.statement = next;
                }
            }
            Op::Root { raise, deny, signers, skip } => {
                let mut next = self.world.after_root(&self.root);
                next.version += u64::from(skip);
                next.epoch += u64::from(raise);
                next.issued_at = UnixTime(self.root.issued_at.0 + 3600);
                next.denylist.extend(deny.map(fingerprint));
                let holders: Vec<_> = self.world.holders.iter().take(signers.into()).collect();
                let object = sign_root(&next, &holders);
                if self.offer(Bundle { roots: vec![object], ..Bundle::default() })? {
                    prop_assert!(signers >= 2 && !skip);
                    self.root = next;
                    if raise {
                        self.statement = StatementFields { sequence: 0, ..self.world.statement() };
                    }
                }
            }
            Op::Replay(which) => {
                if !self.offered.is_empty() {
                    let bundle = which.get(&self.offered).clone();
                    self.offer(bundle)?;
                }
            }
            Op::Damage(which, bit) => {
                if !self.offered.is_empty() {
                    let mut bundle = which.get(&self.offered).clone();
                    let object = bundle.statement.as_mut().unwrap_or_else(|| &mut bundle.roots[0]);
                    let mut bytes = object.to_vec();
                    let bit = bit.index(bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    *object = Bytes::from(bytes);
                    // A bit of a co-signature may be flipped: it is then a statement without it.
                    self.offer(bundle)?;
                }
            }
            Op::Forged => {
                let next = self.world.after(&self.statement, keys([4, 4, 1]));
                let object =
                    sign(&next, &[&self.world.spare, &self.world.holders[0], &self.world.holders[1]]);
                let accepted =
                    self.offer(Bundle { roots: vec![], statement: Some(object), spkis: spkis() })?;
                prop_assert!(!accepted, "no statement without a statement key");
            }
        }
        prop_assert_eq!(self.device.operated_s(self.clock), self.operated);
        if let Ok(key) = self.device.verified_key(self.clock) {
            let in_use = self.model.get(key.fingerprint()).is_some_and(|(_, in_use)| *in_use);
            prop_assert!(in_use, "a key that was not announced is sealed to");
            prop_assert!(!self.device.root().denies(key.fingerprint()));
            prop_assert!(key.usable_at(self.device.now(self.clock)).is_ok());
        }
        Ok(())
    }

    /// Offers a bundle and checks everything that an answer must not do. True if it was accepted.
    fn offer(&mut self, bundle: Bundle) -> Result<bool, TestCaseError> {
        self.offered.push(bundle.clone());
        let before = self.device.clone();
        let result = self.device.apply(&bundle, self.clock);
        let device = &self.device;
        let changed = device.encode(self.clock) != before.encode(self.clock);
        prop_assert_eq!(changed, device.revision() != before.revision());
        let floors = (before.now_lower_bound(self.clock), device.now_lower_bound(self.clock));

        let Ok(applied) = result else {
            prop_assert!(!changed, "a refusal leaves no trace");
            return Ok(false);
        };
        prop_assert_eq!(device.root_version(), before.root_version() + applied.roots as u64);
        let raised = device.version().0 > before.version().0;
        if raised {
            prop_assert_eq!(device.version(), (before.version().0 + 1, 0));
            prop_assert!(device.statement().is_none());
            self.model.clear();
            self.epoch_open = true;
        } else {
            prop_assert!(device.version() >= before.version(), "(epoch, sequence) never falls");
            prop_assert!(floors.1 >= floors.0, "the floor never falls within an epoch");
        }
        // The floor rises to a signed time and no further.
        let signed = [Some(device.root().issued_at), device.statement().map(|s| s.issued_at)];
        prop_assert!(floors.1 <= floors.0 || signed.contains(&Some(floors.1)));

        if let Some(accepted) = applied.statement {
            let new = &accepted.statement;
            if let Some(old) = before.statement() {
                for old in old.keys.iter().filter(|old| old.status == KeyStatus::Revoked) {
                    let kept = new.key(&old.fingerprint).is_some_and(|key| key.status == KeyStatus::Revoked);
                    prop_assert!(kept || device.root().denies(&old.fingerprint), "revoked is terminal");
                }
            }
            let free = accepted.cosigned || (self.first && !self.epoch_open);
            prop_assert!(!self.epoch_open || accepted.cosigned, "a raised epoch begins co-signed");
            let mut model = BTreeMap::new();
            for key in new.keys.iter().filter(|key| key.status <= KeyStatus::Active) {
                let (since, used) =
                    self.model.get(&key.fingerprint).copied().unwrap_or((self.operated, false));
                let ripe = self.operated - since >= HOLD_DOWN;
                let in_use = key.status == KeyStatus::Active && (free || used || ripe);
                model.insert(key.fingerprint, (since, in_use));
            }
            self.model = model;
            self.first = false;
            self.epoch_open = false;
            prop_assert!(accepted.new || !applied.roots > 0 || before.statement().is_some());
        }
        Ok(true)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_carrier_or_a_thief_of_one_key_offers_breaks_an_invariant(
        ops in prop::collection::vec(op(), 1..40)
    ) {
        let mut site = Site::new();
        site.step(Op::State { statuses: [1, 4, 4], cosigned: false, skip: 0, days: 0 })?;
        for op in ops {
            site.step(op)?;
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic_or_believe(bytes: Vec<u8>) {
        let mut device = World::new().device();
        let before = device.encode(up(0));
        let bytes = Bytes::from(bytes);
        prop_assert!(offer(&mut device, bytes.clone(), up(0)).is_err());
        prop_assert!(offer_root(&mut device, bytes.clone(), up(0)).is_err());
        prop_assert!(Device::restore(&bytes).is_err());
        prop_assert_eq!(device.encode(up(0)), before);
    }
}

#[test]
fn the_model_reaches_every_interesting_place() {
    // A walk by hand through the same machine: were it to refuse everything, the property above would prove nothing.
    let mut site = Site::new();
    let state = |statuses| Op::State { statuses, cosigned: false, skip: 0, days: 1 };
    let mut expect = |op: Op, version: (u64, u64), sealing: Option<u8>| {
        site.step(op).unwrap();
        assert_eq!((site.device.version(), sealing_to(&site.device, site.clock).ok()), (version, sealing));
    };
    expect(state([1, 4, 4]), (1, 1), Some(0));
    expect(state([1, 0, 4]), (1, 2), Some(0));
    expect(state([2, 1, 4]), (1, 2), Some(0));
    expect(Op::Operate(HOLD_DOWN), (1, 2), Some(0));
    expect(Op::Restart, (1, 2), Some(0));
    expect(state([2, 1, 4]), (1, 3), Some(1));
    expect(Op::Forged, (1, 3), Some(1));
    expect(Op::Root { raise: false, deny: Some(1), signers: 2, skip: false }, (1, 3), None);
    expect(Op::Root { raise: true, deny: None, signers: 1, skip: false }, (1, 3), None);
    expect(Op::Root { raise: true, deny: None, signers: 2, skip: false }, (2, 0), None);
    expect(state([1, 4, 4]), (2, 0), None);
    expect(Op::State { statuses: [1, 4, 4], cosigned: true, skip: 0, days: 1 }, (2, 1), Some(0));
}
