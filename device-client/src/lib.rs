#![warn(missing_docs)]
//! What a device embeds: trust, sealing, an outbox that survives a power cut, and the way to the gateway.
//!
//! ```text
//! bundle ─> keys ─> VerifiedKey ─┐
//! records ─> batch ──────────────┴> sealer ─> SealedEnvelope ─> outbox ══> uplink ══> gateway
//! ```
//!
//! The two decisions that only the owner can make are the gateways and the trust anchor; the rest has defaults:
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{fs, path::Path, time::Duration};
//!
//! use pithead_device_client::{
//!     client::{Client, StreamOptions, TrustAnchor, WhenFull},
//!     hop::tls::Pem,
//!     sealing::envelope::{ContentType, DeviceSigningKey},
//!     uplink::Gateways,
//! };
//!
//! let endpoints = vec!["gateway.pit-7.example:7443".parse()?];
//! let gateways = Gateways::new(endpoints, Pem::read(Path::new("ca.pem"))?)
//!     .identity(Pem::read(Path::new("device.pem"))?, Pem::read(Path::new("device.key"))?);
//! // From the authority, by a way that is not the gateway.
//! let anchor = TrustAnchor::new("acme-mining/prod", fs::read("root-1.cose")?);
//! let client = Client::builder("/var/lib/vehicle/pithead", "pit-7".parse()?, "truck-7".parse()?, gateways, anchor)
//!     .stream(StreamOptions::records("can".parse()?).priority(150).when_full(WhenFull::DropOldest))
//!     .stream(StreamOptions::files("logs".parse()?))
//!     // So that the cloud knows the truck without believing the gateway: P-256, PKCS#8 in DER.
//!     .sign_with(DeviceSigningKey::from_pkcs8_der(&fs::read("identity.der")?)?)
//!     .open()?;
//!
//! // In the control loop: returns at once, whatever the radio and the disk do.
//! let can = client.stream("can").expect("it was configured");
//! if let Err(refused) = can.record(b"18FEF100 FF FF FF 00 00 FF FF FF") {
//!     eprintln!("not taken: {refused}");
//! }
//! let logs = client.files("logs").expect("it was configured");
//! let log = logs.send_file(Path::new("/var/log/shift.log"), ContentType::new("text/plain")?, None)?;
//!
//! // At the end of a shift: everything at a gateway, or on the disk and said why.
//! if let Err(error) = client.flush_blocking(Duration::from_secs(60)) {
//!     eprintln!("{error}");
//! }
//! println!("{:?} {:?}", log.state(), client.status());
//! client.close(Duration::from_secs(5))?;
//! # Ok(())
//! # }
//! ```
//!
//! Those who carry the bytes themselves need no client: a [`sealer::Sealer`] makes envelopes, and an `Uplink` sends one for a
//! receipt.
//!
//! The modules stand in the order in which data meets them. Without the default features there is no network, no outbox and
//! no async runtime: trust and sealing alone, 77 crates, ours included, none of them tokio or tonic. `client` alone has 201,
//! `zstd` adds three, and `cli`, which an embedder leaves out, twenty more.

pub mod clock;
pub mod state;

pub mod keys;
pub mod sequence;

pub mod batch;
pub mod sealer;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
mod outbox;
#[cfg(feature = "client")]
pub mod uplink;

#[cfg(feature = "client")]
pub use outbox::{
    CloseError as OutboxCloseError, MIN_BUDGET_BYTES, OutboxError, OutboxRecovery, StreamSurvey, SurveyError,
    survey, verify,
};
/// The transport, whose endpoints, certificates and limits the [`uplink`] is given.
#[cfg(feature = "client")]
pub use pithead_hop as hop;
/// Names, trust and envelopes, as they appear all over this crate.
pub use pithead_sealing as sealing;
/// The log under the outbox, for what recovery says.
#[cfg(feature = "client")]
pub use pithead_spool as spool;

/// The largest envelope that is sent in one piece: the gateway's default inline limit. What is larger is uploaded.
pub const INLINE_LIMIT_BYTES: u64 = 1024 * 1024;
