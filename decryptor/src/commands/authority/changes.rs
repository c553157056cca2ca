//! What a drafted root changes against one that the signer knows, in words. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use pithead_sealing::trust::{GatewayPins, Kid, Role, RootFields, Sha256Digest};

use crate::authority::{custody_name, rfc3339};

/// One line per change; what stays has none.
pub(super) fn changes(before: &RootFields, after: &RootFields) -> String {
    let mut text = String::new();
    let mut line = |what: &str, said: String| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "change       {what}: {said}");
    };
    let mut differs = |what: &str, old: String, new: String| {
        if old != new {
            line(what, format!("{old} -> {new}"));
        }
    };
    differs("epoch", before.epoch.to_string(), after.epoch.to_string());
    differs("expires", rfc3339(before.expires_at), rfc3339(after.expires_at));
    for (what, old, new) in [
        ("root keys that must sign", &before.root_role, &after.root_role),
        ("statement keys that must sign", &before.statement_role, &after.statement_role),
    ] {
        let of = |role: &Role| format!("{} of {}", role.threshold, role.kids.len());
        differs(what, of(old), of(new));
    }
    let (old, new) = (&before.policy, &after.policy);
    differs("custody", custody_name(old.custody).into(), custody_name(new.custody).into());
    differs("hold-down", format!("{} s", old.hold_down_s), format!("{} s", new.hold_down_s));
    differs("shortest RSA key", format!("{} bits", old.min_rsa_bits), format!("{} bits", new.min_rsa_bits));
    differs("suites", format!("{:?}", old.suites), format!("{:?}", new.suites));
    let term = |s: u64| format!("{s} s");
    differs("longest statement", term(old.max_statement_validity_s), term(new.max_statement_validity_s));

    for (what, old, new) in [
        ("root key", &before.root_role, &after.root_role),
        ("statement key", &before.statement_role, &after.statement_role),
    ] {
        for kid in new.kids.iter().filter(|kid| !old.kids.contains(kid)) {
            line(what, format!("{kid} {} comes", label(after, kid)));
        }
        for kid in old.kids.iter().filter(|kid| !new.kids.contains(kid)) {
            line(what, format!("{kid} {} goes", label(before, kid)));
        }
    }
    for key in &after.keys {
        let kid = key.spki.kid();
        if before.key(&kid).is_some_and(|known| known.label != key.label) {
            line("label", format!("{kid} {} -> {:?}", label(before, &kid), key.label));
        }
    }
    let denied = |root: &RootFields| root.denylist.iter().copied().collect::<BTreeSet<_>>();
    let (old, new) = (denied(before), denied(after));
    new.difference(&old).for_each(|data_key| line("data key", format!("{data_key} is denied for ever")));
    old.difference(&new).for_each(|data_key| line("data key", format!("{data_key} IS DENIED NO MORE")));
    let (old, new) = (pins(before.gateways.as_ref()), pins(after.gateways.as_ref()));
    new.difference(&old).for_each(|pin| line("gateway", format!("{pin} comes")));
    old.difference(&new).for_each(|pin| line("gateway", format!("{pin} goes")));
    if text.is_empty() {
        text.push_str("change       none but its number and its dates\n");
    }
    text
}

fn label(root: &RootFields, kid: &Kid) -> String {
    format!("{:?}", root.key(kid).map_or("", |key| key.label.as_str()))
}

fn pins(pins: Option<&GatewayPins>) -> BTreeSet<String> {
    let ca = |der: &Vec<u8>| format!("CA {}", Sha256Digest::of(der));
    pins.into_iter()
        .flat_map(|pins| {
            pins.ca_der.iter().map(ca).chain(pins.spki_sha256.iter().map(|spki| format!("key {spki}")))
        })
        .collect()
}
