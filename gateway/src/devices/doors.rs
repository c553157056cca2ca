//! What the registry and the files of certificates mean at the ports: who is let in, and who has to go.
//!
//! The registry's file is looked at every second: whoever was revoked is turned away from then on and cut at once, also
//! while nobody answers the admin port. Certificates, CAs and revocation lists are read when somebody asks for it. Either
//! is built whole before it is put in force; what is wrong leaves the last good one there, and says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use pithead_hop::accept::{AcceptHandle, AcceptStats, AddressBook, Connected, Door, Limits};
use pithead_hop::identity::{Assurance, Peer, Role};
use pithead_hop::tls::{Denied, Gate, ServerTls, TlsError};
use pithead_sealing::{DeviceId, Site};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::file::RegistryFile;
use super::registry::{Registry, Sha};
use crate::metrics::Metrics;

/// How often the registry is looked at. A revocation is promised within 5 s.
const LOOK: Duration = Duration::from_secs(1);

/// The ports, and what they go by.
#[derive(Debug)]
pub struct Doors {
    site: Site,
    registry: Arc<ArcSwap<Registry>>,
    in_force: Mutex<InForce>,
    ports: Ports,
}

/// The ports that are served.
#[derive(Debug, Clone)]
pub struct Ports {
    /// For devices with a certificate.
    pub certificate: AcceptHandle,
    /// For devices that are known by their address.
    pub network: Option<AcceptHandle>,
    /// For devices that are to be enrolled.
    pub enroll: Option<AcceptHandle>,
}

/// What the ports know of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// How it is known, if it is connected now.
    pub connected: Option<Assurance>,
    /// When it was last connected, since the start.
    pub seen_ago: Option<Duration>,
    /// Nobody of that name is let in.
    pub revoked: bool,
}

#[derive(Debug)]
struct InForce {
    tls: ServerTls,
    denied: Denied,
    addresses: Arc<AddressBook>,
}

/// All doors as they are to be.
#[derive(Debug)]
pub struct Built {
    /// For devices with a certificate.
    pub certificate: Door,
    /// For devices that are known by their address.
    pub network: Door,
    /// For devices that are to be enrolled.
    pub enroll: Door,
    in_force: InForce,
}

impl Built {
    /// Builds them out of files that were read and of the registry.
    ///
    /// # Errors
    /// What is wrong with a file; then nothing has changed.
    pub fn new(tls: ServerTls, site: &Site, registry: &Registry) -> Result<Self, TlsError> {
        let (denied, addresses) = (registry.denied(site), Arc::new(registry.addresses(site)));
        Self::of(InForce { tls, denied, addresses }, site)
    }

    fn of(in_force: InForce, site: &Site) -> Result<Self, TlsError> {
        let gate: Gate = in_force.tls.gate(in_force.denied.clone())?;
        let open = in_force.tls.build_for_anybody()?;
        Ok(Self {
            certificate: Door::from(gate),
            network: Door::by_address(open.clone(), in_force.addresses.clone()),
            enroll: Door::for_applicants(open, site.clone()),
            in_force,
        })
    }
}

impl Doors {
    /// Takes ports that were opened with `built`.
    #[must_use]
    pub fn new(site: Site, built: Built, registry: Arc<ArcSwap<Registry>>, ports: Ports) -> Self {
        let in_force = Mutex::new(built.in_force);
        Self { site, registry, in_force, ports }
    }

    /// Certificates, keys, CAs and revocation lists that were read again: in force for new handshakes from now on, and
    /// everybody who would not be let in any more is cut. Returns how many. It verifies each live connection: not for an
    /// async thread.
    ///
    /// # Errors
    /// What is wrong; then the ones before stay in force.
    pub fn reload(&self, tls: ServerTls) -> Result<usize, TlsError> {
        let mut in_force = lock(&self.in_force);
        let next = InForce { tls, denied: in_force.denied.clone(), addresses: in_force.addresses.clone() };
        let built = Built::of(next, &self.site)?;
        self.swap(&built);
        *in_force = built.in_force;
        drop(in_force);
        Ok(self.ports.certificate.cut_who_is_not_admitted())
    }

    /// A registry that was read again. Returns how many were cut.
    ///
    /// # Errors
    /// When the files that were good before are not any more, which they are.
    pub fn take(&self, registry: Registry) -> Result<usize, TlsError> {
        let (denied, addresses) = (registry.denied(&self.site), Arc::new(registry.addresses(&self.site)));
        self.registry.store(Arc::new(registry));
        let mut in_force = lock(&self.in_force);
        // A new device or a used token changes nothing at the ports.
        if in_force.denied == denied && in_force.addresses == addresses {
            return Ok(0);
        }
        let next = InForce { tls: in_force.tls.clone(), denied: denied.clone(), addresses };
        let built = Built::of(next, &self.site)?;
        self.swap(&built);
        *in_force = built.in_force;
        drop(in_force);
        let is_denied = |peer: &Peer| {
            denied.names.contains(&peer.id)
                || peer.certificate_sha256.is_some_and(|sha| denied.certificates.contains(&sha))
        };
        let cut = self.ports.certificate.cut(is_denied);
        let gone = self.ports.network.as_ref().map_or(0, AcceptHandle::cut_who_is_not_admitted);
        Ok(cut + gone)
    }

    /// Other limits of the ports, from now on: of the one for devices with a certificate, of the one for devices that are known
    /// by their address, and of the one for those that are to be enrolled.
    pub fn change_limits(&self, certificate: Limits, network: Option<Limits>, enroll: Limits) {
        self.ports.certificate.change_limits(certificate);
        if let (Some(port), Some(limits)) = (&self.ports.network, network) {
            port.change_limits(limits);
        }
        if let Some(port) = &self.ports.enroll {
            port.change_limits(enroll);
        }
    }

    fn swap(&self, built: &Built) {
        self.ports.certificate.swap_tls(built.certificate.clone());
        if let Some(network) = &self.ports.network {
            network.swap_tls(built.network.clone());
        }
        if let Some(enroll) = &self.ports.enroll {
            enroll.swap_tls(built.enroll.clone());
        }
    }

    /// Everybody who is connected as somebody.
    fn connected(&self) -> Vec<Connected> {
        let network = self.ports.network.iter().flat_map(AcceptHandle::connections);
        self.ports.certificate.connections().into_iter().chain(network).collect()
    }

    /// Open connections at all ports for devices.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.stats().open
    }

    /// How many are connected, and how they are known.
    #[must_use]
    pub fn counts(&self) -> Value {
        let connected = self.connected();
        let known = |assurance| connected.iter().filter(|one| one.peer.assurance == assurance).count();
        json!({
            "connections": connected.len(),
            "vouched": known(Assurance::Vouched),
            "claimed": known(Assurance::Claimed),
            "enrolling": self.ports.enroll.as_ref().map(|port| port.connections().len()),
        })
    }

    /// What all ports for devices have counted together.
    #[must_use]
    pub fn stats(&self) -> AcceptStats {
        let others = [&self.ports.network, &self.ports.enroll];
        let others = others.into_iter().flatten();
        others.fold(self.ports.certificate.stats(), |all, port| all.and(&port.stats()))
    }

    /// Every connection, and when each device was last there.
    #[must_use]
    pub fn devices(&self) -> Value {
        let connected: Vec<Value> = self
            .connected()
            .iter()
            .map(|one| {
                json!({
                    "peer": one.peer.id.to_string(),
                    "device": one.peer.device().map(DeviceId::as_str),
                    "assurance": word(one.peer.assurance),
                    "certificate_sha256": one.peer.certificate_sha256.map(|sha| Sha(sha).to_string()),
                    "from": one.from.to_string(),
                    "connected_for_s": one.since.elapsed().as_secs(),
                })
            })
            .collect();
        let seen: serde_json::Map<String, Value> =
            self.seen().into_iter().map(|(device, ago)| (device.to_string(), json!(ago.as_secs()))).collect();
        json!({ "connections": connected, "seen_s_ago": seen })
    }

    /// How long ago each device was last connected, of those that were since the start.
    fn seen(&self) -> BTreeMap<DeviceId, Duration> {
        let mut seen = self.ports.certificate.seen();
        for (peer, at) in self.ports.network.iter().flat_map(AcceptHandle::seen) {
            // One device has one mode; if that has changed, the later one counts.
            let last = seen.entry(peer).or_insert(at);
            *last = at.max(*last);
        }
        seen.into_iter()
            .filter_map(|(peer, at)| match peer.role {
                Role::Device(device) => Some((device, at.elapsed())),
                Role::Gateway(_) | Role::Operator(_) | Role::Applicant(_) => None,
            })
            .collect()
    }

    /// Every device that is registered or was connected since the start.
    #[must_use]
    pub fn known(&self) -> BTreeMap<DeviceId, Known> {
        let mut known: BTreeMap<DeviceId, Known> = BTreeMap::new();
        for (device, record) in self.registry.load().devices() {
            known.entry(device.clone()).or_default().revoked = record.revoked_at.is_some();
        }
        for (device, ago) in self.seen() {
            known.entry(device).or_default().seen_ago = Some(ago);
        }
        for one in self.connected() {
            if let Some(device) = one.peer.device() {
                known.entry(device.clone()).or_default().connected = Some(one.peer.assurance);
            }
        }
        known
    }

    /// Follows the registry's file until told to stop.
    pub async fn follow(self: Arc<Self>, file: RegistryFile, metrics: Metrics, stop: CancellationToken) {
        let mut last = Looked { text: None, good: true };
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
            let (doors, file) = (self.clone(), file.clone());
            last = match tokio::task::spawn_blocking(move || doors.look(&file, last)).await {
                Ok(looked) => looked,
                // A look that panicked is not the last one: who is revoked next is to be turned away.
                Err(error) => {
                    refused(&error);
                    Looked { text: None, good: false }
                }
            };
            metrics.registry_good(last.good);
        }
    }

    /// One look. What was seen before is not read again.
    fn look(&self, file: &RegistryFile, last: Looked) -> Looked {
        let text = match file.text() {
            Ok(text) => text,
            Err(error) => {
                if last.good {
                    refused(&error);
                }
                // What stood there before is read again when it can be.
                return Looked { text: None, good: false };
            }
        };
        let seen = text.as_deref().map(|text| Sha::of(text.as_bytes()));
        if seen == last.text && seen.is_some() {
            return last;
        }
        let good = match text {
            // Nobody was ever added; or it has gone, which is an accident and forgives nobody.
            None if self.registry.load().is_empty() => true,
            None => {
                if last.good {
                    refused(&"the registry has gone");
                }
                false
            }
            Some(text) => self.read(file, &text),
        };
        Looked { text: seen, good }
    }

    fn read(&self, file: &RegistryFile, text: &str) -> bool {
        let taken = file
            .parse(text)
            .map_err(|error| error.to_string())
            .and_then(|registry| self.take(registry).map_err(|error| error.to_string()));
        match taken {
            Ok(cut) => tracing::info!(event = "devices.registry_read", cut),
            Err(why) => {
                refused(&why);
                return false;
            }
        }
        true
    }
}

/// What a look at the registry has found.
#[derive(Debug, Clone, Copy)]
struct Looked {
    /// SHA-256 of the text; none if there was none.
    text: Option<Sha>,
    good: bool,
}

fn refused(why: &dyn std::fmt::Display) {
    tracing::error!(event = "devices.registry_refused", %why, "what was good before stays in force");
}

/// The word for how somebody is known.
#[must_use]
pub fn word(assurance: Assurance) -> &'static str {
    match assurance {
        Assurance::Claimed => "claimed",
        Assurance::Vouched => "vouched",
        Assurance::Signed => "signed",
    }
}

/// A panic while the lock was held leaves whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
