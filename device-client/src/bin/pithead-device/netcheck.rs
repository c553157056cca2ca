//! `netcheck`: each gateway, step by step, as a client would go: the name, TCP, TLS with both certificates, HTTP/2, the Welcome,
//! the statement in force there, and whether large files are taken.
//!
//! It sends no envelope and moves no state, so a client may be running. A step that fails says its code and what to do, and the
//! steps after it are not tried. Ends with 0 if every gateway is well, 77 if one of them and we do not take each other for who
//! we say we are, and 69 otherwise.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use pithead_device_client::{clock::DeviceClock, keys::Keys, uplink::Gateways};
use pithead_hop::{
    connect::{self, ConnectError, ConnectOptions, Connection, Endpoint},
    identity::{self, PeerId},
    ingest::{SendError, SendOptions, Sender, send::Window},
    program::{ExitCode, ProgramError},
    status::Remote,
    tls::{ClientTls, KnownTime, PassedExpiry, TimeSource},
};
use pithead_proto::{
    errors::v1::ErrorReason,
    ingest::v1::{GetUploadRequest, ingest_service_client::IngestServiceClient},
};
use pithead_sealing::trust::UnixTime;
use rustls_pki_types::ServerName;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use crate::{
    config::{Config, no_gateway},
    failure, moment,
    output::{Output, columns, plain},
};

/// Wide enough that what the gateway answers is its own limit.
const WIDE: Window = Window { bytes: u64::MAX, envelopes: u64::MAX, envelope_bytes: u64::MAX };

/// One step, and how it went.
#[derive(Debug)]
struct Step {
    name: &'static str,
    /// For people: what was found.
    found: String,
    /// For programs.
    facts: Vec<(&'static str, Value)>,
    failed: Option<ProgramError>,
}

impl Step {
    fn ok(name: &'static str, found: impl Into<String>, facts: Vec<(&'static str, Value)>) -> Self {
        Self { name, found: found.into(), facts, failed: None }
    }

    fn failed(name: &'static str, error: ProgramError) -> Self {
        Self { name, found: error.what.clone(), facts: Vec::new(), failed: Some(error) }
    }
}

/// The steps of one gateway, in their order.
#[derive(Debug)]
struct Checked {
    endpoint: String,
    steps: Vec<Step>,
}

/// What does not change from gateway to gateway.
struct Check {
    gateways: Gateways,
    tls: Arc<rustls::ClientConfig>,
    limit: Duration,
    /// Epoch and sequence of our statement.
    version: (u64, u64),
    clock_trusted: bool,
}

/// What the device knows of time, as its client does: a trusted clock, else what has certainly passed.
#[derive(Debug)]
struct Floor(KnownTime);

impl TimeSource for Floor {
    fn now(&self) -> KnownTime {
        self.0
    }
}

pub(crate) async fn run(file: &Path, limit: Duration, output: Output) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let keys = config.open_keys()?;
    let gateways = config.gateways()?.ok_or_else(no_gateway)?;
    let check = Check::new(gateways, &keys, limit)?;
    let mut checked = Vec::new();
    for endpoint in &check.gateways.endpoints {
        checked.push(Checked { endpoint: endpoint.to_string(), steps: check.gateway(endpoint).await });
    }
    let object = json!({
        "ok": checked.iter().all(Checked::is_ok),
        "device": config.id().to_string(),
        "site": config.site().to_string(),
        "statement": {"epoch": check.version.0, "sequence": check.version.1},
        "gateways": checked.iter().map(Checked::object).collect::<Vec<_>>(),
    });
    output.print_either(&object, || checked.iter().map(Checked::table).collect::<Vec<_>>().join("\n"));
    Ok(verdict(&checked))
}

fn verdict(checked: &[Checked]) -> ExitCode {
    let failures = checked.iter().flat_map(|gateway| &gateway.steps).filter_map(|step| step.failed.as_ref());
    let codes: Vec<ExitCode> = failures.map(|error| error.exit).collect();
    if codes.is_empty() {
        ExitCode::OK
    } else if codes.contains(&ExitCode::IDENTITY_REFUSED) {
        ExitCode::IDENTITY_REFUSED
    } else {
        ExitCode::PEER_UNAVAILABLE
    }
}

impl Check {
    fn new(gateways: Gateways, keys: &Keys, limit: Duration) -> Result<Self, ProgramError> {
        let now = keys.clock().now();
        let at = |time: UnixTime| {
            rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs()))
        };
        let known = match now.trusted_now {
            Some(trusted) => KnownTime::Trusted(at(trusted)),
            None => KnownTime::AtLeast(at(keys.trust().now_lower_bound(now))),
        };
        let tls = ClientTls {
            ca: gateways.ca.clone(),
            identity: gateways.identity.clone(),
            clock: Arc::new(Floor(known)),
            passed_expiry: PassedExpiry::Refuse,
        };
        Ok(Self {
            tls: tls.build().map_err(|error| failure::tls(&error))?,
            gateways,
            limit,
            version: keys.trust().version(),
            clock_trusted: now.trusted_now.is_some(),
        })
    }

    /// Every step up to and with the first that fails.
    async fn gateway(&self, endpoint: &Endpoint) -> Vec<Step> {
        let mut steps = Vec::new();
        let addresses = match self.resolve(endpoint).await {
            Ok((step, addresses)) => {
                steps.push(step);
                addresses
            }
            Err(step) => return vec![step],
        };
        match self.tcp(&addresses).await {
            Ok(step) => steps.push(step),
            Err(step) => {
                steps.push(step);
                return steps;
            }
        }
        let connection = match self.connect(endpoint).await {
            Ok((connection, made)) => {
                steps.extend(made);
                connection
            }
            Err(step) => {
                steps.push(step);
                return steps;
            }
        };
        steps.extend(self.ask(connection).await);
        steps
    }

    async fn resolve(&self, endpoint: &Endpoint) -> Result<(Step, Vec<SocketAddr>), Step> {
        let looked =
            tokio::time::timeout(self.limit, tokio::net::lookup_host((endpoint.host(), endpoint.port())));
        let refused = |what: String| {
            let error = ProgramError::new(ErrorReason::PeerUnreachable, what)
                .todo("check the host in gateway.endpoints, and the name server that this machine asks");
            Step::failed("name", error)
        };
        let addresses: Vec<SocketAddr> = match looked.await {
            Err(_) => return Err(refused(format!("no answer within {:?}", self.limit))),
            Ok(Err(error)) => return Err(refused(format!("{} is not found: {error}", endpoint.host()))),
            Ok(Ok(addresses)) => addresses.collect(),
        };
        if addresses.is_empty() {
            return Err(refused(format!("{} has no address", endpoint.host())));
        }
        let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
        Ok((Step::ok("name", shown.join(", "), vec![("addresses", json!(shown))]), addresses))
    }

    async fn tcp(&self, addresses: &[SocketAddr]) -> Result<Step, Step> {
        let mut last = String::new();
        for address in addresses {
            let asked = Instant::now();
            match tokio::time::timeout(self.limit, TcpStream::connect(address)).await {
                Ok(Ok(_)) => {
                    let took = asked.elapsed();
                    let facts = vec![
                        ("address", json!(address.to_string())),
                        ("took_us", json!(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))),
                    ];
                    return Ok(Step::ok("tcp", format!("{address} in {}", milliseconds(took)), facts));
                }
                Ok(Err(error)) => last = format!("{address}: {error}"),
                Err(_) => last = format!("{address}: no answer within {:?}", self.limit),
            }
        }
        let unreachable = ProgramError::from(ConnectError::TimedOut(self.limit));
        Err(Step::failed("tcp", ProgramError { what: last, ..unreachable }))
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<(Connection, Vec<Step>), Step> {
        let name = self.gateways.server_name.clone().unwrap_or_else(|| endpoint.server_name());
        let options = ConnectOptions { connect_timeout: self.limit, ..self.gateways.options };
        let connection = connect::connect(endpoint, &name, Arc::clone(&self.tls), &options)
            .await
            .map_err(|error| self.refused(&error, &name))?;
        let mut steps = vec![self.tls_step(&connection, &name)];
        let shown = match &self.gateways.identity {
            Some((certificate, _)) => who_we_are(certificate),
            None => ("no certificate: the gateway knows us by our address".to_owned(), Vec::new()),
        };
        steps.push(Step::ok("identity", shown.0, shown.1));
        steps.push(Step::ok("http2", format!("with {}", connection.remote_addr()), Vec::new()));
        Ok((connection, steps))
    }

    /// Which step it was that a connection failed at.
    fn refused(&self, error: &ConnectError, name: &ServerName<'static>) -> Step {
        let (step, todo) = match error {
            ConnectError::Untrusted(why) => ("tls", self.distrust(*why, name)),
            ConnectError::CertificateRequired | ConnectError::CertificateRefused(_) => ("identity", None),
            ConnectError::Protocol => ("http2", None),
            _ => ("tls", None),
        };
        let program = ProgramError::from(error.clone());
        Step::failed(
            step,
            match todo {
                Some(todo) => program.todo(todo),
                None => program,
            },
        )
    }

    fn distrust(&self, why: connect::Untrusted, name: &ServerName<'static>) -> Option<String> {
        let name = name.to_str();
        Some(match why {
            connect::Untrusted::Authority => format!(
                "compare {} with the CA of the site; if it is right, somebody else answers here",
                self.gateways.ca.origin()
            ),
            connect::Untrusted::Name => {
                format!("the certificate is not for {name}: set gateway.server_name, or correct the endpoint")
            }
            connect::Untrusted::Expired => {
                "the gateway needs a new certificate: tell the site's operator".into()
            }
            connect::Untrusted::NotYetValid => "set the clock that the device's file calls trusted".into(),
            _ => return None,
        })
    }

    fn tls_step(&self, connection: &Connection, name: &ServerName<'static>) -> Step {
        let group = connection.key_exchange().map(|group| format!("{group:?}"));
        let end = connection.peer_certificate().and_then(|der| identity::end_and_serial(der).ok());
        let mut facts = vec![
            ("server_name", json!(name.to_str())),
            ("key_exchange", json!(group)),
            ("time_is_trusted", json!(self.clock_trusted)),
        ];
        let mut found = format!(
            "chain and name {} hold, {}",
            name.to_str(),
            group.as_deref().unwrap_or("unknown key exchange")
        );
        if let Some((ends_s, serial)) = end {
            facts.extend([("serial", json!(serial))]);
            facts.extend(moment::fields("ends_at", "ends_at_text", ends_s));
            found.push_str(&format!(", certificate until {}", moment::rfc3339(ends_s)));
        }
        Step::ok("tls", found, facts)
    }

    /// Hello and Welcome, and whether uploads are taken.
    async fn ask(&self, connection: Connection) -> Vec<Step> {
        let mut options = SendOptions::new(concat!("pithead-device/", env!("CARGO_PKG_VERSION")));
        options.window = WIDE;
        options.welcome_timeout = self.limit;
        let (asked_us, asked) = (DeviceClock::wall_us(), Instant::now());
        let sender = match Sender::<()>::open(connection.clone(), &options, Vec::new()).await {
            Ok(sender) => sender,
            Err(error) => return vec![Step::failed("welcome", not_welcome(&error))],
        };
        let round_trip = asked.elapsed();
        let welcomed = sender.welcomed();
        let (durability, assurance) = (
            format!("{:?}", welcomed.durability).to_uppercase(),
            format!("{:?}", welcomed.assurance).to_lowercase(),
        );
        let half_us = i64::try_from(round_trip.as_micros() / 2).unwrap_or(i64::MAX);
        let ahead_us = i64::try_from(welcomed.time_us)
            .unwrap_or(i64::MAX)
            .saturating_sub(asked_us.saturating_add(half_us));
        let mut steps = vec![Step::ok(
            "welcome",
            format!(
                "an acknowledgement means {durability}; we are {assurance}; its clock is {} here, +-{}; answered in {}",
                offset(ahead_us),
                milliseconds(round_trip / 2),
                milliseconds(round_trip)
            ),
            vec![
                ("durability", json!(durability)),
                ("assurance", json!(assurance)),
                ("clock_ahead_us", json!(ahead_us)),
                ("clock_uncertainty_us", json!(half_us)),
                ("round_trip_us", json!(half_us.saturating_mul(2))),
            ],
        )];
        steps.push(self.statement(sender.trust().map(|trust| (trust.epoch, trust.sequence))));
        let window = sender.window();
        steps.push(Step::ok(
            "limits",
            format!(
                "envelopes up to {} B in one piece, {} B and {} of them without an answer",
                window.envelope_bytes, window.bytes, window.envelopes
            ),
            vec![
                ("envelope_bytes", json!(window.envelope_bytes)),
                ("window_bytes", json!(window.bytes)),
                ("window_envelopes", json!(window.envelopes)),
            ],
        ));
        steps.push(self.uploads(connection).await);
        steps
    }

    fn statement(&self, theirs: Option<(u64, u64)>) -> Step {
        let ours = self.version;
        let shown = |(epoch, sequence): (u64, u64)| format!("{epoch}.{sequence}");
        let facts = |theirs: Option<(u64, u64)>, compared: &str| {
            vec![
                ("ours", json!(shown(ours))),
                ("theirs", json!(theirs.map(shown))),
                ("compared", json!(compared)),
            ]
        };
        let Some(there) = theirs else {
            let error = ProgramError::new(ErrorReason::KeysNotReady, "the gateway has no statement in force")
                .affects("a device without a key gets none here; one that has a key sends as before")
                .todo("look at the gateway's keys: `pithead-gateway key show`");
            return Step { facts: facts(None, "none"), ..Step::failed("statement", error) };
        };
        let (compared, found) = match there.cmp(&ours) {
            std::cmp::Ordering::Equal => ("same", format!("{}, as here", shown(there))),
            std::cmp::Ordering::Greater => (
                "newer",
                format!(
                    "{}, and {} here: a client fetches it by itself, and so does `key`",
                    shown(there),
                    shown(ours)
                ),
            ),
            // It is the gateway that is behind; nothing here goes back.
            std::cmp::Ordering::Less => (
                "older",
                format!(
                    "{}, and {} here: the gateway is behind, and nothing here goes back",
                    shown(there),
                    shown(ours)
                ),
            ),
        };
        Step::ok("statement", found, facts(theirs, compared))
    }

    /// Asks for an upload that nobody has opened: who takes uploads says that there is none.
    async fn uploads(&self, connection: Connection) -> Step {
        let request = GetUploadRequest { upload: "netcheck".into() };
        let mut client = IngestServiceClient::new(connection);
        let asked = tokio::time::timeout(self.limit, client.get_upload(request)).await;
        let taken = |taken: bool| {
            let found = if taken { "taken" } else { "not taken: only what fits in one piece" };
            Step::ok("uploads", found, vec![("uploads", json!(taken))])
        };
        match asked {
            Err(_) => Step::failed("uploads", ConnectError::TimedOut(self.limit).into()),
            Ok(Ok(_)) => taken(true),
            Ok(Err(status)) => {
                let remote = Remote::from_status(&status);
                match remote.reason {
                    Some(ErrorReason::UploadUnknown | ErrorReason::UploadNotYours) => taken(true),
                    Some(ErrorReason::UploadsNotSupported) => taken(false),
                    _ => Step::failed("uploads", remote.into()),
                }
            }
        }
    }
}

fn not_welcome(error: &SendError) -> ProgramError {
    match error {
        SendError::Remote(remote) => remote.clone().into(),
        other => ProgramError::new(other.reason().unwrap_or(ErrorReason::PeerUnreachable), other.to_string())
            .todo("check that the port is a gateway's for devices"),
    }
}

/// The name in our certificate, and when it ends.
fn who_we_are(pem: &pithead_hop::tls::Pem) -> (String, Vec<(&'static str, Value)>) {
    let Some(der) = pem.certificates().ok().and_then(|chain| chain.into_iter().next()) else {
        return ("a certificate".to_owned(), Vec::new());
    };
    let name = PeerId::from_certificate(&der).map_or_else(|error| error.to_string(), |id| id.to_string());
    let mut facts = vec![("name", json!(name))];
    let mut found = format!("taken as {name}");
    if let Ok((ends_s, serial)) = identity::end_and_serial(&der) {
        facts.push(("serial", json!(serial)));
        facts.extend(moment::fields("ends_at", "ends_at_text", ends_s));
        found.push_str(&format!(", until {}", moment::rfc3339(ends_s)));
    }
    (found, facts)
}

fn milliseconds(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1e3)
}

fn offset(ahead_us: i64) -> String {
    let seconds = ahead_us as f64 / 1e6;
    let direction = if ahead_us < 0 { "behind the one" } else { "ahead of the one" };
    format!("{:.3} s {direction}", seconds.abs())
}

impl Checked {
    fn is_ok(&self) -> bool {
        self.steps.iter().all(|step| step.failed.is_none())
    }

    fn object(&self) -> Value {
        let steps = self.steps.iter().map(|step| {
            let mut object = Map::new();
            object.insert("step".into(), json!(step.name));
            object.insert("ok".into(), json!(step.failed.is_none()));
            object.insert("found".into(), json!(step.found));
            object.extend(step.facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            if let Some(error) = &step.failed {
                object.insert("code".into(), json!(error.reason.code()));
                object.insert("reason".into(), json!(error.reason.name()));
                object.insert("todo".into(), json!(error.todo));
            }
            Value::Object(object)
        });
        json!({"endpoint": self.endpoint, "ok": self.is_ok(), "steps": steps.collect::<Vec<_>>()})
    }

    fn table(&self) -> String {
        let rows: Vec<[Value; 3]> = self
            .steps
            .iter()
            .map(|step| {
                let how = match &step.failed {
                    None => "ok".to_owned(),
                    Some(error) => format!("failed {}", error.reason.code()),
                };
                [json!(step.name), json!(how), json!(step.found)]
            })
            .collect();
        let mut text = format!("{}\n{}", self.endpoint, columns(["step", "", "found"], &rows));
        for error in self.steps.iter().filter_map(|step| step.failed.as_ref()) {
            if let Some(affects) = &error.affects {
                text.push_str(&format!("  affects: {affects}\n"));
            }
            text.push_str(&format!("  what to do: {}\n", plain(&json!(error.todo))));
        }
        text
    }
}
