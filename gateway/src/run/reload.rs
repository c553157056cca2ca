//! Reload: the whole file is read again, and all files that it names; then what can change is swapped at once.
//!
//! What is wrong with any of them leaves all of the old ones in force. A key that only a restart can change is named and
//! keeps its value until then: what goes on running is the configuration of before with the live keys of the new file
//! ([`LIVE`]), and that has to be good by itself as well.

use std::path::PathBuf;

use pithead_hop::program::config::{Effective, change};
use pithead_hop::program::reload::{Failure, LastReload, Outcome};
use pithead_hop::program::{ProgramError, disk};
use pithead_proto::errors::v1::ErrorReason;

use super::material::Material;
use super::serving::Serving;
use crate::clock::since_boot;
use crate::config::{Config, LIVE};

/// Reads the file again, whenever somebody asks.
#[derive(Debug)]
pub(super) struct Reloader {
    path: PathBuf,
    in_force: Config,
    last: LastReload,
}

impl Reloader {
    /// Of a gateway that began with `in_force`, out of the file at `path`.
    pub(super) fn new(path: PathBuf, in_force: Config, last: LastReload) -> Self {
        Self { path, in_force, last }
    }

    /// What the gateway goes by.
    pub(super) fn in_force(&self) -> &Config {
        &self.in_force
    }

    /// One reload.
    pub(super) async fn turn(&mut self, serving: &mut Serving) -> Outcome {
        // Statements are asked for anew whatever comes of the file.
        serving.poke.notify_one();
        let outcome = match self.attempt(serving).await {
            Ok(outcome) => outcome,
            Err(error) => {
                serving.vitals.reloaded(None);
                error.into()
            }
        };
        // Whole, for whoever asks from another folder.
        let file = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let outcome = Outcome { file, ..outcome };
        // Whoever has read of it in the log finds it in the status.
        self.last.note(outcome.clone(), since_boot());
        outcome.log();
        outcome
    }

    async fn attempt(&mut self, serving: &mut Serving) -> Result<Outcome, ProgramError> {
        let new = Config::load(&self.path)?;
        let (next, changed, needs_restart) = between(&self.in_force, new.clone())?;
        let restart_refused =
            if needs_restart.is_empty() { None } else { refused_at_start(&new).map(Failure::from) };
        let reloaded = match Material::reload(&next, &serving.name) {
            Ok(material) => {
                let warnings = material.warnings();
                for warning in &warnings {
                    tracing::warn!(event = "tls.warning", warning);
                }
                let expiries = material.server.expiries();
                serving.apply(&next, material).await.map(|cut| {
                    serving.vitals.reloaded(Some(expiries));
                    (cut, warnings)
                })
            }
            Err(error) => Err(error),
        };
        match reloaded {
            Ok((cut, warnings)) => {
                tracing::info!(event = "tls.reloaded", cut);
                self.in_force = next;
                Ok(Outcome { changed, needs_restart, restart_refused, warnings, cut, ..Outcome::default() })
            }
            Err(error) => {
                tracing::error!(event = "tls.reload_refused", %error);
                Err(error)
            }
        }
    }
}

/// Why a gateway would not start with this file as things stand, as far as can be seen while one runs: the ports and the lock are
/// this one's until then.
fn refused_at_start(new: &Config) -> Option<ProgramError> {
    let data = &new.gateway.data_dir;
    Material::load(new).err().or_else(|| {
        let probed = disk::probe(data).err()?;
        let what = format!("the data directory {}: {probed}", data.display());
        Some(
            ProgramError::new(ErrorReason::DataDirUnwritable, what)
                .todo("mount its disk, or create it and give it to this program's user"),
        )
    })
}

type Next = (Config, Vec<change::Change>, Vec<change::Change>);

/// What can be in force after `new` was read, what has changed, and what waits for a restart.
fn between(in_force: &Config, new: Config) -> Result<Next, ProgramError> {
    let taken = change::take(&Effective::of(in_force)?, &Effective::of(&new)?, LIVE);
    if taken.needs_restart.is_empty() {
        return Ok((new, taken.changed, taken.needs_restart));
    }
    let next: Config = taken.in_force.typed()?;
    next.check().map_err(|wrong| taken.refused(&wrong).todo("restart the gateway, or change these back"))?;
    Ok((next, taken.changed, taken.needs_restart))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TEMPLATE;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap()
    }

    fn titles(changes: &[change::Change]) -> Vec<String> {
        changes.iter().map(change::Change::title).collect()
    }

    #[test]
    fn what_a_reload_cannot_apply_keeps_its_value_and_is_named() {
        let before = config(TEMPLATE);
        let after = config(
            &TEMPLATE
                .replace("0.0.0.0:7443", "0.0.0.0:9443")
                .replace("#rate = \"16MiB\"", "rate = \"1MiB\"")
                .replace("#max_size = \"8GiB\"", "max_size = \"9GiB\""),
        );
        let (next, changed, needs_restart) = between(&before, after).unwrap();
        assert_eq!(titles(&changed), ["[ingest.per_device] rate"]);
        assert_eq!(titles(&needs_restart), ["[ingest] listen", "[spool] max_size"]);
        assert_eq!((next.ingest.listen, next.spool.max_size), (before.ingest.listen, before.spool.max_size));
        assert_eq!(next.ingest.per_device.rate.get(), 1 << 20);
    }

    #[test]
    fn live_keys_that_go_together_only_with_what_needs_a_restart_are_refused_whole() {
        let before = config(TEMPLATE);
        // Smaller envelopes need a restart, and the smaller burst is too small for those of before.
        let after = config(
            &TEMPLATE
                .replace("#inline = \"1MiB\"", "inline = \"64KiB\"")
                .replace("#burst = \"512MiB\"", "burst = \"128KiB\""),
        );
        let error = between(&before, after).unwrap_err();
        assert!(error.what.contains("needs a restart: [ingest.envelopes] inline"), "{error}");
    }

    #[test]
    fn a_restart_that_would_be_refused_is_seen_before_it_is_tried() {
        let new = config(&TEMPLATE.replace("#max_size = \"8GiB\"", "max_size = \"9GiB\""));
        // The template's files are nowhere.
        assert_eq!(refused_at_start(&new).unwrap().reason, ErrorReason::ConfigUnreadable);
    }

    #[test]
    fn every_live_key_is_one_of_the_configuration() {
        let on: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let whole = toml::from_str::<Config>(&on).unwrap();
        let whole = Effective::of(&whole).unwrap();
        for live in LIVE.0 {
            let known = match live.strip_suffix(".*") {
                Some(section) => whole.leaves().iter().any(|(key, _)| key.starts_with(section)),
                None => whole.get(live).is_some(),
            };
            assert!(known, "{live}");
        }
    }
}
