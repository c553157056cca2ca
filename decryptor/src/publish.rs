//! Serves the published statements to gateways, through hop's key service: one watched value per site.

use crate::books::Books;
use pithead_hop::keys::{KeyServer, ServedKeys, SiteKeys};
use pithead_hop::program::clock;
use pithead_sealing::Site;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Book = watch::Sender<Option<Arc<ServedKeys>>>;

/// Hands the books on to whoever asks or watches.
#[derive(Debug)]
pub struct Publisher {
    server: KeyServer,
    sites: BTreeMap<Site, (String, Book)>,
}

impl Publisher {
    /// Serves nothing yet.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { server: KeyServer::new(BTreeMap::new(), clock::wall_us, stop), sites: BTreeMap::new() }
    }

    /// The service, for tonic's routes.
    #[must_use]
    pub fn server(&self) -> KeyServer {
        self.server.clone()
    }

    /// What a site's watchers see.
    #[cfg(test)]
    pub(crate) fn watch(&self, site: &Site) -> Option<watch::Receiver<Option<Arc<ServedKeys>>>> {
        self.sites.get(site).map(|(_, book)| book.subscribe())
    }

    /// Serves what the books have now; whoever watches is told at once.
    pub fn publish(&mut self, books: &Books) {
        let before = self.sites.len();
        self.sites.retain(|site, (_, sender)| {
            let stays = books.served().contains_key(site);
            if !stays {
                sender.send_replace(None);
            }
            stays
        });
        let mut more_sites = self.sites.len() != before;
        for (site, published) in books.served() {
            let served = ServedKeys::new(
                site.clone(),
                published.roots.clone(),
                published.statement.object().clone(),
                published.spkis.clone(),
            );
            let served = match served {
                Ok(served) => Arc::new(served),
                Err(error) => {
                    tracing::error!(event = "keys.unservable", %site, code = error.code());
                    continue;
                }
            };
            match self.sites.get(site) {
                Some((_, sender)) => {
                    sender.send_if_modified(|current| {
                        let changed = current.as_ref() != Some(&served);
                        *current = Some(Arc::clone(&served));
                        changed
                    });
                }
                None => {
                    self.sites.insert(
                        site.clone(),
                        (published.authority.clone(), watch::Sender::new(Some(served))),
                    );
                    more_sites = true;
                }
            }
        }
        if more_sites {
            let sites = self.sites.iter().map(|(site, (authority, sender))| {
                (site.clone(), SiteKeys { authority: authority.clone(), keys: sender.subscribe() })
            });
            self.server.replace_sites(sites.collect());
        }
    }
}
