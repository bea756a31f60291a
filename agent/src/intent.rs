//! Durable intents: what must be undone if we die before we could do it ourselves (I-10).
//!
//! An intent is written, durably, before a guest is frozen or its memory taken, and removed after
//! it was thawed, or runs again with QEMU's settings as they were. The guard has what is left undone
//! after each death of the worker, before the next one starts; so does the agent when it starts.

use afterimage_journal::{Error, Result, layout};
use afterimage_qmp::guest_agent::{AgentChannel, thaw_blocking, thaw_blocking_virsh};
use afterimage_qmp::qemu::{ProcessId, UndoSnapshot, undo_snapshot_blocking};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one undoing may take.
const UNDO_LIMIT: Duration = Duration::from_millis(1500);

/// For how long a note of an older version, which names no process, may have a guest run.
const BARE_AGE_MAX: Duration = Duration::from_secs(70);

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

/// The file: the intent, and the QEMU that a freeze is of. Older versions wrote the intent alone.
#[derive(Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    intent: Intent,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<ProcessId>,
}

/// An intent on disk. Dropped without [`Standing::done`], it stays and is undone later.
#[must_use]
pub struct Standing {
    path: PathBuf,
    /// The file itself: a later intent of the guest has the same path.
    inode: Option<u64>,
}

fn inode_of(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().map(|m| m.ino())
}

fn dir(state: &Path) -> PathBuf {
    state.join("intents")
}

/// Writes an intent for a guest, durably.
///
/// # Errors
/// It can't be written: then what it is about must not be begun.
pub fn write(
    state: &Path,
    guest: &str,
    intent: &Intent,
    process: Option<ProcessId>,
) -> Result<Standing> {
    layout::make_dir(&dir(state))?;
    let path = dir(state).join(intent.file_name(guest));
    layout::replace_file(&path, &encoded(intent.clone(), process)?)?;
    let inode = inode_of(&path);
    Ok(Standing { path, inode })
}

fn encoded(intent: Intent, process: Option<ProcessId>) -> Result<Vec<u8>> {
    let note = Note { intent, process };
    serde_json::to_vec(&note).map_err(|e| Error::Invalid(format!("encode intent: {e}")))
}

/// An intent as it is on disk; none if it is torn or foreign: nothing was begun before all of it was
/// durable.
fn read(path: &Path) -> Option<Note> {
    let mut note: Note = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    if let Intent::Resume(undo) = &mut note.intent
        && undo.is_bare()
    {
        let written = std::fs::metadata(path).and_then(|m| m.modified()).ok()?;
        // Of the future: the clock was set back. It may be of this moment.
        let age = written.elapsed().unwrap_or_default();
        undo.resume = undo.resume.filter(|_| age <= BARE_AGE_MAX);
    }
    Some(note)
}

impl Standing {
    /// What puts another intent in the place of this one. Not durable, since what it is about ends with
    /// the host; a process that dies leaves the old one or the new one.
    pub fn rewrite(&self, intent: Intent) -> impl FnOnce() -> Result<()> + Send + use<> {
        let path = self.path.clone();
        move || {
            let draft = path.with_extension("tmp");
            let json = encoded(intent, None)?;
            std::fs::write(&draft, json).map_err(|e| Error::io("write intent", &draft, e))?;
            std::fs::rename(&draft, &path).map_err(|e| Error::io("rename to", &path, e))
        }
    }

    /// Whether it is still on disk as it was written: nobody else has undone it, nor begun anew.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.inode.is_some() && self.inode == inode_of(&self.path)
    }

    /// The guest is thawed, or its QEMU has ended.
    pub fn thawed(self) {
        if !self.stands() {
            return;
        }
        match self.done() {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "the intent stays: the guest will be thawed once more");
            }
            Ok(()) => {}
        }
    }

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
    match read(&path)?.intent {
        Intent::Resume(undo) => Some(undo),
        Intent::Thaw(_) => None,
    }
}

/// Whether a guest was frozen and has not answered since that it is thawed.
#[must_use]
pub fn owes_thaw(state: &Path, guest: &str) -> bool {
    dir(state).join(format!("{guest}.json")).exists()
}

/// It is thawed.
pub fn forget_thaw(state: &Path, guest: &str) {
    let _ = std::fs::remove_file(dir(state).join(format!("{guest}.json")));
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
        let undone = match read(&path) {
            Some(note) if note.process.is_some_and(|p| !p.lives()) => {
                Ok("the guest's QEMU has ended".into())
            }
            Some(note) => note.intent.undo(),
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

    #[test]
    fn intent_of_an_older_version_is_read_and_a_late_one_has_no_guest_run() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir(state.path())).unwrap();
        let thaw = dir(state.path()).join("vm.json");
        std::fs::write(&thaw, br#"{"thaw":{"Socket":"/run/qga"}}"#).unwrap();
        let note = read(&thaw).unwrap();
        assert_eq!(note.intent, Intent::Thaw(AgentChannel::Socket("/run/qga".into())));
        assert_eq!(note.process, None);
        let resume = dir(state.path()).join("vm@memory.json");
        let old = r#"{"resume":{"monitor":{"Socket":"/run/qmp"},"was":{"capabilities":{},
            "parameters":{}},"resume":"stop"}}"#;
        std::fs::write(&resume, old).unwrap();
        assert!(left_of_snapshot(state.path(), "vm").unwrap().resume.is_some());
        let file = std::fs::File::options().write(true).open(&resume).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * BARE_AGE_MAX).unwrap();
        assert_eq!(left_of_snapshot(state.path(), "vm").unwrap().resume, None);
    }

    #[test]
    fn freeze_of_a_qemu_that_has_ended_owes_nothing() {
        let state = tempfile::tempdir().unwrap();
        // Nobody listens there: a thaw would fail, and the intent stay.
        let thaw = Intent::Thaw(AgentChannel::Socket(state.path().join("qga")));
        let ended = ProcessId { pid: std::process::id(), start_ticks: 1 };
        let standing = write(state.path(), "vm", &thaw, Some(ended)).unwrap();
        assert_eq!(undo_all(state.path()), 0);
        assert!(!standing.path.exists());
        let standing = write(state.path(), "vm", &thaw, None).unwrap();
        assert_eq!(undo_all(state.path()), 1);
        assert!(standing.path.exists());
    }
}
