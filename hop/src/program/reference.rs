//! Pages of docs/reference that are made out of the programs: a test compares each with what stands there.

use std::{fs, path::Path};

/// Compares a page with its file; with `UPDATE_REFERENCE` in the environment, writes it instead. For tests.
///
/// # Errors
/// What differs first, and what to do.
pub fn keep(path: &Path, page: &str) -> Result<(), String> {
    let failed = |error| format!("{}: {error}", path.display());
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        return fs::write(path, page).map_err(failed);
    }
    let todo = "make it anew with UPDATE_REFERENCE=1 and this test, and look at what has changed";
    let stands = fs::read_to_string(path).map_err(|error| format!("{}; {todo}", failed(error)))?;
    if stands == page {
        return Ok(());
    }
    let number = stands.lines().zip(page.lines()).take_while(|(a, b)| a == b).count();
    let line = |text: &str| text.lines().nth(number).unwrap_or("(the end)").to_owned();
    Err(format!(
        "{}:{}: has\n  {}\nand should have\n  {}\n{todo}",
        path.display(),
        number + 1,
        line(&stands),
        line(page)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_not_what_the_program_says_is_shown_with_its_first_line_that_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.md");
        assert!(keep(&path, "a\nb\n").unwrap_err().contains("UPDATE_REFERENCE=1"));
        fs::write(&path, "a\nb\n").unwrap();
        keep(&path, "a\nb\n").unwrap();
        let differs = keep(&path, "a\nc\n").unwrap_err();
        assert!(differs.contains("page.md:2: has\n  b\nand should have\n  c"), "{differs}");
        assert!(keep(&path, "a\nb\nmore\n").unwrap_err().contains("(the end)"));
    }
}
