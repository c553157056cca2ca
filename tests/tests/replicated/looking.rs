//! Commands that look at the folder of a gateway whose spool is not in it.

use serde_json::Value;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn no_command_passes_a_folder_without_the_spool_for_a_spool_without_envelopes() {
    let Some(mut world) = World::start(1).await else { return };
    let owner = world.owner().await;
    let other = 1 - owner;
    let mut truck = Truck::start(&world, "truck-1", owner).await;
    world.site.link.cut();
    truck.record(100);
    truck.flush().await;

    let stick = world.folder.path().join("stick");
    let to = stick.display().to_string();
    for at in [owner, other] {
        for arguments in [&["spool", "verify"][..], &["spool", "export", "--to", &to]] {
            let said = world.command(at, arguments).await;
            let refused = said.code == Some(2) && said.refused_with("PH-3001", "REQUEST_INVALID");
            assert!(refused && said.stderr.contains("JetStream"), "{}{}", said.stdout, said.stderr);
        }
        assert!(!stick.exists(), "it would pass for an export");
    }
    let known: Value = world.command(owner, &["spool", "stat", "-o", "json"]).await.json().unwrap();
    assert!(known["records"].as_u64().is_some_and(|records| records > 0), "{known:#}");
    let known: Value = world.command(other, &["spool", "stat", "-o", "json"]).await.json().unwrap();
    assert!(known["records"].is_null() && known["owner_here"] == false, "{known:#}");
    world.kill_gateway(other).await;
    let said = world.command(other, &["spool", "stat"]).await;
    assert_eq!(said.code, Some(69), "{}{}", said.stdout, said.stderr);
    assert!(said.stderr.contains("JetStream"), "{}", said.stderr);

    world.launch_gateway(other);
    world.site.link.heal();
    balance(&mut world, &[truck]).await;
    world.stop().await;
}
