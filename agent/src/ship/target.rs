//! From a SITE to a sink: the one place that knows all kinds.
//!
//! What always holds: a site is adopted once, by a person's wish, and from then on only found again; what
//! is not built into this program is refused by name.

use super::directory::{self, DirectorySink, Window};
use super::settings::SiteSettings;
use super::site::Site;
use afterimage_journal::wire::Sink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often a directory is asked to make durable what it got.
const DIRECTORY_SYNC_EVERY: Duration = Duration::from_millis(100);

/// A site of a group, ready to be opened.
pub(super) struct Target {
    name: String,
    kind: Kind,
}

enum Kind {
    Directory { settings: SiteSettings, group: String, window: Arc<dyn Window> },
}

/// Why there is no such site.
pub(super) fn unsupported(site: &Site) -> String {
    format!(
        "site {}: this version ships to directories only; give a directory, of another machine's \
         if it is mounted here",
        site.name()
    )
}

/// Takes a site into use: makes what it needs, once.
///
/// # Errors
/// It can't be one: why, and what to do.
pub fn adopt(site: &Site, state: &Path) -> Result<SiteSettings, String> {
    match site {
        Site::Directory(dir) => {
            let id = directory::adopt(dir, state)?;
            Ok(SiteSettings { site: site.name(), id: Some(id) })
        }
        Site::Server { .. } | Site::Bucket { .. } => Err(unsupported(site)),
    }
}

/// Whether a site can be taken into use, as far as that can be told without changing anything.
///
/// # Errors
/// It can't: why, and what to do.
pub fn check(site: &Site, state: &Path) -> Result<(), String> {
    match site {
        Site::Directory(dir) => directory::check(dir, state),
        Site::Server { .. } | Site::Bucket { .. } => Err(unsupported(site)),
    }
}

impl Target {
    /// The site of a group.
    ///
    /// # Errors
    /// This program has no such sites.
    pub(super) fn of(
        settings: &SiteSettings,
        group: &str,
        window: Arc<dyn Window>,
    ) -> Result<Self, String> {
        let site = Site::parse(&settings.site)?;
        let (settings, group) = (settings.clone(), group.to_owned());
        match site {
            Site::Directory(_) => {
                Ok(Self { name: site.name(), kind: Kind::Directory { settings, group, window } })
            }
            Site::Server { .. } | Site::Bucket { .. } => Err(unsupported(&site)),
        }
    }

    /// The site's name, without secrets.
    pub(super) fn name(&self) -> String {
        self.name.clone()
    }

    /// How often it is asked to make durable what it got.
    pub(super) fn sync_every(&self) -> Duration {
        match self.kind {
            Kind::Directory { .. } => DIRECTORY_SYNC_EVERY,
        }
    }

    /// A sink that leads there, not opened yet.
    pub(super) fn sink(&self) -> Box<dyn Sink> {
        match &self.kind {
            Kind::Directory { settings, group, window } => {
                let dir = Path::new(&settings.site);
                Box::new(DirectorySink::new(dir, settings.id, group, Arc::clone(window)))
            }
        }
    }
}
