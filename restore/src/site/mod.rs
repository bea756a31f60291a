//! The recovery site: a daemon that takes in the journals of agents elsewhere, and keeps them.
//!
//! ```text
//! STATE/format         the state directory's, so that `restore`, `export`, `verify` work here as anywhere
//! STATE/tls/           who the site is, and whom it let in (`afterimage_link::identity`)
//! STATE/site/          settings.json: windows and limits of groups
//! STATE/site.sock      answers what commands ask of the daemon ([`control`])
//! STATE/pool/GROUP/    the journals: the same bytes as at their sources
//! ```
//!
//! What always holds:
//! * one process a state directory; each journal has one writer, and one keeper beside it, also while no
//!   agent is connected: the window goes on moving;
//! * a keeper never runs while a replica looks at what is there;
//! * commands change files, which the daemon looks at every second, or ask it ([`control`]): nothing needs a
//!   restart.

pub mod control;
mod daemon;
mod ground;
mod group;
mod groups;
mod notify;
mod place;
mod seed;
pub mod settings;
pub mod status;

pub use control::Daemon;
pub use daemon::{SiteArgs, serve};
pub use seed::{Seeded, seed};
pub use settings::GroupSettings;
pub use status::{ConnectionStatus, SiteGroupStatus};

use std::path::{Path, PathBuf};

/// The socket at which a site's daemon is asked.
#[must_use]
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("site.sock")
}
