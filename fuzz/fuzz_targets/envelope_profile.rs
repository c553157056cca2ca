//! The profile never panics, and an admitted envelope reads back as itself.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
use pithead_sealing::envelope::{Context, SealedEnvelope, check};

fuzz_target!(|input: (Vec<(String, String)>, [u8; 32], Vec<u8>)| {
    let (pairs, message_id, provider_info) = input;
    let Ok(context) = Context::from_pairs(pairs) else { return };
    let message = FixedMessage {
        context,
        edks: vec![FixedEdk::Literal {
            provider_id: b"aws-kms-rsa".to_vec(),
            provider_info,
            ciphertext: vec![0; 256],
        }],
        frame_length: 65_536,
        data_key: [0; 32],
        message_id,
        empty_final_frame: false,
    };
    let Ok(sealed) = message.seal(b"") else { return };
    let sealed = Bytes::from(sealed);
    let Ok(checked) = check(sealed.clone()) else { return };
    if let Ok(admitted) = checked.admit(|_| true) {
        let again = SealedEnvelope::read(sealed).expect("what is admitted once is admitted again");
        assert_eq!(again.identity(), admitted.identity());
    }
});
