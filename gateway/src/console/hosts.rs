//! By which names the admin port may be called.
//!
//! It has no authentication, so a page from elsewhere must not read it. A browser keeps other origins out, but for one trick:
//! a name that its owner points at 127.0.0.1 after the page was loaded (DNS rebinding) makes the port that page's own origin.
//! Such a request carries the name. So whoever calls by a name that is neither of loopback nor configured is turned away; an
//! address is nobody's name. Probes and metrics are not asked: they tell nothing of a device, and a collector may go by any name.

use std::net::IpAddr;

/// Paths that answer by any name.
const OPEN: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Whether a request for `path` with this `Host` is answered. `names` are configured.
///
/// One without the header comes from no browser.
#[must_use]
pub fn may_call(path: &str, host: Option<&str>, names: &[String]) -> bool {
    let Some(host) = host else { return true };
    let name = name_of(host);
    OPEN.contains(&path) || is_local(name) || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Without port, brackets and the dot at the end. What is no host at all stays as it is, and is nobody's name.
fn name_of(host: &str) -> &str {
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    if let Some((address, _)) = bracketed.filter(|(_, rest)| rest.is_empty() || rest.starts_with(':')) {
        return address;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name)
}

fn is_local(name: &str) -> bool {
    let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
    let below = |wanted: &str| {
        let at = name.len().saturating_sub(wanted.len());
        name.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(wanted)) && at > 0
    };
    is("localhost") || below(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_and_configured_names_are_answered_and_a_rebound_name_is_not() {
        let names = ["edge-1.site.example".to_owned()];
        let may = |host: &str| may_call("/", Some(host), &names);
        for host in [
            "localhost",
            "localhost:7480",
            "LocalHost.:7480",
            "console.localhost:7480",
            "127.0.0.1:7480",
            "10.7.0.1",
            "[::1]:7480",
            "[fd00::7]",
            "EDGE-1.site.example:7480",
        ] {
            assert!(may(host), "{host}");
        }
        for host in [
            "evil.example:7480",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evillocalhost",
            ".localhost",
            "",
            "[::1].evil.example:1",
            "edge-1.site.example.evil.example",
            "x.edge-1.site.example",
        ] {
            assert!(!may(host), "{host}");
        }
    }

    #[test]
    fn what_follows_a_bracket_is_no_part_of_an_address() {
        assert!(!may_call("/", Some("[::1].evil.example:1"), &[]));
        assert!(!may_call("/", Some("[localhost"), &[]));
    }

    #[test]
    fn probes_and_metrics_go_by_any_name_and_everything_else_does_not() {
        for path in OPEN {
            assert!(may_call(path, Some("gateway.mine"), &[]), "{path}");
        }
        for path in ["/", "/statusz", "/devices", "/metrics/", "/console/style.css"] {
            assert!(!may_call(path, Some("gateway.mine"), &[]), "{path}");
        }
        assert!(may_call("/statusz", None, &[]));
    }
}
