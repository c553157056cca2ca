//! `bucket`: bundles that wait in a bucket, through one replica into its output; beside the same envelopes out of a gateway's spool,
//! over a call, in the same run. The bucket is of the test S3, in this process: it is no S3, and no network is between.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use pithead_hop::bundle::{Content, Origin, Packer, SpoolId};
use pithead_hop::identity::GatewayName;
use pithead_proto::ingest::v1::{Assurance, Hop};
use pithead_spool::{Lane, Position};
use pithead_tests::{
    forge::{Claim, Forge},
    program::{Program, free_address},
    s3::TestS3,
    site::{KEY_ARN, SITE, Site},
};
use serde::Serialize;

use crate::{
    backlog, process,
    report::{Row, rounded},
};

/// Bytes of the envelopes of one bundle.
const BUNDLE: u64 = 8 << 20;
const BUCKET: &str = "pits";
const SIZE: usize = 1 << 10;
const DEVICES: usize = 16;
/// Patience with a replica that stands still.
const STANDSTILL: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Envelopes of 1 KiB that wait.
    #[arg(long, default_value_t = 200_000)]
    envelopes: usize,
}

#[derive(Debug, Serialize)]
struct Facts {
    envelopes_s: f64,
    seconds: f64,
    envelopes: usize,
    bundles: usize,
    decryptor_cpu_us: f64,
    output_bytes: u64,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let (over_call, mut site) = backlog::over_call(arguments.envelopes).await?;
    site.stop().await?;
    let s3 = TestS3::start().await?;
    let bundles = publish(&site, &s3, arguments.envelopes)?;
    let admin = free_address()?;
    let config = configure(&site, &s3, admin)?;
    let began = Instant::now();
    let log = site.folder().join("replica.log");
    let run = ["run".as_ref(), "-c".as_ref(), config.as_os_str()];
    let mut replica =
        Program::start(&site.programs().decryptor(), &run, &TestS3::environment(), admin, &log)?;
    replica.ready().await?;
    let (mut seen, mut moved) = (0.0, Instant::now());
    while seen < arguments.envelopes as f64 {
        let now = replica.admin().metric("pithead_decryptor_records_total").await?;
        if now > seen {
            (seen, moved) = (now, Instant::now());
        }
        ensure!(moved.elapsed() < STANDSTILL, "it stands still at {seen} of {}", arguments.envelopes);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Until its last output is whole: an envelope that is decided and nowhere to be read is not drained.
    replica
        .until("has written all output", async |admin| {
            let unfinished = admin.get("/statusz").await.ok().and_then(|reply| {
                let status: serde_json::Value = serde_json::from_str(&reply.body).ok()?;
                status["bucket"]["ledgers"][0]["unfinished"].as_u64()
            });
            unfinished == Some(0)
        })
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(replica.pid().context("it has ended")?)?;
    let output_bytes = replica.admin().metric("pithead_sink_object_bytes_total").await? as u64;
    replica.stop().await?;
    let facts = Facts {
        envelopes_s: rounded(arguments.envelopes as f64 / seconds),
        seconds: rounded(seconds),
        envelopes: arguments.envelopes,
        bundles,
        decryptor_cpu_us: rounded(cpu * 1e6 / arguments.envelopes as f64),
        output_bytes,
    };
    let megabytes = |envelopes_s: f64| envelopes_s * SIZE as f64 / 1e6;
    Row::alone("bucket-drain", megabytes(arguments.envelopes as f64 / seconds), "MB/s", facts)
        .against("the same out of a gateway's spool, over a call", megabytes(over_call))
        .print(arguments.json)
}

fn configure(site: &Site, s3: &TestS3, admin: std::net::SocketAddr) -> anyhow::Result<std::path::PathBuf> {
    let folder = site.folder().join("replica");
    fs::create_dir_all(folder.join("data"))?;
    let (bundle, key) = (site.folder().join("gateway/bundle.pb"), site.private_key());
    let config = folder.join("decryptor.toml");
    let text = format!(
        "[decryptor]\ndata_dir = \"data\"\n[source]\nkind = \"s3\"\nurl = \"s3://{BUCKET}/sealed\"\nendpoint = \"{0}\"\npoll = \"1s\"\n\
         [[site]]\nname = \"{SITE}\"\n[keys]\nbundles = [\"{1}\"]\n\
         [[unwrap.local]]\narn = \"{KEY_ARN}\"\nprivate_key = \"{2}\"\n\
         [sink]\nkind = \"objects\"\nurl = \"s3://{BUCKET}/cloud\"\nendpoint = \"{0}\"\n[admin]\nlisten = \"{admin}\"\n",
        s3.url(),
        bundle.display(),
        key.display(),
    );
    fs::write(&config, text)?;
    Ok(config)
}

/// Puts so many envelopes into a bucket, as a gateway would; gives the number of bundles.
fn publish(site: &Site, s3: &TestS3, envelopes: usize) -> anyhow::Result<usize> {
    let forge = Forge::new(&site.authority)?;
    let names: Vec<String> = (0..DEVICES).map(|device| format!("truck-{device}")).collect();
    let lines = names.iter().map(|name| forge.line(Claim { run: 1 << 40, ..Claim::of(name) }));
    let mut lines: Vec<_> = lines.collect::<Result<_, _>>()?;
    let origin = Origin {
        site: pithead_sealing::Site::new(SITE)?,
        gateway: GatewayName::new("edge-9")?,
        spool: SpoolId::new([9; 16]),
        lane: Lane::First,
    };
    let plaintext = vec![0x5a; SIZE];
    let (mut packer, mut bundles) = (Packer::new(origin.clone(), BUNDLE), 0);
    for place in 0..envelopes {
        let (line, seq) = (&mut lines[place % DEVICES], (place / DEVICES) as u64 + 1);
        let sealed = line.seal(seq, &plaintext)?;
        let hop = Hop {
            gateway: "edge-9".into(),
            received_us: 1_795_392_000_000_000 + place as u64,
            assurance: Assurance::Vouched as i32,
            ..Hop::default()
        };
        let position = Position(place as u64);
        if packer.push(position, std::slice::from_ref(&hop), Content::Here(sealed.clone())).is_err() {
            let full = std::mem::replace(&mut packer, Packer::new(origin.clone(), BUNDLE));
            put(s3, full)?;
            bundles += 1;
            packer.push(position, &[hop], Content::Here(sealed))?;
        }
    }
    put(s3, packer)?;
    Ok(bundles + 1)
}

fn put(s3: &TestS3, packer: Packer) -> anyhow::Result<()> {
    let packed = packer.finish().context("an empty bundle")?;
    let object: Vec<u8> = packed.chunks().flat_map(|chunk| chunk.to_vec()).collect();
    s3.put(BUCKET, &format!("sealed/{}", packed.name), object);
    Ok(())
}
