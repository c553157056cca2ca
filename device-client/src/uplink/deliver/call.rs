//! One `Append` call over the outbox: what goes out next, and what comes back.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use pithead_hop::{
    connect::Connection,
    ingest::{Answer, Answered, NotTaken, Sender},
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::names::{Line, StreamName};
use tokio::sync::watch;

use super::{
    Delivery, Ended, Never, Sent, blocking,
    file::{Upload, UploadEnd, Uploaded},
    settle::DAMAGED,
};
use crate::{
    outbox::{Log, Read, Waiting, WaitingContent, WaitingReader},
    uplink::{follow::Version, order::Order},
};

/// How much is read of a stream at a time: enough for a request, little enough that sixteen streams stay small.
const READ_BYTES: usize = 256 << 10;
/// Large files on their way at the same time, each of another stream; the gateway takes four of a device.
const UPLOADS_AT_ONCE: usize = 2;

/// What an answer is matched by.
pub(super) struct Token {
    pub(super) lane: usize,
    pub(super) waiting: Waiting,
}

/// A stream, as a call works on it.
pub(super) struct Lane {
    pub(super) log: Arc<Log>,
    pub(super) priority: u8,
    /// Away while it reads on a thread for blocking work.
    pub(super) reader: Option<WaitingReader>,
    pub(super) read: VecDeque<Read>,
    pub(super) order: Order,
    /// Its front is a large file on its way: what comes after it waits, so that the stream stays in order.
    pub(super) uploading: bool,
}

impl Lane {
    pub(super) fn new(log: &Arc<Log>, priorities: &BTreeMap<StreamName, u8>) -> Self {
        Self {
            priority: priorities.get(log.stream()).copied().unwrap_or(0),
            reader: Some(log.waiting()),
            log: Arc::clone(log),
            read: VecDeque::new(),
            order: Order::default(),
            uploading: false,
        }
    }

    fn has_more(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.position() < self.log.end())
    }

    /// Which lane goes first: the highest priority, and of those the one that has waited longest.
    fn rank(&self) -> Option<(u8, std::cmp::Reverse<u64>)> {
        let at_ms = match self.read.front()? {
            Read::Waiting(waiting) => waiting.at_ms,
            Read::Lost { .. } => 0,
        };
        Some((self.priority, std::cmp::Reverse(at_ms)))
    }
}

/// One `Append` call over the outbox.
pub(super) struct Call<'a> {
    pub(super) delivery: &'a Delivery,
    pub(super) gateway: usize,
    pub(super) connection: Connection,
    pub(super) lanes: Vec<Lane>,
    pub(super) sender: Sender<Token>,
    pub(super) uploads: FuturesUnordered<BoxFuture<'static, Uploaded>>,
    pub(super) sent: &'a mut Sent,
    pub(super) held: HashMap<Line, u64>,
    pub(super) hint: &'a watch::Sender<Option<Version>>,
}

impl Call<'_> {
    pub(super) async fn run(&mut self) -> Result<Never, Ended> {
        loop {
            let full = self.fill().await?;
            tokio::select! {
                answers = self.sender.answers() => {
                    let gateway = self.gateway;
                    let answers = answers.map_err(|error| Ended::Call { gateway, error })?;
                    self.hint();
                    for Answered { token, answer } in answers {
                        self.settle(token.lane, token.waiting, answer).await?;
                    }
                }
                Some((lane, waiting, end)) = self.uploads.next() => {
                    self.lanes[lane].uploading = false;
                    match end {
                        UploadEnd::Answered(answer) => self.settle(lane, waiting, answer).await?,
                        UploadEnd::Damaged(detail) => self.damaged(lane, waiting, detail).await?,
                    }
                }
                // With the window full there is no use in looking.
                () = self.delivery.outbox.arrived(), if !full => {}
            }
        }
    }

    /// Which statement the gateway has in force, by its own word.
    pub(super) fn hint(&self) {
        if let Some(trust) = self.sender.trust() {
            let version = Some((trust.epoch, trust.sequence));
            self.hint.send_if_modified(|hint| std::mem::replace(hint, version) != version);
        }
    }

    /// Hands over what the window takes, in order of rank. True if something had to wait.
    async fn fill(&mut self) -> Result<bool, Ended> {
        loop {
            self.read_more().await?;
            let ready = |lane: &Lane| !lane.uploading && !self.waits_for_upload(lane);
            let ranked = self.lanes.iter().enumerate().filter(|(_, lane)| ready(lane));
            let ranked = ranked.filter_map(|(index, lane)| Some((index, lane.rank()?)));
            let Some((index, _)) = ranked.max_by_key(|(_, rank)| *rank) else { return Ok(false) };
            let lane = &mut self.lanes[index];
            let Some(next) = lane.read.pop_front() else { return Ok(false) };
            // The stream's policy has given it up meanwhile: it is declared, and may not even be whole any more.
            if next.position() < lane.log.acknowledged_up_to() {
                continue;
            }
            lane.order.taken(next.position());
            match next {
                Read::Lost { position, gaps } => self.lost(index, position, gaps, None, DAMAGED).await?,
                Read::Waiting(waiting) => {
                    if let Some(waiting) = self.hand_over(index, waiting).await? {
                        let lane = &mut self.lanes[index];
                        lane.order.give_back(waiting.position);
                        lane.read.push_front(Read::Waiting(waiting));
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Its next is a large file, and as many as may be are on their way. Those that are held up at the moment do not count.
    fn waits_for_upload(&self, lane: &Lane) -> bool {
        let file =
            |read: &Read| matches!(read, Read::Waiting(Waiting { content: WaitingContent::File(_), .. }));
        let held_up = self.delivery.progress.borrow().uploads.len();
        let under_way = self.uploads.len().saturating_sub(held_up);
        under_way >= UPLOADS_AT_ONCE && lane.read.front().is_some_and(file)
    }

    async fn read_more(&mut self) -> Result<(), Ended> {
        for lane in &mut self.lanes {
            if !lane.read.is_empty() || lane.uploading || !lane.has_more() {
                continue;
            }
            let Some(mut reader) = lane.reader.take() else { continue };
            let log = Arc::clone(&lane.log);
            let (reader, read) = blocking(move || {
                let read = log.read(&mut reader, READ_BYTES);
                (reader, read)
            })
            .await?;
            lane.reader = Some(reader);
            lane.read.extend(read.map_err(Ended::Outbox)?);
        }
        Ok(())
    }

    /// Gives it back if the window is full.
    async fn hand_over(&mut self, lane: usize, waiting: Waiting) -> Result<Option<Waiting>, Ended> {
        let bytes = match &waiting.content {
            WaitingContent::Envelope(bytes) => bytes.clone(),
            // Opening it asks the gateway what it has of it, by its header: its word on the line is not needed.
            WaitingContent::File(path) => {
                let upload = Upload {
                    connection: self.connection.clone(),
                    path: path.clone(),
                    lane,
                    waiting: waiting.clone(),
                    desk: self.delivery.desk.clone(),
                    progress: self.delivery.progress.clone(),
                    outbox: Arc::clone(&self.delivery.outbox),
                    retry: self.delivery.uplink.gateways.retry,
                };
                self.uploads.push(Box::pin(upload.run()));
                self.lanes[lane].uploading = true;
                return Ok(None);
            }
        };
        let line = waiting.identity.line();
        if self.held.get(&line).is_some_and(|held| waiting.identity.seq.get() <= *held) {
            self.delivery.progress.send_modify(|progress| {
                progress.streams.entry(line.stream.clone()).or_default().resumed += 1;
            });
            self.settle(lane, waiting, Answer::Duplicate { unverified: true }).await?;
            return Ok(None);
        }
        match self.sender.room_for(bytes.len()) {
            Ok(()) => {
                let newest = self.sent.entry((self.gateway, line)).or_insert(waiting.identity.seq);
                *newest = (*newest).max(waiting.identity.seq);
                let token = Token { lane, waiting };
                if self.sender.send(token, bytes, Vec::new()).is_err() {
                    unreachable!("there was room for it a moment ago");
                }
                Ok(None)
            }
            Err(NotTaken::TooLarge { max }) => {
                let detail = format!("{} bytes, and this gateway takes {max}", bytes.len());
                let answer = Answer::Refused { reason: Some(ErrorReason::EnvelopeTooLarge), detail };
                self.settle(lane, waiting, answer).await?;
                Ok(None)
            }
            Err(_) => Ok(Some(waiting)),
        }
    }
}
