//! Compiles the `.proto` files with protox, a compiler written in Rust: a fresh machine needs no protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 6] = [
    "pithead/errors/v1/errors.proto",
    "pithead/keys/v1/keys.proto",
    "pithead/batch/v1/batch.proto",
    "pithead/ingest/v1/ingest.proto",
    "pithead/enroll/v1/enroll.proto",
    "pithead/bundle/v1/bundle.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=pithead");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Sealed bytes stay the buffer they arrived in; nothing on the hot path copies them into a Vec.
        .bytes(".")
        .generate_default_stubs(false)
        .build_client(env::var_os("CARGO_FEATURE_GRPC").is_some())
        .build_server(env::var_os("CARGO_FEATURE_GRPC").is_some())
        .compile_fds(descriptors)?;
    Ok(())
}
