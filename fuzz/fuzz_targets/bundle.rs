//! See tests/tests/mutations/targets.rs, where it says what must hold.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/tests/mutations/targets.rs"]
mod targets;

fuzz_target!(|data: &[u8]| targets::bundle(data));
