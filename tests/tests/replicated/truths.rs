//! Two gateways of a site that were given two truths: each finds it out from the other, before any truck has met both.

use pithead_tests::authority::sign;
use pithead_tests::forge::{last_statement, successor, write_bundle};
use serde_json::Value;

use super::*;

/// The statements that the gateways of the site serve, as one of them has heard of it.
async fn heard_of(admin: Admin) -> Vec<String> {
    let status = admin.status().await.unwrap_or_default();
    let gateways = status["gateways"].as_array().into_iter().flatten();
    gateways.filter_map(|one| one["digest"].as_str().map(str::to_owned)).collect()
}

async fn sees_two_truths(admin: Admin, expected: f64) -> bool {
    admin.metric("pithead_key_split_view").await.is_ok_and(|split| split == expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_were_given_two_truths_both_say_so_before_a_truck_meets_them() {
    let Some(mut world) = World::start(1).await else { return };
    for at in 0..2 {
        // It has compared, and found nothing.
        let agree = async |admin: Admin| {
            let heard = heard_of(admin).await;
            heard.len() == 2 && heard[0] == heard[1]
        };
        world.program(at).until("has heard of one statement from both", agree).await.unwrap();
        assert!(sees_two_truths(world.admins()[at], 0.0).await);
    }

    // Somebody with the statement key gives each gateway a statement of its own, under one number.
    let stolen = world.site.authority.stolen_statement_key().unwrap();
    let last = last_statement(&world.site.authority).unwrap();
    for (at, name) in ["one", "another"].into_iter().enumerate() {
        let mut fields = successor(&last);
        fields.ticket = Some(format!("{name} truth"));
        let bundle = world.folder.path().join(format!("{name}.pb"));
        write_bundle(&world.site.authority, sign(&fields, &stolen).unwrap(), &[], &bundle).unwrap();
        let imported = world.command(at, &["key", "import", bundle.to_str().unwrap()]).await;
        imported.ok().unwrap();
    }
    let mut truths = Vec::new();
    for at in 0..2 {
        let split = async |admin: Admin| sees_two_truths(admin, 1.0).await;
        world.program(at).until("sees two truths", split).await.unwrap();
        let status = world.admins()[at].status().await.unwrap();
        assert_eq!(status["keys"]["sequence"], 2, "it goes on with its own");
        truths.push(status["keys"]["digest"].as_str().unwrap().to_owned());
    }
    assert_ne!(truths[0], truths[1]);
    for (at, other) in ["edge-2", "edge-1"].into_iter().enumerate() {
        let says = |lamp: &Value| {
            let words = lamp["words"].as_str().unwrap_or_default();
            let names = words.contains(&format!("split view, PH-1015: {other} serves another statement"));
            lamp["level"] == "degraded" && names && truths.iter().all(|truth| words.contains(truth))
        };
        let shows =
            async |admin: Admin| admin.status().await.is_ok_and(|status| says(&status["dimensions"]["keys"]));
        world.program(at).until("says who serves what", shows).await.unwrap();
        assert!(world.program(at).log_text().contains("key.split_view"));
    }

    // One of them takes leave, and nobody contradicts the other.
    world.second.stop().await.unwrap();
    let alone = async |admin: Admin| sees_two_truths(admin, 0.0).await;
    world.site.gateway().unwrap().until("is contradicted by nobody", alone).await.unwrap();
    world.site.stop().await.unwrap();
}
