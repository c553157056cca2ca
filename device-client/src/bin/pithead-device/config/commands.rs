//! `config check | show | template`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use pithead_hop::{
    program::{ExitCode, ProgramError, config::check::Report},
    tls::Pem,
};
use pithead_proto::errors::v1::ErrorReason;

use super::{Config, TEMPLATE, read};
use crate::{
    failure,
    output::{Output, print_text},
    signer::Signer,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Reads the file and every file that it names, looks at the device's folder, and says what is wrong.
    Check,
    /// What is in force: the file, the environment and the defaults together.
    Show {
        /// Also where each value comes from: a line, a variable, or the default.
        #[arg(long)]
        origin: bool,
    },
    /// A file with every key and its meaning.
    Template,
}

pub(crate) fn run(command: &Command, path: &Path, output: Output) -> Result<ExitCode, ProgramError> {
    match command {
        Command::Check => {
            let report = examine(path)?;
            output.print_either(&report.to_json(), || report.to_text());
        }
        Command::Show { origin } => print_text(&read(path)?.show(*origin, output == Output::Json)?),
        Command::Template => print_text(TEMPLATE),
    }
    Ok(ExitCode::OK)
}

/// Reads the file and everything that it names.
fn examine(path: &Path) -> Result<Report, ProgramError> {
    let loaded = read(path)?;
    // Paths in the file are relative to it, and the errors name them whole.
    let config = Config::load(path)?;
    let located = |error: ProgramError, key: &str| {
        let what = format!("{}\n  named by: {key} ({})", error.what, loaded.sources.say(key));
        ProgramError { what, ..error }
    };
    let mut report = Report::new(path);
    report.fact("site", config.site());
    report.fact("device", config.id());
    let state = config.state();
    if !state.is_dir() {
        let what = format!("the device's folder {} does not exist", state.display());
        let error = ProgramError::new(ErrorReason::DataDirUnwritable, what)
            .affects("nothing can be sealed")
            .todo("enrol the device: pithead-device enroll; or mount its disk");
        return Err(located(error, "device.state"));
    }
    let file = &loaded.value;
    let budget = file.streams.iter().map(|stream| stream.budget(file.outbox.max_bytes).get());
    let budget = budget.fold(0, u64::saturating_add);
    report.data_dir(&state, budget, &["outbox"]).map_err(|error| located(error, "device.state"))?;
    if let Some(signing) = &file.device.signing_key {
        let signing = config.folder.join(signing);
        Signer::read(&signing).map_err(|error| located(error, "device.signing_key"))?;
        report.private_key(&signing);
    } else {
        report.note("no signing_key: sessions are not signed");
    }
    match &file.gateway {
        None => report.note("no [gateway]: it seals to files alone"),
        Some(section) => {
            let pem = |path: &PathBuf, key: &str| {
                let read = Pem::read(&config.folder.join(path));
                read.map_err(|error| located(failure::tls(&error), key))
            };
            let ca = pem(&section.ca, "gateway.ca")?;
            ca.certificates().map_err(|error| located(failure::tls(&error), "gateway.ca"))?;
            report.expiry(&ca);
            if let (Some(certificate), Some(key)) = (&section.certificate, &section.key) {
                let own = pem(certificate, "gateway.certificate")?;
                own.certificates().map_err(|error| located(failure::tls(&error), "gateway.certificate"))?;
                report.expiry(&own);
                let private = pem(key, "gateway.key")?.private_key().map(drop);
                private.map_err(|error| located(failure::tls(&error), "gateway.key"))?;
                report.private_key(&config.folder.join(key));
            } else {
                report.note("no certificate: gateways know it by its address alone");
            }
            let endpoints: Vec<String> = section.endpoints.iter().map(ToString::to_string).collect();
            report.fact("gateways", endpoints.join(", "));
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use pithead_hop::program::{config::reference::Reference, reference};

    use super::{super::File, *};

    #[test]
    fn the_page_about_the_configuration_says_what_the_program_knows() {
        let about = Reference {
            program: "pithead-device",
            template: TEMPLATE,
            prefix: super::super::ENV_PREFIX,
            live: None,
            elsewhere: &[],
        };
        let page = about.page::<File>().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/config-device.md");
        reference::keep(&path, &page).unwrap();
    }

    #[test]
    fn the_template_is_read_and_shown_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.toml");
        fs::write(&path, TEMPLATE).unwrap();
        let shown = read(&path).unwrap().show(true, false).unwrap();
        assert!(shown.contains("[[stream]]\n") && shown.contains("when_full = \"reject\""), "{shown}");
        assert!(shown.contains("device.toml:") && shown.contains("# default"), "{shown}");
    }

    #[test]
    fn what_a_file_names_and_is_not_there_is_said_with_the_line_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.toml");
        let head = "[device]\nsite = \"pit-7\"\nid = \"truck-7\"\n";
        fs::write(&path, format!("{head}state = \"not-mounted\"\n")).unwrap();
        let error = examine(&path).unwrap_err();
        assert_eq!(error.reason, ErrorReason::DataDirUnwritable);
        assert!(error.what.ends_with("device.toml:4)"), "{error}");
        fs::write(&path, format!("{head}[gateway]\nendpoints = [\"a:1\"]\nca = \"ca.pem\"\n")).unwrap();
        let error = examine(&path).unwrap_err();
        assert!(error.what.contains("ca.pem") && error.what.ends_with("device.toml:6)"), "{error}");
        fs::write(&path, head).unwrap();
        let report = examine(&path).unwrap();
        assert!(report.to_text().contains("it seals to files alone"), "{report:?}");
    }
}
