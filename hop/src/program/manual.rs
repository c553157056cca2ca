//! Out of one definition of the command line: completions, man pages, and the page of the reference.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use clap::{Arg, ArgAction, Command};
use clap_complete::Shell;
use pithead_proto::errors::v1::ErrorReason;

use super::{ExitCode, ProgramError, disk};

/// Every exit code, and what it means in all programs.
pub const EXIT_CODES: [(ExitCode, &str); 10] = [
    (ExitCode::OK, "Done; all is well."),
    (ExitCode::FAILED, "Failed. The message has a code, which `explain` explains."),
    (ExitCode::USAGE, "The command line is wrong."),
    (ExitCode::DEGRADED, "It works, and something should be looked at."),
    (ExitCode::NOT_READY, "It runs and does not serve, or it would not."),
    (ExitCode::PEER_UNAVAILABLE, "The other end is away."),
    (ExitCode::CANNOT_WRITE, "Cannot write: the disk, a folder, or something stands there already."),
    (ExitCode::TRY_AGAIN, "Not now; the same command may succeed later."),
    (ExitCode::IDENTITY_REFUSED, "The other end does not take who we are, or we do not take who it is."),
    (ExitCode::CONFIG_INVALID, "The configuration is invalid."),
];

/// A shell that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CompletedShell {
    /// bash.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// The completions of a program, for its `completions` command.
#[must_use]
pub fn completions(mut command: Command, shell: CompletedShell) -> Vec<u8> {
    let shell = match shell {
        CompletedShell::Bash => Shell::Bash,
        CompletedShell::Zsh => Shell::Zsh,
        CompletedShell::Fish => Shell::Fish,
    };
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    text
}

/// Writes the man pages of a program into a folder: one for it, and one for each of its commands. Gives their number.
///
/// # Errors
/// When the folder cannot be written.
pub fn man(command: Command, folder: &Path) -> Result<usize, ProgramError> {
    let failed = |error: io::Error| {
        ProgramError::new(ErrorReason::DataDirUnwritable, format!("{}: {error}", folder.display()))
            .todo("give a folder that can be written")
    };
    disk::create_folder(folder).map_err(failed)?;
    let mut written = 0;
    for (name, page) in man_pages(command).map_err(failed)? {
        std::fs::write(folder.join(name), page).map_err(failed)?;
        written += 1;
    }
    Ok(written)
}

fn man_pages(command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let command = finished(command);
    let mut pages = Vec::new();
    for (path, command) in every(&command) {
        let name = path.join("-");
        let codes: String = match path.len() {
            1 => EXIT_CODES.iter().map(|(code, what)| format!("{:3}  {what}\n", code.get())).collect(),
            _ => String::new(),
        };
        let mut command = command.clone();
        if !codes.is_empty() {
            command = command.after_long_help(format!("EXIT CODES\n\n{codes}"));
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command).title(name.clone()).render(&mut page)?;
        pages.push((format!("{name}.1"), page));
    }
    Ok(pages)
}

/// With everything in it that clap adds by itself.
fn finished(mut command: Command) -> Command {
    command.build();
    command
}

/// A command and all below it, each with its path of names; nothing that is hidden, and no `help` command.
fn every(command: &Command) -> Vec<(Vec<String>, &Command)> {
    fn below<'a>(path: &[String], command: &'a Command, all: &mut Vec<(Vec<String>, &'a Command)>) {
        let path: Vec<String> = path.iter().cloned().chain([command.get_name().to_owned()]).collect();
        all.push((path.clone(), command));
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help");
        shown.for_each(|one| below(&path, one, all));
    }
    let mut all = Vec::new();
    below(&[], command, &mut all);
    all
}

/// The page of the reference for a program's command line, in Markdown.
#[must_use]
pub fn reference(command: Command) -> String {
    let command = finished(command);
    let program = command.get_name().to_owned();
    let mut text = format!(
        "# {program}\n\n<!-- Made out of the program's own command line: run the tests of its crate with UPDATE_REFERENCE=1. \
         -->\n\n"
    );
    // Writing to a String does not fail.
    let _ = writeln!(text, "{}\n", about(&command));
    let _ = writeln!(
        text,
        "`{program} COMMAND --help` says the same; `{program} man --out DIR` writes it as man pages.\n"
    );
    let global: Vec<&Arg> =
        command.get_arguments().filter(|arg| arg.is_global_set() && is_shown(arg)).collect();
    if !global.is_empty() {
        let _ = writeln!(text, "## Options of every command\n");
        arguments(&mut text, &global);
    }
    let _ = writeln!(text, "## Exit codes\n\n| code | |\n|---|---|");
    for (code, what) in EXIT_CODES {
        let _ = writeln!(text, "| {} | {what} |", code.get());
    }
    let _ = writeln!(text);
    for (path, command) in every(&command).into_iter().skip(1) {
        let _ = writeln!(text, "{} `{}`\n", "#".repeat(path.len().min(4)), path.join(" "));
        let _ = writeln!(text, "{}\n", about(command));
        let own: Vec<&Arg> =
            command.get_arguments().filter(|arg| !arg.is_global_set() && is_shown(arg)).collect();
        if command.get_subcommands().next().is_none() {
            let _ = writeln!(text, "```\n{}\n```\n", usage(&path.join(" "), &own));
        }
        arguments(&mut text, &own);
        if let Some(more) = command.get_after_long_help().or_else(|| command.get_after_help()) {
            let _ = writeln!(text, "{}\n", more.to_string().trim_end());
        }
    }
    while text.ends_with("\n\n") {
        text.pop();
    }
    text
}

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version"
}

fn about(command: &Command) -> String {
    let about = command.get_long_about().or_else(|| command.get_about());
    sentence(&about.map(ToString::to_string).unwrap_or_default())
}

/// Help is written as sentences, with a full stop or without.
fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() || text.ends_with(['.', ':', '!', '?', '`']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

fn value_names(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    if names.is_empty() { arg.get_id().as_str().to_uppercase() } else { names.join(" ") }
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

fn usage(path: &str, arguments: &[&Arg]) -> String {
    let mut words = vec![path.to_owned()];
    for arg in arguments {
        let several = matches!(arg.get_action(), ArgAction::Append);
        let flag = match arg.get_long() {
            Some(long) => {
                let value = if takes_value(arg) { format!(" {}", value_names(arg)) } else { String::new() };
                format!("--{long}{value}")
            }
            None => value_names(arg),
        };
        let flag = if several { format!("{flag}...") } else { flag };
        words.push(if arg.is_required_set() { flag } else { format!("[{flag}]") });
    }
    words.join(" ")
}

fn arguments(text: &mut String, arguments: &[&Arg]) {
    if arguments.is_empty() {
        return;
    }
    let _ = writeln!(text, "| | | default |\n|---|---|---|");
    for arg in arguments {
        let value = if takes_value(arg) { format!(" {}", value_names(arg)) } else { String::new() };
        let name = match (arg.get_short(), arg.get_long()) {
            (Some(short), Some(long)) => format!("-{short}, --{long}{value}"),
            (None, Some(long)) => format!("--{long}{value}"),
            (Some(short), None) => format!("-{short}{value}"),
            (None, None) => value_names(arg),
        };
        let help =
            arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let mut help = sentence(&help.split_whitespace().collect::<Vec<_>>().join(" "));
        let values = arg.get_possible_values();
        let names: Vec<String> = values
            .iter()
            .filter(|one| !one.is_hide_set())
            .map(|one| format!("`{}`", one.get_name()))
            .collect();
        if takes_value(arg) && !names.is_empty() {
            help = format!("{help} One of {}.", names.join(", "));
        }
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        let defaults = if takes_value(arg) { defaults.join(" ") } else { String::new() };
        let cell = |text: &str| text.replace('|', "\\|");
        let _ = writeln!(text, "| `{}` | {} | {defaults} |", cell(&name), cell(&help));
    }
    let _ = writeln!(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let verbose =
            Arg::new("verbose").short('v').action(ArgAction::Count).global(true).help("More in the log");
        let add = Command::new("add")
            .about("Adds a device")
            .arg(Arg::new("name").required(true).help("Its name, or | one of several"))
            .arg(
                Arg::new("mode")
                    .long("mode")
                    .value_parser(["mtls", "network"])
                    .default_value("mtls")
                    .help("How"),
            )
            .arg(Arg::new("secret").long("secret").hide(true));
        let device = Command::new("device").about("Who the devices are").subcommand(add);
        Command::new("pithead-test").about("Tests").version("1").arg(verbose).subcommand(device)
    }

    #[test]
    fn the_reference_has_every_command_with_its_arguments_and_nothing_hidden() {
        let text = reference(program());
        assert!(text.starts_with("# pithead-test\n"), "{text}");
        assert!(text.contains(
            "## Options of every command\n\n| | | default |\n|---|---|---|\n| `-v` | More in the log. |  |"
        ));
        assert!(text.contains("| 78 | The configuration is invalid. |"), "{text}");
        assert!(text.contains("### `pithead-test device add`\n\nAdds a device.\n"), "{text}");
        assert!(text.contains("```\npithead-test device add NAME [--mode MODE]\n```"), "{text}");
        assert!(text.contains("| `NAME` | Its name, or \\| one of several. |  |"), "{text}");
        assert!(text.contains("| `--mode MODE` | How. One of `mtls`, `network`. | `mtls` |"), "{text}");
        assert!(!text.contains("secret") && !text.contains("help` |"), "{text}");
    }

    #[test]
    fn there_is_a_man_page_for_each_command_and_completions_for_each_shell() {
        let folder = tempfile::tempdir().unwrap();
        let written = man(program(), &folder.path().join("man1")).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path().join("man1"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["pithead-test-device-add.1", "pithead-test-device.1", "pithead-test.1"]);
        assert_eq!(written, 3);
        let page = std::fs::read_to_string(folder.path().join("man1/pithead-test.1")).unwrap();
        assert!(page.contains("EXIT CODES") && page.contains("configuration is invalid"), "{page}");
        for shell in [CompletedShell::Bash, CompletedShell::Zsh, CompletedShell::Fish] {
            let text = String::from_utf8(completions(program(), shell)).unwrap();
            assert!(text.contains("pithead-test") && text.contains("device"), "{shell:?}: {text}");
        }
        let nowhere = man(program(), Path::new("/nowhere/man1")).unwrap_err();
        assert_eq!(nowhere.reason, ErrorReason::DataDirUnwritable);
    }
}
