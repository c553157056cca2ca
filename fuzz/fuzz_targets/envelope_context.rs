//! A context that is read is serialised to the same bytes again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pithead_sealing::envelope::Context;

fuzz_target!(|data: &[u8]| {
    if let Ok(context) = Context::parse(Bytes::copy_from_slice(data)) {
        let again = Context::from_pairs(context.iter()).expect("what was read can be written");
        assert_eq!(again.as_bytes(), data);
        assert_eq!(context.iter().count(), context.pairs());
    }
});
