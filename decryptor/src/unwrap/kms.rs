//! The private operation in AWS KMS.

use pithead_sealing::envelope::Unwrapped;
use pithead_sealing::trust::KeyArn;

use super::{KeyUnwrapper, Unwrapping};
use crate::kms::Kms;

/// Unwraps with `kms:Decrypt`.
#[derive(Debug, Clone)]
pub struct KmsUnwrapper(Kms);

impl KmsUnwrapper {
    /// Asks through this client.
    pub fn new(kms: Kms) -> KmsUnwrapper {
        KmsUnwrapper(kms)
    }
}

impl KeyUnwrapper for KmsUnwrapper {
    fn unwrap<'a>(&'a self, arn: &'a KeyArn, ciphertext: &'a [u8]) -> Unwrapping<'a> {
        Box::pin(async move {
            let plaintext = self.0.decrypt(arn, ciphertext).await?;
            Ok(Unwrapped::read(&plaintext)?)
        })
    }

    fn may_hold(&self, _arn: &KeyArn) -> bool {
        true
    }
}
