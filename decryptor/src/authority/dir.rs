//! The authority's folder. It is the authority's memory: back it up, and keep it from everybody else.
//!
//! ```text
//! DIR/roots/1.cose ...                    signed roots, for ever
//! DIR/statements/<site>/<sequence>.cose   signed statements, for ever
//! DIR/spki/<fingerprint>.der              public keys that statements name
//! DIR/keys/root-1.pem ... statement-1.pem PKCS#8, mode 0600; the root keys do not stay here
//! DIR/bundles/<site>.pb                   what gateways are given: a pithead.keys.v1.KeyBundle, replaced each time
//! DIR/audit.log                           one JSON line per act
//! DIR/lock                                held while somebody is at work
//! ```
//!
//! Signed objects are never replaced: a second one under the same name is an error. A file is written beside its place,
//! synced, renamed, and its folder synced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pithead_hop::program::disk;
use pithead_sealing::Site;
use pithead_sealing::trust::{MAX_ROOTS, MAX_SPKI, Root, RsaSpki, Sha256Digest, Statement, verify};

use super::error::AuthorityError;

/// An authority's folder, to be read: files appear whole or not at all, so nobody has to be kept out for that.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

/// An authority's folder, locked for as long as this value lives.
#[derive(Debug)]
pub struct AuthorityDir {
    folder: Folder,
    _lock: File,
}

impl Deref for AuthorityDir {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl AuthorityDir {
    /// Makes the folder for a new authority.
    pub(super) fn create(path: &Path) -> Result<AuthorityDir, AuthorityError> {
        make_folder(path, 0o700)?;
        let dir = AuthorityDir::lock(path)?;
        if dir.root_path(1).exists() || dir.path.join("keys").exists() {
            return Err(AuthorityError::Exists(path.into()));
        }
        Ok(dir)
    }

    /// Opens the folder of an authority that was made before.
    ///
    /// # Errors
    /// [`AuthorityError::Missing`], [`AuthorityError::Locked`].
    pub fn open(path: &Path) -> Result<AuthorityDir, AuthorityError> {
        Folder::open(path)?;
        AuthorityDir::lock(path)
    }

    fn lock(path: &Path) -> Result<AuthorityDir, AuthorityError> {
        let lock_path = path.join("lock");
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(&lock_path).map_err(AuthorityError::file("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(AuthorityDir { folder: Folder { path: path.into() }, _lock: lock }),
            // Two that sign at once would give one sequence number to two statements.
            Err(TryLockError::WouldBlock) => Err(AuthorityError::Locked(path.into())),
            Err(TryLockError::Error(error)) => Err(AuthorityError::file("lock", lock_path)(error)),
        }
    }

    pub(super) fn keep_root(&self, root: &Root) -> Result<(), AuthorityError> {
        write_new(&self.root_path(root.version), root.object(), 0o644)
    }

    pub(super) fn keep_statement(&self, site: &Site, statement: &Statement) -> Result<(), AuthorityError> {
        write_new(&self.statement_path(site, statement.sequence), statement.object(), 0o644)
    }

    pub(super) fn keep_spki(&self, spki: &RsaSpki) -> Result<(), AuthorityError> {
        write_whole(&self.path.join(format!("spki/{}.der", spki.fingerprint())), spki.der())
    }

    pub(super) fn keep_key(&self, name: &str, pem: &[u8]) -> Result<(), AuthorityError> {
        write_new(&self.key_path(name), pem, 0o600)
    }
}

impl Folder {
    /// The folder of an authority that was made before.
    ///
    /// # Errors
    /// [`AuthorityError::Missing`].
    pub fn open(path: &Path) -> Result<Folder, AuthorityError> {
        if !path.join("roots/1.cose").exists() {
            return Err(AuthorityError::Missing(path.into()));
        }
        Ok(Folder { path: path.into() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn root_path(&self, version: u64) -> PathBuf {
        self.path.join(format!("roots/{version}.cose"))
    }

    fn statement_path(&self, site: &Site, sequence: u64) -> PathBuf {
        self.path.join(format!("statements/{site}/{sequence}.cose"))
    }

    /// Where the key file of that name is.
    pub fn key_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("keys/{name}.pem"))
    }

    /// Where a site's bundle is.
    pub fn bundle_path(&self, site: &Site) -> PathBuf {
        self.path.join(format!("bundles/{site}.pb"))
    }

    pub(super) fn audit_path(&self) -> PathBuf {
        self.path.join("audit.log")
    }

    /// All roots, each verified against the one before it.
    ///
    /// # Errors
    /// [`AuthorityError::Damaged`] for the first that does not verify.
    pub fn roots(&self) -> Result<Vec<Root>, AuthorityError> {
        let mut roots: Vec<Root> = Vec::new();
        for version in 1.. {
            let path = self.root_path(version);
            let object = match fs::read(&path) {
                Ok(object) => Bytes::from(object),
                Err(error) if error.kind() == ErrorKind::NotFound && version > 1 => break,
                Err(error) => return Err(AuthorityError::file("read", path)(error)),
            };
            let verified = match roots.last() {
                Some(current) => verify::next_root(current, &object),
                None => pithead_sealing::trust::RootFields::read_unverified(&object)
                    .and_then(|(fields, _)| verify::first_root(&fields.authority, &object)),
            };
            roots.push(verified.map_err(|error| AuthorityError::Damaged { path, error })?);
            if roots.len() > MAX_ROOTS {
                return Err(AuthorityError::Request("more roots than one bundle carries"));
            }
        }
        Ok(roots)
    }

    /// The sites that statements were signed for.
    pub fn sites(&self) -> Result<Vec<Site>, AuthorityError> {
        let names = names_in(&self.path.join("statements"))?;
        Ok(names.iter().filter_map(|name| Site::new(name).ok()).collect())
    }

    /// All statements of a site in the order of their sequence numbers, their signatures verified under the root that
    /// each names.
    pub fn statements(&self, site: &Site, roots: &[Root]) -> Result<Vec<Statement>, AuthorityError> {
        self.sequences(site)?.into_iter().map(|sequence| self.statement(site, sequence, roots)).collect()
    }

    /// The last of them alone.
    pub fn last_statement(&self, site: &Site, roots: &[Root]) -> Result<Option<Statement>, AuthorityError> {
        self.sequences(site)?.last().map(|sequence| self.statement(site, *sequence, roots)).transpose()
    }

    /// Those above a number.
    pub fn statements_after(
        &self,
        site: &Site,
        sequence: u64,
        roots: &[Root],
    ) -> Result<Vec<Statement>, AuthorityError> {
        let later = self.sequences(site)?.into_iter().filter(|number| *number > sequence);
        later.map(|number| self.statement(site, number, roots)).collect()
    }

    fn sequences(&self, site: &Site) -> Result<Vec<u64>, AuthorityError> {
        let names = names_in(&self.path.join(format!("statements/{site}")))?;
        let mut sequences: Vec<u64> =
            names.iter().filter_map(|name| name.strip_suffix(".cose")?.parse().ok()).collect();
        sequences.sort_unstable();
        Ok(sequences)
    }

    fn statement(&self, site: &Site, sequence: u64, roots: &[Root]) -> Result<Statement, AuthorityError> {
        use pithead_sealing::trust::{StatementFields, TrustError};
        let path = self.statement_path(site, sequence);
        let object = Bytes::from(fs::read(&path).map_err(AuthorityError::file("read", &path))?);
        let verified = StatementFields::read_unverified(&object).and_then(|(fields, _)| {
            let root = roots.iter().find(|root| root.version == fields.root_version);
            verify::statement(root.ok_or(TrustError::NeedRoot)?, &object)
        });
        match verified {
            Ok(signed) if signed.statement.sequence == sequence => Ok(signed.statement),
            Ok(_) => Err(AuthorityError::Damaged { path, error: TrustError::Parse }),
            Err(error) => Err(AuthorityError::Damaged { path, error }),
        }
    }

    /// The public key with that fingerprint.
    pub fn spki(&self, fingerprint: &Sha256Digest) -> Result<RsaSpki, AuthorityError> {
        let path = self.path.join(format!("spki/{fingerprint}.der"));
        let der = fs::read(&path).map_err(AuthorityError::file("read", &path))?;
        let damaged = |what| AuthorityError::KeyFile { path: path.clone(), what };
        if der.len() > MAX_SPKI {
            return Err(damaged("longer than any public key"));
        }
        let spki = RsaSpki::from_der(&der).map_err(|_| damaged("not a strict RSA public key"))?;
        if spki.fingerprint() != *fingerprint {
            return Err(damaged("not the key that its name says"));
        }
        Ok(spki)
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>, AuthorityError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(AuthorityError::file("read", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(AuthorityError::file("read", folder))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Makes a folder and those above it that are missing: what is signed into one must not be signed again because the folder is gone.
fn make_folder(path: &Path, mode: u32) -> Result<(), AuthorityError> {
    disk::create_folders(path, mode).map_err(AuthorityError::file("create", path))
}

/// A file that must not be there yet.
///
/// # Errors
/// [`AuthorityError::File`]; what stands there is left as it is.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let folder = folder_for(path)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    let part = folder.join(name);
    let written = (|| {
        let mut options = OpenOptions::new();
        // One that lies there may be somebody else's, with a mode of his choosing.
        match fs::remove_file(&part) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = options.write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(content)?;
        file.sync_all()?;
        let once = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(rustix::fs::CWD, &part, rustix::fs::CWD, path, once)?;
        disk::sync_folder(folder)
    })();
    written.map_err(|error| {
        // The error is what matters; a part that stays behind is overwritten by the next try.
        let _ = fs::remove_file(&part);
        AuthorityError::file("write", path)(error)
    })
}

/// A file whose older content is replaced; nothing secret.
///
/// # Errors
/// [`AuthorityError::File`].
pub(super) fn write_whole(path: &Path, content: &[u8]) -> Result<(), AuthorityError> {
    folder_for(path)?;
    disk::replace(path, content).map_err(AuthorityError::file("write", path))
}

/// The folder of a file, made if need be.
fn folder_for(path: &Path) -> Result<&Path, AuthorityError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(folder, 0o700)?;
    Ok(folder)
}
