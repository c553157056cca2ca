//! A piece of wire between two programs, on loopback: it forwards TCP, and fails in the ways in which wires fail.
//!
//! | call | what a program sees | where that happens |
//! |---|---|---|
//! | [`Link::cut`] | connections are reset, new ones too | a link that is known to be down |
//! | [`Link::reset`] | connections are reset, new ones are welcome | a router that was started again |
//! | [`Link::silence`] | nothing arrives, nobody is told, nothing is lost | a radio shadow |
//! | [`Link::half_open`] | accepted, and swallowed for good, one way or both | a firewall that has forgotten a connection |
//! | [`Link::delay`], [`Link::throttle`] | late, slow | a satellite, a shared radio |
//! | [`Link::lose_request`] | the connection breaks, and the other end never got what was said last | |
//! | [`Link::lose_reply`] | the connection breaks, and the other end got it and has answered | |
//! | [`Link::flap`] | all is well, and then it is not, again and again | a vehicle at the edge of a cell |
//!
//! It counts what it carries in each direction, so a test can say how much went over it twice. It knows nothing of TLS: a
//! request is what the side that connected says, a reply is what the other side says.

mod carry;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the side that connected: requests.
    Up,
    /// To the side that connected: replies.
    Down,
}

/// Which directions are swallowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swallow {
    /// Requests.
    Up,
    /// Replies.
    Down,
    /// Everything.
    Both,
}

/// What becomes of what arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Pass,
    Hold,
    Swallow,
}

/// One request or reply is to be lost.
#[derive(Clone, Copy, Debug)]
struct Loss {
    way: Way,
    /// Bytes of a connection that still get through before it.
    after: usize,
}

/// What the wire does.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    refuses: bool,
    up: Flow,
    down: Flow,
    delay: Duration,
    bytes_per_s: Option<u64>,
    loss: Option<Loss>,
    /// How often everything was reset: a connection that is older than the last time is over.
    resets: u64,
}

impl State {
    fn flow(&self, way: Way) -> Flow {
        match way {
            Way::Up => self.up,
            Way::Down => self.down,
        }
    }

    fn loses(&self, way: Way) -> Option<usize> {
        self.loss.filter(|loss| loss.way == way).map(|loss| loss.after)
    }
}

/// What went over the wire since it was laid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes of requests that were handed on.
    pub up: u64,
    /// Bytes of replies that were handed on.
    pub down: u64,
    /// Bytes that were taken and never handed on.
    pub swallowed: u64,
    /// Requests and replies that were lost on demand.
    pub lost: u64,
}

/// A wire. It is gone when dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    carried: watch::Sender<Carried>,
    _stop: DropGuard,
}

impl Link {
    /// Listens on `address` and forwards to `to`.
    pub async fn start(address: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (state, carried) = (watch::Sender::new(State::default()), watch::Sender::new(Carried::default()));
        let stop = CancellationToken::new();
        let accept = accept(listener, to, state.clone(), carried.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        Ok(Self { address, state, carried, _stop: stop.drop_guard() })
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection, and every new one until [`Link::heal`].
    pub fn cut(&self) {
        cut(&self.state);
    }

    /// Resets every connection; new ones go through.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }

    /// Connections stay and carry nothing, until [`Link::heal`].
    pub fn silence(&self) {
        self.state.send_modify(|state| (state.up, state.down) = (Flow::Hold, Flow::Hold));
    }

    /// Connections are accepted and stay, and what they say is swallowed, until [`Link::heal`]. What was swallowed does not
    /// come back: a connection that lost bytes is dead, and nobody has told its ends. [`Link::reset`] does.
    pub fn half_open(&self, swallow: Swallow) {
        self.state.send_modify(|state| {
            (state.up, state.down) = match swallow {
                Swallow::Up => (Flow::Swallow, Flow::Pass),
                Swallow::Down => (Flow::Pass, Flow::Swallow),
                Swallow::Both => (Flow::Swallow, Flow::Swallow),
            };
        });
    }

    /// What arrives from now on is so late, each way; its order and its rate stay.
    pub fn delay(&self, by: Duration) {
        self.state.send_modify(|state| state.delay = by);
    }

    /// Each connection carries so many bytes a second from now on, each way.
    pub fn throttle(&self, bytes_per_s: u64) {
        self.state.send_modify(|state| state.bytes_per_s = Some(bytes_per_s.max(1)));
    }

    /// Loses a request: the first that a connection says upwards when `after` more bytes of it have gone through. It is
    /// swallowed, every connection is reset, and the wire is whole again. A message that begins before that is torn.
    pub fn lose_request(&self, after: usize) {
        self.lose(Loss { way: Way::Up, after });
    }

    /// Loses a reply: requests go through, and the first that a connection says downwards when `after` more bytes of it have
    /// gone through is swallowed; then every connection is reset, and the wire is whole again. The other end has done what
    /// it was asked to.
    pub fn lose_reply(&self, after: usize) {
        self.lose(Loss { way: Way::Down, after });
    }

    fn lose(&self, loss: Loss) {
        self.state.send_modify(|state| state.loss = Some(loss));
    }

    /// Cuts and heals in turn until the guard is dropped, which leaves the wire whole.
    #[must_use = "the wire is whole when the guard is dropped"]
    pub fn flap(&self, whole: Duration, cut_for: Duration) -> Flapping {
        let (state, stop) = (self.state.clone(), CancellationToken::new());
        let flapping = async move {
            loop {
                tokio::time::sleep(whole).await;
                cut(&state);
                tokio::time::sleep(cut_for).await;
                heal(&state);
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(flapping));
        Flapping { state: self.state.clone(), stop }
    }

    /// Forwards again, at once and at full speed, and loses nothing more.
    pub fn heal(&self) {
        heal(&self.state);
    }

    /// How many connections were ever accepted while the wire was whole.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.carried().connections
    }

    /// What went over it so far.
    #[must_use]
    pub fn carried(&self) -> Carried {
        *self.carried.borrow()
    }

    /// Resolves when what was carried is so.
    pub async fn until(&self, condition: impl FnMut(&Carried) -> bool) {
        // It fails only when the sender is gone, and we hold it.
        let _ = self.carried.subscribe().wait_for(condition).await;
    }
}

/// A wire that comes and goes.
#[derive(Debug)]
pub struct Flapping {
    state: watch::Sender<State>,
    stop: CancellationToken,
}

impl Drop for Flapping {
    fn drop(&mut self) {
        self.stop.cancel();
        heal(&self.state);
    }
}

fn cut(state: &watch::Sender<State>) {
    state.send_modify(|state| {
        state.refuses = true;
        state.resets += 1;
    });
}

fn heal(state: &watch::Sender<State>) {
    state.send_modify(|state| *state = State { resets: state.resets, ..State::default() });
}

async fn accept(
    listener: TcpListener,
    to: SocketAddr,
    state: watch::Sender<State>,
    carried: watch::Sender<Carried>,
    stop: CancellationToken,
) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Out of descriptors for a moment, or the peer left before it was accepted.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let now = *state.borrow();
        if now.refuses {
            break_off(&near);
            continue;
        }
        carried.send_modify(|carried| carried.connections += 1);
        let forward = forward(near, to, state.clone(), carried.clone(), now.resets);
        tokio::spawn(stop.clone().run_until_cancelled_owned(forward));
    }
}

/// What is dropped after this ends with RST and not with FIN: a link that breaks says no goodbye.
fn break_off(stream: &TcpStream) {
    // A stream that is gone already needs no reset.
    let _ = stream.set_zero_linger();
}

async fn forward(
    near: TcpStream,
    to: SocketAddr,
    state: watch::Sender<State>,
    carried: watch::Sender<Carried>,
    resets: u64,
) {
    let mut watching = state.subscribe();
    let over = watching.wait_for(|state| state.resets != resets);
    tokio::pin!(over);
    // Dropped with zero linger whatever the reason; an orderly end has been passed on by then.
    break_off(&near);
    let far = tokio::select! {
        far = TcpStream::connect(to) => far,
        _ = &mut over => return,
    };
    let Ok(far) = far else { return };
    break_off(&far);
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (mut near, mut far) = (near, far);
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = far.split();
    let carry = |way| carry::Carry { way, state: state.clone(), carried: carried.clone() };
    tokio::select! {
        _ = async { tokio::try_join!(
            carry(Way::Up).run(near_read, far_write),
            carry(Way::Down).run(far_read, near_write),
        ) } => {}
        _ = over => {}
    }
}
