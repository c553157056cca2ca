//! A device of the site: its folder, and the real `pithead-device` working in it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::ChildStdin};

use crate::{
    binaries::Binaries,
    command::{self, Finished, Running},
};

/// What one `send` says of itself when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Summary {
    /// Records read and sealed.
    pub records: u64,
    /// Envelopes sealed.
    pub envelopes: u64,
    /// Envelopes that the gateway has acknowledged, those of earlier runs included.
    pub acknowledged: u64,
    /// Acknowledged ones that the gateway had already.
    pub duplicates: u64,
    /// Envelopes that the gateway will never take.
    pub refused: u64,
    /// Sessions: each is one unwrapping in the cloud.
    pub sessions: u64,
}

/// What `key` says.
#[derive(Clone, Debug, Deserialize)]
pub struct KeyReport {
    /// `FRESH`, `STALE`, `EXPIRED`, `NO_KEY`.
    pub status: String,
    /// Sequence of the statement that is believed.
    pub sequence: u64,
    /// The key's ARN.
    pub key: Option<String>,
    /// SHA-256 of the public key, verified by the device.
    pub fingerprint: Option<String>,
}

/// An enrolled device.
#[derive(Clone, Debug)]
pub struct Device {
    name: String,
    folder: PathBuf,
    programs: Binaries,
}

impl Device {
    pub(crate) fn new(name: &str, folder: PathBuf, programs: &Binaries) -> Self {
        Self { name: name.to_owned(), folder, programs: programs.clone() }
    }

    /// Its name, as its certificate says it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("device.toml")
    }

    /// The public half of the key that signs its sessions.
    #[must_use]
    pub fn public_key(&self) -> PathBuf {
        self.folder.join("device.pub")
    }

    fn arguments(&self, more: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            vec!["-c".into(), self.config().into(), "-o".into(), "json".into()];
        arguments.extend(more.iter().map(OsString::from));
        arguments
    }

    /// Starts the program on this device with further arguments.
    pub fn start(&self, more: &[&str]) -> anyhow::Result<Running> {
        command::start(&self.programs.device(), self.arguments(more), &[], false)
    }

    /// Runs the program on this device with further arguments, to its end.
    pub async fn run(&self, more: &[&str]) -> anyhow::Result<Finished> {
        command::run(&self.programs.device(), self.arguments(more), &[]).await
    }

    /// `key`: asks the gateway and verifies.
    pub async fn key(&self) -> anyhow::Result<KeyReport> {
        self.run(&["key"]).await?.ok()?.json()
    }

    /// `key --offline`: what it believes now.
    pub async fn key_offline(&self) -> anyhow::Result<KeyReport> {
        self.run(&["key", "--offline"]).await?.json()
    }

    /// `send -`: every line is a record of `stream`. Ends when the gateway has acknowledged all of it.
    pub async fn send(&self, stream: &str, lines: &[String]) -> anyhow::Result<Summary> {
        let mut sending = self.start_sending(stream)?;
        for line in lines {
            sending.record(line).await?;
        }
        sending.finish().await
    }

    /// `send -` with the records still to come.
    pub fn start_sending(&self, stream: &str) -> anyhow::Result<Sending> {
        self.start_sending_with(stream, &[])
    }

    /// `send -` with further arguments, and the records still to come.
    pub fn start_sending_with(&self, stream: &str, more: &[&str]) -> anyhow::Result<Sending> {
        let mut arguments = vec!["send", "-", "--stream", stream];
        arguments.extend(more);
        let mut running = command::start(&self.programs.device(), self.arguments(&arguments), &[], true)?;
        let input = running.input()?;
        Ok(Sending { running, input, pending: Vec::new() })
    }

    /// `outbox drain`: hands in what the outbox still holds, and records nothing.
    pub async fn drain(&self) -> anyhow::Result<Summary> {
        self.run(&["outbox", "drain", "--timeout", "50s"]).await?.ok()?.json()
    }

    /// Envelopes that wait in its outbox.
    pub async fn outbox(&self) -> anyhow::Result<u64> {
        let stat: serde_json::Value = self.run(&["outbox", "stat"]).await?.ok()?.json()?;
        stat["envelopes"].as_u64().context("outbox stat has no `envelopes`")
    }
}

/// A device that is sending.
#[derive(Debug)]
pub struct Sending {
    running: Running,
    input: ChildStdin,
    pending: Vec<u8>,
}

/// What is written to a device's pipe at a time: one system call for hundreds of records.
const CHUNK_BYTES: usize = 32 * 1024;

impl Sending {
    /// Hands it one more record. Waits while its pipe is full. What was handed over last may wait for
    /// [`Sending::flush`].
    pub async fn record(&mut self, line: &str) -> anyhow::Result<()> {
        self.pending.extend_from_slice(line.as_bytes());
        self.pending.push(b'\n');
        if self.pending.len() >= CHUNK_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Hands over what waits here.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        self.input.write_all(&self.pending).await.context("the device reads no more")?;
        self.input.flush().await?;
        self.pending.clear();
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.pid()
    }

    /// SIGKILL, as a power cut does it.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.running.kill().await
    }

    /// Ends the input and waits until it has ended, well or badly.
    pub async fn end(mut self) -> anyhow::Result<Finished> {
        // If it reads no more, its own words are the better error.
        let _ = self.flush().await;
        drop(self.input);
        self.running.finish_within(5).await
    }

    /// Ends the input and waits until everything is acknowledged.
    pub async fn finish(self) -> anyhow::Result<Summary> {
        self.end().await?.ok()?.json()
    }
}
