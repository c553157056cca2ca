//! Signing keys in files: PKCS#8 in PEM, as OpenSSL reads it, under a passphrase if there is one (PBES2: PBKDF2 with
//! SHA-256 and 600,000 rounds, AES-256-CBC).

use std::fmt;
use std::path::Path;

use pithead_sealing::trust::authoring::SigningKey;
use pithead_sealing::trust::{Algorithm, RoleSpki};
use pkcs8::pkcs5::pbes2;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use zeroize::Zeroizing;

use super::dir::write_new;
use super::error::AuthorityError;

const PLAIN: &str = "PRIVATE KEY";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
/// OWASP's recommendation for PBKDF2 with HMAC-SHA256, 2023.
const PBKDF2_ROUNDS: u32 = 600_000;

/// A passphrase, cleared when dropped.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// The first line of a file, without its end.
    ///
    /// # Errors
    /// [`AuthorityError::KeyFile`] if it is shorter than 12 bytes.
    pub fn read(path: &Path) -> Result<Passphrase, AuthorityError> {
        let mut content = Zeroizing::new(std::fs::read(path).map_err(AuthorityError::file("read", path))?);
        let end = content.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(content.len());
        content.truncate(end);
        if content.len() < 12 {
            return Err(AuthorityError::KeyFile {
                path: path.into(),
                what: "a passphrase for root keys has at least 12 bytes",
            });
        }
        Ok(Passphrase(content))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, AuthorityError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| AuthorityError::Entropy)?;
    Ok(bytes)
}

/// A new key out of the kernel's randomness.
pub(super) fn generate(algorithm: Algorithm) -> Result<SigningKey, AuthorityError> {
    loop {
        let secret = random::<32>()?;
        match algorithm {
            Algorithm::Ed25519 => return Ok(SigningKey::ed25519(&secret)),
            // One draw in 2^32 is outside the group's order.
            Algorithm::Esp256 => match SigningKey::p256(&secret) {
                Ok(key) => return Ok(key),
                Err(_) => continue,
            },
        }
    }
}

/// The key as the content of a file.
pub(super) fn to_pem(
    key: &SigningKey,
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<String>, AuthorityError> {
    let unusable = |_| AuthorityError::Authoring(pithead_sealing::trust::authoring::AuthoringError::Key);
    let der = key.to_pkcs8_der()?;
    let Some(Passphrase(passphrase)) = passphrase else {
        let document = SecretDocument::try_from(der.as_slice()).map_err(unusable)?;
        return document.to_pem(PLAIN, LineEnding::LF).map_err(unusable);
    };
    let (salt, iv) = (random::<16>()?, random::<16>()?);
    let parameters = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(PBKDF2_ROUNDS, &*salt, *iv)
        .map_err(|_| AuthorityError::Entropy)?;
    let info = PrivateKeyInfoRef::try_from(der.as_slice())
        .map_err(|_| AuthorityError::Authoring(pithead_sealing::trust::authoring::AuthoringError::Key))?;
    let sealed = info
        .encrypt_with_params(parameters, passphrase.as_slice())
        .map_err(|_| AuthorityError::Authoring(pithead_sealing::trust::authoring::AuthoringError::Key))?;
    sealed.to_pem(ENCRYPTED, LineEnding::LF).map_err(unusable)
}

/// Makes a key in a file that must not be there yet, mode 0600, and gives its public half.
///
/// # Errors
/// [`AuthorityError::File`], [`AuthorityError::Entropy`].
pub fn new_key_file(
    path: &Path,
    algorithm: Algorithm,
    passphrase: Option<&Passphrase>,
) -> Result<RoleSpki, AuthorityError> {
    let key = generate(algorithm)?;
    write_new(path, to_pem(&key, passphrase)?.as_bytes(), 0o600)?;
    Ok(key.public())
}

/// A public key as the content of a file: PEM, as OpenSSL reads it.
///
/// # Errors
/// [`AuthorityError::Authoring`] for nothing that a [`RoleSpki`] can be.
pub fn public_pem(key: &RoleSpki) -> Result<String, AuthorityError> {
    let unusable = |_| AuthorityError::Authoring(pithead_sealing::trust::authoring::AuthoringError::Key);
    let document = pkcs8::Document::try_from(key.der()).map_err(unusable)?;
    document.to_pem("PUBLIC KEY", LineEnding::LF).map_err(unusable)
}

/// Reads a signing key, decrypting it if the file says so.
///
/// # Errors
/// [`AuthorityError::File`], [`AuthorityError::KeyFile`].
pub fn read_signing_key(path: &Path, passphrase: Option<&Passphrase>) -> Result<SigningKey, AuthorityError> {
    let pem = Zeroizing::new(std::fs::read(path).map_err(AuthorityError::file("read", path))?);
    let wrong = |what| AuthorityError::KeyFile { path: path.into(), what };
    let text = std::str::from_utf8(&pem).map_err(|_| wrong("not PEM"))?;
    let (label, document) = SecretDocument::from_pem(text).map_err(|_| wrong("not PEM"))?;
    let document = match label {
        PLAIN => document,
        ENCRYPTED => {
            let Passphrase(passphrase) =
                passphrase.ok_or_else(|| wrong("encrypted: give its passphrase file"))?;
            let sealed = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
                .map_err(|_| wrong("not an encrypted PKCS#8 key"))?;
            sealed.decrypt(passphrase.as_slice()).map_err(|_| wrong("the passphrase does not open it"))?
        }
        _ => return Err(wrong("not a PKCS#8 private key")),
    };
    SigningKey::from_pkcs8_der(document.as_bytes()).map_err(|_| wrong("not a P-256 or Ed25519 private key"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_key_survives_its_file_and_opens_under_its_passphrase_alone() {
        let dir = tempfile::tempdir().unwrap();
        for algorithm in [Algorithm::Esp256, Algorithm::Ed25519] {
            let key = generate(algorithm).unwrap();
            let plain = dir.path().join("plain.pem");
            std::fs::write(&plain, to_pem(&key, None).unwrap().as_bytes()).unwrap();
            assert_eq!(read_signing_key(&plain, None).unwrap().public(), key.public());

            let sealed = dir.path().join("sealed.pem");
            let right = passphrase("correct horse battery");
            std::fs::write(&sealed, to_pem(&key, Some(&right)).unwrap().as_bytes()).unwrap();
            assert_eq!(read_signing_key(&sealed, Some(&right)).unwrap().public(), key.public());
            let wrong = passphrase("incorrect horse battery");
            for refused in [read_signing_key(&sealed, Some(&wrong)), read_signing_key(&sealed, None)] {
                assert!(matches!(refused.unwrap_err(), AuthorityError::KeyFile { .. }));
            }
        }
    }

    #[test]
    fn a_short_passphrase_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        std::fs::write(&path, "short\nand a second line that does not count").unwrap();
        assert!(matches!(Passphrase::read(&path).unwrap_err(), AuthorityError::KeyFile { .. }));
    }
}
