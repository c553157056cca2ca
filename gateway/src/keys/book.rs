//! The book: what is served now, as one value that is swapped.
//!
//! Whoever asks reads it without waiting; whoever watches is told of the swap. It is not a cache that expires: what is in
//! force when the source goes away stays in force, and says by its own dates how old it is.

use std::sync::Arc;

use bytes::Bytes;
use pithead_hop::keys::{ServedKeys, TrustVersion};
use pithead_sealing::Site;
use tokio::sync::watch;

/// The site's book. Clones are the same book.
#[derive(Debug, Clone)]
pub struct Book(Arc<watch::Sender<Option<Arc<ServedKeys>>>>);

impl Default for Book {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Book {
    /// Serves this from now on. All of it was verified and is on disk.
    pub fn publish(&self, site: &Site, roots: &[Bytes], statement: Option<&Bytes>, spkis: &[Bytes]) {
        let Some(statement) = statement else { return };
        match ServedKeys::new(site.clone(), roots.to_vec(), statement.clone(), spkis.to_vec()) {
            Ok(keys) => {
                self.0.send_replace(Some(Arc::new(keys)));
            }
            // What was verified reads back; if not, the one before is better than none.
            Err(error) => tracing::error!(event = "key.not_published", %error),
        }
    }

    /// What is served now.
    #[must_use]
    pub fn current(&self) -> Option<Arc<ServedKeys>> {
        self.0.borrow().clone()
    }

    /// Which statement is served now.
    #[must_use]
    pub fn version(&self) -> Option<TrustVersion> {
        self.0.borrow().as_ref().map(|keys| keys.version())
    }

    /// Follows what is served.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<ServedKeys>>> {
        self.0.subscribe()
    }
}
