//! A site as a bench needs it: the gateway as it ships, with the spool that a real one has, and the relay only where it
//! is measured.

use std::fs;

use anyhow::Context as _;
use pithead_tests::site::{KeySource, Site, SiteOptions};

/// What differs between benches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Yard {
    /// Bytes that the spool may take, as the configuration says it.
    pub(crate) spool: &'static str,
    /// The gateway has somewhere to send to.
    pub(crate) relay: bool,
}

impl Yard {
    /// Makes the site. Nothing runs yet.
    pub(crate) async fn create(self) -> anyhow::Result<Site> {
        let options = SiteOptions { keys: KeySource::Bundle, ..SiteOptions::default() };
        let site = Site::create(options).await?;
        let path = site.gateway_config();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut kept = String::new();
        for section in sections(&text) {
            match section {
                _ if section.starts_with("[spool]") => {
                    kept.push_str(&format!("[spool]\nmax_size = \"{}\"\n\n", self.spool));
                }
                _ if section.starts_with("[relay]") && !self.relay => {}
                _ => kept.push_str(section),
            }
        }
        fs::write(&path, kept).with_context(|| path.display().to_string())?;
        Ok(site)
    }

    /// Makes it, and starts the gateway alone.
    pub(crate) async fn start(self) -> anyhow::Result<Site> {
        let mut site = self.create().await?;
        site.start_gateway().await?;
        Ok(site)
    }
}

/// A TOML file cut before the line that begins each section.
fn sections(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest[1..].find("\n[").map_or(rest.len(), |at| at + 2);
        let (section, later) = rest.split_at(end);
        rest = later;
        Some(section)
    })
}
