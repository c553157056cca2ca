//! From gathered to sealed: a number, what there is to say, and the seal.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pithead_sealing::names::{Identity, StreamName};
use tokio::sync::oneshot;

use super::{
    BegunFile, EndedFile, SealedFile, WRITE_AHEAD_BYTES, Worker,
    lane::{Ahead, NotSealed},
};
use crate::{
    batch::Notices,
    client::{
        options::Fsync,
        stream::{Body, Counters, Ready, RecordError, Whole},
    },
    clock::DeviceClock,
    outbox::{Head, Log},
    sealer::{Content, SealError},
};

impl Worker {
    /// A conflict is answered by a new run, once nothing of the old one is on its way to the disk.
    pub(super) fn begin_run_if_wanted(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if !lane.wants_new_run || !lane.ahead.is_empty() || lane.held_back || lane.open_file {
            return;
        }
        match self.sealer.begin_run(lane.log.stream()) {
            Ok(run) => {
                tracing::info!(event = "client.new_run", stream = %lane.log.stream(), %run);
                lane.wants_new_run = false;
            }
            Err(error) => {
                lane.held_back = true;
                tracing::error!(event = "client.no_new_run", stream = %lane.log.stream(), %error);
            }
        }
    }

    pub(super) fn seal_ready(&mut self, index: usize, now: Duration) {
        loop {
            let lane = &mut self.lanes[index];
            let waits = lane.is_blocked() || lane.held_back || lane.wants_new_run;
            if waits || lane.ahead_bytes >= WRITE_AHEAD_BYTES {
                return;
            }
            // The very last batch says goodbye as well, once all that it speaks of is durable.
            let last = self.stopping.is_some()
                && *lane.log.stream() == self.heartbeat_stream
                && lane.intake.is_last();
            let late = self.stopping.is_some_and(|until| until <= now);
            if last && !self.is_all_but_done(index, late) {
                return;
            }
            let lane = &self.lanes[index];
            let Some(ready) = lane.intake.take(now) else { return };
            if let Err(refused) = self.seal(index, ready, last) {
                let NotSealed { error, ready } = *refused;
                let lane = &mut self.lanes[index];
                lane.held_back = true;
                lane.intake.put_back(ready);
                tracing::warn!(event = "client.not_sealed", stream = %lane.log.stream(), %error);
                lane.intake.set_trouble(Some(match error {
                    SealError::Key(error) => RecordError::NoKey(error),
                    other => RecordError::Seal(Arc::new(other)),
                }));
                return;
            }
            self.said_goodbye |= last;
            // What has become ready to be written goes before the next is sealed.
            if self.lanes[index].intake.options.sync == Fsync::Always {
                self.write(index, now);
            }
        }
    }

    /// Gives it a number, adds what there is to say, and seals. On an error no number is used.
    pub(super) fn seal(&mut self, index: usize, ready: Ready, heartbeat: bool) -> Result<(), Box<NotSealed>> {
        // A key that is not there is known before the records are put into their final form.
        if let Err(error) = self.sealer.keys().verified_key() {
            return Err(Box::new(NotSealed { error: error.into(), ready }));
        }
        let stream = self.lanes[index].log.stream().clone();
        let ordinal = ready.ordinal;
        let mut gaps = Vec::new();
        let whole = match ready.body {
            Body::Whole(whole) => whole,
            Body::Batch(gathered) => {
                gaps = self.outbox.undeclared();
                let notices = Notices {
                    previous: self.sealer.previous(&stream),
                    gaps: gaps.clone(),
                    heartbeat: if heartbeat { self.sealer.marks_with_next(&stream) } else { Vec::new() },
                };
                let (records, payload_bytes) = (gathered.records() as u64, gathered.payload_bytes());
                let compress = self.lanes[index].intake.options.compress;
                let (content, plaintext) = compressed(Content::batch(), gathered.finish(&notices), compress);
                Whole { content, plaintext, records, payload_bytes }
            }
        };
        let sealed = match self.sealer.seal_next(&stream, &whole.content, &whole.plaintext) {
            Ok(sealed) => sealed,
            Err(error) => {
                let ready = Ready { ordinal, body: Body::Whole(whole) };
                return Err(Box::new(NotSealed { error, ready }));
            }
        };
        self.outbox.carried(&gaps, sealed.identity());
        self.board.sessions.store(self.sealer.sessions_started(), Ordering::Relaxed);
        let records = u32::try_from(whole.records).unwrap_or(u32::MAX);
        let head = Head::of(sealed.identity(), records, whole.payload_bytes);
        let lane = &mut self.lanes[index];
        Counters::add(&lane.intake.counters.sealed, 1);
        Counters::add(&lane.intake.counters.sealed_bytes, sealed.bytes().len() as u64);
        lane.push(Ahead {
            record: Log::record(&sealed, &head, wall_ms()),
            identity: sealed.identity().clone(),
            ordinal,
            records: whole.records,
            ticket: None,
            file: None,
        });
        Ok(())
    }

    pub(super) fn begin_file(
        &mut self,
        stream: &StreamName,
        content: &Content,
    ) -> Result<BegunFile, SealError> {
        let (identity, sealer) = self.sealer.begin_stream(stream, content)?;
        if let Some(lane) = self.lane(stream) {
            lane.open_file = true;
        }
        self.board.sessions.store(self.sealer.sessions_started(), Ordering::Relaxed);
        Ok(BegunFile { identity, sealer })
    }

    pub(super) fn end_file(&mut self, file: EndedFile, reply: oneshot::Sender<Identity>) {
        let EndedFile { identity, payload_bytes, sealed } = file;
        self.sealer.used(&identity);
        let Some(lane) = self.lane(&identity.stream) else { return };
        lane.open_file = false;
        let head = Head::of(&identity, 1, payload_bytes);
        let (record, total) = match sealed {
            SealedFile::InOnePiece(envelope) => {
                (Log::record(&envelope, &head, wall_ms()), envelope.bytes().len() as u64)
            }
            SealedFile::Beside { total } => (Log::file_record(total, &head, wall_ms()), total),
        };
        let ordinal = lane.intake.skip();
        Counters::add(&lane.intake.counters.recorded, 1);
        Counters::add(&lane.intake.counters.recorded_bytes, payload_bytes);
        Counters::add(&lane.intake.counters.sealed, 1);
        Counters::add(&lane.intake.counters.sealed_bytes, total);
        lane.push(Ahead { record, identity, ordinal, records: 1, ticket: None, file: Some(reply) });
    }
}

#[cfg(feature = "zstd")]
fn compressed(content: Content, plaintext: Vec<u8>, wanted: bool) -> (Content, Vec<u8>) {
    use pithead_sealing::envelope::Encoding;
    if !wanted {
        return (content, plaintext);
    }
    match zstd::bulk::compress(&plaintext, crate::client::ZSTD_LEVEL) {
        Ok(smaller) => (Content { encoding: Some(Encoding::Zstd), ..content }, smaller),
        // Memory for the window was refused: what is not compressed is sealed all the same.
        Err(_) => (content, plaintext),
    }
}

#[cfg(not(feature = "zstd"))]
fn compressed(content: Content, plaintext: Vec<u8>, _: bool) -> (Content, Vec<u8>) {
    (content, plaintext)
}

fn wall_ms() -> u64 {
    u64::try_from(DeviceClock::wall_us() / 1_000).unwrap_or(0)
}
