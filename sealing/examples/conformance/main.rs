//! Runs a file of conformance vectors against this implementation.
//!
//! `conformance envelope|trust FILE` prints a line for each case that does not hold and closes with
//! `N passed, N failed`. Exit status 0 if all hold, 1 if one does not, 2 if the file cannot be used.
#![allow(clippy::print_stdout, clippy::print_stderr)] // the program's output is its purpose

use std::process::ExitCode;

mod envelope;
mod trust;

/// A case's name, and what does not hold of it.
type Outcome = (String, Result<(), String>);

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(kind), Some(file), None) = (args.next(), args.next(), args.next()) else {
        return unusable("usage: conformance envelope|trust FILE");
    };
    let run: fn(&serde_json::Value) -> Vec<Outcome> = match kind.as_str() {
        "envelope" => envelope::run,
        "trust" => trust::run,
        other => return unusable(&format!("no vectors of kind '{other}': say envelope or trust")),
    };
    let vectors = match read(&file) {
        Ok(vectors) => vectors,
        Err(why) => return unusable(&format!("{file}: {why}")),
    };
    let (passed, failed) = tell(&run(&vectors));
    println!("{passed} passed, {failed} failed");
    // A file without cases proves nothing.
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read(file: &str) -> Result<serde_json::Value, String> {
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

/// Prints what does not hold; gives the numbers of cases that hold and that do not.
fn tell(outcomes: &[Outcome]) -> (usize, usize) {
    let failures = outcomes.iter().filter_map(|(case, outcome)| Some((case, outcome.as_ref().err()?)));
    let failed = failures.inspect(|(case, what)| println!("{case}: {what}")).count();
    (outcomes.len() - failed, failed)
}

fn unusable(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(2)
}
