//! The command line: parsed here, done in [`commands`](crate::commands).

use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::process;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use pithead_hop::program::manual::{self, CompletedShell};
use pithead_hop::program::paint::Paint;
use pithead_hop::program::recent::Recent;
use pithead_hop::program::{self, ExitCode, ProgramError, log};
use pithead_proto::errors::v1::ErrorReason;
use pithead_sealing::DeviceId;

use crate::commands;
use crate::devices::registry::CertificateName;

/// The on-premises gateway: serves verified keys to devices, takes their sealed envelopes, and passes them on.
#[derive(Debug, Parser)]
#[command(name = "pithead-gateway", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// More in the log; twice for still more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Less in the log.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub quiet: u8,
    /// How log lines look: auto is text on a terminal and JSON otherwise.
    #[arg(long, global = true, default_value = "auto", value_parser = ["auto", "json", "text"])]
    pub log_format: String,
    /// Paints nothing, as NO_COLOR in the environment does; without a terminal nothing is painted anyway.
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub struct ConfigArg {
    /// The configuration file.
    #[arg(short, long = "config", default_value = "/etc/pithead/gateway.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// Whose data directory is looked at.
#[derive(Debug, Clone, Args)]
pub struct DataArg {
    /// The configuration file.
    #[command(flatten)]
    pub config: ConfigArg,
    /// A data directory, instead of the configuration's: of a dead machine's disk, for instance. It may be read-only.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArg {
    /// For people or for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes a site in a folder: its CA, this gateway's certificate, and a configuration. Says what to do next.
    Init(Box<commands::init::Args>),
    /// Runs the gateway until it is told to stop (SIGTERM).
    Run(ConfigArg),
    /// Whether this gateway would serve and go on serving: configuration, connectivity, production readiness, and the running
    /// gateway. Each line that is not in order says what to do.
    ///
    /// Exits 0 if all is well, 3 with warnings, 4 if it would not serve, 78 if the configuration is bad. Before the first start:
    /// `pithead-gateway check --pre`. It writes a small file into the data directory to measure the disk, and removes it.
    Check(Box<commands::check::Args>),
    /// The version, and whether an opener of envelopes is in this build (it must not be).
    Version(OutputArg),
    /// Who the devices are.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// The keys that devices seal to.
    #[command(subcommand)]
    Key(KeyCommand),
    /// The configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Has the running gateway read its file again, and says what came of it. Exits 0 if all of it is in force, 3 if something
    /// needs a restart, 1 if it was refused and the one before stays in force, 69 if no gateway runs.
    Reload(commands::reload::Args),
    /// What waits on disk.
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// What goes to the cloud, and how fast.
    #[command(subcommand)]
    Relay(RelayCommand),
    /// What the far end will never take.
    #[command(subcommand)]
    Refused(RefusedCommand),
    /// What a code such as PH-1014 means and what to do about it; without one, all of them.
    Explain {
        /// PH-1014, 1014 or TRUST_ROLLBACK.
        code: Option<String>,
    },
    /// How the running gateway is, what that means, and what to do. Exits 0 if all is well, 3 if degraded or something has to
    /// be looked at, 4 if not ready, 69 if it does not run.
    Status {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// The running gateway on one screen, drawn anew each second: rates, backlog and forecast, lamps, devices by traffic. `q` ends
    /// it. For a pipe or a ticket: `pithead-gateway top --once`.
    Top(commands::top::Args),
    /// Has the running gateway say that it is not ready, and stop as by SIGTERM; ends when it has. What was acknowledged is on
    /// the disk, and goes on from there with the next start.
    ///
    /// Exits 0 when it has stopped, 75 if it has not within the time-out, 69 if none runs. Behind a balancer: `pithead-gateway
    /// drain --grace 15s`.
    Drain(commands::drain::Args),
    /// The gateway's own certificate, and those that it believes.
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Completions for a shell, on standard output: `pithead-gateway completions bash > /etc/bash_completion.d/pithead-gateway`.
    Completions {
        /// Which shell.
        #[arg(value_enum)]
        shell: CompletedShell,
    },
    /// Writes man pages: `pithead-gateway man --out /usr/local/share/man/man1`.
    Man {
        /// The folder; it is made if its parent exists.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// `certificate ...`
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Until when each certificate is good. Exits 3 if one ends within a month.
    Show {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// A new certificate for this gateway from the site CA whose key is here: the same key and names, other dates. A gateway that
    /// runs takes it over. From a weekly timer: `pithead-gateway certificate renew --within 60d`.
    Renew(commands::certificate::RenewArgs),
}

/// `device ...`
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Adds a device and prints what to type on it: with a token for its certificate, with files (--out), or known by its
    /// address (--mode network). For one that is there already, another token or other addresses.
    Add {
        #[command(flatten)]
        device: commands::device::AddArgs,
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Every device: how it is known, whether it is there, and until when its certificate lasts.
    List {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Turns a device away at this gateway for good, or one certificate of it; its connections are closed within 5 s. Other
    /// gateways do not know of it: give the command at each, or use a revocation list.
    Revoke {
        /// The device's name.
        #[arg(required_unless_present = "certificate", conflicts_with = "certificate")]
        name: Option<DeviceId>,
        /// One certificate: its SHA-256, or the serial number of one that was made here.
        #[arg(long, value_name = "SHA256|SERIAL")]
        certificate: Option<CertificateName>,
        /// Also a name that is not in the registry: of a device whose certificate another CA has signed. No device of that name can
        /// be added here afterwards.
        #[arg(long, conflicts_with = "certificate")]
        unknown: bool,
        #[command(flatten)]
        config: ConfigArg,
    },
}

/// `key ...`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// The statement in force and its keys, out of the data directory.
    Show {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// What this gateway serves, as a file, a line of text or a QR code, for whoever no wire reaches.
    Export {
        /// Where the file goes: every root, the statement, every public key that it names.
        #[arg(long, value_name = "FILE", required_unless_present_any = ["text", "qr"])]
        out: Option<PathBuf>,
        /// Prints a line of text instead, with what is needed to seal now and no more.
        #[arg(long, conflicts_with_all = ["out", "qr"])]
        text: bool,
        /// Prints that line as a QR code.
        #[arg(long, conflicts_with = "out")]
        qr: bool,
        /// The root that the receiver has: later ones alone are in the text.
        #[arg(long, value_name = "VERSION", default_value_t = 1)]
        has_root: u64,
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Verifies a bundle that was carried in, and takes it; a running gateway takes it over at once.
    Import {
        /// The bundle, as a file or as text: what `pithead-decryptor authority statement --out` or `key export` wrote.
        file: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Every statement that was ever accepted here.
    History {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
}

/// `config ...`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Reads the file and every file that it names, looks at the data directory, and says what is wrong.
    Check {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// What is in force: the file, the environment and the defaults together.
    Show {
        /// Also where each value comes from: a line, a variable, or the default.
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// A file with every key and its meaning.
    Template,
}

/// `spool ...`
#[derive(Debug, Subcommand)]
pub enum SpoolCommand {
    /// How full it is and what waits. Asks the running gateway, or else reads the directory.
    ///
    /// Where the lanes are in JetStream, the gateway that takes the envelopes knows what waits. One that stands by leaves that out, and
    /// without one that runs the command ends with 69.
    Stat {
        #[command(flatten)]
        data: DataArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Checks every byte of what waits, and names what is lost. Exits 0 if all is sound, 1 if something is lost.
    ///
    /// Where the lanes are in JetStream, that is what the embedded engine has left on this disk. Exits 2 if that is nothing.
    Verify {
        /// A data directory, instead of the configuration's.
        dir: Option<PathBuf>,
        #[command(flatten)]
        data: DataArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Copies what waits, and what was refused, into a folder of sealed envelopes with an index. Nothing leaves the spool.
    ///
    /// The gateway may be running, stopped or dead. Interrupted, it goes on where it was. Exits 1 if something of it could
    /// not be read any more. Where the lanes are in JetStream, what waits is what the embedded engine has left on this disk; exits 2 if
    /// that is nothing.
    Export {
        /// The folder; it is made if its parent exists.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Also what was delivered and is still there.
        #[arg(long)]
        all: bool,
        /// What was refused, and nothing of what waits: also where the lanes are in JetStream.
        #[arg(long, conflicts_with = "all")]
        only_refused: bool,
        #[command(flatten)]
        data: DataArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Brings an export into the running gateway through its own port, or to another far end.
    ///
    /// Exits 0 if all of it is held there, 1 if something was refused or is damaged, 69 if nobody answers, 75 if it takes no
    /// more for now. Give the same command again to go on.
    Import(commands::spool::import::Args),
}

/// `relay ...`
#[derive(Debug, Subcommand)]
pub enum RelayCommand {
    /// How the relay of the running gateway is. Exits 3 while it stands still or the far end is away.
    Status {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Has it stand still until it is resumed, over restarts too. Devices are served all the same.
    Pause(ConfigArg),
    /// Lets it go on, whoever or whatever had it stand still.
    Resume(ConfigArg),
    /// Has it send no faster than this, over restarts too.
    Rate {
        /// Bytes a second such as "2MiB"; "none" for any amount; "configured" for what the configuration says.
        rate: String,
        #[command(flatten)]
        config: ConfigArg,
    },
}

/// `refused ...`
#[derive(Debug, Subcommand)]
pub enum RefusedCommand {
    /// Everything in the refused area, each with its reason; also while no gateway runs.
    List {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Puts envelopes back into the spool of the running gateway, to be sent again.
    Retry {
        /// Names as `refused list` shows them.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        names: Vec<String>,
        /// All of them.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        config: ConfigArg,
    },
}

/// Parses the process's arguments, does what they say, and gives the exit code.
pub fn main() -> process::ExitCode {
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
    match perform(cli, &mut io::stdout().lock()) {
        Ok(code) => code.into(),
        Err(error) => error.report(),
    }
}

/// Does what the arguments say; results go to `out`.
///
/// # Errors
/// What the process ends with and says last.
pub fn perform(cli: Cli, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    let format = cli.log_format.parse().unwrap_or_default();
    // Only the long-running command narrates; the others answer, and log what goes wrong.
    let base = if matches!(cli.command, Command::Run(_)) { 0 } else { 1 };
    let recent = Recent::default();
    let level = log::level(cli.verbose, cli.quiet + base);
    if let Err(error) = log::init_with(format, level, Some(recent.clone())) {
        return Err(ProgramError::new(ErrorReason::ConfigInvalid, error.to_string()).exit(ExitCode::USAGE));
    }
    let paint = Paint::for_screen(io::stdout().is_terminal(), cli.no_color);
    match cli.command {
        Command::Check(args) => commands::check::run(&args, paint, out),
        Command::Top(args) => commands::top::run(&args, paint, out),
        Command::Drain(args) => commands::drain::run(&args, out),
        Command::Certificate(CertificateCommand::Show { config, output }) => {
            commands::certificate::show(&config.config, output.output, out)
        }
        Command::Certificate(CertificateCommand::Renew(args)) => commands::certificate::renew(&args, out),
        Command::Completions { shell } => {
            commands::write(out, &String::from_utf8_lossy(&manual::completions(Cli::command(), shell)))?;
            Ok(ExitCode::OK)
        }
        Command::Man { out: folder } => {
            let pages = manual::man(Cli::command(), &folder)?;
            commands::write(out, &format!("{pages} pages in {}\n", folder.display()))?;
            Ok(ExitCode::OK)
        }
        Command::Init(args) => commands::init::run(&args, out),
        Command::Run(config) => crate::run::main(&config.config, recent),
        Command::Device(DeviceCommand::Add { device, config }) => {
            commands::device::add(&device, &config.config, out)
        }
        Command::Device(DeviceCommand::List { config, output }) => {
            commands::device::list(&config.config, output.output, out)
        }
        Command::Device(DeviceCommand::Revoke { name, certificate, unknown, config }) => {
            let which = match (&name, &certificate) {
                (Some(device), _) => commands::device::Which::Device { device, unknown },
                (None, Some(certificate)) => commands::device::Which::Certificate(certificate),
                (None, None) => unreachable!("clap asks for one of them"),
            };
            commands::device::revoke(which, &config.config, out)
        }
        Command::Version(output) => commands::version::print(output.output, out),
        Command::Key(KeyCommand::Show { config, output }) => {
            commands::key::show(&config.config, output.output, out)
        }
        Command::Key(KeyCommand::Export { out: file, qr, has_root, config, .. }) => {
            use commands::key::export::{Form, export};
            let form = match (file, qr) {
                (Some(file), _) => Form::File(file),
                (None, true) => Form::Qr,
                (None, false) => Form::Text,
            };
            export(&form, has_root, &config.config, out)
        }
        Command::Key(KeyCommand::Import { file, config }) => {
            commands::key::import(&file, &config.config, out)
        }
        Command::Key(KeyCommand::History { config, output }) => {
            commands::key::history(&config.config, output.output, out)
        }
        Command::Config(ConfigCommand::Check { config, output }) => {
            commands::config::check(&config.config, output.output, out)
        }
        Command::Config(ConfigCommand::Show { origin, config, output }) => {
            commands::config::show(&config.config, origin, output.output, out)
        }
        Command::Reload(args) => commands::reload::run(&args, out),
        Command::Config(ConfigCommand::Template) => commands::config::template(out),
        Command::Spool(command) => spool(command, out),
        Command::Relay(RelayCommand::Status { config, output }) => {
            commands::relay::status(&config.config, output.output, out)
        }
        Command::Relay(RelayCommand::Pause(config)) => commands::relay::pause(&config.config, out),
        Command::Relay(RelayCommand::Resume(config)) => commands::relay::resume(&config.config, out),
        Command::Relay(RelayCommand::Rate { rate, config }) => {
            commands::relay::rate(&config.config, &rate, out)
        }
        Command::Refused(RefusedCommand::List { config, output }) => {
            commands::refused::list(&config.config, output.output, out)
        }
        Command::Refused(RefusedCommand::Retry { names, all, config }) => {
            commands::refused::retry(&config.config, names, all, out)
        }
        Command::Explain { code } => commands::explain(code.as_deref(), out),
        Command::Status { config, output } => {
            commands::status::print(&config.config, output.output, paint, out)
        }
    }
}

fn spool(command: SpoolCommand, out: &mut dyn Write) -> Result<ExitCode, ProgramError> {
    use commands::spool;
    match command {
        SpoolCommand::Stat { data, output } => spool::stat(&data, output.output, out),
        SpoolCommand::Verify { dir, data, output } => {
            spool::verify::run(dir.as_deref(), &data, output.output, out)
        }
        SpoolCommand::Export { to, all, only_refused, data, output } => {
            let what = match (all, only_refused) {
                (true, _) => spool::export::What::All,
                (false, true) => spool::export::What::Refused,
                (false, false) => spool::export::What::Waiting,
            };
            spool::export::run(&to, what, &data, output.output, out)
        }
        SpoolCommand::Import(args) => spool::import::run(&args, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_reference_says_what_the_program_says() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli-gateway.md");
        program::reference::keep(page.as_ref(), &manual::reference(Cli::command())).unwrap();
    }

    #[test]
    fn run_takes_its_file_by_the_short_option() {
        let cli = Cli::try_parse_from(["pithead-gateway", "run", "-c", "a.toml"]).unwrap();
        assert!(matches!(cli.command, Command::Run(ConfigArg { config }) if config.as_os_str() == "a.toml"));
    }
}
