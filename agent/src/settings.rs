//! What the agent remembers of a guest across restarts: `STATE/guests/NAME.json`.
//!
//! Only how to reach and how to treat it. What was captured, and from which disks, is in the
//! journal alone, so that the two can't disagree.

use afterimage_journal::storage::read_plain;
use afterimage_journal::window::Keep;
use afterimage_journal::{Error, Result, layout};
use afterimage_qmp::qemu::VmIdentity;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Largest file of settings that is read, in bytes.
pub(crate) const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// How a guest's memory is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryMode {
    /// While the guest runs; it stands still for some milliseconds. Where the instant can't be found in
    /// its writes, it is stopped by command until its first page comes: tens to hundreds of milliseconds.
    #[default]
    Auto,
    /// While the guest runs, and never stopped by command.
    Background,
    /// The guest stands still until all of its memory is read.
    Stop,
}

/// A protected guest's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSettings {
    /// The guest's name.
    pub name: String,
    /// Its group: the name of its journal.
    pub group: String,
    /// Its QMP socket.
    #[serde(default)]
    pub qmp: Option<PathBuf>,
    /// Its libvirt domain.
    #[serde(default)]
    pub libvirt: Option<String>,
    /// Which disks; empty: all.
    #[serde(default)]
    pub disks: Vec<String>,
    /// Disks that others may write to as well (`share-rw=on`), and that are captured all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_disks: Vec<String>,
    /// How far back every moment is to be restorable at least, in seconds.
    pub window_s: u64,
    /// Which checkpoints are to be kept for longer; `None`: none.
    #[serde(default)]
    pub keep: Option<Keep>,
    /// What the group's journal may take on disk, in bytes.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// How far back the journal reaches even when space is short, in seconds; `None`: an hour.
    #[serde(default)]
    pub guarantee_s: Option<u64>,
    /// Time between checkpoints, in milliseconds.
    pub checkpoint_every_ms: u64,
    /// Limit of initial sync and resync, bytes a second.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
    /// The guest agent's socket.
    #[serde(default)]
    pub guest_agent: Option<PathBuf>,
    /// Time between checkpoints of its group's memory, in milliseconds; `None`: only on request.
    #[serde(default)]
    pub memory_every_ms: Option<u64>,
    /// How its memory is taken.
    #[serde(default)]
    pub memory_mode: MemoryMode,
    /// The file with the key of the group's journal, if that is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Somebody asked to let go of it.
    #[serde(default)]
    pub detached: bool,
    /// The VM that it is; `None`: it was not attached to since this is noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmIdentity>,
    /// A person said that the VM which is found next is the guest, whichever it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_vm: bool,
}

impl GuestSettings {
    /// How the guest is reached, for people.
    #[must_use]
    pub fn monitor(&self) -> String {
        match (&self.qmp, &self.libvirt) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(domain)) => format!("libvirt:{domain}"),
            (None, None) => "nothing".into(),
        }
    }

    /// What a person took knowingly, for people.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let shared = |disk: &String| {
            format!(
                "disk {disk} is shared: what another guest writes to it is missing from every recovery point"
            )
        };
        self.shared_disks.iter().map(shared).collect()
    }

    /// How far back the journal is to reach, with every write and with checkpoints behind that.
    #[must_use]
    pub fn wanted(&self) -> Keep {
        let window_ns = self.window_s.saturating_mul(1_000_000_000);
        match &self.keep {
            Some(keep) => keep.clone().with_every_write(window_ns),
            None => Keep::every_write(window_ns),
        }
    }

    /// Takes over how far back it is to reach.
    pub fn want(&mut self, keep: Keep) {
        self.window_s = keep.every_write_ns() / 1_000_000_000;
        self.keep = Some(keep).filter(Keep::thins);
    }

    /// Writes the settings, durably.
    ///
    /// # Errors
    /// They can't be written.
    pub fn save(&self, state: &Path) -> Result<()> {
        let path = path_of(state, &self.name)?;
        layout::make_dir(&state.join("guests"))?;
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Invalid(format!("encode settings: {e}")))?;
        layout::replace_file(&path, &json)
    }

    /// Removes a guest's settings; done as well when there are none.
    ///
    /// # Errors
    /// They can't be removed.
    pub fn remove(state: &Path, name: &str) -> Result<()> {
        let path = path_of(state, name)?;
        match std::fs::remove_file(&path) {
            Ok(()) => layout::sync_dir(&state.join("guests")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("remove settings", &path, e)),
        }
    }

    /// True if a guest's settings are on disk, or that can't be told.
    #[must_use]
    pub fn exist(state: &Path, name: &str) -> bool {
        path_of(state, name).is_ok_and(|path| path.try_exists().unwrap_or(true))
    }

    /// The settings of all guests, by name.
    ///
    /// # Errors
    /// A file can't be read or understood: guessing would leave a guest unprotected in silence.
    pub fn load_all(state: &Path) -> Result<Vec<Self>> {
        let dir = state.join("guests");
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list settings", &dir, e)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io("list settings", &dir, e))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let bytes = read_plain(&path, SETTINGS_BYTES_MAX)
                .map_err(|e| Error::io("read settings", &path, e))?;
            let settings: Self = serde_json::from_slice(&bytes).map_err(|e| {
                let why = format!("{e}; correct it, or remove it and protect the guest again");
                Error::Unusable { path: path.clone(), why }
            })?;
            all.push(settings);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }
}

fn path_of(state: &Path, name: &str) -> Result<PathBuf> {
    layout::check_name(name)?;
    Ok(state.join("guests").join(format!("{name}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::settings::GroupSettings;

    #[test]
    fn settings_that_are_no_regular_file_are_refused_at_once() {
        let state = tempfile::tempdir().unwrap();
        for folder in ["guests", "groups"] {
            std::fs::create_dir(state.path().join(folder)).unwrap();
        }
        let at = |folder: &str| state.path().join(folder).join("vm.json");
        for kind in ["FIFO", "symbolic link"] {
            for folder in ["guests", "groups"] {
                let path = at(folder);
                let _ = std::fs::remove_file(&path);
                match kind {
                    "FIFO" => {
                        let made = std::process::Command::new("mkfifo").arg(&path).status();
                        assert!(made.unwrap().success());
                    }
                    _ => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                }
            }
            let errors = [
                GuestSettings::load_all(state.path()).unwrap_err().to_string(),
                GroupSettings::load(state.path(), "vm").unwrap_err().to_string(),
            ];
            assert!(errors.iter().all(|e| e.contains(kind)), "{errors:?}");
        }
    }
}
