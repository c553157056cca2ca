//! How the other threads and tasks ask the one that seals.

use std::sync::{
    Arc,
    mpsc::{SyncSender, TrySendError},
};

use tokio::sync::oneshot;

use super::{bell::Bell, worker::Command};

/// The thread that seals has ended, or is not listening any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client is closed")]
pub(crate) struct Ended;

#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: SyncSender<Command>,
    bell: Arc<Bell>,
}

impl Handle {
    pub(super) fn new(commands: SyncSender<Command>, bell: Arc<Bell>) -> Self {
        Self { commands, bell }
    }

    /// Asks, and waits for room to ask. Not for async tasks.
    pub(super) fn send(&self, command: Command) -> Result<(), Ended> {
        self.commands.send(command).map_err(|_| Ended)?;
        self.bell.ring();
        Ok(())
    }

    /// Asks, if there is room to.
    pub(super) fn try_send(&self, command: Command) -> Result<(), Ended> {
        let sent = self.commands.try_send(command);
        self.bell.ring();
        sent.map_err(|error| match error {
            TrySendError::Full(_) => {
                tracing::warn!(event = "client.too_many_commands");
                Ended
            }
            TrySendError::Disconnected(_) => Ended,
        })
    }

    /// Asks and blocks for the answer.
    pub(super) fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.blocking_recv().map_err(|_| Ended)
    }

    /// Asks and waits for the answer. Cancel safe: what was asked is done all the same. Needs a tokio runtime, for when there
    /// is no room to ask.
    pub(super) async fn ask_async<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(command(reply)) {
            Ok(()) => self.bell.ring(),
            Err(TrySendError::Disconnected(_)) => return Err(Ended),
            Err(TrySendError::Full(command)) => {
                let handle = self.clone();
                let asked = tokio::task::spawn_blocking(move || handle.send(command));
                asked.await.map_err(|_| Ended)??;
            }
        }
        answer.await.map_err(|_| Ended)
    }

    /// Something that it looks at has changed.
    pub(super) fn ring(&self) {
        self.bell.ring();
    }
}
