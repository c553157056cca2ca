//! `run`: puts the two paths together, keeps them going, and takes them apart in order.
//!
//! Everything that can be wrong with what was configured is found before the first device is served. From then on
//! nothing that fails ends the program: it says so, and goes on with what it has.
//!
//! Order of stopping: not ready, intake, relay, spool, admin; each with its own limit.

pub mod directory;
pub mod material;

mod neighbours;
mod owning;
mod reload;
mod serving;
mod stopping;

use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError, recent::Recent, reload::ReloadDesk, stop::Signals};
use pithead_proto::errors::v1::ErrorReason;

use crate::config::Config;
use directory::DataDir;
use material::Material;
pub(crate) use owning::joining;
use reload::Reloader;
use serving::Serving;
pub(crate) use serving::server_name;

/// Runs until it is told to stop. What it logs is in `recent` as well.
///
/// # Errors
/// Why it could not start.
pub fn main(path: &Path, recent: Recent) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let material = Material::load(&config)?;
    let data = DataDir::open(&config.gateway.data_dir)?;
    let failed = |error: std::io::Error| ProgramError::new(ErrorReason::Internal, error.to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let ended = runtime.block_on(async {
        let signals = Signals::listen().map_err(failed)?;
        run(path, config, material, data, signals, recent).await
    });
    // Every part had its limit; what hangs in the disk's driver beyond it must not keep the program.
    runtime.shutdown_background();
    ended
}

async fn run(
    path: &Path,
    config: Config,
    material: Material,
    data: DataDir,
    mut signals: Signals,
    recent: Recent,
) -> Result<ExitCode, ProgramError> {
    for warning in material.warnings() {
        tracing::warn!(event = "tls.warning", warning);
    }
    let (desk, mut orders) = ReloadDesk::open();
    let mut serving =
        Serving::start(&config, material, &data, signals.stop.clone(), desk.clone(), recent).await?;
    let mut reloader = Reloader::new(path.to_owned(), config, desk.last);
    loop {
        tokio::select! {
            () = signals.stop.cancelled() => break,
            () = signals.reloads.next() => drop(reloader.turn(&mut serving).await),
            Some(answer) = orders.recv() => {
                // Whoever asked may have gone away; it was done all the same.
                let _ = answer.send(reloader.turn(&mut serving).await);
            }
        }
    }
    // Nobody is answered any more, and whoever waits is told so.
    drop(orders);
    serving.stop(&reloader.in_force().stop).await;
    // The lock goes last: until here nobody else may touch the directory.
    drop(data);
    Ok(ExitCode::OK)
}
