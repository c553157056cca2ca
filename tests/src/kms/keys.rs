//! Key pairs as KMS holds them: an ARN, a state, and a private key that answers but is never shown, save an RSA key to tests that
//! play the self-hosted opener. RSA keys decrypt, P-256 keys sign.

use anyhow::Context as _;
use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use base64ct::{Base64, Encoding as _};
use p256::{ecdsa::signature::hazmat::PrehashSigner as _, pkcs8::EncodePublicKey as _};

/// `KeyMetadata.KeyState`, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Answers everything.
    Enabled,
    /// `Decrypt` is refused with `DisabledException`.
    Disabled,
    /// Everything but `DescribeKey` is refused with `KMSInvalidStateException`.
    PendingDeletion,
}

impl KeyState {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
        }
    }
}

/// One key pair: RSA for encryption, or P-256 for signatures.
pub struct KmsKey {
    arn: String,
    private: Private,
    spki: Vec<u8>,
}

enum Private {
    Rsa(PrivateDecryptingKey),
    P256(p256::ecdsa::SigningKey),
}

impl std::fmt::Debug for KmsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KmsKey").field("arn", &self.arn).finish_non_exhaustive()
    }
}

impl KmsKey {
    /// Draws a new key pair of 2048, 3072 or 4096 bits.
    pub fn generate(arn: &str, bits: usize) -> anyhow::Result<Self> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            other => anyhow::bail!("KMS has no RSA key of {other} bits"),
        };
        Self::new(arn, PrivateDecryptingKey::generate(size).ok().context("RSA key generation")?)
    }

    /// Draws a new ECC_NIST_P256 key pair for signatures.
    pub fn generate_signing(arn: &str) -> anyhow::Result<Self> {
        let private = loop {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).ok().context("randomness")?;
            // One draw in 2^32 is outside the group's order.
            if let Ok(private) = p256::ecdsa::SigningKey::from_slice(&secret) {
                break private;
            }
        };
        let spki = private.verifying_key().to_public_key_der().ok().context("SPKI encoding")?;
        Ok(Self { arn: arn.into(), spki: spki.as_bytes().to_vec(), private: Private::P256(private) })
    }

    /// Takes a PKCS#8 key that a test keeps in a file.
    pub fn from_pkcs8_pem(arn: &str, pem: &str) -> anyhow::Result<Self> {
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = Base64::decode_vec(&base64).ok().context("PEM body is not base64")?;
        Self::new(arn, PrivateDecryptingKey::from_pkcs8(&der).ok().context("not a PKCS#8 RSA key")?)
    }

    fn new(arn: &str, private: PrivateDecryptingKey) -> anyhow::Result<Self> {
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().ok().context("SPKI encoding")?;
        let spki = spki.as_ref().to_vec();
        Ok(Self { arn: arn.into(), private: Private::Rsa(private), spki })
    }

    /// The full key ARN.
    #[must_use]
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// SubjectPublicKeyInfo, PEM.
    #[must_use]
    pub fn spki_pem(&self) -> String {
        pem("PUBLIC KEY", &self.spki)
    }

    /// PKCS#8, PEM, of an RSA key: for the tests of the self-hosted opener, and for openssl.
    pub fn private_pkcs8_pem(&self) -> anyhow::Result<String> {
        let Private::Rsa(private) = &self.private else { anyhow::bail!("not an RSA key") };
        let der: Pkcs8V1Der<'_> = private.as_der().ok().context("PKCS#8 encoding")?;
        Ok(pem("PRIVATE KEY", der.as_ref()))
    }

    /// `RSA_3072`, `ECC_NIST_P256`.
    pub(super) fn spec(&self) -> String {
        match &self.private {
            Private::Rsa(private) => format!("RSA_{}", private.key_size_bits()),
            Private::P256(_) => "ECC_NIST_P256".into(),
        }
    }

    /// What it is made for.
    pub(super) fn usage(&self) -> &'static str {
        match &self.private {
            Private::Rsa(_) => "ENCRYPT_DECRYPT",
            Private::P256(_) => "SIGN_VERIFY",
        }
    }

    /// The name and the members of its list of algorithms.
    pub(super) fn algorithms(&self) -> (&'static str, &'static [&'static str]) {
        match &self.private {
            Private::Rsa(_) => ("EncryptionAlgorithms", &["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]),
            Private::P256(_) => ("SigningAlgorithms", &["ECDSA_SHA_256"]),
        }
    }

    /// The plaintext, or nothing: KMS does not say why a ciphertext is invalid.
    pub(super) fn decrypt(&self, ciphertext: &[u8]) -> Option<Vec<u8>> {
        let Private::Rsa(private) = &self.private else { return None };
        let key = OaepPrivateDecryptingKey::new(private.clone()).ok()?;
        let mut plaintext = vec![0; key.min_output_size()];
        let plaintext = key.decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut plaintext, None).ok()?;
        Some(plaintext.to_vec())
    }

    /// ECDSA over a digest of 32 bytes, in DER; nothing from a key that does not sign.
    pub(super) fn sign_digest(&self, digest: &[u8]) -> Option<Vec<u8>> {
        let Private::P256(private) = &self.private else { return None };
        let signature: p256::ecdsa::Signature =
            private.sign_prehash(digest).ok().filter(|_| digest.len() == 32)?;
        Some(signature.to_der().as_bytes().to_vec())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = Base64::encode_string(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
