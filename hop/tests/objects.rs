//! A store in a folder: what a store promises, where there is no server between.
#![expect(clippy::disallowed_methods, reason = "as a mount that falls off, and comes back")]

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
async fn what_is_there_is_listed_below_a_folder_and_what_is_removed_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    assert_eq!(store.list("copies/set/", 9).await.unwrap(), []);
    for name in ["copies/set/b/two", "copies/set/a/one", "copies/setting/x", "other"] {
        store.create(name, [Bytes::from_static(b"bytes")]).await.unwrap();
    }
    let below = folder.path().join("copies/set/a");
    for left in ["one#1", "half#1", "half#2", "no#number"] {
        std::fs::write(below.join(left), b"unfinished").unwrap();
    }
    let mut listed = store.list("copies/set/", 9).await.unwrap();
    listed.sort();
    let all = ["copies/set/a/no#number", "copies/set/a/one", "copies/set/b/two"];
    let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    assert!(all[1..].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("half") || name.contains("setting")), "{names:?}");
    assert_eq!(store.list("copies/set/", 1).await.unwrap().len(), 1);

    let mut unfinished = store.unfinished("copies/set/").await.unwrap();
    unfinished.sort();
    unfinished.dedup();
    assert_eq!(unfinished, ["copies/set/a/half", "copies/set/a/one"]);
    store.remove_unfinished("copies/set/a/half").await.unwrap();
    assert_eq!(store.unfinished("copies/set/").await.unwrap(), ["copies/set/a/one"]);
    for _ in 0..2 {
        store.remove("copies/set/a/one").await.unwrap();
    }
    assert_eq!(store.size("copies/set/a/one").await.unwrap_err().fault, Fault::NotFound);
    // Away is not empty.
    let aside = tempfile::tempdir().unwrap();
    std::fs::rename(folder.path(), aside.path().join("aside")).unwrap();
    assert_eq!(store.list("copies/set/", 9).await.unwrap_err().fault, Fault::NoBucket);
    assert_eq!(store.remove("copies/set/b/two").await.unwrap_err().fault, Fault::NoBucket);
    std::fs::rename(aside.path().join("aside"), folder.path()).unwrap();
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
