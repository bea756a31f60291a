//! Windows and limits of a site's groups: `STATE/site/settings.json`.

use afterimage_journal::layout;
use afterimage_journal::window::{Keep, Limits};
use afterimage_link::files;
use afterimage_link::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How far back a group is kept that nothing was set for, in seconds.
pub const WINDOW_S_DEFAULT: u64 = 24 * 3600;
const SECOND_NS: u64 = 1_000_000_000;

/// A group's settings at the site; what is `None` is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSettings {
    /// How far back, and which checkpoints behind that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// What its journal may take, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// How far back it stays restorable when space is short, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee_s: Option<u64>,
    /// Just the files that the source keeps: nothing is merged here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mirror: bool,
}

impl GroupSettings {
    /// What the keeper goes by.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let keep = self.keep.clone();
        let keep = keep.unwrap_or_else(|| Keep::every_write(WINDOW_S_DEFAULT * SECOND_NS));
        let limits = Limits::thinned(keep, self.limit_bytes);
        match self.guarantee_s {
            Some(s) => limits.with_guarantee(s.saturating_mul(SECOND_NS)),
            None => limits,
        }
    }
}

/// All groups'.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    #[serde(default)]
    groups: BTreeMap<String, GroupSettings>,
}

/// Where they lie below a state directory.
#[must_use]
pub fn path(state: &Path) -> PathBuf {
    state.join("site").join("settings.json")
}

impl Settings {
    /// Those of a state directory.
    ///
    /// # Errors
    /// They can't be read, or are damaged.
    pub fn load(state: &Path) -> Result<Self> {
        Ok(files::read(&path(state))?.unwrap_or_default())
    }

    /// Those of a group.
    #[must_use]
    pub fn of(&self, group: &str) -> GroupSettings {
        self.groups.get(group).cloned().unwrap_or_default()
    }

    /// Changes a group's, durably; what they are then.
    ///
    /// # Errors
    /// The name can't be one, or they can't be written.
    pub fn change(
        state: &Path,
        group: &str,
        change: impl FnOnce(&mut GroupSettings),
    ) -> Result<GroupSettings> {
        layout::check_name(group).map_err(|e| Error::Invalid(e.to_string()))?;
        let path = path(state);
        let dir = path.parent().unwrap_or(state);
        files::make_dir(dir)?;
        let _lock = files::lock(dir)?;
        let mut settings = Self::load(state)?;
        let of_group = settings.groups.entry(group.to_owned()).or_default();
        change(of_group);
        let changed = of_group.clone();
        files::write(&path, &settings)?;
        Ok(changed)
    }
}
