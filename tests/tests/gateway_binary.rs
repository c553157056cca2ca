//! What the gateway is not able to do, asked of the program that is shipped.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use pithead_tests::{
    binaries::{self, Binaries, workspace},
    command,
};
use serde_json::Value;

#[tokio::test]
async fn the_opener_is_not_compiled_in() {
    let gateway = Binaries::get().unwrap().gateway();
    let version: Value =
        command::run(&gateway, ["version", "-o", "json"], &[]).await.unwrap().json().unwrap();
    assert_eq!(version["opener"], false, "build the gateway by itself: cargo build -p pithead-gateway");
    let spoken = command::run(&gateway, ["version"], &[]).await.unwrap().ok().unwrap().stdout;
    assert!(spoken.contains("opener: not compiled in"), "{spoken}");
}

/// A workspace build has the exporter, and so no unit test meets the refusal.
#[tokio::test]
async fn spans_are_not_exported_and_whoever_asks_for_them_is_told_so() {
    let gateway = Binaries::get().unwrap().gateway();
    let folder = tempfile::tempdir().unwrap();
    let template = command::run(&gateway, ["config", "template"], &[]).await.unwrap().ok().unwrap().stdout;
    let file = folder.path().join("gateway.toml");
    let asked = template.replace("#[traces]\n#endpoint", "[traces]\nendpoint");
    assert_ne!(asked, template, "the template has the section");
    fs::write(&file, asked).unwrap();
    let arguments = ["config", "check", "-c", file.to_str().unwrap()];
    let said = command::run(&gateway, arguments, &[]).await.unwrap();
    assert_eq!(said.code, Some(78), "{said:?}");
    assert!(said.stderr.contains("built with the feature `otlp`"), "{}", said.stderr);
    assert!(said.stderr.contains('^'), "it shows where: {}", said.stderr);
}

fn cargo(arguments: &[&str]) -> (bool, String, String) {
    let output = binaries::cargo().args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn ring_is_nowhere() {
    let whoever_needs = |package: &str| {
        let everywhere = ["tree", "--offline", "--workspace", "--all-features", "-e", "all", "-i", package];
        let (found, tree, said) = cargo(&everywhere);
        // Not knowing the package at all is a good answer too, and any other error is none.
        assert!(found || said.contains("did not match any packages"), "{said}");
        tree
    };
    assert!(whoever_needs("aws-lc-rs").contains("rustls"), "what is there is found");
    assert_eq!(whoever_needs("ring").trim(), "");
}

/// The packages that go into the gateway's program, as cargo resolves them for `cargo build -p pithead-gateway`.
fn dependencies_of_the_gateway() -> BTreeSet<String> {
    let arguments =
        ["tree", "--offline", "-p", "pithead-gateway", "-e", "normal", "--prefix", "none", "-f", "{p}"];
    let (ok, tree, said) = cargo(&arguments);
    assert!(ok, "{said}");
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_gateway_is_built_of_nothing_that_belongs_to_the_other_sides() {
    let dependencies = dependencies_of_the_gateway();
    assert!(dependencies.contains("pithead-sealing") && dependencies.contains("pithead-hop"));
    for never in
        ["pithead-decryptor", "pithead-device-client", "pithead-tests", "openssl", "native-tls", "ring"]
    {
        assert!(!dependencies.contains(never), "{never} is in the gateway");
    }
}

#[test]
fn the_gateway_asks_cargo_for_sealing_without_the_opener() {
    let (ok, features, said) = cargo(&[
        "tree",
        "--offline",
        "-p",
        "pithead-gateway",
        "-e",
        "normal,features",
        "-i",
        "pithead-sealing",
    ]);
    assert!(ok, "{said}");
    assert!(features.contains("pithead-sealing"), "{features}");
    assert!(!features.contains("feature \"open\""), "{features}");
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// The part of a source that is compiled into the program.
fn shipped(path: &Path, text: &str) -> String {
    let is_test = path.file_stem().is_some_and(|stem| stem == "tests" || stem == "testing");
    if is_test {
        String::new()
    } else {
        text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
    }
}

#[test]
fn nothing_on_the_gateway_can_cause_a_signature() {
    let sources = sources(&workspace().join("gateway/src"));
    assert!(sources.len() > 20, "the gateway's sources were found");
    let (mut names_kms, mut signs) = (Vec::new(), Vec::new());
    let name = |path: &Path| path.strip_prefix(workspace()).unwrap().display().to_string();
    for (path, text) in &sources {
        let text = shipped(path, text);
        if text.contains(".sign(") {
            signs.push(name(path));
        }
        for never in ["authoring", "SigningKey", "MessageType", "SigningAlgorithm", "kms:Sign", "sign_digest"]
        {
            assert!(!text.contains(never), "{} names {never}", path.display());
        }
        if text.contains("aws_sdk_kms") {
            names_kms.push(name(path));
        }
    }
    assert_eq!(names_kms, ["gateway/src/kms.rs"], "KMS is named in one file");
    // The site's CA signs certificates, by which no device believes a key.
    assert_eq!(signs, ["gateway/src/devices/ca.rs"]);
    // Of all that KMS can do, that file asks for two things.
    let kms = fs::read_to_string(workspace().join("gateway/src/kms.rs")).unwrap();
    let operations = ["get_public_key()", "describe_key()"];
    assert!(operations.iter().all(|operation| kms.contains(operation)));
    for never in [
        "sign()",
        "decrypt()",
        "encrypt()",
        "generate_data_key",
        "generate_mac",
        "re_encrypt",
        "create_grant",
        "derive_shared_secret",
    ] {
        assert!(!kms.contains(&format!(".{never}")), "the gateway's KMS client calls {never}");
    }
}

#[tokio::test]
async fn the_help_of_the_gateway_offers_no_opening_and_no_signing() {
    let help = command::run(&Binaries::get().unwrap().gateway(), ["--help"], &[])
        .await
        .unwrap()
        .ok()
        .unwrap()
        .stdout;
    for never in ["open ", "decrypt", "sign"] {
        let offered = help.lines().any(|line| line.trim_start().starts_with(never));
        assert!(!offered, "{help}");
    }
}
