//! Enrolment over the network: a token for a certificate.
//!
//! The key is drawn here and never leaves. In order: the root is at hand, or its fingerprint; the key is on disk; the
//! server's key has the fingerprint that was told, which the handshake proves before a byte of the token is sent; the answer
//! names what was asked for; and everything in it that is about trust holds against the root, in memory. Only then is there a
//! device. A folder that believes that root already goes on with what it believes ([`believe`]); one that believes another is
//! left as it is.
//!
//! ```text
//! DIR/enroll.key     the key, from before the first attempt until the answer is kept: a lost answer is asked for again with it
//! DIR/device.key     the same key then, device.pem its certificate, device.pub its public half for the cloud's registry
//! DIR/ca.pem         the CAs of the gateways
//! DIR/enroll.done    SHA-256 of the token that gave it, so that the same command again is known for what it is
//! ```

use std::{fmt, fs, path::Path, time::Duration};

use bytes::Bytes;
use pithead_device_client::{
    clock::DeviceClock,
    keys::{Keys, KeysError},
    state::{MemoryStore, StateError},
};
use pithead_hop::{
    connect::{ConnectOptions, Endpoint, connect},
    identity::{PeerId, Role, end_and_serial, spki_sha256},
    keys::{KeyFile, MESSAGE_MAX},
    program::{ExitCode, ProgramError, disk},
    status::Remote,
    tls::{self, Pem, pem::certificates_to_text},
};
use pithead_proto::{
    enroll::v1::{EnrollRequest, EnrollResponse, enroll_service_client::EnrollServiceClient},
    errors::v1::ErrorReason,
};
use pithead_sealing::{
    names::{DeviceId, Site},
    trust::{Bundle, RootFields, Sha256Digest},
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{cannot_write, read, replace_private, write};
use crate::{
    cli::{EnrollArgs, RenewArgs},
    config::Config,
    failure, key, moment,
    output::Output,
    signer::Signer,
};

/// How long the answer may take: the gateway writes to its disk before it gives one.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Certificates above a device's, and CAs of gateways: more than any site has.
const CERTIFICATES_MAX: usize = 8;
/// Gateways of one site.
const ENDPOINTS_MAX: usize = 64;

/// What the root is known by.
enum Root {
    /// The object itself.
    Held(Vec<u8>),
    /// Its fingerprint, or its file's SHA-256; the object may come from anywhere.
    Pinned([u8; 32]),
}

impl Root {
    fn of(arguments: &EnrollArgs) -> Result<Self, ProgramError> {
        match (&arguments.root, &arguments.root_fingerprint) {
            (Some(path), _) => read(path).map(Self::Held),
            (None, Some(sha256)) => Ok(Self::Pinned(sha256.0)),
            (None, None) => Err(ProgramError::new(
                ErrorReason::ConfigInvalid,
                "neither --root nor --root-fingerprint was given",
            )
            .affects("nothing was sent: a gateway cannot say whom a device is to believe, or a stolen one would name its own key")
            .todo("get the trust root, or its SHA-256, from the authority and not from the gateway")
            .exit(ExitCode::USAGE)),
        }
    }

    /// The root to begin with.
    fn choose(self, bundle: &KeyFile) -> Result<Bytes, ProgramError> {
        match self {
            Self::Held(root) => Ok(root.into()),
            Self::Pinned(sha256) => {
                // As `authority export` shows it, or as `sha256sum` of the file: either is of this root and no other.
                let is_it = |root: &&Bytes| {
                    let fingerprint = RootFields::read_unverified(root).map(|(_, digest)| *digest.as_bytes());
                    fingerprint == Ok(sha256) || <[u8; 32]>::from(Sha256::digest(root)) == sha256
                };
                bundle.bundle.roots.iter().find(is_it).cloned().ok_or_else(|| {
                    let what = format!(
                        "none of the {} roots that the gateway serves has the fingerprint {}",
                        bundle.bundle.roots.len(),
                        hex::encode(sha256)
                    );
                    ProgramError::new(ErrorReason::PeerUntrusted, what)
                        .affects("the device is not enrolled, and the token is good for it still")
                        .todo("compare the fingerprint with what the authority has published; if it is right, the gateway is not")
                })
            }
        }
    }
}

pub(super) async fn run(
    arguments: &EnrollArgs,
    token: &str,
    output: Output,
) -> Result<ExitCode, ProgramError> {
    // Everything that can be wrong here is found before anything is sent.
    let root = Root::of(arguments)?;
    let wrong = |what: &str| ProgramError::new(ErrorReason::ConfigInvalid, what).exit(ExitCode::USAGE);
    let [gateway] = arguments.gateways.as_slice() else {
        return Err(wrong("--token takes one --gateway: where the enrolment port is"));
    };
    let fingerprint = arguments.fingerprint.as_ref().ok_or_else(|| wrong("--token needs --fingerprint"))?;
    let dir = &arguments.dir;
    if let Some(standing) = Enrolled::with(dir, token) {
        // Sent again with another key, a spent token looks like somebody else's to the gateway.
        output.print(&standing.facts(dir));
        return Ok(ExitCode::OK);
    }
    disk::create_folders(dir, disk::FOLDER).map_err(|error| cannot_write(dir, &error))?;
    let pair = drawn(dir)?;
    let answer =
        ask(gateway, fingerprint.0, token, &pair).await.map_err(|error| match Enrolled::in_folder(dir) {
            Some(standing) if error.reason == ErrorReason::EnrollTokenUsed => error
                .affects(format!("this folder is enrolled already as {}, and goes on with that", standing.peer))
                .todo(
                    "nothing, if the token was used here; for a new certificate: pithead-device renew, with a token of its own",
                ),
            _ => error,
        })?;

    let expected = (arguments.site.as_ref(), arguments.device.as_ref());
    let answer = Answer::read(answer, expected, &pair)?;
    let root = root.choose(&answer.bundle)?;
    let authority = match &arguments.authority {
        Some(authority) => authority.clone(),
        // The root is the owner's choice, so what it calls itself is.
        None => RootFields::read_unverified(&root).map_err(failure::trust)?.0.authority,
    };
    let keys = believe(dir, &authority, &answer.site, &root, &answer.bundle.bundle)?;

    write(&dir.join("device.pem"), answer.certificates.as_bytes())?;
    write(&dir.join("ca.pem"), answer.gateway_ca.as_bytes())?;
    let secret = Zeroizing::new(pair.serialize_pem());
    let path = dir.join("device.key");
    replace_private(&path, secret.as_bytes()).map_err(|error| cannot_write(&path, &error))?;
    // It is P-256 by its making, so it can sign; what the file says decides.
    let signer = Signer::read(&path)?;
    let file = dir.join("device.toml");
    let names = super::Names { site: &answer.site, device: &answer.device };
    let gateway = super::Way {
        endpoints: &answer.endpoints,
        server_name: answer.server_name.as_deref(),
        identity: true,
    };
    let text = super::device_toml(&names, Some(&gateway), !arguments.no_sign);
    let before = super::write_config(&file, &text)?;
    write(&dir.join(DONE), Enrolled::mark(token).as_bytes())?;
    // Last: until here the same command goes on where it was.
    let drawn = dir.join(DRAWN);
    fs::remove_file(&drawn).map_err(|error| cannot_write(&drawn, &error))?;

    let mut fields = vec![
        ("device", json!(answer.device.to_string())),
        ("site", json!(answer.site.to_string())),
        ("authority", json!(authority)),
        ("file", json!(file.display().to_string())),
    ];
    fields.extend(before.map(|before| ("file_before", json!(before.display().to_string()))));
    fields.extend(signer.facts());
    fields.extend(key::facts(&keys));
    output.print(&fields);
    Ok(ExitCode::OK)
}

/// A new certificate for the key that the device has. The protocol gives one for any key whose holder has a token, and asks nothing
/// else: so the device keeps what the cloud knows it by, and nothing but its certificate changes.
pub(super) async fn renew(
    file: &Path,
    arguments: &RenewArgs,
    token: &str,
    output: Output,
) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let Some((certificate, key)) = config.identity_files() else {
        return Err(ProgramError::new(ErrorReason::ConfigInvalid, "this device has no certificate")
            .todo("one that is known by its address needs none; otherwise enrol it: pithead-device enroll"));
    };
    let tls = |error| failure::tls(&error);
    let before = Pem::read(&certificate).and_then(|pem| pem.certificates()).map_err(tls)?;
    let secret = Pem::read(&key).and_then(|pem| pem.private_key()).map_err(tls)?;
    let pair = KeyPair::try_from(&secret).map_err(|error| {
        ProgramError::new(ErrorReason::ConfigInvalid, format!("{}: {error}", key.display()))
            .todo("a gateway signs P-256 keys in PKCS#8; with another key, have the CA renew that signed it")
    })?;
    let answer = ask(&arguments.gateway, arguments.fingerprint.0, token, &pair).await?;
    let answer = Answer::read(answer, (Some(config.site()), Some(config.id())), &pair)?;
    write(&certificate, answer.certificates.as_bytes())?;
    let until = |der: &[u8]| end_and_serial(der).map(|(end, _)| end).ok();
    let mut fields = vec![
        ("device", json!(answer.device.to_string())),
        ("site", json!(answer.site.to_string())),
        ("certificate", json!(certificate.display().to_string())),
    ];
    let after = Pem::read(&certificate).and_then(|pem| pem.certificates()).map_err(tls)?;
    if let Some(end) = after.first().and_then(|leaf| until(leaf)) {
        fields.extend(moment::fields("until", "until_text", end));
    }
    if let Some(end) = before.first().and_then(|leaf| until(leaf)) {
        fields.extend(moment::fields("until_before", "until_before_text", end));
    }
    fields.push((
        "in_force",
        json!("for every client that is opened from now on; one that runs shows the old one"),
    ));
    output.print(&fields);
    Ok(ExitCode::OK)
}

/// What the device believes from now on. Everything is verified in memory first: a bundle that is refused changes nothing on
/// disk. What the folder believes already is kept if it is this root or one that follows on it, and the bundle is applied to
/// that, so that no sequence, floor, announcement or second of operating time is forgotten.
fn believe(
    dir: &Path,
    authority: &str,
    site: &Site,
    root: &[u8],
    bundle: &Bundle,
) -> Result<Keys, ProgramError> {
    let memory = Box::new(MemoryStore::default());
    let mut new = Keys::enroll(authority, site, root, memory, DeviceClock::start())
        .map_err(|error| failure::keys(&error))?;
    apply(&mut new, bundle)?;
    let given = RootFields::read_unverified(root).map_err(failure::trust)?;
    let mut kept = match Keys::open_in(dir, site, DeviceClock::start()) {
        Ok(kept) => kept,
        Err(KeysError::NotEnrolled) => {
            let mut keys = Keys::enroll_in(dir, authority, site, root, DeviceClock::start())
                .map_err(|error| failure::keys(&error))?;
            apply(&mut keys, bundle)?;
            return Ok(keys);
        }
        Err(error @ KeysError::OtherSite { .. }) => return Err(another(dir, &error)),
        Err(KeysError::State(error @ StateError::Damaged { .. })) => return Err(another(dir, &error)),
        Err(error) => return Err(failure::keys(&error)),
    };
    let trust = kept.trust();
    if trust.authority() != authority {
        return Err(another(dir, &format!("it believes the authority {}", trust.authority())));
    }
    let (version, digest) = (trust.root_version(), *trust.root().digest());
    let offered = bundle.roots.iter().filter_map(|root| RootFields::read_unverified(root).ok());
    let is_held = |(fields, of): &(RootFields, Sha256Digest)| fields.version == version && *of == digest;
    if !offered.chain([given]).any(|root| is_held(&root)) {
        return Err(another(dir, &format!("it believes another root of version {version}")));
    }
    // Both ways have to end at one root: the bundle's could be signed by keys that the given one has taken away.
    let mut after = trust.clone();
    after.apply(&bundle.clone().newer_than(version), kept.clock().now()).map_err(failure::trust)?;
    if after.root().digest() != new.trust().root().digest() {
        return Err(another(dir, &"what it believes does not lead to the root that was given"));
    }
    apply(&mut kept, bundle)?;
    Ok(kept)
}

fn apply(keys: &mut Keys, bundle: &Bundle) -> Result<(), ProgramError> {
    let held = keys.trust().root_version();
    keys.apply(&bundle.clone().newer_than(held)).map(drop).map_err(|error| failure::keys(&error))
}

/// A folder that does not believe what the owner says now: which of them is right, only the owner knows.
fn another(dir: &Path, why: &dyn fmt::Display) -> ProgramError {
    ProgramError::new(ErrorReason::WouldOverwrite, format!("{} holds a trust record: {why}", dir.display()))
        .affects("nothing has changed: the device goes on with what it believes")
        .todo("to believe the root that was given, and forget what was believed, remove trust.a and trust.b there; or give another --dir")
}

/// The name of a key that is not yet anybody's.
const DRAWN: &str = "enroll.key";
/// What a token that was used here is known by.
const DONE: &str = "enroll.done";

/// A folder that has a certificate.
struct Enrolled {
    peer: PeerId,
    until_s: u64,
}

impl Enrolled {
    /// As whom a folder is enrolled.
    fn in_folder(dir: &Path) -> Option<Self> {
        if !dir.join("device.toml").exists() || !dir.join("device.key").exists() {
            return None;
        }
        let chain = Pem::read(&dir.join("device.pem")).and_then(|pem| pem.certificates()).ok()?;
        let leaf = chain.first()?;
        let peer = PeerId::from_certificate(leaf).ok()?;
        Some(Self { peer, until_s: end_and_serial(leaf).ok()?.0 })
    }

    /// The same, if it was this token that gave it.
    fn with(dir: &Path, token: &str) -> Option<Self> {
        let mark = fs::read_to_string(dir.join(DONE)).ok()?;
        (mark == Self::mark(token)).then(|| Self::in_folder(dir))?
    }

    /// A token has 128 bits: its hash gives nothing away, and it is spent.
    fn mark(token: &str) -> String {
        hex::encode(Sha256::digest(token))
    }

    fn facts(&self, dir: &Path) -> Vec<(&'static str, serde_json::Value)> {
        let mut fields = vec![
            ("already_enrolled_as", json!(self.peer.to_string())),
            ("file", json!(dir.join("device.toml").display().to_string())),
        ];
        fields.extend(moment::fields("certificate_until", "certificate_until_text", self.until_s));
        fields.push(("sent", json!("nothing: this token was used here, and the folder has what it gave")));
        fields
    }
}

/// The key of the attempt before, or a new one. It is on disk before it is shown to anybody.
fn drawn(dir: &Path) -> Result<KeyPair, ProgramError> {
    let path = dir.join(DRAWN);
    let unusable = |error: rcgen::Error| {
        ProgramError::new(ErrorReason::StateDamaged, format!("{}: {error}", path.display()))
            .todo("remove the file; a token that was used with it is used up")
    };
    if path.exists() {
        let key = Pem::read(&path).and_then(|pem| pem.private_key()).map_err(|error| failure::tls(&error))?;
        return KeyPair::try_from(&key).map_err(unusable);
    }
    let pair = KeyPair::generate().map_err(unusable)?;
    let text = Zeroizing::new(pair.serialize_pem());
    replace_private(&path, text.as_bytes()).map_err(|error| cannot_write(&path, &error))?;
    Ok(pair)
}

async fn ask(
    gateway: &Endpoint,
    fingerprint: [u8; 32],
    token: &str,
    pair: &KeyPair,
) -> Result<EnrollResponse, ProgramError> {
    let request = CertificateParams::default()
        .serialize_request(pair)
        .map_err(|error| ProgramError::new(ErrorReason::Internal, format!("a request: {error}")))?;
    let options = ConnectOptions::default();
    // The name says nothing here; the key does.
    let connection = connect(gateway, &gateway.server_name(), tls::pinned(fingerprint), &options)
        .await
        .map_err(|error| {
            ProgramError::from(error).affects("the token was not shown").todo(
                "check --gateway and --fingerprint against what `pithead-gateway device add` has printed",
            )
        })?;
    let mut client = EnrollServiceClient::new(connection).max_decoding_message_size(MESSAGE_MAX);
    let request =
        EnrollRequest { token: token.to_owned(), certificate_request: request.der().to_vec().into() };
    let lost = |what: String| {
        ProgramError::new(ErrorReason::PeerUnreachable, what)
            .todo("give the same command again: the token is good for this device's key until it expires")
    };
    match tokio::time::timeout(ANSWER_LIMIT, client.enroll(request)).await {
        Err(_) => Err(lost(format!("no answer within {ANSWER_LIMIT:?}"))),
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => {
            let remote = Remote::from_status(&status);
            if remote.is_connection() { Err(lost(remote.detail)) } else { Err(remote.into()) }
        }
    }
}

/// An answer that says what was asked for.
struct Answer {
    site: Site,
    device: DeviceId,
    certificates: String,
    gateway_ca: String,
    endpoints: Vec<Endpoint>,
    server_name: Option<String>,
    bundle: KeyFile,
}

impl Answer {
    /// Reads it, and takes it only for the site and the device that are expected, where they are.
    fn read(
        answer: EnrollResponse,
        expected: (Option<&Site>, Option<&DeviceId>),
        pair: &KeyPair,
    ) -> Result<Self, ProgramError> {
        let wrong = |what: String| {
            ProgramError::new(ErrorReason::PeerUntrusted, format!("the gateway's answer: {what}"))
                .affects("the device is not enrolled")
                .todo("tell the site's operator; with a mistyped --site or --device, give the right one")
        };
        let EnrollResponse { site, device, certificates, gateway_ca, endpoints, server_name, bundle } =
            answer;
        let site = Site::new(&site).map_err(|_| wrong("no site's name".into()))?;
        let device = DeviceId::new(&device).map_err(|_| wrong("no device's name".into()))?;
        if expected.0.is_some_and(|expected| *expected != site)
            || expected.1.is_some_and(|expected| *expected != device)
        {
            return Err(wrong(format!("it is for device {device} of site {site}")));
        }
        if certificates.len() > CERTIFICATES_MAX
            || gateway_ca.len() > CERTIFICATES_MAX
            || gateway_ca.is_empty()
        {
            return Err(wrong("it has no certificates, or too many".into()));
        }
        let leaf = certificates.first().ok_or_else(|| wrong("it has no certificate".into()))?;
        let named = PeerId::from_certificate(leaf).map_err(|error| wrong(error.to_string()))?;
        if named.site != site || named.role != Role::Device(device.clone()) {
            return Err(wrong(format!("the certificate is of {named}")));
        }
        let own: [u8; 32] = Sha256::digest(pair.subject_public_key_info()).into();
        if spki_sha256(leaf).ok() != Some(own) {
            return Err(wrong("the certificate is for another key".into()));
        }
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(wrong("more gateways than a site has".into()));
        }
        let endpoints = endpoints.iter().map(|text| text.parse()).collect::<Result<Vec<Endpoint>, _>>();
        let endpoints = endpoints.map_err(|error| wrong(error.to_string()))?;
        let server_name = (!server_name.is_empty()).then_some(server_name);
        let bad_name = |name: &String| rustls_pki_types::ServerName::try_from(name.as_str()).is_err();
        if endpoints.is_empty() || server_name.as_ref().is_some_and(bad_name) {
            return Err(wrong("it names no gateway".into()));
        }
        let bundle = bundle.ok_or_else(|| wrong("it has no key bundle".into()))?;
        let bundle = KeyFile::from_proto(bundle).map_err(|error| wrong(error.to_string()))?;
        let text = |ders: &[Bytes]| certificates_to_text(ders.iter().map(AsRef::as_ref));
        Ok(Self {
            certificates: text(&certificates),
            gateway_ca: text(&gateway_ca),
            site,
            device,
            endpoints,
            server_name,
            bundle,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_that_was_drawn_is_used_again_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = drawn(folder.path()).unwrap();
        let again = drawn(folder.path()).unwrap();
        assert_eq!(first.subject_public_key_info(), again.subject_public_key_info());
        let mode = fs::metadata(folder.path().join(DRAWN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // P-256, uncompressed: what envelopes and registries know a key by.
        assert_eq!(first.subject_public_key_info().len(), 91);
    }
}
