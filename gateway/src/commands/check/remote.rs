//! Whoever the gateway talks to: the source of statements, the far end of the relay, KMS. All at once, each with its limit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pithead_hop::connect::Endpoint;
use pithead_hop::keys::{Held, KeyClient, KeyFile};
use pithead_hop::objects::{ProbeError, Store};
use pithead_hop::program::check::peer::{self, Peer};
use pithead_hop::program::check::{CONNECTIVITY, Finding, Grade, Report};
use pithead_hop::program::{ProgramError, human};
use pithead_hop::status::reason_of_trust;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{Bundle, Device, Sha256Digest, StatementKey};
use rustls::ClientConfig;

use crate::commands::key::trial;
use crate::config::{Config, RelayStore};
use crate::kms::Kms;
use crate::run::material::Material;
use crate::run::server_name;

/// What it takes to ask.
pub(super) struct Remote<'a> {
    pub(super) config: &'a Config,
    pub(super) material: &'a Material,
    /// What the gateway believes already.
    pub(super) kept: Option<&'a Device>,
    pub(super) limit: Duration,
}

impl Remote<'_> {
    /// Asks all of them. Gives what the source's statement would have a gateway believe.
    pub(super) async fn ask(&self, report: &mut Report) -> Option<Device> {
        let (names, source, relay, kms) = tokio::join!(self.names(), self.source(), self.relay(), self.kms());
        for (name, finding) in names {
            report.add(CONNECTIVITY, name, finding);
        }
        let (source, device) = source;
        report.add(CONNECTIVITY, "key source", source);
        report.add(CONNECTIVITY, "relay", relay);
        for (name, finding) in kms {
            report.add(CONNECTIVITY, name, finding);
        }
        device
    }

    /// Without a source, a gateway that believes a statement goes on with it.
    fn grade_of_source(&self) -> Grade {
        let usable = self.kept.is_some_and(|device| device.statement().is_some());
        if usable { Grade::Warning } else { Grade::Failure }
    }

    async fn names(&self) -> Vec<(String, Finding)> {
        let upstream = self.config.keys.upstream.as_ref();
        let relay = self.config.relay.as_ref().and_then(|relay| relay.peer()).map(|peer| peer.endpoint);
        let mut asked: Vec<(&str, &Endpoint, Grade)> = Vec::new();
        let all = [("key source", upstream, self.grade_of_source()), ("relay", relay, Grade::Warning)];
        for (what, endpoint, grade) in all {
            let Some(endpoint) = endpoint else { continue };
            let is_address = endpoint.host().parse::<std::net::IpAddr>().is_ok();
            if !is_address && asked.iter().all(|(_, other, _)| other.host() != endpoint.host()) {
                asked.push((what, endpoint, grade));
            }
        }
        let looked = asked.into_iter().map(|(what, endpoint, grade)| async move {
            (format!("name of the {what}"), peer::name(endpoint, self.limit, grade).await)
        });
        futures_util::future::join_all(looked).await
    }

    fn peer(
        &self,
        key: &str,
        name: Option<&str>,
        endpoint: &Endpoint,
        tls: &Option<Arc<ClientConfig>>,
    ) -> Result<Peer, Finding> {
        let name = server_name(key, name, endpoint).map_err(|error| Finding::of(&error, Grade::Failure))?;
        let tls = tls.clone().ok_or_else(|| Finding::skipped("no CA is configured for it"))?;
        Ok(Peer { endpoint: endpoint.clone(), name, tls, limit: self.limit })
    }

    async fn source(&self) -> (Finding, Option<Device>) {
        let keys = &self.config.keys;
        let bundle = match (&keys.upstream, &keys.bundle) {
            (Some(endpoint), _) => self.upstream(endpoint).await,
            (None, Some(path)) => {
                let unreadable = |what: String| {
                    let finding = Finding::failure(ErrorReason::ConfigUnreadable, what)
                        .todo("carry a bundle there that the authority's tool has exported");
                    Finding { grade: self.grade_of_source(), ..finding }
                };
                let read = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
                let file = read.and_then(|bytes| {
                    KeyFile::read(Bytes::from(bytes)).map_err(|error| format!("{}: {error}", path.display()))
                });
                file.map(|file| file.bundle).map_err(unreadable)
            }
            (None, None) => return (Finding::skipped("[keys] names no source"), None),
        };
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(finding) => return (finding, None),
        };
        match trial(self.config, self.material, bundle) {
            Ok(device) => match device.statement() {
                Some(statement) => {
                    let fields = statement.fields();
                    let expires = human::moment(fields.expires_at.as_secs());
                    let words = format!(
                        "statement {}.{}, verified against the root that is here; it expires {expires}",
                        fields.epoch, fields.sequence
                    );
                    (Finding::ok(words), Some(device))
                }
                None => (Finding::warning("it has roots, and no statement of this site"), None),
            },
            Err(error) => {
                let refused =
                    ProgramError::new(reason_of_trust(error), format!("its bundle is not believed: {error}"))
                        .todo("compare authority, site and root with what the authority has published; `explain` the code");
                (Finding::of(&refused, self.grade_of_source()), None)
            }
        }
    }

    async fn upstream(&self, endpoint: &Endpoint) -> Result<Bundle, Finding> {
        let (grade, trust) = (self.grade_of_source(), &self.config.trust);
        let name = self.config.keys.upstream_name.as_deref();
        let peer = self.peer("[keys] upstream_name", name, endpoint, &self.material.keys)?;
        let connection = peer.connect(grade).await?;
        let mut client =
            KeyClient::new(connection, trust.authority.clone(), self.config.gateway.site.clone());
        let answer = client.fetch(&Held::default(), self.limit).await.map_err(|error| {
            let program = ProgramError::new(error.reason(), format!("{endpoint}: {error}"))
                .todo("see `status` of the far end, and whether it knows this site");
            Finding::of(&program, grade)
        })?;
        answer.bundle.ok_or_else(|| {
            let what = format!("{endpoint} has no statement for this site");
            Finding { grade, ..Finding::failure(ErrorReason::KeysNotReady, what) }
                .todo("have the authority issue one")
        })
    }

    async fn relay(&self) -> Finding {
        let Some(relay) = &self.config.relay else {
            return Finding::ok("not configured: envelopes wait here to be carried");
        };
        if let Some(store) = relay.store() {
            return self.store(store).await;
        }
        let Some(peer) = relay.peer() else { return Finding::skipped("of a kind that has no far end") };
        match self.peer("[relay] name", peer.name, peer.endpoint, &self.material.relay) {
            Ok(peer) => peer.serves(Grade::Warning).await,
            Err(finding) => finding,
        }
    }

    /// Whether the store is there, lets this gateway write, and tells that an object is there already.
    async fn store(&self, store: &RelayStore) -> Finding {
        let asked = async {
            let settings = store.settings().map_err(|error| {
                Finding::failure(ErrorReason::ConfigUnreadable, format!("[relay.store] ca: {error}"))
            })?;
            let opened = Store::open(&settings).await.map_err(|error| {
                Finding::failure(ErrorReason::ConfigInvalid, format!("[relay.store]: {error}"))
            })?;
            opened.probe().await.map_err(|error| match error {
                ProbeError::Store(error) => Finding::warning(error.to_string())
                    .because(error.fault.reason())
                    .todo(format!("pithead-gateway explain {}", error.fault.reason().code())),
                other => Finding::failure(ErrorReason::StoreUnsuitable, other.to_string())
                    .todo("use a store that heeds If-None-Match"),
            })?;
            Ok::<Store, Finding>(opened)
        };
        match tokio::time::timeout(self.limit, asked).await {
            Err(_) => {
                Finding::warning(format!("{}: no answer within {}", store.url, human::span(self.limit)))
                    .because(ErrorReason::StoreUnreachable)
                    .todo("check the way to the store: endpoint, DNS, proxy")
            }
            Ok(Ok(opened)) => Finding::ok(format!("{opened} takes bundles, and writes over none")),
            Ok(Err(finding)) => finding,
        }
    }

    async fn kms(&self) -> Vec<(String, Finding)> {
        if !self.config.keys.kms {
            return Vec::new();
        }
        let listed = self.kept.and_then(|device| device.statement()).map(|statement| {
            statement.fields().keys.iter().filter(|key| key.status.is_listed()).cloned().collect::<Vec<_>>()
        });
        let Some(listed) = listed else {
            return vec![("KMS".to_owned(), Finding::skipped("no statement here names a key yet"))];
        };
        let kms = Kms::from_environment().await;
        let asked = listed.iter().map(|key| self.kms_key(&kms, key));
        futures_util::future::join_all(asked).await
    }

    async fn kms_key(&self, kms: &Kms, key: &StatementKey) -> (String, Finding) {
        let name = format!("KMS, {} key", format!("{:?}", key.status).to_lowercase());
        let asked = tokio::time::timeout(self.limit, kms.public_key(&key.arn)).await;
        let finding = match asked {
            Err(_) => Finding::warning(format!("{}: no answer within {}", key.arn, human::span(self.limit)))
                .because(ErrorReason::KmsUnreachable)
                .todo("check the way to KMS: endpoint, DNS, proxy"),
            Ok(Err(error)) => Finding::warning(format!("{}: {}", key.arn, error.fault))
                .because(error.fault.reason())
                .todo(format!("pithead-gateway explain {}", error.fault.reason().code())),
            Ok(Ok(spki)) if Sha256Digest::of(&spki) == key.fingerprint => {
                Finding::ok(format!("{} is enabled, and is the one that was stated", key.arn))
            }
            Ok(Ok(_)) => Finding::failure(
                ErrorReason::KmsFingerprint,
                format!("{}: KMS has another key than the statement", key.arn),
            )
            .todo("find out which is wrong before anything else"),
        };
        (name, finding)
    }
}
