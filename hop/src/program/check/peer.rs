//! Whoever is at the other end: whether its name is found, whether it answers, whether each trusts the other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pithead_proto::errors::v1::ErrorReason;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Finding, Grade};
use crate::connect::{ConnectOptions, Connection, Endpoint, connect};
use crate::identity::end_and_serial;
use crate::program::{ProgramError, human};
use crate::status::Remote;

/// Whether the host of an endpoint has an address.
pub async fn name(endpoint: &Endpoint, limit: Duration, grade: Grade) -> Finding {
    let looked = tokio::net::lookup_host((endpoint.host(), endpoint.port()));
    let not_found = |what: String| Finding {
        grade,
        ..Finding::failure(ErrorReason::PeerUnreachable, what)
            .todo("check the host in the configuration, and the name server that this machine asks")
    };
    match tokio::time::timeout(limit, looked).await {
        Err(_) => not_found(format!("{}: no answer within {}", endpoint.host(), human::span(limit))),
        Ok(Err(error)) => not_found(format!("{} is not found: {error}", endpoint.host())),
        Ok(Ok(addresses)) => {
            let mut shown: Vec<String> =
                addresses.map(|address: SocketAddr| address.ip().to_string()).collect();
            shown.dedup();
            match shown.is_empty() {
                true => not_found(format!("{} has no address", endpoint.host())),
                false => Finding::ok(format!("{} is {}", endpoint.host(), shown.join(", "))),
            }
        }
    }
}

/// Another program to connect to.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The name in its certificate.
    pub name: ServerName<'static>,
    /// Its CA, and our certificate.
    pub tls: Arc<ClientConfig>,
    /// How long each step may take.
    pub limit: Duration,
}

impl Peer {
    /// Connects, over TLS with our certificate, and until the other end's first frame.
    ///
    /// # Errors
    /// What it failed at, as a finding of this grade.
    pub async fn connect(&self, grade: Grade) -> Result<Connection, Finding> {
        let options = ConnectOptions { connect_timeout: self.limit, ..ConnectOptions::default() };
        connect(&self.endpoint, &self.name, self.tls.clone(), &options).await.map_err(|error| {
            let mut finding = Finding::of(&ProgramError::from(error), grade);
            finding.words = format!("{}: {}", self.endpoint, finding.words);
            finding
        })
    }

    /// Connects, and asks for its health: with TLS 1.3, whether our certificate is taken is known only then.
    pub async fn serves(&self, grade: Grade) -> Finding {
        let asked = Instant::now();
        let connection = match self.connect(grade).await {
            Ok(connection) => connection,
            Err(finding) => return finding,
        };
        let (address, certificate) = (
            connection.remote_addr(),
            connection.peer_certificate().and_then(|der| end_and_serial(der).ok()),
        );
        let mut client = HealthClient::new(connection);
        let answer = tokio::time::timeout(self.limit, client.check(HealthCheckRequest::default())).await;
        let endpoint = &self.endpoint;
        let status = match answer {
            Err(_) => {
                let what = format!("{endpoint} took the connection and answers nothing");
                return Finding { grade, ..Finding::failure(ErrorReason::PeerUnreachable, what) }
                    .todo("look at the program at the other end");
            }
            Ok(Err(status)) => {
                let remote = Remote::from_status(&status);
                let mut finding = Finding::of(&ProgramError::from(remote), grade);
                finding.words = format!("{endpoint}: {}", finding.words);
                return finding;
            }
            Ok(Ok(answer)) => answer.into_inner().status,
        };
        let until = certificate
            .map_or_else(String::new, |(end, _)| format!(", certificate until {}", human::moment(end)));
        if status == i32::from(ServingStatus::Serving) {
            let took = human::span(asked.elapsed());
            Finding::ok(format!("{endpoint} ({address}) serves, answered in {took}{until}"))
        } else {
            Finding::warning(format!("{endpoint} ({address}) answers that it does not serve now"))
                .because(ErrorReason::NotReady)
                .todo("see `status` on that machine")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_name_that_nobody_has_is_said_with_its_grade() {
        let found = name(&"localhost:1".parse().unwrap(), LIMIT, Grade::Failure).await;
        assert_eq!(found.grade, Grade::Ok, "{found:?}");
        let lost = name(&"no-such-host.invalid:1".parse().unwrap(), LIMIT, Grade::Warning).await;
        assert_eq!((lost.grade, lost.reason), (Grade::Warning, Some(ErrorReason::PeerUnreachable)));
    }

    #[tokio::test]
    async fn who_refuses_and_who_is_silent_is_told_within_the_limit() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = |listener: &std::net::TcpListener, limit| Peer {
            endpoint: listener.local_addr().unwrap().to_string().parse().unwrap(),
            name: "localhost".try_into().unwrap(),
            tls: crate::tls::pinned([0; 32]),
            limit,
        };
        // It listens, so the connection is made, and nobody ever answers.
        let silent = peer(&free, Duration::from_millis(50)).serves(Grade::Warning).await;
        assert_eq!((silent.grade, silent.reason), (Grade::Warning, Some(ErrorReason::PeerUnreachable)));
        let gone = peer(&free, LIMIT);
        drop(free);
        let refused = gone.serves(Grade::Failure).await;
        assert_eq!((refused.grade, refused.reason), (Grade::Failure, Some(ErrorReason::PeerUnreachable)));
        assert!(refused.todo.is_some());
    }
}
