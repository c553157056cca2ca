//! `bundle show FILE | split FILE --out DIR`: what an object of a bucket holds, and its envelopes as files of their own. Needs no
//! key and no bucket: a bundle that somebody has fetched.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pithead_hop::bundle::{BUNDLE_MAX, Bundle, Entry, Part};
use pithead_hop::program::{ProgramError, disk, human};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::envelope::{Header, Profile};
use serde_json::{Value, json};

use super::authority::Output;
use super::open::open_input;

/// `bundle ...`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do with it
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with a bundle.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Say what is in a bundle, entry by entry; exits 1 if an envelope in it is damaged
    Show {
        /// The bundle; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Write each envelope into a file of its own, which `open` and every AWS Encryption SDK open, and index.jsonl beside them
    ///
    /// The files are named by the envelope's place in its lane. A large envelope is an object of its own: index.jsonl has its key. What
    /// is damaged is written with the ending `.damaged`, and the command exits 1.
    Split {
        /// The bundle; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The folder; it is made if its parent exists, and nothing in it is written over
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Runs it.
///
/// # Errors
/// When it is no bundle, an envelope in it is damaged, or a file cannot be written.
#[allow(clippy::print_stdout, reason = "the answer of a command")]
pub fn run(args: &Args) -> Result<(), ProgramError> {
    match &args.command {
        Command::Show { file, output } => {
            let bundle = read(file)?;
            match output {
                Output::Json => println!("{:#}", as_json(&bundle)),
                Output::Table => print!("{}", as_table(&bundle)),
            }
            damaged(&bundle)
        }
        Command::Split { file, out } => {
            let bundle = read(file)?;
            let files = split(&bundle, out)?;
            println!("{files} envelopes in {}", out.display());
            damaged(&bundle)
        }
    }
}

fn read(file: &Path) -> Result<Bundle, ProgramError> {
    let (input, _) = open_input(file)?;
    let mut bytes = Vec::new();
    input.take(BUNDLE_MAX + 1).read_to_end(&mut bytes).map_err(|error| {
        ProgramError::new(ErrorReason::ConfigUnreadable, format!("cannot read {}: {error}", file.display()))
    })?;
    Bundle::read(bytes.into()).map_err(|error| {
        ProgramError::new(ErrorReason::Checksum, format!("{}: {error}", file.display()))
            .todo("fetch it again; if it stays so, look who else writes into the bucket")
    })
}

fn damaged(bundle: &Bundle) -> Result<(), ProgramError> {
    match bundle.parts().filter(|(_, part)| matches!(part, Part::Damaged(_))).count() {
        0 => Ok(()),
        count => {
            let what =
                format!("{count} of {} envelopes are not what was packed", bundle.index().entries.len());
            Err(ProgramError::new(ErrorReason::Checksum, what)
                .todo("fetch the bundle again; the others are whole"))
        }
    }
}

/// What an envelope says of itself; nothing if it cannot be read.
fn claims(part: &Part<'_>) -> Value {
    let identity = match part {
        Part::Envelope(envelope) => {
            let header = Header::parse(envelope).ok();
            header.and_then(|header| Profile::of(&header).ok().map(|profile| profile.identity().clone()))
        }
        Part::Large(large) => Some(large.name.identity.clone()),
        Part::Damaged(_) => None,
    };
    identity.map_or(Value::Null, |identity| {
        json!({
            "site": identity.site.as_str(), "device": identity.device.as_str(), "stream": identity.stream.as_str(),
            "run": identity.run.to_string(), "seq": identity.seq.get(),
        })
    })
}

fn file_name(entry: &Entry, part: &Part<'_>) -> Option<String> {
    match part {
        Part::Envelope(_) => Some(format!("{:020}.envelope", entry.position.0)),
        Part::Damaged(_) => Some(format!("{:020}.damaged", entry.position.0)),
        Part::Large(_) => None,
    }
}

fn entry_json(entry: &Entry, part: &Part<'_>) -> Value {
    let hops: Vec<Value> = entry
        .hops()
        .iter()
        .map(|hop| {
            json!({
                "gateway": hop.gateway, "received_us": hop.received_us, "assurance": hop.assurance,
                "certificate_sha256": hex::encode(&hop.certificate_sha256), "key_not_active": hop.key_not_active,
                "conflict": hop.conflict,
            })
        })
        .collect();
    let (bytes, state, key) = match part {
        Part::Envelope(envelope) => (envelope.len() as u64, "here", None),
        Part::Damaged(envelope) => (envelope.len() as u64, "damaged", None),
        Part::Large(large) => (large.total, "large", Some(large.name.to_string())),
    };
    json!({
        "position": entry.position.0, "file": file_name(entry, part), "state": state, "bytes": bytes, "key": key,
        "identity": claims(part), "received_us": entry.received_us, "conflict": entry.conflict, "hops": hops,
    })
}

/// The answer for programs.
#[must_use]
pub fn as_json(bundle: &Bundle) -> Value {
    let index = bundle.index();
    let entries: Vec<Value> = bundle.parts().map(|(entry, part)| entry_json(entry, &part)).collect();
    json!({
        "name": index.name().to_string(), "site": index.site.as_str(), "gateway": index.gateway.as_str(),
        "spool": index.spool.to_string(), "lane": index.lane.index(), "bytes": index.total_bytes(), "entries": entries,
    })
}

fn as_table(bundle: &Bundle) -> String {
    let index = bundle.index();
    let mut table = format!(
        "{}\n{} entries, {}\n\n{:>20}  {:>12}  {:<8}  envelope\n",
        index.name(),
        index.entries.len(),
        human::bytes(index.total_bytes()),
        "place",
        "bytes",
        "state"
    );
    for (entry, part) in bundle.parts() {
        let (bytes, state) = match &part {
            Part::Envelope(envelope) => {
                (envelope.len() as u64, if entry.conflict { "conflict" } else { "here" })
            }
            Part::Damaged(envelope) => (envelope.len() as u64, "damaged"),
            Part::Large(large) => (large.total, "large"),
        };
        let what = match claims(&part) {
            Value::Null => "does not read".to_owned(),
            said => ["device", "stream", "run", "seq"]
                .map(|key| said[key].as_str().map_or_else(|| said[key].to_string(), str::to_owned))
                .join("/"),
        };
        table.push_str(&format!("{:>20}  {bytes:>12}  {state:<8}  {what}\n", entry.position.0));
    }
    table
}

/// Writes what is in it into a folder. Gives how many envelopes.
fn split(bundle: &Bundle, out: &Path) -> Result<usize, ProgramError> {
    let failed = |path: &Path, error: &io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::AlreadyExists => ErrorReason::WouldOverwrite,
            _ => ErrorReason::DataDirUnwritable,
        };
        ProgramError::new(reason, format!("cannot write {}: {error}", path.display()))
    };
    disk::create_folder(out).map_err(|error| failed(out, &error))?;
    let (mut files, mut lines) = (0, String::new());
    for (entry, part) in bundle.parts() {
        if let (Some(name), Part::Envelope(bytes) | Part::Damaged(bytes)) = (file_name(entry, &part), &part) {
            let path = out.join(name);
            write_new(&path, bytes).map_err(|error| failed(&path, &error))?;
            files += usize::from(matches!(part, Part::Envelope(_)));
        }
        lines.push_str(&entry_json(entry, &part).to_string());
        lines.push('\n');
    }
    let index = out.join("index.jsonl");
    write_new(&index, &Bytes::from(lines)).map_err(|error| failed(&index, &error))?;
    Ok(files)
}

fn write_new(path: &Path, bytes: &Bytes) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: &[u8] = include_bytes!("../../../hop/tests/data/v1.bundle");

    #[test]
    fn a_bundle_is_split_into_its_envelopes_and_nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("a.bundle"), folder.path().join("out"));
        std::fs::write(&file, COMMITTED).unwrap();
        let split = || run(&Args { command: Command::Split { file: file.clone(), out: out.clone() } });
        split().unwrap();
        assert_eq!(std::fs::read(out.join("00000000000000000258.envelope")).unwrap(), b"the first");
        let index = std::fs::read_to_string(out.join("index.jsonl")).unwrap();
        let lines: Vec<Value> = index.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!((&lines[2]["conflict"], &lines[3]["state"]), (&json!(true), &json!("large")));
        assert_eq!(lines[3]["identity"]["device"], "truck-42");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 5);
        assert_eq!(split().unwrap_err().reason, ErrorReason::WouldOverwrite);
    }

    #[test]
    fn what_is_damaged_is_said_and_written_beside_what_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (file, out) = (folder.path().join("a.bundle"), folder.path().join("out"));
        let mut bytes = COMMITTED.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        let error =
            run(&Args { command: Command::Split { file: file.clone(), out: out.clone() } }).unwrap_err();
        assert_eq!(
            (error.reason, error.what.as_str()),
            (ErrorReason::Checksum, "1 of 5 envelopes are not what was packed")
        );
        assert!(
            out.join("00000000000000000265.damaged").exists()
                && out.join("00000000000000000258.envelope").exists()
        );
        bytes.pop();
        std::fs::write(&file, &bytes).unwrap();
        let show = Command::Show { file, output: Output::Table };
        assert!(run(&Args { command: show }).unwrap_err().what.contains("bytes and its index says"));
    }

    #[test]
    fn the_table_says_what_each_entry_is() {
        let bundle = Bundle::read(Bytes::from_static(COMMITTED)).unwrap();
        let table = as_table(&bundle);
        assert!(table.contains("5 entries"), "{table}");
        assert!(table.contains("conflict") && table.contains("truck-42/lidar/0000000300000001/9"), "{table}");
        assert_eq!(as_json(&bundle)["entries"].as_array().unwrap().len(), 5);
    }
}
