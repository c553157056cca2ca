//! What is wrong on the machine itself: configuration, ports, disks.

use std::{net::TcpListener, path::Path, process::Command};

use pithead_tests::{
    command::{self, Finished},
    ledger::hash_of,
    program::Admin,
    site::{Site, SiteOptions},
};

/// The three programs' files, each with a key of it and a misspelt one.
async fn with_typo(site: &Site, program: &str) -> Finished {
    let (config, from, to) = match program {
        "gateway" => (site.gateway_config(), "data_dir", "data_dri"),
        "decryptor" => (site.decryptor_config(), "private_key", "privat_key"),
        _ => (site.device("truck-1").config(), "endpoints", "endpoint"),
    };
    Site::edit(&config, from, to).unwrap();
    match program {
        "gateway" => site.gateway_command(&["run"]).await.unwrap(),
        "decryptor" => site.decryptor_command(&["run", "-c", config.to_str().unwrap()]).await.unwrap(),
        _ => site.device("truck-1").run(&["key"]).await.unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_key_is_shown_with_a_caret_and_what_was_meant() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    site.enroll("truck-1").await.unwrap();
    for (program, meant) in [("gateway", "data_dir"), ("decryptor", "private_key"), ("device", "endpoints")] {
        let refused = with_typo(&site, program).await;
        assert!(refused.refused_with("PH-6001", "CONFIG_INVALID"), "{program}: {}", refused.stderr);
        assert_eq!(refused.code, Some(78), "{program}");
        assert!(
            refused.stderr.contains(&format!("did you mean `{meant}`?")),
            "{program}: {}",
            refused.stderr
        );
        assert!(refused.stderr.lines().any(|line| line.contains("^^^")), "{program}: {}", refused.stderr);
    }
    assert!(is_empty(&site.gateway_data()) && is_empty(&site.decryptor_data()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_is_named() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    for (config, from, to) in [
        (site.gateway_config(), "\"root.cose\"", "\"no-such-root.cose\""),
        (site.decryptor_config(), "\"site-ca.pem\"", "\"no-such-ca.pem\""),
    ] {
        Site::edit(&config, from, to).unwrap();
        let refused = match config == site.gateway_config() {
            true => site.gateway_command(&["run"]).await.unwrap(),
            false => site.decryptor_command(&["run", "-c", config.to_str().unwrap()]).await.unwrap(),
        };
        assert!(refused.refused_with("PH-6002", "CONFIG_UNREADABLE"), "{}", refused.stderr);
        assert!(refused.stderr.contains(to.trim_matches('"')), "{}", refused.stderr);
        assert_eq!(refused.code, Some(78));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_said_before_anything_is_touched() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let _gateway_port = TcpListener::bind(site.gateway_address()).unwrap();
    let _decryptor_port = TcpListener::bind(site.decryptor_address()).unwrap();
    let gateway = site.gateway_command(&["run"]).await.unwrap();
    let config = site.decryptor_config();
    let decryptor = site.decryptor_command(&["run", "-c", config.to_str().unwrap()]).await.unwrap();
    for (refused, address) in [(gateway, site.gateway_address()), (decryptor, site.decryptor_address())] {
        assert!(refused.refused_with("PH-6003", "PORT_TAKEN"), "{}", refused.stderr);
        assert!(refused.stderr.contains(&address.to_string()), "{}", refused.stderr);
        assert!(refused.stderr.contains("what to do:"), "{}", refused.stderr);
        assert_eq!(refused.code, Some(75));
    }
    assert!(!site.gateway_data().join("spool/0").exists());
    assert!(is_empty(&site.decryptor_data()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_is_used_by_one_at_a_time() {
    let mut site = Site::start(SiteOptions::default()).await.unwrap();
    let free = pithead_tests::program::free_address().unwrap();
    let environment =
        [("PITHEAD_INGEST__LISTEN", free.to_string()), ("PITHEAD_ADMIN__LISTEN", "127.0.0.1:0".into())];
    let programs = [
        (site.programs().gateway(), site.gateway_config()),
        (site.programs().decryptor(), site.decryptor_config()),
    ];
    for (program, config) in programs {
        let arguments = ["run", "-c", config.to_str().unwrap()];
        let refused = command::run(&program, arguments, &environment).await.unwrap();
        assert!(refused.refused_with("PH-6005", "DATA_DIR_LOCKED"), "{}", refused.stderr);
        assert_eq!(refused.code, Some(75));
    }
    let device = site.enroll("truck-1").await.unwrap();
    let held = device.start_sending("can").unwrap();
    let opened = device.folder().join("outbox").join("can");
    let began = std::time::Instant::now();
    while !opened.exists() && began.elapsed() < pithead_tests::program::PATIENCE {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let refused = device.run(&["send", "/dev/null"]).await.unwrap();
    assert!(refused.refused_with("PH-6005", "DATA_DIR_LOCKED"), "{}", refused.stderr);
    device.run(&["outbox", "stat"]).await.unwrap().ok().expect("who only looks is not in the way");
    held.finish().await.unwrap();
    // The first ones have noticed nothing.
    assert_eq!(site.gateway().unwrap().admin().get("/readyz").await.unwrap().status, 200);
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_is_missing_or_read_only_is_said_at_once() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    // Nobody can make files in /proc, root included.
    for bad in ["no-such-folder", "/proc"] {
        for (config, program) in [
            (site.gateway_config(), site.programs().gateway()),
            (site.decryptor_config(), site.programs().decryptor()),
        ] {
            let good = std::fs::read_to_string(&config).unwrap();
            Site::edit(&config, "data_dir = \"data\"", &format!("data_dir = \"{bad}\"")).unwrap();
            let refused = command::run(&program, ["run", "-c", config.to_str().unwrap()], &[]).await.unwrap();
            assert!(refused.refused_with("PH-6004", "DATA_DIR_UNWRITABLE"), "{}", refused.stderr);
            assert!(
                refused.stderr.contains(bad) && refused.stderr.contains("what to do:"),
                "{}",
                refused.stderr
            );
            assert_eq!(refused.code, Some(73));
            std::fs::write(&config, good).unwrap();
        }
    }
    assert!(
        !site.folder().join("gateway/no-such-folder").exists(),
        "a disk that is not mounted is not papered over"
    );
}

/// Records of 64 KiB, so that a small disk fills fast.
fn records(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{at:08} {}", "x".repeat(64 * 1024))).collect()
}

/// More than fits is sent while the WAN is away: what fits is acknowledged, the rest waits on the device, and nothing is
/// lost when the WAN is back.
async fn fills_and_drains(site: &mut Site) {
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    let device = site.enroll("truck-1").await.unwrap();
    device.key().await.unwrap();
    site.link.cut();
    let records = records(500);
    let mut sending = device.start_sending_with("can", &["--timeout", "1s"]).unwrap();
    for record in &records {
        sending.record(record).await.unwrap();
    }
    sending.flush().await.unwrap();
    let full = async |admin: Admin| {
        let refused = admin.metric_where("pithead_ingest_refusals_total", "SPOOL_FULL").await.unwrap_or(0.0);
        refused > 0.0
    };
    site.gateway().unwrap().until("is full", full).await.unwrap();
    let stopped = sending.end().await.unwrap();
    assert_eq!(stopped.code, Some(75), "what waits is told: {}", stopped.stderr);
    let waits: serde_json::Value = stopped.json().unwrap();
    let (acknowledged, waiting) =
        (waits["acknowledged"].as_u64().unwrap(), waits["waiting"].as_u64().unwrap());
    assert!(acknowledged > 0 && waiting > 0, "{waits}");
    assert!(stopped.stderr.contains("SPOOL_FULL"), "the device says why: {}", stopped.stderr);
    let admin = site.gateway().unwrap().admin();
    let lamp = admin.status().await.unwrap()["dimensions"]["disk"].clone();
    assert_ne!(lamp["level"], "ok", "{lamp}");
    assert_eq!(
        admin.metric("pithead_spool_records").await.unwrap() as u64,
        acknowledged,
        "all that was acknowledged"
    );

    site.link.heal();
    // First the spool, so that the device need not be told once more to come back later.
    site.until_relayed().await.unwrap();
    let drained = device.run(&["send", "/dev/null", "--timeout", "60s"]).await.unwrap();
    drained.ok().unwrap();
    assert_eq!(device.outbox().await.unwrap(), 0);
    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    let got: Vec<&[u8]> =
        delivered.records_of("truck-1").into_iter().filter(|record| !record.is_empty()).collect();
    assert_eq!(hash_of(got), hash_of(records));
    let healthy = async |admin: Admin| admin.metric("pithead_healthy").await.is_ok_and(|lamps| lamps == 4.0);
    site.gateway().unwrap().until("is well again", healthy).await.unwrap();
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_full_makes_devices_wait_and_loses_nothing() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    Site::edit(&site.gateway_config(), "max_size = \"2GiB\"", "max_size = \"30MiB\"").unwrap();
    fills_and_drains(&mut site).await;
}

/// A small disk of its own for as long as this lives.
struct SmallDisk<'a>(&'a Path);

impl SmallDisk<'_> {
    /// None where this user may not mount.
    fn mount<'p>(at: &'p Path, size: &str) -> Option<SmallDisk<'p>> {
        let option = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &option, "tmpfs"]).arg(at).output().ok()?;
        mounted.status.success().then_some(SmallDisk(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // Lazily: a program that is being killed may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_makes_devices_wait_and_loses_nothing() {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    let data = site.gateway_data();
    let Some(_disk) = SmallDisk::mount(&data, "24M") else {
        eprintln!("SKIPPED: this user may not mount a tmpfs; run as root for a disk that is really full");
        return;
    };
    fills_and_drains(&mut site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_disk_is_full_at_the_start_says_so() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let data = site.gateway_data();
    let Some(_disk) = SmallDisk::mount(&data, "1M") else {
        eprintln!("SKIPPED: this user may not mount a tmpfs; run as root for a disk that is really full");
        return;
    };
    std::fs::write(data.join("ballast"), vec![7; 1 << 20]).ok();
    let refused = site.gateway_command(&["run"]).await.unwrap();
    assert_eq!(refused.code, Some(73), "{}", refused.stderr);
    assert!(refused.stderr.contains("error[PH-600"), "{}", refused.stderr);
    assert!(refused.stderr.contains("what to do:"), "{}", refused.stderr);
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}
