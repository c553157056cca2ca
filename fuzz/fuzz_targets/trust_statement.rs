//! Whatever is read as a statement, or as an RSA key, has exactly one encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pithead_sealing::trust::{RsaSpki, Sha256Digest, StatementFields};

fuzz_target!(|data: &[u8]| {
    if let Ok((statement, digest)) = StatementFields::read_unverified(data) {
        let payload = statement.encode();
        assert_eq!(Sha256Digest::of(&payload), digest);
        assert!(data.windows(payload.len()).any(|window| window == payload));
    }
    if let Ok(key) = RsaSpki::from_der(data) {
        assert_eq!(key.der(), data);
        assert!(key.bits() as usize <= key.modulus().len() * 8 && key.modulus()[0] != 0);
    }
});
