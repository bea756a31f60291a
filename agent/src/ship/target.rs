//! From a SITE to a sink: the one place that knows all kinds.
//!
//! ```text
//! STATE/credentials/GROUP/HOST_PORT/     what a server's site let the group in with
//! ```
//!
//! What always holds: a site is adopted once, by a person's wish, and from then on only found again; an
//! invitation is redeemed then and not kept; credentials of a bucket come from the agent's environment
//! and are in none of our files.

use super::directory::{self, DirectorySink, Window};
use super::settings::SiteSettings;
use super::site::Site;
use crate::api::ApiError;
use afterimage_journal::layout;
use afterimage_journal::wire::{Sink, SinkError};
use afterimage_link::{Credentials, Invitation, TlsSink, TlsTarget, redeem};
use afterimage_s3::{S3Sink, S3Url};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often a site is asked to make durable what it got: one that is near, and one where each time costs
/// requests.
const NEAR_SYNC_EVERY: Duration = Duration::from_millis(100);
const BUCKET_SYNC_EVERY: Duration = Duration::from_millis(500);

/// A site of a group, ready to be opened.
#[derive(Clone)]
pub(super) struct Target {
    name: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Directory { settings: SiteSettings, group: String, window: Arc<dyn Window> },
    Server(TlsTarget),
    Bucket(S3Url),
}

/// `HOST:PORT`, as TLS has it.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Where the credentials for a server and group lie.
fn credentials_dir(state: &Path, group: &str, host: &str, port: u16) -> Result<PathBuf, ApiError> {
    layout::check_name(group).map_err(|e| ApiError::usage(e.to_string()))?;
    // What a host's name can't have in it keeps two of them apart.
    let place = format!("{}_{port}", host.replace(':', "-"));
    Ok(state.join("credentials").join(group).join(place))
}

fn linked(error: &afterimage_link::Error) -> ApiError {
    let text = error.to_string();
    match error {
        afterimage_link::Error::Invalid(_) => ApiError::usage(text),
        afterimage_link::Error::Away(_) => ApiError::not_reachable(text),
        _ => ApiError::other(text),
    }
}

fn read_invitation(name: &str, text: &str) -> Result<Invitation, ApiError> {
    let read = text.parse::<Invitation>();
    read.map_err(|e| ApiError::usage(format!("site {name}: {e}")))
}

fn uninvited(name: &str, group: &str) -> ApiError {
    ApiError::usage(format!(
        "nobody here was let in to site {name} yet: give the invitation that `afterimage site enroll \
         --group {group}` prints there, as {name}#INVITATION"
    ))
}

/// Takes a site into use: makes what it needs, once.
///
/// # Errors
/// It can't be one: why, and what to do.
pub fn adopt(site: &Site, state: &Path, group: &str) -> Result<SiteSettings, ApiError> {
    let name = site.name();
    let id = match site {
        Site::Directory(dir) => Some(directory::adopt(dir, state).map_err(ApiError::usage)?),
        Site::Server { host, port, invitation } => {
            let dir = credentials_dir(state, group, host, *port)?;
            let found = match invitation {
                Some(text) => {
                    let invitation = read_invitation(&name, text)?;
                    let done = redeem(&address(host, *port), &invitation, &dir);
                    Some(done.map_err(|e| linked(&e))?)
                }
                None => Credentials::load(&dir).map_err(|e| linked(&e))?,
            };
            match found {
                Some(found) if found.group == group => None,
                Some(found) => {
                    return Err(ApiError::usage(format!(
                        "site {name}: the invitation is for group {}, not {group}: \
                         `afterimage site enroll --group {group}` there prints another",
                        found.group
                    )));
                }
                None => return Err(uninvited(&name, group)),
            }
        }
        Site::Bucket { .. } => None,
    };
    Ok(SiteSettings { site: name, id })
}

/// Whether a site can be taken into use, as far as that can be told without changing anything.
///
/// # Errors
/// It can't: why, and what to do.
pub fn check(site: &Site, state: &Path, group: &str) -> Result<(), ApiError> {
    match site {
        Site::Directory(dir) => directory::check(dir, state).map_err(ApiError::usage),
        Site::Server { invitation: Some(text), .. } => {
            read_invitation(&site.name(), text).map(drop)
        }
        Site::Server { host, port, .. } => {
            let dir = credentials_dir(state, group, host, *port)?;
            let found = Credentials::load(&dir).map_err(|e| linked(&e))?;
            found.map(drop).ok_or_else(|| uninvited(&site.name(), group))
        }
        Site::Bucket(url) => S3Sink::connect(url)
            .map(drop)
            .map_err(|e| ApiError::usage(format!("site {}: {e}", site.name()))),
    }
}

impl Target {
    /// The site of a group.
    ///
    /// # Errors
    /// Its name can't be read.
    pub(super) fn of(
        settings: &SiteSettings,
        state: &Path,
        group: &str,
        window: Arc<dyn Window>,
    ) -> Result<Self, String> {
        let site = Site::parse(&settings.site)?;
        let name = site.name();
        let (settings, group) = (settings.clone(), group.to_owned());
        let kind = match site {
            Site::Directory(_) => Kind::Directory { settings, group, window },
            Site::Server { host, port, .. } => {
                let dir = credentials_dir(state, &group, &host, port);
                let credentials = dir.map_err(|e| e.to_string())?;
                Kind::Server(TlsTarget { addr: address(&host, port), credentials })
            }
            Site::Bucket(url) => Kind::Bucket(url),
        };
        Ok(Self { name, kind })
    }

    /// The site's name, without secrets.
    pub(super) fn name(&self) -> String {
        self.name.clone()
    }

    /// How often it is asked to make durable what it got.
    pub(super) fn sync_every(&self) -> Duration {
        match self.kind {
            Kind::Directory { .. } | Kind::Server(_) => NEAR_SYNC_EVERY,
            Kind::Bucket(_) => BUCKET_SYNC_EVERY,
        }
    }

    /// A sink that leads there, not opened yet.
    ///
    /// # Errors
    /// What it needs of this machine isn't there: credentials, a region.
    pub(super) fn sink(&self) -> Result<Box<dyn Sink>, SinkError> {
        match &self.kind {
            Kind::Directory { settings, group, window } => {
                let dir = Path::new(&settings.site);
                Ok(Box::new(DirectorySink::new(dir, settings.id, group, Arc::clone(window))))
            }
            Kind::Server(target) => Ok(Box::new(TlsSink::new(target.clone()))),
            Kind::Bucket(url) => Ok(Box::new(S3Sink::connect(url)?)),
        }
    }
}
