//! Durable intents: what must be undone if we die before we could do it ourselves (I-10).
//!
//! An intent is written, durably, before a guest is frozen, and removed after it was thawed. The
//! guard has what is left undone after each death of the worker, before the next one starts; so
//! does the agent when it starts.

use afterimage_journal::{Error, Result, layout};
use afterimage_qmp::guest_agent::{AgentChannel, thaw_blocking, thaw_blocking_virsh};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one undoing may take.
const UNDO_LIMIT: Duration = Duration::from_millis(1500);

/// What has to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intent {
    /// The guest's file systems are about to be frozen, or are: thaw them.
    Thaw(AgentChannel),
}

/// An intent on disk. Dropped without [`Standing::done`], it stays and is undone later.
#[must_use]
pub struct Standing {
    path: PathBuf,
}

fn dir(state: &Path) -> PathBuf {
    state.join("intents")
}

/// Writes an intent for a guest, durably.
///
/// # Errors
/// It can't be written: then what it is about must not be begun.
pub fn write(state: &Path, guest: &str, intent: &Intent) -> Result<Standing> {
    layout::make_dir(&dir(state))?;
    let path = dir(state).join(format!("{guest}.json"));
    let json =
        serde_json::to_vec(intent).map_err(|e| Error::Invalid(format!("encode intent: {e}")))?;
    layout::replace_file(&path, &json)?;
    Ok(Standing { path })
}

impl Standing {
    /// What it was about is undone.
    ///
    /// # Errors
    /// The file can't be removed; undoing again does no harm.
    pub fn done(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io("remove intent", &self.path, e))
    }
}

/// Undoes every intent that stands. Blocking; each within a limit. Returns how many are left.
pub fn undo_all(state: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir(state)) else { return 0 };
    let mut left = 0;
    for path in entries.flatten().map(|e| e.path()) {
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let intent = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let undone = match &intent {
            Some(Intent::Thaw(AgentChannel::Socket(socket))) => {
                thaw_blocking(socket, UNDO_LIMIT).map_err(|e| e.to_string())
            }
            Some(Intent::Thaw(AgentChannel::Libvirt(target))) => {
                thaw_blocking_virsh(target, UNDO_LIMIT).map_err(|e| e.to_string())
            }
            // Torn or foreign: nothing was begun before the whole file was durable.
            None => Ok(0),
        };
        match undone {
            Ok(count) => {
                tracing::warn!(intent = %path.display(), count, "thawed a guest left frozen");
                let _ = std::fs::remove_file(&path);
            }
            Err(why) => {
                tracing::error!(intent = %path.display(), %why, "a guest may be frozen");
                left += 1;
            }
        }
    }
    left
}
