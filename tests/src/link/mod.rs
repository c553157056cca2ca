//! A piece of wire between two programs, on loopback: it forwards TCP, and can be cut and healed.
//!
//! Two ways in which a WAN goes: [`Link::cut`] is a link that is known to be down (connections are reset, new ones too),
//! [`Link::silence`] is a radio shadow (nothing arrives and nobody is told).

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Forwards.
    Open,
    /// Resets what there is and what comes.
    Cut,
    /// Takes everything and forwards nothing.
    Silent,
}

/// A wire. It is gone when dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    connections: watch::Sender<u64>,
    _stop: DropGuard,
}

impl Link {
    /// Listens on `address` and forwards to `to`.
    pub async fn start(address: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = watch::Sender::new(State::Open);
        let connections = watch::Sender::new(0);
        let stop = CancellationToken::new();
        let accept = accept(listener, to, state.subscribe(), connections.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        Ok(Self { address, state, connections, _stop: stop.drop_guard() })
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection, and every new one until [`Link::heal`].
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Connections stay and carry nothing, until [`Link::heal`].
    pub fn silence(&self) {
        self.state.send_replace(State::Silent);
    }

    /// Forwards again.
    pub fn heal(&self) {
        self.state.send_replace(State::Open);
    }

    /// How many connections were ever accepted while the wire was whole.
    #[must_use]
    pub fn connections(&self) -> u64 {
        *self.connections.borrow()
    }
}

async fn accept(
    listener: TcpListener,
    to: SocketAddr,
    state: watch::Receiver<State>,
    connections: watch::Sender<u64>,
    stop: CancellationToken,
) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Out of descriptors for a moment, or the peer left before it was accepted.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if *state.borrow() == State::Cut {
            reset(&near);
            continue;
        }
        connections.send_modify(|count| *count += 1);
        tokio::spawn(stop.clone().run_until_cancelled_owned(forward(near, to, state.clone())));
    }
}

/// What is dropped after this ends with RST and not with FIN: a link that breaks says no goodbye.
fn reset(stream: &TcpStream) {
    // A stream that is gone already needs no reset.
    let _ = stream.set_zero_linger();
}

async fn forward(near: TcpStream, to: SocketAddr, state: watch::Receiver<State>) {
    let mut watching = state.clone();
    let far = tokio::select! {
        far = TcpStream::connect(to) => far,
        _ = watching.wait_for(|state| *state == State::Cut) => {
            reset(&near);
            return;
        }
    };
    let Ok(far) = far else {
        reset(&near);
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    // Dropped with zero linger whatever the reason; an orderly end has been passed on by then.
    reset(&near);
    reset(&far);
    let (mut near, mut far) = (near, far);
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = far.split();
    tokio::select! {
        _ = async { tokio::join!(pump(near_read, far_write, state.clone()), pump(far_read, near_write, state.clone())) } => {}
        _ = watching.wait_for(|state| *state == State::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if state.wait_for(|state| *state == State::Open).await.is_err() {
            return Ok(());
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn says(stream: &mut TcpStream, word: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(word).await?;
        let mut answer = vec![0; word.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_cut_resets_what_there_is_and_what_comes_and_healing_lets_new_ones_through() {
        let link = Link::start("127.0.0.1:0".parse().unwrap(), echo().await).await.unwrap();
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        assert_eq!(says(&mut stream, b"hello").await.unwrap(), b"hello");
        link.cut();
        assert!(says(&mut stream, b"anybody?").await.is_err());
        match TcpStream::connect(link.address()).await {
            Ok(mut refused) => assert!(says(&mut refused, b"hello").await.is_err()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        link.heal();
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        assert_eq!(says(&mut stream, b"again").await.unwrap(), b"again");
        assert_eq!(link.connections(), 2);
    }

    #[tokio::test]
    async fn silence_holds_everything_back_and_loses_nothing() {
        let link = Link::start("127.0.0.1:0".parse().unwrap(), echo().await).await.unwrap();
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        assert_eq!(says(&mut stream, b"hello").await.unwrap(), b"hello");
        link.silence();
        stream.write_all(b"hidden").await.unwrap();
        let mut answer = [0; 6];
        let quiet = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut answer)).await;
        assert!(quiet.is_err(), "nothing may come through");
        link.heal();
        let mut rest = [0; 6];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hidden");
    }
}
