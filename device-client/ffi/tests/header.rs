//! What is checked in is what the crate is.
#![allow(clippy::unwrap_used)]

#[path = "../examples/header.rs"]
#[expect(dead_code, unreachable_pub, reason = "an example has a main and is a crate of its own")]
mod generator;

use std::{fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_header_that_is_checked_in_is_the_one_that_the_sources_make() {
    let again = "cargo run -p pithead-device-ffi --example header > device-client/ffi/include/pithead.h";
    assert!(generator::header().unwrap() == read("include/pithead.h"), "make it again: {again}");
}

#[test]
fn the_page_of_c_in_the_readme_is_the_example_that_is_compiled() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("```c\n").unwrap();
    let (page, _) = rest.split_once("```\n").unwrap();
    assert!(page == read("examples/quick.c"), "copy examples/quick.c into README.md");
}
