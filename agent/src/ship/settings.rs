//! What a group's sites are: `STATE/groups/NAME.json`.
//!
//! What always holds: sites belong to the group, not to a guest of it, so that they stay whoever leaves;
//! the file is there only while a guest of the group is protected and a site was ever asked for.

use super::site::Site;
use crate::settings::SETTINGS_BYTES_MAX;
use afterimage_journal::storage::read_plain;
use afterimage_journal::{Error, Result, layout};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Most sites of a group.
pub const SITES_MAX: usize = 8;
/// Age of the oldest record that a site lacks from which on there is an alarm, unless somebody says
/// otherwise, in milliseconds.
pub const RPO_ALARM_MS: u64 = 30_000;

/// A site of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteSettings {
    /// Its name, which has no secret.
    pub site: String,
    /// The identity of a site that is a directory: another disk at its place is another site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
}

/// A group's sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSettings {
    /// The sites, each name once.
    #[serde(default)]
    pub sites: Vec<SiteSettings>,
    /// Age of the oldest record that a site lacks from which on there is an alarm, in milliseconds.
    pub rpo_alarm_ms: u64,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self { sites: Vec::new(), rpo_alarm_ms: RPO_ALARM_MS }
    }
}

/// What is to change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SitesChange {
    /// Sites to add; those that are there stay as they are.
    pub add: Vec<Site>,
    /// Names of sites to take away.
    pub remove: Vec<String>,
    /// The alarm's age, in milliseconds.
    pub rpo_alarm_ms: Option<u64>,
}

impl SitesChange {
    /// Reads what a person wrote.
    ///
    /// # Errors
    /// A text is no site, or added and removed at once.
    pub fn parse(
        add: &[String],
        remove: &[String],
        rpo_alarm_ms: Option<u64>,
    ) -> std::result::Result<Self, String> {
        let sites = |texts: &[String]| -> std::result::Result<Vec<Site>, String> {
            texts.iter().map(|text| Site::parse(text)).collect()
        };
        let mut add = sites(add)?;
        let mut names = std::collections::BTreeSet::new();
        add.retain(|site| names.insert(site.name()));
        let remove = sites(remove)?;
        let remove: Vec<String> = remove.iter().map(Site::name).collect();
        if let Some(both) = add.iter().map(Site::name).find(|name| remove.contains(name)) {
            return Err(format!("site {both} is to be added and removed at once: say one of them"));
        }
        Ok(Self { add, remove, rpo_alarm_ms })
    }

    /// Whether nothing is to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl GroupSettings {
    /// Whether a site is one of the group's.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.sites.iter().any(|s| s.site == name)
    }

    /// The settings of a group; those of one that has none.
    ///
    /// # Errors
    /// They can't be read or understood: guessing would leave a site without its data in silence.
    pub fn load(state: &Path, group: &str) -> Result<Self> {
        let path = path_of(state, group)?;
        let bytes = match read_plain(&path, SETTINGS_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Error::io("read settings", &path, e)),
        };
        let unusable = |why: String| Error::Unusable {
            path: path.clone(),
            why: format!("{why}; correct it, or remove it and add the group's sites again"),
        };
        let read: Self = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
        for site in &read.sites {
            Site::parse(&site.site).map_err(unusable)?;
        }
        Ok(read)
    }

    /// Writes them, durably.
    ///
    /// # Errors
    /// They can't be written.
    pub fn save(&self, state: &Path, group: &str) -> Result<()> {
        let path = path_of(state, group)?;
        layout::make_dir(&state.join("groups"))?;
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Invalid(format!("encode settings: {e}")))?;
        layout::replace_file(&path, &json)
    }

    /// Removes a group's settings; done as well when there are none.
    ///
    /// # Errors
    /// They can't be removed.
    pub fn remove(state: &Path, group: &str) -> Result<()> {
        let path = path_of(state, group)?;
        match std::fs::remove_file(&path) {
            Ok(()) => layout::sync_dir(&state.join("groups")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("remove settings", &path, e)),
        }
    }
}

fn path_of(state: &Path, group: &str) -> Result<PathBuf> {
    layout::check_name(group)?;
    Ok(state.join("groups").join(format!("{group}.json")))
}
