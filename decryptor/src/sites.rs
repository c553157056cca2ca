//! The sites whose gateways and devices may connect, each with its own CA: those of the configuration, and those that
//! `site add` has put into `DATA/sites/<name>.pem`.

use crate::config::Config;
use pithead_hop::program::disk::create_folder;
use pithead_hop::tls::{Pem, SiteTrust, TlsError};
use pithead_sealing::Site;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Why a site was not added, or sites could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SitesError {
    /// There is one of that name.
    #[error("the site {0} is there already")]
    Known(Site),
    /// The file is no CA.
    #[error(transparent)]
    Ca(#[from] TlsError),
    /// The folder of sites.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// One known site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSite {
    /// Its name.
    pub name: Site,
    /// The PEM file of its CA.
    pub ca: PathBuf,
    /// Its revocation lists.
    pub crls: Vec<PathBuf>,
    /// Whether `site add` put it there, rather than the configuration.
    pub added: bool,
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("sites")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SitesError {
    let path = path.to_owned();
    move |source| SitesError::Io { path, source }
}

/// All known sites by name; the configuration's word counts where both speak of one.
pub fn list(config: &Config) -> Result<Vec<KnownSite>, SitesError> {
    let mut sites: Vec<KnownSite> = config
        .sites
        .iter()
        .map(|site| KnownSite {
            name: site.name.clone(),
            ca: site.ca.clone(),
            crls: site.crls.clone(),
            added: false,
        })
        .collect();
    let folder = folder(&config.decryptor.data_dir);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            sites.sort_by(|a, b| a.name.cmp(&b.name));
            return Ok(sites);
        }
        Err(error) => return Err(at(&folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(at(&folder))?.path();
        if path.extension().is_none_or(|ext| ext != "pem") {
            continue;
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| Site::new(stem).ok());
        let Some(name) = name else { continue };
        if !sites.iter().any(|site| site.name == name) {
            sites.push(KnownSite { name, ca: path, crls: Vec::new(), added: true });
        }
    }
    sites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sites)
}

/// Reads the CAs and revocation lists of all known sites.
pub fn trust(config: &Config) -> Result<Vec<SiteTrust>, SitesError> {
    let read = |site: KnownSite| {
        let crls = site.crls.iter().map(|path| Pem::read(path)).collect::<Result<_, _>>()?;
        Ok(SiteTrust { site: site.name, ca: Pem::read(&site.ca)?, crls })
    };
    list(config)?.into_iter().map(read).collect()
}

/// Adds a site with the CA in `ca`; a running decryptor takes it in at the next SIGHUP.
pub fn add(config: &Config, name: &Site, ca: &Path) -> Result<(), SitesError> {
    if list(config)?.iter().any(|site| site.name == *name) {
        return Err(SitesError::Known(name.clone()));
    }
    let pem = Pem::read(ca)?;
    pem.certificates()?;
    let text = fs::read(ca).map_err(at(ca))?;
    let folder = folder(&config.decryptor.data_dir);
    create_folder(&folder).map_err(at(&folder))?;
    let path = folder.join(format!("{name}.pem"));
    let part = folder.join(format!("{name}.part"));
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(&text)?;
        file.sync_all()?;
        renameat_with(CWD, &part, CWD, &path, RenameFlags::NOREPLACE)?;
        File::open(&folder)?.sync_all()
    };
    write().map_err(at(&path))
}
