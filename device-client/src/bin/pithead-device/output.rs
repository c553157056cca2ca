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

/// Ends the name of a field that says for people what the field before it says for programs: a table shows it in that one's
/// place, JSON has both.
const FOR_PEOPLE: &str = "_text";

impl Output {
    /// Prints the fields of a result, in their order.
    pub(crate) fn print(self, fields: &[(&str, Value)]) {
        let text = match self {
            Self::Json => {
                let object: serde_json::Map<_, _> =
                    fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
                format!("{}\n", Value::Object(object))
            }
            Self::Table => lines(fields),
        };
        print_text(&text);
    }

    /// Prints one object for programs, or what `table` makes for people.
    pub(crate) fn print_either(self, object: &Value, table: impl FnOnce() -> String) {
        match self {
            Self::Json => print_text(&format!("{object}\n")),
            Self::Table => print_text(&table()),
        }
    }
}

/// Names and values of a result, one pair a line.
pub(crate) fn lines(fields: &[(&str, Value)]) -> String {
    let shown = fields.iter().enumerate().filter_map(|(index, (name, value))| {
        let said = |next: &&(&str, Value)| next.0.strip_suffix(FOR_PEOPLE) == Some(*name);
        match fields.get(index + 1).filter(said) {
            Some((_, text)) => Some((*name, text)),
            None if name.ends_with(FOR_PEOPLE) => None,
            None => Some((*name, value)),
        }
    });
    let width = shown.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown.map(|(name, value)| format!("{name:width$}  {}\n", plain(value))).collect()
}

/// Rows under their headings, in columns; numbers to the right.
pub(crate) fn columns<const N: usize>(headings: [&str; N], rows: &[[Value; N]]) -> String {
    let cells: Vec<[String; N]> = rows.iter().map(|row| std::array::from_fn(|at| plain(&row[at]))).collect();
    let width = |at: usize| {
        let cells = cells.iter().map(|row| row[at].chars().count());
        cells.chain([headings[at].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let right: [bool; N] = std::array::from_fn(|at| rows.iter().any(|row| row[at].is_number()));
    let line = |cells: [&str; N]| {
        let padded = cells.iter().enumerate().map(|(at, cell)| match right[at] {
            true => format!("{cell:>width$}", width = widths[at]),
            false => format!("{cell:width$}", width = widths[at]),
        });
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let body = cells.iter().map(|row| line(std::array::from_fn(|at| row[at].as_str())));
    std::iter::once(line(headings)).chain(body).collect()
}

/// Prints text as it is.
pub(crate) fn print_text(text: &str) {
    // A closed pipe is the reader's decision and no failure of ours.
    let _ = io::stdout().write_all(text.as_bytes());
}

pub(crate) fn plain(value: &Value) -> String {
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

/// A line on standard error that says that something goes on, drawn if that is a terminal; what is printed through it stands
/// above.
pub(crate) fn watch_bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(2));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_shows_a_number_as_people_read_it_and_json_has_both() {
        let fields =
            [("status", json!("FRESH")), ("expires_at", json!(7)), ("expires_at_text", json!("soon"))];
        assert_eq!(lines(&fields), "status      FRESH\nexpires_at  soon\n");
        let rows = [[json!("can"), json!(12)], [json!("alarms"), json!(Value::Null)]];
        assert_eq!(
            columns(["stream", "envelopes"], &rows),
            "stream  envelopes\ncan            12\nalarms          -\n"
        );
    }
}
