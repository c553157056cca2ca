//! Key pairs as KMS holds them: an ARN, a state, and an RSA private key that answers but is never shown, save to
//! tests that play the self-hosted opener.

use anyhow::Context as _;
use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use base64ct::{Base64, Encoding as _};

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

/// One RSA key pair for encryption.
pub struct KmsKey {
    arn: String,
    private: PrivateDecryptingKey,
    spki: Vec<u8>,
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

    /// Takes a PKCS#8 key that a test keeps in a file.
    pub fn from_pkcs8_pem(arn: &str, pem: &str) -> anyhow::Result<Self> {
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = Base64::decode_vec(&base64).ok().context("PEM body is not base64")?;
        Self::new(arn, PrivateDecryptingKey::from_pkcs8(&der).ok().context("not a PKCS#8 RSA key")?)
    }

    fn new(arn: &str, private: PrivateDecryptingKey) -> anyhow::Result<Self> {
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().ok().context("SPKI encoding")?;
        let spki = spki.as_ref().to_vec();
        Ok(Self { arn: arn.into(), private, spki })
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

    /// PKCS#8, PEM: for the tests of the self-hosted opener, and for openssl.
    pub fn private_pkcs8_pem(&self) -> anyhow::Result<String> {
        let der: Pkcs8V1Der<'_> = self.private.as_der().ok().context("PKCS#8 encoding")?;
        Ok(pem("PRIVATE KEY", der.as_ref()))
    }

    /// `RSA_3072`.
    pub(super) fn spec(&self) -> String {
        format!("RSA_{}", self.private.key_size_bits())
    }

    /// The plaintext, or nothing: KMS does not say why a ciphertext is invalid.
    pub(super) fn decrypt(&self, ciphertext: &[u8]) -> Option<Vec<u8>> {
        let key = OaepPrivateDecryptingKey::new(self.private.clone()).ok()?;
        let mut plaintext = vec![0; key.min_output_size()];
        let plaintext = key.decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut plaintext, None).ok()?;
        Some(plaintext.to_vec())
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
