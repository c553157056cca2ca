//! Clients with envelopes that were sealed before the clock starts, each with a window of unacknowledged ones.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use pithead_hop::tls::{ClientTls, PassedExpiry, Pem, SystemClock};
use pithead_sealing::{
    Seq,
    envelope::{KernelEntropy, SESSION_MESSAGES_MAX, Session},
};
use pithead_tests::{
    forge::{Claim, Forge},
    site::Site,
};
use rustls::ClientConfig;
use tokio::sync::Barrier;

use super::wire::Call;

/// Bytes of one batch, as our own sender fills them.
const BATCH_BYTES: usize = 256 << 10;

/// How many clients, and what each of them sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Bytes of an envelope, its header included.
    pub(crate) size: usize,
    /// Connections, each of a device of its own.
    pub(crate) clients: usize,
    /// Unacknowledged envelopes of each.
    pub(crate) window: usize,
    /// Envelopes of each.
    pub(crate) each: usize,
}

impl Shape {
    /// Envelopes of all.
    pub(crate) fn total(&self) -> usize {
        self.clients * self.each
    }
}

/// A device with its certificate and what it will send.
pub(crate) struct Client {
    tls: Arc<ClientConfig>,
    envelopes: Vec<Bytes>,
}

/// What all clients together saw.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Envelopes acknowledged as stored.
    pub(crate) acknowledged: u64,
    /// From the first byte sent to the last acknowledgement.
    pub(crate) seconds: f64,
    /// Microseconds from an envelope's turn to its acknowledgement, ascending.
    pub(crate) latencies: Vec<u32>,
}

/// Seals everything. `run` is the run of every line, so that a site can be loaded again.
pub(crate) async fn seal(site: &Site, shape: Shape, run: u64) -> anyhow::Result<Vec<Client>> {
    let forge = Forge::new(&site.authority)?;
    let mut clients = Vec::with_capacity(shape.clients);
    for number in 0..shape.clients {
        let device = format!("truck-{number}");
        let identity = site.identity_of(&device)?;
        let tls = ClientTls {
            ca: Pem::read(site.ca.path())?,
            identity: Some((Pem::read(&identity.certificate)?, Pem::read(&identity.key)?)),
            clock: Arc::new(SystemClock),
            passed_expiry: PassedExpiry::Refuse,
        }
        .build()?;
        let forge = forge.clone();
        let session = move || forge.session(Claim { run, ..Claim::of(&device) });
        let envelopes = tokio::task::spawn_blocking(move || line(session, shape.size, shape.each)).await??;
        clients.push(Client { tls, envelopes });
    }
    Ok(clients)
}

/// Numbers 1 to `count` of a line, each of exactly `size` bytes, in as many sessions as a device would need for them.
fn line(
    begin: impl Fn() -> anyhow::Result<Session>,
    size: usize,
    count: usize,
) -> anyhow::Result<Vec<Bytes>> {
    let mut session = begin()?;
    let sealed_len = |session: &Session, plain: u64| session.sealed_len(plain).unwrap_or(u64::MAX);
    let mut plain = (size as u64).checked_sub(sealed_len(&session, 0)).context("no room for a header")?;
    // Beyond one frame there is a head and a tag more for each.
    while sealed_len(&session, plain) > size as u64 {
        plain -= sealed_len(&session, plain) - size as u64;
    }
    ensure!(sealed_len(&session, plain) == size as u64, "no plaintext becomes an envelope of {size} bytes");
    let mut content = vec![0x5a; plain as usize];
    let mut envelopes = Vec::with_capacity(count);
    for number in 1..=count as u64 {
        if number % SESSION_MESSAGES_MAX == 0 {
            session = begin()?;
        }
        let mark = number.to_be_bytes();
        let length = mark.len().min(content.len());
        content[..length].copy_from_slice(&mark[..length]);
        let sealed = session.seal(Seq::new(number)?, &content, Duration::ZERO, &mut KernelEntropy)?;
        envelopes.push(sealed.bytes().clone());
    }
    Ok(envelopes)
}

/// Sends all of it; with `pace`, each client one envelope in this time, and otherwise as fast as its window allows.
pub(crate) async fn send(
    to: SocketAddr,
    clients: Vec<Client>,
    window: usize,
    pace: Option<Duration>,
) -> anyhow::Result<Sent> {
    send_over(open(to, clients).await?, window, pace).await
}

/// A call, and what goes over it.
pub(crate) type Open = (Call, Vec<Bytes>);

/// Opens the calls, all at once: handshakes are measured elsewhere.
pub(crate) async fn open(to: SocketAddr, clients: Vec<Client>) -> anyhow::Result<Vec<Open>> {
    let opening = clients.into_iter().map(|client| {
        tokio::spawn(async move { anyhow::Ok((Call::open(to, client.tls).await?, client.envelopes)) })
    });
    let mut calls = Vec::new();
    for call in opening.collect::<Vec<_>>() {
        calls.push(call.await??);
    }
    Ok(calls)
}

/// As [`send`], over calls that are open.
pub(crate) async fn send_over(
    calls: Vec<Open>,
    window: usize,
    pace: Option<Duration>,
) -> anyhow::Result<Sent> {
    let ready = Arc::new(Barrier::new(calls.len() + 1));
    let mut sending = tokio::task::JoinSet::new();
    let count = calls.len() as u32;
    for (number, (call, envelopes)) in (0..).zip(calls) {
        let ready = ready.clone();
        sending.spawn(async move {
            ready.wait().await;
            let begin = Instant::now() + pace.map_or(Duration::ZERO, |pace| pace * number / count);
            send_one(call, envelopes, window, pace.map(|pace| (begin, pace))).await
        });
    }
    let began = Instant::now();
    ready.wait().await;
    let mut sent = Sent::default();
    while let Some(one) = sending.join_next().await {
        let latencies = one??;
        sent.acknowledged += latencies.len() as u64;
        sent.latencies.extend(latencies);
    }
    sent.seconds = began.elapsed().as_secs_f64();
    sent.latencies.sort_unstable();
    Ok(sent)
}

/// Opens a call for each of them, and says nothing more.
pub(crate) async fn idle(to: SocketAddr, clients: Vec<Client>) -> anyhow::Result<Vec<Call>> {
    let mut calls = Vec::with_capacity(clients.len());
    for client in clients {
        calls.push(Call::open(to, client.tls).await?);
    }
    Ok(calls)
}

async fn send_one(
    mut call: Call,
    envelopes: Vec<Bytes>,
    window: usize,
    pace: Option<(Instant, Duration)>,
) -> anyhow::Result<Vec<u32>> {
    let total = envelopes.len();
    let mut latencies = Vec::with_capacity(total);
    let mut envelopes = envelopes.into_iter().peekable();
    // When the turn of each envelope without an answer was; for each batch, how many it has.
    let mut turns: VecDeque<Instant> = VecDeque::with_capacity(window);
    let mut batches: VecDeque<usize> = VecDeque::new();
    let (mut taken, mut answered) = (0_u32, 0);
    let due = |number: u32| pace.map(|(begin, pace)| begin + pace * number);
    // Behind a full window an envelope had its turn when it was due: waiting for the server counts, our own timer does not.
    let mut full = false;
    while latencies.len() < total {
        let now = Instant::now();
        while turns.len() < window && envelopes.peek().is_some() && due(taken).is_none_or(|at| at <= now) {
            let (mut bytes, mut batch) = (0, Vec::new());
            while turns.len() < window && due(taken).is_none_or(|at| at <= now) {
                let Some(next) =
                    envelopes.next_if(|next| batch.is_empty() || bytes + next.len() <= BATCH_BYTES)
                else {
                    break;
                };
                bytes += next.len();
                turns.push_back(due(taken).filter(|_| full).unwrap_or(now));
                batch.push(next);
                taken += 1;
            }
            batches.push_back(batch.len());
            call.put_batch(batch.into_iter());
        }
        full = turns.len() >= window;
        call.flush().await?;
        let ack = match due(taken).filter(|_| turns.len() < window && envelopes.peek().is_some()) {
            None => call.ack().await?,
            Some(at) => {
                let due = tokio::time::Instant::from_std(at);
                match tokio::time::timeout_at(due, call.ack()).await {
                    Ok(ack) => ack?,
                    Err(_) => continue,
                }
            }
        };
        ensure!(ack.others == 0, "{} envelopes were not plainly stored", ack.others);
        let now = Instant::now();
        for _ in answered..ack.through {
            let batch = batches.pop_front().context("an answer too many")?;
            latencies.extend(turns.drain(..batch).map(|turn| (now - turn).as_micros() as u32));
        }
        answered = ack.through;
    }
    Ok(latencies)
}
