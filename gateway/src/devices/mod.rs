//! Who the devices are: what the operator says of them, and how that is held at the ports.
//!
//! ```text
//! registry (a file) -> file (one writer at a time) -> doors (the ports' TLS, deny list and addresses; live connections cut)
//!                           ^
//! enroll (a token for a certificate) <- ca (the site's own, where its key lies here)
//! ```
//!
//! The registry names devices and turns them away; it proves nothing by itself. A certificate of the site's CA is let in
//! although the registry has never heard of it: the CA may be run elsewhere.

pub mod registry;

pub mod file;

pub mod ca;

pub mod enroll;

pub mod doors;
