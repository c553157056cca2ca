//! The power goes before every single write of one life, one after the other, and again while the spool is opened after that.

use super::*;

/// Rolls, recycles, acknowledges and fills both lanes: every kind of write there is.
fn script() -> Vec<Step> {
    let append = |lane, sizes: &[u16]| Step::Append { lane, sizes: sizes.to_vec() };
    let mut steps = Vec::new();
    for round in 0..7 {
        steps.extend([
            append(0, &[900, 3_000, 40]),
            append(1, &[7_000]),
            Step::Commit,
            append(0, &[12_000, 200 * round]),
            append(0, &[5_000]),
            Step::Commit,
            Step::Prepare,
            Step::Acknowledge { lane: 0, part: 200 },
            Step::Acknowledge { lane: 1, part: 255 },
        ]);
        if round % 2 == 0 {
            steps.push(Step::SaveCursors);
        }
    }
    steps
}

/// Lives the script until the power goes. False if it outlived it.
fn cut_at(seed: u64, operation: u64) -> (Life, bool) {
    let mut life = Life::new(seed);
    life.fs.disk().cut_after = Some(operation);
    for step in script() {
        life.take(&step);
    }
    let cut = life.fs.disk().is_dead();
    (life, cut)
}

#[test]
fn power_that_goes_before_any_write_of_a_life_costs_nothing_that_was_promised() {
    let seeds = if cases(0) == 0 { 3 } else { 100 };
    let mut operation = 0;
    loop {
        let mut cut = false;
        for seed in 0..seeds {
            let (mut life, was_cut) = cut_at(seed, operation);
            cut |= was_cut;
            life.restart(true);
            // The books go on from what came back.
            life.take(&Step::Append { lane: 0, sizes: vec![100] });
            life.take(&Step::Commit);
            life.restart(true);
        }
        operation += 1;
        if !cut {
            break;
        }
    }
    assert!(operation > 60, "the script has some {operation} writes, and there should be many");
}

#[test]
fn power_that_goes_before_any_write_of_a_recovery_costs_nothing_that_was_promised() {
    for seed in 0..if cases(0) == 0 { 2 } else { 50 } {
        for operation in (0..250).step_by(7) {
            for again in 0..24 {
                let (mut life, _) = cut_at(seed, operation);
                life.take(&Step::CrashAndCutInRecovery(again));
                life.restart(true);
            }
        }
    }
}
