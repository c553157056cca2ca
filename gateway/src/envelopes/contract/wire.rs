//! A wire that carries the messages of one gRPC call, without a transport below: it loses them, and it breaks.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use pithead_hop::identity::Peer;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// The wire of one call. Clones are the same wire.
#[derive(Clone, Default)]
pub(super) struct Wire(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    requests_lost: bool,
    replies_lost: bool,
    client_knows: bool,
    server_knows: bool,
    wakers: [Option<Waker>; 2],
    /// What the client has let go of and the server still believes in.
    attic: Vec<Body>,
}

impl Wire {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Ends)) {
        let mut ends = self.ends();
        change(&mut ends);
        let (wakers, attic) = (std::mem::take(&mut ends.wakers), std::mem::take(&mut ends.attic));
        if !ends.server_knows {
            ends.attic = attic;
        }
        drop(ends);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    pub(super) fn lose_requests(&self) {
        self.change(|ends| ends.requests_lost = true);
    }

    pub(super) fn lose_replies(&self) {
        self.change(|ends| ends.replies_lost = true);
    }

    /// The call is over for its client.
    pub(super) fn tell_client(&self) {
        self.change(|ends| ends.client_knows = true);
    }

    /// And for its server.
    pub(super) fn tell_server(&self) {
        self.change(|ends| ends.server_knows = true);
    }
}

/// The server as a client's service at the end of a wire.
#[derive(Clone)]
pub(super) struct Wired<S> {
    pub(super) server: S,
    pub(super) peer: Peer,
    pub(super) wire: Wire,
}

impl<S> Service<http::Request<Body>> for Wired<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.server.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let wire = self.wire.clone();
        let mut request =
            request.map(|body| Body::new(OnWire { body, way: Way::Up, wire: wire.clone(), ended: false }));
        request.extensions_mut().insert(self.peer.clone());
        let answer = self.server.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Body::new(OnWire { body, way: Way::Down, wire, ended: false })))
        })
    }
}

struct OnWire {
    body: Body,
    way: Way,
    wire: Wire,
    /// Its end was swallowed.
    ended: bool,
}

impl HttpBody for OnWire {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let lost = {
            let mut ends = this.wire.ends();
            ends.wakers[this.way as usize] = Some(cx.waker().clone());
            let knows = if this.way == Way::Up { ends.server_knows } else { ends.client_knows };
            if knows {
                return Poll::Ready(Some(Err(Status::unavailable("the wire broke"))));
            }
            // Whatever a client does that has given up, the server does not hear of it.
            if (this.way == Way::Up && ends.client_knows) || this.ended {
                return Poll::Pending;
            }
            if this.way == Way::Up { ends.requests_lost } else { ends.replies_lost }
        };
        loop {
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
            match frame {
                frame if !lost => return Poll::Ready(frame),
                Some(Ok(frame)) if frame.is_data() => {}
                _ => {
                    this.ended = true;
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Drop for OnWire {
    fn drop(&mut self) {
        let mut ends = self.wire.ends();
        if self.way == Way::Down && ends.client_knows && !ends.server_knows {
            ends.attic.push(std::mem::take(&mut self.body));
        }
    }
}
