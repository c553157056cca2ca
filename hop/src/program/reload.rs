//! What came of a reload, for whoever asked for it, for the log and for status pages.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use serde_json::{Value, json};

use tokio::sync::{mpsc, oneshot};

use super::{ProgramError, config::change::Change, human};

/// What came of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The file that was read.
    pub file: PathBuf,
    /// Why nothing has changed, if nothing has. What was in force stays so.
    pub failure: Option<Failure>,
    /// What has changed.
    pub changed: Vec<Change>,
    /// What the file says and only a restart brings.
    pub needs_restart: Vec<Change>,
    /// Why that restart would be refused as things stand, if it would.
    pub restart_refused: Option<Failure>,
    /// What an operator should know: certificates and lists that run out, bundles that were not taken.
    pub warnings: Vec<String>,
    /// Connections that were closed because they would not be let in now.
    pub cut: usize,
}

/// Why a file was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// `PH-6001`
    pub code: String,
    /// `CONFIG_INVALID`
    pub reason: &'static str,
    /// What is wrong, with its place.
    pub what: String,
    /// What to do about it.
    pub todo: Option<String>,
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self { code: error.reason.code(), reason: error.reason.name(), what: error.what, todo: error.todo }
    }
}

impl From<ProgramError> for Outcome {
    fn from(error: ProgramError) -> Self {
        Self { failure: Some(error.into()), ..Self::default() }
    }
}

impl Outcome {
    /// For programs; its words for people are among it.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "file": self.file,
            "taken": self.is_taken(),
            "failure": self.failure,
            "changed": self.changed,
            "needs_restart": self.needs_restart,
            "restart_refused": self.restart_refused,
            "warnings": self.warnings,
            "cut": self.cut,
            "words": self.to_string(),
        })
    }

    fn warn(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }

    /// Whether the file was taken.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.failure.is_none()
    }

    /// Logs it: `config.reloaded`, `config.needs_restart`, or `config.reload_refused`.
    pub fn log(&self) {
        if let Some(failure) = &self.failure {
            tracing::error!(
                event = "config.reload_refused",
                code = failure.code,
                reason = failure.reason,
                error = failure.what,
                "the configuration before stays in force"
            );
            return;
        }
        tracing::info!(event = "config.reloaded", changed = names(&self.changed), cut = self.cut);
        if !self.needs_restart.is_empty() {
            tracing::warn!(event = "config.needs_restart", keys = names(&self.needs_restart));
        }
        if let Some(failure) = &self.restart_refused {
            tracing::error!(
                event = "config.restart_would_fail",
                code = failure.code,
                reason = failure.reason,
                error = failure.what
            );
        }
    }
}

fn names(changes: &[Change]) -> String {
    changes.iter().map(Change::title).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Outcome {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Failure { code, reason, what, todo }) = &self.failure {
            writeln!(f, "refused[{code}] {reason}: {what}")?;
            writeln!(f, "  the configuration before stays in force")?;
            if let Some(todo) = todo {
                writeln!(f, "  what to do: {todo}")?;
            }
            return self.warn(f);
        }
        let said = match (self.changed.is_empty(), self.needs_restart.is_empty()) {
            (false, _) => "in force now:",
            (true, true) => "nothing has changed in the file",
            (true, false) => "nothing of what has changed in the file can be in force before a restart",
        };
        writeln!(f, "{said}")?;
        for change in &self.changed {
            writeln!(f, "  {change}")?;
        }
        writeln!(
            f,
            "certificates, CAs and revocation lists were read again; {} closed",
            human::some(self.cut as u64, "connection", "connections")
        )?;
        if !self.needs_restart.is_empty() {
            writeln!(f, "needs a restart:")?;
            for change in &self.needs_restart {
                writeln!(f, "  {change}")?;
            }
        }
        if let Some(Failure { code, reason, what, todo }) = &self.restart_refused {
            writeln!(f, "and that restart would be refused[{code}] {reason}: {what}")?;
            if let Some(todo) = todo {
                writeln!(f, "  what to do: {todo}")?;
            }
        }
        self.warn(f)
    }
}

/// Orders to reload that wait for the one under way: people and scripts give them, one after the other. Whoever comes beyond waits at
/// the admin port.
const ORDERS: usize = 4;

/// Where orders to reload come out; each brings the place for its answer.
pub type Orders = mpsc::Receiver<oneshot::Sender<Outcome>>;

/// Where orders to reload are taken. Clones are the same desk.
#[derive(Debug, Clone)]
pub struct ReloadDesk {
    orders: mpsc::Sender<oneshot::Sender<Outcome>>,
    /// What came of the last one, whoever ordered it.
    pub last: LastReload,
}

impl ReloadDesk {
    /// A desk, and where its orders come out.
    #[must_use]
    pub fn open() -> (Self, Orders) {
        let (orders, taken) = mpsc::channel(ORDERS);
        (Self { orders, last: LastReload::default() }, taken)
    }

    /// Orders one, and waits for what comes of it; nothing if the program stops before.
    pub async fn order(&self) -> Option<Outcome> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(answer).await.ok()?;
        answered.await.ok()
    }
}

/// The last one. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LastReload(Arc<Mutex<Option<(Outcome, Duration)>>>);

impl LastReload {
    /// Notes what came of one, at this operating time.
    pub fn note(&self, outcome: Outcome, now: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((outcome, now));
    }

    /// The last one and its age; nothing before the first.
    #[must_use]
    pub fn get(&self, now: Duration) -> Option<(Outcome, Duration)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.map(|(outcome, at)| (outcome, now.saturating_sub(at)))
    }

    /// For `/statusz`.
    #[must_use]
    pub fn json(&self, now: Duration) -> Value {
        let Some((outcome, age)) = self.get(now) else { return Value::Null };
        let titles = |changes: &[Change]| changes.iter().map(Change::title).collect::<Vec<_>>();
        json!({
            "s_ago": age.as_secs(),
            "taken": outcome.is_taken(),
            "failure": outcome.failure.as_ref().map(|failure| format!("{}: {}", failure.code, failure.what)),
            "changed": titles(&outcome.changed),
            "needs_restart": titles(&outcome.needs_restart),
            "warnings": outcome.warnings,
            "restart_refused": outcome.restart_refused.as_ref().map(|failure| format!("{}: {}", failure.code, failure.what)),
        })
    }
}

#[cfg(test)]
mod tests {
    use pithead_proto::errors::v1::ErrorReason;

    use super::*;

    fn change(key: &str) -> Change {
        Change { key: key.to_owned(), from: Some("1".to_owned()), to: None }
    }

    #[test]
    fn an_outcome_says_what_is_in_force_and_what_needs_a_restart() {
        let outcome = Outcome {
            changed: vec![change("relay.rate")],
            needs_restart: vec![change("ingest.listen")],
            warnings: vec!["a list is to be renewed".to_owned()],
            cut: 2,
            ..Outcome::default()
        };
        assert_eq!(
            outcome.to_string(),
            "in force now:\n  [relay] rate: 1 -> not set\n\
             certificates, CAs and revocation lists were read again; 2 connections closed\n\
             needs a restart:\n  [ingest] listen: 1 -> not set\nwarning: a list is to be renewed\n"
        );
        let last = LastReload::default();
        assert_eq!(last.json(Duration::ZERO), Value::Null);
        last.note(outcome, Duration::from_secs(5));
        let json = last.json(Duration::from_secs(12));
        assert_eq!((&json["s_ago"], &json["taken"]), (&json!(7), &json!(true)));
        assert_eq!(
            (&json["changed"], &json["needs_restart"]),
            (&json!(["[relay] rate"]), &json!(["[ingest] listen"]))
        );
        assert_eq!(json["warnings"], json!(["a list is to be renewed"]));
    }

    #[tokio::test]
    async fn who_orders_a_reload_hears_what_came_of_it_or_that_the_program_stops() {
        let (desk, mut orders) = ReloadDesk::open();
        let order = tokio::spawn({
            let desk = desk.clone();
            async move { desk.order().await }
        });
        let done = Outcome { cut: 3, ..Outcome::default() };
        orders.recv().await.unwrap().send(done.clone()).unwrap();
        assert_eq!(order.await.unwrap(), Some(done));
        let order = tokio::spawn(async move { desk.order().await });
        drop(orders.recv().await.unwrap());
        assert_eq!(order.await.unwrap(), None);
    }

    #[test]
    fn what_only_a_restart_brings_is_said_as_that_and_so_is_a_restart_that_would_be_refused() {
        let missing = ProgramError::new(ErrorReason::DataDirUnwritable, "/mnt/spool does not exist");
        let outcome = Outcome {
            needs_restart: vec![change("gateway.data_dir")],
            restart_refused: Some(missing.todo("mount its disk").into()),
            ..Outcome::default()
        };
        assert_eq!(
            outcome.to_string(),
            "nothing of what has changed in the file can be in force before a restart\n\
             certificates, CAs and revocation lists were read again; 0 connections closed\n\
             needs a restart:\n  [gateway] data_dir: 1 -> not set\n\
             and that restart would be refused[PH-6004] DATA_DIR_UNWRITABLE: /mnt/spool does not exist\n  \
             what to do: mount its disk\n"
        );
        assert_eq!(outcome.json()["restart_refused"]["code"], "PH-6004");
        assert!(outcome.is_taken());
    }

    #[test]
    fn a_file_that_was_refused_says_why_and_that_nothing_has_changed() {
        let error = ProgramError::new(ErrorReason::ConfigInvalid, "gateway.toml:3:1: no").todo("mend it");
        let outcome = Outcome { warnings: vec!["and a bundle".to_owned()], ..Outcome::from(error) };
        assert_eq!(
            outcome.to_string(),
            "refused[PH-6001] CONFIG_INVALID: gateway.toml:3:1: no\n  the configuration before stays in force\n  \
             what to do: mend it\nwarning: and a bundle\n"
        );
        let last = LastReload::default();
        last.note(outcome, Duration::ZERO);
        let json = last.json(Duration::from_secs(1));
        assert_eq!(
            (&json["taken"], &json["failure"]),
            (&json!(false), &json!("PH-6001: gateway.toml:3:1: no"))
        );
    }
}
