//! How a site is: asked of the daemon at its socket, or told from the files.

use super::control::Daemon;
use super::settings::Settings;
use afterimage_journal::history::History;
use afterimage_journal::keeper::Occupancy;
use afterimage_journal::layout;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A link that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Where the agent comes from.
    pub addr: String,
    /// Its certificate's serial, in hex.
    pub serial: String,
    /// The journal's epoch.
    pub epoch: u64,
    /// Since when.
    pub since: Timestamp,
}

/// A group at a site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteGroupStatus {
    /// Its name.
    pub group: String,
    /// The agent that is connected.
    pub connection: Option<ConnectionStatus>,
    /// Why the last link ended.
    pub ended: Option<String>,
    /// Every number up to here is durable at the site.
    pub watermark: u64,
    /// Wall time of the newest record that is, nanoseconds since the Unix epoch.
    pub newest_ns: Option<u64>,
    /// Its age, milliseconds: how far the site is behind.
    pub lag_ms: Option<u64>,
    /// Payload that came since the daemon started, bytes.
    pub received_bytes: u64,
    /// How far back it is to be kept, seconds.
    pub window_s: u64,
    /// What can be restored, from when to when.
    pub restorable: Option<(Timestamp, Timestamp)>,
    /// Units and merged units.
    pub units: u64,
    /// What they take, bytes.
    pub bytes: u64,
    /// What they may take, bytes.
    pub limit_bytes: Option<u64>,
    /// Whether it holds just what the source holds.
    pub mirror: bool,
    /// What is wrong.
    pub error: Option<String>,
    /// What the keeper says.
    pub space: Option<Occupancy>,
    /// No daemon runs: it is what the files tell.
    #[serde(default)]
    pub offline: bool,
}

/// How the groups of a site are, by name.
///
/// # Errors
/// The state directory can't be read.
pub fn read(state: &Path) -> afterimage_journal::Result<Vec<SiteGroupStatus>> {
    let asked = Daemon::find(state).map(|daemon| daemon.status()).transpose();
    let (mut groups, offline) = match asked {
        Ok(Some(groups)) => (groups, false),
        Ok(None) => (from_files(state)?, true),
        Err(error) => {
            tracing::warn!(%error, "this is what the files tell");
            (from_files(state)?, true)
        }
    };
    for group in &mut groups {
        group.offline = offline;
        look(state, group);
    }
    Ok(groups)
}

fn from_files(state: &Path) -> afterimage_journal::Result<Vec<SiteGroupStatus>> {
    let settings = Settings::load(state).unwrap_or_default();
    let status = |group: String| {
        let of_group = settings.of(&group);
        SiteGroupStatus {
            window_s: of_group.limits().keep.every_write_ns() / 1_000_000_000,
            limit_bytes: of_group.limit_bytes,
            mirror: of_group.mirror,
            group,
            ..SiteGroupStatus::default()
        }
    };
    Ok(layout::journals(state)?.into_iter().map(status).collect())
}

/// Adds what the journal on disk tells.
fn look(state: &Path, group: &mut SiteGroupStatus) {
    let loaded = layout::journal_dir(state, &group.group).and_then(|dir| History::load(&dir));
    match loaded {
        Ok(history) => {
            let (first, last) = (history.level.first(), history.level.last());
            if let (Some(first), Some(last)) = (first, last) {
                let time = |seq| crate::time::stamp(history.point(seq).wall_ns);
                group.restorable = Some((time(first.from), time(last.to)));
            }
            let files = history.units.iter().filter_map(|u| std::fs::metadata(&u.path).ok());
            group.bytes = files.map(|m| m.blocks() * 512).sum();
            group.units = history.units.len() as u64;
            if group.offline {
                // What is in the files survived whatever ended the daemon.
                group.watermark = history.head;
                let newest = history.point(history.head).wall_ns;
                group.newest_ns = (newest > 0).then_some(newest);
            }
        }
        // Nothing came yet, or the agent is only about to send it.
        Err(e) if group.watermark == 0 => tracing::debug!(error = %e, "a journal without history"),
        Err(e) => group.error = Some(e.to_string()),
    }
    let now = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
    group.lag_ms = group.newest_ns.map(|ns| now.saturating_sub(ns) / 1_000_000);
}
