//! Object stores: what `[spool.jetstream.large]` and `[relay.store]` say alike.

use std::path::PathBuf;

use pithead_hop::objects::{Credentials, Settings, SettingsError};
use pithead_hop::program::config::{Duration, Wrong};
use serde::{Deserialize, Serialize};

/// `[spool.jetstream.large]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LargeStore {
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
}

impl LargeStore {
    /// How to reach it. Reads the CA.
    ///
    /// # Errors
    /// When the CA's file cannot be read.
    pub fn settings(&self) -> std::io::Result<Settings> {
        Ok(Settings {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            ca_pem: self.ca.as_ref().map(std::fs::read).transpose()?,
            path_style: self.path_style,
            credentials: credentials_of(self.credentials.as_ref(), self.profile.as_ref()),
            request_timeout: self.request_timeout.get(),
            ..Settings::new(&self.url)
        })
    }

    pub(super) fn check(&self) -> Result<(), Wrong> {
        const SECTION: &str = "spool.jetstream.large";
        check_store(SECTION, &self.url, self.endpoint.as_ref(), self.region.as_ref())?;
        if self.request_timeout.is_zero() {
            let key = format!("{SECTION}.request_timeout");
            return Err(Wrong::at(key, format!("[{SECTION}] `request_timeout` must be above 0")));
        }
        Ok(())
    }
}

/// Who asks a store.
pub(super) fn credentials_of(file: Option<&PathBuf>, profile: Option<&String>) -> Credentials {
    match file {
        Some(path) => Credentials::File {
            path: path.clone(),
            profile: profile.cloned().unwrap_or_else(|| "default".to_owned()),
        },
        None => Credentials::Environment { profile: profile.cloned() },
    }
}

/// That a store can be where a section says it is.
pub(super) fn check_store(
    section: &str,
    url: &str,
    endpoint: Option<&String>,
    region: Option<&String>,
) -> Result<(), Wrong> {
    let settings = Settings { endpoint: endpoint.cloned(), region: region.cloned(), ..Settings::new(url) };
    let Err(error) = settings.location() else { return Ok(()) };
    let key = match &error {
        SettingsError::Endpoint(_) | SettingsError::Clear(_) | SettingsError::FolderWithEndpoint => {
            "endpoint"
        }
        _ => "url",
    };
    Err(Wrong::at(format!("{section}.{key}"), format!("[{section}] {error}")))
}

pub(super) const fn request_timeout() -> Duration {
    Duration::from_secs(30)
}
