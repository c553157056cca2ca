//! What is in the bucket.

use std::collections::BTreeMap;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its bytes.
    pub bytes: Bytes,
    /// What names these bytes.
    pub etag: String,
}

impl Object {
    pub(super) fn new(bytes: Bytes) -> Self {
        let etag = etag(&bytes);
        Self { bytes, etag }
    }
}

/// Not MD5, as S3's is of a plain PUT: nobody may rely on that.
fn etag(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

#[derive(Debug, Default)]
struct Upload {
    key: String,
    parts: BTreeMap<u32, Object>,
}

/// Keys and uploads of one bucket.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    begun: u64,
}

/// Why a multipart upload did not come to an end.
pub(super) enum NotComplete {
    NoSuchUpload,
    InvalidPart,
    EntityTooSmall,
}

impl Objects {
    pub(super) fn begin(&mut self, key: &str) -> String {
        self.begun += 1;
        let id = format!("upload-{}", self.begun);
        self.uploads.insert(id.clone(), Upload { key: key.to_owned(), ..Upload::default() });
        id
    }

    pub(super) fn part(&mut self, key: &str, id: &str, number: u32, bytes: Bytes) -> Option<String> {
        let upload = self.uploads.get_mut(id).filter(|upload| upload.key == key)?;
        let part = Object::new(bytes);
        let etag = part.etag.clone();
        upload.parts.insert(number, part);
        Some(etag)
    }

    /// As S3: the parts that are named, in their order, each but the last of `least` bytes or more.
    pub(super) fn complete(
        &mut self,
        key: &str,
        id: &str,
        named: &[(u32, String)],
        least: usize,
    ) -> Result<String, NotComplete> {
        let upload =
            self.uploads.get(id).filter(|upload| upload.key == key).ok_or(NotComplete::NoSuchUpload)?;
        if named.is_empty() || !named.is_sorted_by(|one, next| one.0 < next.0) {
            return Err(NotComplete::InvalidPart);
        }
        let mut whole = Vec::new();
        for (at, (number, etag)) in named.iter().enumerate() {
            let part =
                upload.parts.get(number).filter(|part| part.etag.trim_matches('"') == etag.trim_matches('"'));
            let part = part.ok_or(NotComplete::InvalidPart)?;
            if at + 1 < named.len() && part.bytes.len() < least {
                return Err(NotComplete::EntityTooSmall);
            }
            whole.extend_from_slice(&part.bytes);
        }
        self.uploads.remove(id);
        let object = Object::new(whole.into());
        let etag = object.etag.clone();
        self.objects.insert(key.to_owned(), object);
        Ok(etag)
    }

    pub(super) fn abort(&mut self, id: &str) -> bool {
        self.uploads.remove(id).is_some()
    }

    pub(super) fn forget_uploads(&mut self) {
        self.uploads.clear();
    }

    pub(super) fn lose_parts(&mut self) {
        self.uploads.values_mut().for_each(|upload| upload.parts.clear());
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }
}
