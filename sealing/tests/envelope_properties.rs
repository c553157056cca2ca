//! What must hold of every envelope, whatever its plaintext and whatever is done to it.
#![cfg(feature = "open")]
#![allow(clippy::unwrap_used)]

mod envelope_support;

use std::sync::LazyLock;

use bytes::Bytes;
use envelope_support::*;
use pithead_sealing::envelope::dangerous::{FixedEdk, FixedMessage};
use pithead_sealing::envelope::open::Opening;
use pithead_sealing::envelope::{Context, Header, StructureChecker, Unwrapped, check};
use proptest::prelude::*;

const FRAME: u32 = 128;

/// A message of short frames, sealed like the others but for its id.
fn message(id: u8, empty_final_frame: bool) -> FixedMessage {
    FixedMessage {
        context: Context::from_pairs([("pithead:v", "1"), ("a", "b")]).unwrap(),
        edks: vec![FixedEdk::Wrap {
            provider_info: KEY.arn.to_string(),
            spki_der: KEY.spki_der.clone(),
            oaep_seed: [9; 32],
        }],
        frame_length: FRAME,
        data_key: [5; 32],
        message_id: [id; 32],
        empty_final_frame,
    }
}

fn plaintext(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

static SEALED: LazyLock<Vec<u8>> = LazyLock::new(|| message(1, false).seal(&plaintext(300)).unwrap());

/// As an attacker would have the gateway see it, cut at will.
fn check_in_chunks(bytes: &[u8], chunks: &[usize], declared: bool) -> Result<u64, &'static str> {
    let mut checker = match declared {
        true => StructureChecker::with_declared_len(bytes.len() as u64),
        false => StructureChecker::new(),
    };
    let mut rest = bytes;
    let mut chunks = chunks.iter().cycle();
    while !rest.is_empty() {
        let (now, later) = rest.split_at((*chunks.next().unwrap_or(&1)).clamp(1, rest.len()));
        checker.push(now).map_err(|error| error.class())?;
        rest = later;
    }
    checker.finish().map(|(_, structure)| structure.plaintext_len).map_err(|error| error.class())
}

fn open_in_chunks(bytes: &[u8], chunks: &[usize]) -> Result<Vec<u8>, &'static str> {
    let opening = Opening::begin(&Bytes::copy_from_slice(bytes)).map_err(|error| error.class())?;
    let at = opening.header().wire_len();
    let chosen = opening.choose(|arn| *arn == KEY.arn).map_err(|error| error.class().unwrap())?;
    let unwrapped = KEY.unwrap(chosen.edk()).ok_or("edk")?;
    let mut body = chosen.unlock(&unwrapped).map_err(|error| error.class())?.into_body();
    let mut released = Vec::new();
    let mut rest = &bytes[at..];
    let mut chunks = chunks.iter().cycle();
    while !rest.is_empty() {
        let (mut now, later) = rest.split_at((*chunks.next().unwrap_or(&1)).clamp(1, rest.len()));
        while let Some(content) = body.push(&mut now).map_err(|error| error.class())? {
            released.extend_from_slice(content);
        }
        rest = later;
    }
    body.finish().map_err(|error| error.class())?;
    Ok(released)
}

const KEY_CLASSES: [&str; 4] = ["edk", "commitment", "header-tag", "frame-tag"];

/// Every reader says the same, whole or in pieces; without a key the same, as far as it can see.
fn verdict(bytes: &[u8], chunks: &[usize]) -> Result<Vec<u8>, &'static str> {
    let envelope = Bytes::copy_from_slice(bytes);
    let whole = KEY.open(&envelope).map(|opened| opened.plaintext).map_err(|error| error.class().unwrap());
    assert_eq!(open_in_chunks(bytes, chunks), whole);
    let keyless =
        check(envelope).map(|checked| checked.structure().plaintext_len).map_err(|error| error.class());
    assert_eq!(check_in_chunks(bytes, chunks, false), keyless);
    let declared = check_in_chunks(bytes, chunks, true);
    assert_eq!(declared.is_ok(), keyless.is_ok());
    match (&whole, keyless) {
        (Ok(plaintext), keyless) => assert_eq!(keyless, Ok(plaintext.len() as u64)),
        (Err(class), Ok(_)) => assert!(KEY_CLASSES.contains(class), "{class}"),
        (Err(class), Err(keyless)) => {
            assert!(*class == keyless || KEY_CLASSES.contains(class), "{class} {keyless}")
        }
    }
    whole
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_sealed_opens_to_the_same(len in 0usize..1_000, id: u8, empty: bool, chunks in prop::collection::vec(1usize..400, 1..5)) {
        let sealed = message(id, empty).seal(&plaintext(len)).unwrap();
        prop_assert_eq!(verdict(&sealed, &chunks), Ok(plaintext(len)));
        let header = Header::parse(&Bytes::copy_from_slice(&sealed)).unwrap();
        prop_assert_eq!(header.sizes().of_total(sealed.len() as u64).unwrap().plaintext_len, len as u64);
        if !empty {
            prop_assert_eq!(header.sizes().total(len as u64), Some(sealed.len() as u64));
        }
    }

    #[test]
    fn any_single_bit_flip_is_refused(at in 0..SEALED.len(), bit in 0u8..8, chunk in 1usize..400) {
        let mut bytes = SEALED.clone();
        bytes[at] ^= 1 << bit;
        prop_assert!(verdict(&bytes, &[chunk]).is_err());
    }

    #[test]
    fn any_truncation_is_refused_without_a_key(len in 0..SEALED.len(), chunk in 1usize..400) {
        prop_assert_eq!(verdict(&SEALED[..len], &[chunk]), Err("truncated"));
        prop_assert_eq!(check_in_chunks(&SEALED[..len], &[chunk], false), Err("truncated"));
    }

    #[test]
    fn a_check_that_is_taken_up_again_says_what_an_unbroken_one_says(
        len in 0usize..1_000,
        empty: bool,
        stop in 0usize..2_000,
        flip in prop::option::of(0usize..2_000),
        chunk in 1usize..400,
    ) {
        let mut bytes = message(1, empty).seal(&plaintext(len)).unwrap();
        let header = Header::parse(&Bytes::copy_from_slice(&bytes)).unwrap();
        let stop = (header.wire_len() + stop).min(bytes.len());
        // What comes behind the stop may be anything; what lies before it went through a checker.
        if let Some(flip) = flip.map(|flip| stop + flip).filter(|flip| *flip < bytes.len()) {
            bytes[flip] ^= 0x40;
        }
        let unbroken = check_in_chunks(&bytes, &[chunk], true);
        let (mut checker, at) = StructureChecker::resume(header, bytes.len() as u64, stop as u64).unwrap();
        let at = usize::try_from(at).unwrap();
        prop_assert!(at <= stop && stop - at < FRAME as usize + 41);
        let resumed = bytes[at..].chunks(chunk).try_for_each(|chunk| checker.push(chunk)).and_then(|()| checker.finish());
        let resumed = resumed.map(|(_, structure)| structure).map_err(|error| error.class());
        prop_assert_eq!(resumed.map(|structure| (structure.plaintext_len, structure.total_len)), unbroken.map(|len| (len, bytes.len() as u64)));
    }

    #[test]
    fn any_trailing_byte_is_refused_without_a_key(more in prop::collection::vec(any::<u8>(), 1..100), chunk in 1usize..400) {
        let bytes = [&SEALED[..], &more].concat();
        prop_assert_eq!(verdict(&bytes, &[chunk]), Err("trailing"));
        prop_assert_eq!(check_in_chunks(&bytes, &[chunk], false), Err("trailing"));
    }

    #[test]
    fn a_splice_of_two_messages_of_one_session_is_refused(cut in 0..SEALED.len(), from in 0..SEALED.len(), chunk in 1usize..400) {
        let other = message(2, false).seal(&plaintext(300)).unwrap();
        let bytes = [&SEALED[..cut], &other[from..]].concat();
        if bytes != *SEALED && bytes != other {
            prop_assert!(verdict(&bytes, &[chunk]).is_err());
        }
    }

    #[test]
    fn a_part_taken_out_or_repeated_is_refused(a in 0..SEALED.len(), b in 0..SEALED.len(), chunk in 1usize..400) {
        let bytes = [&SEALED[..a], &SEALED[b..]].concat();
        prop_assert!(a == b || verdict(&bytes, &[chunk]).is_err());
    }

    #[test]
    fn readers_agree_on_bytes_from_anywhere(bytes in prop::collection::vec(any::<u8>(), 0..400), keep in 0usize..500, chunk in 1usize..50) {
        // Noise behind a true beginning: noise alone does not get past the version.
        let bytes = [&SEALED[..keep.min(SEALED.len())], &bytes].concat();
        prop_assert!(verdict(&bytes, &[chunk]).is_err() || bytes == *SEALED);
    }

    #[test]
    fn a_context_reads_back_as_it_was_built(pairs in prop::collection::btree_map(".{0,20}", ".{0,20}", 0..8)) {
        let context = Context::from_pairs(&pairs).unwrap();
        prop_assert_eq!(Context::parse(Bytes::copy_from_slice(context.as_bytes())).unwrap(), context.clone());
        prop_assert!(context.iter().eq(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))));
    }

    #[test]
    fn a_stream_is_sealed_as_the_whole_is(len in prop::sample::select(vec![0usize, 1, 65_535, 65_536, 65_537, 131_072, 200_000]), chunk in 1usize..150_000) {
        let text = plaintext(len);
        let whole = session(1).seal(seq(7), &text, CLOCK.boot, &mut Counter(50)).unwrap();
        prop_assert_eq!(session(1).sealed_len(len as u64), Some(whole.bytes().len() as u64));

        let mut sealer = session(1).seal_stream(seq(7), CLOCK.boot, &mut Counter(50)).unwrap();
        let mut pushed = sealer.header().to_vec();
        for mut piece in text.chunks(chunk) {
            while let Some(frame) = sealer.push(&mut piece).unwrap() {
                pushed.extend_from_slice(frame);
            }
        }
        let end = sealer.finish(|frame| { pushed.extend_from_slice(frame); Ok::<(), ()>(()) }).unwrap();
        prop_assert!(pushed == whole.bytes()[..]);
        prop_assert_eq!((end.plaintext_len, end.sealed_len), (len as u64, pushed.len() as u64));

        let mut written = Vec::new();
        let sealer = session(1).seal_stream(seq(7), CLOCK.boot, &mut Counter(50)).unwrap();
        prop_assert_eq!(sealer.seal_all(&mut &text[..], &mut written).unwrap(), end);
        prop_assert!(written == pushed);
        prop_assert!(KEY.open(&written.into()).unwrap().plaintext == text);
    }
}

#[test]
fn a_cached_data_key_serves_only_its_own_context() {
    let unwrapped_for =
        |context: &Context| Unwrapped::read(&[&context.digest().as_bytes()[..], &[5; 32]].concat()).unwrap();
    let sealed = Bytes::from(SEALED.clone());
    let chosen = || Opening::begin(&sealed).unwrap().choose(|_| true).unwrap();
    let own = chosen().header().context().clone();
    assert!(chosen().unlock(&unwrapped_for(&own)).is_ok());
    assert_eq!(chosen().unlock(&unwrapped_for(&Context::EMPTY)).unwrap_err().class(), "edk");
}

#[test]
fn frames_of_every_allowed_length_open_in_pieces() {
    for frame_length in [128, 65_536, 1 << 20] {
        let message = FixedMessage { frame_length, ..message(3, false) };
        let text = plaintext(frame_length as usize * 2 + 5);
        let sealed = message.seal(&text).unwrap();
        assert!(open_in_chunks(&sealed, &[70_001]) == Ok(text));
    }
    for frame_length in [0, 127, (1 << 20) + 1] {
        let sealed =
            FixedMessage { frame_length: frame_length.max(1), ..message(3, false) }.seal(b"").unwrap();
        let class = check(sealed.into()).unwrap_err().class();
        assert_eq!(class, "malformed-header");
    }
}

#[test]
fn a_provider_that_is_not_ours_is_skipped_and_one_of_ours_must_be_there() {
    let foreign = |id: &str| FixedEdk::Literal {
        provider_id: id.as_bytes().to_vec(),
        provider_info: vec![0xff],
        ciphertext: vec![1, 2, 3],
    };
    let mut message = message(4, false);
    message.edks.insert(0, foreign("raw"));
    assert_eq!(verdict(&message.seal(b"text").unwrap(), &[5]), Ok(b"text".to_vec()));
    message.edks.insert(0, foreign("aws-kms-rs"));
    assert_eq!(verdict(&message.seal(b"text").unwrap(), &[5]), Ok(b"text".to_vec()));
    message.edks.insert(0, foreign(""));
    assert_eq!(verdict(&message.seal(b"text").unwrap(), &[5]), Err("malformed-header"));
    message.edks = vec![foreign("raw")];
    assert_eq!(verdict(&message.seal(b"text").unwrap(), &[5]), Err("edk"));
    message.edks = vec![foreign("aws-kms-rsa")];
    assert_eq!(verdict(&message.seal(b"text").unwrap(), &[5]), Err("edk"));
}

#[test]
fn an_edk_that_names_its_key_by_no_arn_is_passed_over_for_one_that_does() {
    for info in [&b"\xff"[..], b"alias/mine", b""] {
        let mut message = message(5, false);
        message.edks.insert(
            0,
            FixedEdk::Literal {
                provider_id: b"aws-kms-rsa".to_vec(),
                provider_info: info.to_vec(),
                ciphertext: vec![0; 256],
            },
        );
        assert_eq!(verdict(&message.seal(b"text").unwrap(), &[5]), Ok(b"text".to_vec()));
        message.edks.truncate(1);
        assert_eq!(verdict(&message.seal(b"text").unwrap(), &[5]), Err("edk"));
    }
}
