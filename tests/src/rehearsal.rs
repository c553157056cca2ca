//! Months in a moment: operating time that goes by in a stopped program's own state, for what takes a season in a mine.
//!
//! Nothing in the programs can turn their time. What they have on disk says how long they have operated, and that is moved
//! forward here by their own code, as if they had run and saved: a vehicle that is parked is left alone.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use pithead_device_client::state::{FileStore, StateStore as _};
use pithead_gateway::keys::store::{Found, Kept, Store};
use pithead_sealing::trust::{Clock, Device as Trust, UnixTime};

use crate::{authority, device::Device};

/// A day.
pub const DAY: Duration = Duration::from_secs(86_400);

/// So many days from now, as the authority's hidden `--now` takes it.
#[must_use]
pub fn in_days(days: u64) -> String {
    let UnixTime(now) = authority::now();
    (now + days * DAY.as_secs()).to_string()
}

/// The device, not running now, has operated for so much longer.
pub fn operate_device(device: &Device, time: Duration) -> anyhow::Result<()> {
    let mut store = FileStore::new(device.folder(), "trust");
    let record = store.load()?.context("the device is not enrolled")?;
    store.save(&operated(&record, time)?)?;
    Ok(())
}

/// The gateway with this data directory, not running now, has operated for so much longer.
pub fn operate_gateway(data: &Path, time: Duration) -> anyhow::Result<()> {
    let (mut store, found) = Store::open(&data.join("keys"))?;
    let Found::Whole(kept) = found else { anyhow::bail!("the gateway has no whole state: {found:?}") };
    let device = operated(&kept.device, time)?.into();
    store.save(&Kept { device, ..kept })?;
    Ok(())
}

fn operated(record: &[u8], time: Duration) -> anyhow::Result<Vec<u8>> {
    let trust = Trust::restore(record).context("the trust record")?;
    Ok(trust.encode(Clock::uptime(time.as_secs())))
}
