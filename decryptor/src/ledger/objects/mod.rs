//! The ledger in a bucket: what any number of replicas have decided, in one sequence for each site, without locks and without
//! clocks.
//!
//! ```text
//! ledger/<site>/00000000000000000001   who creates number n+1 has decided what becomes of one bundle
//!               00000000000000000002   who comes second finds it taken, reads it, and judges again
//! checkpoints/<site>/00000000000000000256   the books as the entries up to here make them
//! ```
//! What holds:
//! - **An entry is created once and never changed**: the store creates an object only where none is (`If-None-Match: *`). So two
//!   replicas never decide differently, however slow, paused or cut off one of them is.
//! - **Numbers are dense.** Whoever creates n+1 has read n, and says so by its SHA-256. A start that finds a number missing below
//!   one that is there refuses to go on: what is not known to be decided would be decided twice.
//! - **A lost answer decides nothing by itself.** Whoever does not know whether its entry was taken reads the number, or tries
//!   again and finds its own entry there; one that arrives late is an entry like any other.
//! - **A checkpoint can only save time.** Any replica may write one, two that write the same number write the same books, and
//!   without any a start reads all entries from the first.

pub mod record;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use pithead_hop::objects::Fault;
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::Site;
use record::{BOOKS_MAGIC, DECISION_MAGIC, Damaged, Decision, SiteBooks, VERSION};
use sha2::{Digest as _, Sha256};
use std::io;
use std::sync::Arc;

/// Entries after which the books are written out anew: a start reads at most about so many.
pub const CHECKPOINT_EVERY: u64 = 256;

/// Entries that are fetched at once where many are read.
const READ_AHEAD: usize = 16;

/// Why the ledger in a bucket cannot be read or moved on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The store did not answer, or not as it should. The same may succeed later.
    #[error("the object store: {0}")]
    Store(#[from] object_store::Error),
    /// An object is not what was written.
    #[error("{key}: {fault}")]
    Damaged {
        /// Which object.
        key: Path,
        /// What is wrong with it.
        fault: Damaged,
    },
    /// An entry is missing although later ones are there.
    #[error("{key} is missing although later entries are there: somebody or a lifecycle rule has deleted it")]
    Missing {
        /// Which object.
        key: Path,
    },
    /// It would be more than is read back: it is not written. Somebody has to look at what it is about.
    #[error("{key} would have {bytes} bytes; {} are the most that is written", record::WRITTEN_MAX)]
    TooLarge {
        /// Which object.
        key: Path,
        /// How many, before they are compressed.
        bytes: usize,
    },
    /// There is no memory for an entry.
    #[error("an entry could not be written out: {0}")]
    Memory(#[from] io::Error),
}

impl ChainError {
    /// The reason in the registry.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::Store(error) => reason_of(error),
            Self::Damaged { .. } | Self::Missing { .. } => ErrorReason::StateDamaged,
            Self::Memory(_) | Self::TooLarge { .. } => ErrorReason::Internal,
        }
    }

    /// The store did not answer, or not in time: the same may succeed in a while.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let Self::Store(error) = self else { return false };
        matches!(Fault::of(error), Fault::Throttled | Fault::Unreachable | Fault::Other)
    }

    /// Nothing that a retry would cure: nothing may be decided any more before somebody has looked.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing { .. })
    }
}

/// The reason in the registry for what a store says.
#[must_use]
pub fn reason_of(error: &object_store::Error) -> ErrorReason {
    Fault::of(error).reason()
}

/// An entry as it stands in the bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// What it says.
    pub decision: Arc<Decision>,
    /// SHA-256 of the object: what the next one names.
    pub digest: [u8; 32],
}

/// What became of an entry that was to be the next.
#[derive(Debug, Clone, PartialEq)]
pub enum Appended {
    /// It is the next one.
    Won(Link),
    /// Another one is.
    Lost(Link),
}

/// One site's ledger in a bucket. Knows where things are, and nothing of what they mean.
#[derive(Debug, Clone)]
pub struct Chain {
    store: Arc<dyn ObjectStore>,
    site: Site,
    entries: Path,
    checkpoints: Path,
}

impl Chain {
    /// The ledger of `site` below `root`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, root: &Path, site: Site) -> Self {
        let below = |folder: &str| root.clone().join(folder).join(site.as_str());
        Self { entries: below("ledger"), checkpoints: below("checkpoints"), store, site }
    }

    /// The site.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The error of an entry that is not what it should be.
    #[must_use]
    pub fn damaged(&self, number: u64, fault: Damaged) -> ChainError {
        ChainError::Damaged { key: self.entry_key(number), fault }
    }

    /// The error of an entry that is not there.
    #[must_use]
    pub fn missing(&self, number: u64) -> ChainError {
        ChainError::Missing { key: self.entry_key(number) }
    }

    fn entry_key(&self, number: u64) -> Path {
        self.entries.clone().join(named(number))
    }

    fn checkpoint_key(&self, number: u64) -> Path {
        self.checkpoints.clone().join(named(number))
    }

    /// The entry of this number, if there is one yet.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn read(&self, number: u64) -> Result<Option<Link>, ChainError> {
        let key = self.entry_key(number);
        let Some(object) = self.get(&key).await? else { return Ok(None) };
        let damaged = |fault| ChainError::Damaged { key, fault };
        let decision: Decision = record::open(DECISION_MAGIC, &object).map_err(damaged.clone())?;
        let fault = match &decision {
            Decision { version, .. } if *version != VERSION => Some(Damaged::Message),
            Decision { site, number: of, .. } if site != self.site.as_str() || *of != number => {
                Some(Damaged::Misplaced)
            }
            _ => None,
        };
        match fault {
            Some(fault) => Err(damaged(fault)),
            None => Ok(Some(Link { decision: Arc::new(decision), digest: Sha256::digest(&object).into() })),
        }
    }

    async fn get(&self, key: &Path) -> Result<Option<Bytes>, ChainError> {
        match self.store.get(key).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes `decision` the entry of its number, or tells which one is.
    ///
    /// After an error it may be the entry all the same, now or later: whoever asks reads on from there before it decides again.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn append(&self, decision: Decision) -> Result<Appended, ChainError> {
        let number = decision.number;
        let object = sealed(DECISION_MAGIC, &decision, || self.entry_key(number))?;
        let digest = Sha256::digest(&object).into();
        match create(&*self.store, &self.entry_key(number), object).await {
            Ok(true) => Ok(Appended::Won(Link { decision: Arc::new(decision), digest })),
            Ok(false) => match self.read(number).await? {
                Some(link) if link.digest == digest => Ok(Appended::Won(link)),
                Some(link) => Ok(Appended::Lost(link)),
                // Taken, and not there: two that arrive at once may both be sent away.
                None => Err(object_store::Error::Generic {
                    store: "ledger",
                    source: "the store refuses an entry and has none".into(),
                }
                .into()),
            },
            Err(error) => match self.read(number).await? {
                Some(link) if link.digest == digest => Ok(Appended::Won(link)),
                Some(link) => Ok(Appended::Lost(link)),
                None => Err(error.into()),
            },
        }
    }

    /// Gives every entry behind `number` to `each`, in order.
    ///
    /// # Errors
    /// [`ChainError`]; `each` has then seen those before the one that is damaged or missing.
    pub async fn follow(&self, number: u64, mut each: impl FnMut(Link)) -> Result<(), ChainError> {
        let mut expected = number;
        let mut listed: Vec<u64> = Vec::new();
        let mut keys = self.store.list_with_offset(Some(&self.entries), &self.entry_key(number));
        while let Some(found) = keys.try_next().await? {
            listed.extend(numbered(&found.location));
        }
        // Not every store lists in order.
        listed.sort_unstable();
        for found in &listed {
            expected += 1;
            if *found != expected {
                return Err(ChainError::Missing { key: self.entry_key(expected) });
            }
        }
        let mut links = futures_util::stream::iter(listed.into_iter().map(|number| self.read(number)))
            .buffered(READ_AHEAD);
        let mut at = number;
        while let Some(link) = links.next().await {
            at += 1;
            match link? {
                Some(link) => each(link),
                None => return Err(ChainError::Missing { key: self.entry_key(at) }),
            }
        }
        Ok(())
    }

    /// The newest checkpoint that reads back; none if there is none. Of one that does not, `damaged` is told.
    ///
    /// # Errors
    /// [`ChainError::Store`].
    pub async fn newest_books(
        &self,
        mut damaged: impl FnMut(&Path, Damaged),
    ) -> Result<Option<SiteBooks>, ChainError> {
        let keys: Vec<_> = self.store.list(Some(&self.checkpoints)).try_collect().await?;
        let mut numbers: Vec<u64> = keys.iter().filter_map(|found| numbered(&found.location)).collect();
        numbers.sort_unstable();
        while let Some(number) = numbers.pop() {
            let key = self.checkpoint_key(number);
            let Some(object) = self.get(&key).await? else { continue };
            match record::open::<SiteBooks>(BOOKS_MAGIC, &object) {
                Ok(books) if books.version != VERSION => damaged(&key, Damaged::Message),
                Ok(books) if books.site != self.site.as_str() || books.number != number => {
                    damaged(&key, Damaged::Misplaced);
                }
                Ok(books) => return Ok(Some(books)),
                Err(fault) => damaged(&key, fault),
            }
        }
        Ok(None)
    }

    /// Writes the books out; the same number twice is once.
    ///
    /// # Errors
    /// [`ChainError`]; nothing depends on it.
    pub async fn put_books(&self, books: &SiteBooks) -> Result<(), ChainError> {
        let object = sealed(BOOKS_MAGIC, books, || self.checkpoint_key(books.number))?;
        create(&*self.store, &self.checkpoint_key(books.number), object).await?;
        Ok(())
    }
}

fn sealed(
    magic: &[u8; 8],
    message: &impl prost::Message,
    key: impl FnOnce() -> Path,
) -> Result<Bytes, ChainError> {
    match message.encoded_len() {
        bytes if bytes > record::WRITTEN_MAX => Err(ChainError::TooLarge { key: key(), bytes }),
        _ => Ok(record::seal(magic, message)?),
    }
}

/// Creates an object where none is; false if there is one.
///
/// # Errors
/// What the store says. The object may have been created all the same.
pub async fn create(store: &dyn ObjectStore, key: &Path, object: Bytes) -> object_store::Result<bool> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(key, object.into(), options).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn named(number: u64) -> String {
    format!("{number:020}")
}

/// The number in an object's name; none of what somebody else has put there.
fn numbered(key: &Path) -> Option<u64> {
    let name = key.filename()?;
    (name.len() == 20).then(|| name.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    fn chain(store: &Arc<InMemory>) -> Chain {
        Chain::new(Arc::clone(store) as Arc<dyn ObjectStore>, &Path::from("a/b"), Site::new("pit-7").unwrap())
    }

    fn decision(number: u64, replica: u8) -> Decision {
        Decision {
            version: VERSION,
            site: "pit-7".into(),
            number,
            replica: vec![replica; 16].into(),
            ..Decision::default()
        }
    }

    async fn numbers(chain: &Chain, behind: u64) -> Result<Vec<u64>, ChainError> {
        let mut seen = Vec::new();
        chain.follow(behind, |link| seen.push(link.decision.number)).await.map(|()| seen)
    }

    #[tokio::test]
    async fn the_second_who_decides_a_number_reads_what_the_first_has_decided() {
        let store = Arc::new(InMemory::new());
        let chain = chain(&store);
        let Appended::Won(first) = chain.append(decision(1, 1)).await.unwrap() else { panic!("it was free") };
        assert_eq!(chain.append(decision(1, 2)).await.unwrap(), Appended::Lost(first.clone()));
        // Whoever does not know how its own ended asks again.
        assert_eq!(chain.append(decision(1, 1)).await.unwrap(), Appended::Won(first.clone()));
        assert_eq!(chain.read(1).await.unwrap(), Some(first));
        assert_eq!(chain.read(2).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_number_that_is_missing_below_others_stops_whoever_reads() {
        let store = Arc::new(InMemory::new());
        let chain = chain(&store);
        for number in 1..=5 {
            chain.append(decision(number, 1)).await.unwrap();
        }
        store
            .put(&Path::from("a/b/ledger/pit-7/notes.txt"), Bytes::from_static(b"by hand").into())
            .await
            .unwrap();
        assert_eq!(numbers(&chain, 0).await.unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&chain, 3).await.unwrap(), [4, 5]);
        assert_eq!(numbers(&chain, 5).await.unwrap(), [0_u64; 0]);
        store.delete(&chain.entry_key(4)).await.unwrap();
        let error = numbers(&chain, 2).await.unwrap_err();
        assert!(matches!(&error, ChainError::Missing { key } if *key == chain.entry_key(4)), "{error}");
        assert!(error.is_fatal() && error.reason() == ErrorReason::StateDamaged);
    }

    #[tokio::test]
    async fn an_entry_under_another_number_or_of_another_site_is_not_believed() {
        let store = Arc::new(InMemory::new());
        let chain = chain(&store);
        chain.append(decision(1, 1)).await.unwrap();
        store.copy(&chain.entry_key(1), &chain.entry_key(2)).await.unwrap();
        let error = chain.read(2).await.unwrap_err();
        assert!(matches!(error, ChainError::Damaged { fault: Damaged::Misplaced, .. }), "{error}");
        let other = Chain { site: Site::new("pit-8").unwrap(), ..chain };
        assert!(other.read(1).await.is_err());
    }

    #[tokio::test]
    async fn what_nobody_could_read_back_is_not_written_and_the_number_stays_free() {
        let store = Arc::new(InMemory::new());
        let chain = chain(&store);
        let much = Bytes::from(vec![0; record::WRITTEN_MAX]);
        let error = chain.append(Decision { previous: much.clone(), ..decision(1, 1) }).await.unwrap_err();
        assert!(matches!(&error, ChainError::TooLarge { .. }) && !error.is_fatal(), "{error}");
        let books = SiteBooks { version: VERSION, digest: much, number: 1, ..SiteBooks::default() };
        let error = chain.put_books(&books).await.unwrap_err();
        assert!(matches!(error, ChainError::TooLarge { .. }), "{error}");
        assert!(chain.newest_books(|_, _| ()).await.unwrap().is_none());
        assert!(matches!(chain.append(decision(1, 1)).await.unwrap(), Appended::Won(_)));
    }

    #[tokio::test]
    async fn a_damaged_checkpoint_is_passed_over_and_told() {
        let store = Arc::new(InMemory::new());
        let chain = chain(&store);
        let books =
            |number| SiteBooks { version: VERSION, site: "pit-7".into(), number, ..SiteBooks::default() };
        chain.put_books(&books(256)).await.unwrap();
        chain.put_books(&books(512)).await.unwrap();
        chain.put_books(&books(512)).await.unwrap();
        let newest = chain.newest_books(|_, _| panic!("none is")).await.unwrap();
        assert_eq!(newest, Some(books(512)));
        store.put(&chain.checkpoint_key(512), Bytes::from_static(b"PHBOOKS1").into()).await.unwrap();
        let mut told = Vec::new();
        let newest = chain.newest_books(|key, _| told.push(key.clone())).await.unwrap();
        assert_eq!((newest, told), (Some(books(256)), vec![chain.checkpoint_key(512)]));
    }
}
