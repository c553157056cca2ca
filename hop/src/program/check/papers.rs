//! What has a date on it: certificates and revocation lists. And who may read the keys that go with them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::trust::{KeyStatus, StatementFields};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::Finding;
use crate::program::human;
use crate::tls::Pem;

/// A certificate or a key that ends sooner than this is said: a month, for a box that nobody visits more often.
pub const SOON_S: u64 = 30 * 86_400;

/// From when to when the first that ends of some certificates is good, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The latest beginning.
    pub from_s: u64,
    /// The earliest end.
    pub until_s: u64,
}

/// When all certificates of a file are good.
#[must_use]
pub fn validity(pem: &Pem) -> Option<Validity> {
    let mut found: Option<Validity> = None;
    for der in pem.certificates().ok()? {
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let (from, until) = (certificate.validity().not_before, certificate.validity().not_after);
        let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
        let (from_s, until_s) = (seconds(from.timestamp()), seconds(until.timestamp()));
        found = Some(match found {
            None => Validity { from_s, until_s },
            Some(other) => Validity { from_s: from_s.max(other.from_s), until_s: until_s.min(other.until_s) },
        });
    }
    found
}

/// Whether the certificates of a file are good now and for a while. `renew` says how to have new ones.
pub fn certificate(path: &Path, now_s: u64, renew: &str) -> Finding {
    let pem = match Pem::read(path) {
        Ok(pem) => pem,
        Err(error) => return Finding::failure(ErrorReason::ConfigUnreadable, error.to_string()),
    };
    let Some(Validity { from_s, until_s }) = validity(&pem) else {
        return Finding::failure(
            ErrorReason::CertificateInvalid,
            format!("{}: no certificate", path.display()),
        );
    };
    let until = human::moment_from(until_s, now_s);
    if now_s < from_s {
        Finding::failure(
            ErrorReason::CertificateInvalid,
            format!("{} begins {}", path.display(), human::moment_from(from_s, now_s)),
        )
        .todo("set this machine's clock, if that is wrong")
    } else if now_s >= until_s {
        Finding::failure(ErrorReason::CertificateInvalid, format!("{} has ended {until}", path.display()))
            .todo(renew)
    } else if until_s - now_s < SOON_S {
        Finding::warning(format!("{} ends {until}", path.display())).todo(renew)
    } else {
        Finding::ok(format!("until {until}"))
    }
}

/// Whether a revocation list is the newest that there should be. `refuses`: nobody is let in with one that is not.
pub fn revocation_list(path: &Path, now_s: u64, refuses: bool) -> Finding {
    let lists = match Pem::read(path).and_then(|pem| pem.crls()) {
        Ok(lists) => lists,
        Err(error) => return Finding::failure(ErrorReason::ConfigUnreadable, error.to_string()),
    };
    let next = lists.iter().filter_map(|der| {
        let (_, list) = CertificateRevocationList::from_der(der).ok()?;
        u64::try_from(list.next_update()?.timestamp()).ok()
    });
    let Some(next) = next.min() else {
        return Finding::ok(format!("{} names no next update", path.display()));
    };
    let (when, renew) = (
        human::moment_from(next, now_s),
        "have the CA issue a new list, put it there, and have the program reload",
    );
    if next <= now_s && refuses {
        Finding::failure(
            ErrorReason::CertificateRevoked,
            format!("{} was to be renewed {when}: nobody is let in", path.display()),
        )
        .todo(renew)
    } else if next <= now_s {
        Finding::warning(format!("{} was to be renewed {when}: it is used as it is", path.display()))
            .todo(renew)
    } else {
        Finding::ok(format!("to be renewed {when}"))
    }
}

/// Whether a key statement is good now and for a while. `another` says how to come by a newer one.
#[must_use]
pub fn statement(fields: &StatementFields, now_s: u64, another: &str) -> Finding {
    let name = format!("{}.{}", fields.epoch, fields.sequence);
    let until = |at: u64| human::moment_from(at, now_s);
    let (expires, refresh) = (fields.expires_at.as_secs(), fields.refresh_by.as_secs());
    if now_s >= expires {
        return Finding::failure(ErrorReason::TrustExpired, format!("{name} has expired {}", until(expires)))
            .todo(another);
    }
    if now_s >= refresh {
        let words = format!("{name} was to be refreshed {}, and expires {}", until(refresh), until(expires));
        return Finding::warning(words).todo(another);
    }
    let active = fields.keys.iter().filter(|key| key.status == KeyStatus::Active);
    let ends = active.map(|key| key.seal_until.as_secs()).max().unwrap_or(0);
    let next = fields.keys.iter().any(|key| key.status == KeyStatus::Next);
    if ends < now_s.saturating_add(SOON_S) && !next {
        let words =
            format!("the key of {name} is sealed to until {}, and none is announced to follow", until(ends));
        return Finding::warning(words)
            .todo("have the authority announce the next key: it is used only after its hold-down");
    }
    Finding::ok(format!("{name}, to be refreshed {}, expires {}", until(refresh), until(expires)))
}

/// Whether a private key is for its owner alone, or for its owner's group at most.
pub fn private_file(path: &Path, what_a_thief_could: &str) -> Finding {
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(error) => {
            return Finding::failure(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()));
        }
    };
    let mode = about.mode() & 0o777;
    let said = format!("{} has mode {mode:03o}", path.display());
    if mode & 0o007 != 0 {
        Finding::warning(format!("{said}: every user of this machine can read it, and {what_a_thief_could}"))
            .todo(format!("chmod 600 {}", path.display()))
    } else if mode & 0o020 != 0 {
        Finding::warning(format!("{said}: its group can write it"))
            .todo(format!("chmod 640 {}", path.display()))
    } else {
        Finding::ok(said)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Grade;
    use super::*;

    const DAY: u64 = 86_400;
    const NOW: u64 = 1_800_000_000;

    fn written(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn certificate_of(from: u64, until: u64) -> String {
        let date = |at: u64| time::OffsetDateTime::from_unix_timestamp(at as i64).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.test".into()]).unwrap();
        (params.not_before, params.not_after) = (date(from), date(until));
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn a_certificate_is_good_soon_to_end_ended_or_not_yet_begun() {
        let folder = tempfile::tempdir().unwrap();
        let at = |from, until| {
            let path = written(folder.path(), "c.pem", &certificate_of(from, until));
            certificate(&path, NOW, "renew it")
        };
        assert_eq!(at(NOW - DAY, NOW + 31 * DAY).grade, Grade::Ok);
        let soon = at(NOW - DAY, NOW + 29 * DAY);
        assert_eq!((soon.grade, soon.todo.as_deref()), (Grade::Warning, Some("renew it")));
        assert!(soon.words.contains("(in 29 d)"), "{soon:?}");
        let ended = at(NOW - 2 * DAY, NOW - DAY);
        assert_eq!((ended.grade, ended.reason), (Grade::Failure, Some(ErrorReason::CertificateInvalid)));
        assert_eq!(at(NOW + DAY, NOW + 99 * DAY).grade, Grade::Failure);
        // Of a chain the first that ends counts.
        let both = certificate_of(NOW - DAY, NOW + 99 * DAY) + &certificate_of(NOW - 9 * DAY, NOW + 2 * DAY);
        let path = written(folder.path(), "chain.pem", &both);
        assert!(certificate(&path, NOW, "renew it").words.contains("(in 2 d)"));
        assert_eq!(certificate(&written(folder.path(), "no.pem", ""), NOW, "").grade, Grade::Failure);
    }

    #[test]
    fn a_list_past_its_update_is_said_and_a_failure_where_it_keeps_everybody_out() {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
        let issuer = rcgen::Issuer::new(ca, key);
        let date = |at: u64| time::OffsetDateTime::from_unix_timestamp(at as i64).unwrap();
        let list = rcgen::CertificateRevocationListParams {
            this_update: date(NOW - 9 * DAY),
            next_update: date(NOW),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let path = written(folder.path(), "crl.pem", &list.signed_by(&issuer).unwrap().pem().unwrap());
        assert_eq!(revocation_list(&path, NOW - 1, true).grade, Grade::Ok);
        assert_eq!(revocation_list(&path, NOW, false).grade, Grade::Warning);
        assert_eq!(revocation_list(&path, NOW, true).grade, Grade::Failure);
    }

    #[test]
    fn a_key_that_everybody_reads_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), "ca.key", "secret");
        for (mode, grade) in [
            (0o600, Grade::Ok),
            (0o640, Grade::Ok),
            (0o400, Grade::Ok),
            (0o644, Grade::Warning),
            (0o660, Grade::Warning),
            (0o601, Grade::Warning),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(private_file(&path, "be any device").grade, grade, "{mode:o}");
        }
        assert_eq!(private_file(Path::new("/nowhere"), "").grade, Grade::Failure);
    }
}
