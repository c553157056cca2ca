//! A request on its way in, whose messages are counted while they are not whole.
//!
//! ```text
//! gRPC message: flag u8, length u32, bytes; a request is one of them, or many
//! ```
//!
//! A message is held in memory until its last byte is here, however long that takes. With the largest message on every call of
//! every connection one identity could have a gigabyte held. So what an identity has begun and not ended is bounded in all; a
//! call that would go beyond it is refused, and may come again.

use std::{
    error::Error as StdError,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use pithead_proto::errors::v1::ErrorReason;

use crate::{backoff, status::Refusal};

const HEAD: usize = 5;

/// What whoever has too much under way is told to wait, before jitter.
const WAIT: Duration = Duration::from_secs(1);

/// Bytes of messages of one identity that have begun and are not whole.
#[derive(Debug)]
pub(super) struct Unfinished {
    bytes: AtomicUsize,
    most: usize,
}

impl Unfinished {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), most })
    }

    /// A message has grown, or is whole; whether that is within the bound.
    fn moves(&self, from: usize, to: usize) -> bool {
        if to <= from {
            self.bytes.fetch_sub(from - to, Ordering::Relaxed);
            return true;
        }
        let more = to - from;
        self.bytes.fetch_add(more, Ordering::Relaxed) + more <= self.most
    }
}

/// The message that is under way.
#[derive(Debug, Default)]
struct Half {
    head: [u8; HEAD],
    have: usize,
    /// Bytes of its content that are still to come.
    left: usize,
    /// Bytes of it that are here.
    bytes: usize,
}

impl Half {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.have < HEAD {
                let taken = bytes.len().min(HEAD - self.have);
                self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
                self.have += taken;
                bytes = &bytes[taken..];
                let [_, a, b, c, d] = self.head;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            }
            if self.have == HEAD {
                let taken = bytes.len().min(self.left);
                self.left -= taken;
                self.bytes += taken;
                bytes = &bytes[taken..];
                if self.left == 0 {
                    *self = Self::default();
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Asking<B> {
    body: B,
    half: Half,
    unfinished: Arc<Unfinished>,
}

impl<B> Asking<B> {
    pub(super) fn new(body: B, unfinished: Arc<Unfinished>) -> Self {
        Self { body, half: Half::default(), unfinished }
    }
}

impl<B> Drop for Asking<B> {
    fn drop(&mut self) {
        self.unfinished.moves(self.half.bytes, 0);
    }
}

impl<B> HttpBody for Asking<B>
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = frame.map_err(Into::into)?;
        if let Some(data) = frame.data_ref() {
            let before = self.half.bytes;
            self.half.pass(data);
            if !self.unfinished.moves(before, self.half.bytes) {
                let refusal = Refusal::new(
                    ErrorReason::Throttled,
                    "too much of requests that have begun and not ended; end some of them first",
                );
                let refusal = refusal.retry_after(backoff::spread(WAIT, backoff::random()));
                return Poll::Ready(Some(Err(Box::new(tonic::Status::from(refusal)))));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend(vec![0xff; length]);
        bytes
    }

    #[test]
    fn what_is_not_whole_is_counted_however_it_is_cut() {
        let bytes: Vec<u8> = [message(0), message(7), message(300), message(1)].concat();
        for size in [1, 3, 5, 8, bytes.len()] {
            let mut half = Half::default();
            for piece in bytes.chunks(size) {
                half.pass(piece);
            }
            assert_eq!((half.have, half.bytes), (0, 0), "all are whole, in pieces of {size}");
            half.pass(&message(300)[..105]);
            assert_eq!((half.bytes, half.left), (100, 200), "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn a_call_that_would_hold_too_much_is_refused_and_what_it_held_is_given_back() {
        let unfinished = Unfinished::new(100);
        let body = |sent: usize| {
            let bytes = Bytes::from(message(1000)[..HEAD + sent].to_vec());
            Asking::new(tonic::body::Body::new(Whole(Some(bytes))), unfinished.clone())
        };
        let take = async |body: &mut Asking<tonic::body::Body>| {
            std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await.expect("a frame")
        };
        let (mut one, mut two, mut three) = (body(60), body(60), body(40));
        assert!(take(&mut one).await.is_ok());
        let refused = take(&mut two).await.expect_err("120 bytes in all");
        assert!(refused.downcast_ref::<tonic::Status>().is_some());
        drop(two);
        assert!(take(&mut three).await.is_ok());
        drop((one, three));
        assert_eq!(unfinished.bytes.load(Ordering::Relaxed), 0);
    }

    /// A body of one piece that then waits for more.
    struct Whole(Option<Bytes>);

    impl HttpBody for Whole {
        type Data = Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            match self.0.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Pending,
            }
        }
    }
}
