//! A program that does one thing and ends: run with a limit, and read whole.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin, Command},
};

use crate::program::PATIENCE;

/// What a command left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
}

impl Finished {
    /// True if it ended with 0.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Itself if it ended with 0, and otherwise an error with what it said.
    pub fn ok(self) -> anyhow::Result<Self> {
        if self.is_ok() {
            return Ok(self);
        }
        bail!("`{}` ended with {:?}\n{}{}", self.line, self.code, self.stdout, self.stderr)
    }

    /// The last line of standard output as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .or_else(|_| serde_json::from_str(&self.stdout))
            .with_context(|| format!("`{}` printed no JSON: {:?} {}", self.line, self.stdout, self.stderr))
    }

    /// True if it was refused with this reason: `error[PH-6003] PORT_TAKEN: ...`.
    #[must_use]
    pub fn refused_with(&self, code: &str, name: &str) -> bool {
        self.stderr.contains(&format!("error[{code}] {name}"))
    }
}

/// A command that is running with its streams in our hands.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
}

/// Starts `program`. With `feed`, standard input is a pipe ([`Running::input`]); otherwise it is empty.
pub fn start<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    environment: &[(&'static str, String)],
    feed: bool,
) -> anyhow::Result<Running> {
    let arguments: Vec<OsString> =
        arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let spelt: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    let child = Command::new(program)
        .args(&arguments)
        .envs(environment.iter().map(|(key, value)| (*key, value)))
        .stdin(if feed { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C at a terminal is for whoever started this.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(Running { line: format!("{name} {}", spelt.join(" ")), child })
}

impl Running {
    /// Its standard input; closing it (by dropping) is the end of the input.
    pub fn input(&mut self) -> anyhow::Result<ChildStdin> {
        self.child.stdin.take().context("its input was taken before")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL: no goodbye, no flush.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// Waits for its end, for at most [`PATIENCE`] times `patience`.
    pub async fn finish_within(self, patience: u32) -> anyhow::Result<Finished> {
        let Self { line, child } = self;
        let Ok(output) = tokio::time::timeout(PATIENCE * patience, child.wait_with_output()).await else {
            bail!("`{line}` did not end within {:?}", PATIENCE * patience);
        };
        let output = output?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Finished {
            line,
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }

    /// Waits for its end.
    pub async fn finish(self) -> anyhow::Result<Finished> {
        self.finish_within(1).await
    }
}

/// Runs `program` to its end with an empty standard input.
pub async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    environment: &[(&'static str, String)],
) -> anyhow::Result<Finished> {
    start(program, arguments, environment, false)?.finish().await
}

/// Runs `program` to its end with `input` on its standard input.
pub async fn run_with_input<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    environment: &[(&'static str, String)],
    input: &[u8],
) -> anyhow::Result<Finished> {
    let mut running = start(program, arguments, environment, true)?;
    let mut stdin = running.input()?;
    let input = input.to_owned();
    // Beside the waiting, or both sides could stand before a full pipe. A program that ends without reading all of it
    // breaks the pipe, and says itself why.
    let feeding = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let finished = running.finish().await;
    feeding.abort();
    finished
}
