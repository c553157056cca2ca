//! What a queue says of new bundles, and when it is told that they are done.
//!
//! A message is about one object or several, in the shape of an S3 event or of EventBridge. It is told off when every bundle that it
//! names is done, and not before; until then whoever holds it lets the queue know that it is still at work. A message that names no
//! bundle is nobody's here: it is left alone, and the queue's own count of receptions takes it to the dead-letter queue.

use pithead_hop::bundle::BundleName;
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Why a message names no bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotANotice {
    /// It is neither of the two shapes.
    #[error("it is no S3 event")]
    Shape,
    /// It says that something else has happened to an object.
    #[error("it does not tell of a new object")]
    Kind,
    /// The object is of another bucket, or not below the source's prefix.
    #[error("it tells of an object that is not below the source's URL")]
    Elsewhere,
    /// The object is no bundle.
    #[error("it tells of an object that is no bundle")]
    Name,
}

#[derive(Deserialize)]
struct S3Event {
    #[serde(rename = "Records")]
    records: Vec<S3Record>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct S3Record {
    event_name: String,
    s3: S3Entity,
}

#[derive(Deserialize)]
struct S3Entity {
    bucket: NamedBucket,
    object: KeyedObject,
}

#[derive(Deserialize)]
struct NamedBucket {
    name: String,
}

#[derive(Deserialize)]
struct KeyedObject {
    key: String,
}

#[derive(Deserialize)]
struct BridgeEvent {
    #[serde(rename = "detail-type")]
    detail_type: String,
    detail: S3Entity,
}

/// What S3 sends when a queue is made the target of its events.
#[derive(Deserialize)]
struct TestEvent {
    #[serde(rename = "Event")]
    event: String,
}

/// What a message tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// These bundles are new.
    Bundles(Vec<BundleName>),
    /// S3 has tried whether it may send: nothing is to be done, and it may be deleted.
    Test,
}

/// Reads a message; a queue takes none above 1 MiB, so it names some thousand bundles at most. `bucket` is the source's, `prefix` what its keys begin with, without a slash at the end.
///
/// # Errors
/// [`NotANotice`].
pub fn read(body: &str, bucket: Option<&str>, prefix: &str) -> Result<Told, NotANotice> {
    let entities = if let Ok(S3Event { records }) = serde_json::from_str(body) {
        if records.is_empty() {
            return Err(NotANotice::Shape);
        }
        if records
            .iter()
            .any(|record| !record.event_name.trim_start_matches("s3:").starts_with("ObjectCreated:"))
        {
            return Err(NotANotice::Kind);
        }
        // In these a key is as in a form: spaces are '+', the rest is in percent.
        let decoded = |mut entity: S3Entity| {
            entity.object.key = percent_decoded(&entity.object.key.replace('+', " "))?;
            Some(entity)
        };
        let entities: Option<Vec<_>> = records.into_iter().map(|record| decoded(record.s3)).collect();
        entities.ok_or(NotANotice::Name)?
    } else if let Ok(BridgeEvent { detail_type, detail }) = serde_json::from_str(body) {
        if detail_type != "Object Created" {
            return Err(NotANotice::Kind);
        }
        vec![detail]
    } else if matches!(serde_json::from_str(body), Ok(TestEvent { event }) if event == "s3:TestEvent") {
        return Ok(Told::Test);
    } else {
        return Err(NotANotice::Shape);
    };
    let names = entities.into_iter().map(|entity| {
        let below = match prefix {
            "" => Some(entity.object.key.as_str()),
            prefix => entity.object.key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')),
        };
        let here = bucket.is_none_or(|bucket| bucket == entity.bucket.name);
        let name = below.filter(|_| here).ok_or(NotANotice::Elsewhere)?;
        BundleName::parse(name).map_err(|_| NotANotice::Name)
    });
    names.collect::<Result<_, _>>().map(Told::Bundles)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first == b'%' {
            let (digits, more) = rest.split_first_chunk::<2>()?;
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok()?;
            bytes.extend_from_slice(&byte);
            rest = more;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// A message that is held. When every bundle in it is done, its handle goes to whoever deletes it.
#[derive(Debug)]
pub struct Held {
    handle: String,
    left: AtomicUsize,
    done: mpsc::Sender<String>,
    _place: OwnedSemaphorePermit,
}

impl Held {
    /// The queue's name for this reception.
    #[must_use]
    pub fn handle(&self) -> &str {
        &self.handle
    }
}

/// One bundle's part in a message. Dropped without a word, the message comes again.
#[derive(Debug)]
pub struct Receipt(Arc<Held>);

impl Receipt {
    /// A receipt for each of `bundles`; `done` has room for every message that is held, and `place` is one of them.
    #[must_use]
    pub fn of(
        handle: String,
        bundles: usize,
        done: mpsc::Sender<String>,
        place: OwnedSemaphorePermit,
    ) -> (Arc<Held>, Vec<Self>) {
        let held = Arc::new(Held { handle, left: AtomicUsize::new(bundles), done, _place: place });
        let receipts = (0..bundles).map(|_| Self(Arc::clone(&held))).collect();
        (held, receipts)
    }

    /// Its bundle is done.
    pub fn done(self) {
        if self.0.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // There is room: each message that is held sends once. Without a reader the program is stopping, and it comes again.
            let _ = self.0.done.try_send(self.0.handle.clone());
        }
    }
}

/// A bundle that somebody has told of.
#[derive(Debug)]
pub struct Notice {
    /// Which.
    pub name: BundleName,
    /// Who is told when it is done; nobody, if it was found by listing.
    pub receipt: Option<Receipt>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    const NAME: &str =
        "bundles/pit-7/2026/11/23/20/gw_1-30313233343536373839616263646566-0-0000000000000000.bundle";

    fn s3(event: &str, bucket: &str, key: &str) -> String {
        format!(
            r#"{{"Records":[{{"eventVersion":"2.1","eventName":"{event}","s3":{{"bucket":{{"name":"{bucket}"}},"object":{{"key":"{key}","size":9,"sequencer":"1"}}}}}}]}}"#
        )
    }

    #[test]
    fn both_shapes_name_the_bundle() {
        let told = Ok(Told::Bundles(vec![BundleName::parse(NAME).unwrap()]));
        let key = format!("in/{NAME}").replace('_', "%5F");
        assert_eq!(read(&s3("ObjectCreated:Put", "b", &key), Some("b"), "in"), told);
        assert_eq!(read(&s3("s3:ObjectCreated:CompleteMultipartUpload", "b", &key), None, "in"), told);
        let bridge = format!(
            r#"{{"version":"0","detail-type":"Object Created","source":"aws.s3","detail":{{"bucket":{{"name":"b"}},"object":{{"key":"{NAME}"}},"reason":"PutObject"}}}}"#
        );
        assert_eq!(read(&bridge, Some("b"), ""), told);
        let test = r#"{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}"#;
        assert_eq!(read(test, Some("b"), ""), Ok(Told::Test));
    }

    #[test]
    fn what_is_no_word_of_a_bundle_is_told_apart() {
        for (body, why) in [
            ("hello".to_owned(), NotANotice::Shape),
            (r#"{"Records":[]}"#.to_owned(), NotANotice::Shape),
            (s3("ObjectRemoved:Delete", "b", NAME), NotANotice::Kind),
            (s3("ObjectCreated:Put", "other", NAME), NotANotice::Elsewhere),
            (s3("ObjectCreated:Put", "b", "bundles/a+b.bundle"), NotANotice::Name),
            (s3("ObjectCreated:Put", "b", "%zz"), NotANotice::Name),
        ] {
            assert_eq!(read(&body, Some("b"), ""), Err(why), "{body}");
        }
        assert_eq!(read(&s3("ObjectCreated:Put", "b", NAME), Some("b"), "in"), Err(NotANotice::Elsewhere));
    }

    #[tokio::test]
    async fn a_message_is_told_off_when_its_last_bundle_is_done_and_not_by_one_that_was_let_go() {
        let places = Arc::new(Semaphore::new(1));
        let (done, mut told_off) = mpsc::channel(1);
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let (held, mut receipts) = Receipt::of("h".into(), 2, done, place);
        receipts.remove(0).done();
        assert!(told_off.try_recv().is_err());
        receipts.remove(0).done();
        assert_eq!(told_off.try_recv().unwrap(), held.handle());
        let place = |held| {
            drop(held);
            places.available_permits()
        };
        assert_eq!(place(held), 1);
    }
}
