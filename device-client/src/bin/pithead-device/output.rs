//! What is printed: one table for people or one JSON object for programs, on standard output and nowhere else.

use std::io::{self, Write as _};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: one JSON object.
    Json,
}

impl Output {
    /// Prints the fields of a result, in their order.
    pub(crate) fn print(self, fields: &[(&str, Value)]) {
        let text = match self {
            Self::Json => {
                let object: serde_json::Map<_, _> =
                    fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
                format!("{}\n", Value::Object(object))
            }
            Self::Table => {
                let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
                fields.iter().map(|(name, value)| format!("{name:width$}  {}\n", plain(value))).collect()
            }
        };
        print_text(&text);
    }
}

/// Prints text as it is.
pub(crate) fn print_text(text: &str) {
    // A closed pipe is the reader's decision and no failure of ours.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// A progress bar over bytes on standard error, drawn if that is a terminal.
pub(crate) fn byte_bar(total: Option<u64>, what: &'static str) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    let template = "{msg} {bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_message(what)
}

/// A progress bar over envelopes on standard error, drawn if that is a terminal.
pub(crate) fn envelope_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{msg} {pos}/{len} envelopes {wide_bar} {per_sec}") {
        bar.set_style(style);
    }
    bar.with_message(what)
}
