//! What the commands say of a folder that is empty because the lanes are elsewhere, and of one that is not.

use bytes::Bytes;
use pithead_spool::{Options, Spool};
use sha2::{Digest as _, Sha256};

use super::export::What;
use super::*;
use crate::cli::ConfigArg;
use crate::envelopes::record::Body;
use crate::envelopes::refused::Refused;
use crate::envelopes::testing::{identity, shares};
use crate::metrics::Metrics;
use crate::run::directory::refused_below;

/// A gateway that does not run.
struct Stopped(tempfile::TempDir);

impl Stopped {
    fn on(engine: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let servers = "[spool.jetstream]\nservers = [\"127.0.0.1:1\"]";
        let written = crate::config::TEMPLATE
            .replace("/var/lib/pithead-gateway", data)
            .replace("#engine = \"embedded\"", &format!("engine = \"{engine}\""))
            .replace("#[spool.jetstream]", if engine == "jetstream" { servers } else { "" })
            .replace("#listen = \"127.0.0.1:7480\"", &format!("listen = \"unix:{data}/admin.sock\""));
        std::fs::write(folder.path().join("gateway.toml"), written).unwrap();
        // As the first start does, with either engine.
        std::fs::create_dir(folder.path().join("spool")).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// By its configuration, or by its data directory alone.
    fn data(&self, is_named: bool) -> DataArg {
        let config = ConfigArg { config: self.path().join("gateway.toml") };
        DataArg { config, data_dir: is_named.then(|| self.path().to_owned()) }
    }

    fn stat(&self) -> Result<String, ProgramError> {
        said(|out| stat(&self.data(false), Output::Table, out))
    }

    fn verify(&self, is_named: bool) -> Result<String, ProgramError> {
        said(|out| verify::run(None, &self.data(is_named), Output::Table, out))
    }

    fn export(&self, what: What, is_named: bool) -> Result<String, ProgramError> {
        let to = self.path().join("stick");
        said(|out| export::run(&to, what, &self.data(is_named), Output::Table, out))
    }

    fn exports_nothing(&self, what: What, is_named: bool) {
        assert_says_nothing_of_what_waits(&self.export(what, is_named));
        assert!(!self.path().join("stick").exists(), "a folder would pass for an export");
    }

    /// As the embedded engine leaves it: one envelope waits, or none does any more.
    async fn leaves(&self, waits: bool) {
        let (log, _) = Spool::open(self.path().join("spool"), Options::default()).unwrap();
        let (head, body) = envelope(1);
        let position = log.append(Lane::First, head.record(Body::Envelope(body), 7)).unwrap().await.unwrap();
        if !waits {
            log.acknowledge(Lane::First, position).unwrap();
        }
        log.close().unwrap();
    }
}

fn envelope(seq: u64) -> (Head, Bytes) {
    let body = Bytes::from_static(b"sealed");
    let sha256 = Sha256::digest(&body).into();
    (Head { identity: identity("truck-42", seq), sha256, hops: Vec::new(), copy: None }, body)
}

/// What a command printed, which ended well.
fn said(
    command: impl FnOnce(&mut dyn Write) -> Result<ExitCode, ProgramError>,
) -> Result<String, ProgramError> {
    let mut out = Vec::new();
    let code = command(&mut out)?;
    let out = String::from_utf8(out).unwrap();
    assert_eq!(code, ExitCode::OK, "{out}");
    Ok(out)
}

fn assert_says_nothing_of_what_waits(said: &Result<String, ProgramError>) {
    let error = said.as_ref().unwrap_err();
    assert_eq!((error.reason, error.exit), (ErrorReason::RequestInvalid, ExitCode::USAGE), "{error}");
    assert!(error.what.contains("JetStream") && error.affects.is_some() && error.todo.is_some(), "{error}");
}

#[test]
fn a_folder_that_is_empty_because_the_lanes_are_in_jetstream_is_no_empty_spool() {
    let gateway = Stopped::on("jetstream");
    for is_named in [false, true] {
        gateway.exports_nothing(What::Waiting, is_named);
        gateway.exports_nothing(What::All, is_named);
        assert_says_nothing_of_what_waits(&gateway.verify(is_named));
    }
    let error = gateway.stat().unwrap_err();
    assert_eq!((error.reason, error.exit), (ErrorReason::PeerUnreachable, ExitCode::PEER_UNAVAILABLE));
    assert!(error.to_string().contains("JetStream"), "{error}");
    // Also where the folder is gone, as the move to JetStream has it.
    std::fs::remove_dir(gateway.path().join("spool")).unwrap();
    gateway.exports_nothing(What::Waiting, false);
    assert_says_nothing_of_what_waits(&gateway.verify(false));
    assert_eq!(gateway.stat().unwrap_err().reason, ErrorReason::PeerUnreachable);
}

#[tokio::test]
async fn what_the_embedded_engine_has_left_is_carried_away_under_the_other_one_too() {
    let gateway = Stopped::on("jetstream");
    gateway.leaves(true).await;
    let exported = gateway.export(What::Waiting, false).unwrap();
    assert!(exported.starts_with("written    1 envelope,"), "{exported}");
    let verified = gateway.verify(false).unwrap();
    assert!(verified.starts_with("checked    1 record,"), "{verified}");
    let stat = gateway.stat().unwrap();
    assert!(stat.lines().any(|line| line.split_whitespace().eq(["records", "1"])), "{stat}");
    for said in [exported, verified, stat] {
        assert!(said.contains("what waits in JetStream is not in this"), "{said}");
    }
}

#[tokio::test]
async fn what_was_delivered_before_the_move_is_nothing_that_waits_and_is_had_with_all() {
    let gateway = Stopped::on("jetstream");
    gateway.leaves(false).await;
    gateway.exports_nothing(What::Waiting, false);
    assert_says_nothing_of_what_waits(&gateway.verify(false));
    assert_eq!(gateway.stat().unwrap_err().reason, ErrorReason::PeerUnreachable);
    let exported = gateway.export(What::All, false).unwrap();
    assert!(exported.starts_with("written    1 envelope,"), "{exported}");
}

#[test]
fn what_was_refused_is_carried_away_alone_whatever_the_lanes_are_in() {
    let gateway = Stopped::on("jetstream");
    let area = refused_below(gateway.path());
    let refused = Refused::open(&area, 1 << 20, Metrics::new(), shares()).unwrap();
    let (head, body) = envelope(1);
    refused.keep(&head, false, &body, Some(ErrorReason::KeyUnknown), "no such key", 7).unwrap();
    gateway.exports_nothing(What::Waiting, false);
    let exported = gateway.export(What::Refused, false).unwrap();
    assert!(
        exported.starts_with("written    1 envelope,") && exported.contains("\nrefused    1 "),
        "{exported}"
    );
}

#[tokio::test]
async fn an_empty_spool_of_the_embedded_engine_is_one_and_everything_is_on_the_stick() {
    let gateway = Stopped::on("embedded");
    gateway.leaves(false).await;
    for is_named in [false, true] {
        assert!(gateway.verify(is_named).unwrap().ends_with("sound\n"));
        let exported = gateway.export(What::Waiting, is_named).unwrap();
        assert!(exported.starts_with("written    0 envelopes,"), "{exported}");
        assert!(!exported.contains("JetStream"), "{exported}");
    }
    assert!(gateway.stat().unwrap().lines().any(|line| line.split_whitespace().eq(["records", "0"])));
}

#[test]
fn a_gateway_that_stands_by_does_not_say_that_nothing_waits() {
    let facts = json!({
        "engine": "jetstream", "owner_here": false, "standing_by": "edge-2 takes the envelopes",
        "records": 0, "bytes": 0, "available_bytes": 9, "oldest_age_s": null, "disk_full": false,
        "second_lane_records": 0, "second_lane_bytes": 0, "appended_records": 5,
    });
    let known = known_there(facts.clone());
    for name in
        ["records", "bytes", "available_bytes", "disk_full", "second_lane_records", "second_lane_bytes"]
    {
        assert!(known[name].is_null(), "{name}: {known:#}");
    }
    assert_eq!((&known["appended_records"], &known["standing_by"]), (&json!(5), &facts["standing_by"]));
    let owner = json!({ "owner_here": true, "records": 0, "second_lane_records": 0 });
    assert_eq!(known_there(owner.clone()), owner);
}
