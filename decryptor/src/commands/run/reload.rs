//! SIGHUP: the whole file is read again, and the certificates, CAs and revocation lists that it names; then what can change is
//! swapped at once ([`LIVE`]).
//!
//! What is wrong with any of them leaves all of the old ones in force. A key that only a restart can change is named and keeps
//! its value until then. Bundles and the registry of devices are looked at again whatever comes of the file: each of those is
//! taken or refused by itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pithead_hop::accept::AcceptHandle;
use pithead_hop::program::config::{Effective, change};
use pithead_hop::program::reload::{Failure, Outcome};
use pithead_hop::program::{ProgramError, clock, disk, files};
use pithead_hop::tls::Denied;
use pithead_proto::errors::v1::ErrorReason;
use rustls_pki_types::UnixTime;

use super::tls;
use crate::admin::Status;
use crate::config::{Config, LIVE};

/// Reads the file again, whenever somebody asks.
#[derive(Debug)]
pub(super) struct Reloader {
    path: PathBuf,
    in_force: Config,
    status: Arc<Status>,
}

impl Reloader {
    /// Of a program that began with `in_force`, out of the file at `path`.
    pub(super) fn new(path: &Path, in_force: Config, status: Arc<Status>) -> Self {
        Self { path: path.to_owned(), in_force, status }
    }

    /// What the program goes by.
    pub(super) fn in_force(&self) -> &Config {
        &self.in_force
    }

    /// One reload. Whoever would not be let in now is cut. Nobody is told of it yet: what came of the bundles goes with it.
    pub(super) async fn turn(&mut self, handle: &AcceptHandle) -> Outcome {
        let outcome = match self.attempt(handle).await {
            Ok(outcome) => outcome,
            Err(error) => {
                self.status.reloaded(None);
                error.into()
            }
        };
        // Whole, for whoever asks from another folder.
        let file = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        Outcome { file, ..outcome }
    }

    /// Says what came of it.
    pub(super) fn tell(&self, outcome: &Outcome) {
        // Whoever has read of it in the log finds it in the status.
        self.status.reload.last.note(outcome.clone(), clock::since_boot());
        outcome.log();
    }

    async fn attempt(&mut self, handle: &AcceptHandle) -> Result<Outcome, ProgramError> {
        let new = Config::load(&self.path)?;
        let taken = change::take(&Effective::of(&self.in_force)?, &Effective::of(&new)?, LIVE);
        let refused = if taken.needs_restart.is_empty() { None } else { refused_at_start(&new) };
        let next: Config = if taken.needs_restart.is_empty() { new } else { taken.in_force.typed()? };
        next.check()
            .map_err(|wrong| taken.refused(&wrong).todo("restart the program, or change these back"))?;
        let built = tls(&next).and_then(|tls| {
            Ok((tls.gate(Denied::default())?, tls.warnings(UnixTime::now()), tls.expiries()))
        });
        let (gate, warnings, expiries) = built.inspect_err(|error| {
            tracing::error!(event = "tls.reload_refused", %error, "the old ones stay in force");
        })?;
        handle.swap_tls(gate);
        let mut limits = next.ingest.limits.clone();
        limits.fit_files(files::raise_limit());
        handle.change_limits(limits);
        let port = handle.clone();
        let cut = tokio::task::spawn_blocking(move || port.cut_who_is_not_admitted()).await;
        let cut = cut.map_err(|error| ProgramError::new(ErrorReason::Internal, error.to_string()))?;
        tracing::info!(event = "tls.reloaded", cut);
        self.status.reloaded(Some(expiries));
        self.in_force = next;
        let change::Taken { changed, needs_restart, .. } = taken;
        let restart_refused = refused.map(Failure::from);
        Ok(Outcome { changed, needs_restart, restart_refused, warnings, cut, ..Outcome::default() })
    }
}

/// Why the program would not start with this file as things stand, as far as can be seen while it runs.
fn refused_at_start(new: &Config) -> Option<ProgramError> {
    let data_dir = &new.decryptor.data_dir;
    let tls = tls(new).and_then(|tls| Ok(tls.build()?)).err();
    tls.or_else(|| disk::probe(data_dir).err().map(|error| super::cannot_write(data_dir, &error)))
}
