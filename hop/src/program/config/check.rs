//! `config check` and `config show`, as every program has them: what is found, and how it is said.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use pithead_proto::errors::v1::ErrorReason;
use rustls_pki_types::UnixTime;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::{ByteSize, Effective, Loaded};
use crate::{
    program::{ProgramError, disk},
    tls::{Pem, expiry_warnings},
};

/// What was found of a configuration that is good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    file: String,
    facts: Vec<(&'static str, String)>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// About a file.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        Self { file: file.display().to_string(), ..Self::default() }
    }

    /// Says a fact by its name.
    pub fn fact(&mut self, name: &'static str, value: impl ToString) {
        self.facts.push((name, value.to_string()));
    }

    /// Says what will be wrong one day, or for somebody.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Says what nobody here can know.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// What to look at.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Looks at a data directory as the running program would insist on it, by writing a file there. `budget` is what its parts
    /// may take of the disk together, and `parts` are the folders in it that count; what they have already is not asked for again.
    ///
    /// # Errors
    /// When the program could not start with it.
    pub fn data_dir(&mut self, path: &Path, budget: u64, parts: &[&str]) -> Result<(), ProgramError> {
        let shown = path.display();
        let unfit = |what: String, todo: &str| {
            ProgramError::new(ErrorReason::DataDirUnwritable, what)
                .affects("nothing is served and nothing is taken")
                .todo(todo)
        };
        if !path.is_dir() {
            let what = format!("the data directory {shown} does not exist");
            return Err(unfit(what, "mount its disk, or create it and give it to this program's user"));
        }
        disk::probe(path).map_err(|error| {
            let what = format!("the data directory {shown} cannot be written: {error}");
            let todo = "check its owner, its permissions and how its disk is mounted";
            match error.kind() {
                io::ErrorKind::StorageFull => {
                    ProgramError { reason: ErrorReason::DiskFull, ..unfit(what, "make room on its disk") }
                }
                _ => unfit(what, todo),
            }
        })?;
        let Ok(free) = disk::free_bytes(path) else { return Ok(()) };
        self.fact("data_dir_free", ByteSize::from_bytes(free >> 20 << 20));
        let taken: u64 = parts.iter().map(|part| disk::taken_below(&path.join(part))).sum();
        let open = budget.saturating_sub(taken);
        if open > free {
            let size = |bytes: u64| ByteSize::from_bytes(bytes >> 20 << 20);
            self.warn(format!(
                "the disk of {shown} has {} left, and what may still come there is {}: lower the budgets, or give it a larger \
                 disk",
                size(free),
                size(open)
            ));
        }
        Ok(())
    }

    /// Says of a private key that others may read it.
    pub fn private_key(&mut self, path: &Path) {
        if fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0) {
            self.warn(format!("{}: everybody on this machine may read this private key", path.display()));
        }
    }

    /// Says of certificates and lists that they run out.
    pub fn expiry(&mut self, pem: &Pem) {
        self.warnings.extend(expiry_warnings(pem, UnixTime::now()));
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{}: good\n", self.file);
        let width = self.facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in &self.facts {
            text.push_str(&format!("  {name:width$}  {value}\n"));
        }
        for warning in &self.warnings {
            text.push_str(&format!("  warning: {warning}\n"));
        }
        for note in &self.notes {
            text.push_str(&format!("  note: {note}\n"));
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let facts: serde_json::Map<String, Json> =
            self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({ "file": self.file, "good": true, "facts": facts, "warnings": self.warnings, "notes": self.notes })
    }
}

impl<T: Serialize> Loaded<T> {
    /// The whole configuration; as TOML, or as JSON for programs.
    ///
    /// # Errors
    /// When it cannot be written down, which is a fault of the program.
    pub fn show(&self, origin: bool, as_json: bool) -> Result<String, ProgramError> {
        let tree = Effective::of(&self.value)?;
        let sources = origin.then_some(&self.sources);
        Ok(if as_json { format!("{:#}\n", tree.to_json(sources)) } else { tree.to_toml(sources) })
    }

    /// An error about a file, with the place where that file is named.
    #[must_use]
    pub fn locate(&self, mut error: ProgramError) -> ProgramError {
        let key = Effective::of(&self.value).ok().and_then(|tree| tree.named_in(&error.what));
        if let Some(key) = key {
            error.what = format!("{}\n  named by: {key} ({})", error.what, self.sources.say(&key));
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_to_be_there_and_to_have_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::new(Path::new("a.toml"));
        let missing = report.data_dir(&folder.path().join("not-mounted"), 0, &[]).unwrap_err();
        assert_eq!(missing.reason, ErrorReason::DataDirUnwritable);
        report.data_dir(folder.path(), 1, &["spool"]).unwrap();
        assert_eq!(report.warnings(), [""; 0]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left there");
        report.data_dir(folder.path(), u64::MAX, &["spool"]).unwrap();
        assert!(report.warnings()[0].contains("give it a larger disk"), "{report:?}");
    }

    #[test]
    fn a_private_key_that_everybody_may_read_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        fs::write(&path, b"secret").unwrap();
        for (mode, warned) in [(0o600, 0), (0o640, 0), (0o644, 1)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let mut report = Report::new(Path::new("a.toml"));
            report.private_key(&path);
            assert_eq!(report.warnings().len(), warned, "{mode:o}");
        }
    }

    #[test]
    fn a_report_is_for_people_and_for_programs() {
        let mut report = Report::new(Path::new("a.toml"));
        report.fact("site", "pit-7");
        report.fact("gateway", "gw-1");
        report.warn("soon");
        report.note("perhaps");
        assert_eq!(
            report.to_text(),
            "a.toml: good\n  site     pit-7\n  gateway  gw-1\n  warning: soon\n  note: perhaps\n"
        );
        assert_eq!(report.to_json()["facts"]["site"], "pit-7");
        assert_eq!(report.to_json()["warnings"], json!(["soon"]));
    }
}
