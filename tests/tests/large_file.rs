//! A file far larger than memory is allowed to be: sealed and opened by the real programs, in constant memory.
//!
//! 256 MiB; 2 GiB with `PITHEAD_LONG=1`.

use std::{fs::File, path::Path};

use crate::large::{hash_of_file, peak_memory_of, write_file};
use pithead_tests::{
    command,
    site::{Site, SiteOptions},
};

/// What a program may hold at most, in bytes of resident memory.
const MEMORY_MAX: u64 = 64 << 20;

/// Runs a program to its end and gives the most memory that it held.
async fn peak_memory(program: &Path, arguments: &[&str]) -> u64 {
    let running = command::start(program, arguments, &[], false).unwrap();
    let watching = tokio::spawn(peak_memory_of(running.pid().unwrap()));
    running.finish_within(10).await.unwrap().ok().unwrap();
    watching.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_sealed_and_opened_in_constant_memory() {
    let bytes = if pithead_tests::long() { 2 << 30 } else { 256 << 20 };
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let bundle = site.authority.bundle(pithead_tests::site::SITE).display().to_string();
    // Without a gateway: its key comes with the bundle.
    let device = site.enroll_with("truck-1", &["--bundle", &bundle]).await.unwrap();
    let path = |name: &str| site.folder().join(name);
    let (plain, sealed, opened) = (path("survey.bin"), path("survey.sealed"), path("survey.opened"));
    let written = write_file(&plain, bytes);

    let config = device.config().display().to_string();
    let [plain_text, sealed_text, opened_text] =
        [&plain, &sealed, &opened].map(|path| path.to_str().unwrap());
    let arguments = ["-c", &config, "seal", plain_text, "-O", sealed_text];
    let sealing = peak_memory(&site.programs().device(), &arguments).await;
    std::fs::remove_file(&plain).unwrap();
    let grown = sealed.metadata().unwrap().len() - bytes;
    assert!(grown < bytes / 1_000 + 4_096, "{grown} bytes more");

    let key = site.private_key().display().to_string();
    let arguments = ["open", sealed_text, "-o", opened_text, "--private-key", &key];
    let opening = peak_memory(&site.programs().decryptor(), &arguments).await;
    assert_eq!(opened.metadata().unwrap().len(), bytes);
    assert_eq!(hash_of_file(&opened), written);
    for (what, peak) in [("sealing", sealing), ("opening", opening)] {
        assert!(peak > 1 << 20, "{what} was not watched");
        assert!(peak < MEMORY_MAX, "{what} held {} MiB", peak >> 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_is_cut_leaves_nothing_in_clear() {
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let bundle = site.authority.bundle(pithead_tests::site::SITE).display().to_string();
    let device = site.enroll_with("truck-1", &["--bundle", &bundle]).await.unwrap();
    let path = |name: &str| site.folder().join(name);
    let (plain, sealed, opened) = (path("survey.bin"), path("survey.sealed"), path("survey.opened"));
    write_file(&plain, 8 << 20);
    let [plain_text, sealed_text, opened_text] =
        [&plain, &sealed, &opened].map(|path| path.to_str().unwrap());
    device.run(&["seal", plain_text, "-O", sealed_text]).await.unwrap().ok().unwrap();
    let file = File::options().write(true).open(&sealed).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();

    let key = site.private_key().display().to_string();
    let before = files(site.folder());
    let arguments = ["open", sealed_text, "-o", opened_text, "--private-key", &key];
    let refused = command::run(&site.programs().decryptor(), arguments, &[]).await.unwrap();
    assert_eq!(refused.code, Some(1));
    assert!(refused.refused_with("PH-2011", "ENVELOPE_TRUNCATED"), "{}", refused.stderr);
    assert_eq!(files(site.folder()), before, "nothing was left behind");
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}
