//! What delivery sees of the rest of the client: the keys as they stand, and whom to tell what.

use std::sync::Arc;

use pithead_sealing::{
    names::{DeviceId, Identity, Run, StreamName},
    trust::{Applied, Bundle},
};

use super::{
    files::{FileState, Watches, tell, tell_lost},
    handle::Handle,
    worker::{Board, Command, KeyView},
};
use crate::{batch::Gap, keys::KeysError, state::lock};

/// Cheap to clone; all clones are the same desk.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    pub(super) device: DeviceId,
    pub(super) board: Arc<Board>,
    pub(super) handle: Handle,
    pub(super) watches: Arc<Watches>,
}

impl Desk {
    pub(crate) fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The keys, as of when they moved last.
    pub(crate) fn keys(&self) -> Arc<KeyView> {
        Arc::clone(&lock(&self.board.keys))
    }

    /// Has a bundle verified and taken in. Nothing if the client is being closed.
    pub(crate) async fn apply(&self, bundle: Bundle) -> Option<Result<(Applied, Arc<KeyView>), KeysError>> {
        self.handle.ask_async(|reply| Command::Apply { bundle, reply }).await.ok()
    }

    /// A gateway is taking envelopes, or is not any more. Whoever seals has something to say then.
    pub(crate) fn set_connected(&self, connected: bool) {
        self.board.connected.store(connected, std::sync::atomic::Ordering::Relaxed);
        self.handle.ring();
    }

    /// A conflict was met on a stream. If it cannot be said now, the next conflict says it.
    pub(crate) fn new_run(&self, stream: &StreamName, run: Run) {
        let _ = self.handle.try_send(Command::NewRun { stream: stream.clone(), run });
    }

    /// How a file stands.
    pub(crate) fn tell_file(&self, identity: &Identity, state: FileState) {
        tell(&self.watches, identity, state);
    }

    /// Numbers that will never arrive: what is known of the files among them ends here.
    pub(crate) fn tell_lost(&self, gaps: &[Gap], why: &str) {
        tell_lost(&self.watches, gaps, why);
    }
}
