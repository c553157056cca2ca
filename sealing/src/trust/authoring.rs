//! Making roots and statements: what an authority signs with, wherever its keys are.
//!
//! A [`Draft`] is the object before it is complete. It hands out the bytes to be signed and takes signatures back, so
//! a key may be in a cloud HSM, on a token in a safe, or in a file; it can be written out half signed and
//! [reopened](Draft::reopen) by the next key holder. A finished object has been read back strictly: nothing leaves
//! here that a device could not read.
//!
//! What an authority should *refuse* to sign (it could not take it back) is the authority's tool's to know.

use bytes::Bytes;
use p256::ecdsa::signature::Signer as _;
use zeroize::Zeroizing;

use super::cose::{self, MAX_PAYLOAD, MAX_SIGNATURES, ObjectType, Signed};
use super::digest::Sha256Digest;
use super::error::TrustError;
use super::keys::{Kid, RoleSpki, SpkiError, ed25519_spki, p256_spki};
use super::root::RootFields;
use super::statement::StatementFields;

/// Why an object cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthoringError {
    /// A device would refuse to read it.
    #[error("no device could read it: {0}")]
    Unreadable(TrustError),
    /// The signature is not this key's over these bytes.
    #[error("the signature is not this key's over this object")]
    Signature,
    /// The key has signed already.
    #[error("the key has signed already")]
    SignedAlready,
    /// No more signatures fit.
    #[error("no more than {MAX_SIGNATURES} signatures fit")]
    Full,
    /// Nobody has signed yet.
    #[error("nobody has signed yet")]
    Unsigned,
    /// Not a private or public key of a kind that signs here, or not a DER signature.
    #[error("not a P-256 or Ed25519 key")]
    Key,
}

impl From<SpkiError> for AuthoringError {
    fn from(_: SpkiError) -> AuthoringError {
        AuthoringError::Key
    }
}

/// A root or a statement that is being signed.
#[derive(Debug, Clone)]
pub struct Draft {
    typ: ObjectType,
    payload: Vec<u8>,
    /// Kid, protected header, signature.
    signatures: Vec<(Kid, Vec<u8>, Vec<u8>)>,
}

impl Draft {
    /// A root to be signed. `PARSE` or `ROOT_KEYS` if no device could read it.
    pub fn root(root: &RootFields) -> Result<Draft, AuthoringError> {
        let payload = root.encode();
        within_limit(&payload)?;
        RootFields::read_payload(&payload).map_err(AuthoringError::Unreadable)?;
        Ok(Draft { typ: ObjectType::Root, payload, signatures: Vec::new() })
    }

    /// A statement to be signed. `PARSE` if no device could read it.
    pub fn statement(statement: &StatementFields) -> Result<Draft, AuthoringError> {
        let payload = statement.encode();
        within_limit(&payload)?;
        StatementFields::read_payload(&payload).map_err(AuthoringError::Unreadable)?;
        Ok(Draft { typ: ObjectType::Statement, payload, signatures: Vec::new() })
    }

    /// A root that somebody else has drafted, from its [`payload`](Self::payload), and what it says. `PARSE` or `ROOT_KEYS` if
    /// no device could read it.
    pub fn root_of_payload(payload: &[u8]) -> Result<(Draft, RootFields), AuthoringError> {
        within_limit(payload)?;
        let fields = RootFields::read_payload(payload).map_err(AuthoringError::Unreadable)?;
        Ok((Draft { typ: ObjectType::Root, payload: payload.to_vec(), signatures: Vec::new() }, fields))
    }

    /// The same of a statement. `PARSE` if no device could read it.
    pub fn statement_of_payload(payload: &[u8]) -> Result<(Draft, StatementFields), AuthoringError> {
        within_limit(payload)?;
        let fields = StatementFields::read_payload(payload).map_err(AuthoringError::Unreadable)?;
        Ok((Draft { typ: ObjectType::Statement, payload: payload.to_vec(), signatures: Vec::new() }, fields))
    }

    /// An object that has some signatures already, for the next key holder. They are kept as they are.
    pub fn reopen(object: &[u8]) -> Result<Draft, AuthoringError> {
        let typ = cose::object_type_of(object).map_err(AuthoringError::Unreadable)?;
        let signed = Signed::read(object).map_err(AuthoringError::Unreadable)?;
        let signatures = signed.signatures.iter();
        let signatures = signatures.map(|s| (s.kid, s.header.to_vec(), s.signature.to_vec())).collect();
        Ok(Draft { typ, payload: signed.payload.to_vec(), signatures })
    }

    /// Whether it is a root or a statement.
    pub fn object_type(&self) -> ObjectType {
        self.typ
    }

    /// Digest of the payload: what the next object names as its previous.
    pub fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(&self.payload)
    }

    /// What is signed, without any signature: what travels to the holders of keys.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The signatures, each with the name of its key. Whether they hold is seen when they are
    /// [attached](Self::attach).
    pub fn signatures(&self) -> impl Iterator<Item = (&Kid, &[u8])> {
        self.signatures.iter().map(|(kid, _, signature)| (kid, signature.as_slice()))
    }

    /// The keys that have signed.
    pub fn signed_by(&self) -> impl Iterator<Item = &Kid> {
        self.signatures.iter().map(|(kid, ..)| kid)
    }

    /// The bytes that `key` has to sign. P-256 keys sign their SHA-256 (KMS: `MessageType` `DIGEST`, see
    /// [`Sha256Digest::of`]), Ed25519 keys the bytes themselves.
    pub fn to_be_signed(&self, key: &RoleSpki) -> Vec<u8> {
        let header = cose::signature_header(key.algorithm(), key.kid());
        cose::to_be_signed(&self.typ.body(), &header, &self.payload)
    }

    /// Takes a signature back: r || s for P-256 (see [`p256_signature_from_der`]), 64 bytes for Ed25519. It is
    /// verified first.
    pub fn attach(&mut self, key: &RoleSpki, signature: &[u8]) -> Result<(), AuthoringError> {
        let kid = key.kid();
        if self.signed_by().any(|signed| *signed == kid) {
            return Err(AuthoringError::SignedAlready);
        }
        if self.signatures.len() >= MAX_SIGNATURES {
            return Err(AuthoringError::Full);
        }
        if !key.verifies(&self.to_be_signed(key), signature) {
            return Err(AuthoringError::Signature);
        }
        let header = cose::signature_header(key.algorithm(), kid);
        self.signatures.push((kid, header, signature.to_vec()));
        Ok(())
    }

    /// Signs with a key that is here.
    pub fn sign(&mut self, key: &SigningKey) -> Result<(), AuthoringError> {
        let spki = key.public();
        let signature = key.sign(&self.to_be_signed(&spki));
        self.attach(&spki, &signature)
    }

    /// The object, read back as a device reads it.
    pub fn finish(&self) -> Result<Bytes, AuthoringError> {
        if self.signatures.is_empty() {
            return Err(AuthoringError::Unsigned);
        }
        let parts = self.signatures.iter().map(|(_, header, signature)| (&header[..], &signature[..]));
        let object = cose::encode(&self.typ.body(), &self.payload, parts);
        Signed::read(&object).map_err(AuthoringError::Unreadable)?;
        Ok(Bytes::from(object))
    }
}

fn within_limit(payload: &[u8]) -> Result<(), AuthoringError> {
    if payload.len() > MAX_PAYLOAD { Err(AuthoringError::Unreadable(TrustError::Parse)) } else { Ok(()) }
}

/// r || s of a P-256 signature in DER, which is what KMS answers. A signature has one spelling in DER; any other is refused.
pub fn p256_signature_from_der(der: &[u8]) -> Result<[u8; 64], AuthoringError> {
    let signature = p256::ecdsa::Signature::from_der(der).map_err(|_| AuthoringError::Key)?;
    if signature.to_der().as_bytes() != der {
        return Err(AuthoringError::Key);
    }
    Ok(signature.to_bytes().into())
}

/// A private key that signs roots or statements, held in memory and wiped when dropped.
///
/// Randomness is an argument: 32 bytes from the kernel's generator.
pub struct SigningKey(Private);

enum Private {
    P256(Box<p256::ecdsa::SigningKey>),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public().kid())
    }
}

impl SigningKey {
    /// The P-256 key with this secret number; refuses one outside the group's order (draw again).
    pub fn p256(secret: &[u8; 32]) -> Result<SigningKey, AuthoringError> {
        let key = p256::ecdsa::SigningKey::from_slice(secret).map_err(|_| AuthoringError::Key)?;
        Ok(SigningKey(Private::P256(Box::new(key))))
    }

    /// The Ed25519 key with this seed.
    pub fn ed25519(seed: &[u8; 32]) -> SigningKey {
        SigningKey(Private::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(seed))))
    }

    /// Reads PKCS#8 in DER, of either kind.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<SigningKey, AuthoringError> {
        if let Ok(key) = <p256::ecdsa::SigningKey as p256::pkcs8::DecodePrivateKey>::from_pkcs8_der(der) {
            return Ok(SigningKey(Private::P256(Box::new(key))));
        }
        let key = <ed25519_dalek::SigningKey as ed25519_dalek::pkcs8::DecodePrivateKey>::from_pkcs8_der(der);
        key.map(|key| SigningKey(Private::Ed25519(Box::new(key)))).map_err(|_| AuthoringError::Key)
    }

    /// PKCS#8 in DER, as OpenSSL reads it.
    pub fn to_pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, AuthoringError> {
        use p256::pkcs8::EncodePrivateKey as _;
        let document = match &self.0 {
            Private::P256(key) => key.to_pkcs8_der(),
            Private::Ed25519(key) => key.to_pkcs8_der(),
        };
        document.map(|document| Zeroizing::new(document.as_bytes().to_vec())).map_err(|_| AuthoringError::Key)
    }

    /// The public half.
    pub fn public(&self) -> RoleSpki {
        let der = match &self.0 {
            Private::P256(key) => p256_spki(key.verifying_key().to_sec1_point(false).as_bytes()),
            Private::Ed25519(key) => ed25519_spki(key.verifying_key().as_bytes()),
        };
        RoleSpki::from_der(&der).expect("a key made here is on its curve and canonically encoded")
    }

    /// A signature over `message`: r || s by RFC 6979, or Ed25519.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        match &self.0 {
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().into()
            }
            Private::Ed25519(key) => key.sign(message).to_bytes(),
        }
    }
}
