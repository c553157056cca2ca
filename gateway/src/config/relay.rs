//! `[relay]`: where envelopes go, and how.

use std::path::PathBuf;

use pithead_hop::connect::Endpoint;
use pithead_hop::objects::Settings;
use pithead_hop::program::config::{ByteSize, Duration, Wrong};
use serde::{Deserialize, Serialize};

use super::store::{check_store, credentials_of, request_timeout};

/// How envelopes leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayKind {
    /// Over a call to a decryptor or to another gateway.
    #[default]
    Grpc,
    /// In bundles into an object store.
    ObjectStore,
}

/// `[relay]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// How they leave.
    #[serde(default)]
    pub kind: RelayKind,
    /// Kind `grpc`: the decryptor, or another gateway.
    pub endpoint: Option<Endpoint>,
    /// Kind `grpc`, PEM: the CA of its certificate.
    pub ca: Option<PathBuf>,
    /// The name in its certificate, if it is not the endpoint's host.
    pub name: Option<String>,
    /// Bytes that may be under way unanswered.
    #[serde(default = "window")]
    pub window: ByteSize,
    /// Bytes a second that may leave this site; any amount without it.
    pub rate: Option<ByteSize>,
    /// How long the far end may answer nothing while something is under way.
    #[serde(default = "answer_timeout")]
    pub answer_timeout: Duration,
    /// What the refused area may take.
    #[serde(default = "refused_size")]
    pub refused_size: ByteSize,
    /// Kind `object_store`: where and how.
    pub store: Option<RelayStore>,
}

/// The far end of a relay over calls.
#[derive(Debug, Clone, Copy)]
pub struct RelayPeer<'a> {
    /// Where it is.
    pub endpoint: &'a Endpoint,
    /// PEM: the CA of its certificate.
    pub ca: &'a PathBuf,
    /// The name in its certificate, if it is not the endpoint's host.
    pub name: Option<&'a str>,
}

impl Relay {
    /// The far end, if this is a relay over calls.
    #[must_use]
    pub fn peer(&self) -> Option<RelayPeer<'_>> {
        match (self.kind, &self.endpoint, &self.ca) {
            (RelayKind::Grpc, Some(endpoint), Some(ca)) => {
                Some(RelayPeer { endpoint, ca, name: self.name.as_deref() })
            }
            _ => None,
        }
    }

    /// The store, if this is a relay into one.
    #[must_use]
    pub fn store(&self) -> Option<&RelayStore> {
        self.store.as_ref().filter(|_| self.kind == RelayKind::ObjectStore)
    }

    pub(super) fn check(&self) -> Result<(), Wrong> {
        if self.rate.is_some_and(|rate| rate.get() == 0) {
            return Err(Wrong::at(
                "relay.rate",
                "[relay] `rate` is 0; `pithead-gateway relay pause` has the relay stand still",
            ));
        }
        if self.answer_timeout.is_zero() {
            return Err(Wrong::at("relay.answer_timeout", "[relay] `answer_timeout` must be above 0"));
        }
        match self.kind {
            RelayKind::Grpc => {
                if self.endpoint.is_none() || self.ca.is_none() {
                    return Err(Wrong::at("relay", "[relay] of kind `grpc` needs `endpoint` and `ca`"));
                }
            }
            RelayKind::ObjectStore => {
                if self.store.is_none() {
                    return Err(Wrong::at(
                        "relay",
                        "[relay] of kind `object_store` needs [relay.store] with `url`",
                    ));
                }
                let of_calls = [
                    ("relay.endpoint", self.endpoint.is_some()),
                    ("relay.ca", self.ca.is_some()),
                    ("relay.name", self.name.is_some()),
                ];
                if let Some((key, _)) = of_calls.into_iter().find(|(_, is_set)| *is_set) {
                    return Err(Wrong::at(
                        key,
                        "[relay] of kind `object_store` has that in [relay.store], if at all",
                    ));
                }
            }
        }
        self.store.as_ref().map_or(Ok(()), RelayStore::check)
    }
}

/// `[relay.store]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayStore {
    /// `s3://bucket/prefix`, or `file:///folder`.
    pub url: String,
    /// Where S3 is, if not at AWS.
    pub endpoint: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    /// PEM: roots that the endpoint is believed by, beside the system's.
    pub ca: Option<PathBuf>,
    /// The bucket stands in the path and not in the host's name.
    pub path_style: Option<bool>,
    /// A file with credentials in the form of AWS's shared credentials file.
    pub credentials: Option<PathBuf>,
    /// The section of that file, or the profile of AWS's own.
    pub profile: Option<String>,
    /// For the answer to a request, beside the time that its bytes take.
    #[serde(default = "request_timeout")]
    pub request_timeout: Duration,
    /// Bytes of envelopes that make a bundle full.
    #[serde(default = "bundle_size")]
    pub bundle_size: ByteSize,
    /// A bundle that is not full goes out when its oldest envelope has waited so long.
    #[serde(default = "bundle_delay")]
    pub bundle_delay: Duration,
}

/// A bundle is held in memory by who packs and who reads it.
const BUNDLE_SIZES: std::ops::RangeInclusive<u64> = 64 << 10..=32 << 20;

impl RelayStore {
    /// How to reach it. Reads the CA.
    ///
    /// # Errors
    /// When the CA's file cannot be read.
    pub fn settings(&self) -> std::io::Result<Settings> {
        let credentials = credentials_of(self.credentials.as_ref(), self.profile.as_ref());
        Ok(Settings {
            url: self.url.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            ca_pem: self.ca.as_ref().map(std::fs::read).transpose()?,
            path_style: self.path_style,
            credentials,
            request_timeout: self.request_timeout.get(),
            // The WAN budget is paid for each time that bytes go out, and the relay tries again by itself.
            retries: 0,
        })
    }

    pub(super) fn check(&self) -> Result<(), Wrong> {
        check_store("relay.store", &self.url, self.endpoint.as_ref(), self.region.as_ref())?;
        if !BUNDLE_SIZES.contains(&self.bundle_size.get()) {
            return Err(Wrong::at(
                "relay.store.bundle_size",
                "[relay.store] `bundle_size` is from 64KiB to 32MiB",
            ));
        }
        for (key, time) in [("bundle_delay", self.bundle_delay), ("request_timeout", self.request_timeout)] {
            if time.is_zero() {
                return Err(Wrong::at(
                    match key {
                        "bundle_delay" => "relay.store.bundle_delay",
                        _ => "relay.store.request_timeout",
                    },
                    format!("[relay.store] `{key}` must be above 0"),
                ));
            }
        }
        Ok(())
    }
}

pub(super) const fn window() -> ByteSize {
    ByteSize::mib(16)
}

/// What is paid for is the request: at 8 MiB a bundle, a terabyte is 131,072 of them.
const fn bundle_size() -> ByteSize {
    ByteSize::mib(8)
}

/// A lane that never fills a bundle makes 360 of them an hour.
const fn bundle_delay() -> Duration {
    Duration::from_secs(10)
}

/// A batch takes minutes over a thin link, and an unwrapping of keys its retries: this is far above both, and it ends what
/// a far end that answers pings and nothing else would hold for ever.
pub(super) const fn answer_timeout() -> Duration {
    Duration::from_secs(600)
}

pub(crate) const fn refused_size() -> ByteSize {
    ByteSize::mib(1024)
}
