//! `outbox`: what waits. `stat` and `verify` only look, so a client may be working in the folder; `drain` is one itself.

use std::{path::Path, time::Duration};

use pithead_device_client::StreamSurvey;
use pithead_hop::program::{ExitCode, ProgramError};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::names::StreamName;
use serde_json::{Value, json};

use crate::{
    config::Config,
    delivery::{self, Told},
    failure, moment,
    output::{Output, byte_bar, columns, envelope_bar},
};

pub(crate) fn stat(file: &Path, output: Output) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let streams = survey(&config)?;
    output.print_either(&object(&config, &streams), || table(&config, &streams));
    Ok(ExitCode::OK)
}

pub(crate) fn verify(file: &Path, output: Output) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let bar = byte_bar(None, "verifying");
    let streams = pithead_device_client::verify(&config.state(), |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let streams = streams.map_err(|error| failure::survey(&error))?;
    output.print_either(&object(&config, &streams), || table(&config, &streams));
    match sum(&streams, |stream| stream.damaged) {
        0 => Ok(ExitCode::OK),
        damaged => Err(ProgramError::new(
            ErrorReason::StateDamaged,
            format!("{damaged} envelopes in the outbox are damaged"),
        )
        .affects("they are declared to the cloud as lost when it is their turn; everything else is sent")
        .todo("look at the disk")
        .exit(ExitCode::FAILED)),
    }
}

pub(crate) async fn drain(
    file: &Path,
    limit: Option<Duration>,
    output: Output,
) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let signals = delivery::signals()?;
    let waiting = sum(&survey(&config)?, |stream| stream.envelopes);
    // A client would begin a run and say so, and no gateway is needed to be done.
    if waiting == 0 {
        output.print(&Told::default().fields(0));
        return Ok(ExitCode::OK);
    }
    let limit = limit.unwrap_or(delivery::FOREVER);
    let bar = envelope_bar("draining");
    bar.set_length(waiting);
    let client = config.client(None)?.open().map_err(|error| failure::open(&error))?;
    let ended = delivery::finish(client, limit, &signals.stop, &bar).await?;
    let told = Told::of(&ended.status);
    output.print(&told.fields(ended.status.sessions));
    delivery::verdict(&config, &told, ended.trouble)
}

/// What waits, by stream.
pub(crate) fn survey(config: &Config) -> Result<Vec<StreamSurvey>, ProgramError> {
    pithead_device_client::survey(&config.state()).map_err(|error| failure::survey(&error))
}

/// One number of all streams.
pub(crate) fn sum(streams: &[StreamSurvey], of: impl Fn(&StreamSurvey) -> u64) -> u64 {
    streams.iter().map(of).sum()
}

/// For programs: the sums, and each stream.
pub(crate) fn object(config: &Config, streams: &[StreamSurvey]) -> Value {
    let oldest = streams.iter().filter_map(|stream| stream.oldest_ms).min();
    let each = streams.iter().map(|stream| {
        let mut object = counts(std::slice::from_ref(stream), stream.oldest_ms);
        object["stream"] = json!(stream.stream.to_string());
        object["budget_bytes"] = json!(config.budget(&stream.stream));
        object
    });
    let mut object = counts(streams, oldest);
    object["streams"] = Value::Array(each.collect());
    object
}

fn counts(streams: &[StreamSurvey], oldest_ms: Option<u64>) -> Value {
    json!({
        "envelopes": sum(streams, |stream| stream.envelopes),
        "records": sum(streams, |stream| stream.records),
        "payload_bytes": sum(streams, |stream| stream.payload_bytes),
        "bytes": sum(streams, |stream| stream.bytes),
        "oldest_ms": oldest_ms,
        "oldest": oldest_ms.map(|ms| moment::rfc3339(ms / 1_000)),
        "oldest_age_s": oldest_ms.map(|ms| moment::age_ms(ms).as_secs()),
        "damaged": sum(streams, |stream| stream.damaged),
    })
}

/// For people: a row for each stream.
pub(crate) fn table(config: &Config, streams: &[StreamSurvey]) -> String {
    if streams.is_empty() {
        return "nothing was ever recorded\n".to_owned();
    }
    let rows: Vec<_> = streams.iter().map(|stream| row(stream, config.budget(&stream.stream))).collect();
    columns(["stream", "envelopes", "records", "payload", "bytes", "of", "oldest", "age", "damaged"], &rows)
}

fn row(stream: &StreamSurvey, budget: u64) -> [Value; 9] {
    let name: &StreamName = &stream.stream;
    [
        json!(name.to_string()),
        json!(stream.envelopes),
        json!(stream.records),
        json!(stream.payload_bytes),
        json!(stream.bytes),
        json!(budget),
        json!(stream.oldest_ms.map(|ms| moment::rfc3339(ms / 1_000))),
        json!(stream.oldest_ms.map(|ms| moment::span(moment::age_ms(ms)))),
        json!(stream.damaged),
    ]
}
