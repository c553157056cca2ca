//! A state that was closed: whoever opens it next owns it, and who still knows the old one is told that nothing is kept.

use std::{io, path::PathBuf};

use super::{StateError, StateStore};

/// Refuses whatever it is asked.
#[derive(Debug)]
pub(crate) struct ClosedStore;

impl StateStore for ClosedStore {
    fn load(&mut self) -> Result<Option<Vec<u8>>, StateError> {
        Err(closed())
    }

    fn save(&mut self, _: &[u8]) -> Result<(), StateError> {
        Err(closed())
    }
}

fn closed() -> StateError {
    let source = io::Error::new(io::ErrorKind::NotConnected, "it was closed");
    StateError::Io { path: PathBuf::from("state"), source }
}
