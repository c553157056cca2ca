//! Colour on a screen, where there is one and nobody has asked for none.
//!
//! Colour never says what words do not: a table in a file or for somebody who does not tell red from green has it all.

/// What a word is painted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Broken.
    Bad,
    /// Beside the point.
    Quiet,
    /// A heading.
    Heading,
}

/// Paints or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paint(bool);

impl Paint {
    /// For a screen that is a terminal, unless the command line (`--no-color`) or the environment says otherwise: `NO_COLOR`
    /// with any value that is not empty (<https://no-color.org>), or `TERM=dumb`. For programs alone.
    #[must_use]
    pub fn for_screen(is_terminal: bool, no_color: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let refused = no_color || set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
        Self(is_terminal && !refused)
    }

    /// The word, painted.
    #[must_use]
    pub fn word(self, tone: Tone, word: &str) -> String {
        if !self.0 {
            return word.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31;1",
            Tone::Quiet => "2",
            Tone::Heading => "1",
        };
        format!("\x1b[{code}m{word}\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_colour_where_nobody_looks_and_where_it_is_refused() {
        assert_eq!(Paint::for_screen(false, false), Paint::default());
        assert_eq!(Paint::for_screen(true, true), Paint::default());
        assert_eq!(Paint::default().word(Tone::Bad, "down"), "down");
        assert_eq!(Paint(true).word(Tone::Bad, "down"), "\x1b[31;1mdown\x1b[0m");
    }
}
