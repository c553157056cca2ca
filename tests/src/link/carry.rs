//! One direction of one connection: what is read is stamped, travels, and is handed on, held, swallowed or lost.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, watch},
    time::Instant,
};

use super::{Carried, Flow, State, Way};

/// Read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks that travel: what a delayed wire has in it. Then its sender has to wait, as before any full pipe.
const CHUNKS_UNDER_WAY: usize = 256;
/// A throttled wire hands on this many pieces a second.
const PIECES_PER_S: u64 = 50;

pub(super) struct Carry {
    pub(super) way: Way,
    pub(super) state: watch::Sender<State>,
    pub(super) carried: watch::Sender<Carried>,
}

/// What came in.
enum Arrival {
    Bytes(Bytes),
    /// The sender has said all it wants to say.
    End,
    /// The sender's side broke.
    Broken(io::Error),
}

impl Carry {
    /// Carries until the end has been passed on, or until one side breaks and the wire lets the other know.
    pub(super) async fn run(
        self,
        from: impl AsyncRead + Unpin,
        to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let (arrivals, under_way) = mpsc::channel(CHUNKS_UNDER_WAY);
        let (_, handed_on) = tokio::join!(self.take_in(from, arrivals), self.hand_on(to, under_way));
        handed_on
    }

    async fn take_in(&self, mut from: impl AsyncRead + Unpin, arrivals: mpsc::Sender<(Instant, Arrival)>) {
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            let arrival = tokio::select! {
                read = from.read_buf(&mut chunk) => match read {
                    Ok(0) => Arrival::End,
                    Ok(_) => Arrival::Bytes(chunk.freeze()),
                    Err(error) => Arrival::Broken(error),
                },
                // Whoever hands on has met the end.
                () = arrivals.closed() => return,
            };
            let last = !matches!(arrival, Arrival::Bytes(_));
            let due = Instant::now() + self.state.borrow().delay;
            if arrivals.send((due, arrival)).await.is_err() || last {
                return;
            }
        }
    }

    async fn hand_on(
        &self,
        mut to: impl AsyncWrite + Unpin,
        mut under_way: mpsc::Receiver<(Instant, Arrival)>,
    ) -> io::Result<()> {
        let mut state = self.state.subscribe();
        // Since a loss was asked for.
        let mut passed = 0;
        while let Some((due, arrival)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            let now = match state.wait_for(|state| state.flow(self.way) != Flow::Hold).await {
                Ok(now) => *now,
                Err(_) => return Ok(()),
            };
            if now.flow(self.way) == Flow::Swallow {
                // An end that is swallowed is not heard of on the other side either.
                let Arrival::Bytes(bytes) = arrival else { return std::future::pending().await };
                self.swallow(bytes.len());
                continue;
            }
            let after = now.loses(self.way);
            match arrival {
                Arrival::Bytes(mut bytes) => {
                    let lost =
                        after.map(|after| bytes.split_off(bytes.len().min(after.saturating_sub(passed))));
                    self.pass(&mut to, &bytes, now.bytes_per_s).await?;
                    // What went through before the loss was asked for does not count towards it.
                    passed = if after.is_some() { passed + bytes.len() } else { 0 };
                    if let Some(lost) = lost.filter(|lost| !lost.is_empty()) {
                        self.swallow(lost.len());
                        self.break_off();
                    }
                }
                Arrival::End => return to.shutdown().await,
                Arrival::Broken(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn pass(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        bytes: &[u8],
        bytes_per_s: Option<u64>,
    ) -> io::Result<()> {
        let piece_bytes = match bytes_per_s {
            Some(rate) => usize::try_from((rate / PIECES_PER_S).max(1)).unwrap_or(CHUNK_BYTES),
            None => bytes.len().max(1),
        };
        for piece in bytes.chunks(piece_bytes) {
            if let Some(rate) = bytes_per_s {
                tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
            }
            to.write_all(piece).await?;
            self.carried.send_modify(|carried| match self.way {
                Way::Up => carried.up += piece.len() as u64,
                Way::Down => carried.down += piece.len() as u64,
            });
        }
        Ok(())
    }

    fn swallow(&self, bytes: usize) {
        self.carried.send_modify(|carried| carried.swallowed += bytes as u64);
    }

    /// What was to be lost is lost: everything is reset, and the wire is whole.
    fn break_off(&self) {
        self.carried.send_modify(|carried| carried.lost += 1);
        self.state.send_modify(|state| {
            state.loss = None;
            state.resets += 1;
        });
    }
}
