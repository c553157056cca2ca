//! What a session says of its messages, before it is a context: built from parts that can only be right.

use base64ct::{Base64UrlUnpadded, Encoding as _};

use super::context::Context;
use super::profile::{ContextFacts, ContextKey, ProfileError};
use super::profile_values::{ContentType, Encoding, FileName, ValueError, is_rfc3339};
use crate::names::{DeviceId, Run, Site, StreamName};
use crate::trust::Kid;

/// The facts of a session that its encryption context carries, in clear text. No secret belongs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionContext {
    site: Site,
    device: DeviceId,
    stream: StreamName,
    content_type: ContentType,
    encoding: Option<Encoding>,
    name: Option<FileName>,
    created: Option<String>,
    others: Vec<(String, String)>,
}

impl SessionContext {
    /// The required facts.
    pub fn new(site: Site, device: DeviceId, stream: StreamName, content_type: ContentType) -> Self {
        Self {
            site,
            device,
            stream,
            content_type,
            encoding: None,
            name: None,
            created: None,
            others: Vec::new(),
        }
    }

    /// The plaintexts are compressed before they are sealed.
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = Some(encoding);
        self
    }

    /// The plaintext is a file of this name; visible on the way.
    pub fn file_name(mut self, name: FileName) -> Self {
        self.name = Some(name);
        self
    }

    /// The plaintext is a file of this RFC 3339 time; visible on the way.
    ///
    /// # Errors
    /// [`ValueError::Created`].
    pub fn created(mut self, time: &str) -> Result<Self, ValueError> {
        if !is_rfc3339(time) {
            return Err(ValueError::Created);
        }
        self.created = Some(time.to_owned());
        Ok(self)
    }

    /// A key of the application's own, carried and ignored. Its grammar is judged when the session starts.
    pub fn other(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.others.push((key.into(), value.into()));
        self
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The device.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The stream.
    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// The context on the wire, within the profile; with the signature's fields where the session is signed.
    pub(super) fn build(
        &self,
        statement_digest: &[u8; 32],
        signature: Option<&SignatureFields>,
    ) -> Result<Context, ProfileError> {
        let base64 = |bytes: &[u8]| Base64UrlUnpadded::encode_string(bytes);
        let mut pairs: Vec<(&str, String)> = vec![
            (ContextKey::V.as_str(), "1".to_owned()),
            (ContextKey::Site.as_str(), self.site.to_string()),
            (ContextKey::Device.as_str(), self.device.to_string()),
            (ContextKey::Stream.as_str(), self.stream.to_string()),
            (ContextKey::ContentType.as_str(), self.content_type.to_string()),
            (ContextKey::Statement.as_str(), base64(&statement_digest[..16])),
        ];
        let mut optional =
            |key: ContextKey, value: Option<String>| pairs.extend(value.map(|v| (key.as_str(), v)));
        optional(ContextKey::Encoding, self.encoding.map(|encoding| encoding.as_str().to_owned()));
        optional(ContextKey::Name, self.name.as_ref().map(FileName::to_encoded));
        optional(ContextKey::Created, self.created.clone());
        optional(ContextKey::Kid, signature.map(|fields| base64(fields.kid.as_bytes())));
        optional(ContextKey::Run, signature.map(|fields| fields.run.to_string()));
        optional(ContextKey::Sid, signature.map(|fields| base64(&fields.sid)));
        optional(ContextKey::Sig, signature.and_then(|fields| fields.sig.map(|sig| base64(&sig))));
        for (key, value) in &self.others {
            if key.starts_with("pithead:") {
                return Err(ProfileError::UnknownKey);
            }
            pairs.push((key, value.clone()));
        }
        let bytes = pairs.iter().map(|(key, value)| 4 + key.len() + value.len()).sum::<usize>() + 2;
        let too_large = ProfileError::ContextTooLarge { pairs: pairs.len(), bytes };
        Context::from_pairs(pairs).map_err(|_| too_large)
    }
}

/// The signature's fields; without `sig` while it is being made.
pub(super) struct SignatureFields {
    pub(super) kid: Kid,
    pub(super) run: Run,
    pub(super) sid: [u8; 32],
    pub(super) sig: Option<[u8; 64]>,
}

/// Refuses a context that no hop would admit, before anything is sealed under it.
pub(super) fn within_profile(context: &Context) -> Result<(), ProfileError> {
    ContextFacts::read(context).map(drop)
}
