//! How the story is laid out: numbered steps, indented facts, and no colour where nobody asked for it.

use std::{fmt::Display, io::IsTerminal as _};

/// Where the story is written: standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paper {
    colour: bool,
    step: u32,
}

impl Paper {
    pub(crate) fn new(no_color: bool) -> Self {
        let colour = !no_color && std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal();
        Self { colour, step: 0 }
    }

    fn painted(self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    #[expect(clippy::print_stdout, reason = "the demo is its output")]
    pub(crate) fn line(self, text: impl Display) {
        println!("{text}");
    }

    pub(crate) fn title(self, text: &str) {
        self.line(format_args!("\n{}", self.painted("1", text)));
    }

    /// A new step, with a sentence on what it shows.
    pub(crate) fn step(&mut self, title: &str, why: &str) {
        self.step += 1;
        self.line(format_args!("\n{}  {}", self.painted("1;36", self.step), self.painted("1", title)));
        for line in why.lines() {
            self.line(self.painted("2", format_args!("   {}", line.trim())));
        }
    }

    /// One fact with its name.
    pub(crate) fn fact(self, name: &str, value: impl Display) {
        self.line(format_args!("   {name:<15}{value}"));
    }

    pub(crate) fn good(self, text: impl Display) {
        self.line(format_args!("   {}", self.painted("32", text)));
    }

    pub(crate) fn bad(self, text: impl Display) {
        self.line(format_args!("   {}", self.painted("1;31", text)));
    }
}

/// 12,345
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 envelope`, `12,345 envelopes`
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}
