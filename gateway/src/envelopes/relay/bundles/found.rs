//! The replay check: a name is taken, and what lies under it is compared with the spool, entry by entry.
//!
//! Read is the index alone. Each entry has to be the record at its place: the same length and the same CRC32C, of a large one the
//! same name and size. Then whoever has put it there was this gateway, before a lost answer or a kill, and what it holds has
//! left. A record that the disk has lost since is in the store, so nothing is missing.

use pithead_hop::bundle::{BundleError, BundleName, Entry, FRONT_MIN, Index, LargeName, Stored};
use pithead_hop::objects::{Fault, Store};
use pithead_spool::{ReadError, Record};

use super::super::{Ended, Sent};
use crate::envelopes::record::{Body, Head, KIND_CONFLICT, KIND_LARGE};
use crate::envelopes::spool::EnvelopeSpool;

/// Asked for at once: the index of a usual bundle is in it, and then one request does.
const FRONT_GUESS: u64 = 64 << 10;
/// Read from the spool at a time.
const READ_BYTES: usize = 1 << 20;

/// What lies under a name that is taken.
pub(super) enum Found {
    /// Records of this spool: those that are still here.
    Same(Vec<Sent>),
    /// Something else.
    Foreign(String),
}

/// Looks at what lies there. What the disk does not give counts as damaged if this is `tolerant` of it.
pub(super) async fn look(
    store: &Store,
    spool: &EnvelopeSpool,
    name: &BundleName,
    tolerant: bool,
) -> Result<Found, Ended> {
    let index = match read_index(store, &name.to_string()).await? {
        Ok(index) => index,
        Err(error) => return Ok(Found::Foreign(error.to_string())),
    };
    if let Err(error) = index.is_of(name) {
        return Ok(Found::Foreign(error.to_string()));
    }
    let spool = spool.clone();
    let compared = tokio::task::spawn_blocking(move || compare(&spool, &index, tolerant)).await;
    let found = compared.map_err(|error| Ended::Journal(std::io::Error::other(error)))??;
    found.ok_or(Ended::Stopped)
}

/// The index under a name.
async fn read_index(store: &Store, name: &str) -> Result<Result<Index, BundleError>, Ended> {
    // An object that is there for one request and not for the next: two were made at a time, and the other one failed. It is
    // tried again like what got no answer.
    let read = async |range| {
        store.read_range(name, range).await.map_err(|mut error| {
            if error.fault == Fault::NotFound {
                error.fault = Fault::Unreachable;
            }
            Ended::from(error)
        })
    };
    let begin = read(0..FRONT_GUESS).await?;
    let front = match Index::front_bytes(&begin[..begin.len().min(FRONT_MIN)]) {
        Ok(front) => front,
        Err(error) => return Ok(Err(error)),
    };
    if front <= begin.len() as u64 {
        return Ok(Index::read(&begin));
    }
    Ok(Index::read(&read(0..front).await?))
}

/// None if the lanes are no longer this gateway's to read. Blocks.
fn compare(spool: &EnvelopeSpool, index: &Index, tolerant: bool) -> Result<Option<Found>, ReadError> {
    let mut entries = index.entries.iter().peekable();
    let Some(first) = entries.peek() else { return Ok(Some(Found::Same(Vec::new()))) };
    let mut reader = spool.reader_at(index.lane, first.position);
    if tolerant {
        reader.skip_unreadable();
    }
    let mut there = Vec::with_capacity(index.entries.len());
    while let Some(next) = entries.peek() {
        let batch = reader.next_batch(READ_BYTES)?;
        let Some(last) = batch.last() else {
            // A term that is over reads as the end of a lane; an alarm for that would outlive the next take-over.
            let foreign =
                || Found::Foreign(format!("it has place {}, and the spool does not", next.position));
            return Ok((!reader.is_over()).then(foreign));
        };
        let mut records = batch.records.into_iter().peekable();
        while let Some(entry) = entries.next_if(|entry| entry.position <= last) {
            while records.next_if(|(position, _)| *position < entry.position).is_some() {}
            // Not among the records, and not behind them: damaged, or acknowledged before.
            let Some((position, record)) = records.next_if(|(position, _)| *position == entry.position)
            else {
                continue;
            };
            let head = Head::decode(&record.head).ok().filter(|head| is_same(entry, &record, head));
            let Some(head) = head else {
                return Ok(Some(Found::Foreign(format!(
                    "at place {position} it has another envelope than the spool"
                ))));
            };
            let conflict = record.kind == KIND_CONFLICT;
            if record.kind != KIND_LARGE {
                let (lane, envelope) = (index.lane, record.body);
                there.push(Sent { lane, position, head, conflict, envelope, followed: None });
            }
        }
    }
    Ok(Some(Found::Same(there)))
}

fn is_same(entry: &Entry, record: &Record, head: &Head) -> bool {
    match &entry.stored {
        Stored::Here { length, crc32c } => {
            record.kind != KIND_LARGE
                && record.body.len() as u64 == u64::from(*length)
                && crc32c::crc32c(&record.body) == *crc32c
        }
        Stored::Large(large) => {
            Body::large_total(record) == Some(large.total)
                && head.sha256 == large.header_sha256
                && large.name == LargeName::new(head.identity.clone(), &head.sha256)
        }
    }
}
