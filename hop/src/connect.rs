//! One connection to one place, with an honest reason when there is none.
//!
//! [`connect`] returns when the other end has spoken HTTP/2 to us. With TLS 1.3 that is the first moment at which we know
//! that it takes our certificate: its refusal arrives after our half of the handshake is done. Nothing reconnects behind
//! the caller's back: a relay has to know where a connection ended, since what was not acknowledged on it is sent again.
//!
//! The HTTP/2 layer keeps of a failed read only its text, so the stream under it remembers the cause
//! ([`Connection::end_cause`]), and every failed call carries it.

use std::{
    error::Error as StdError,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    str::FromStr,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, Uri, uri::Authority};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pithead_proto::errors::v1::ErrorReason;
use rustls::{AlertDescription, CertificateError, ClientConfig, OtherError};
use rustls_pki_types::{CertificateDer, DnsName, ServerName};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use crate::tls::client::OtherKey;

/// Why there is no connection, or no longer one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Refused, reset, not resolved, no route.
    #[error("the other end cannot be reached: {0}")]
    Unreachable(io::ErrorKind),
    /// No answer within the time allowed.
    #[error("the other end did not answer within {0:?}")]
    TimedOut(Duration),
    /// Its certificate does not hold.
    #[error("the other end is not trusted: {0}")]
    Untrusted(Untrusted),
    /// It demands a client certificate, and none was shown.
    #[error("the other end demands a client certificate")]
    CertificateRequired,
    /// It does not take our certificate.
    #[error("the other end refused our certificate: {0}")]
    CertificateRefused(CertificateRefused),
    /// It does not speak HTTP/2 over TLS 1.3.
    #[error("the other end does not speak HTTP/2 over TLS 1.3")]
    Protocol,
}

/// What is wrong with the other end's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Untrusted {
    /// Signed by another CA than the one expected.
    #[error("its certificate is not of the expected CA")]
    Authority,
    /// Of the right CA, for another name.
    #[error("its certificate is for another name")]
    Name,
    /// Past its end.
    #[error("its certificate has expired")]
    Expired,
    /// Before its beginning.
    #[error("its certificate is not valid yet; is the clock here right?")]
    NotYetValid,
    /// Not the key whose fingerprint was given.
    #[error("its key does not have the fingerprint that was given")]
    Key,
    /// Anything else: encoding, signature, purpose.
    #[error("its certificate does not hold")]
    Other,
}

/// What the other end says is wrong with our certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateRefused {
    /// Not of a CA that it knows for our site.
    #[error("not of a CA that it trusts for this site")]
    Authority,
    /// Past its end, or before its beginning.
    #[error("expired, or not valid yet")]
    Expired,
    /// Revoked.
    #[error("revoked")]
    Revoked,
    /// Anything else: it names nobody, or does not hold.
    #[error("it names nobody, or does not hold")]
    Other,
}

impl ConnectError {
    /// The registry's reason.
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) | Self::Protocol => ErrorReason::PeerUnreachable,
            Self::Untrusted(_) => ErrorReason::PeerUntrusted,
            Self::CertificateRequired => ErrorReason::CertificateRequired,
            Self::CertificateRefused(CertificateRefused::Revoked) => ErrorReason::CertificateRevoked,
            Self::CertificateRefused(_) => ErrorReason::CertificateInvalid,
        }
    }

    /// True if trying again later may help without anybody mending something.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::TimedOut(_))
    }

    /// The cause that lies somewhere under `error`, such as a failed call's status.
    pub fn in_chain(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found.clone());
            }
            if let Some(call) = error.downcast_ref::<CallError>()
                && let Some(found) = &call.cause
            {
                return Some(found.clone());
            }
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::from_tls(tls));
            }
            if let Some(io) = error.downcast_ref::<io::Error>()
                && let Some(inner) = io.get_ref()
                && let Some(found) = Self::in_chain(inner)
            {
                // An io::Error's source() passes over the very error that it wraps.
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    fn from_io(error: &io::Error) -> Self {
        Self::in_chain(error).unwrap_or(Self::Unreachable(error.kind()))
    }

    fn from_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(why) => Self::Untrusted(match why {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Untrusted::Authority,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Untrusted::Name
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Untrusted::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Untrusted::NotYetValid
                }
                CertificateError::Other(OtherError(why)) if why.is::<OtherKey>() => Untrusted::Key,
                _ => Untrusted::Other,
            }),
            rustls::Error::NoCertificatesPresented => Self::Untrusted(Untrusted::Other),
            rustls::Error::AlertReceived(alert) => match alert {
                AlertDescription::CertificateRequired => Self::CertificateRequired,
                AlertDescription::UnknownCA => Self::CertificateRefused(CertificateRefused::Authority),
                AlertDescription::CertificateExpired => Self::CertificateRefused(CertificateRefused::Expired),
                AlertDescription::CertificateRevoked => Self::CertificateRefused(CertificateRefused::Revoked),
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError => Self::CertificateRefused(CertificateRefused::Other),
                _ => Self::Protocol,
            },
            _ => Self::Protocol,
        }
    }
}

/// Where to connect to: `host:port`, with `[...]` around an IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an endpoint is host:port, such as gateway.pit-7.example:7443 or [fd00::1]:7443")]
pub struct NotAnEndpoint;

impl Endpoint {
    /// The host: a name or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The name that the other end's certificate has to carry, unless the configuration says another.
    pub fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.host.clone()).expect("checked when it was parsed")
    }
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let (host, port) = text.rsplit_once(':').ok_or(NotAnEndpoint)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) if v6.contains(':') => v6,
            Some(_) => return Err(NotAnEndpoint),
            None if host.contains(':') => return Err(NotAnEndpoint),
            None => host,
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(NotAnEndpoint)?;
        ServerName::try_from(host).map_err(|_| NotAnEndpoint)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What somebody is connected to by: a host name or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// A name.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// Why a text is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host name and no address")]
pub struct NotAHost(String);

impl HostName {
    /// Where a port of it is reached.
    pub fn with_port(&self, port: u16) -> Endpoint {
        let host = match self {
            Self::Name(name) => name.clone(),
            Self::Address(address) => address.to_string(),
        };
        Endpoint { host, port }
    }
}

impl FromStr for HostName {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match DnsName::try_from(text) {
            Ok(_) => Ok(Self::Name(text.to_owned())),
            Err(_) => Err(NotAHost(text.to_owned())),
        }
    }
}

/// How a connection is made and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions {
    /// From the name's look-up to the other end's first HTTP/2 frame.
    pub connect_timeout: Duration,
    /// How often an idle or a busy connection is asked whether it is still there.
    pub keepalive_interval: Duration,
    /// How long the answer may take.
    pub keepalive_timeout: Duration,
    /// HTTP/2 window per stream, in bytes: what a server may send us unread.
    pub stream_window: u32,
    /// HTTP/2 window per connection, in bytes.
    pub connection_window: u32,
}

impl Default for ConnectOptions {
    /// 5 s to connect; a dead path is noticed within 50 s even if nothing is sent; 256 KiB and 1 MiB of window, since
    /// little comes down but acknowledgements and keys.
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            stream_window: 256 << 10,
            connection_window: 1 << 20,
        }
    }
}

/// Largest header list that a server may send us, in bytes.
const HEADER_LIST_MAX: u32 = 16 << 10;

/// Connects: look-up, TCP, TLS, HTTP/2, and the other end's first frame.
///
/// Cancel safe: dropping the future drops the connection.
pub async fn connect(
    endpoint: &Endpoint,
    server_name: &ServerName<'static>,
    tls: Arc<ClientConfig>,
    options: &ConnectOptions,
) -> Result<Connection, ConnectError> {
    let limit = options.connect_timeout;
    tokio::time::timeout(limit, establish(endpoint, server_name, tls, options))
        .await
        .unwrap_or(Err(ConnectError::TimedOut(limit)))
}

async fn establish(
    endpoint: &Endpoint,
    server_name: &ServerName<'static>,
    tls: Arc<ClientConfig>,
    options: &ConnectOptions,
) -> Result<Connection, ConnectError> {
    let authority = Authority::try_from(endpoint.to_string()).map_err(|_| ConnectError::Protocol)?;
    let tcp = dial(endpoint, options.connect_timeout).await?;
    let unreachable = |error: io::Error| ConnectError::from_io(&error);
    tcp.set_nodelay(true).map_err(unreachable)?;
    let local = tcp.local_addr().map_err(unreachable)?;
    let remote = tcp.peer_addr().map_err(unreachable)?;

    let stream = TlsConnector::from(tls).connect(server_name.clone(), tcp).await.map_err(unreachable)?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        return Err(ConnectError::Protocol);
    }
    let key_exchange = session.negotiated_key_exchange_group().map(|group| group.name());
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).cloned();

    let end = Arc::new(End { cause: OnceLock::new(), over: CancellationToken::new() });
    let (heard, first_frame) = oneshot::channel();
    let stream = Listening { stream, heard: Some(heard), end: end.clone() };
    let (send, driver) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .max_header_list_size(HEADER_LIST_MAX)
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| end.cause_or(&error))?;

    let task = {
        let end = end.clone();
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                let cause = end.cause_or(&error);
                tracing::debug!(event = "connect.ended", %cause, %error);
                let _ = end.cause.set(cause);
            }
            end.over.cancel();
        })
    };
    let abort = task.abort_handle();
    let connection = Connection { send, authority, end, local, remote, key_exchange, certificate, abort };
    if first_frame.await.is_err() {
        connection.ended().await;
        return Err(connection
            .end_cause()
            .unwrap_or(ConnectError::Unreachable(io::ErrorKind::UnexpectedEof)));
    }
    Ok(connection)
}

async fn dial(endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, ConnectError> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((endpoint.host(), endpoint.port()))
        .await
        .map_err(|error| ConnectError::Unreachable(error.kind()))?
        .collect();
    // A first address that swallows packets must leave time for the second.
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = ConnectError::Unreachable(io::ErrorKind::NotFound);
    for address in addresses {
        match tokio::time::timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = ConnectError::Unreachable(error.kind()),
            Err(_) => last = ConnectError::TimedOut(share),
        }
    }
    Err(last)
}

/// How a connection came to its end.
#[derive(Debug)]
struct End {
    cause: OnceLock<ConnectError>,
    over: CancellationToken,
}

impl End {
    fn cause_or(&self, error: &(dyn StdError + 'static)) -> ConnectError {
        self.cause
            .get()
            .cloned()
            .or_else(|| ConnectError::in_chain(error))
            .unwrap_or(ConnectError::Unreachable(io::ErrorKind::ConnectionAborted))
    }
}

/// One connection, as a service that tonic's clients take: `IngestServiceClient::new(connection)`.
///
/// Clones share it. When the last clone and the last call are gone, it closes.
#[derive(Clone)]
pub struct Connection {
    send: SendRequest<Body>,
    authority: Authority,
    end: Arc<End>,
    local: SocketAddr,
    remote: SocketAddr,
    key_exchange: Option<rustls::NamedGroup>,
    certificate: Option<CertificateDer<'static>>,
    abort: tokio::task::AbortHandle,
}

impl Connection {
    /// Resolves when the connection has come to its end, whoever ended it.
    pub async fn ended(&self) {
        self.end.over.cancelled().await;
    }

    /// True once it has ended.
    pub fn is_ended(&self) -> bool {
        self.end.over.is_cancelled()
    }

    /// Whether another call may begin on it. Those that are under way may end well on one that takes no more.
    pub fn takes_calls(&self) -> bool {
        !self.is_ended() && !self.send.is_closed()
    }

    /// Why it ended; none while it lives or if it was closed in good order.
    pub fn end_cause(&self) -> Option<ConnectError> {
        self.end.cause.get().cloned()
    }

    /// Drops the connection at once, with every call on it.
    pub fn abort(&self) {
        self.abort.abort();
        self.end.over.cancel();
    }

    /// Our address on it.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other end's address.
    pub fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    /// The key exchange that both ends chose.
    pub fn key_exchange(&self) -> Option<rustls::NamedGroup> {
        self.key_exchange
    }

    /// The other end's own certificate, as the handshake has verified it.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certificate.as_ref()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("remote", &self.remote).field("ended", &self.is_ended()).finish()
    }
}

/// A call that failed below gRPC. tonic maps the HTTP/2 error under it to a code; [`ConnectError::in_chain`] finds the
/// connection's own cause.
#[derive(Debug, thiserror::Error)]
#[error("{}", match .cause { Some(cause) => cause.to_string(), None => .http.to_string() })]
pub struct CallError {
    cause: Option<ConnectError>,
    #[source]
    http: hyper::Error,
}

fn call_error(end: &End, http: hyper::Error) -> CallError {
    CallError { cause: end.cause.get().cloned().or_else(|| ConnectError::in_chain(&http)), http }
}

impl tower_service::Service<Request<Body>> for Connection {
    type Response = Response<ResponseBody>;
    type Error = CallError;
    type Future = BoxFuture<'static, Result<Self::Response, CallError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.send.poll_ready(cx).map_err(|error| call_error(&self.end, error))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTPS);
        uri.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(uri).expect("a path of a generated client, under our authority");
        request.headers_mut().insert(http::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let answer = self.send.send_request(request);
        let end = self.end.clone();
        Box::pin(async move {
            match answer.await {
                Ok(response) => Ok(response.map(|body| ResponseBody { body, end })),
                Err(error) => Err(call_error(&end, error)),
            }
        })
    }
}

const USER_AGENT: &str = concat!("pithead/", env!("CARGO_PKG_VERSION"));

/// A response's bytes, whose failure names the connection's.
#[derive(Debug)]
pub struct ResponseBody {
    body: Incoming,
    end: Arc<End>,
}

impl HttpBody for ResponseBody {
    type Data = bytes::Bytes;
    type Error = CallError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, CallError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(|error| call_error(&this.end, error))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The TLS stream, listening for the first byte and for why it failed.
struct Listening {
    stream: TlsStream<TcpStream>,
    heard: Option<oneshot::Sender<()>>,
    end: Arc<End>,
}

impl Listening {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let _ = self.end.cause.set(ConnectError::from_io(error));
        }
        result
    }

    /// A write that fails because the other end has refused us must not hide its alert: that lies in the receive buffer,
    /// ahead of the reset that made the write fail.
    fn note_alert<T>(&mut self, cx: &mut Context<'_>, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            let mut byte = [0];
            if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte))
            {
                let _ = self.note(read);
            }
        }
        result
    }
}

impl AsyncRead for Listening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if buf.filled().len() > before
            && let Some(heard) = self.heard.take()
        {
            let _ = heard.send(());
        }
        Poll::Ready(self.note(result))
    }
}

impl AsyncWrite for Listening {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.note_alert(cx, written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(self.note_alert(cx, flushed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.note_alert(cx, written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_one_form() {
        for good in ["gateway.pit-7.example:7443", "127.0.0.1:1", "[fd00::1]:7443", "localhost:65535"] {
            assert_eq!(good.parse::<Endpoint>().expect("good").to_string(), good);
        }
        for bad in [
            "",
            ":1",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "::1:7443",
            "[::1]",
            "[host]:1",
            "https://h:1",
            "a b:1",
        ] {
            assert_eq!(bad.parse::<Endpoint>(), Err(NotAnEndpoint), "{bad}");
        }
    }

    #[test]
    fn an_address_is_told_in_its_own_brackets() {
        for (host, told) in
            [("fd00::1", "[fd00::1]:7443"), ("10.1.2.3", "10.1.2.3:7443"), ("gw.test", "gw.test:7443")]
        {
            assert_eq!(host.parse::<HostName>().expect("a host").with_port(7443).to_string(), told);
        }
        assert!("no host".parse::<HostName>().is_err());
    }

    #[test]
    fn the_cause_is_found_under_layers_of_io_errors() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert));
        let cause = ConnectError::in_chain(&wrapped).expect("there is one");
        assert_eq!(cause.reason(), ErrorReason::CertificateRevoked);
        assert!(!cause.is_retryable());
        assert_eq!(ConnectError::in_chain(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
    }
}
