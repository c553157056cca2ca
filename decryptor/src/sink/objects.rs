//! Output in a bucket: for each entry of the ledger one object of JSON lines, under a name that the entry gives it.
//!
//! ```text
//! out/<site>/<yyyy>/<mm>/<dd>/<number, 20 digits>.jsonl.zst        the lines of what the entry applied, one zstd frame
//! out/<site>/<yyyy>/<mm>/<dd>/<number>/<index, 5 digits>.large     the content of a large envelope, which a line names
//! aside/refused/<site>/<device>/<stream>-<run>-<seq>-<hash>.<PH-code>.envelope     poison, sealed
//! aside/conflicts/<site>/...                                                       other bytes under a used identity, sealed
//! aside/refused/<site>/-/<hash>.<PH-code>.envelope                                 sealed bytes of which nobody can tell whose
//! ```
//! The lines are those of [`jsonl`](super::jsonl); `"file"` of a large content is its key below the root.
//!
//! - **The ledger has decided before anything is written**, so no object is here that it does not know, and none twice: whoever
//!   finds a decided entry without its output writes it, and comes to the same lines.
//! - **The lines come last.** What an entry has besides (large contents, what is set aside) is there before; so where the last object
//!   of an entry is, all of it is, and a large content that no line names is nobody's.
//! - **Every object is created once.** A consumer that lists `out/` in order of names sees, of each day, the entries in the order in
//!   which they were decided. The day is that of the entry.

use super::Delivery;
use super::jsonl::write_lines;
use crate::aside;
use crate::ledger::objects::create;
use crate::ledger::objects::record::{Decision, Verdict};
use crate::ledger::record::SetAside;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use pithead_proto::errors::v1::ErrorReason;
use std::io;
use std::sync::Arc;
use time::OffsetDateTime;

/// How hard lines are pressed: level 3 takes 500 MB/s of a core, and a higher one finds little more in base64.
const LEVEL: i32 = 3;

/// The output below one root of a store.
#[derive(Debug, Clone)]
pub struct ObjectsSink {
    store: Arc<dyn ObjectStore>,
    root: Path,
}

/// The lines of one entry while they are written, pressed as they come.
pub struct Lines {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
}

impl std::fmt::Debug for Lines {
    // No content: plaintext goes to the sink and into no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Lines {
    /// No lines yet.
    ///
    /// # Errors
    /// No memory.
    pub fn begin() -> io::Result<Self> {
        Ok(Self { encoder: zstd::stream::write::Encoder::new(Vec::new(), LEVEL)? })
    }

    /// The lines of one envelope more; `file` is the key of a large content.
    ///
    /// # Errors
    /// No memory.
    pub fn add(&mut self, delivery: &Delivery, file: Option<&str>) -> io::Result<()> {
        write_lines(&mut self.encoder, delivery, file, 0)
    }

    /// The object.
    ///
    /// # Errors
    /// No memory.
    pub fn finish(self) -> io::Result<Bytes> {
        Ok(self.encoder.finish()?.into())
    }
}

impl ObjectsSink {
    /// Output below `root` of a store.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, root: Path) -> Self {
        Self { store, root }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Below which everything is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lines of an entry.
    #[must_use]
    pub fn lines_key(&self, decision: &Decision) -> Path {
        self.day(decision).join(format!("{:020}.jsonl.zst", decision.number))
    }

    /// The content of a large envelope of an entry, by its index in it.
    #[must_use]
    pub fn large_key(&self, decision: &Decision, index: usize) -> Path {
        self.day(decision).join(format!("{:020}", decision.number)).join(format!("{index:05}.large"))
    }

    fn day(&self, decision: &Decision) -> Path {
        let seconds = i64::try_from(decision.decided_us / 1_000_000).unwrap_or(i64::MAX);
        let day = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let day = [
            format!("{:04}", day.year()),
            format!("{:02}", u8::from(day.month())),
            format!("{:02}", day.day()),
        ];
        day.into_iter().fold(self.root.clone().join("out").join(decision.site.as_str()), Path::join)
    }

    /// The key of a large content as a line names it: below the root.
    #[must_use]
    pub fn as_named(&self, key: &Path) -> String {
        let below = key.prefix_match(&self.root).map(|parts| parts.collect::<Path>());
        below.as_ref().unwrap_or(key).to_string()
    }

    /// Where what is set aside lies.
    #[must_use]
    pub fn aside_key(&self, site: &str, aside: &SetAside) -> Path {
        let reason = ErrorReason::try_from(aside.reason).unwrap_or(ErrorReason::Unspecified);
        let area = if reason == ErrorReason::Conflict { "conflicts" } else { "refused" };
        let folder = self.root.clone().join("aside").join(area).join(site);
        let mut sha256 = [0; 32];
        let known = aside.sha256.len().min(32);
        sha256[..known].copy_from_slice(&aside.sha256[..known]);
        match aside.who.as_ref().and_then(|who| who.identity().ok()) {
            Some(identity) => {
                folder.join(identity.device.as_str()).join(aside::name_of(&identity, &sha256, reason))
            }
            None => {
                let hash = hex::encode(&sha256[..8]);
                folder.join("-").join(format!("{hash}.{}.envelope", reason.code()))
            }
        }
    }

    /// Keeps the sealed bytes of what is set aside.
    ///
    /// # Errors
    /// What the store says.
    pub async fn keep(&self, site: &str, aside: &SetAside, sealed: Bytes) -> object_store::Result<()> {
        self.put(&self.aside_key(site, aside), sealed).await
    }

    /// Writes the lines of an entry, after everything else that it has.
    ///
    /// # Errors
    /// What the store says.
    pub async fn put_lines(&self, decision: &Decision, lines: Bytes) -> object_store::Result<()> {
        self.put(&self.lines_key(decision), lines).await
    }

    /// Makes an object, or sees that it is there. Of two who make it at once a store may send both away.
    async fn put(&self, key: &Path, object: Bytes) -> object_store::Result<()> {
        match create(&*self.store, key, object).await? {
            true => Ok(()),
            false => self.store.head(key).await.map(drop),
        }
    }

    /// Whether everything that an entry has is there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn is_whole(&self, decision: &Decision) -> object_store::Result<bool> {
        for key in self.last_keys(decision) {
            match self.store.head(&key).await {
                Ok(_) => {}
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The objects of an entry without which it is not whole. Its lines are its own and come last; where it has none, what is set aside may
    /// be there by another entry, so each is looked for.
    fn last_keys(&self, decision: &Decision) -> Vec<Path> {
        let verdicts = || decision.envelopes.iter().filter_map(|judged| judged.verdict.as_ref());
        if verdicts().any(|verdict| matches!(verdict, Verdict::Applied(_))) {
            return vec![self.lines_key(decision)];
        }
        let asides = verdicts().filter_map(|verdict| match verdict {
            Verdict::SetAside(aside) if aside.kept => Some(self.aside_key(&decision.site, aside)),
            Verdict::SetAside(_) | Verdict::Applied(_) | Verdict::Duplicate(_) => None,
        });
        asides.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::objects::record::{AppliedEnvelope, Judged};
    use crate::ledger::record::Who;
    use crate::sink::testing::{batch, identity};
    use object_store::memory::InMemory;

    fn decision(verdicts: Vec<Verdict>) -> Decision {
        Decision {
            site: "pit-7".into(),
            number: 12,
            decided_us: 1_795_464_000_000_000,
            envelopes: verdicts.into_iter().map(|verdict| Judged { verdict: Some(verdict) }).collect(),
            ..Decision::default()
        }
    }

    fn aside(who: Option<Who>, reason: ErrorReason) -> SetAside {
        SetAside { who, sha256: vec![7; 32].into(), reason: reason as i32, kept: true, received_us: 1 }
    }

    #[test]
    fn every_object_has_its_one_name() {
        let sink = ObjectsSink::new(Arc::new(InMemory::new()), Path::from("a/b"));
        let entry = decision(Vec::new());
        let lines = "a/b/out/pit-7/2026/11/23/00000000000000000012.jsonl.zst";
        assert_eq!(sink.lines_key(&entry).to_string(), lines);
        let large = sink.large_key(&entry, 3);
        assert_eq!(sink.as_named(&large), "out/pit-7/2026/11/23/00000000000000000012/00003.large");
        let who = Some(Who::of(&identity("t", 9)));
        let poison = sink.aside_key("pit-7", &aside(who.clone(), ErrorReason::EnvelopeFrameTag));
        let name = "can-0000000300000001-00000000000000000009-0707070707070707";
        assert_eq!(poison.to_string(), format!("a/b/aside/refused/pit-7/t/{name}.PH-2009.envelope"));
        let conflict = sink.aside_key("pit-7", &aside(who, ErrorReason::Conflict));
        assert_eq!(conflict.to_string(), format!("a/b/aside/conflicts/pit-7/t/{name}.PH-3008.envelope"));
        let nobodys = sink.aside_key("pit-7", &aside(None, ErrorReason::Checksum));
        assert_eq!(nobodys.to_string(), "a/b/aside/refused/pit-7/-/0707070707070707.PH-3021.envelope");
    }

    #[tokio::test]
    async fn an_entry_is_whole_when_its_last_object_is_there_and_lines_inflate_to_what_they_were() {
        let sink = ObjectsSink::new(Arc::new(InMemory::new()), Path::default());
        let applied = Verdict::Applied(AppliedEnvelope::default());
        let set_aside = aside(None, ErrorReason::Checksum);
        let both = decision(vec![applied, Verdict::SetAside(set_aside.clone())]);
        sink.keep("pit-7", &set_aside, Bytes::from_static(b"sealed")).await.unwrap();
        assert!(!sink.is_whole(&both).await.unwrap());
        let mut lines = Lines::begin().unwrap();
        lines.add(&batch("t", 1, 3), None).unwrap();
        sink.put_lines(&both, lines.finish().unwrap()).await.unwrap();
        sink.put_lines(&both, Bytes::from_static(b"not over it")).await.unwrap();
        assert!(sink.is_whole(&both).await.unwrap());
        let object = sink.store().get(&sink.lines_key(&both)).await.unwrap().bytes().await.unwrap();
        let text = String::from_utf8(zstd::decode_all(&object[..]).unwrap()).unwrap();
        assert_eq!(text.lines().count(), 3);
        // One of two is there by another entry.
        let other = SetAside { sha256: vec![8; 32].into(), ..set_aside.clone() };
        let two = decision([&other, &set_aside].map(|one| Verdict::SetAside(one.clone())).into());
        assert!(!sink.is_whole(&two).await.unwrap());
        sink.keep("pit-7", &other, Bytes::from_static(b"sealed")).await.unwrap();
        assert!(sink.is_whole(&two).await.unwrap());
        assert!(sink.is_whole(&decision(Vec::new())).await.unwrap(), "nothing is to be written");
    }
}
