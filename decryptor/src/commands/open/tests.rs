//! Files in, files out, and nothing left of what was refused.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use pithead_sealing::trust::VerifiedKey;

use super::*;
use crate::authority::testing::{TestAuthority, TestKey, seal, session};
use crate::commands::inspect;

struct World {
    authority: TestAuthority,
    key: TestKey,
    verified: VerifiedKey,
}

async fn world() -> World {
    let (authority, key, verified) = TestAuthority::with_key().await;
    World { authority, key, verified }
}

fn args_for(output: PathBuf) -> Args {
    Args {
        file: None,
        openssl: None,
        pbkdf2: false,
        iterations: NonZeroU32::MIN,
        output,
        private_key: None,
        key: None,
    }
}

impl World {
    fn envelope(&self, plaintext: &[u8], encoding: Option<Encoding>) -> Bytes {
        seal(&mut session(&self.verified, "can", encoding), 1, plaintext)
    }

    async fn open(&self, envelope: &[u8]) -> Result<Vec<u8>, ProgramError> {
        let folder = self.authority.folder.path();
        let (file, output) = (folder.join("envelope"), folder.join("out/plain"));
        std::fs::create_dir_all(folder.join("out")).unwrap();
        std::fs::write(&file, envelope).unwrap();
        let _ = std::fs::remove_file(&output);
        let args = args_for(output);
        let opened = open(&args, &file, &LocalKeys::for_any_arn(&self.key.pem).unwrap()).await;
        let left = std::fs::read_dir(folder.join("out")).unwrap().count();
        assert_eq!(left, usize::from(opened.is_ok()), "nothing but a complete plaintext stays");
        opened.map(|_| std::fs::read(&args.output).unwrap())
    }
}

#[tokio::test]
async fn envelopes_of_all_sizes_come_back() {
    let world = world().await;
    for length in [0, 1, 65_535, 65_536, 65_537, 5 << 20] {
        let plaintext: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        assert!(world.open(&world.envelope(&plaintext, None)).await.unwrap() == plaintext, "{length}");
    }
}

#[tokio::test]
async fn compressed_content_is_inflated_within_its_limit() {
    let world = world().await;
    let plaintext: Vec<u8> =
        (0..2_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3] / 16).collect();
    let compressed = zstd::stream::encode_all(plaintext.as_slice(), 3).unwrap();
    let envelope = world.envelope(&compressed, Some(Encoding::Zstd));
    assert!(world.open(&envelope).await.unwrap() == plaintext);

    let bomb = zstd::stream::encode_all(vec![0; 50_000_000].as_slice(), 3).unwrap();
    let error = world.open(&world.envelope(&bomb, Some(Encoding::Zstd))).await.unwrap_err();
    assert_eq!((error.reason, error.exit), (ErrorReason::InflateLimit, ExitCode::FAILED));
    let error = world.open(&world.envelope(b"not zstd", Some(Encoding::Zstd))).await.unwrap_err();
    assert_eq!(error.reason, ErrorReason::ContentMalformed);
}

#[tokio::test]
async fn every_refusal_has_its_code_ends_with_1_and_leaves_nothing() {
    let world = world().await;
    let good = world.envelope(&[7; 100_000], None).to_vec();
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let header = Opening::begin(&Bytes::from(good.clone())).unwrap().header().wire_len();
    let cases = [
        (b"garbage".to_vec(), ErrorReason::EnvelopeUnsupportedVersion),
        (Vec::new(), ErrorReason::EnvelopeTruncated),
        (good[..header - 1].to_vec(), ErrorReason::EnvelopeTruncated),
        (good[..good.len() - 1].to_vec(), ErrorReason::EnvelopeTruncated),
        ([&good[..], &[0]].concat(), ErrorReason::EnvelopeTrailing),
        (changed(2), ErrorReason::EnvelopeUnsupportedSuite),
        (changed(10), ErrorReason::EnvelopeCommitment),
        (changed(header - 1), ErrorReason::EnvelopeHeaderTag),
        (changed(header + 3), ErrorReason::EnvelopeSequence),
        (changed(header + 10), ErrorReason::EnvelopeIv),
        (changed(header + 100), ErrorReason::EnvelopeFrameTag),
        (changed(good.len() - 1), ErrorReason::EnvelopeFrameTag),
    ];
    for (bytes, reason) in cases {
        let error = world.open(&bytes).await.unwrap_err();
        assert_eq!((error.reason, error.exit), (reason, ExitCode::FAILED), "{error}");
        assert!(error.todo.is_some(), "{reason:?} says what to do");
    }
    let trailing = world.open(&[&good[..], &[0]].concat()).await.unwrap_err();
    assert!(trailing.to_string().starts_with("error[PH-2012] ENVELOPE_TRAILING: "), "{trailing}");
}

#[tokio::test]
async fn a_wrong_key_and_a_key_that_is_not_wanted_are_refused() {
    let world = world().await;
    let envelope = world.envelope(b"x", None);
    let folder = world.authority.folder.path();
    let file = folder.join("envelope");
    std::fs::write(&file, &envelope).unwrap();
    let args = |key| Args { key, ..args_for(folder.join("plain")) };
    let stranger = LocalKeys::for_any_arn(&world.authority.key(2).pem).unwrap();
    let error = open(&args(None), &file, &stranger).await.unwrap_err();
    assert_eq!(error.reason, ErrorReason::KmsInvalidCiphertext);
    let right = LocalKeys::for_any_arn(&world.key.pem).unwrap();
    let error = open(&args(Some(crate::authority::testing::arn(2))), &file, &right).await.unwrap_err();
    assert_eq!(error.reason, ErrorReason::KeyNotAllowed);
    assert!(!folder.join("plain").exists());
    let report = open(&args(Some(world.key.arn.clone())), &file, &right).await.unwrap();
    assert!(
        report
            .lines
            .iter()
            .any(|(name, value)| *name == "identity" && value.starts_with("pit-7/truck-1/can/"))
    );
}

#[tokio::test]
async fn an_envelope_is_inspected_without_a_key() {
    let world = world().await;
    let envelope = world.envelope(&[7; 70_000], None);
    let seen = inspect::as_json(&inspect::inspect(&mut &envelope[..]).unwrap());
    assert_eq!(seen["identity"]["device"], "truck-1");
    assert_eq!(seen["identity"]["seq"], 1);
    assert_eq!(seen["context"]["pithead:site"], "pit-7");
    assert_eq!(seen["edks"][0]["key"], world.key.arn.as_str());
    assert_eq!(
        (&seen["structure"]["frames"], &seen["structure"]["plaintext_bytes"]),
        (&2.into(), &70_000.into())
    );

    let trailing = [&envelope[..], &[0]].concat();
    let seen = inspect::as_json(&inspect::inspect(&mut &trailing[..]).unwrap());
    assert_eq!(seen["structure"]["class"], "trailing");
    assert_eq!(seen["identity"]["device"], "truck-1", "the header is shown all the same");
    let seen = inspect::as_json(&inspect::inspect(&mut &b"garbage"[..]).unwrap());
    assert_eq!(seen["structure"]["class"], "unsupported-version");
    assert!(seen.get("identity").is_none());
}
