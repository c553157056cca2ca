//! One call of the relay over any service, made by a test: no connection, no backoff, no task of its own.

use std::sync::LazyLock;

use pithead_hop::ingest::send::Window;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::StdError;

use super::super::testing::Cloud;
use super::*;

/// How long the far end may answer nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// For large envelopes, which are not made here: they go beside the call, and want a connection. And a target that stays.
static NOWHERE: LazyLock<(Connection, watch::Sender<Target>)> = LazyLock::new(|| {
    let connecting = std::thread::spawn(|| {
        // It goes on for as long as the process, and so does the far end that nobody talks to.
        let runtime = Box::leak(Box::new(tokio::runtime::Runtime::new().unwrap()));
        runtime.block_on(async {
            let cloud = Box::leak(Box::new(Cloud::start().await));
            let target = cloud.target();
            let (tls, options) = (target.tls.borrow().clone(), ConnectOptions::default());
            let connection = connect(&target.endpoint, &target.name, tls, &options).await.unwrap();
            (connection, watch::Sender::new(target))
        })
    });
    connecting.join().unwrap()
});

/// A relay between its calls: what it knows of its progress stays from one to the next.
pub(crate) struct ByHand {
    relay: Relay,
    progress: Progress,
    alarm: Alarm,
}

impl ByHand {
    pub(crate) fn new(relay: Relay) -> Self {
        let progress = Progress::new(
            relay.spool.clone(),
            relay.numbers.clone(),
            relay.uploads.clone(),
            relay.copies.clone(),
        );
        Self { relay, progress, alarm: Alarm::default() }
    }

    /// From the first record without an answer on, until the call is over.
    pub(crate) async fn call<S>(mut self, service: S, window: Window) -> Self
    where
        S: GrpcService<Body>,
        S::Error: Into<StdError>,
        S::ResponseBody: hyper::body::Body<Data = Bytes> + Send + 'static,
        <S::ResponseBody as hyper::body::Body>::Error: Into<StdError> + Send,
    {
        let mut options = SendOptions::new("a relay by hand");
        options.window = window;
        if let Ok(sender) = Sender::open(service, &options, Vec::new()).await {
            let Self { relay, progress, alarm } = &mut self;
            let mut call = Call {
                sender,
                feeds: Feeds::new(&relay.spool, |lane| progress.begin(lane), None),
                large: Large::new(Arc::new(OverCall {
                    parts: relay.large_parts(),
                    connection: NOWHERE.0.clone(),
                })),
                toll: relay.control.pace().toll(),
                answer_by: None,
                answer_timeout: ANSWER_TIMEOUT,
            };
            let (mut orders, stop) = (relay.control.subscribe(), CancellationToken::new());
            let mut nowhere_else = NOWHERE.1.subscribe();
            relay.send_and_listen(&mut call, progress, alarm, &mut orders, &mut nowhere_else, &stop).await;
        }
        self.progress.reclaim_now().await;
        self
    }
}
