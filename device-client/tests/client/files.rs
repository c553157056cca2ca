//! Files: sealed once, kept, and delivered like everything else.

use std::{fs, time::Duration};

use pithead_device_client::client::{FileError, FileState, StreamOptions, WhenFull};
use pithead_sealing::{envelope::ContentType, names::StreamName};

use crate::world::{LONG, World, folder_bytes, seqs, stream};

fn files(name: &str) -> StreamOptions {
    StreamOptions::files(StreamName::new(name).unwrap())
}

fn content() -> ContentType {
    ContentType::new("application/octet-stream").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_fits_an_envelope_is_one_and_a_device_of_files_says_how_far_it_has_come() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world.client(&[gateway.address]).stream(files("logs")).open().unwrap();
    let path = world.folder().join("log.txt");
    fs::write(&path, vec![7; 100_000]).unwrap();
    let mut ticket = client.files("logs").unwrap().send_file(&path, content(), None).unwrap();
    let identity = ticket.kept().await.unwrap();
    fs::remove_file(&path).unwrap();
    while !ticket.state().is_final() {
        ticket.changed().await.expect("the client is open");
    }
    assert!(matches!(ticket.state(), FileState::Delivered { .. }), "{:?}", ticket.state());
    assert_eq!(identity.seq.get(), 1);
    client.close(LONG).unwrap();
    let offered = gateway.gate.all_offered();
    assert_eq!((seqs(&offered, "logs"), seqs(&offered, "status").is_empty()), (vec![1], false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_waits_beside_the_log_and_is_there_after_a_restart() {
    let world = World::new();
    let client = world.client(&[World::nowhere()]).stream(files("logs")).open().unwrap();
    let path = world.folder().join("large");
    fs::write(&path, vec![7; 3 << 20]).unwrap();
    let logs = client.files("logs").unwrap();
    let identity = logs.send_file(&path, content(), None).unwrap().kept().await.unwrap();
    let beside = world.folder().join("outbox/logs/files");
    let bytes = folder_bytes(&beside);
    assert!(bytes > 3 << 20 && bytes < (3 << 20) + 10_000, "{bytes} bytes");
    let held = stream(&client, "logs");
    assert_eq!((held.held, held.waiting), (1, 1));
    drop(client);
    let client = world.client(&[World::nowhere()]).stream(files("logs")).open().unwrap();
    assert_eq!(folder_bytes(&beside), bytes);
    assert_eq!(stream(&client, "logs").waiting, 1);
    let verified = pithead_device_client::verify(&world.folder(), |_, _| {}).unwrap();
    assert_eq!(verified.iter().map(|stream| stream.damaged).sum::<u64>(), 0);
    fs::remove_file(beside.join(format!("{}-{}.envelope", identity.run, identity.seq))).unwrap();
    let verified = pithead_device_client::verify(&world.folder(), |_, _| {}).unwrap();
    assert_eq!(verified.iter().map(|stream| stream.damaged).sum::<u64>(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_budget_does_not_hold_is_refused_or_makes_the_oldest_go() {
    let world = World::new();
    let client = world
        .client(&[World::nowhere()])
        .stream(files("keep").budget_bytes(4 << 20))
        .stream(files("newest").budget_bytes(4 << 20).when_full(WhenFull::DropOldest))
        .open()
        .unwrap();
    let path = world.folder().join("large");
    fs::write(&path, vec![7; 3 << 20]).unwrap();
    for name in ["keep", "newest"] {
        client.files(name).unwrap().send_file(&path, content(), None).unwrap().kept().await.unwrap();
    }
    let refused = client.files("keep").unwrap().send_file(&path, content(), None).unwrap().kept().await;
    assert!(matches!(*refused.unwrap_err(), FileError::Full { .. }));
    client.files("newest").unwrap().send_file(&path, content(), None).unwrap().kept().await.unwrap();
    let newest = stream(&client, "newest");
    assert_eq!((newest.held, newest.dropped_envelopes, newest.waiting), (2, 1, 1), "{newest:?}");
    assert!(folder_bytes(&world.folder().join("outbox/newest/files")) < 4 << 20);
    fs::write(&path, vec![7; 5 << 20]).unwrap();
    let never = client.files("newest").unwrap().send_file(&path, content(), None).unwrap().kept().await;
    assert!(matches!(*never.unwrap_err(), FileError::Full { .. }), "nothing is dropped for what never fits");
    assert_eq!(stream(&client, "newest").waiting, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_fill_the_budget_and_a_full_one_is_said_and_holds_up_no_end() {
    let world = World::new();
    let client =
        world.client(&[World::nowhere()]).stream(files("logs").budget_bytes(1 << 20)).open().unwrap();
    let path = world.folder().join("log.txt");
    fs::write(&path, vec![7; 20_000]).unwrap();
    let logs = client.files("logs").unwrap();
    let mut kept = 0;
    let refused = loop {
        match logs.send_file(&path, content(), None).unwrap().kept().await {
            Ok(_) => kept += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(*refused, FileError::Full { .. }) && kept > 20, "{refused} after {kept}");
    assert_eq!(stream(&client, "logs").held, kept);
    client.close(Duration::ZERO).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_uses_no_number() {
    let world = World::new();
    let gateway = world.gateway().await;
    let client = world.client(&[gateway.address]).stream(files("logs")).open().unwrap();
    let logs = client.files("logs").unwrap();
    let gone = logs.send_file(&world.folder().join("gone"), content(), None).unwrap().kept().await;
    assert!(matches!(*gone.unwrap_err(), FileError::Source { .. }));
    let directory = logs.send_file(&world.folder(), content(), None).unwrap().kept().await;
    assert!(matches!(*directory.unwrap_err(), FileError::Source { .. }));
    let path = world.folder().join("log.txt");
    fs::write(&path, b"x").unwrap();
    let identity = logs.send_file(&path, content(), None).unwrap().kept().await.unwrap();
    assert_eq!(identity.seq.get(), 1);
    client.flush(LONG).await.unwrap();
    client.close(Duration::ZERO).unwrap();
}
