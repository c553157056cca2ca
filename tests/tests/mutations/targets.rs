//! What reads bytes that a stranger may have made, each as a function that must not panic and whose promises are asserted.
//!
//! The fuzz targets (`fuzz/`) and the mutation test call the same functions.
#![allow(dead_code)]

use std::sync::LazyLock;

use bytes::Bytes;
use pithead_hop::{
    accept::Limits,
    bundle::{Bundle, BundleName, Index, LargeName, Part},
    identity::{Assurance, Peer, PeerId},
    ingest::{IngestLimits, KnownKeys, Standing, UploadLimits, admit, admit_header},
    keys::KeyFile,
    program::config,
    status::Remote,
    tls::Pem,
};
use pithead_proto::ingest::v1 as wire;
use pithead_sealing::{
    Identity,
    envelope::{LastSession, check},
    trust::{KeyArn, RoleSpki, RootFields, RsaSpki, StatementFields},
};
use prost::Message as _;
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

/// A parser that is given any bytes.
pub(crate) type Target = fn(&[u8]);

/// All of them, by the name of their fuzz target.
pub(crate) const ALL: [(&str, Target); 7] = [
    ("key_file", key_file),
    ("ingest_request", ingest_request),
    ("certificate", certificate),
    ("status_details", status_details),
    ("configuration", configuration),
    ("bundle", bundle),
    ("sealed", sealed),
];

/// A bundle is read to the byte, or refused.
pub(crate) fn key_file(data: &[u8]) {
    if let Ok(file) = KeyFile::decode(Bytes::copy_from_slice(data)) {
        let again = file.encode();
        assert_eq!(
            KeyFile::decode(again.into()).as_ref(),
            Ok(&file),
            "what was read is written and read again"
        );
    }
}

struct Everything(Standing);

impl KnownKeys for Everything {
    fn standing(&self, _: &KeyArn, _: &Identity) -> Standing {
        self.0
    }
}

const INLINE_MAX: u64 = 1 << 20;

fn peers() -> &'static [Peer] {
    static PEERS: LazyLock<Vec<Peer>> = LazyLock::new(|| {
        ["spiffe://pit-7/device/truck-1", "spiffe://pit-7/gateway/edge-1", "spiffe://pit-7/operator/ann"]
            .iter()
            .map(|uri| Peer {
                id: PeerId::from_uri(uri).expect("a good name"),
                certificate_sha256: None,
                assurance: Assurance::Vouched,
                passed_on_by: None,
            })
            .collect()
    });
    &PEERS
}

fn admitted(envelope: Bytes, hops: &[wire::Hop]) {
    for peer in peers() {
        for standing in [Standing::Active, Standing::NotActive, Standing::Unknown, Standing::NotReady] {
            let keys = Everything(standing);
            let last = &mut LastSession::default();
            if let Ok(admitted) = admit(envelope.clone(), hops.to_vec(), peer, &keys, INLINE_MAX, last) {
                assert_eq!(admitted.bytes(), &envelope);
                assert!(matches!(standing, Standing::Active | Standing::NotActive));
            }
        }
    }
}

/// A request of the ingest service, as far as an admitted envelope.
pub(crate) fn ingest_request(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(request) = wire::AppendRequest::decode(bytes.clone())
        && let Some(wire::append_request::Message::Batch(batch)) = request.message
    {
        for item in batch.items.into_iter().take(8) {
            admitted(item.envelope, &item.hops);
        }
    }
    if let Ok(request) = wire::SubmitRequest::decode(bytes.clone()) {
        admitted(request.envelope, &[]);
    }
    let _ = wire::OpenUploadRequest::decode(bytes.clone());
    let _ = wire::WriteUploadRequest::decode(bytes.clone());
    let _ = wire::GetUploadRequest::decode(bytes.clone());
    for peer in peers() {
        let keys = Everything(Standing::Active);
        let _ = admit_header(bytes.clone(), 10 * INLINE_MAX, Vec::new(), peer, &keys);
    }
    admitted(bytes, &[]);
}

/// A certificate names somebody by one name, or nobody.
pub(crate) fn certificate(data: &[u8]) {
    let der = CertificateDer::from(data);
    if let Ok(id) = PeerId::from_certificate(&der) {
        assert_eq!(PeerId::from_uri(&id.to_string()), Ok(id));
    }
    let _ = Peer::from_verified_certificate(&der);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = PeerId::from_uri(text);
        let pem = Pem::new("fuzz.pem", text.to_owned());
        let _ = (pem.certificates(), pem.private_key(), pem.crls());
    }
}

/// What a server says of an error, which a client reads before it believes anything.
pub(crate) fn status_details(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let code = tonic::Code::from(i32::from(data.first().copied().unwrap_or(0) % 20));
    let status = tonic::Status::with_details(code, text, Bytes::copy_from_slice(data));
    let remote = Remote::from_status(&status);
    assert!(remote.detail.len() <= Remote::DETAIL_MAX);
    let _ = (remote.is_retryable(), remote.may_have_been_stored());
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Sections {
    limits: Limits,
    envelopes: IngestLimits,
    uploads: UploadLimits,
}

/// A configuration is read or refused at a place, whatever the file and the environment say.
pub(crate) fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, rest) = text.split_once('\n').unwrap_or(("", &text));
    let twins = [
        ("PITHEAD_LIMITS__IDLE".to_owned(), first.to_owned()),
        ("PITHEAD_A__B__C".to_owned(), first.to_owned()),
    ];
    for variables in [&twins[..0], &twins[..1], &twins[..]] {
        match config::parse::<Sections>(rest, "fuzz.toml", "PITHEAD", variables.iter().cloned()) {
            Ok(sections) => {
                let _ = (sections.value.limits.check(), sections.value.envelopes.check());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// An object in a bucket, which whoever may write there can have made: read to the byte, or refused. Once as it is, and once with
/// the checksum put right, which is no secret.
pub(crate) fn bundle(data: &[u8]) {
    let mut summed = data.to_vec();
    if let Ok(front) = Index::front_bytes(data)
        && let Some(front) = summed.get_mut(..front as usize)
    {
        let (signed, sum) = front.split_at_mut(front.len() - 32);
        sum.copy_from_slice(&Sha256::digest(signed));
    }
    for bytes in [data, &summed] {
        let Ok(bundle) = Bundle::read(Bytes::copy_from_slice(bytes)) else { continue };
        let index = bundle.index();
        let name = index.name();
        assert_eq!(index.is_of(&name), Ok(()));
        assert_eq!(BundleName::parse(&name.to_string()).as_ref(), Ok(&name));
        assert!(index.entries.is_sorted_by(|one, next| one.position < next.position));
        let here = bundle.parts().map(|(entry, part)| match part {
            Part::Envelope(envelope) | Part::Damaged(envelope) => envelope.len(),
            Part::Large(large) => {
                assert_eq!(LargeName::parse(&large.name.to_string()).as_ref(), Ok(&large.name));
                assert!((1..=8).contains(&entry.hops().len()));
                0
            }
        });
        assert!(here.sum::<usize>() < bytes.len());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(name) = BundleName::parse(text) {
            assert_eq!(name.to_string(), text);
        }
        if let Ok(name) = LargeName::parse(text) {
            assert_eq!(name.to_string(), text);
        }
    }
}

/// Envelopes and signed objects, which have fuzz targets of their own: here so that a stable compiler meets them too.
pub(crate) fn sealed(data: &[u8]) {
    let _ = check(Bytes::copy_from_slice(data));
    if let Ok((root, _)) = RootFields::read_unverified(data) {
        let payload = root.encode();
        assert!(data.windows(payload.len()).any(|window| window == payload));
    }
    if let Ok((statement, _)) = StatementFields::read_unverified(data) {
        let payload = statement.encode();
        assert!(data.windows(payload.len()).any(|window| window == payload));
    }
    if let Ok(key) = RsaSpki::from_der(data) {
        assert_eq!(key.der(), data);
    }
    if let Ok(key) = RoleSpki::from_der(data) {
        assert_eq!(key.der(), data);
    }
}
