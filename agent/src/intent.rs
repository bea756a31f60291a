//! Durable intents: what must be undone if we die before we could do it ourselves (I-10).
//!
//! An intent is written, durably, before a guest is frozen or its memory taken, and removed after
//! it was thawed, or runs again with QEMU's settings as they were. The guard has what is left undone
//! after each death of the worker, before the next one starts; so does the agent when it starts.

use afterimage_journal::{Error, Result, layout};
use afterimage_qmp::guest_agent::{AgentChannel, thaw_blocking, thaw_blocking_virsh};
use afterimage_qmp::qemu::{UndoSnapshot, undo_snapshot_blocking};
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
    /// The guest's memory is about to be taken, or is: cancel that, put QEMU's settings back, and let
    /// the guest run if we may have stopped it.
    Resume(UndoSnapshot),
}

impl Intent {
    /// A guest may have one of each. No guest's name holds the sign in between.
    fn file_name(&self, guest: &str) -> String {
        match self {
            Self::Thaw(_) => format!("{guest}.json"),
            Self::Resume(_) => format!("{guest}@memory.json"),
        }
    }

    fn undo(&self) -> std::result::Result<String, String> {
        let thawed = |count| format!("thawed {count} file systems of a guest left frozen");
        match self {
            Self::Thaw(AgentChannel::Socket(socket)) => {
                thaw_blocking(socket, UNDO_LIMIT).map(thawed).map_err(|e| e.to_string())
            }
            Self::Thaw(AgentChannel::Libvirt(target)) => {
                thaw_blocking_virsh(target, UNDO_LIMIT).map(thawed).map_err(|e| e.to_string())
            }
            Self::Resume(undo) => undo_snapshot_blocking(undo, UNDO_LIMIT)
                .map(|()| "ended a snapshot of a guest's memory that was cut short".into())
                .map_err(|e| e.to_string()),
        }
    }
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
    let path = dir(state).join(intent.file_name(guest));
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

/// A snapshot of the guest's memory that could not be undone when it ended: before another one is begun,
/// it has to be.
#[must_use]
pub fn left_of_snapshot(state: &Path, guest: &str) -> Option<UndoSnapshot> {
    let path = dir(state).join(format!("{guest}@memory.json"));
    match std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok()) {
        Some(Intent::Resume(undo)) => Some(undo),
        _ => None,
    }
}

/// It is undone.
pub fn forget_snapshot(state: &Path, guest: &str) {
    let _ = std::fs::remove_file(dir(state).join(format!("{guest}@memory.json")));
}

/// Undoes every intent that stands. Blocking; each within a limit. Returns how many are left.
pub fn undo_all(state: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir(state)) else { return 0 };
    let mut left = 0;
    for path in entries.flatten().map(|e| e.path()) {
        if path.extension().is_none_or(|e| e != "json") {
            // A draft: whoever wrote it died before it had its name, and before anything was begun.
            let _ = std::fs::remove_file(&path);
            continue;
        }
        let read = std::fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let undone = match read {
            Some(intent) => Intent::undo(&intent),
            // Torn or foreign: nothing was begun before the whole file was durable.
            None => Ok("nothing was begun".into()),
        };
        match undone {
            Ok(what) => {
                tracing::warn!(intent = %path.display(), what, "undone");
                let _ = std::fs::remove_file(&path);
            }
            Err(why) => {
                tracing::error!(intent = %path.display(), %why, "a guest may be frozen or stopped");
                left += 1;
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_of_an_intent_owes_nothing_and_goes() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(undo_all(state.path()), 0);
        std::fs::create_dir(dir(state.path())).unwrap();
        let draft = dir(state.path()).join("vm@memory.tmp");
        std::fs::write(&draft, b"{\"resu").unwrap();
        assert_eq!(undo_all(state.path()), 0);
        assert!(!draft.exists());
    }
}
