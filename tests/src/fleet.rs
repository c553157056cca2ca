//! Devices without a program: lines that are sealed here and sent over the real contract, as fast as the gateway takes them.
//!
//! For what takes many envelopes: a process per device would measure processes.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use pithead_hop::ingest::{Answer, SendOptions, Sender};

use crate::{
    client::Client,
    forge::{Claim, Forge, ForgedLine},
    site::{SITE, Site},
};

/// What became of what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// New, and on the gateway's disk.
    pub stored: u64,
    /// There before.
    pub duplicates: u64,
}

/// One device and one line of it.
#[derive(Debug)]
pub struct Stub {
    client: Client,
    forge: Forge,
    name: String,
    run: u64,
    line: ForgedLine,
}

impl Stub {
    /// A device of that name, connected to the running gateway. The line is the `run`-th.
    pub async fn connect(site: &Site, forge: &Forge, name: &str, run: u64) -> anyhow::Result<Self> {
        let client = Client::of(site, name).await?;
        let line = forge.line(Claim { site: SITE, device: name, run, seq: 1 })?;
        Ok(Self { client, forge: forge.clone(), name: name.to_owned(), run, line })
    }

    /// Seals one number.
    pub fn seal(&mut self, seq: u64, plaintext: &[u8]) -> anyhow::Result<Bytes> {
        self.line.seal(seq, plaintext)
    }

    /// Goes on under another data key, as a device does long before a session has sealed all that it may.
    pub fn next_session(&mut self) -> anyhow::Result<()> {
        let claim = Claim { site: SITE, device: &self.name, run: self.run, seq: 1 };
        self.line = self.forge.line(claim)?;
        Ok(())
    }

    /// Its connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends everything on one call, with as much under way as the window allows, and waits until the gateway has answered all
    /// of it. Whatever is neither stored nor a duplicate is an error.
    pub async fn send(&mut self, envelopes: impl IntoIterator<Item = Bytes>) -> anyhow::Result<Answers> {
        let options = SendOptions::new("pithead-tests");
        let mut sender = Sender::open(self.client.connection(), &options, Vec::new()).await?;
        let mut envelopes = envelopes.into_iter().peekable();
        let mut answers = Answers::default();
        loop {
            while let Some(envelope) = envelopes.next_if(|envelope| sender.room_for(envelope.len()).is_ok()) {
                if let Err(((), why)) = sender.send((), envelope, Vec::new()) {
                    bail!("there was room a moment ago, and now: {why}");
                }
            }
            if sender.unanswered() == 0 {
                return match envelopes.next() {
                    Some(envelope) => bail!("an envelope of {} bytes never fits", envelope.len()),
                    None => Ok(answers),
                };
            }
            for answered in sender.answers().await.context("the call ended")? {
                match answered.answer {
                    Answer::Stored => answers.stored += 1,
                    Answer::Duplicate { .. } => answers.duplicates += 1,
                    other => bail!("an envelope was answered {other:?}"),
                }
            }
        }
    }
}
