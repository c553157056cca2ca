//! `EnrollService`: a token and a key for a certificate.
//!
//! In order: the address has not guessed too often, the request proves its key, the key bundle is there, then the token. The
//! token's use and the certificate are on disk before the answer leaves, so a lost answer costs nothing: the same token with
//! the same key is answered again.
//!
//! A token has 128 bits, so nobody guesses one; what is bounded here is the noise ([`WRONG_MAX`] wrong attempts an hour and
//! host), and what a signature costs, by the port's own limits ([`limits`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use moka::sync::Cache;
use pithead_hop::accept::{Limits, REFUSED_LOG_INTERVAL, RemoteAddress, Seldom, host_of};
use pithead_hop::backoff::{random, spread};
use pithead_hop::connect::Endpoint;
use pithead_hop::keys::MESSAGE_MAX;
use pithead_hop::program::units;
use pithead_hop::status::Refusal;
use pithead_proto::enroll::v1::enroll_service_server::{EnrollService, EnrollServiceServer};
use pithead_proto::enroll::v1::{EnrollRequest, EnrollResponse};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{DeviceId, Site};
use rustls::pki_types::CertificateDer;
use tonic::{Request, Response, Status};

use super::ca::{CaError, ProvenRequest, SiteCa};
use super::file::{FileError, RegistryFile};
use super::registry::{Stamp, TokenError};
use crate::keys::book::Book;
use crate::metrics::Metrics;

/// Wrong attempts from one address before it is told to wait: a person who mistypes needs three.
pub const WRONG_MAX: u32 = 10;
/// How long wrong attempts are held against an address.
const WRONG_FOR: Duration = Duration::from_secs(3600);
/// Addresses whose wrong attempts are remembered: as many as may be connected here in an hour, and a hundred kilobytes.
const ADDRESSES_MAX: u64 = 4096;
/// Longest request, in bytes: a certificate request and a token, with room.
const REQUEST_MAX: usize = 8 << 10;
/// What a device is told to wait when there is no statement yet, before jitter.
const NOT_READY_WAIT: Duration = Duration::from_secs(10);
/// The longest token that is looked at, in bytes.
const TOKEN_MAX: usize = 128;

/// Bounds of the enrolment port, tight: a device comes here once in its life, asks once and goes.
#[must_use]
pub fn limits() -> Limits {
    Limits {
        connections: 64,
        connections_per_ip: 4,
        connections_per_identity: 4,
        handshakes: 4,
        handshake_timeout: units::Duration::from_secs(10),
        first_request: units::Duration::from_secs(10),
        idle: units::Duration::from_secs(10),
        age: units::Duration::from_secs(60),
        age_grace: units::Duration::from_secs(5),
        max_concurrent_streams: 2,
        requests_per_second: 1,
        request_burst: 8,
        ..Limits::default()
    }
}

/// What a device is told beside its certificate.
#[derive(Debug, Clone)]
pub struct Told {
    /// The site.
    pub site: Site,
    /// Where the gateways are.
    pub endpoints: Vec<Endpoint>,
    /// The name in their certificates, if it is not the host.
    pub server_name: Option<String>,
    /// The CAs of their certificates.
    pub gateway_ca: Vec<CertificateDer<'static>>,
}

/// Who signs, and what is said beside: read again at a reload, and both together.
#[derive(Debug, Clone)]
pub struct Issuing {
    /// Who signs.
    pub ca: Arc<SiteCa>,
    /// What is said.
    pub told: Told,
}

/// Serves enrolment.
#[derive(Debug)]
pub struct Enrolment {
    file: RegistryFile,
    issuing: Arc<ArcSwap<Issuing>>,
    book: Book,
    metrics: Metrics,
    wall_s: fn() -> u64,
    /// By host: with IPv6, one has a whole /64.
    wrong: Cache<IpAddr, u32>,
    log_next: Seldom,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum NotEnrolled {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl NotEnrolled {
    fn refusal(&self) -> Refusal {
        let (reason, detail) = match self {
            Self::Token(TokenError::Unknown) => {
                (ErrorReason::EnrollTokenInvalid, "this is no token that was given out here")
            }
            Self::Token(TokenError::Expired) => {
                (ErrorReason::EnrollTokenExpired, "the token has expired; have another one given out")
            }
            Self::Token(TokenError::Used) => (
                ErrorReason::EnrollTokenUsed,
                "the token was used with another key; if that was not you, have the device revoked",
            ),
            Self::Token(TokenError::Revoked) => (ErrorReason::DeviceRevoked, "the device was revoked"),
            Self::Ca(_) => {
                (ErrorReason::Internal, "no certificate could be made; the gateway's log has the cause")
            }
            Self::File(_) => (
                ErrorReason::DiskFailed,
                "the registry could not be written; the gateway's log has the cause",
            ),
        };
        Refusal::new(reason, detail)
    }

    /// True for what somebody would see who guesses.
    fn is_a_guess(&self) -> bool {
        matches!(self, Self::Token(TokenError::Unknown))
    }
}

impl Enrolment {
    /// Enrols with the tokens of `file`. `wall_s` is the clock that certificates and tokens are dated by.
    #[must_use]
    pub fn new(
        file: RegistryFile,
        issuing: Arc<ArcSwap<Issuing>>,
        book: Book,
        metrics: Metrics,
        wall_s: fn() -> u64,
    ) -> Self {
        let wrong = Cache::builder().max_capacity(ADDRESSES_MAX).time_to_live(WRONG_FOR).build();
        Self { file, issuing, book, metrics, wall_s, wrong, log_next: Seldom::new(REFUSED_LOG_INTERVAL) }
    }

    /// As tonic's routes take it.
    #[must_use]
    pub fn into_service(self) -> EnrollServiceServer<Self> {
        EnrollServiceServer::new(self)
            .max_decoding_message_size(REQUEST_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    fn wrong_attempts(&self, address: IpAddr) -> u32 {
        self.wrong.get(&host_of(address)).unwrap_or(0)
    }

    async fn answer(&self, address: IpAddr, request: EnrollRequest) -> Result<EnrollResponse, Refusal> {
        if self.wrong_attempts(address) >= WRONG_MAX {
            return Err(Refusal::new(ErrorReason::Throttled, "too many wrong attempts from this address")
                .retry_after(spread(WRONG_FOR, random())));
        }
        let EnrollRequest { token, certificate_request } = request;
        if token.is_empty() || token.len() > TOKEN_MAX {
            return Err(Refusal::field("token", "is empty, or longer than a token"));
        }
        let proven = ProvenRequest::read(&certificate_request)
            .map_err(|error| Refusal::field("certificate_request", error.to_string()))?;
        let Some(keys) = self.book.current() else {
            return Err(Refusal::new(ErrorReason::KeysNotReady, "no statement was ever accepted here")
                .retry_after(spread(NOT_READY_WAIT, random())));
        };
        // The same from here to the answer, whatever is reloaded meanwhile.
        let issuing = self.issuing.load_full();
        let (file, ca, now) = (self.file.clone(), issuing.ca.clone(), Stamp((self.wall_s)()));
        let made = tokio::task::spawn_blocking(move || {
            file.change(|registry| {
                let device = registry.redeem(&token, proven.key(), now)?;
                let signed = ca.for_request(&device, &proven, now)?;
                registry.issued(&device, signed.issued.clone(), now);
                Ok::<_, NotEnrolled>((device, signed))
            })
        });
        let made =
            made.await.map_err(|_| Refusal::new(ErrorReason::Internal, "no certificate could be made"))?;
        let (device, signed) = made.map_err(|error| {
            if error.is_a_guess() {
                // Two at once may count as one; the port lets four through at once, so at most 13 are wrong.
                self.wrong.insert(host_of(address), self.wrong_attempts(address) + 1);
            }
            if !matches!(error, NotEnrolled::Token(_)) {
                tracing::error!(event = "enroll.failed", %error);
            }
            error.refusal()
        })?;
        tracing::info!(
            event = "enroll.done",
            %device,
            %address,
            serial = signed.issued.serial,
            not_after = %signed.issued.not_after,
        );
        Ok(response(&issuing, &device, &signed.certificate, keys.export().to_proto()))
    }
}

fn response(
    issuing: &Issuing,
    device: &DeviceId,
    certificate: &CertificateDer<'static>,
    bundle: pithead_proto::keys::v1::KeyBundle,
) -> EnrollResponse {
    let Issuing { ca, told } = issuing;
    let bytes = |der: &CertificateDer<'static>| Bytes::copy_from_slice(der);
    EnrollResponse {
        site: told.site.to_string(),
        device: device.to_string(),
        certificates: std::iter::once(certificate).chain(ca.above()).map(bytes).collect(),
        gateway_ca: told.gateway_ca.iter().map(bytes).collect(),
        endpoints: told.endpoints.iter().map(Endpoint::to_string).collect(),
        server_name: told.server_name.clone().unwrap_or_default(),
        bundle: Some(bundle),
    }
}

#[tonic::async_trait]
impl EnrollService for Enrolment {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let address = request.extensions().get::<RemoteAddress>().map(|RemoteAddress(from)| from.ip());
        let address =
            address.ok_or_else(|| Refusal::new(ErrorReason::Internal, "the caller has no address"))?;
        let address = address.to_canonical();
        let answer = self.answer(address, request.into_inner()).await;
        self.metrics.enrolled(answer.as_ref().err().map(|refusal| refusal.reason));
        match answer {
            Ok(response) => Ok(Response::new(response)),
            Err(refusal) => {
                let reason = refusal.reason.name();
                if self.log_next.is_time() {
                    tracing::warn!(event = "enroll.refused", %address, reason);
                } else {
                    tracing::debug!(event = "enroll.refused", %address, reason);
                }
                Err(refusal.into())
            }
        }
    }
}
