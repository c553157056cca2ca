//! Writes down how far delivery is, gives back what lies before, and looks how full the logs are.

use std::sync::Arc;
use std::time::Duration;

use pithead_spool::Lane;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cell::{By, Cursor, Cursors, Fenced};
use super::{Place, Shared};
use crate::envelopes::lanes;

/// Between two looks at the cursors: as often as the embedded engine writes them down.
const SAVE: Duration = Duration::from_millis(250);
/// Between two looks at what the logs hold.
const LOOK: Duration = Duration::from_secs(1);
/// After so many purges in a row that were refused it is said, and after as many again.
const PURGES_FAILED: u32 = 40;

/// For as long as the term lasts.
pub(super) async fn run(shared: Arc<Shared>, by: By, over: CancellationToken) -> Fenced {
    let mut looked: Option<Instant> = None;
    loop {
        let saved = tokio::select! {
            saved = save(&shared, by) => saved,
            () = over.cancelled() => return Fenced,
        };
        match saved {
            Err(Fenced) => return Fenced,
            // Something was given back.
            Ok(true) => looked = None,
            Ok(false) => {}
        }
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            look(&shared).await;
            looked = Some(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep(SAVE) => {}
            () = over.cancelled() => return Fenced,
        }
    }
}

/// Writes the cursors down if they have moved, and gives back what lies before those that are written. Whether anything was.
pub(super) async fn save(shared: &Shared, by: By) -> Result<bool, Fenced> {
    let Some((mut cell, mut cursors)) = shared.take_cursors(by) else { return Ok(false) };
    let wanted = shared.lock().lanes.each_ref().map(|lane| {
        // The newest message stays, whatever it holds.
        let sequence = lane.index.floor(lane.cursor).map_or(0, |place| place.sequence).min(lane.last);
        Cursor { position: lane.cursor, sequence, end: lane.end }
    });
    let moves =
        |(wanted, saved): (&Cursor, &Cursor)| wanted.position > saved.position || wanted.end > saved.end;
    let moved = wanted.iter().zip(&cursors.lanes).any(moves);
    let result = if moved {
        cursors = Cursors { number: cursors.number + 1, lanes: wanted, ..cursors };
        cell.replace(&*shared.broker, cursors).await
    } else {
        Ok(())
    };
    shared.put_cursors(by, (cell, cursors));
    result?;
    if moved {
        for (here, cursor) in shared.lock().lanes.iter_mut().zip(wanted) {
            here.saved = here.saved.max(cursor.position);
            here.index.forget_before(cursor.position);
        }
        shared.moved.notify_waiters();
    }
    give_back(shared, cursors).await
}

/// Removes what lies before the cursors that are written down. What was refused is tried again with the next look, whether they have
/// moved or not: a lane that is full and empties no further would stay full.
async fn give_back(shared: &Shared, written: Cursors) -> Result<bool, Fenced> {
    let mut given_back = false;
    for (lane, cursor) in Lane::ALL.into_iter().zip(written.lanes) {
        let (purged, last) = {
            let here = &shared.lock().lanes[lane.index()];
            (here.purged, here.last)
        };
        // Never the newest message: it would take with it what the next one is compared with.
        if cursor.sequence <= purged || cursor.sequence > last {
            continue;
        }
        let purged = shared.broker.purge(lane, cursor.sequence).await;
        let mut state = shared.lock();
        let here = &mut state.lanes[lane.index()];
        match purged {
            Ok(()) => {
                (here.purged, here.purges_failed) = (cursor.sequence, 0);
                given_back = true;
            }
            Err(fault) => {
                here.purges_failed += 1;
                if here.purges_failed.is_multiple_of(PURGES_FAILED) {
                    let (failed, lane) = (here.purges_failed, lanes::name(lane));
                    tracing::warn!(event = "spool.purge_refused", lane, failed, %fault);
                }
            }
        }
    }
    Ok(given_back)
}

/// Asks how much the logs hold.
async fn look(shared: &Shared) {
    for lane in Lane::ALL {
        if let Ok(found) = shared.broker.state(lane).await {
            let mut state = shared.lock();
            let here = &mut state.lanes[lane.index()];
            (here.bytes, here.max_bytes) = (found.bytes, found.max_bytes);
            if here.end == here.cursor {
                state.full = false;
            }
        }
    }
    shared.moved.notify_waiters();
}

impl Shared {
    fn take_cursors(&self, by: By) -> Option<(super::Cell, Cursors)> {
        self.lock().term.as_mut().filter(|term| term.by == by)?.cursors.take()
    }

    fn put_cursors(&self, by: By, cursors: (super::Cell, Cursors)) {
        if let Some(term) = self.lock().term.as_mut().filter(|term| term.by == by) {
            term.cursors = Some(cursors);
        }
    }

    /// Notes where a group was found, with the positions of its first record and after its last.
    pub(super) fn found(&self, lane: Lane, (first, end): (u64, u64), place: Place) {
        let mut state = self.lock();
        let here = &mut state.lanes[lane.index()];
        if end > here.saved && first < here.end {
            // The cursor may stand within it.
            here.index.note(first.max(here.saved), place);
        }
    }
}
