//! Prints the C header that this crate is: `cargo run -p pithead-device-ffi --example header > device-client/ffi/include/pithead.h`

use std::{
    io::{self, Write as _},
    path::Path,
};

use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};

/// In the order of the header. A module that is not listed is not in it.
const MODULES: [&str; 7] = ["error", "options", "client", "stream", "files", "buffer", "sealer"];

const RULES: &str = "\
/*
 * Pithead: the device client for programs in C. Made from device-client/ffi/src; do not edit.
 *
 * The rules, for every function below:
 *
 * 1. A handle is what a ..._new, ..._open or pithead_send_file has given, and was not freed. It may be used by any number of
 *    threads at the same time; it is freed by one, when no other uses it any more. A handle may be freed before or after the one
 *    that it was taken from.
 * 2. A text is UTF-8 and ends with a zero byte (a path: whatever bytes the file system takes). Bytes are a pointer and a length;
 *    with length 0 the pointer is not looked at. Both are read during the call and never kept: they stay the caller's.
 * 3. What is filled is the caller's: an error, a place for a handle, a struct with its size. A place for a handle is set to NULL
 *    when the call fails.
 * 4. NULL where something is needed, text that is not UTF-8 and numbers out of range are PITHEAD_BAD_ARGUMENT; nothing was done.
 *    `error` may always be NULL.
 * 5. Functions that wait say so: pithead_open, _sync, _flush, _close, _client_free, _sealer_... and the _file options, which read
 *    a file. The others take no longer than a copy. None may be called in a signal handler.
 * 6. A client has threads, and a process that forks has none of them in the child: the child must not touch any handle.
 *    The threads block the host's signals. No signal handler, logger or environment variable is used, errno is not part of any
 *    answer, and nothing global is installed.
 * 7. What is published stays. Functions and numbers are added; structs that are passed with their size grow at their end, so that
 *    a program that was compiled with an older header runs with a newer library, and the other way round what the library does
 *    not know of reads as 0.
 */";

/// The header, as it is to be checked in.
pub fn header() -> Result<String, cbindgen::Error> {
    let config = Config {
        language: Language::C,
        style: Style::Both,
        header: Some(RULES.into()),
        include_guard: Some("PITHEAD_H".into()),
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        cpp_compat: true,
        documentation_style: DocumentationStyle::Doxy,
        line_length: 100,
        usize_is_size_t: true,
        ..Config::default()
    };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let builder = MODULES.iter().fold(Builder::new().with_config(config), |builder, name| {
        builder.with_src(sources.join(format!("{name}.rs")))
    });
    let mut header = Vec::new();
    builder.generate()?.write(&mut header);
    Ok(String::from_utf8_lossy(&header).into_owned())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    Ok(io::stdout().write_all(header()?.as_bytes())?)
}
