//! Keys, followed while there is a connection: a hint of the gateway's makes us ask, and what it answers is verified.
//!
//! It is not believed, and cannot have us ask without end.

use std::time::Duration;

use pithead_hop::{
    connect::Connection,
    keys::{FetchError, Held, KeyClient, TrustVersion},
};
use pithead_sealing::trust::Bundle;
use tokio::sync::watch;

use super::{ANSWERS_PER_REFRESH, KEY_ANSWER_LIMIT, RefreshError, Uplink, deliver::Never, has_moved};
use crate::client::{Desk, KeyView};

/// Between two questions about keys on a hint of the gateway's; and after one that brought nothing of what was hinted at.
const HINT_PAUSE: Duration = Duration::from_secs(1);
const VAIN_HINT_PAUSE: Duration = Duration::from_secs(60);

/// (epoch, sequence) of a statement.
pub(super) type Version = (u64, u64);

impl Uplink {
    /// Follows hints on a connection for as long as it is polled.
    pub(super) async fn follow_keys(
        &self,
        connection: Connection,
        desk: &Desk,
        hint: &watch::Sender<Option<Version>>,
    ) -> Never {
        let keys = self.key_client(connection);
        let watching = self.watch_keys(keys.clone(), desk, hint);
        let asking = self.ask_on_hints(keys, desk, hint);
        tokio::select! {
            never = watching => never,
            never = asking => never,
        }
    }

    /// Tells of every statement that the gateway has newly in force, also while there is nothing to deliver.
    async fn watch_keys(
        &self,
        mut keys: KeyClient,
        desk: &Desk,
        hint: &watch::Sender<Option<Version>>,
    ) -> Never {
        let held = held(&desk.keys());
        let watching = async {
            let mut watch = keys.watch(&held).await?;
            loop {
                if let Some(TrustVersion { epoch, sequence }) = watch.next().await?.version {
                    hint.send_replace(Some((epoch, sequence)));
                }
            }
        };
        let ended: Result<Never, FetchError> = watching.await;
        // A courtesy that has ended: every answer says the same. A broken connection ends the call as well.
        let Err(error) = ended;
        tracing::debug!(event = "uplink.watch_ended", %error);
        std::future::pending().await
    }

    async fn ask_on_hints(
        &self,
        mut keys: KeyClient,
        desk: &Desk,
        hint: &watch::Sender<Option<Version>>,
    ) -> Never {
        let mut hints = hint.subscribe();
        hints.mark_changed();
        loop {
            if hints.changed().await.is_err() {
                return std::future::pending().await;
            }
            let Some(theirs) = *hints.borrow_and_update() else { continue };
            if theirs <= desk.keys().version {
                continue;
            }
            if let Err(error) = refresh(&mut keys, desk).await {
                tell(&error);
            }
            let followed = desk.keys().version >= theirs;
            tokio::time::sleep(if followed { HINT_PAUSE } else { VAIN_HINT_PAUSE }).await;
        }
    }

    /// Asks once, over a connection on which an expired certificate is no obstacle: roots and statements carry their own
    /// signatures, and what they say may be what makes the certificate good.
    pub(super) async fn ask_for_keys(&self, desk: &Desk) -> Result<(), RefreshError> {
        let (connection, _) = self.connect(&self.keys_tls, 0).await?;
        refresh(&mut self.key_client(connection), desk).await
    }
}

/// What the gateway says of keys is refused, or it says nothing. The key that was verified stays.
pub(super) fn tell(error: &RefreshError) {
    match error {
        RefreshError::Keys(crate::keys::KeysError::Trust(_)) => {
            tracing::error!(event = "key.alarm", %error, "what the gateway says of keys is refused; the key that was verified stays");
        }
        RefreshError::Keys(_) | RefreshError::Connect(_) | RefreshError::Fetch(_) => {
            tracing::warn!(event = "keys.not_refreshed", %error);
        }
    }
}

async fn refresh(keys: &mut KeyClient, desk: &Desk) -> Result<(), RefreshError> {
    for _ in 0..ANSWERS_PER_REFRESH {
        let before = held(&desk.keys());
        let Some(bundle) = keys.fetch(&before, KEY_ANSWER_LIMIT).await?.bundle else { break };
        let bundle: Bundle = bundle.newer_than(before.root_version);
        let Some(applied) = desk.apply(bundle).await else { break };
        let (applied, view) = applied?;
        if !has_moved(&applied) {
            break;
        }
        let (epoch, sequence) = view.version;
        tracing::info!(event = "keys.refreshed", epoch, sequence);
    }
    Ok(())
}

fn held(view: &KeyView) -> Held {
    Held { root_version: view.root_version, statement_digest: view.statement_digest }
}
