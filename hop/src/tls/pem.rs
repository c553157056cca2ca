//! PEM, remembered together with where it came from, so that every error can name the file.

use std::{fmt, path::Path};

use base64ct::{Base64, Encoding as _};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};
use zeroize::Zeroizing;

use super::TlsError;

/// Largest PEM file that is read, in bytes: a CRL of a large fleet is a few hundred kilobytes.
const FILE_MAX: u64 = 16 << 20;

/// The text of a PEM file and its name. Wiped when dropped, and absent from debug output: it may be a key.
#[derive(Clone)]
pub struct Pem {
    origin: String,
    text: Zeroizing<Vec<u8>>,
}

impl Pem {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        let origin = path.display().to_string();
        let read = || {
            let size = std::fs::metadata(path)?.len();
            if size > FILE_MAX {
                return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "larger than 16 MiB"));
            }
            std::fs::read(path)
        };
        match read() {
            Ok(text) => Ok(Self { origin, text: Zeroizing::new(text) }),
            Err(source) => Err(TlsError::Unreadable { origin, source }),
        }
    }

    /// Takes text that is in memory; `origin` is what errors call it.
    pub fn new(origin: impl Into<String>, text: impl Into<Vec<u8>>) -> Self {
        Self { origin: origin.into(), text: Zeroizing::new(text.into()) }
    }

    /// The file's name, or whatever it was called.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The certificates in it, at least one, in their order.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Vec<_> = CertificateDer::pem_slice_iter(&self.text)
            .collect::<Result<_, _>>()
            .map_err(|e| self.not_pem(e))?;
        if found.is_empty() {
            return Err(TlsError::Missing { origin: self.origin.clone(), what: "CERTIFICATE" });
        }
        Ok(found)
    }

    /// The private key in it.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        match PrivateKeyDer::from_pem_slice(&self.text) {
            Ok(key) => Ok(key),
            Err(pem::Error::NoItemsFound) => {
                Err(TlsError::Missing { origin: self.origin.clone(), what: "PRIVATE KEY" })
            }
            Err(error) => Err(self.not_pem(error)),
        }
    }

    /// The revocation lists in it, at least one.
    pub fn crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let found: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&self.text)
            .collect::<Result<_, _>>()
            .map_err(|e| self.not_pem(e))?;
        if found.is_empty() {
            return Err(TlsError::Missing { origin: self.origin.clone(), what: "X509 CRL" });
        }
        Ok(found)
    }

    fn not_pem(&self, error: pem::Error) -> TlsError {
        // Only the kind of fault: the reader's own text may quote a line of a key.
        let why = match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no end; the file is cut off",
            pem::Error::IllegalSectionStart { .. } => "a section does not begin well",
            pem::Error::Base64Decode(_) => "a section is not base64",
            pem::Error::NoItemsFound => "nothing found in it",
            _ => "unreadable",
        };
        TlsError::NotPem { origin: self.origin.clone(), why: why.to_owned() }
    }
}

/// Certificates in DER, as the text of a PEM file.
pub fn certificates_to_text<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut text = String::new();
    for der in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut body = Base64::encode_string(der);
        while !body.is_empty() {
            let rest = body.split_off(body.len().min(LINE));
            text.push_str(&body);
            text.push('\n');
            body = rest;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Characters of a line of PEM (RFC 7468).
const LINE: usize = 64;

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({})", self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_are_written_read_back() {
        let ders: Vec<Vec<u8>> = [0, 1, 47, 48, 49, 700].map(|len| vec![7; len]).into();
        let text = certificates_to_text(ders.iter().map(Vec::as_slice));
        assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
        let read = Pem::new("text", text).certificates().expect("just written");
        assert_eq!(read.iter().map(|der| der.to_vec()).collect::<Vec<_>>(), ders);
    }
}
