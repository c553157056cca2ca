//! Who asks. Looked up again and again: credentials that are renewed take no restart.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use object_store::CredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// A file of credentials is some hundred bytes.
const FILE_MAX: u64 = 64 << 10;
/// What the chain gives is used for so long: a look-up may be a request to STS or to the machine, and there are hundreds of parts in
/// a large envelope. What a role gives is renewed minutes before it runs out.
const HELD: Duration = Duration::from_secs(60);

/// Where credentials come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Where every AWS SDK looks, in its order: the usual variables, the profile of the shared files, a web identity, a container,
    /// the machine's role. The same chain as for KMS.
    Environment {
        /// The profile of the shared files; none: the usual one.
        profile: Option<String>,
    },
    /// A file in the form of AWS's shared credentials file. Read again for every request.
    File {
        /// Where.
        path: PathBuf,
        /// Which section of it.
        profile: String,
    },
    /// A fixed pair, for tests and tools.
    Fixed {
        /// The access key's id.
        id: String,
        /// Its secret.
        secret: Zeroizing<String>,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment { profile } => write!(f, "Environment {{ profile: {profile:?} }}"),
            Self::File { path, profile } => write!(f, "File {{ path: {path:?}, profile: {profile:?} }}"),
            Self::Fixed { id, .. } => write!(f, "Fixed {{ id: {id:?} }}"),
        }
    }
}

impl Credentials {
    /// What gives them to the client. Makes no call.
    pub(super) async fn provider(&self, region: &str) -> Option<AwsCredentialProvider> {
        match self {
            Self::Environment { profile } => {
                let region = aws_config::Region::new(region.to_owned());
                let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).region(region);
                if let Some(profile) = profile {
                    loader = loader.profile_name(profile);
                }
                let chain = loader.load().await.credentials_provider()?;
                Some(Arc::new(Chain::new(chain)))
            }
            Self::File { path, profile } => {
                Some(Arc::new(File { path: path.clone(), profile: profile.clone() }))
            }
            Self::Fixed { .. } => None,
        }
    }
}

type Given<'a> = Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'a>>;

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> object_store::Error {
    object_store::Error::Unauthenticated { path: "credentials".to_owned(), source: Box::new(error) }
}

/// The chain of the SDK, which keeps nothing itself: there it is the clients that do.
struct Chain {
    provider: SharedCredentialsProvider,
    /// One look-up at a time; whoever comes meanwhile gets what it gave.
    held: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({:?})", self.provider)
    }
}

impl Chain {
    fn new(provider: SharedCredentialsProvider) -> Self {
        Self { provider, held: Mutex::new(None) }
    }
}

impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    fn get_credential<'a, 'b>(&'a self) -> Given<'b>
    where
        'a: 'b,
    {
        Box::pin(async move {
            let mut held = self.held.lock().await;
            if let Some((since, credential)) = &*held
                && since.elapsed() < HELD
            {
                return Ok(Arc::clone(credential));
            }
            let found = self.provider.provide_credentials().await.map_err(failed)?;
            let credential = Arc::new(AwsCredential {
                key_id: found.access_key_id().to_owned(),
                secret_key: found.secret_access_key().to_owned(),
                token: found.session_token().map(str::to_owned),
            });
            *held = Some((Instant::now(), Arc::clone(&credential)));
            Ok(credential)
        })
    }
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    profile: String,
}

impl File {
    fn read(&self) -> io::Result<AwsCredential> {
        let wrong = |what: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", self.path.display()))
        };
        let size = std::fs::metadata(&self.path).map_err(|error| wrong(&error.to_string()))?.len();
        if size > FILE_MAX {
            return Err(wrong("larger than a file of credentials can be"));
        }
        let text = std::fs::read_to_string(&self.path).map_err(|error| wrong(&error.to_string()))?;
        let text = Zeroizing::new(text);
        section(&text, &self.profile).ok_or_else(|| {
            wrong(&format!("no aws_access_key_id and aws_secret_access_key in [{}]", self.profile))
        })
    }
}

/// A section of a shared credentials file.
fn section(text: &str, profile: &str) -> Option<AwsCredential> {
    let (mut within, mut id, mut secret, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            within = name.trim() == profile;
        } else if within && let Some((key, value)) = line.split_once('=') {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(AwsCredential { key_id: id?, secret_key: secret?, token })
}

impl CredentialProvider for File {
    type Credential = AwsCredential;

    fn get_credential<'a, 'b>(&'a self) -> Given<'b>
    where
        'a: 'b,
    {
        Box::pin(async move { self.read().map(Arc::new).map_err(failed) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_credential_types::Credentials as Found;
    use aws_credential_types::credential_fn::provide_credentials_fn;
    use aws_credential_types::provider::error::CredentialsError;

    use super::*;

    const FILE: &str = "# pit 7\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=s1\n\n[ relay ]\n\
        aws_access_key_id=AKIA2\naws_secret_access_key = s=2\naws_session_token = t\nregion = x\n[empty]\n\
        aws_access_key_id=\naws_secret_access_key=s\n";

    #[test]
    fn a_section_of_a_shared_file_is_found() {
        let found = section(FILE, "relay").unwrap();
        assert_eq!(
            (found.key_id.as_str(), found.secret_key.as_str(), found.token.as_deref()),
            ("AKIA2", "s=2", Some("t"))
        );
        let found = section(FILE, "default").unwrap();
        assert_eq!((found.key_id.as_str(), found.secret_key.as_str(), found.token), ("AKIA1", "s1", None));
        assert!(section(FILE, "empty").is_none() && section(FILE, "other").is_none());
    }

    #[tokio::test]
    async fn a_file_that_was_renewed_counts_with_the_next_request_and_one_that_is_wrong_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        std::fs::write(&path, FILE).unwrap();
        let file = File { path: path.clone(), profile: "default".into() };
        assert_eq!(file.get_credential().await.unwrap().key_id, "AKIA1");
        std::fs::write(&path, FILE.replace("AKIA1", "AKIA9")).unwrap();
        assert_eq!(file.get_credential().await.unwrap().key_id, "AKIA9");
        std::fs::write(&path, "[default]\naws_secret_access_key=hidden\n").unwrap();
        let said = file.get_credential().await.unwrap_err().to_string();
        assert!(said.contains("credentials: no aws_access_key_id") && !said.contains("hidden"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_chain_is_asked_once_a_minute_and_again_after_it_failed() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let provider = provide_credentials_fn(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            async move {
                match number {
                    0 => Err(CredentialsError::not_loaded("none yet")),
                    _ => Ok(Found::new(format!("AKIA{number}"), "hidden", None, None, "a test")),
                }
            }
        });
        let chain = Chain::new(SharedCredentialsProvider::new(provider));
        assert!(chain.get_credential().await.is_err());
        for (forward, key) in [(0, "AKIA1"), (59, "AKIA1"), (1, "AKIA2"), (0, "AKIA2")] {
            tokio::time::advance(Duration::from_secs(forward)).await;
            assert_eq!(chain.get_credential().await.unwrap().key_id, key);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        assert!(!format!("{chain:?}").contains("hidden"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        let fixed = Credentials::Fixed { id: "AKIA".into(), secret: Zeroizing::new("hidden".into()) };
        assert_eq!(format!("{fixed:?}"), "Fixed { id: \"AKIA\" }");
    }
}
