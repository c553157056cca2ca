//! `cargo demo -- --keep`: the site that it leaves running.

use std::{process::Stdio, time::Duration};

use pithead_tests::program::{Admin, PATIENCE};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

#[tokio::test]
async fn the_site_that_is_kept_runs_on_has_a_wan_to_cut_and_ends_well_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--devices", "2", "--records", "400", "--keep"])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut keyboard = demo.stdin.take().unwrap();
    let mut said = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut until = async |what: &str| {
        let reading = async {
            while let Some(line) = said.next_line().await.unwrap() {
                if line.contains(what) {
                    return line;
                }
            }
            panic!("it ended before it said {what:?}");
        };
        timeout(PATIENCE * 4, reading).await.unwrap_or_else(|_| panic!("it does not say {what:?}"))
    };
    until("The site goes on").await;
    let console = until("http://").await;
    let address = console.split("//").nth(1).unwrap().trim_end_matches('/').parse().unwrap();
    let admin = Admin(address);
    until("trucks").await;

    let stored = async || admin.metric("pithead_ingest_envelopes_total").await.unwrap();
    let before = stored().await;
    wait_for(async || stored().await > before).await;
    keyboard.write_all(b"\n").await.unwrap();
    until("cut;").await;
    wait_for(async || admin.metric("pithead_spool_records").await.unwrap() > 0.0).await;
    keyboard.write_all(b"\n").await.unwrap();
    until("healed;").await;
    wait_for(async || admin.metric("pithead_relay_up").await.unwrap() == 1.0).await;

    kill_process(Pid::from_raw(demo.id().unwrap().try_into().unwrap()).unwrap(), Signal::INT).unwrap();
    let sent = until("all acknowledged").await;
    until("run -c gateway/gateway.toml").await;
    assert!(timeout(PATIENCE, demo.wait()).await.unwrap().unwrap().success(), "{sent}");
    assert!(admin.get("/livez").await.is_err(), "its gateway still runs");
    assert!(
        folder.path().join("gateway/gateway.toml").is_file()
            && folder.path().join("cloud/out.jsonl").is_file()
    );
}

async fn wait_for(condition: impl AsyncFn() -> bool) {
    let looking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, looking).await.expect("it does not come to that");
}
