//! What nobody wants goes. Why that is safe is said in the module above.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pithead_hop::bundle::CopyName;
use pithead_hop::objects::{Fault, Store};
use tokio_util::sync::CancellationToken;

use super::super::record::LargeCopy;
use super::super::refused::Refused;
use super::{Copies, CopyError, Stage};
use crate::metrics::CopyEvent;

/// How often it is looked whether the store is there, and tried again what it did not do.
const LOOK: Duration = Duration::from_secs(30);
/// How often the whole store is looked through, after it was at the beginning of a term: for what came late.
const TIDY: Duration = Duration::from_secs(3600);
/// Names that are looked at in one go, some 300 bytes each. There are never more copies that are wanted than uploads: the rest has its
/// turn the next time.
const LISTED_MAX: usize = 131_072;

impl Copies {
    /// Removes what is not wanted, and looks whether the store is there, until told to stop.
    pub async fn keep(self, refused: Arc<Refused>, stop: CancellationToken) {
        let mut looked: Option<Instant> = None;
        // Of which term, and when.
        let mut tidied: Option<(u64, Instant)> = None;
        loop {
            if looked.is_none_or(|at| at.elapsed() >= LOOK) {
                looked = Some(Instant::now());
                // It is noted, and said where it changes.
                let _ = self.look().await;
            }
            self.remove_unwanted().await;
            if self.is_unmarked()
                && self.trouble().is_none()
                && let Err(error) = self.mark().await
            {
                tracing::warn!(event = "large.not_tidied", %error);
            }
            if let Ok((epoch, _)) = self.term()
                && tidied.is_none_or(|(of, at)| of != epoch || at.elapsed() >= TIDY)
                && self.trouble().is_none()
            {
                match self.tidy(&refused).await {
                    Ok(_) => tidied = Some((epoch, Instant::now())),
                    Err(error) => tracing::warn!(event = "large.not_tidied", %error),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.0.work.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One after the other. What the store does not remove now is found when it is looked through.
    async fn remove_unwanted(&self) {
        loop {
            let Some(name) = self.lock().unwanted.pop_front() else { return };
            let removed = async {
                let store = self.store().await?;
                if let Ok(name) = CopyName::parse(&name) {
                    // It was kept for a person, and was not lost after all.
                    store.remove(&name.damaged()).await?;
                }
                store.remove(&name).await?;
                store.remove_unfinished(&name).await?;
                Ok::<(), CopyError>(())
            };
            let removed = removed.await;
            self.note(&removed);
            match removed {
                Ok(()) => self.count(CopyEvent::Removed),
                Err(error) => tracing::warn!(event = "large.not_removed", name, %error),
            }
        }
    }

    /// Whether a name is of this term or an earlier one, and wanted by nobody that is known here. Asked again for each, just before it
    /// goes: what is put meanwhile is wanted.
    fn is_orphan(&self, name: &CopyName, text: &str, epoch: u64) -> bool {
        let state = self.lock();
        let Some(term) = state.term.as_ref().filter(|term| term.epoch == epoch) else { return false };
        let may_be_recorded = name.epoch < epoch && !term.complete;
        name.epoch <= epoch && !may_be_recorded && !term.wanted.contains_key(text)
    }

    /// Records do not read, and are about to be stepped over: whichever copies they named are kept for a person, since no later term will
    /// find that anything is missing. Of those that are known by a record that reads the mark goes with the copy. What the store does not
    /// take now it is asked for again, for as long as the term lasts.
    pub async fn records_lost(&self) {
        if let Some(term) = &mut self.lock().term {
            (term.complete, term.unmarked) = (false, true);
        }
        if let Err(error) = self.mark().await {
            tracing::warn!(event = "large.not_tidied", %error);
        }
    }

    /// Marks what a record that does not read may have named.
    async fn mark(&self) -> Result<(), CopyError> {
        let (epoch, _) = self.term()?;
        let store = self.store().await?;
        if self.marker(&store, false).await?.is_some() {
            let listed = store.list(&CopyName::folder(&self.0.set), LISTED_MAX).await?;
            let marked = marked(&listed);
            for (text, _) in listed.iter().filter(|(text, _)| !marked.contains(text.as_str())) {
                let Ok(name) = CopyName::parse(text) else { continue };
                let is_new = {
                    let state = self.lock();
                    let stage =
                        state.term.as_ref().and_then(|term| term.wanted.get(text)).map(|one| one.stage);
                    matches!(stage, Some(Stage::UnderWay | Stage::Placed))
                };
                if name.epoch <= epoch && !is_new {
                    store.create(&name.damaged(), [Bytes::from_static(UNNAMED.as_bytes())]).await?;
                    tracing::warn!(
                        event = "large.kept",
                        name = text,
                        "a record that does not read may have named it"
                    );
                }
            }
        }
        if let Some(term) = self.lock().term.as_mut().filter(|term| term.epoch == epoch) {
            term.unmarked = false;
        }
        Ok(())
    }

    fn is_unmarked(&self) -> bool {
        self.lock().term.as_ref().is_some_and(|term| term.unmarked)
    }

    /// Looks the store through, and removes what nobody names. Gives how many those were.
    pub(super) async fn tidy(&self, refused: &Arc<Refused>) -> Result<u64, CopyError> {
        let (epoch, _) = self.term()?;
        // Another gateway may have set one aside, and its machine may be lost: what the area mentions has to be known here.
        let area = Arc::clone(refused);
        let in_line = tokio::task::spawn_blocking(move || area.bring_in_line()).await;
        in_line
            .map_err(|_| CopyError::Stopping)?
            .map_err(|error| CopyError::RefusedArea(error.to_string()))?;
        self.forget_placed();
        let store = self.store().await?;
        if self.marker(&store, false).await?.is_none() {
            return Ok(0);
        }
        let folder = CopyName::folder(&self.0.set);
        let listed = store.list(&folder, LISTED_MAX).await?;
        let kept = marked(&listed);
        let mut removed = 0;
        for (text, bytes) in &listed {
            let Ok(name) = CopyName::parse(text) else { continue };
            if kept.contains(text.as_str())
                || !self.is_orphan(&name, text, epoch)
                || mentions(refused, &name).await
                || !self.is_orphan(&name, text, epoch)
            {
                continue;
            }
            store.remove(text).await?;
            tracing::info!(event = "large.orphan_removed", name = text, bytes);
            self.count(CopyEvent::Orphan);
            removed += 1;
        }
        self.tidy_unfinished(&store, &folder, epoch).await?;
        Ok(removed)
    }

    /// What somebody began to write into a folder and did not end.
    async fn tidy_unfinished(&self, store: &Store, folder: &str, epoch: u64) -> Result<(), CopyError> {
        for text in store.unfinished(folder).await? {
            if let Ok(name) = CopyName::parse(&text)
                && self.is_orphan(&name, &text, epoch)
            {
                store.remove_unfinished(&text).await?;
            }
        }
        Ok(())
    }

    /// Copies that were put, and whose envelope nobody has asked for again before it was given up.
    fn forget_placed(&self) {
        let mut state = self.lock();
        let Some(term) = &mut state.term else { return };
        let uploads = &self.0.uploads;
        term.wanted.retain(|_, wanted| wanted.stage != Stage::Placed || uploads.is_here(&wanted.identity));
    }

    /// A copy is not what was put: it is kept for a person, as a file that is damaged would be. What cannot be said now is not said.
    pub async fn keep_damaged(&self, copy: &LargeCopy) {
        let said = async {
            let (store, name) = (self.store().await?, CopyName::parse(&copy.name));
            let Ok(name) = name else { return Ok(()) };
            if store.size(&copy.name).await.is_err_and(|error| error.fault == Fault::NotFound) {
                return Ok(());
            }
            store.create(&name.damaged(), [Bytes::from_static(CHANGED.as_bytes())]).await?;
            Ok::<(), CopyError>(())
        };
        if let Err(error) = said.await {
            tracing::warn!(event = "large.not_kept", name = copy.name, %error);
        }
    }
}

/// Beside a copy, why it is kept.
const CHANGED: &str =
    "The object of this name is not what was put. It is kept for a person to look at; remove both.\n";
/// The same.
const UNNAMED: &str = "A record that does not read any more may have named this object: it may be an envelope that was acknowledged and never \
                       delivered. It is kept for a person to look at (`pithead-decryptor open` opens it); remove both.\n";

/// Names beside which it is said that they are kept.
fn marked(listed: &[(String, u64)]) -> HashSet<&str> {
    listed.iter().filter_map(|(name, _)| name.strip_suffix(".damaged")).collect()
}

/// Whether anything in the refused area is of the envelope; also where that cannot be seen.
async fn mentions(refused: &Arc<Refused>, name: &CopyName) -> bool {
    let (refused, identity) = (Arc::clone(refused), name.identity.clone());
    let looked = tokio::task::spawn_blocking(move || refused.mentions(&identity)).await;
    !matches!(looked, Ok(Ok(false)))
}
