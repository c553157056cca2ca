//! Who a connection is: by the certificate that it shows, by the address that it comes from, or nobody yet.
//!
//! One listener has one way of knowing, so nobody can choose the weaker one ([`Door`]). A door is swapped whole: new
//! handshakes are judged by the new one, a handshake that was under way is judged again at its end, and whoever is
//! connected can be judged again too.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{DeviceId, Site};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::permits::host_of;
use crate::{identity::Peer, status::Refusal, tls::Gate};

/// How a listener knows who connects, and the TLS that it speaks.
#[derive(Debug, Clone)]
pub struct Door {
    pub(super) tls: Arc<ServerConfig>,
    who: Who,
}

#[derive(Debug, Clone)]
enum Who {
    /// By a certificate of the site's CA; with a gate, whoever is connected can be judged again.
    Certificate(Option<Gate>),
    /// By the source address.
    Address(Arc<AddressBook>),
    /// Not at all: whoever asks to be enrolled.
    Applicants(Site),
}

/// Which device an address stands for. One address each: a network of many names nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressBook {
    /// The site of all of them.
    pub site: Site,
    /// By address; an IPv4 address in its own form, not mapped into IPv6.
    pub devices: BTreeMap<IpAddr, DeviceId>,
}

impl From<Arc<ServerConfig>> for Door {
    fn from(tls: Arc<ServerConfig>) -> Self {
        Self { tls, who: Who::Certificate(None) }
    }
}

impl From<Gate> for Door {
    fn from(gate: Gate) -> Self {
        Self { tls: gate.config.clone(), who: Who::Certificate(Some(gate)) }
    }
}

impl Door {
    /// Knows devices by their address. `tls` asks for no certificate.
    pub fn by_address(tls: Arc<ServerConfig>, book: Arc<AddressBook>) -> Self {
        Self { tls, who: Who::Address(book) }
    }

    /// Knows nobody: whoever comes may ask to be enrolled at `site`. `tls` asks for no certificate.
    pub fn for_applicants(tls: Arc<ServerConfig>, site: Site) -> Self {
        Self { tls, who: Who::Applicants(site) }
    }

    /// Who has shown this chain, which the handshake has verified, and comes from there.
    pub(super) fn identify(
        &self,
        chain: &[CertificateDer<'static>],
        from: SocketAddr,
    ) -> Result<Guest, NotKnown> {
        let address = from.ip().to_canonical();
        match &self.who {
            Who::Certificate(_) => {
                let leaf = chain.first().ok_or(NotKnown::NoCertificate)?;
                let peer = Peer::from_verified_certificate(leaf).map_err(NotKnown::Identity)?;
                Ok(Guest { peer, refusal: None })
            }
            Who::Address(book) => Ok(match book.devices.get(&address) {
                Some(device) => {
                    Guest { peer: Peer::at_address(book.site.clone(), device.clone()), refusal: None }
                }
                // It is let in far enough to be told so.
                None => Guest {
                    peer: Peer::applicant(book.site.clone(), host_of(address)),
                    refusal: Some(Refusal::new(
                        ErrorReason::AddressUnknown,
                        format!("no device is registered at the address {address}"),
                    )),
                },
            }),
            Who::Applicants(site) => {
                Ok(Guest { peer: Peer::applicant(site.clone(), host_of(address)), refusal: None })
            }
        }
    }

    /// Whether one who came in by this door, or by the one before it, would come in now.
    pub(super) fn admits(
        &self,
        peer: &Peer,
        chain: &[CertificateDer<'static>],
        from: SocketAddr,
        now: UnixTime,
    ) -> bool {
        match &self.who {
            Who::Certificate(None) | Who::Applicants(_) => true,
            Who::Certificate(Some(gate)) => gate.admits(chain, now).is_ok(),
            Who::Address(_) => self.identify(chain, from).is_ok_and(|guest| guest.peer == *peer),
        }
    }
}

/// Somebody whose handshake has ended well.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) peer: Peer,
    /// What every call is answered with, if this one is let in for that alone.
    pub(super) refusal: Option<Refusal>,
}

/// Why nobody is known by a handshake that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotKnown {
    #[error("{0}")]
    Identity(crate::identity::IdentityError),
    #[error("no client certificate")]
    NoCertificate,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Assurance, Role};

    fn tls() -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        Arc::new(config)
    }

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect("an address"), 40_000)
    }

    #[test]
    fn an_address_names_its_one_device_as_a_claim_and_another_address_nobody() {
        let site = Site::new("pit-7").expect("a site");
        let truck = DeviceId::new("truck-1").expect("a device");
        let devices = BTreeMap::from([("10.0.0.7".parse().expect("an address"), truck.clone())]);
        let door = Door::by_address(tls(), Arc::new(AddressBook { site: site.clone(), devices }));
        for own in ["10.0.0.7", "::ffff:10.0.0.7"] {
            let guest = door.identify(&[], from(own)).expect("known");
            assert_eq!(guest.peer.device(), Some(&truck), "{own}");
            assert_eq!(guest.peer.assurance, Assurance::Claimed);
            assert!(guest.refusal.is_none());
        }
        let stranger = door.identify(&[], from("10.0.0.8")).expect("let in to be told");
        assert!(matches!(stranger.peer.role(), Role::Applicant(_)));
        assert_eq!(stranger.refusal.expect("told").reason, ErrorReason::AddressUnknown);

        // The address now belongs to another.
        let known = door.identify(&[], from("10.0.0.7")).expect("known").peer;
        let now = UnixTime::now();
        assert!(door.admits(&known, &[], from("10.0.0.7"), now));
        let emptied = Door::by_address(tls(), Arc::new(AddressBook { site, devices: BTreeMap::new() }));
        assert!(!emptied.admits(&known, &[], from("10.0.0.7"), now));
    }

    #[test]
    fn an_applicant_is_nobody_and_one_with_all_of_its_host() {
        let door = Door::for_applicants(tls(), Site::new("pit-7").expect("a site"));
        let one = door.identify(&[], from("10.0.0.8")).expect("let in");
        let two = door.identify(&[], from("::ffff:10.0.0.8")).expect("let in");
        assert_eq!(one.peer, two.peer);
        assert_eq!(one.peer.device(), None);
        let of = |address: &str| door.identify(&[], from(address)).expect("let in").peer;
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"), "one host has a whole /64");
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }
}
