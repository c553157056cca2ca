//! `open --openssl DATA KEY -o OUT`: the pair of files that openssl makes by hand, back to its plaintext.
//!
//! ```text
//! openssl rand -base64 32 > key.b64
//! openssl enc -aes-256-ctr [-pbkdf2] -pass file:key.b64 -in PLAIN -out DATA
//! openssl pkeyutl -encrypt ... rsa_padding_mode:oaep rsa_oaep_md:sha256 -in key.b64 -out KEY
//!
//! DATA:  "Salted__" | salt, 8 bytes | AES-256-CTR of PLAIN
//! ```
//!
//! What openssl takes for the password is the first line of `key.b64`, not the 32 bytes that it stands for. From it and the
//! salt come key and counter: by PBKDF2 with HMAC-SHA-256, or, as `enc` does unasked, by one round of SHA-256
//! (`EVP_BytesToKey`).
//!
//! **CTR proves nothing.** A changed file opens to a changed plaintext, a wrong choice of derivation to noise, and a cut one to
//! less: nothing of that can be noticed here, and the answer says so. OUT still appears only when all of DATA was read and
//! written.

use std::fs;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use aws_lc_rs::cipher::{AES_256, DecryptionContext, StreamingDecryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::KeyArn;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{Report, Target, cannot_write, open_input, progress};
use crate::kms::{Kms, KmsTimeouts};
use crate::unwrap::{LocalKeys, UnwrapError};

const MAGIC: &[u8; 8] = b"Salted__";
const SALT_BYTES: usize = 8;
const KEY_BYTES: usize = 32;
const IV_BYTES: usize = 16;
const BLOCK_BYTES: usize = 16;
/// What openssl itself takes from one read, and memory that nobody misses.
const CHUNK_BYTES: usize = 64 * 1024;
/// The largest RSA key in KMS has 4,096 bits.
const KEY_FILE_MAX: u64 = 512;

/// How the password becomes a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Derivation {
    /// `openssl enc` without `-pbkdf2`.
    BytesToKey,
    /// `openssl enc -pbkdf2`, with that many iterations.
    Pbkdf2(NonZeroU32),
}

/// The pair, and where it goes.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) data: PathBuf,
    pub(super) key: PathBuf,
    pub(super) output: PathBuf,
    pub(super) derivation: Derivation,
}

/// Whoever does the private operation.
#[derive(Debug)]
pub(super) enum Opener {
    Local(LocalKeys),
    Kms(Kms, KeyArn),
}

impl Opener {
    /// The private key's file, or KMS with the key that is named: a wrapped key names none itself.
    pub(super) async fn choose(
        private_key: Option<&Path>,
        arn: Option<&KeyArn>,
    ) -> Result<Self, ProgramError> {
        match (private_key, arn) {
            (Some(path), _) => Ok(Self::Local(LocalKeys::for_any_arn(path)?)),
            (None, Some(arn)) => {
                Ok(Self::Kms(Kms::from_environment(KmsTimeouts::default()).await, arn.clone()))
            }
            (None, None) => Err(ProgramError::new(
                ErrorReason::ConfigInvalid,
                "openssl's files do not say which key wraps them",
            )
            .todo("name it with --key ARN, or give its file with --private-key")
            .exit(ExitCode::USAGE)),
        }
    }

    async fn decrypt(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        match self {
            Self::Local(keys) => keys.decrypt(wrapped).await,
            Self::Kms(kms, arn) => Ok(kms.decrypt(arn, wrapped).await?),
        }
    }
}

/// Opens it.
///
/// # Errors
/// A refusal with its code; there is no OUT then, or the one that was there before.
pub(super) async fn open(pair: Pair, opener: &Opener) -> Result<Report, ProgramError> {
    let wrapped = read_key(&pair.key)?;
    let password = opener.decrypt(&wrapped).await?;
    // Reading, opening and writing a file of any size: not on a thread that serves the runtime.
    tokio::task::spawn_blocking(move || write_plaintext(&pair, &password))
        .await
        .map_err(|_| ProgramError::new(ErrorReason::Internal, "the opening thread ended early"))?
}

fn read_key(path: &Path) -> Result<Vec<u8>, ProgramError> {
    let mut wrapped = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(KEY_FILE_MAX + 1).read_to_end(&mut wrapped));
    read.map_err(|error| unreadable(path, &error))?;
    if wrapped.len() as u64 > KEY_FILE_MAX {
        return Err(not_made_so(format!("{} is larger than a wrapped key", path.display())));
    }
    Ok(wrapped)
}

fn write_plaintext(pair: &Pair, password: &[u8]) -> Result<Report, ProgramError> {
    let (mut input, total) = open_input(&pair.data)?;
    let read = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            not_made_so(format!("{} ends within its first 16 bytes", pair.data.display()))
        }
        _ => unreadable(&pair.data, &error),
    };
    let (mut magic, mut salt) = ([0; MAGIC.len()], [0; SALT_BYTES]);
    input.read_exact(&mut magic).map_err(read)?;
    input.read_exact(&mut salt).map_err(read)?;
    if magic != *MAGIC {
        return Err(not_made_so(format!("{} does not begin with `Salted__`", pair.data.display())));
    }
    let mut cipher = first_line(password)
        .and_then(|line| cipher(line, &salt, pair.derivation).ok())
        .ok_or_else(|| not_made_so(format!("what {} wraps is no line of text", pair.key.display())))?;

    let bar = progress(total);
    let target = Target::create(&pair.output).map_err(|error| cannot_write(&pair.output, &error))?;
    let mut output = BufWriter::with_capacity(256 * 1024, &target.file);
    let mut sealed = vec![0; CHUNK_BYTES];
    let mut opened = Zeroizing::new(vec![0; CHUNK_BYTES + BLOCK_BYTES]);
    let mut written = 0;
    loop {
        let count = match input.read(&mut sealed) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(&pair.data, &error)),
        };
        let chunk = cipher
            .update(&sealed[..count], &mut opened)
            .map_err(|_| ProgramError::new(ErrorReason::Internal, "AES-CTR failed"))?;
        output.write_all(chunk.written()).map_err(|error| cannot_write(&pair.output, &error))?;
        written += count as u64;
        bar.set_position(written);
    }
    output.flush().map_err(|error| cannot_write(&pair.output, &error))?;
    drop(output);
    target.keep(&pair.output).map_err(|error| cannot_write(&pair.output, &error))?;
    bar.finish_and_clear();
    let derivation = match pair.derivation {
        Derivation::BytesToKey => "one round of SHA-256; files made with -pbkdf2 need --pbkdf2".to_owned(),
        Derivation::Pbkdf2(iterations) => format!("PBKDF2 with {iterations} iterations of HMAC-SHA-256"),
    };
    let lines = vec![
        ("sender", "unknown: whoever has the public key can have made it".to_owned()),
        ("derivation", derivation),
        (
            "integrity",
            "NONE: CTR does not show whether anything was changed, cut, or opened with the wrong key"
                .to_owned(),
        ),
        ("plaintext", format!("{written} B")),
    ];
    Ok(Report { lines, written })
}

/// As `-pass file:` reads it.
fn first_line(password: &[u8]) -> Option<&[u8]> {
    let line = password.split(|byte| *byte == b'\n').next()?;
    (!line.is_empty() && !line.contains(&0)).then_some(line)
}

fn cipher(
    password: &[u8],
    salt: &[u8; SALT_BYTES],
    derivation: Derivation,
) -> Result<StreamingDecryptingKey, Unspecified> {
    let mut derived = Zeroizing::new([0; KEY_BYTES + IV_BYTES]);
    match derivation {
        Derivation::Pbkdf2(iterations) => {
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut *derived);
        }
        Derivation::BytesToKey => {
            let first = Sha256::new().chain_update(password).chain_update(salt).finalize();
            let second =
                Sha256::new().chain_update(first).chain_update(password).chain_update(salt).finalize();
            derived[..KEY_BYTES].copy_from_slice(&first);
            derived[KEY_BYTES..].copy_from_slice(&second[..IV_BYTES]);
        }
    }
    let key = UnboundCipherKey::new(&AES_256, &derived[..KEY_BYTES])?;
    let counter: [u8; IV_BYTES] = derived[KEY_BYTES..].try_into().map_err(|_| Unspecified)?;
    StreamingDecryptingKey::ctr(key, DecryptionContext::Iv128(FixedLength::from(&counter)))
}

fn unreadable(path: &Path, error: &io::Error) -> ProgramError {
    ProgramError::new(ErrorReason::ConfigUnreadable, format!("cannot read {}: {error}", path.display()))
        .exit(ExitCode::FAILED)
}

fn not_made_so(what: String) -> ProgramError {
    ProgramError::new(ErrorReason::ContentMalformed, what)
        .affects("nothing was opened")
        .todo("give the file of `openssl enc -aes-256-ctr -pass file:` first, and that of `pkeyutl -encrypt` second")
        .exit(ExitCode::FAILED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::authority::testing::TestAuthority;
    use std::process::Command;

    const PBKDF2: Derivation = Derivation::Pbkdf2(NonZeroU32::new(10_000).unwrap());

    struct World {
        authority: TestAuthority,
        private: PathBuf,
    }

    impl World {
        /// The pair as openssl makes it; none where there is no openssl.
        fn new(plain: &[u8], enc: &[&str]) -> Option<Self> {
            let authority = TestAuthority::new();
            let private = authority.key(1).pem;
            let world = Self { authority, private };
            fs::write(world.path("plain"), plain).unwrap();
            let private = world.private.to_str().unwrap().to_owned();
            let runs = [
                vec!["rand", "-base64", "-out", "key.b64", "32"],
                [&["enc", "-aes-256-ctr"], enc, &["-pass", "file:key.b64", "-in", "plain", "-out", "data"]]
                    .concat(),
                vec!["pkey", "-in", &private, "-pubout", "-outform", "DER", "-out", "public.der"],
                "pkeyutl -encrypt -in key.b64 -out key -pubin -inkey public.der -keyform DER \
                 -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256"
                    .split_whitespace()
                    .collect(),
            ];
            for arguments in runs {
                let run = Command::new("openssl")
                    .args(&arguments)
                    .current_dir(world.authority.folder.path())
                    .output();
                match run {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
                    run => assert!(run.as_ref().unwrap().status.success(), "{arguments:?} {run:?}"),
                }
            }
            Some(world)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.authority.folder.path().join(name)
        }

        async fn open(&self, derivation: Derivation) -> Result<Vec<u8>, ProgramError> {
            let output = self.path("out/plain");
            fs::create_dir_all(self.path("out")).unwrap();
            let _ = fs::remove_file(&output);
            let pair = Pair { data: self.path("data"), key: self.path("key"), output, derivation };
            let opener = Opener::choose(Some(&self.private), None).await?;
            let opened = open(pair, &opener).await;
            let left = fs::read_dir(self.path("out")).unwrap().count();
            assert_eq!(left, usize::from(opened.is_ok()), "nothing but a whole plaintext stays");
            let report = opened?;
            assert!(report.lines.iter().any(|(name, text)| *name == "integrity" && text.starts_with("NONE")));
            Ok(fs::read(self.path("out/plain")).unwrap())
        }
    }

    #[tokio::test]
    async fn what_openssl_makes_with_and_without_pbkdf2_opens_at_every_size() {
        for length in [0, 1, 15, 16, 17, CHUNK_BYTES, 3 * CHUNK_BYTES + 7] {
            let plain: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            for (enc, derivation) in [([].as_slice(), Derivation::BytesToKey), (&["-pbkdf2"], PBKDF2)] {
                let Some(world) = World::new(&plain, enc) else { return };
                assert!(world.open(derivation).await.unwrap() == plain, "{length} {derivation:?}");
            }
        }
    }

    #[tokio::test]
    async fn other_iterations_open_with_that_number_and_to_noise_with_another() {
        let Some(world) = World::new(b"ore sample", &["-pbkdf2", "-iter", "1234"]) else { return };
        let with = |iterations| Derivation::Pbkdf2(NonZeroU32::new(iterations).unwrap());
        assert_eq!(world.open(with(1_234)).await.unwrap(), b"ore sample");
        assert_ne!(world.open(PBKDF2).await.unwrap(), b"ore sample");
    }

    #[tokio::test]
    async fn what_openssl_does_not_write_so_is_refused_and_leaves_nothing() {
        let Some(world) = World::new(b"ore sample", &[]) else { return };
        let (data, key) = (fs::read(world.path("data")).unwrap(), fs::read(world.path("key")).unwrap());
        let refused = async |data: &[u8], key: &[u8]| {
            fs::write(world.path("data"), data).unwrap();
            fs::write(world.path("key"), key).unwrap();
            world.open(Derivation::BytesToKey).await.unwrap_err().reason
        };
        assert_eq!(refused(&data[1..], &key).await, ErrorReason::ContentMalformed);
        assert_eq!(refused(&data[..15], &key).await, ErrorReason::ContentMalformed);
        assert_eq!(refused(b"", &key).await, ErrorReason::ContentMalformed);
        assert_eq!(refused(&data, &[7; 600]).await, ErrorReason::ContentMalformed);
        assert_eq!(refused(&data, &key[1..]).await, ErrorReason::KmsInvalidCiphertext);
        let mut changed = key.clone();
        changed[40] ^= 1;
        assert_eq!(refused(&data, &changed).await, ErrorReason::KmsInvalidCiphertext);
        // The two exchanged.
        assert_eq!(refused(&key, &data).await, ErrorReason::KmsInvalidCiphertext);
    }

    #[tokio::test]
    async fn without_a_key_that_is_named_it_says_what_to_name() {
        let error = Opener::choose(None, None).await.unwrap_err();
        assert_eq!(error.exit, ExitCode::USAGE);
        assert!(error.to_string().contains("which key"), "{error}");
    }

    #[test]
    fn the_password_is_the_first_line_as_openssl_reads_it() {
        assert_eq!(first_line(b"abc\ndef\n"), Some(b"abc".as_slice()));
        assert_eq!(first_line(b"abc"), Some(b"abc".as_slice()));
        // A file with the line ends of another system: openssl on Linux takes the first of the two for a letter.
        assert_eq!(first_line(b"abc\r\n"), Some(b"abc\r".as_slice()));
        assert_eq!(first_line(b"\nabc"), None);
        assert_eq!(first_line(b""), None);
    }
}
