//! COSE_Sign (RFC 9052, tag 98) in the one form that trust objects have.
//!
//! ```text
//! 98([ body: bstr .cbor {16: typ}, {}, payload: bstr, [1*8 signature] ])
//! signature = [ header: bstr .cbor {1: alg, 4: kid}, {}, signature: bstr ]
//! to be signed = ["Signature", body, header, 'pithead/v1', payload]
//! ```
//!
//! The `typ` in the signed body keeps a root from being taken for a statement; the external data keeps the
//! signature from being one over anything else that the same key may sign elsewhere.

use super::cbor::{CborError, Reader, Writer};
use super::error::TrustError;
#[cfg(feature = "authoring")]
use super::keys::Algorithm;
use super::keys::Kid;

/// Longest signed object.
pub const MAX_OBJECT: usize = 16_384;
/// Longest payload of a signed object.
pub const MAX_PAYLOAD: usize = 3_072;
/// Most signatures on one object: each may cost a verification.
pub const MAX_SIGNATURES: usize = 8;

const COSE_SIGN: u64 = 98;
const LABEL_ALG: u64 = 1;
const LABEL_KID: u64 = 4;
const LABEL_TYP: u64 = 16;
const EXTERNAL_AAD: &[u8] = b"pithead/v1";

/// What a signed object says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectType {
    /// `application/vnd.pithead.root`
    Root,
    /// `application/vnd.pithead.statement`
    Statement,
}

impl ObjectType {
    /// The media type in the signed body.
    pub const fn media_type(self) -> &'static str {
        match self {
            ObjectType::Root => "application/vnd.pithead.root",
            ObjectType::Statement => "application/vnd.pithead.statement",
        }
    }

    /// The protected body header that says so.
    #[cfg(feature = "authoring")]
    pub(in crate::trust) fn body(self) -> Vec<u8> {
        let mut body = Writer::default();
        body.map(1).uint(LABEL_TYP).text(self.media_type());
        body.finish()
    }
}

/// A signature's protected header.
#[cfg(feature = "authoring")]
pub(in crate::trust) fn signature_header(alg: Algorithm, kid: Kid) -> Vec<u8> {
    let mut header = Writer::default();
    header.map(2).uint(LABEL_ALG).int(alg.cose()).uint(LABEL_KID).bytes(kid.as_bytes());
    header.finish()
}

/// The Sig_structure of RFC 9052, 4.4: exactly the bytes that a role key signs.
pub(in crate::trust) fn to_be_signed(body: &[u8], header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut signed = Writer::default();
    signed.array(5).text("Signature").bytes(body).bytes(header).bytes(EXTERNAL_AAD).bytes(payload);
    signed.finish()
}

/// One signature, not looked at yet.
#[derive(Debug, Clone, Copy)]
pub(in crate::trust) struct Signature<'a> {
    pub(in crate::trust) header: &'a [u8],
    /// As the header names it; any number, since the root decides what counts.
    pub(in crate::trust) alg: i64,
    pub(in crate::trust) kid: Kid,
    pub(in crate::trust) signature: &'a [u8],
}

/// A signed object whose form is right. Nothing in it is believed yet.
#[derive(Debug)]
pub(in crate::trust) struct Signed<'a> {
    body: &'a [u8],
    typ: &'a str,
    pub(in crate::trust) payload: &'a [u8],
    pub(in crate::trust) signatures: Vec<Signature<'a>>,
}

impl<'a> Signed<'a> {
    /// Reads `object`: `SIZE` if it is too long, `PARSE` if it is not strictly of the form.
    pub(in crate::trust) fn read(object: &'a [u8]) -> Result<Signed<'a>, TrustError> {
        if object.len() > MAX_OBJECT {
            return Err(TrustError::Size);
        }
        let signed = Signed::parse(object).map_err(|_| TrustError::Parse)?;
        // Strict reading leaves one encoding; this is the rule itself, should the reader ever be laxer.
        let parts = signed.signatures.iter().map(|s| (s.header, s.signature));
        if encode(signed.body, signed.payload, parts) != object {
            return Err(TrustError::Parse);
        }
        Ok(signed)
    }

    fn parse(object: &'a [u8]) -> Result<Signed<'a>, CborError> {
        let mut reader = Reader::new(object);
        reader.tag(COSE_SIGN)?;
        reader.array(4, 4)?;
        let body = reader.bytes()?;
        reader.empty_map()?;
        let payload = reader.bytes()?;
        if payload.len() > MAX_PAYLOAD {
            return Err(CborError::Range);
        }
        let count = reader.array(1, MAX_SIGNATURES)?;
        let mut signatures = Vec::with_capacity(count);
        for _ in 0..count {
            reader.array(3, 3)?;
            let header = reader.bytes()?;
            reader.empty_map()?;
            let signature = reader.bytes()?;
            let (alg, kid) = parse_header(header)?;
            signatures.push(Signature { header, alg, kid, signature });
        }
        reader.finish()?;
        Ok(Signed { body, typ: parse_body(body)?, payload, signatures })
    }

    /// `TYPE` unless the object says that it is `expected`.
    pub(in crate::trust) fn expect(&self, expected: ObjectType) -> Result<(), TrustError> {
        if self.typ == expected.media_type() { Ok(()) } else { Err(TrustError::Type) }
    }

    /// The bytes that `signature` has to be over.
    pub(in crate::trust) fn to_be_signed(&self, signature: &Signature<'_>) -> Vec<u8> {
        to_be_signed(self.body, signature.header, self.payload)
    }
}

/// What a signed object says that it is, if it is one of ours: for a tool that is handed some file.
pub fn object_type_of(object: &[u8]) -> Result<ObjectType, TrustError> {
    let signed = Signed::read(object)?;
    let types = [ObjectType::Root, ObjectType::Statement];
    types.into_iter().find(|typ| typ.media_type() == signed.typ).ok_or(TrustError::Type)
}

/// Which keys a signed object says have signed it, for screens. It proves nothing: that is what verification is for.
pub fn signers_of(object: &[u8]) -> Result<Vec<Kid>, TrustError> {
    Ok(Signed::read(object)?.signatures.iter().map(|signature| signature.kid).collect())
}

fn parse_body(body: &[u8]) -> Result<&str, CborError> {
    let mut reader = Reader::new(body);
    let mut fields = reader.map()?;
    let typ = fields.required(LABEL_TYP)?.text()?;
    fields.finish()?;
    reader.finish()?;
    Ok(typ)
}

fn parse_header(header: &[u8]) -> Result<(i64, Kid), CborError> {
    let mut reader = Reader::new(header);
    let mut fields = reader.map()?;
    let alg = fields.required(LABEL_ALG)?.int()?;
    let kid = Kid::from_bytes(fields.required(LABEL_KID)?.bytes_of()?);
    fields.finish()?;
    reader.finish()?;
    Ok((alg, kid))
}

/// Writes an object from its parts: protected body, payload, and per signature the header and the signature.
pub(in crate::trust) fn encode<'p>(
    body: &[u8],
    payload: &[u8],
    signatures: impl ExactSizeIterator<Item = (&'p [u8], &'p [u8])>,
) -> Vec<u8> {
    let mut object = Writer::default();
    object.tag(COSE_SIGN).array(4).bytes(body).map(0).bytes(payload).array(signatures.len());
    for (header, signature) in signatures {
        object.array(3).bytes(header).map(0).bytes(signature);
    }
    object.finish()
}
