//! The bundle files: those that `[keys] bundles` names, and those in the authority's folder.
//!
//! - A file is read when it has changed, and what is in it is served if the books take it. One that cannot be read, or that they
//!   refuse, changes nothing: what was served for its site stays.
//! - After a reload a site is served no longer once every file that is named says its site and none of them says this one. A file that
//!   cannot be read might be any site's, so nothing is withdrawn before it can; one that the books refuse speaks for its site all the
//!   same. So a wrong name, an older file or a new name for the same one takes no keys from anybody.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pithead_sealing::Site;

use crate::books::{Books, BooksError, Published};
use crate::config::Authority;

/// A bundle file, when it last changed, and for which site it speaks, if it could ever be read.
#[derive(Debug)]
struct BundleFile {
    path: PathBuf,
    seen: Option<(SystemTime, u64)>,
    site: Option<Site>,
}

impl BundleFile {
    fn new(path: PathBuf) -> Self {
        Self { path, seen: None, site: None }
    }
}

/// What came of a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Whether something is served that was not.
    pub(super) changed: bool,
    /// Sites that nothing is served for any more.
    pub(super) withdrawn: Vec<Site>,
    /// What an operator should know: files that were not taken, and what stays because of them.
    pub(super) warnings: Vec<String>,
}

/// The bundle files.
#[derive(Debug)]
pub(super) struct Bundles {
    files: Vec<BundleFile>,
    /// The authority's own, of whichever sites it has.
    folder: Option<PathBuf>,
    /// Others are named than were: sites that none of them speaks for are to be withdrawn.
    renamed: bool,
}

impl Bundles {
    /// These, and those of the authority.
    pub(super) fn new(paths: &[PathBuf], authority: Option<&Authority>) -> Self {
        let files = paths.iter().cloned().map(BundleFile::new).collect();
        let folder = authority.map(|authority| authority.dir.join("bundles"));
        Self { files, folder, renamed: false }
    }

    /// From now on these, besides those of the authority's folder.
    pub(super) fn name(&mut self, paths: &[PathBuf]) {
        let folder = self.folder.clone();
        let is_of_folder = |path: &Path| folder.as_deref().is_some_and(|folder| path.starts_with(folder));
        self.files.retain(|file| paths.contains(&file.path) || is_of_folder(&file.path));
        for path in paths {
            self.add(path);
        }
        self.renamed = true;
    }

    /// Reads all of them at the next look.
    pub(super) fn forget(&mut self) {
        for file in &mut self.files {
            file.seen = None;
        }
    }

    /// Takes in what has changed, and withdraws what nobody names any more.
    pub(super) fn look(&mut self, data_dir: &Path, books: &mut Books) -> Look {
        let mut look = Look::default();
        self.list();
        for BundleFile { path, seen, site } in &mut self.files {
            let stamp = std::fs::metadata(&*path).and_then(|meta| Ok((meta.modified()?, meta.len()))).ok();
            if stamp.is_some() && stamp == *seen {
                continue;
            }
            let taken = Published::read(path).and_then(|published| {
                *site = Some(published.site.clone());
                books.take_in(data_dir, path, published)
            });
            match taken {
                Ok(new) => {
                    *seen = stamp;
                    look.changed |= new;
                    if new {
                        tracing::info!(event = "keys.accepted", path = %path.display());
                    }
                }
                Err(error) => {
                    // Said once for each state of the file. What a disk did is tried again: it may pass.
                    *seen = if matches!(error, BooksError::Io { .. }) { None } else { stamp };
                    look.warnings.push(refused(&error));
                }
            }
        }
        if self.renamed {
            self.withdraw(books, &mut look);
        }
        look
    }

    fn withdraw(&mut self, books: &mut Books, look: &mut Look) {
        let named: BTreeSet<&Site> = self.files.iter().filter_map(|file| file.site.as_ref()).collect();
        let gone: Vec<Site> = books.served().keys().filter(|site| !named.contains(site)).cloned().collect();
        if let Some(unread) = self.files.iter().find(|file| file.site.is_none()) {
            for site in gone {
                look.warnings.push(format!(
                    "{site} is served what it was, though no bundle of it is named: {} may be one, and cannot be read",
                    unread.path.display()
                ));
            }
            return;
        }
        self.renamed = false;
        for site in gone {
            if books.withdraw(&site) {
                tracing::info!(event = "keys.withdrawn", %site);
                look.withdrawn.push(site);
            }
        }
    }

    /// Files that have come into the authority's folder.
    fn list(&mut self) {
        let Some(folder) = &self.folder else { return };
        // It is made with the first bundle.
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let paths: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|ext| ext == "pb")).collect();
        for path in &paths {
            self.add(path);
        }
    }

    fn add(&mut self, path: &Path) {
        if !self.files.iter().any(|known| known.path == path) {
            self.files.push(BundleFile::new(path.to_owned()));
        }
    }
}

/// Says it in the log, and in words for whoever ordered the look.
fn refused(error: &BooksError) -> String {
    let reason = error.reason();
    tracing::error!(event = "keys.refused", code = reason.code(), reason = reason.name(), %error, "what was in force stays");
    format!("{error}: {} {}; it is not taken, and what was served stays", reason.code(), reason.name())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pithead_sealing::trust::{KeyStatus, UnixTime};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::authority::testing::{DAY, START, TestAuthority, site};
    use crate::publish::Publisher;

    /// An authority with two statements for one site, each in a bundle file, and a decryptor that serves the newer.
    struct Rig {
        authority: TestAuthority,
        data: tempfile::TempDir,
        books: Books,
        bundles: Bundles,
        publisher: Publisher,
    }

    impl Rig {
        async fn new() -> Self {
            let authority = TestAuthority::new();
            let key = authority.key(1);
            let data = tempfile::tempdir().unwrap();
            for (name, at) in [("old.pb", START), ("new.pb", UnixTime(START.0 + DAY))] {
                authority.list(&[key.offered(KeyStatus::Active)], at).await.unwrap();
                fs::copy(authority.dir().bundle_path(&site("pit-7")), authority.folder.path().join(name))
                    .unwrap();
            }
            let books = Books::open(data.path(), &[]).unwrap();
            let mut rig = Self {
                bundles: Bundles::new(&[authority.folder.path().join("new.pb")], None),
                publisher: Publisher::new(CancellationToken::new()),
                authority,
                data,
                books,
            };
            let look = rig.look();
            assert_eq!((look.changed, rig.served()), (true, Some(2)));
            rig
        }

        fn path(&self, name: &str) -> PathBuf {
            self.authority.folder.path().join(name)
        }

        fn look(&mut self) -> Look {
            let look = self.bundles.look(self.data.path(), &mut self.books);
            self.publisher.publish(&self.books);
            look
        }

        /// A reload that names these.
        fn reload(&mut self, names: &[&str]) -> Look {
            let paths: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
            self.bundles.name(&paths);
            self.bundles.forget();
            self.look()
        }

        /// The sequence of what is served.
        fn served(&self) -> Option<u64> {
            self.books.served().get(&site("pit-7")).map(|published| published.statement.sequence)
        }
    }

    #[tokio::test]
    async fn a_reload_that_names_an_older_bundle_of_the_site_changes_nothing_and_says_so() {
        let mut rig = Rig::new().await;
        let look = rig.reload(&["old.pb"]);
        assert_eq!((look.changed, &look.withdrawn, rig.served()), (false, &vec![], Some(2)));
        assert_eq!(look.warnings.len(), 1);
        assert!(
            look.warnings[0].contains("old.pb") && look.warnings[0].contains("TRUST_ROLLBACK"),
            "{look:?}"
        );
    }

    #[tokio::test]
    async fn a_reload_that_names_what_cannot_be_read_takes_no_keys_away_and_says_so_until_it_can() {
        let mut rig = Rig::new().await;
        fs::write(rig.path("torn.pb"), b"no bundle").unwrap();
        for (name, reason) in [("missing.pb", "CONFIG_UNREADABLE"), ("torn.pb", "TRUST_PARSE")] {
            let look = rig.reload(&[name]);
            assert_eq!((look.changed, &look.withdrawn, rig.served()), (false, &vec![], Some(2)));
            assert_eq!(look.warnings.len(), 2, "{look:?}");
            assert!(look.warnings[0].contains(name) && look.warnings[0].contains(reason), "{look:?}");
            assert!(look.warnings[1].starts_with("pit-7 is served what it was"), "{look:?}");
        }
        // Whose it is is known now, and it is not another's.
        fs::copy(rig.path("new.pb"), rig.path("torn.pb")).unwrap();
        assert_eq!((rig.look(), rig.served()), (Look::default(), Some(2)));
    }

    #[tokio::test]
    async fn a_bundle_under_another_name_is_the_same_and_no_watcher_is_told_of_it() {
        let mut rig = Rig::new().await;
        let mut watching = rig.publisher.watch(&site("pit-7")).unwrap();
        watching.mark_unchanged();
        fs::copy(rig.path("new.pb"), rig.path("renamed.pb")).unwrap();
        fs::remove_file(rig.path("new.pb")).unwrap();
        assert_eq!(rig.reload(&["renamed.pb"]), Look::default());
        assert!(!watching.has_changed().unwrap() && rig.served() == Some(2));
        // One that is not named any more and is nobody's is.
        let look = rig.reload(&[]);
        assert_eq!((look.withdrawn, look.warnings, rig.served()), (vec![site("pit-7")], vec![], None));
        assert!(watching.borrow().is_none());
    }

    #[tokio::test]
    async fn what_was_refused_as_older_is_not_served_when_the_newer_is_not_named_any_more() {
        let mut rig = Rig::new().await;
        assert_eq!(rig.reload(&["new.pb", "old.pb"]).warnings.len(), 1);
        let look = rig.reload(&["old.pb"]);
        assert_eq!((look.changed, &look.withdrawn, rig.served()), (false, &vec![], Some(2)));
        assert!(look.warnings[0].contains("TRUST_ROLLBACK"), "{look:?}");
    }

    #[tokio::test]
    async fn what_was_withdrawn_is_still_what_an_older_one_is_measured_by() {
        let mut rig = Rig::new().await;
        assert_eq!(rig.reload(&[]).withdrawn, [site("pit-7")]);
        let look = rig.reload(&["old.pb"]);
        assert_eq!((look.warnings.len(), rig.served()), (1, None));
        assert!(look.warnings[0].contains("TRUST_ROLLBACK"), "{look:?}");
        let look = rig.reload(&["new.pb"]);
        assert_eq!((look.changed, look.warnings, rig.served()), (true, vec![], Some(2)));
    }
}
