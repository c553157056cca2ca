//! What the shared library shows is what this crate declares, whatever the crates below it export by themselves.

#![allow(clippy::print_stdout, reason = "cargo reads it there")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
}
