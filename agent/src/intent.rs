//! Durable intents: what must be undone if we die before we could do it ourselves (I-10).
//!
//! An intent is written, durably, before a guest is frozen or its memory taken, and removed after
//! it was thawed, or runs again with QEMU's settings as they were. The guard has what is left undone
//! after each death of the worker, before the next one starts; so does the agent when it starts, and it
//! tries again what failed then.
//!
//! What always holds: an intent that can't be read is owed. Only one that is not there, or is torn, owes
//! nothing, since nothing is begun before all of it is durable.

use afterimage_journal::storage::{Access, RealStorage, Storage as _, read_plain};
use afterimage_journal::{Error, Result, layout};
use afterimage_planted as planted;
use afterimage_qmp::guest_agent::{AgentChannel, thaw_blocking, thaw_blocking_virsh};
use afterimage_qmp::qemu::{ProcessId, UndoSnapshot, undo_snapshot_blocking};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long one undoing may take.
const UNDO_LIMIT: Duration = Duration::from_millis(1500);

/// For how long a note of an older version, which names no process, may have a guest run.
const BARE_AGE_MAX: Duration = Duration::from_secs(70);

/// Largest intent that is read, in bytes.
const INTENT_BYTES_MAX: u64 = 1 << 20;

/// Time between two tries to undo what is left, in the beginning and at most.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Held while an intent is written and while a left one is undone, so that no late undoing meets what has
/// just begun. True once this process has written one.
static WRITTEN: Mutex<bool> = Mutex::new(false);

fn written() -> MutexGuard<'static, bool> {
    WRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    let mut written = written();
    *written = true;
    layout::replace_file(&path, &encoded(intent.clone(), process)?)?;
    let inode = inode_of(&path);
    Ok(Standing { path, inode })
}

fn encoded(intent: Intent, process: Option<ProcessId>) -> Result<Vec<u8>> {
    let note = Note { intent, process };
    serde_json::to_vec(&note).map_err(|e| Error::Invalid(format!("encode intent: {e}")))
}

/// An intent as it is on disk; `None` if it is not there, or torn.
///
/// # Errors
/// It is there and can't be read, or another version wrote it: it is owed.
fn read(path: &Path) -> io::Result<Option<Note>> {
    let bytes = match read_plain(path, INTENT_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) if planted::is("unreadable-intent-owes-nothing") => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut note: Note = match serde_json::from_slice(&bytes) {
        Ok(note) => note,
        Err(e) if e.is_data() => return Err(io::Error::other(format!("not understood: {e}"))),
        Err(_) => return Ok(None),
    };
    if let Intent::Resume(undo) = &mut note.intent
        && undo.is_bare()
    {
        let written = std::fs::symlink_metadata(path).and_then(|m| m.modified())?;
        // Of the future: the clock was set back. It may be of this moment.
        let age = written.elapsed().unwrap_or_default();
        undo.resume = undo.resume.filter(|_| age <= BARE_AGE_MAX);
    }
    Ok(Some(note))
}

impl Standing {
    /// What puts another intent in the place of this one. Not durable, since what it is about ends with
    /// the host; a process that dies leaves the old one or the new one.
    pub fn rewrite(&self, intent: Intent) -> impl FnOnce() -> Result<()> + Send + use<> {
        let path = self.path.clone();
        move || {
            let draft = path.with_extension("tmp");
            let json = encoded(intent, None)?;
            RealStorage
                .open(&draft, Access::Replace)
                .and_then(|file| file.write_all_at(&json, 0))
                .map_err(|e| Error::io("write intent", &draft, e))?;
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
///
/// # Errors
/// There may be one, and it can't be read.
pub fn left_of_snapshot(state: &Path, guest: &str) -> Result<Option<UndoSnapshot>> {
    let path = dir(state).join(format!("{guest}@memory.json"));
    let note = read(&path).map_err(|e| Error::io("read intent", &path, e))?;
    Ok(match note.map(|note| note.intent) {
        Some(Intent::Resume(undo)) => Some(undo),
        Some(Intent::Thaw(_)) | None => None,
    })
}

/// True if a guest was frozen and has not answered since that it is thawed, or that can't be told.
#[must_use]
pub fn owes_thaw(state: &Path, guest: &str) -> bool {
    let looked = std::fs::symlink_metadata(dir(state).join(format!("{guest}.json")));
    !looked.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

/// It is thawed.
pub fn forget_thaw(state: &Path, guest: &str) {
    let _ = std::fs::remove_file(dir(state).join(format!("{guest}.json")));
}

/// It is undone.
pub fn forget_snapshot(state: &Path, guest: &str) {
    let _ = std::fs::remove_file(dir(state).join(format!("{guest}@memory.json")));
}

/// What could not be undone.
#[derive(Debug, PartialEq, Eq)]
pub enum Owed {
    /// This intent: its path and inode. A later intent of the guest has the same path.
    Intent(PathBuf, Option<u64>),
    /// The directory of the intents can't be listed.
    All,
}

/// Undoes every intent that stands. Blocking; each within a limit. Returns what is left, which has been
/// reported.
#[must_use]
pub fn undo_all(state: &Path) -> Vec<Owed> {
    let unlisted = |error: io::Error| {
        let intents = dir(state);
        let intents = intents.display();
        tracing::error!(%intents, %error, "can't list the intents: a guest may be frozen or stopped");
        Owed::All
    };
    let entries = match std::fs::read_dir(dir(state)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(_) if planted::is("unreadable-intent-owes-nothing") => return Vec::new(),
        Err(e) => return vec![unlisted(e)],
    };
    let mut left = Vec::new();
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(e) => {
                left.push(unlisted(e));
                break;
            }
        };
        if path.extension().is_none_or(|e| e != "json") {
            // A draft: whoever wrote it died before it had its name, and before anything was begun.
            let _ = std::fs::remove_file(&path);
            continue;
        }
        let inode = inode_of(&path);
        if let Err(why) = undo(&path) {
            tracing::error!(intent = %path.display(), %why, "a guest may be frozen or stopped");
            left.push(Owed::Intent(path, inode));
        }
    }
    left
}

/// Undoes an intent, and removes it.
fn undo(path: &Path) -> std::result::Result<(), String> {
    let what = match read(path).map_err(|e| format!("read the intent: {e}"))? {
        Some(note) if note.process.is_some_and(|p| !p.lives()) => {
            "the guest's QEMU has ended".into()
        }
        Some(note) => note.intent.undo()?,
        None => "nothing was begun".into(),
    };
    tracing::warn!(intent = %path.display(), what, "undone");
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// Tries again to undo what is left; returns what still is. Blocking.
fn undo_again(state: &Path, left: Vec<Owed>) -> Vec<Owed> {
    let mut still = Vec::new();
    for owed in left {
        let written = written();
        match owed {
            // What is on disk now may be of this moment.
            Owed::All if *written => {}
            Owed::All => still.extend(undo_all(state)),
            Owed::Intent(path, inode) => {
                let stands = inode.is_some() && inode == inode_of(&path);
                if stands && undo(&path).is_err() {
                    still.push(Owed::Intent(path, inode));
                }
            }
        }
        drop(written);
    }
    still
}

/// Tries to undo what is left until nothing is.
pub async fn keep_undoing(state: PathBuf, mut left: Vec<Owed>) {
    let mut pause = AGAIN_MIN;
    while !left.is_empty() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
        let state = state.clone();
        let Ok(still) = tokio::task::spawn_blocking(move || undo_again(&state, left)).await else {
            return;
        };
        left = still;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_of_an_intent_owes_nothing_and_goes() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(undo_all(state.path()), []);
        std::fs::create_dir(dir(state.path())).unwrap();
        let draft = dir(state.path()).join("vm@memory.tmp");
        std::fs::write(&draft, b"{\"resu").unwrap();
        assert_eq!(undo_all(state.path()), []);
        assert!(!draft.exists());
    }

    #[test]
    fn intent_of_an_older_version_is_read_and_a_late_one_has_no_guest_run() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir(state.path())).unwrap();
        let thaw = dir(state.path()).join("vm.json");
        std::fs::write(&thaw, br#"{"thaw":{"Socket":"/run/qga"}}"#).unwrap();
        let note = read(&thaw).unwrap().unwrap();
        assert_eq!(note.intent, Intent::Thaw(AgentChannel::Socket("/run/qga".into())));
        assert_eq!(note.process, None);
        let resume = dir(state.path()).join("vm@memory.json");
        let old = r#"{"resume":{"monitor":{"Socket":"/run/qmp"},"was":{"capabilities":{},
            "parameters":{}},"resume":"stop"}}"#;
        std::fs::write(&resume, old).unwrap();
        assert!(left_of_snapshot(state.path(), "vm").unwrap().unwrap().resume.is_some());
        let file = std::fs::File::options().write(true).open(&resume).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * BARE_AGE_MAX).unwrap();
        assert_eq!(left_of_snapshot(state.path(), "vm").unwrap().unwrap().resume, None);
    }

    #[test]
    fn freeze_of_a_qemu_that_has_ended_owes_nothing() {
        let state = tempfile::tempdir().unwrap();
        // Nobody listens there: a thaw would fail, and the intent stay.
        let thaw = Intent::Thaw(AgentChannel::Socket(state.path().join("qga")));
        let ended = ProcessId { pid: std::process::id(), start_ticks: 1 };
        let standing = write(state.path(), "vm", &thaw, Some(ended)).unwrap();
        assert_eq!(undo_all(state.path()), []);
        assert!(!standing.path.exists());
        let standing = write(state.path(), "vm", &thaw, None).unwrap();
        assert_eq!(undo_all(state.path()).len(), 1);
        assert!(standing.path.exists());
    }

    #[test]
    fn intent_that_cannot_be_read_is_kept_and_tried_again() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir(state.path())).unwrap();
        let at = |name: &str| dir(state.path()).join(name);
        // Errors of the disk and of few descriptors are of the same kind: none of them says "not there".
        let made = std::process::Command::new("mkfifo").arg(at("fifo.json")).status().unwrap();
        assert!(made.success());
        std::fs::create_dir(at("vm@memory.json")).unwrap();
        std::os::unix::fs::symlink("elsewhere", at("link.json")).unwrap();
        std::fs::write(at("newer.json"), br#"{"of-a-later-version":{}}"#).unwrap();
        std::fs::write(at("torn.json"), br#"{"thaw":{"Sock"#).unwrap();
        let left = undo_all(state.path());
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(!at("torn.json").exists(), "nothing is begun before all of an intent is durable");
        assert!(owes_thaw(state.path(), "fifo") && owes_thaw(state.path(), "link"));
        left_of_snapshot(state.path(), "vm").unwrap_err();
        assert_eq!(undo_again(state.path(), left).len(), 4);

        let left = undo_all(state.path());
        std::fs::remove_file(at("fifo.json")).unwrap();
        std::fs::remove_dir(at("vm@memory.json")).unwrap();
        std::fs::remove_file(at("link.json")).unwrap();
        assert_eq!(undo_again(state.path(), left).len(), 1);
    }

    #[test]
    fn late_undoing_leaves_an_intent_that_was_written_since() {
        let state = tempfile::tempdir().unwrap();
        let thaw = Intent::Thaw(AgentChannel::Socket(state.path().join("qga")));
        let _old = write(state.path(), "vm", &thaw, None).unwrap();
        let left = undo_all(state.path());
        assert_eq!(left.len(), 1);
        let new = write(state.path(), "vm", &thaw, None).unwrap();
        assert_eq!(undo_again(state.path(), left), []);
        assert!(new.stands());
    }

    #[test]
    fn intents_that_cannot_be_listed_are_owed() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(dir(state.path()), "in the place of the directory").unwrap();
        assert_eq!(undo_all(state.path()), [Owed::All]);
    }
}
