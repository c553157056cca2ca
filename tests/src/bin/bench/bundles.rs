//! `bundles`: how fast a backlog leaves into an object store, beside plain PUTs of as many bytes, in objects of the same size, to the
//! same server in the same run. The server is the test S3, in this process: it is no S3, and both are held against it alike.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use pithead_hop::objects::{Created, Credentials, Settings, Store};
use pithead_tests::s3::TestS3;
use pithead_tests::site::Site;
use serde::Serialize;

use crate::{
    backlog::fill,
    process,
    report::{Row, rounded},
    site::Yard,
};

const BUNDLE_BYTES: usize = 8 << 20;
const BUCKET: &str = "pits";
/// The last bundle is not full: what it waits for company is in the time that is measured.
const LAST_WAITS: &str = "100ms";
/// How often a gateway that empties is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Patience with one that stands still.
const STANDSTILL: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Envelopes that wait.
    #[arg(long, default_value_t = 200_000)]
    envelopes: usize,
    /// Bytes of each.
    #[arg(long, default_value_t = 1 << 10)]
    size: usize,
}

#[derive(Debug, Serialize)]
struct Facts {
    envelopes: usize,
    bytes: usize,
    seconds: f64,
    objects: usize,
    envelopes_per_s: f64,
    gateway_cpu_us: f64,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let mut site = Yard { spool: "16GiB", relay: false }.start().await?;
    let measured = relayed(arguments, &mut site).await;
    measured.map_err(|error| error.context(site.log_tails()))?;
    site.stop().await
}

async fn relayed(arguments: &Arguments, site: &mut Site) -> anyhow::Result<()> {
    fill(site, arguments.size, arguments.envelopes, 1).await?;
    site.stop_gateway().await?;
    let s3 = TestS3::start().await?;
    let before = raw(&s3, arguments.envelopes * arguments.size).await?;
    let config = site.gateway_config();
    std::fs::write(
        config.with_file_name("s3"),
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\n",
    )?;
    let mut text = std::fs::read_to_string(&config)?;
    text.push_str(&format!(
        "\n[relay]\nkind = \"object_store\"\n\n[relay.store]\nurl = \"s3://{BUCKET}\"\nendpoint = \"{}\"\ncredentials = \"s3\"\n\
         bundle_delay = \"{LAST_WAITS}\"\n",
        s3.url()
    ));
    std::fs::write(&config, text)?;
    site.start_gateway().await?;
    // The spool is open and the relay begins: it is empty when all of it is in the bucket and written down.
    let (pid, admin) = {
        let gateway = site.gateway()?;
        (gateway.pid().context("the gateway does not run")?, gateway.admin())
    };
    // The first look is the beginning: what has left before it is not counted.
    let first = admin.metric("pithead_spool_records").await?;
    ensure!(first > 0.0, "everything left before the first look; wait with more --envelopes");
    let (began, cpu) = (Instant::now(), process::cpu_seconds(pid)?);
    let (mut last, mut moved) = (first, Instant::now());
    loop {
        let waiting = admin.metric("pithead_spool_records").await?;
        if waiting == 0.0 {
            break;
        }
        if waiting < last {
            (last, moved) = (waiting, Instant::now());
        }
        ensure!(moved.elapsed() < STANDSTILL, "{waiting} envelopes wait, and none leaves");
        tokio::time::sleep(LOOK).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(pid)? - cpu;
    let bundles = s3.objects(BUCKET).into_iter().filter(|(key, _)| key.starts_with("bundles/"));
    let sizes: Vec<usize> = bundles.map(|(_, object)| object.bytes.len()).collect();
    let bytes: usize = sizes.iter().sum();
    ensure!(bytes > arguments.envelopes * arguments.size, "{bytes} bytes are not all of it");
    let after = raw(&s3, bytes).await?;
    let facts = Facts {
        envelopes: arguments.envelopes,
        bytes,
        seconds: rounded(seconds),
        objects: sizes.len(),
        envelopes_per_s: rounded(first / seconds),
        gateway_cpu_us: rounded(cpu * 1e6 / first),
    };
    let counted = bytes as f64 * first / arguments.envelopes as f64;
    Row::alone("bundles", counted / 1e6 / seconds, "MB/s", facts)
        .against("plain PUTs of 8 MiB, one after another", f64::midpoint(before, after))
        .print(arguments.json)
}

/// Puts so many bytes in objects of the size of a bundle, one after another; gives MB/s.
async fn raw(s3: &TestS3, bytes: usize) -> anyhow::Result<f64> {
    let settings = Settings {
        endpoint: Some(s3.url()),
        credentials: Credentials::Fixed { id: "a".into(), secret: "b".to_owned().into() },
        ..Settings::new("s3://raw")
    };
    let store = Store::open(&settings).await?;
    let object = Bytes::from(vec![0x5a; BUNDLE_BYTES]);
    let begun = s3.objects("raw").len();
    let began = Instant::now();
    for number in 0..bytes.div_ceil(BUNDLE_BYTES) {
        let created = store.create(&format!("{}", begun + number), [object.clone()]).await?;
        ensure!(created == Created::New, "an object of that name is there");
    }
    let rounded = bytes.div_ceil(BUNDLE_BYTES) * BUNDLE_BYTES;
    Ok(rounded as f64 / 1e6 / began.elapsed().as_secs_f64())
}
