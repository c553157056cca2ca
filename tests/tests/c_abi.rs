//! Programs in C, compiled here against `pithead.h` and the shared library, beside the real programs of a site.
//!
//! What is tested is the library as a C program has it: the header, the symbols, the threads of a foreign process. Needs `cc`,
//! which building the library needs as well; says so and does nothing where it is missing.
#![allow(clippy::print_stderr)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use pithead_tests::{
    authority::AUTHORITY,
    binaries::{cargo, workspace},
    command::{self, Finished},
    program::free_address,
    site::{SITE, SinkKind, Site, SiteOptions},
};
use tokio::io::AsyncWriteExt as _;

/// The crate with header and programs.
fn ffi() -> PathBuf {
    workspace().join("device-client/ffi")
}

/// The shared library beside this program; built here unless the whole workspace was (`PITHEAD_BIN_DIR`).
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let program = env::current_exe().unwrap();
        // target/PROFILE/deps/c_abi-HASH
        let profile = program.parent().and_then(Path::parent).unwrap().to_owned();
        let there = [profile.join("libpithead.so"), profile.join("deps/libpithead.so")];
        if env::var_os("PITHEAD_BIN_DIR").is_none() || !there.iter().any(|path| path.is_file()) {
            let mut build = cargo();
            build.args(["build", "--quiet", "-p", "pithead-device-ffi", "--lib", "--target-dir"]);
            build.arg(profile.parent().unwrap());
            if profile.ends_with("release") {
                build.arg("--release");
            }
            assert!(
                build.stdin(Stdio::null()).status().unwrap().success(),
                "cargo's own messages stand above"
            );
        }
        // The youngest: one build leaves it in one place, another in both.
        let age = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        there.into_iter().filter(|path| path.is_file()).max_by_key(age).expect("it was built")
    })
}

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: {tool} is missing");
        return false;
    }
    true
}

/// Compiles a program of the crate. The compiler's word on it is returned if it does not take it.
fn try_compile(source: &str, to: &Path, more: &[&str]) -> Result<(), String> {
    let output = Command::new("cc")
        .args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"])
        .args(more)
        .arg(ffi().join(source))
        .arg("-I")
        .arg(ffi().join("include"))
        .arg(library())
        .arg(format!("-Wl,-rpath,{}", library().parent().unwrap().display()))
        .args(["-pthread", "-o"])
        .arg(to)
        .output()
        .unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn compile(source: &str, to: &Path) {
    try_compile(source, to, &[]).unwrap_or_else(|why| panic!("{source}: {why}"));
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// FOLDER SITE DEVICE GATEWAY CA CERTIFICATE KEY AUTHORITY ROOT
fn arguments(site: &Site, device: &str) -> Vec<String> {
    let identity = site.identity_of(device).unwrap();
    vec![
        text(&site.folder().join("devices").join(device)),
        SITE.to_owned(),
        device.to_owned(),
        site.gateway_address().to_string(),
        text(site.ca.path()),
        text(&identity.certificate),
        text(&identity.key),
        AUTHORITY.to_owned(),
        text(&site.authority.root()),
    ]
}

/// A folder shows envelopes without records too: a heartbeat is no hole.
fn options() -> SiteOptions {
    SiteOptions { sink: SinkKind::Folder, ..SiteOptions::default() }
}

async fn run(program: &Path, arguments: &[String]) -> Finished {
    command::run(program, arguments, &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_of_c_records_and_sends_arrives_once() {
    if !has("cc") {
        return;
    }
    let mut site = Site::start(options()).await.unwrap();
    let program = site.folder().join("quick");
    compile("examples/quick.c", &program);
    // Larger than an envelope that goes in one piece: it is uploaded.
    let log = site.folder().join("engine.log");
    let lines: String = (0..100_000).map(|line| format!("{line:07} oil pressure is good\n")).collect();
    fs::write(&log, &lines).unwrap();

    let mut arguments = arguments(&site, "truck-c");
    arguments.extend([text(&site.authority.bundle(SITE)), text(&log)]);
    let finished = run(&program, &arguments).await.ok().unwrap();
    assert_eq!(finished.stdout, "recorded 1000, dropped 0, waiting 0\n", "{}", finished.stderr);
    assert_eq!(finished.stderr, "", "nothing is logged");

    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    let mut expected: Vec<String> = (0..1000).map(|reading| format!("{{\"reading\":{reading}}}")).collect();
    expected.push(lines);
    let mut found: Vec<Vec<u8>> = delivered.records_of("truck-c").into_iter().map(<[u8]>::to_vec).collect();
    found.sort();
    expected.sort();
    assert!(found == expected.iter().map(|record| record.as_bytes().to_vec()).collect::<Vec<_>>());
    site.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_the_default_signals_outlives_its_gateway_and_its_records_arrive_once() {
    if !has("cc") {
        return;
    }
    let mut site = Site::start(options()).await.unwrap();
    let program = site.folder().join("steady");
    compile("tests/steady.c", &program);
    let mut running = command::start(&program, arguments(&site, "truck-c"), &[], true).unwrap();
    let mut input = running.input().unwrap();
    let record = |number: u32| format!("record {number}\n");
    for number in 0..50 {
        input.write_all(record(number).as_bytes()).await.unwrap();
    }
    input.flush().await.unwrap();
    site.gateway()
        .unwrap()
        .until("has taken a record", async |admin| {
            admin.metric("pithead_ingest_envelopes_total").await.is_ok_and(|count| count >= 1.0)
        })
        .await
        .unwrap();
    assert_signals_are_the_hosts(running.pid().unwrap());
    site.kill_gateway().await.unwrap();
    for number in 50..100 {
        input.write_all(record(number).as_bytes()).await.unwrap();
    }
    input.flush().await.unwrap();
    site.start_gateway().await.unwrap();
    drop(input);
    let finished = running.finish_within(2).await.unwrap().ok().unwrap();
    let kept: String = (0..100).map(|number| format!("kept {}", record(number))).collect();
    assert_eq!(finished.stdout, kept);

    site.until_relayed().await.unwrap();
    let delivered = site.delivered().unwrap();
    assert_eq!((delivered.holes(), delivered.repeated()), (0, 0));
    let expected: Vec<Vec<u8>> =
        (0..100).map(|number| record(number).trim_end().as_bytes().to_vec()).collect();
    let found: Vec<Vec<u8>> = delivered.records_of("truck-c").into_iter().map(<[u8]>::to_vec).collect();
    assert!(found == expected, "in their order, each once");
    site.stop().await.unwrap();
}

/// The client's threads block SIGPIPE (13) and SIGTERM (15); the program's own thread blocks nothing.
fn assert_signals_are_the_hosts(pid: u32) {
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap();
        // One that reads the disk may have ended meanwhile.
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        let blocked = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
        let (pipe, term) = (blocked & (1 << 12) != 0, blocked & (1 << 14) != 0);
        let main = thread.file_name().to_string_lossy() == pid.to_string();
        assert_eq!((pipe, term), (!main, !main), "{}", field("Name:"));
        threads += 1;
    }
    assert!(threads >= 4, "{threads} threads");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_program_does_wrong_is_an_error_and_never_a_crash() {
    if !has("cc") {
        return;
    }
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let program = site.folder().join("misuse");
    // What is freed twice, read after it was freed or written past its end is then seen, and what nobody freed.
    let sanitized = try_compile(
        "tests/misuse.c",
        &program,
        &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    );
    let watched = sanitized.is_ok();
    if let Err(why) = sanitized {
        compile("tests/misuse.c", &program);
        eprintln!("WITHOUT a sanitizer, which this compiler does not have: {why}");
    }
    let identity = site.identity_of("truck-c").unwrap();
    let arguments = vec![
        text(&site.folder().join("devices/truck-c")),
        text(site.ca.path()),
        text(&identity.certificate),
        text(&identity.key),
        AUTHORITY.to_owned(),
        text(&site.authority.root()),
        text(&site.authority.bundle(SITE)),
        free_address().unwrap().to_string(),
    ];
    let finished = run(&program, &arguments).await;
    assert_eq!(finished.code, Some(0), "sanitizer: {watched}\n{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.starts_with("all as it should be"), "{}", finished.stdout);
    assert_eq!(finished.stderr, "", "nothing is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_c_seals_without_any_client_the_cloud_opens() {
    if !has("cc") {
        return;
    }
    let site = Site::create(SiteOptions::default()).await.unwrap();
    let program = site.folder().join("seal");
    compile("tests/seal.c", &program);
    let script = format!("exec \"$0\" \"$@\" > {}", text(&site.folder().join("sealed")));
    let arguments = [
        "-c".to_owned(),
        script,
        text(&program),
        text(&site.folder().join("devices/truck-c")),
        SITE.to_owned(),
        "truck-c".to_owned(),
        AUTHORITY.to_owned(),
        text(&site.authority.root()),
        text(&site.authority.bundle(SITE)),
    ];
    command::run_with_input(Path::new("/bin/sh"), &arguments, &[], b"a survey of the pit")
        .await
        .unwrap()
        .ok()
        .unwrap();
    let (sealed, opened) = (text(&site.folder().join("sealed")), site.folder().join("opened"));
    let shown = site.decryptor_command(&["inspect", &sealed]).await.unwrap().ok().unwrap().stdout;
    for part in ["truck-c", "surveys", "text/plain", "pit.txt"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let key = text(&site.private_key());
    let arguments = ["open", &sealed, "-o", &text(&opened), "--private-key", &key];
    site.decryptor_command(&arguments).await.unwrap().ok().unwrap();
    assert_eq!(fs::read(opened).unwrap(), b"a survey of the pit");
}

#[test]
fn the_library_shows_its_own_functions_and_nothing_else() {
    if !has("nm") {
        return;
    }
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(library()).output().unwrap();
    assert!(output.status.success());
    let listed = String::from_utf8(output.stdout).unwrap();
    let mut shown: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    shown.sort_unstable();
    let header = fs::read_to_string(ffi().join("include/pithead.h")).unwrap();
    // Outside of comments every name with a bracket behind it is a function.
    let code: String =
        header.split("/*").map(|part| part.split_once("*/").map_or(part, |(_, code)| code)).collect();
    let mut declared: Vec<&str> = code
        .split('(')
        .filter_map(|before| before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .filter(|name| name.starts_with("pithead_"))
        .collect();
    declared.sort_unstable();
    assert!(declared.len() > 40, "{declared:?}");
    assert_eq!(shown, declared);
}
