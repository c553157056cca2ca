//! The opener releases the same, whole or in pieces, and never what the key-less check refuses.
#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
use pithead_sealing::envelope::{Context, FormatError, Opening, Unwrapped, check};

const DATA_KEY: [u8; 32] = [7; 32];

/// An envelope that opens, so that mutations reach behind its header.
static SEALED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let edk = FixedEdk::Literal {
        provider_id: b"aws-kms-rsa".to_vec(),
        provider_info: b"arn:aws:kms:eu-west-1:111122223333:key/a".to_vec(),
        ciphertext: vec![1; 256],
    };
    let message = FixedMessage {
        context: Context::EMPTY,
        edks: vec![edk],
        frame_length: 128,
        data_key: DATA_KEY,
        message_id: [3; 32],
        empty_final_frame: false,
    };
    message.seal(&[9; 300]).expect("a literal EDK needs no wrapping")
});

fn unlocked(envelope: &Bytes) -> Option<(usize, pithead_sealing::envelope::open::Unlocked)> {
    let chosen = Opening::begin(envelope).ok()?.choose(|_| true).ok()?;
    let digest = chosen.header().context().digest();
    let unwrapped = Unwrapped::read(&[&digest.as_bytes()[..], &DATA_KEY].concat()).ok()?;
    let unlocked = chosen.unlock(&unwrapped).ok()?;
    Some((unlocked.header().wire_len(), unlocked))
}

fn in_pieces(envelope: &Bytes, chunk: usize) -> Option<Result<Vec<u8>, FormatError>> {
    let (at, unlocked) = unlocked(envelope)?;
    let mut body = unlocked.into_body();
    let mut released = Vec::new();
    for mut piece in envelope[at..].chunks(chunk) {
        loop {
            match body.push(&mut piece) {
                Ok(Some(content)) => released.extend_from_slice(content),
                Ok(None) => break,
                Err(error) => return Some(Err(error)),
            }
        }
    }
    Some(body.finish().map(|_| released))
}

fuzz_target!(|input: (bool, u16, u8, &[u8])| {
    let (behind_header, keep, chunk, data) = input;
    let mut bytes = data.to_vec();
    if behind_header {
        bytes = SEALED[..usize::from(keep).min(SEALED.len())].to_vec();
        bytes.extend_from_slice(data);
    }
    let envelope = Bytes::from(bytes);
    let Some((at, opened)) = unlocked(&envelope) else { return };
    let whole = opened.open_body(&envelope[at..]);
    assert_eq!(in_pieces(&envelope, usize::from(chunk) + 1), Some(whole.clone()));
    if whole.is_ok() {
        assert!(check(envelope).is_ok());
    }
});
