//! Object stores: a bucket of S3 or of what speaks S3, or a folder that somebody else carries on. One way to open them, for
//! whoever puts bundles there and whoever takes them.
//!
//! What holds:
//! 1. Every request ends. It is given a time that grows with its bytes; the client below waits for ever on a peer that accepts
//!    and never answers.
//! 2. [`Store::create`] makes an object or finds that one is there, and never writes over it. A store that cannot tell is refused
//!    by [`Store::probe`] before anything is entrusted to it.
//! 3. An error is parsed once into a [`Fault`] that says whether to come back. After an error the object may be there all the
//!    same: the answer was lost, not the request. Whoever creates again learns that.
//! 4. In clear over loopback only. Elsewhere TLS, with the system's roots or the configured ones.
//! 5. A folder has to be there; it is never made, since it may be where something is mounted. Names in it that end in `#` and digits
//!    are no objects: the client below writes there what is to become one.
//! 6. Names are those of [`crate::bundle`], below the prefix of the URL; nobody outside this folder puts them together.

mod credentials;
mod fault;
mod folder;
mod part;
mod settings;
mod store;

pub use credentials::Credentials;
pub use fault::{Fault, StoreError};
pub use part::{PART_BYTES, part_bytes};
pub use settings::{Location, Settings, SettingsError};
pub use store::{Created, Parts, ProbeError, Store, Writer};

/// The client below, for what this module does not wrap.
pub use object_store;
