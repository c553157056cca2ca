//! `seal`: one file to one envelope, of any size, in constant memory.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write as _},
    path::{Path, PathBuf},
};

use pithead_device_client::sealer::{Content, SealError, Sealer};
use pithead_hop::program::{ExitCode, ProgramError, disk, exit::chain};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::FileName;
use serde_json::json;

use crate::{
    cli::SealArgs,
    config::Config,
    failure,
    output::{Output, byte_bar},
};

pub(crate) fn run(file: &Path, arguments: &SealArgs, output: Output) -> Result<ExitCode, ProgramError> {
    let mut sealer = Config::load(file)?.open_sealer()?;
    let (input, len, name) = open_input(&arguments.file)?;
    let content = Content::new(arguments.content_type.clone());
    let content = match name {
        Some(name) => content.named(name),
        None => content,
    };
    let bar = byte_bar(len, "sealing");
    let part = part_of(&arguments.out);
    let sealed = seal_to(&mut sealer, arguments, &content, bar.wrap_read(input), &part);
    bar.finish_and_clear();
    let (identity, sealed_len, plaintext_len) = match sealed {
        Ok(sealed) => sealed,
        Err(error) => {
            // Half an envelope is no envelope; what cannot be removed is told by every reader of it.
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
    };
    disk::publish(&part, &arguments.out).map_err(|error| cannot_write(&arguments.out, &error))?;
    sealer.close().map_err(|error| ProgramError::new(ErrorReason::DiskFailed, chain(&error)))?;
    output.print(&[
        ("identity", json!(identity)),
        ("file", json!(arguments.out.display().to_string())),
        ("plaintext_bytes", json!(plaintext_len)),
        ("sealed_bytes", json!(sealed_len)),
    ]);
    Ok(ExitCode::OK)
}

fn seal_to(
    sealer: &mut Sealer,
    arguments: &SealArgs,
    content: &Content,
    mut input: impl Read,
    part: &Path,
) -> Result<(String, u64, u64), ProgramError> {
    let file = File::create(part).map_err(|error| cannot_write(part, &error))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let (identity, lengths) = sealer
        .seal_stream(&arguments.stream, content, &mut input, &mut writer)
        .map_err(|error| match error {
            SealError::Seal(pithead_sealing::envelope::SealError::Write(error)) => cannot_write(part, &error),
            other => failure::seal(&other),
        })?;
    writer.flush().map_err(|error| cannot_write(part, &error))?;
    Ok((identity.to_string(), lengths.sealed_len, lengths.plaintext_len))
}

type Input = (Box<dyn Read>, Option<u64>, Option<FileName>);

fn open_input(path: &Path) -> Result<Input, ProgramError> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin().lock()), None, None));
    }
    let unreadable = |error: io::Error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("{}: {error}", path.display()))
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    let name = path.file_name().and_then(|name| FileName::new(name.to_str()?).ok());
    Ok((Box::new(file), Some(metadata.len()), name))
}

fn part_of(out: &Path) -> PathBuf {
    let mut part = out.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

fn cannot_write(path: &Path, error: &io::Error) -> ProgramError {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorReason::DiskFull,
        _ => ErrorReason::DataDirUnwritable,
    };
    ProgramError::new(reason, format!("{}: {error}", path.display()))
}
