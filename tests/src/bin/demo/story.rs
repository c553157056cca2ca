//! The story, step by step. Each step causes something, waits until the programs say that it is so, and shows it.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, ensure};
use pithead_tests::{
    binaries::Binaries,
    device::{Device, Sending, Summary},
    ledger::{Ledger, hash_of},
    site::{GATEWAY, KEY_ARN, SITE, Site, SiteOptions},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    Arguments,
    paper::{Paper, count, grouped},
    play, records,
};

pub(crate) const STREAM: &str = "can";
const BITS: usize = 3072;

/// A device, what it has to say, and what its processes said of themselves.
pub(crate) struct Truck {
    pub(crate) device: Device,
    pub(crate) records: Vec<String>,
    summaries: Vec<Summary>,
}

impl Truck {
    /// The records of one of the story's four parts.
    fn part(&self, part: usize) -> &[String] {
        let at = |part| self.records.len() * part / 4;
        &self.records[at(part)..at(part + 1)]
    }
}

/// Tells it, until `end`. False if the books do not balance.
pub(crate) async fn tell(
    arguments: &Arguments,
    mut paper: Paper,
    end: &CancellationToken,
) -> anyhow::Result<bool> {
    paper.title("Pithead: one mine site on loopback, with real TLS, throw-away keys and no cloud account");
    paper.line(
        "\n   trucks ══TLS══> gateway ══TLS══[ WAN ]══TLS══> decryptor ──> plaintext\n   \
         seal            on site, keeps                  cloud, opens",
    );
    let records = usize::try_from(arguments.records)?;
    let records = records::gather(arguments.devices, records, arguments.recording.as_deref())?;
    paper.line("\n   (building the programs if they are not built yet)");
    Binaries::get()?;
    // What a build takes is not the demo's time.
    let began = Instant::now();

    if let Some(folder) = &arguments.keep {
        let empty = fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
        ensure!(empty, "{} is not empty; --keep needs a folder of its own", folder.display());
        fs::create_dir_all(folder)?;
    }
    let folder = arguments.keep.as_deref().map(fs::canonicalize).transpose()?;
    let options = SiteOptions { bits: BITS, standby: true, folder: folder.clone(), ..SiteOptions::default() };
    let mut site = Site::create(options).await.context("making the site")?;
    let told = end.run_until_cancelled(acts(&mut site, records, &mut paper)).await;
    let (balanced, trucks) = match told.unwrap_or_else(|| Err(anyhow::anyhow!("interrupted"))) {
        Ok(told) => told,
        Err(error) => {
            paper.bad(format_args!("\nThe demo failed: {error:#}"));
            (false, Vec::new())
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    if balanced {
        paper.line(format_args!("\nAll numbers add up. {seconds:.1} s."));
    }
    let mut played = Ok(());
    if balanced && folder.is_some() {
        played = play::go_on(&mut site, &trucks, !arguments.no_browser, paper, end).await;
        if let Err(error) = &played {
            paper.bad(format_args!("The site did not go on well: {error:#}"));
        }
    }
    if !balanced {
        paper.line(format_args!("\n{}", site.log_tails()));
    }
    let stopped = site.stop().await;
    if let Err(error) = &stopped {
        paper.bad(format_args!("The programs did not stop well: {error:#}"));
    }
    match folder {
        Some(folder) => {
            site.take_the_link_out()?;
            by_hand(&site, &folder, paper);
        }
        None if balanced => {
            paper.line("cargo demo -- --keep DIR leaves a site running, to watch and to play with.\n")
        }
        None => paper.line(format_args!("\nNumbers are off; see above. {seconds:.1} s.\n")),
    }
    Ok(balanced && stopped.is_ok() && played.is_ok())
}

async fn acts(
    site: &mut Site,
    records: Vec<Vec<String>>,
    paper: &mut Paper,
) -> anyhow::Result<(bool, Vec<Truck>)> {
    let mut trucks = make(site, records, paper).await?;
    trust(&trucks, paper).await?;
    ordinary_day(site, &mut trucks, paper).await?;
    wan_down(site, &mut trucks, paper).await?;
    gateway_killed(site, &mut trucks, paper).await?;
    healed(site, &mut trucks, paper).await?;
    let balanced = books(site, &trucks, paper).await?;
    Ok((balanced, trucks))
}

async fn make(site: &mut Site, records: Vec<Vec<String>>, paper: &mut Paper) -> anyhow::Result<Vec<Truck>> {
    paper.step(
        "A site is made",
        "The authority signs which public key may be sealed to. Its keys are neither on the gateway nor on a truck.\n\
         The private half of the data key never leaves the cloud; here a file of the decryptor's, in production KMS.",
    );
    site.start_decryptor().await?;
    site.start_gateway().await?;
    let mut trucks = Vec::new();
    for (number, records) in (1..).zip(records) {
        let device = site.enroll(&format!("truck-{number:02}")).await?;
        site.add_key_of(&device, &["--required"]).await?;
        trucks.push(Truck { device, records, summaries: Vec::new() });
    }
    site.until_registry_is_read().await?;
    paper.fact("data key", format_args!("RSA {BITS}, {KEY_ARN}"));
    paper.fact("gateway", format_args!("{GATEWAY} at {SITE}, listening on {}", site.gateway_address()));
    paper.fact("its console", format_args!("http://{}/ while this runs", site.gateway_admin()));
    paper.fact("decryptor", format_args!("{}, behind a wire that can be cut", site.decryptor_address()));
    paper.fact(
        "trucks",
        format_args!(
            "{}, each with a certificate of the site's CA, and a key that the cloud knows",
            trucks.len()
        ),
    );
    Ok(trucks)
}

async fn trust(trucks: &[Truck], paper: &mut Paper) -> anyhow::Result<()> {
    paper.step(
        "Each truck fetches the key from the gateway and verifies it",
        "It believes the authority's signature, not the gateway: a gateway that names another key is refused.",
    );
    for truck in trucks {
        let key = truck.device.key().await?;
        let fingerprint = key.fingerprint.context("the device has no key")?;
        paper.fact(truck.device.name(), format_args!("SHA-256 {}", in_blocks(&fingerprint)));
    }
    Ok(())
}

async fn ordinary_day(site: &mut Site, trucks: &mut [Truck], paper: &mut Paper) -> anyhow::Result<()> {
    paper.step(
        "An ordinary hour",
        "Records are batched, sealed on the truck before they touch its disk, and acknowledged when they are on the\n\
         gateway's. From there they go to the cloud.",
    );
    paper.fact("a record", trucks[0].part(0).first().map_or("", String::as_str));
    send_all(trucks, 0).await?;
    site.until_relayed().await?;
    let here: Vec<Summary> = trucks.iter().filter_map(|truck| truck.summaries.last().copied()).collect();
    let records = here.iter().map(|summary| summary.records).sum();
    let acknowledged = here.iter().map(|summary| summary.acknowledged).sum();
    paper.fact(
        "sealed",
        format_args!("{}, {} acknowledged", count(records, "record"), count(acknowledged, "envelope")),
    );
    paper.fact("delivered", count(site.delivered()?.records(), "record"));
    paper.line("\n   who can read what:");
    paper.fact("  truck", "its own records; it holds no secret that opens an envelope");
    paper.fact("  gateway, WAN", "who sent how much when, never what");
    paper.fact(
        "  decryptor",
        "the records, each signed by its truck: not even the gateway can send in its name",
    );
    Ok(())
}

async fn wan_down(site: &mut Site, trucks: &mut [Truck], paper: &mut Paper) -> anyhow::Result<()> {
    paper.step(
        "The WAN is cut",
        "That is a normal state. Trucks are served as before, and an acknowledgement means the same.",
    );
    let before = site.delivered()?.records();
    site.link.cut();
    site.gateway()?
        .until("notices the cut", async |admin| metric_is(admin, "pithead_relay_up", 0.0).await)
        .await?;
    send_all(trucks, 1).await?;
    let admin = site.gateway()?.admin();
    let status = admin.status().await?;
    let ready = admin.get("/readyz").await?.status;
    let here: u64 =
        trucks.iter().filter_map(|truck| truck.summaries.last()).map(|summary| summary.acknowledged).sum();
    paper
        .fact("trucks", format_args!("{} acknowledged, on the gateway's disk", count(here, "more envelope")));
    let ready = if ready == 200 { "ready" } else { "NOT READY" };
    paper.fact("gateway", format_args!("{ready}; relay: {}", words(&status["dimensions"]["relay"])));
    let waiting = admin.metric("pithead_spool_records").await? as u64;
    paper.fact("waiting", format_args!("{} in the spool", count(waiting, "envelope")));
    let record = trucks[0].part(1).first().context("a truck has nothing to say")?;
    let bytes = search(&site.gateway_data(), record.as_bytes())?;
    paper.fact("its disk", format_args!("{} MiB searched for `{record}`: not there in clear", bytes >> 20));
    let after = site.delivered()?.records();
    paper.fact("delivered", format_args!("still {}", count(after, "record")));
    ensure!(ready == "ready", "the gateway is not ready without its WAN");
    ensure!(after == before, "records arrived through a wire that is cut");
    Ok(())
}

async fn gateway_killed(site: &mut Site, trucks: &mut [Truck], paper: &mut Paper) -> anyhow::Result<()> {
    paper.step(
        "The gateway is killed (SIGKILL) while the trucks are sending, and started again",
        "What was acknowledged is on its disk. What was not is in the trucks' outboxes, and is sent again as the same\n\
         bytes: what arrives twice is recognised by its identity.",
    );
    let stored = "pithead_ingest_envelopes_total";
    let before = site.gateway()?.admin().metric(stored).await?;
    let mut sending: Vec<Sending> = Vec::new();
    for truck in &mut *trucks {
        let mut device = truck.device.start_sending(STREAM)?;
        for line in &truck.part(2)[..truck.part(2).len() / 2] {
            device.record(line).await?;
        }
        device.flush().await?;
        sending.push(device);
    }
    let more =
        async |admin: pithead_tests::program::Admin| admin.metric(stored).await.is_ok_and(|now| now > before);
    site.gateway()?.until("takes the first of them", more).await?;
    site.kill_gateway().await?;
    for (truck, device) in trucks.iter().zip(&mut sending) {
        for line in &truck.part(2)[truck.part(2).len() / 2..] {
            device.record(line).await?;
        }
        device.flush().await?;
    }
    let down = Instant::now();
    site.start_gateway().await?;
    paper.fact("gateway", format_args!("ready again after {:.1} s", down.elapsed().as_secs_f64()));
    let log = site.gateway()?.log_text();
    let recovered = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).rfind(|line| {
        let event = line.pointer("/fields/event").or_else(|| line.get("event"));
        event.and_then(Value::as_str) == Some("spool.recovered")
    });
    if let Some(records) = recovered
        .as_ref()
        .and_then(|line| line.pointer("/fields/records").or_else(|| line.get("records"))?.as_u64())
    {
        paper.fact("its spool", format_args!("{} found whole on the disk", count(records, "envelope")));
    }
    let mut finishing = tokio::task::JoinSet::new();
    for (at, device) in sending.into_iter().enumerate() {
        finishing.spawn(async move { (at, device.finish().await) });
    }
    let (mut acknowledged, mut again) = (0, 0);
    while let Some(finished) = finishing.join_next().await {
        let (at, summary) = finished?;
        let summary = summary.with_context(|| trucks[at].device.name().to_owned())?;
        acknowledged += summary.acknowledged;
        again += summary.duplicates;
        trucks[at].summaries.push(summary);
    }
    paper.fact(
        "trucks",
        format_args!(
            "{} acknowledged, {} of them sent again and recognised",
            count(acknowledged, "more envelope"),
            again
        ),
    );
    Ok(())
}

async fn healed(site: &mut Site, trucks: &mut [Truck], paper: &mut Paper) -> anyhow::Result<()> {
    paper.step(
        "The WAN is healed",
        "The gateway sends what waits, in order, and forgets only what the cloud has made durable.",
    );
    let waiting = site.gateway()?.admin().metric("pithead_spool_records").await? as u64;
    site.link.heal();
    let healed = Instant::now();
    send_all(trucks, 3).await?;
    site.until_relayed().await?;
    paper.fact(
        "delivered",
        format_args!(
            "{} that waited, and what came meanwhile, within {:.1} s",
            count(waiting, "envelope"),
            healed.elapsed().as_secs_f64()
        ),
    );
    Ok(())
}

async fn books(site: &mut Site, trucks: &[Truck], paper: &mut Paper) -> anyhow::Result<bool> {
    paper.step(
        "The ledger",
        "Counted from what each process printed, from the decryptor's metrics and from the plaintext in its sink.",
    );
    let delivered = site.delivered()?;
    paper.line("\n              records   envelopes     acked   delivered   SHA-256 of all records");
    let mut all_same = true;
    for truck in trucks {
        let mut sum = Summary::default();
        for summary in &truck.summaries {
            sum.records += summary.records;
            sum.envelopes += summary.envelopes;
            sum.acknowledged += summary.acknowledged;
        }
        let (sent, got) = (hash_of(&truck.records), delivered.records_of(truck.device.name()));
        let (got_count, got) = (got.len() as u64, hash_of(got));
        let same = sent == got;
        all_same &= same;
        paper.line(format_args!(
            "   {:<10} {:>8} {:>11} {:>9} {:>11}   {} {}",
            truck.device.name(),
            grouped(sum.records),
            grouped(sum.envelopes),
            grouped(sum.acknowledged),
            grouped(got_count),
            &got[..16],
            if same { "as sent" } else { "NOT AS SENT" },
        ));
    }
    let summaries: Vec<Summary> = trucks.iter().flat_map(|truck| truck.summaries.iter().copied()).collect();
    let ledger = Ledger::draw_up(&summaries, &delivered, site.decryptor()?.admin()).await?;
    let devices = &ledger.devices;
    paper.line("");
    paper.fact(
        "sealed",
        format_args!("{} in {}", count(devices.records, "record"), count(devices.envelopes, "envelope")),
    );
    paper.fact("acknowledged", count(devices.acknowledged, "envelope"));
    paper.fact(
        "delivered",
        format_args!(
            "{} in {}",
            count(ledger.delivered_records, "record"),
            count(ledger.delivered_envelopes, "envelope")
        ),
    );
    paper.fact(
        "duplicates",
        format_args!(
            "{} in the sink ({} sent again and recognised)",
            grouped(ledger.repeated),
            grouped(devices.duplicates + ledger.resends)
        ),
    );
    paper.fact("holes", grouped(ledger.holes));
    let signed = delivered.with_assurance("signed");
    paper.fact("signed", format_args!("{} by their truck", count(signed, "record")));
    paper.fact(
        "unwraps",
        format_args!(
            "{} for {}: one per session; with KMS, so many Decrypt calls",
            grouped(ledger.unwraps),
            count(devices.records, "record"),
        ),
    );
    let mut faults = ledger.faults();
    if !all_same {
        faults.push("plaintext in the sink is not what was sent".into());
    }
    if signed != ledger.delivered_records {
        faults.push(format!("{signed} of {} records are signed", ledger.delivered_records));
    }
    let sent: u64 = trucks.iter().map(|truck| truck.records.len() as u64).sum();
    if devices.records != sent {
        faults.push(format!("the devices say {} records, and {sent} were given to them", devices.records));
    }
    if ledger.unwraps > devices.sessions {
        faults.push(format!("{} unwraps for {} sessions", ledger.unwraps, devices.sessions));
    }
    paper.line("");
    if faults.is_empty() {
        paper.good("sealed = acknowledged = delivered, each once, without holes");
    }
    for fault in &faults {
        paper.bad(format_args!("OFF: {fault}"));
    }
    Ok(faults.is_empty())
}

/// Every truck sends one part of its records, all at once, and waits until the gateway has acknowledged them.
async fn send_all(trucks: &mut [Truck], part: usize) -> anyhow::Result<()> {
    let mut sending = tokio::task::JoinSet::new();
    for (at, truck) in trucks.iter().enumerate() {
        let (device, records) = (truck.device.clone(), truck.part(part).to_vec());
        sending.spawn(async move { (at, device.send(STREAM, &records).await) });
    }
    while let Some(sent) = sending.join_next().await {
        let (at, summary) = sent?;
        let summary = summary.with_context(|| trucks[at].device.name().to_owned())?;
        trucks[at].summaries.push(summary);
    }
    Ok(())
}

async fn metric_is(admin: pithead_tests::program::Admin, name: &str, value: f64) -> bool {
    admin.metric(name).await.is_ok_and(|is| is == value)
}

fn words(lamp: &Value) -> String {
    format!("{}, {}", lamp["level"].as_str().unwrap_or("?"), lamp["words"].as_str().unwrap_or("?"))
}

/// `3f2a 81c0 ...`: as people compare it.
fn in_blocks(fingerprint: &str) -> String {
    let blocks: Vec<&str> =
        fingerprint.as_bytes().chunks(8).filter_map(|block| str::from_utf8(block).ok()).collect();
    blocks.join(" ")
}

/// Looks for `needle` in every file below `folder`; an error if it is there, and otherwise how many bytes were searched.
fn search(folder: &Path, needle: &[u8]) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            bytes += search(&path, needle)?;
            continue;
        }
        let content = fs::read(&path)?;
        bytes += content.len() as u64;
        let first = needle[0];
        let found =
            content.iter().enumerate().any(|(at, byte)| *byte == first && content[at..].starts_with(needle));
        ensure!(!found, "{} holds a record in clear", path.display());
    }
    Ok(bytes)
}

fn by_hand(site: &Site, folder: &Path, paper: Paper) {
    let programs = site.programs();
    paper.title("The site stays. To run it by hand, each in a terminal of its own:");
    paper.line(format_args!(
        "\n   cd {}\n   {} run -c cloud/decryptor.toml\n   {} run -c gateway/gateway.toml\n   \
         echo 'hello from the pit' | {} -c devices/truck-01/device.toml send -\n   \
         tail -n 1 cloud/out.jsonl\n   console: http://{}/\n",
        folder.display(),
        programs.decryptor().display(),
        programs.gateway().display(),
        programs.device().display(),
        site.gateway_admin(),
    ));
}
