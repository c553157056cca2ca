//! A store in a folder: what a store promises, where there is no server between.
#![cfg(feature = "objects")]
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use pithead_hop::objects::{Created, Fault, Settings, SettingsError, Store};

async fn store(folder: &std::path::Path) -> Store {
    Store::open(&Settings::new(format!("file://{}", folder.display()))).await.unwrap()
}

#[tokio::test]
async fn an_object_is_created_once_and_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let chunks = [Bytes::from_static(b"one "), Bytes::from_static(b"two")];
    assert_eq!(store.create("bundles/a", chunks).await.unwrap(), Created::New);
    assert_eq!(store.create("bundles/a", [Bytes::from_static(b"three")]).await.unwrap(), Created::Taken);
    assert_eq!(store.read_range("bundles/a", 0..7).await.unwrap(), "one two");
    assert_eq!(store.read_range("bundles/a", 4..100).await.unwrap(), "two");
    assert_eq!(store.size("bundles/a").await.unwrap(), 7);
    assert_eq!(store.read_range("bundles/b", 0..6).await.unwrap_err().fault, Fault::NotFound);
    store.probe().await.unwrap();
    store.probe().await.unwrap();
}

#[tokio::test]
async fn an_object_that_is_written_piece_by_piece_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let mut writer = store.write("large/a").await.unwrap();
    writer.piece(Bytes::from_static(b"one ")).await.unwrap();
    assert_eq!(store.size("large/a").await.unwrap_err().fault, Fault::NotFound);
    writer.piece(Bytes::from_static(b"two")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(store.read_range("large/a", 0..10).await.unwrap(), "one two");
    let mut writer = store.write("large/b").await.unwrap();
    writer.piece(Bytes::from_static(b"one ")).await.unwrap();
    writer.abort().await;
    assert_eq!(store.size("large/b").await.unwrap_err().fault, Fault::NotFound);
    assert!(store.parts().is_none());
}

#[tokio::test]
async fn what_a_killed_attempt_has_left_goes_when_the_next_one_begins() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let large = folder.path().join("large");
    std::fs::create_dir(&large).unwrap();
    for left in ["a#1", "a#2", "b#1"] {
        std::fs::write(large.join(left), b"unfinished").unwrap();
    }
    let mut writer = store.write("large/a").await.unwrap();
    writer.piece(Bytes::from_static(b"one")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(store.read_range("large/a", 0..10).await.unwrap(), "one");
    let mut names: Vec<_> =
        std::fs::read_dir(large).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "b#1"], "what is another object's stays");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_said_and_never_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for path in [file.clone(), file.join("below"), folder.path().join("away")] {
        let opened = Store::open(&Settings::new(format!("file://{}", path.display()))).await;
        assert!(matches!(opened, Err(SettingsError::Folder { .. })), "{}", path.display());
    }
    assert!(!folder.path().join("away").exists());
    // What is mounted goes away while it is used.
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let store = store(&out).await;
    std::fs::remove_dir(&out).unwrap();
    let one = || [Bytes::from_static(b"one")];
    assert_eq!(store.create("bundles/a", one()).await.unwrap_err().fault, Fault::NoBucket);
    assert_eq!(store.write("large/a").await.unwrap_err().fault, Fault::NoBucket);
    assert!(!out.exists());
    std::fs::create_dir(&out).unwrap();
    assert_eq!(store.create("bundles/a", one()).await.unwrap(), Created::New);
}
