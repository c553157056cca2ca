//! The command line: parsed here, done in the module of each command.

use std::{fmt, io::BufRead, path::PathBuf, process, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use pithead_hop::{
    connect::Endpoint,
    program::{
        self, ExitCode, ProgramError, explain, log,
        manual::{self, CompletedShell},
        units,
    },
};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::{
    envelope::ContentType,
    names::{DeviceId, Site, StreamName},
};
use zeroize::Zeroizing;

use crate::{
    config, enroll, key, netcheck, outbox,
    output::{Output, print_text},
    seal, send, simulate, status, upload, watch,
};

/// A device: verifies keys, seals, keeps what it sealed, and sends it to the gateway.
#[derive(Debug, Parser)]
#[command(name = "pithead-device", version, arg_required_else_help = true)]
struct Cli {
    /// The device's file, as `enroll` wrote it.
    #[arg(short, long, global = true, default_value = "device.toml", value_name = "FILE")]
    config: PathBuf,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// More in the log; twice for still more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Less in the log.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    quiet: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a device in a folder: names, certificate, and the trust root that it believes from now on. With a token it gets
    /// its certificate over the network; otherwise out of files. Given again with the token that it was enrolled with, it says so
    /// and sends nothing.
    Enroll(Box<EnrollArgs>),
    /// A new certificate for the same device and key, with a token of `pithead-gateway device add`: before the old one ends. What
    /// the device believes, its numbers, its outbox and its file stay as they are, and the cloud knows its key.
    Renew(RenewArgs),
    /// The key that the device seals to, verified here; asks the gateway for news first.
    Key {
        /// Asks nobody: what is believed now.
        #[arg(long)]
        offline: bool,
        /// Takes a bundle that was carried here, as a file or as text, instead of asking a gateway.
        #[arg(long, value_name = "FILE", conflicts_with = "offline")]
        bundle: Option<PathBuf>,
    },
    /// Seals one file to another: for those who carry envelopes themselves. Needs no gateway.
    Seal(SealArgs),
    /// Seals records, keeps them in the outbox, and sends them until the gateway has them on its disk.
    Send(SendArgs),
    /// Sends a file that `seal` has made, of any size; cut off, the same command goes on where it was.
    Upload(UploadArgs),
    /// Sends each file that appears in a folder, until it is told to stop (SIGTERM, SIGINT).
    Watch(WatchArgs),
    /// How the device stands: keys, certificates, what waits, what was refused. Asks nobody, and disturbs no client that runs.
    Status,
    /// Whether each gateway can be reached, trusts us, is trusted, and takes envelopes; and if not, what to do. Ends with 69 or 77.
    Netcheck {
        /// How long each step may take.
        #[arg(long, default_value = "5s")]
        timeout: units::Duration,
    },
    /// What waits to be sent.
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// The device's file.
    #[command(subcommand)]
    Config(config::Command),
    /// A fleet out of this one process, over links that come and go: load for a gateway, and the books of every vehicle.
    Simulate(Box<SimulateArgs>),
    /// What a code such as PH-1014 means and what to do about it; without one, all of them.
    Explain {
        /// PH-1014, 1014 or TRUST_ROLLBACK.
        code: Option<String>,
    },
    /// The version, and whether an opener of envelopes is in this build.
    Version,
    /// Completions for a shell, on standard output: `pithead-device completions bash`.
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: CompletedShell,
    },
    /// Writes man pages: `pithead-device man --out /usr/local/share/man/man1`.
    Man {
        /// The folder; it is made if its parent exists.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// The enrolment port of a gateway, as `device add` has printed it.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) gateway: Endpoint,
    /// The one-time token, or - to read it from standard input, where no list of processes shows it.
    #[arg(long)]
    pub(crate) token: Token,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) of the enrolment port, as `device add` has printed it.
    #[arg(long, value_name = "SHA256")]
    pub(crate) fingerprint: Sha256,
}

/// A SHA-256, told by another way; with colons if whoever printed it liked them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sha256(pub(crate) [u8; 32]);

impl std::str::FromStr for Sha256 {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut bytes = [0; 32];
        let plain: String = text.chars().filter(|c| *c != ':').collect();
        hex::decode_to_slice(plain, &mut bytes).map_err(|_| "a SHA-256 has 64 hexadecimal digits")?;
        Ok(Self(bytes))
    }
}

/// A token that was given on the command line, or `-` for one that comes on standard input. Never shown.
#[derive(Clone)]
pub(crate) struct Token(Zeroizing<String>);

/// Longest line that is taken for a token, in bytes; far above any that is given out.
const TOKEN_LINE_MAX: u64 = 1024;

impl Token {
    /// The token itself; the first line of `input` if that is where it is.
    pub(crate) fn get(&self, input: impl BufRead) -> Result<Zeroizing<String>, ProgramError> {
        if self.0.as_str() != "-" {
            return Ok(self.0.clone());
        }
        let mut line = Zeroizing::new(String::with_capacity(TOKEN_LINE_MAX as usize));
        let read = input.take(TOKEN_LINE_MAX).read_line(&mut line);
        let token = Zeroizing::new(line.trim().to_owned());
        let missing =
            |what: String| ProgramError::new(ErrorReason::ConfigInvalid, what).exit(ExitCode::USAGE);
        match read {
            Err(error) => Err(missing(format!("--token -: standard input: {error}"))),
            Ok(_) if token.is_empty() => Err(missing("--token -: no token on standard input".into())),
            Ok(_) => Ok(token),
        }
    }
}

impl std::str::FromStr for Token {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[derive(Debug, Args)]
pub(crate) struct EnrollArgs {
    /// The device's folder; it is made. Its file will be DIR/device.toml.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The site that the device works at.
    #[arg(long, required_unless_present = "token")]
    pub(crate) site: Option<Site>,
    /// The device's name, as its certificate says it.
    #[arg(long, required_unless_present = "token")]
    pub(crate) device: Option<DeviceId>,
    /// The authority whose keys it will believe, such as acme-mining/prod.
    #[arg(long, required_unless_present = "token")]
    pub(crate) authority: Option<String>,
    /// The authority's first trust root: the anchor. Get it from the authority, not from the gateway.
    #[arg(long, value_name = "FILE", required_unless_present = "token")]
    pub(crate) root: Option<PathBuf>,
    /// The one-time token of `pithead-gateway device add`, or - to read it from standard input, where no list of processes shows
    /// it; --gateway is then the enrolment port.
    #[arg(long, requires_all = ["gateways", "fingerprint"], conflicts_with_all = ["bundle", "ca", "cert", "key", "server_name"])]
    pub(crate) token: Option<Token>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) of the enrolment port, as `device add` has printed it.
    #[arg(long, value_name = "SHA256", requires = "token")]
    pub(crate) fingerprint: Option<Sha256>,
    /// The fingerprint of the trust root, or the SHA-256 of its file, instead of the file: the gateway has it. Get it from the authority.
    #[arg(long, value_name = "SHA256", requires = "token", conflicts_with = "root")]
    pub(crate) root_fingerprint: Option<Sha256>,
    /// A key bundle to begin with, so that the device can seal before it has met a gateway.
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
    /// A gateway, host:port; several in the order of preference. Without one the device only seals.
    #[arg(long = "gateway", value_name = "HOST:PORT")]
    pub(crate) gateways: Vec<Endpoint>,
    /// The CA of the gateways' certificates.
    #[arg(long, value_name = "PEM")]
    pub(crate) ca: Option<PathBuf>,
    /// The device's certificate, with any CAs between it and the site's.
    #[arg(long, value_name = "PEM", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// The certificate's private key.
    #[arg(long, value_name = "PEM", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Does not sign the sessions with the certificate's key, which a P-256 key does otherwise.
    #[arg(long)]
    pub(crate) no_sign: bool,
    /// The name in the gateways' certificates, if it is not the host.
    #[arg(long, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SealArgs {
    /// The plaintext; - is standard input.
    pub(crate) file: PathBuf,
    /// Where the envelope goes.
    #[arg(short = 'O', long = "out", value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The stream that the envelope is filed under.
    #[arg(long, default_value = "files")]
    pub(crate) stream: StreamName,
    /// What the plaintext is.
    #[arg(long, default_value = "application/octet-stream", value_parser = ContentType::new)]
    pub(crate) content_type: ContentType,
}

#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// A file to send whole, or - for standard input, line by line as records.
    pub(crate) file: PathBuf,
    /// The stream; `records` for lines and `files` for a file if it is not given.
    #[arg(long)]
    pub(crate) stream: Option<StreamName>,
    /// What a file is; lines travel as batches.
    #[arg(long, default_value = "application/octet-stream", value_parser = ContentType::new)]
    pub(crate) content_type: ContentType,
    /// How long a record may wait for others to share its seal, whatever the stream's section says; 200ms if neither says.
    #[arg(long)]
    pub(crate) linger: Option<units::Duration>,
    /// Compresses with zstd before sealing, whatever the stream's section says.
    #[arg(long)]
    pub(crate) compress: bool,
    /// How long to wait for the gateway once everything is in the outbox; what it does not have by then stays there.
    #[arg(long, default_value = "60s")]
    pub(crate) timeout: units::Duration,
}

/// What becomes of a file that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum After {
    /// It stays, and is remembered.
    Keep,
    /// It is removed.
    Delete,
    /// It goes to DIR/sent.
    Move,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The folder. Names that begin with a dot or end with .part are left alone, and so are folders in it.
    pub(crate) dir: PathBuf,
    /// The stream.
    #[arg(long, default_value = "files")]
    pub(crate) stream: StreamName,
    /// What the files are.
    #[arg(long, default_value = "application/octet-stream", value_parser = ContentType::new)]
    pub(crate) content_type: ContentType,
    /// A file that did not change for so long is whole. One that is renamed into the folder need not wait.
    #[arg(long, default_value = "2s")]
    pub(crate) settle: units::Duration,
    /// What becomes of a file once it is sealed and durable in the outbox.
    #[arg(long, value_enum, default_value_t = After::Move)]
    pub(crate) after: After,
}

#[derive(Debug, Args)]
pub(crate) struct UploadArgs {
    /// The sealed envelope.
    pub(crate) file: PathBuf,
    /// How long to try; for ever if it is not given.
    #[arg(long)]
    pub(crate) timeout: Option<units::Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// The vehicles' identities: a folder with one of `enroll` for each of them.
    #[arg(long, value_name = "DIR")]
    pub(crate) devices: PathBuf,
    /// How many of them drive; all if it is not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) vehicles: Option<u32>,
    /// Where the vehicles' outboxes are, to go on with the next time; a temporary folder if it is not given.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Records a second of each vehicle.
    #[arg(long, default_value_t = 10.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Bytes of a record, its name included.
    #[arg(long, default_value = "100B")]
    pub(crate) size: units::ByteSize,
    /// Bytes of a file that each vehicle sends now and then.
    #[arg(long, value_name = "SIZE", requires = "file_every")]
    pub(crate) file_size: Option<units::ByteSize>,
    /// How often it does.
    #[arg(long, value_name = "TIME", requires = "file_size")]
    pub(crate) file_every: Option<units::Duration>,
    /// Where there is coverage and where not: lines such as `on 20s` and `off 60s jitter 30%`, driven through again and again.
    /// Without it there is coverage everywhere.
    #[arg(long, value_name = "FILE")]
    pub(crate) coverage: Option<PathBuf>,
    /// How long they record. Clocks are real.
    #[arg(long, default_value = "60s")]
    pub(crate) duration: units::Duration,
    /// How long a gateway has at the end, with coverage, to take what waits.
    #[arg(long, default_value = "2min")]
    pub(crate) drain: units::Duration,
    /// Bytes on the disk of each vehicle's records.
    #[arg(long, default_value = "4MiB")]
    pub(crate) budget: units::ByteSize,
    /// What happens when they are used up.
    #[arg(long, value_enum, default_value_t = WhenFull::Reject)]
    pub(crate) when_full: WhenFull,
    /// Time between two writes of each vehicle's disk; at once if it is not given.
    #[arg(long)]
    pub(crate) sync: Option<units::Duration>,
    /// How long a record may wait for others to share its seal.
    #[arg(long, default_value = "200ms")]
    pub(crate) linger: units::Duration,
    /// Compresses with zstd before sealing.
    #[arg(long)]
    pub(crate) compress: bool,
    /// Draws the same roads and shifts again; one of its own if it is not given.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

/// What a stream does whose budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhenFull {
    /// It takes no more.
    Reject,
    /// It gives up the oldest, and says so.
    DropOldest,
}

/// Slower, a vehicle says nothing in a run; faster, one bus does not.
fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a number of records a second".to_owned())?;
    if (0.01..=100_000.0).contains(&rate) { Ok(rate) } else { Err("0.01 to 100000 records a second".into()) }
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// How much waits, stream by stream, and the room there is.
    Stat,
    /// Reads every byte: checksums, and the structure of each envelope. Ends with 1 if something is damaged.
    Verify,
    /// Sends what waits until nothing does, and records nothing.
    Drain {
        /// How long to try; for ever if it is not given.
        #[arg(long)]
        timeout: Option<units::Duration>,
    },
}

pub(crate) fn main() -> process::ExitCode {
    program::install_crypto();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for and go to stdout; a usage error ends with 2.
            let _ = error.print();
            let code = if error.use_stderr() { ExitCode::USAGE } else { ExitCode::OK };
            return code.into();
        }
    };
    // A one-shot command speaks through its result; its log is for those who ask.
    let level = log::level(cli.verbose, cli.quiet.saturating_add(1));
    if let Err(error) = log::init(log::LogFormat::Auto, level) {
        return ProgramError::new(ErrorReason::Internal, error.to_string()).report();
    }
    match run(&cli) {
        Ok(code) => code.into(),
        Err(error) => error.report(),
    }
}

fn run(cli: &Cli) -> Result<ExitCode, ProgramError> {
    match &cli.command {
        Command::Enroll(arguments) => enroll::run(arguments, cli.output),
        Command::Renew(arguments) => enroll::renew(&cli.config, arguments, cli.output),
        Command::Key { offline, bundle } => {
            let from = match (offline, bundle) {
                (true, _) => key::From::Nobody,
                (false, Some(file)) => key::From::File(file),
                (false, None) => key::From::Gateway,
            };
            in_runtime(key::run(&cli.config, from, cli.output))
        }
        Command::Seal(arguments) => seal::run(&cli.config, arguments, cli.output),
        Command::Send(arguments) => in_runtime(send::run(&cli.config, arguments, cli.output)),
        Command::Upload(arguments) => in_runtime(upload::run(&cli.config, arguments, cli.output)),
        Command::Watch(arguments) => in_runtime(watch::run(&cli.config, arguments, cli.output)),
        Command::Status => status::run(&cli.config, cli.output),
        Command::Netcheck { timeout } => in_runtime(netcheck::run(&cli.config, timeout.get(), cli.output)),
        Command::Outbox(OutboxCommand::Stat) => outbox::stat(&cli.config, cli.output),
        Command::Outbox(OutboxCommand::Verify) => outbox::verify(&cli.config, cli.output),
        Command::Outbox(OutboxCommand::Drain { timeout }) => {
            let limit = timeout.map(units::Duration::get);
            in_runtime(outbox::drain(&cli.config, limit, cli.output))
        }
        Command::Config(command) => config::run(command, &cli.config, cli.output),
        Command::Simulate(arguments) => in_runtime(simulate::run(arguments, cli.output)),
        Command::Explain { code } => {
            print_text(&explain::answer(code.as_deref())?);
            Ok(ExitCode::OK)
        }
        Command::Version => {
            let (version, opener) = (env!("CARGO_PKG_VERSION"), pithead_sealing::OPENER_COMPILED_IN);
            let said = if opener { "compiled in" } else { "not compiled in" };
            let object =
                serde_json::json!({ "name": "pithead-device", "version": version, "opener": opener });
            cli.output.print_either(&object, || format!("pithead-device {version}\nopener: {said}\n"));
            Ok(ExitCode::OK)
        }
        Command::Completions { shell } => {
            print_text(&String::from_utf8_lossy(&manual::completions(Cli::command(), *shell)));
            Ok(ExitCode::OK)
        }
        Command::Man { out } => {
            print_text(&format!("{} pages in {}\n", manual::man(Cli::command(), out)?, out.display()));
            Ok(ExitCode::OK)
        }
    }
}

pub(crate) fn in_runtime(
    work: impl Future<Output = Result<ExitCode, ProgramError>>,
) -> Result<ExitCode, ProgramError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| ProgramError::new(ErrorReason::Internal, format!("no runtime: {error}")))?;
    let done = runtime.block_on(work);
    // A blocking read of standard input cannot be cancelled and must not hold the process.
    runtime.shutdown_timeout(Duration::ZERO);
    done
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_reference_says_what_the_program_says() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli-device.md");
        program::reference::keep(page.as_ref(), &manual::reference(Cli::command())).unwrap();
    }

    #[test]
    fn a_token_is_never_shown_and_may_come_on_standard_input() {
        let arguments = |token| {
            let sha = "ab".repeat(32);
            let words = ["pithead-device", "enroll", "--dir", "d", "--gateway", "h:1", "--fingerprint", &sha];
            let cli = Cli::try_parse_from(words.into_iter().chain(["--token", token])).unwrap();
            assert!(!format!("{cli:?}").contains("secret"), "{cli:?}");
            let Command::Enroll(arguments) = cli.command else { panic!("another command") };
            arguments.token.unwrap()
        };
        assert_eq!(arguments("secret-1").get(&b"other\n"[..]).unwrap().as_str(), "secret-1");
        assert_eq!(arguments("-").get(&b"secret-2\r\nmore\n"[..]).unwrap().as_str(), "secret-2");
        arguments("-").get(&b"\n"[..]).unwrap_err();
    }
}
