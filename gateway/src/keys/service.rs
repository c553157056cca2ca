//! The book on the wire: `KeyService` for the one site that this gateway serves.

use std::collections::BTreeMap;

use pithead_hop::keys::{KeyServer, SiteKeys};
use pithead_sealing::Site;
use tokio_util::sync::CancellationToken;

use super::book::Book;
use crate::clock::wall_us;

/// Serves the book until `stop`.
#[must_use]
pub fn serve(authority: &str, site: &Site, book: &Book, stop: CancellationToken) -> KeyServer {
    let keys = SiteKeys { authority: authority.to_owned(), keys: book.subscribe() };
    KeyServer::new(BTreeMap::from([(site.clone(), keys)]), wall_us, stop)
}
