//! Logs: JSON lines where a machine reads them, text where a person does. Events carry a stable `event` field
//! (`event = "relay.down"`) and never payloads, keys or tokens.

use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use super::recent::Recent;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text if stderr is a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Not the name of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a log format is auto, json or text")]
pub struct NotAFormat;

impl FromStr for LogFormat {
    type Err = NotAFormat;

    fn from_str(text: &str) -> Result<Self, NotAFormat> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(NotAFormat),
        }
    }
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The filter in `PITHEAD_LOG` or on the command line is wrong.
    #[error("not a log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody has begun it already.
    #[error("logging has begun already")]
    Begun(#[from] tracing_subscriber::util::TryInitError),
}

/// What our libraries say of a peer's frames: one of them warns once for each, so that a stranger could fill the disk with it.
/// What ends a connection is counted, and said by the accept layer.
const QUIET: &str = "h2=error,hyper=error";

/// Begins logging to stderr. `PITHEAD_LOG` (a `tracing` filter such as `info,pithead_hop=debug`) wins over `level`.
///
/// For programs alone: a library that installs a global logger surprises its host.
pub fn init(format: LogFormat, level: &str) -> Result<(), LogError> {
    init_with(format, level, None)
}

/// The same, and what is logged is kept in `recent` as well.
pub fn init_with(format: LogFormat, level: &str, recent: Option<Recent>) -> Result<(), LogError> {
    let filter = std::env::var("PITHEAD_LOG").unwrap_or_else(|_| filter(level));
    let registry = tracing_subscriber::registry().with(EnvFilter::try_new(filter)?).with(recent);
    let terminal = io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()?;
    } else {
        registry.with(fmt::layer().with_ansi(terminal).with_writer(io::stderr)).try_init()?;
    }
    Ok(())
}

fn filter(level: &str) -> String {
    match level {
        // Whoever asks for all of it gets all of it.
        "trace" => level.to_owned(),
        level => format!("{level},{QUIET}"),
    }
}

/// `warn`, `info`, `debug` or `trace` for so many `-v` less so many `-q`.
pub fn level(verbose: u8, quiet: u8) -> &'static str {
    match i16::from(verbose) - i16::from(quiet) {
        ..=-2 => "error",
        -1 => "warn",
        0 => "info",
        1 => "debug",
        2.. => "trace",
    }
}
