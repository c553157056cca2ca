//! `upload`: a large envelope that `seal` has made, sent to the gateway and resumed for as long as it takes.

use std::{fs::File, path::Path, sync::Arc};

use pithead_device_client::uplink::UploadFailed;
use pithead_hop::{
    ingest::{
        Answer,
        send::{PlainFile, PlainFileError, UploadSource as _},
    },
    program::{ExitCode, ProgramError, exit::chain, stop::Signals},
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::Profile;
use serde_json::json;

use crate::{
    cli::UploadArgs,
    config::{Config, no_gateway},
    output::{Output, byte_bar},
};

pub(crate) async fn run(
    file: &Path,
    arguments: &UploadArgs,
    output: Output,
) -> Result<ExitCode, ProgramError> {
    let config = Config::load(file)?;
    let uplink = config.uplink(&config.open_keys()?)?.ok_or_else(no_gateway)?;
    let envelope = Arc::new(open(&arguments.file)?);
    let profile = Profile::of(envelope.header()).map_err(|error| {
        let reason = pithead_hop::ingest::admit::reason_of_profile(&error);
        ProgramError::new(reason, format!("{}: {error}", arguments.file.display()))
    })?;
    let signals = Signals::listen()
        .map_err(|error| ProgramError::new(ErrorReason::Internal, format!("no signals: {error}")))?;

    let bar = byte_bar(Some(envelope.total()), "uploading");
    let (mut sent, mut before) = (0, None);
    let upload = uplink.upload(envelope.clone(), &signals.stop, |progress| {
        // Every attempt begins where the gateway is: what goes up from there was given to a connection.
        if let Some(before) = before.filter(|before| progress.sent >= *before) {
            sent += progress.sent - before;
        }
        before = Some(progress.sent);
        bar.set_position(progress.persisted);
    });
    let answer = match arguments.timeout {
        Some(limit) => tokio::time::timeout(limit.get(), upload).await.ok(),
        None => Some(upload.await),
    };
    bar.finish_and_clear();
    let told = |outcome: &str| {
        output.print(&[
            ("identity", json!(profile.identity().to_string())),
            ("outcome", json!(outcome)),
            ("sealed_bytes", json!(envelope.total())),
            ("sent_bytes", json!(sent)),
        ]);
    };
    match answer {
        Some(Ok(Answer::Stored)) => told("stored"),
        Some(Ok(Answer::Duplicate { .. })) => told("duplicate"),
        Some(Ok(Answer::Conflict { .. })) => {
            told("conflict");
            return Err(ProgramError::new(
                ErrorReason::Conflict,
                "the gateway has other bytes under this identity",
            )
            .todo("seal the file again: it gets a new run and number"));
        }
        Some(Ok(Answer::Refused { reason, detail })) => {
            told("refused");
            return Err(ProgramError::new(reason.unwrap_or(ErrorReason::RequestInvalid), detail));
        }
        Some(Err(UploadFailed::Stopped { last })) => return Err(waits(last.map(|last| last.detail))),
        None => return Err(waits(None)),
        Some(Err(error)) => {
            let reason = error.reason().unwrap_or(ErrorReason::PeerUnreachable);
            return Err(ProgramError::new(reason, chain(&error)));
        }
    }
    Ok(ExitCode::OK)
}

fn waits(last: Option<String>) -> ProgramError {
    let last = last.map_or_else(String::new, |last| format!(": {last}"));
    ProgramError::new(ErrorReason::PeerUnreachable, format!("the upload is not finished{last}"))
        .affects("nothing is lost; the same command goes on where it was")
        .exit(ExitCode::TRY_AGAIN)
}

fn open(path: &Path) -> Result<PlainFile, ProgramError> {
    let what = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file =
        File::open(path).map_err(|error| ProgramError::new(ErrorReason::ConfigUnreadable, what(&error)))?;
    PlainFile::open(file).map_err(|error| match error {
        PlainFileError::Format(refused) => {
            ProgramError::new(pithead_hop::ingest::admit::reason_of_format(&refused), what(&error))
        }
        other => ProgramError::new(ErrorReason::ConfigUnreadable, what(&other)),
    })
}
