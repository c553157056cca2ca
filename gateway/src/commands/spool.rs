//! `spool stat`: how full the spool is.

use std::io::Write;
use std::path::Path;

use pithead_hop::program::{ExitCode, ProgramError};
use serde_json::{Value, json};

use super::admin_client::statusz;
use crate::cli::Output;
use crate::clock;
use crate::config::Config;
use crate::envelopes::lanes;
use crate::envelopes::spool::{self, EnvelopeSpool};
use crate::run::directory::DataDir;

/// Asks the running gateway; if none runs, opens the spool itself.
///
/// # Errors
/// When there is neither.
pub fn stat(path: &Path, output: Output, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let config = Config::load(path)?;
    let facts = match statusz(config.admin.listen) {
        Ok(status) => status["spool"].clone(),
        Err(_) => {
            let data = DataDir::open(&config.gateway.data_dir)?;
            let (spool, _) = spool::open(&data.spool(), &config.spool)?;
            let facts = facts(&spool, clock::wall_ms());
            // Opened only to look: the closing mark is all that it may write.
            let _ = spool.close();
            facts
        }
    };
    let text = match output {
        Output::Json => super::json(&facts),
        Output::Table => super::table(&facts),
    };
    super::done(out, &text)
}

/// The spool's numbers, for status pages.
pub(crate) fn facts(spool: &EnvelopeSpool, now_ms: u64) -> Value {
    let stats = spool.stats();
    let age = |oldest: Option<u64>| oldest.map(|oldest| now_ms.saturating_sub(oldest) / 1000);
    let mut facts = json!({
        "records": stats.records,
        "bytes": stats.bytes,
        "allocated_bytes": stats.allocated_bytes,
        "capacity_bytes": stats.capacity_bytes,
        "available_bytes": spool.available_bytes(),
        "oldest_age_s": age(stats.oldest_ms),
        "appended_records": stats.appended_records,
        "syncs": stats.syncs,
        "failed_syncs": stats.failed_syncs,
        "corrupt_records": stats.corrupt_records,
        "disk_full": stats.disk_full,
    });
    // Flat, as the rest is, so that a line of the table is a fact.
    for lane in &stats.lanes {
        let name = lanes::name(lane.lane);
        facts[format!("{name}_lane_records")] = json!(lane.records());
        facts[format!("{name}_lane_bytes")] = json!(lane.bytes);
        facts[format!("{name}_lane_oldest_age_s")] = json!(age(lane.oldest_ms));
    }
    facts
}
