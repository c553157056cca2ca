//! Where a store is and how to reach it, checked before anything is opened.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::credentials::Credentials;

/// For the answer to a request, beside the time that its bytes take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Tries again within a request.
const RETRIES: usize = 2;

/// What a person writes about a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `s3://bucket/prefix`, or `file:///folder`.
    pub url: String,
    /// Where S3 is, if not at AWS: `https://host:port`; `http` to this machine only.
    pub endpoint: Option<String>,
    /// The region of the bucket. AWS needs it, others seldom.
    pub region: Option<String>,
    /// PEM with the roots that an endpoint of its own is believed by, beside the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// The bucket stands in the path and not in the host's name. None: yes with an endpoint, no at AWS.
    pub path_style: Option<bool>,
    /// Who asks.
    pub credentials: Credentials,
    /// For the answer to a request, beside the time that its bytes take at 64 KiB/s.
    pub request_timeout: Duration,
    /// Tries again within a request. None for whoever pays for the bytes that go out, and comes back by itself.
    pub retries: usize,
}

impl Settings {
    /// Of a URL alone: AWS with the usual variables, or a folder.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            endpoint: None,
            region: None,
            ca_pem: None,
            path_style: None,
            credentials: Credentials::Environment { profile: None },
            request_timeout: REQUEST_TIMEOUT,
            retries: RETRIES,
        }
    }

    /// Where it points to.
    ///
    /// # Errors
    /// [`SettingsError`]; nothing was opened.
    pub fn location(&self) -> Result<Location, SettingsError> {
        let location = Location::parse(&self.url)?;
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint)?;
        }
        match (&location, &self.endpoint, &self.region) {
            (Location::Bucket { .. }, None, None) => Err(SettingsError::Region),
            (Location::Folder(_), Some(_), _) => Err(SettingsError::FolderWithEndpoint),
            _ => Ok(location),
        }
    }
}

/// Why settings cannot be right, for the person who wrote them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Neither of the two forms.
    #[error("`{0}` is neither s3://BUCKET/PREFIX nor file:///FOLDER")]
    Url(String),
    /// A bucket's name has its own grammar.
    #[error("`{0}` is no name of a bucket: 3 to 63 of a-z, 0-9, '.' and '-'")]
    Bucket(String),
    /// Names in a store are put together with '/'.
    #[error(
        "`{0}` is no prefix: parts of A-Z, a-z, 0-9, '.', '_', '-' and '=' between '/', none of them '.' or '..'"
    )]
    Prefix(String),
    /// AWS has no default.
    #[error("a bucket at AWS needs `region`; one elsewhere needs `endpoint`")]
    Region,
    /// Not a URL of a server.
    #[error("`{0}` is no endpoint: https://HOST or https://HOST:PORT")]
    Endpoint(String),
    /// Credentials and sealed envelopes would go in clear.
    #[error(
        "`{0}` is not encrypted: http is for this machine alone (127.0.0.1, [::1], localhost); use https"
    )]
    Clear(String),
    /// A folder is not reached through a server.
    #[error("a file:// URL has no `endpoint`")]
    FolderWithEndpoint,
    /// The roots do not read.
    #[error("the CA file holds no certificate in PEM: {0}")]
    Ca(String),
    /// The folder is not there.
    #[error("the folder {path} cannot be used: {cause}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        cause: String,
    },
    /// What the client below says.
    #[error("{0}")]
    Client(String),
}

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A bucket.
    Bucket {
        /// Its name.
        bucket: String,
        /// What every name begins with; empty, or without '/' at its ends.
        prefix: String,
    },
    /// A folder.
    Folder(PathBuf),
}

impl Location {
    fn parse(url: &str) -> Result<Self, SettingsError> {
        if let Some(path) = url.strip_prefix("file://") {
            let path = Path::new(path);
            return match path.is_absolute() {
                true => Ok(Self::Folder(path.to_owned())),
                false => Err(SettingsError::Url(url.to_owned())),
            };
        }
        let Some(rest) = url.strip_prefix("s3://") else { return Err(SettingsError::Url(url.to_owned())) };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let ends = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = bucket.as_bytes();
        let is_name = (3..=63).contains(&bytes.len()) && bytes.iter().copied().all(inner);
        if !is_name || !ends(bytes.first()) || !ends(bytes.last()) {
            return Err(SettingsError::Bucket(bucket.to_owned()));
        }
        let prefix = match prefix.strip_suffix('/') {
            // Nothing but that: a name with an empty part.
            Some("") | None => prefix,
            Some(prefix) => prefix,
        };
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=');
        let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(inner);
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return Err(SettingsError::Prefix(prefix.to_owned()));
        }
        Ok(Self::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), SettingsError> {
    let refused = || SettingsError::Endpoint(endpoint.to_owned());
    let uri: http::Uri = endpoint.parse().map_err(|_| refused())?;
    let host = uri.host().ok_or_else(refused)?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || endpoint.contains('@') {
        return Err(refused());
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_loopback(host) => Ok(()),
        Some("http") => Err(SettingsError::Clear(endpoint.to_owned())),
        _ => Err(refused()),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> Result<Location, SettingsError> {
        Settings { region: Some("eu-central-1".into()), ..Settings::new(url) }.location()
    }

    fn with_endpoint(endpoint: &str) -> Result<Location, SettingsError> {
        Settings { endpoint: Some(endpoint.into()), ..Settings::new("s3://bucket") }.location()
    }

    #[test]
    fn a_url_is_a_bucket_with_a_prefix_or_a_folder() {
        let bucket =
            |prefix: &str| Ok(Location::Bucket { bucket: "acme-pits.7".into(), prefix: prefix.to_owned() });
        assert_eq!(location("s3://acme-pits.7"), bucket(""));
        assert_eq!(location("s3://acme-pits.7/"), bucket(""));
        assert_eq!(location("s3://acme-pits.7/a=1/B_c/"), bucket("a=1/B_c"));
        assert_eq!(location("file:///mnt/out"), Ok(Location::Folder("/mnt/out".into())));
        for wrong in ["", "s3:/x", "https://b", "file://relative", "/mnt"] {
            assert!(matches!(location(wrong), Err(SettingsError::Url(_))), "{wrong}");
        }
        for wrong in ["s3://", "s3://ab", "s3://Abc", "s3://-abc", "s3://abc.", "s3://a b c"] {
            assert!(matches!(location(wrong), Err(SettingsError::Bucket(_))), "{wrong}");
        }
        for wrong in ["s3://abc//", "s3://abc/a//b", "s3://abc/../b", "s3://abc/a b", "s3://abc/é"] {
            assert!(matches!(location(wrong), Err(SettingsError::Prefix(_))), "{wrong}");
        }
    }

    #[test]
    fn aws_needs_a_region_and_a_folder_has_no_endpoint() {
        assert_eq!(Settings::new("s3://bucket").location(), Err(SettingsError::Region));
        let folder = Settings { endpoint: Some("https://a".into()), ..Settings::new("file:///mnt") };
        assert_eq!(folder.location(), Err(SettingsError::FolderWithEndpoint));
    }

    #[test]
    fn nothing_goes_in_clear_but_to_this_machine() {
        for good in
            ["https://s3.acme.example", "https://10.0.0.1:9000/", "http://127.0.0.1:1", "http://[::1]:1"]
        {
            assert!(with_endpoint(good).is_ok(), "{good}");
        }
        assert!(with_endpoint("http://localhost:9000").is_ok());
        for clear in ["http://10.0.0.1", "http://localhost.example", "http://127.0.0.1.example:80"] {
            assert_eq!(with_endpoint(clear), Err(SettingsError::Clear(clear.into())));
        }
        for wrong in ["", "s3.example", "ftp://a", "https://a/b", "https://a?b", "https://user:secret@a"] {
            assert!(matches!(with_endpoint(wrong), Err(SettingsError::Endpoint(_))), "{wrong}");
        }
    }
}
