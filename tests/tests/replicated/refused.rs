//! What the cloud will never take outlives the gateway whose relay met the refusal, and goes out from the next one when the cause is
//! mended.

use std::path::PathBuf;

use serde_json::Value;

use super::*;

const EMBEDDED: &str = "engine = \"embedded\"";

impl World {
    /// Names of what a gateway has in its folder, by its own list.
    async fn list(&self, at: usize) -> Vec<String> {
        let list: Vec<Value> = self.command(at, &["refused", "list", "-o", "json"]).await.json().unwrap();
        list.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    }

    fn refused_folder(&self, at: usize) -> PathBuf {
        match at {
            0 => self.site.gateway_data().join("refused"),
            _ => self.second.config().with_file_name("data").join("refused"),
        }
    }

    async fn until_refused(&self, at: usize, count: f64) {
        let began = Instant::now();
        while !matches!(self.admins()[at].metric("pithead_refused_records").await, Ok(held) if held == count)
        {
            assert!(began.elapsed() < PATIENCE, "never {count}\n{}", self.site.log_tails());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Entries of the stream: the owner's fence is the one message that is none.
    async fn in_stream(&self) -> u64 {
        let client = async_nats::connect(self.nats.client(0).to_string()).await.unwrap();
        let stream = jetstream::new(client).get_stream(format!("pithead-{SITE}-refused")).await.unwrap();
        stream.cached_info().state.messages - 1
    }
}

fn records() -> Vec<String> {
    (0..30).map(|at| format!("truck 1 record {at:06}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cloud_refuses_is_with_the_next_owner_when_a_gateway_is_lost_and_goes_out_from_there() {
    let Some(mut world) = World::start(3).await else { return };
    let owner = world.owner().await;
    let other = 1 - owner;
    // A truck whose key was revoked by mistake: the gateways cannot tell, and the cloud refuses.
    let identity = world.site.identity_of("truck-1").unwrap();
    let ca = world.site.ca.path().to_owned();
    let (device, enrolled) =
        world.site.enroll_as("truck-1", &ca, Some(&identity), &["-o", "json"]).await.unwrap();
    let told: Value = enrolled.ok().unwrap().json().unwrap();
    let kid = told["signing_kid"].as_str().unwrap().to_owned();
    world.site.register(&device, &[]).await.unwrap();
    world.site.device_command(&["revoke", &kid]).await.unwrap().ok().unwrap();
    world.site.until_registry_is_read().await.unwrap();
    device.send("can", &records()).await.unwrap();
    world.relayed().await;
    let names = world.list(owner).await;
    assert!(!names.is_empty());
    assert_eq!(world.in_stream().await, names.len() as u64);
    world.until_refused(owner, names.len() as f64).await;

    // The other one has nothing of it yet, does not count it, and says whose list counts.
    world.until_refused(other, 0.0).await;
    let said = world.command(other, &["refused", "list"]).await.ok().unwrap().stdout;
    assert!(said.contains("stands by") && said.contains(["edge-1", "edge-2"][owner]), "{said}");
    let said = world.command(other, &["refused", "retry", &names[0]]).await;
    assert!(said.code == Some(1) && said.stdout.contains("stands by"), "{said:?}");

    // The machine is lost, disk and all.
    world.kill_gateway(owner).await;
    std::fs::remove_dir_all(world.refused_folder(owner)).unwrap();
    assert_eq!(world.owner().await, other);
    world.until_refused(other, names.len() as f64).await;
    assert_eq!(world.list(other).await, names);

    // Mended, it goes out from there, and is gone from both.
    let name = format!("{SITE}/truck-1");
    world.site.device_command(&["remove", &name, "--key", &kid]).await.unwrap().ok().unwrap();
    world.site.register(&device, &[]).await.unwrap();
    world.site.until_registry_is_read().await.unwrap();
    let said = world.command(other, &["refused", "retry", "--all"]).await.ok().unwrap().stdout;
    assert_eq!(said.matches("waits in the spool again").count(), names.len(), "{said}");
    world.relayed().await;
    let delivered = world.site.delivered().unwrap();
    let mut came: Vec<&[u8]> = delivered.records_of("truck-1");
    came.sort();
    assert_eq!(came, records().iter().map(String::as_bytes).collect::<Vec<_>>());
    assert_eq!((delivered.with_assurance("signed"), delivered.holes(), delivered.repeated()), (30, 0, 0));
    world.until_refused(other, 0.0).await;
    assert_eq!((world.in_stream().await, world.list(other).await), (0, vec![]));

    // And the one that was lost finds nothing when it is the owner again.
    world.launch_gateway(owner);
    world.program(owner).ready().await.unwrap();
    match other {
        0 => world.site.stop_gateway().await.unwrap(),
        _ => world.second.stop().await.unwrap(),
    }
    assert_eq!(world.owner().await, owner);
    let began = Instant::now();
    while !world.program(owner).log_text().contains("refused.in_line") {
        assert!(began.elapsed() < PATIENCE, "it is not brought in line\n{}", world.site.log_tails());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(world.list(owner).await.is_empty());
    world.launch_gateway(other);
    world.program(other).ready().await.unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_site_refused_before_it_was_replicated_is_put_into_the_stream_that_it_gets_at_its_next_start()
{
    let Some(binary) = binary() else { return };
    let folder = tempfile::Builder::new().prefix("pithead-nats-").tempdir().unwrap();
    let one = NatsOptions { servers: 1, ..NatsOptions::default() };
    let nats = Nats::start(binary, folder.path(), one).await.unwrap();
    // With the embedded engine first.
    let gateway_lines = vec![("spool", EMBEDDED.to_owned()), ("spool.jetstream", nats.section())];
    let mut site = Site::start(SiteOptions { gateway_lines, ..SiteOptions::default() }).await.unwrap();
    let forge = pithead_tests::forge::Forge::new(&site.authority).unwrap();
    let client = pithead_tests::client::Client::of(&site, "truck-1").await.unwrap();
    let poison = forge.poison(pithead_tests::forge::Claim::of("truck-1"), b"one").unwrap();
    client.submit(poison).await.unwrap();
    let refused = async |admin: Admin| admin.metric("pithead_refused_records").await.unwrap() == 1.0;
    site.gateway().unwrap().until("sets it aside", refused).await.unwrap();
    site.until_relayed().await.unwrap();
    site.stop_gateway().await.unwrap();

    Site::edit(&site.gateway_config(), EMBEDDED, "engine = \"jetstream\"").unwrap();
    site.start_gateway().await.unwrap();
    let began = Instant::now();
    let client = async_nats::connect(nats.client(0).to_string()).await.unwrap();
    let context = jetstream::new(client);
    loop {
        let stream = context.get_stream(format!("pithead-{SITE}-refused")).await.unwrap();
        // The fence, and the entry.
        if stream.cached_info().state.messages == 2 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "never there\n{}", site.log_tails());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    site.gateway().unwrap().until("counts it", refused).await.unwrap();
    // A site that had four streams gets the fifth at its next start.
    site.stop_gateway().await.unwrap();
    context.delete_stream(format!("pithead-{SITE}-refused")).await.unwrap();
    site.start_gateway().await.unwrap();
    site.gateway().unwrap().until("has it again", refused).await.unwrap();
    let stream = context.get_stream(format!("pithead-{SITE}-refused")).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 2);
    site.stop().await.unwrap();
}
