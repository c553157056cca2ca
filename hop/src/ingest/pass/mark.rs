//! Whose call it is: what a gateway that passes it on says, and who may say so.

use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};

use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::ingest::v1 as wire;

use crate::identity::{Assurance, GatewayName, Peer, PeerId, Role};
use crate::ingest::Hop;
use crate::program::clock;
use crate::status::Refusal;

/// The key under which a request's metadata say whose call it is: `PassedOn` of ingest.v1.
pub const METADATA: &str = "pithead-passed-on-bin";

/// Says whose call it is, and what `gateway` knows of it.
pub fn mark(metadata: &mut MetadataMap, gateway: &GatewayName, sender: &Peer) {
    let said = wire::PassedOn { sender: sender.id.to_string(), word: Some(word(gateway, sender)) };
    metadata.insert_bin(METADATA, MetadataValue::from_bytes(&said.encode_to_vec()));
}

/// Whether somebody passes the call on, whoever that is.
#[must_use]
pub fn is_marked(metadata: &MetadataMap) -> bool {
    metadata.get_bin(METADATA).is_some()
}

/// A gateway's word on an envelope that it gets now.
#[must_use]
pub fn word(gateway: &GatewayName, sender: &Peer) -> Hop {
    Hop {
        gateway: gateway.as_str().to_owned(),
        received_us: clock::wall_us(),
        assurance: sender.assurance.to_wire() as i32,
        certificate_sha256: certificate_of(sender),
        key_not_active: false,
        conflict: false,
    }
}

/// Whose call it is that whoever stands `at_the_door` makes: its own, or, if it is marked and may be, the one of a device, with the word of
/// the gateway that passes it on. Marks are `taken` where several gateways share a spool.
pub(in crate::ingest) fn sender(
    at_the_door: &Peer,
    metadata: &MetadataMap,
    taken: bool,
) -> Result<(Peer, Option<Hop>), Refusal> {
    let mut marks = metadata.get_all_bin(METADATA).iter();
    let Some(mark) = marks.next() else { return Ok((at_the_door.clone(), None)) };
    // Who may say so comes before what is said.
    match at_the_door.role() {
        Role::Gateway(_) if taken => {}
        Role::Gateway(_) => {
            return Err(refused(
                "this one shares its spool with no other gateway ([spool] engine)".to_owned(),
            ));
        }
        Role::Device(_) | Role::Operator(_) | Role::Applicant(_) => {
            return Err(refused(format!("{} speaks for nobody else", at_the_door.id)));
        }
    }
    if marks.next().is_some() {
        return Err(Refusal::field(METADATA, "comes once"));
    }
    let said = mark.to_bytes().ok().and_then(|bytes| wire::PassedOn::decode(bytes).ok());
    let said = said.ok_or_else(|| Refusal::field(METADATA, "cannot be read"))?;
    let id = PeerId::from_uri(&said.sender).map_err(|_| Refusal::field(METADATA, "names nobody"))?;
    if id.site != *at_the_door.site() || !matches!(id.role, Role::Device(_)) {
        return Err(refused(format!("{id} is no device of site {}", at_the_door.site())));
    }
    let word = said.word.ok_or_else(|| Refusal::field(METADATA, "says nothing of the sender"))?;
    // A signature is in the envelope, and nobody's word.
    let certificate = <[u8; 32]>::try_from(word.certificate_sha256.as_ref()).ok();
    let (assurance, certificate_sha256) = match (word.assurance(), certificate) {
        (wire::Assurance::Vouched, Some(certificate)) => (Assurance::Vouched, Some(certificate)),
        (wire::Assurance::Claimed, None) if word.certificate_sha256.is_empty() => (Assurance::Claimed, None),
        _ => return Err(Refusal::field(METADATA, "says of the sender what cannot be")),
    };
    let sender = Peer { id, certificate_sha256, assurance, passed_on_by: Some(at_the_door.clone().into()) };
    check_word(std::slice::from_ref(&word), &sender, at_the_door)?;
    Ok((sender, Some(word)))
}

/// Custody of an envelope of a call that `by` passes on for `sender`: its own word alone, and the same that it gave for the call.
pub(in crate::ingest) fn check_word(hops: &[Hop], sender: &Peer, by: &Peer) -> Result<(), Refusal> {
    let Role::Gateway(name) = by.role() else { return Err(refused(format!("{} is no gateway", by.id))) };
    match hops {
        [hop]
            if hop.gateway == name.as_str()
                && hop.assurance == sender.assurance.to_wire() as i32
                && hop.certificate_sha256 == certificate_of(sender)
                && !hop.key_not_active
                && !hop.conflict =>
        {
            Ok(())
        }
        _ => Err(Refusal::field("hops", format!("is not the one word of {name}, which passes the call on"))),
    }
}

fn certificate_of(peer: &Peer) -> bytes::Bytes {
    peer.certificate_sha256.map(|sha256| sha256.to_vec().into()).unwrap_or_default()
}

fn refused(why: String) -> Refusal {
    Refusal::new(ErrorReason::PassingOnRefused, format!("the call is not taken as somebody else's: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uri: &str) -> Peer {
        let id = PeerId::from_uri(uri).expect("a good name");
        Peer { id, certificate_sha256: Some([7; 32]), assurance: Assurance::Vouched, passed_on_by: None }
    }

    fn truck() -> Peer {
        peer("spiffe://pit-7/device/truck-1")
    }

    fn edge() -> Peer {
        Peer { certificate_sha256: Some([9; 32]), ..peer("spiffe://pit-7/gateway/edge-2") }
    }

    fn marked(sender: &Peer) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        mark(&mut metadata, &GatewayName::new("edge-2").expect("a name"), sender);
        metadata
    }

    #[test]
    fn a_gateway_of_the_site_brings_a_device_as_it_knows_it_and_no_mark_is_nobody_elses_call() {
        let pump = Peer {
            certificate_sha256: None,
            assurance: Assurance::Claimed,
            ..peer("spiffe://pit-7/device/pump-1")
        };
        for device in [truck(), pump] {
            let (brought, word) = sender(&edge(), &marked(&device), true).expect("taken");
            assert_eq!(check_word(&[word.expect("a word")], &brought, &edge()), Ok(()));
            assert_eq!(brought, Peer { passed_on_by: Some(edge().into()), ..device });
            assert_eq!(brought.at_the_door(), &edge());
        }
        assert_eq!(sender(&truck(), &MetadataMap::new(), true), Ok((truck(), None)));
    }

    #[test]
    fn nobody_but_a_gateway_of_the_same_site_that_shares_the_spool_is_believed() {
        let other = peer("spiffe://pit-7/device/truck-2");
        let reason = |door: &Peer, sender_of: &Peer, taken| {
            sender(door, &marked(sender_of), taken).expect_err("not believed").reason
        };
        // Not even for itself, and not on a site with one gateway.
        for (door, taken) in [
            (truck(), true),
            (other.clone(), true),
            (peer("spiffe://pit-7/operator/erin"), true),
            (edge(), false),
        ] {
            assert_eq!(reason(&door, &truck(), taken), ErrorReason::PassingOnRefused, "{}", door.id);
        }
        for stranger in
            ["spiffe://pit-8/device/truck-1", "spiffe://pit-7/gateway/edge-2", "spiffe://pit-7/operator/erin"]
        {
            assert_eq!(reason(&edge(), &peer(stranger), true), ErrorReason::PassingOnRefused, "{stranger}");
        }
        assert_eq!(
            reason(&peer("spiffe://pit-8/gateway/edge-2"), &truck(), true),
            ErrorReason::PassingOnRefused
        );
    }

    #[test]
    fn a_mark_that_says_what_cannot_be_is_refused() {
        let signed = Peer { assurance: Assurance::Signed, ..truck() };
        let claimed = Peer { assurance: Assurance::Claimed, ..truck() };
        let bare = Peer { certificate_sha256: None, ..truck() };
        let mut twice = marked(&truck());
        twice.append_bin(METADATA, MetadataValue::from_bytes(b""));
        let mut garbage = MetadataMap::new();
        garbage.insert_bin(METADATA, MetadataValue::from_bytes(b"\xff\xff\xff"));
        let elsewhere = Peer { certificate_sha256: Some([9; 32]), ..peer("spiffe://pit-7/gateway/edge-3") };
        let refused = sender(&elsewhere, &marked(&truck()), true).expect_err("the word of another gateway");
        assert_eq!(refused.reason, ErrorReason::RequestInvalid, "{refused}");
        for metadata in [marked(&signed), marked(&claimed), marked(&bare), twice, garbage] {
            let refused = sender(&edge(), &metadata, true).expect_err("not believed");
            assert_eq!(refused.reason, ErrorReason::RequestInvalid, "{refused}");
        }
    }

    #[test]
    fn custody_is_the_one_word_of_whoever_passes_the_call_on() {
        let name = GatewayName::new("edge-2").expect("a name");
        let good = word(&name, &truck());
        assert_eq!(check_word(std::slice::from_ref(&good), &truck(), &edge()), Ok(()));
        let wrong = [
            vec![],
            vec![good.clone(), good.clone()],
            vec![Hop { gateway: "edge-1".to_owned(), ..good.clone() }],
            vec![Hop { assurance: wire::Assurance::Signed as i32, ..good.clone() }],
            vec![Hop { certificate_sha256: vec![8; 32].into(), ..good.clone() }],
            vec![Hop { conflict: true, ..good.clone() }],
            vec![Hop { key_not_active: true, ..good }],
        ];
        for hops in wrong {
            let refused = check_word(&hops, &truck(), &edge()).expect_err("another word");
            assert_eq!(refused.reason, ErrorReason::RequestInvalid, "{hops:?}");
        }
    }
}
