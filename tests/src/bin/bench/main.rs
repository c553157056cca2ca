//! Numbers that the product promises, measured with the real programs on one machine. One subcommand each; `docs/benchmarks.md`
//! says what each of them means and what they were last.
//!
//! With `--json` a row is one object on one line: `name`, `value`, `unit`, `baseline`, `baseline_value`, `ratio`, then
//! what it was measured on.

mod air;
mod backlog;
mod bucket;
mod bundles;
mod disk;
mod handshakes;
mod ingest;
mod kms_calls;
mod latency;
mod process;
mod record;
mod replicated;
mod report;
mod seal;
mod site;
mod spool;
mod upload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures what the product promises, with the real programs on loopback.
#[derive(Debug, Parser)]
#[command(name = "bench", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Durable appends by group size, beside raw writes and syncs of the same disk.
    Spool(spool::Arguments),
    /// Sealing on one core, beside the AES-256-GCM of openssl.
    Seal(seal::Arguments),
    /// Durable envelopes a second at the gateway, beside NATS JetStream, RabbitMQ and Redis at their most durable.
    Ingest(ingest::Arguments),
    /// The same where the spool is JetStream, beside plain publishes to the same servers.
    Replicated(replicated::Arguments),
    /// Acknowledgements at 10, 50 and 90 % of the full rate.
    Latency(latency::Arguments),
    /// How fast a backlog leaves when the far end is back.
    Drain(backlog::DrainArguments),
    /// How fast a backlog leaves into an object store, beside plain PUTs to the same one.
    Bundles(bundles::Arguments),
    /// How fast bundles leave a bucket, beside the same envelopes over a call.
    Bucket(bucket::Arguments),
    /// One large file on each hop, beside a sequential write of the same disk.
    Upload(upload::Arguments),
    /// Thousands of devices that connect at once, beside openssl; and what an idle connection holds.
    Handshakes(handshakes::Arguments),
    /// Memory with a backlog, and of an idle connection.
    Memory(backlog::MemoryArguments),
    /// From kill -9 to ready with a large backlog, which then drains in order.
    Restart(backlog::RestartArguments),
    /// What a record costs a vehicle: rate, processor, memory, and writes on its flash.
    Record(record::Arguments),
    /// The process that `record` measures.
    #[command(hide = true)]
    Vehicle(record::VehicleArguments),
    /// Bytes that cross the radio for each byte recorded.
    Air(air::Arguments),
    /// KMS Decrypt calls for many small records of several devices.
    KmsCalls(kms_calls::Arguments),
}

#[expect(clippy::print_stderr, reason = "a bench that fails says so")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match arguments.command {
                Command::Spool(arguments) => spool::measure(&arguments),
                Command::Seal(arguments) => seal::measure(&arguments),
                Command::Ingest(arguments) => ingest::measure(&arguments).await,
                Command::Replicated(arguments) => replicated::measure(&arguments).await,
                Command::Latency(arguments) => latency::measure(&arguments).await,
                Command::Drain(arguments) => backlog::drain(&arguments).await,
                Command::Bundles(arguments) => bundles::measure(&arguments).await,
                Command::Bucket(arguments) => bucket::measure(&arguments).await,
                Command::Upload(arguments) => upload::measure(&arguments).await,
                Command::Handshakes(arguments) => handshakes::measure(&arguments).await,
                Command::Memory(arguments) => backlog::memory(&arguments).await,
                Command::Restart(arguments) => backlog::restart(&arguments).await,
                Command::Record(arguments) => record::measure(&arguments),
                Command::Vehicle(arguments) => {
                    tokio::task::spawn_blocking(move || record::vehicle(&arguments)).await?
                }
                Command::Air(arguments) => air::measure(&arguments).await,
                Command::KmsCalls(arguments) => kms_calls::measure(&arguments).await,
            }
        })
    });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
