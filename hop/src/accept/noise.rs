//! A stream that reads along: frame heads of HTTP/2 on their way in, and what of them is noise.
//!
//! ```text
//! preface, 24 bytes; then frames: length u24, kind u8, flags u8, stream u31, and `length` bytes that are skipped here
//! ```
//!
//! A PING, a SETTINGS or a RST_STREAM costs us an answer or a look, and brings the peer nothing. The HTTP/2 layer answers as
//! many as are sent, at the speed of the wire, and counts none of them. Here they are counted, and a connection that sends far
//! more of them than any client has a use for is over. Requests that are throttled count as noise too: whoever goes on asking
//! while it is told to wait costs an answer each time.
//!
//! What is on its way in is looked at and never changed; if the bytes are no HTTP/2, the layer above says so.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    Limits, Shared,
    permits::{Bucket, Rate},
    stats::Ended,
};

const PREFACE: u32 = 24;
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What one look at the bytes has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    streams: u32,
    noise: u32,
    oversize_headers: u32,
}

/// Where in the frames the bytes have come to.
#[derive(Debug)]
struct Heads {
    head: [u8; HEAD],
    have: usize,
    /// Bytes of the preface or of a frame's content that are still to pass.
    skip: u32,
    newest_stream: u32,
    /// Bytes of the header block that is under way, over its frames; more than its limit is counted once.
    block: u32,
    block_max: u32,
}

impl Heads {
    fn new(block_max: u32) -> Self {
        Self { head: [0; HEAD], have: 0, skip: PREFACE, newest_stream: 0, block: 0, block_max }
    }

    fn pass(&mut self, mut bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = bytes.len().min(self.skip as usize);
                self.skip -= skipped as u32;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = bytes.len().min(HEAD - self.have);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEAD {
                self.have = 0;
                self.frame(&mut seen);
            }
        }
        seen
    }

    fn frame(&mut self, seen: &mut Seen) {
        let [a, b, c, kind, flags, w, x, y, z] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let stream = u32::from_be_bytes([w & 0x7f, x, y, z]);
        self.skip = length;
        match kind {
            HEADERS | CONTINUATION => {
                if kind == HEADERS {
                    self.block = 0;
                    if stream > self.newest_stream {
                        self.newest_stream = stream;
                        seen.streams += 1;
                    }
                }
                let before = self.block;
                self.block = before.saturating_add(length);
                if before <= self.block_max && self.block > self.block_max {
                    seen.oversize_headers += 1;
                }
                if flags & END_HEADERS == 0 && length == 0 {
                    seen.noise += 1;
                }
            }
            DATA if length > 0 || flags & END_STREAM != 0 => {}
            // As many as the data that we send asks for: a client's business, and bounded by it.
            WINDOW_UPDATE => {}
            _ => seen.noise += 1,
        }
    }
}

/// What the service and the stream of one connection tell each other.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    /// Noise that the service has seen, on its way to the stream that keeps the account.
    noise: AtomicU32,
    /// Why the HTTP/2 layer has said goodbye, as it told the peer: its error to us keeps less of it.
    farewell: OnceLock<Ended>,
}

impl Notes {
    pub(super) fn noise(&self) {
        self.0.noise.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn farewell(&self) -> Option<Ended> {
        self.0.farewell.get().copied()
    }

    /// Looks at the end of what is written: a GOAWAY is the last thing that a connection says, and its debug data the last of it.
    fn said(&self, bytes: &[u8]) {
        if let Some((_, ended)) = FAREWELLS.iter().find(|(name, _)| bytes.ends_with(name.as_bytes())) {
            let _ = self.0.farewell.set(*ended);
        }
    }
}

/// The names that h2 gives to the floods that it ends.
const FAREWELLS: [(&str, Ended); 5] = [
    ("too_many_continuations", Ended::HeaderFlood),
    ("header_list_way_too_large", Ended::HeaderFlood),
    ("too_many_resets", Ended::RapidReset),
    ("too_many_internal_resets", Ended::ResetFlood),
    ("too_many_data_frames", Ended::DataFlood),
];

/// See the module.
#[derive(Debug)]
pub(super) struct Listening<S> {
    stream: S,
    heads: Heads,
    rate: Rate,
    account: Bucket,
    notes: Notes,
    shared: Arc<Shared>,
}

impl<S> Listening<S> {
    /// By the limits of this connection.
    pub(super) fn new(stream: S, shared: Arc<Shared>, limits: &Limits, notes: Notes) -> Self {
        let rate = Rate { per_second: limits.noise_per_second, burst: limits.noise_burst };
        let heads = Heads::new(limits.header_list.get_u32());
        Self { stream, heads, rate, account: Bucket::full(rate, Instant::now()), notes, shared }
    }

    fn account_for(&mut self, bytes: &[u8]) -> io::Result<()> {
        let seen = self.heads.pass(bytes);
        let counters = &self.shared.counters;
        if seen.streams > 0 {
            counters.streams.add_many(seen.streams.into());
        }
        if seen.oversize_headers > 0 {
            counters.oversize_headers.add_many(seen.oversize_headers.into());
        }
        if seen.noise > 0 {
            counters.noise_frames.add_many(seen.noise.into());
        }
        // A block above its limit costs as much to read as some frames.
        let complaints = self.notes.0.noise.swap(0, Ordering::Relaxed);
        let noise = seen.noise.saturating_add(complaints).saturating_add(seen.oversize_headers);
        if noise > 0 && self.account.take_many(noise, self.rate, Instant::now()).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "more frames that ask for nothing than there may be",
            ));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.account_for(&buf.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.notes.said(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let piece = left.min(buf.len());
            left -= piece;
            if left == 0 {
                self.notes.said(&buf[..piece]);
                break;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const SETTINGS: u8 = 4;

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        // Bytes that would be heads if somebody lost count.
        bytes.extend(vec![PING; length]);
        bytes
    }

    fn seen_in(pieces: impl Iterator<Item = Vec<u8>>, block_max: u32) -> Seen {
        let mut heads = Heads::new(block_max);
        pieces.map(|piece| heads.pass(&piece)).fold(Seen::default(), |sum, seen| Seen {
            streams: sum.streams + seen.streams,
            noise: sum.noise + seen.noise,
            oversize_headers: sum.oversize_headers + seen.oversize_headers,
        })
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let mut bytes = vec![b'P'; PREFACE as usize];
        for frame in [
            frame(SETTINGS, 0, 0, 12),
            frame(HEADERS, END_HEADERS, 1, 60),
            frame(DATA, 0, 1, 300),
            frame(DATA, 0, 1, 0),
            frame(DATA, END_STREAM, 1, 0),
            frame(WINDOW_UPDATE, 0, 0, 4),
            frame(PING, 0, 0, 8),
            frame(HEADERS, 0, 3, 60),
            frame(CONTINUATION, END_HEADERS, 3, 60),
            // Trailers, and a kind that nobody knows.
            frame(HEADERS, END_HEADERS | END_STREAM, 3, 20),
            frame(0xfa, 0, 0, 7),
        ] {
            bytes.extend(frame);
        }
        let expected = Seen { streams: 2, noise: 4, oversize_headers: 1 };
        for size in [1, 2, 5, 9, 31, bytes.len()] {
            assert_eq!(seen_in(bytes.chunks(size).map(<[u8]>::to_vec), 100), expected, "in pieces of {size}");
        }
    }
    proptest::proptest! {
        #[test]
        fn any_bytes_are_passed_alike_however_they_are_cut(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
            size in 1_usize..40,
        ) {
            let whole = seen_in(std::iter::once(bytes.clone()), 100);
            proptest::prop_assert_eq!(seen_in(bytes.chunks(size).map(<[u8]>::to_vec), 100), whole);
        }
    }
}
