//! Announced before active, and the raised epoch that undoes a theft.

use pithead_sealing::trust::KeyStatus::{Active, Next, Retired, Revoked};
use pithead_sealing::trust::{Bundle, Device, RootFields, Status, TrustError, UnixTime};

use crate::world::*;

#[test]
fn a_new_key_may_be_used_only_after_the_hold_down() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let announced = world.after(&first, vec![key(0, Active), key(1, Next)]);
    offer(&mut device, world.sign(&announced), up(100)).unwrap();
    let rotated = world.sign(&world.after(&announced, vec![key(0, Retired), key(1, Active)]));
    assert_eq!(offer(&mut device, rotated.clone(), up(100 + HOLD_DOWN - 1)), Err(TrustError::Unannounced));
    assert_eq!(sealing_to(&device, up(100 + HOLD_DOWN - 1)), Ok(0), "meanwhile it seals to the good key");
    assert_eq!(offer(&mut device, rotated, up(100 + HOLD_DOWN)), Ok(true));
    assert_eq!(sealing_to(&device, up(100 + HOLD_DOWN)), Ok(1));
}

#[test]
fn a_parked_vehicle_does_not_wake_up_with_the_hold_down_over() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let announced = world.after(&first, vec![key(0, Active), key(1, Next)]);
    offer(&mut device, world.sign(&announced), up(0)).unwrap();
    let rotated = world.after(&announced, vec![key(0, Retired), key(1, Active)]);
    let a_month_later = at(T0 + 30 * DAY);
    assert_eq!(offer(&mut device, world.sign(&rotated), a_month_later), Err(TrustError::Unannounced));
}

#[test]
fn operating_time_counts_across_restarts() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let announced = world.after(&first, vec![key(0, Active), key(1, Next)]);
    offer(&mut device, world.sign(&announced), up(0)).unwrap();
    let rotated = world.sign(&world.after(&announced, vec![key(0, Retired), key(1, Active)]));
    for _ in 0..3 {
        assert_eq!(offer(&mut device, rotated.clone(), up(0)), Err(TrustError::Unannounced));
        device = Device::restore(&device.encode(up(DAY))).unwrap();
    }
    assert_eq!(offer(&mut device, rotated, up(0)), Ok(true));
}

#[test]
fn a_key_that_disappears_starts_again() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let announced = world.after(&first, vec![key(0, Active), key(1, Next)]);
    let gone = world.after(&announced, vec![key(0, Active)]);
    let again = world.after(&gone, vec![key(0, Active), key(1, Next)]);
    let rotated = world.after(&again, vec![key(0, Retired), key(1, Active)]);
    offer(&mut device, world.sign(&announced), up(0)).unwrap();
    offer(&mut device, world.sign(&gone), up(2 * DAY)).unwrap();
    offer(&mut device, world.sign(&again), up(2 * DAY)).unwrap();
    assert_eq!(offer(&mut device, world.sign(&rotated), up(4 * DAY)), Err(TrustError::Unannounced));
    assert_eq!(offer(&mut device, world.sign(&rotated), up(5 * DAY)), Ok(true));
}

#[test]
fn a_refused_statement_announces_nothing() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let sudden = world.sign(&world.after(&first, vec![key(0, Retired), key(1, Active)]));
    for days in [0, 3, 30] {
        assert_eq!(offer(&mut device, sudden.clone(), up(days * DAY)), Err(TrustError::Unannounced));
    }
}

#[test]
fn a_key_listed_active_beside_the_good_one_is_not_used_before_its_time_nor_let_in_by_the_next_statement() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let beside = world.after(&first, vec![key(0, Active), key(1, Active)]);
    assert_eq!(offer(&mut device, world.sign(&beside), up(0)), Ok(true));
    assert_eq!(sealing_to(&device, up(0)), Ok(0), "although the other became valid later");
    let alone = world.sign(&world.after(&beside, vec![key(0, Retired), key(1, Active)]));
    assert_eq!(offer(&mut device, alone.clone(), up(0)), Err(TrustError::Unannounced));
    device = Device::restore(&device.encode(up(0))).unwrap();
    assert_eq!(offer(&mut device, alone.clone(), up(HOLD_DOWN - 1)), Err(TrustError::Unannounced));
    assert_eq!(offer(&mut device, alone, up(HOLD_DOWN)), Ok(true));
}

#[test]
fn the_same_statement_offered_again_after_the_hold_down_moves_to_the_newer_key() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let both = world.sign(&world.after(&first, vec![key(0, Active), key(1, Active)]));
    offer(&mut device, both.clone(), up(0)).unwrap();
    assert_eq!(sealing_to(&device, up(0)), Ok(0));
    let bundle = Bundle { roots: vec![], statement: Some(both), spkis: spkis() };
    let accepted = device.apply(&bundle, up(HOLD_DOWN)).unwrap().statement.unwrap();
    assert!(!accepted.new && accepted.key_changed);
    assert_eq!(sealing_to(&device, up(HOLD_DOWN)), Ok(1));
}

#[test]
fn a_new_vehicle_uses_its_first_statement_and_the_key_that_became_valid_last() {
    let world = World::new();
    let mut device = world.device();
    let mut statement = world.statement();
    statement.keys = vec![key(0, Active), key(2, Active), key(1, Active), key(3, Next)];
    offer(&mut device, world.sign(&statement), up(0)).unwrap();
    assert_eq!(sealing_to(&device, up(0)), Ok(2));
}

#[test]
fn of_two_keys_that_became_valid_together_the_first_listed_is_used() {
    let world = World::new();
    let mut device = world.device();
    let mut statement = world.statement();
    statement.keys = vec![key(2, Active), key(1, Active)];
    statement.keys[1].not_before = statement.keys[0].not_before;
    offer(&mut device, world.sign(&statement), up(0)).unwrap();
    assert_eq!(sealing_to(&device, up(0)), Ok(2));
}

#[test]
fn without_a_hold_down_a_new_key_is_used_at_once() {
    let world = World::new();
    let mut root = world.root();
    root.policy.hold_down_s = 0;
    let mut device = world.device_with(&root);
    let first = world.statement();
    offer(&mut device, world.sign(&first), up(0)).unwrap();
    let sudden = world.after(&first, vec![key(0, Retired), key(1, Active)]);
    assert_eq!(offer(&mut device, world.sign(&sudden), up(0)), Ok(true));
}

#[test]
fn the_root_threshold_may_co_sign_a_sudden_key() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let sudden = world.after(&first, vec![key(0, Revoked), key(1, Active)]);
    let one_holder = sign(&sudden, &[&world.signer, &world.holders[0]]);
    assert_eq!(offer(&mut device, one_holder, up(0)), Err(TrustError::Unannounced));
    let without_signer = sign(&sudden, &[&world.holders[0], &world.holders[1]]);
    assert_eq!(offer(&mut device, without_signer, up(0)), Err(TrustError::Threshold));
    let bundle = Bundle { roots: vec![], statement: Some(world.cosign(&sudden)), spkis: spkis() };
    let accepted = device.apply(&bundle, up(0)).unwrap().statement.unwrap();
    assert!(accepted.cosigned && accepted.new && accepted.key_changed);
    assert_eq!(sealing_to(&device, up(0)), Ok(1));
}

#[test]
fn a_status_never_falls_and_a_revocation_vanishes_only_into_the_denylist() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let revoked = world.after(&first, vec![key(0, Revoked), key(1, Active)]);
    offer(&mut device, world.cosign(&revoked), up(0)).unwrap();
    for back in [Next, Active, Retired] {
        let undone = world.after(&revoked, vec![key(0, back), key(1, Active)]);
        assert_eq!(offer(&mut device, world.cosign(&undone), up(0)), Err(TrustError::KeyTransition));
    }
    let vanished = world.after(&revoked, vec![key(1, Active)]);
    assert_eq!(offer(&mut device, world.sign(&vanished), up(0)), Err(TrustError::KeyTransition));
    let denied = RootFields { denylist: vec![fingerprint(0)], ..world.after_root(&world.root()) };
    offer_root(&mut device, world.sign_root(&denied), up(0)).unwrap();
    assert_eq!(offer(&mut device, world.sign(&vanished), up(0)), Ok(true));
}

#[test]
fn a_retired_key_may_be_left_out() {
    let world = World::new();
    let mut device = world.device();
    let mut first = world.statement();
    first.keys.push(key(1, Retired));
    offer(&mut device, world.sign(&first), up(0)).unwrap();
    assert_eq!(offer(&mut device, world.sign(&world.after(&first, vec![key(0, Active)])), up(0)), Ok(true));
}

#[test]
fn a_raised_epoch_forgets_what_a_stolen_statement_key_has_poisoned() {
    let world = World::new();
    let (mut device, _) = world.enrolled();
    let mut poison = world.statement();
    poison.sequence = 1 << 63;
    poison.issued_at = UnixTime(T0 + 3 * YEAR - DAY);
    poison.refresh_by = poison.issued_at;
    poison.expires_at = poison.issued_at.plus(YEAR);
    offer(&mut device, world.sign(&poison), up(0)).unwrap();
    assert_eq!(device.now_lower_bound(up(0)), poison.issued_at);
    let rescue = world.raised_epoch(&world.root());
    offer_root(&mut device, world.sign_root(&rescue), up(60)).unwrap();
    assert_eq!(device.now_lower_bound(up(60)), rescue.issued_at);
    assert_eq!((device.version(), device.status(up(60))), ((2, 0), Status::NoKey));
    assert!(device.needs_cosignature());
}

#[test]
fn the_first_statement_of_a_raised_epoch_must_be_co_signed_whatever_the_hold_down() {
    let world = World::new();
    for hold_down_s in [0, HOLD_DOWN] {
        for enrolled_before in [true, false] {
            let mut root = world.root();
            root.policy.hold_down_s = hold_down_s;
            let mut device = world.device_with(&root);
            if enrolled_before {
                offer(&mut device, world.sign(&world.statement()), up(0)).unwrap();
            }
            let raised = world.raised_epoch(&root);
            offer_root(&mut device, world.sign_root(&raised), up(0)).unwrap();
            let first = world.first_under(&raised);
            for _ in 0..2 {
                assert_eq!(
                    offer(&mut device, world.sign(&first), up(10 * DAY)),
                    Err(TrustError::Unannounced)
                );
                device = Device::restore(&device.encode(up(0))).unwrap();
            }
            assert_eq!(offer(&mut device, world.cosign(&first), up(0)), Ok(true));
            let second = world.after(&first, first.keys.clone());
            assert_eq!(offer(&mut device, world.sign(&second), up(0)), Ok(true), "the second need not be");
        }
    }
}

#[test]
fn a_later_root_of_the_same_epoch_does_not_lift_the_need_for_co_signing() {
    let world = World::new();
    let (mut device, _) = world.enrolled();
    let raised = world.raised_epoch(&world.root());
    let next = world.after_root(&raised);
    offer_root(&mut device, world.sign_root(&raised), up(0)).unwrap();
    offer_root(&mut device, world.sign_root(&next), up(0)).unwrap();
    assert_eq!(
        offer(&mut device, world.sign(&world.first_under(&next)), up(0)),
        Err(TrustError::Unannounced)
    );
}

#[test]
fn a_root_of_the_same_epoch_keeps_statement_and_announcements() {
    let world = World::new();
    let (mut device, first) = world.enrolled();
    let announced = world.after(&first, vec![key(0, Active), key(1, Next)]);
    offer(&mut device, world.sign(&announced), up(0)).unwrap();
    offer_root(&mut device, world.sign_root(&world.after_root(&world.root())), up(DAY)).unwrap();
    let rotated = world.after(&announced, vec![key(0, Retired), key(1, Active)]);
    assert_eq!(offer(&mut device, world.sign(&rotated), up(HOLD_DOWN)), Ok(true));
}
