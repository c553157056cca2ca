//! What a site could use instead of the gateway, each at its strongest durability, measured by its script in
//! `tests/peers` (or the folder in `PITHEAD_PEERS`).

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use pithead_tests::binaries::workspace;
use serde::Deserialize;

use super::Shape;

/// A peer whose acknowledgement means that the message is on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its name in the rows.
    pub(crate) name: &'static str,
    script: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// It syncs once a message: it gets this part of the messages, so that it does not hold up the rest.
    share: usize,
}

/// All that we hold ourselves against.
pub(crate) const PEERS: [Peer; 3] = [
    Peer { name: "redis", script: "redis.sh", settings: &[], share: 1 },
    Peer { name: "rabbitmq", script: "rabbitmq.sh", settings: &[("QUEUE", "quorum")], share: 1 },
    Peer { name: "nats", script: "nats.sh", settings: &[("SYNC", "always")], share: 5 },
];

/// What its script printed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Measured {
    pub(crate) msgs_s: f64,
    pub(crate) server_cpu_us_per_msg: f64,
    pub(crate) ack_p50_ms: f64,
    pub(crate) ack_p99_ms: f64,
    errors: Vec<String>,
}

/// Where the scripts are.
pub(crate) fn folder() -> PathBuf {
    env::var_os("PITHEAD_PEERS").map_or_else(|| workspace().join("tests/peers"), PathBuf::from)
}

#[derive(Deserialize)]
struct Idle {
    kb_per_conn: f64,
}

impl Peer {
    /// KiB of memory that each of so many idle TLS connections costs it. Blocks.
    pub(crate) fn idle(&self, connections: usize) -> anyhow::Result<f64> {
        let clients = connections.to_string();
        let said = self.run(&[("CLIENTS", &clients), ("EXTRA", "--idle --idle-secs 2")])?;
        let idle: Idle = serde_json::from_str(&said).with_context(|| self.skipped(&said))?;
        Ok(idle.kb_per_conn)
    }

    fn skipped(&self, said: &str) -> String {
        format!("{} is skipped; `{}/setup.sh` sets it up: {said}", self.name, folder().display())
    }

    fn run(&self, settings: &[(&str, &str)]) -> anyhow::Result<String> {
        let output = Command::new("bash")
            .arg(folder().join(self.script))
            .envs(self.settings.iter().copied())
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .with_context(|| self.skipped(""))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().last().unwrap_or_default().to_owned())
    }

    /// Starts it, loads it, stops it. Blocks for as long as that takes. Where it is not installed, the error says how that is
    /// mended.
    pub(crate) fn measure(&self, shape: Shape) -> anyhow::Result<Measured> {
        let count = (shape.total() / self.share).max(shape.clients);
        let [size, count, clients, window] =
            [shape.size, count, shape.clients, shape.window].map(|number| number.to_string());
        let said = self.run(&[
            ("SIZE", &size),
            ("N", &count),
            ("CLIENTS", &clients),
            ("WINDOW", &window),
            ("EXTRA", "--no-consume"),
        ])?;
        let measured: Measured = serde_json::from_str(&said).with_context(|| self.skipped(&said))?;
        anyhow::ensure!(measured.errors.is_empty(), "{}: {:?}", self.name, measured.errors);
        Ok(measured)
    }
}
