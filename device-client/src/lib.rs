#![warn(missing_docs)]
//! What a device embeds: trust, sealing, an outbox that survives a power cut, and the way to the gateway.
//!
//! ```text
//! bundle ─> keys ─> VerifiedKey ─┐
//! records ─> batch ──────────────┴> sealer ─> SealedEnvelope ─> outbox ══> uplink ══> gateway
//! ```
//!
//! From what the owner carries to the device, to the gateway's receipt:
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example(records: Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
//! use std::{fs, path::Path};
//!
//! use pithead_device_client::{
//!     clock::DeviceClock,
//!     device::Device,
//!     hop::{keys::KeyFile, tls::Pem},
//!     sealer::Content,
//!     sealing::{Site, StreamName, envelope::DeviceSigningKey},
//!     spool::Options,
//!     uplink::{Gateways, Progress, RefusedArea, Uplink},
//! };
//! use tokio::sync::watch;
//! use tokio_util::sync::CancellationToken;
//!
//! // Once: the trust root by hand, and a bundle to begin with.
//! let folder = Path::new("/var/lib/vehicle/pithead");
//! let site: Site = "pit-7".parse()?;
//! let mut keys = Device::enroll(folder, "acme-mining/prod", &site, &fs::read("root-1.cose")?)?;
//! let bundle = KeyFile::decode(fs::read("pit-7.pb")?.into())?.bundle;
//! keys.apply(&bundle.newer_than(keys.trust().root_version()))?;
//! drop(keys); // A folder has one writer.
//!
//! // At every start. What the gateway says of keys is verified; if it says nothing, the key at hand goes on.
//! let mut device =
//!     Device::open(folder, &site, "truck-7".parse()?, Options::outbox(), DeviceClock::start())?;
//! let gateways = Gateways {
//!     endpoints: vec!["gateway.pit-7.example:7443".parse()?],
//!     server_name: None,
//!     ca: Pem::read(Path::new("ca.pem"))?,
//!     identity: Some((Pem::read(Path::new("device.pem"))?, Pem::read(Path::new("device.key"))?)),
//!     options: Default::default(),
//!     retry: Default::default(),
//! };
//! // With an identity key (P-256, PKCS#8 in DER) every session is signed: the cloud registers its public half.
//! device.sealer_mut().sign_with(DeviceSigningKey::from_pkcs8_der(&fs::read("device.key.der")?)?);
//! let uplink = Uplink::new(gateways, device.sealer().keys())?;
//! if let Err(error) = uplink.refresh(device.sealer_mut().keys_mut()).await {
//!     eprintln!("the key at hand goes on: {error}");
//! }
//!
//! // VerifiedKey -> session -> SealedEnvelope -> outbox: on disk here when `durable` has resolved.
//! let stream: StreamName = "can".parse()?;
//! let position = device.append(&stream, &Content::batch(), &records)?.durable().await?;
//!
//! // Delivered by a task of yours, for as long as you like; everything before `settled` has its answer.
//! let (progress, mut watched) = watch::channel(Progress::default());
//! let (outbox, refused) = (device.outbox().clone(), RefusedArea::new(folder.join("refused")));
//! let (stop, on_its_way) = (CancellationToken::new(), uplink.clone());
//! let stopped = stop.clone();
//! let delivery =
//!     tokio::spawn(async move { on_its_way.deliver(&outbox, &refused, &progress, &stopped).await });
//! watched.wait_for(|progress| progress.settled > position).await?;
//! stop.cancel();
//! delivery.await??;
//!
//! // Or one envelope without an outbox, for a receipt: Stored or Duplicate, on the gateway's disk. The bytes are yours to
//! // keep until then; the same ones may be sent again.
//! let envelope = device.sealer_mut().seal(&stream, &Content::batch(), &records)?;
//! let receipt = uplink.submit(&envelope).await?;
//! println!("{}: {receipt:?}", envelope.identity());
//! device.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! The modules stand in the order in which data meets them. Without the default features there is no network and no
//! async runtime: trust, sealing and the outbox, for those who carry the bytes themselves.

pub mod clock;
pub mod state;

pub mod keys;
pub mod sequence;

pub mod batch;
pub mod sealer;

pub mod outbox;

pub mod device;
#[cfg(feature = "client")]
pub mod uplink;

/// The transport, whose endpoints, certificates and limits the [`uplink`] is given.
#[cfg(feature = "client")]
pub use pithead_hop as hop;
/// Names, trust and envelopes, as they appear all over this crate.
pub use pithead_sealing as sealing;
/// The log under the [`outbox`], for its options and positions.
pub use pithead_spool as spool;

/// The largest envelope that is sent in one piece, until uploads exist: the gateway's default inline limit.
pub const INLINE_LIMIT_BYTES: u64 = 1024 * 1024;
