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
async fn a_folder_that_cannot_be_made_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let opened = Store::open(&Settings::new(format!("file://{}/below", file.display()))).await;
    assert!(matches!(opened, Err(SettingsError::Folder { .. })));
}
