//! `check`: what is in order and what is not, in groups, each line with what to do about it.
//!
//! ```text
//! configuration
//!   √ file                /etc/pithead/gateway.toml and every file that it names
//! connectivity
//!   × relay               decryptor.example.com:7443: connection refused
//!       PH-4014 PEER_UNREACHABLE: check the address, that the other end runs, and what lies between
//!
//! 1 failure, 0 warnings in 12 checks
//! ```
//!
//! A warning is what works and should be looked at; a failure is what would keep the program from serving. What cannot be
//! found out is skipped and says why: a check that could not be made never counts as one that was passed.
//!
//! Nothing here changes anything, but for a small file that the disk's check writes and removes.

pub mod machine;
pub mod papers;
pub mod peer;

use std::fmt::Write as _;

use pithead_proto::errors::v1::ErrorReason;
use serde::Serialize;

use super::paint::{Paint, Tone};
use super::{ExitCode, ProgramError};

/// The group whose failures end with 78: nothing can run with such a file.
pub const CONFIGURATION: &str = "configuration";
/// Whoever the program talks to.
pub const CONNECTIVITY: &str = "connectivity";
/// The machine, and what runs out.
pub const PRODUCTION: &str = "production readiness";
/// What the running program says of itself.
pub const RUNNING: &str = "the running program";

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Not looked at, and why.
    Skipped,
    /// It works, and should be looked at.
    Warning,
    /// The program would not serve.
    Failure,
}

impl Grade {
    fn mark(self) -> (&'static str, Tone) {
        match self {
            Self::Ok => ("√", Tone::Good),
            Self::Skipped => ("-", Tone::Quiet),
            Self::Warning => ("!", Tone::Warning),
            Self::Failure => ("×", Tone::Bad),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub grade: Grade,
    /// What was found, in words.
    pub words: String,
    /// The reason in the registry, if it is not in order.
    pub reason: Option<ErrorReason>,
    /// What to do about it.
    pub todo: Option<String>,
}

impl Finding {
    fn new(grade: Grade, words: impl Into<String>) -> Self {
        Self { grade, words: words.into(), reason: None, todo: None }
    }

    /// In order.
    pub fn ok(words: impl Into<String>) -> Self {
        Self::new(Grade::Ok, words)
    }

    /// Not looked at, because.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self::new(Grade::Skipped, why)
    }

    /// Works, and should be looked at.
    pub fn warning(words: impl Into<String>) -> Self {
        Self::new(Grade::Warning, words)
    }

    /// Would keep the program from serving.
    pub fn failure(reason: ErrorReason, words: impl Into<String>) -> Self {
        Self { reason: Some(reason), ..Self::new(Grade::Failure, words) }
    }

    /// Has a reason in the registry.
    #[must_use]
    pub fn because(mut self, reason: ErrorReason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn todo(mut self, todo: impl Into<String>) -> Self {
        self.todo = Some(todo.into());
        self
    }

    /// What an error says, as a finding of this grade.
    pub fn of(error: &ProgramError, grade: Grade) -> Self {
        Self {
            grade,
            words: error.what.clone(),
            reason: Some(error.reason),
            todo: error.todo.clone().or_else(|| error.affects.clone()),
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its group.
    pub group: &'static str,
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub finding: Finding,
}

impl Serialize for Line {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let Self { group, name, finding } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("group", group)?;
        map.serialize_entry("check", name)?;
        map.serialize_entry("result", &finding.grade)?;
        map.serialize_entry("words", &finding.words)?;
        if let Some(reason) = finding.reason {
            map.serialize_entry("code", &reason.code())?;
            map.serialize_entry("reason", reason.name())?;
        }
        if let Some(todo) = &finding.todo {
            map.serialize_entry("todo", todo)?;
        }
        map.end()
    }
}

/// Everything that was looked at, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(Vec<Line>);

impl Report {
    /// Adds a line. Lines of one group stand together, groups in the order of their first line.
    pub fn add(&mut self, group: &'static str, name: impl Into<String>, finding: Finding) {
        let line = Line { group, name: name.into(), finding };
        let behind = self.0.iter().rposition(|other| other.group == group);
        self.0.insert(behind.map_or(self.0.len(), |at| at + 1), line);
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.0
    }

    fn count(&self, grade: Grade) -> usize {
        self.0.iter().filter(|line| line.finding.grade == grade).count()
    }

    /// 78 if the configuration is bad, 4 if the program would not serve, 3 if something should be looked at, 0 if all is well.
    #[must_use]
    pub fn exit(&self) -> ExitCode {
        let failed = |line: &&Line| line.finding.grade == Grade::Failure;
        let mut failures = self.0.iter().filter(failed).peekable();
        if failures.peek().is_some() {
            let bad = failures.any(|line| line.group == CONFIGURATION);
            return if bad { ExitCode::CONFIG_INVALID } else { ExitCode::NOT_READY };
        }
        if self.count(Grade::Warning) > 0 { ExitCode::DEGRADED } else { ExitCode::OK }
    }

    /// For people.
    #[must_use]
    pub fn table(&self, paint: Paint) -> String {
        let width = self.0.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        let mut group = "";
        // Writing to a String does not fail.
        for line in &self.0 {
            if line.group != group {
                let gap = if group.is_empty() { "" } else { "\n" };
                group = line.group;
                let _ = writeln!(text, "{gap}{}", paint.word(Tone::Heading, group));
            }
            let (mark, tone) = line.finding.grade.mark();
            let Finding { words, reason, todo, .. } = &line.finding;
            // A message may have lines of its own, with a caret under a spot: they stay under each other.
            let words = words.replace('\n', "\n      ");
            let _ = writeln!(text, "  {} {:width$}  {words}", paint.word(tone, mark), line.name);
            let code = reason.map(|reason| format!("{} {}", reason.code(), reason.name()));
            let said: Vec<&str> = code.iter().map(String::as_str).chain(todo.as_deref()).collect();
            if !said.is_empty() {
                let _ = writeln!(text, "      {}", said.join(": "));
            }
        }
        let (failures, warnings) = (self.count(Grade::Failure), self.count(Grade::Warning));
        let skipped = match self.count(Grade::Skipped) {
            0 => String::new(),
            skipped => format!("; {skipped} could not be made"),
        };
        let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let _ = writeln!(
            text,
            "\n{}, {} in {}{skipped}",
            many(failures, "failure"),
            many(warnings, "warning"),
            many(self.0.len(), "check")
        );
        text
    }
}

impl Serialize for Report {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("failures", &self.count(Grade::Failure))?;
        map.serialize_entry("warnings", &self.count(Grade::Warning))?;
        map.serialize_entry("skipped", &self.count(Grade::Skipped))?;
        map.serialize_entry("exit", &self.exit().get())?;
        map.serialize_entry("checks", &self.0)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: &[(&'static str, Finding)]) -> Report {
        let mut report = Report::default();
        for (at, (group, finding)) in findings.iter().enumerate() {
            report.add(group, format!("check {at}"), finding.clone());
        }
        report
    }

    #[test]
    fn the_worst_line_decides_how_it_ends_and_a_bad_configuration_above_all() {
        let (ok, skipped, warning) =
            (Finding::ok("good"), Finding::skipped("no key"), Finding::warning("soon"));
        let failure = Finding::failure(ErrorReason::DiskFull, "full");
        for (findings, code) in [
            (vec![], 0),
            (vec![(CONFIGURATION, ok.clone()), (PRODUCTION, skipped)], 0),
            (vec![(PRODUCTION, ok), (PRODUCTION, warning.clone())], 3),
            (vec![(PRODUCTION, failure.clone()), (PRODUCTION, warning.clone())], 4),
            (vec![(CONFIGURATION, failure.clone()), (PRODUCTION, failure.clone())], 78),
            (vec![(PRODUCTION, failure.clone()), (CONFIGURATION, failure)], 78),
            (vec![(CONFIGURATION, warning)], 3),
        ] {
            assert_eq!(report(&findings).exit().get(), code, "{findings:?}");
        }
    }

    #[test]
    fn a_failure_says_its_code_and_what_to_do_and_groups_stand_together() {
        let full = Finding::failure(ErrorReason::DiskFull, "no room").todo("make room");
        let mut report = report(&[(CONFIGURATION, Finding::ok("good")), (PRODUCTION, full)]);
        report.add(CONFIGURATION, "late", Finding::warning("two\nlines"));
        assert_eq!(
            report.table(Paint::default()),
            "configuration\n  √ check 0  good\n  ! late     two\n      lines\n\nproduction readiness\n  × check 1  no room\n      \
             PH-6006 DISK_FULL: make room\n\n1 failure, 1 warning in 3 checks\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["exit"], &json["failures"], &json["warnings"]), (&4.into(), &1.into(), &1.into()));
        assert_eq!(json["checks"][2]["code"], "PH-6006");
        assert_eq!(json["checks"][2]["result"], "failure");
        assert_eq!(json["checks"][0].get("code"), None);
    }
}
