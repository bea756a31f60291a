//! A site that is a directory of this machine: `DIR/pool/GROUP` is the group's journal, as in any state
//! directory.
//!
//! ```text
//! DIR/format       a state directory's, so that `afterimage restore --state DIR` works
//! DIR/site.json    who it is, and how far back it keeps if not as the source
//! DIR/pool/GROUP/  the replica
//! ```
//!
//! What always holds: the directory is made when a person adds it, and never again: where `site.json` is
//! not there, a disk is not mounted, and nothing is written to its mount point. The replica is
//! kept within its window only while it is open here.

use afterimage_journal::keeper::{Home, KeeperThread, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::{RealStorage, Storage, read_plain};
use afterimage_journal::window::{Keep, Limits};
use afterimage_journal::wire::{Ack, Hello, Inventory, Op, Sink, SinkError};
use afterimage_journal::{Error, ErrorKind, Key, clock, layout};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Who a site is.
const SITE_FILE: &str = "site.json";
/// Largest `site.json` that is read, in bytes.
const SITE_FILE_BYTES_MAX: u64 = 64 << 10;

/// `site.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SiteFile {
    id: Uuid,
    /// How far back the site keeps; `None`: as the group wants it at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<Keep>,
}

/// How far back a group is to reach, and the key that merging needs; asked at each opening.
pub trait Window: Send + Sync {
    /// The group's limits; `None`: not known yet.
    fn limits(&self) -> Option<Limits>;
    /// The key of its journal, if that is encrypted.
    fn key(&self) -> Option<Key>;
}

fn read(dir: &Path) -> Result<Option<SiteFile>, String> {
    let path = dir.join(SITE_FILE);
    let shown = path.display();
    let bytes = match read_plain(&path, SITE_FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("read {shown}: {e}")),
    };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|e| format!("{shown} can't be understood: {e}; correct it"))
}

/// Whether a directory can be a site.
///
/// # Errors
/// It can't: why, and what to do.
pub(super) fn check(dir: &Path, state: &Path) -> Result<(), String> {
    let shown = dir.display();
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (here, home) = (real(dir), real(state));
    if here.starts_with(&home) || home.starts_with(&here) {
        return Err(format!(
            "{shown} and the agent's own state directory lie in each other: a site there would be lost \
             with it; give another directory"
        ));
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && parent.is_dir() => return Ok(()),
        Err(e) => {
            return Err(format!("{shown} can't be a site: {e}; make the directory, or mount it"));
        }
        Ok(_) if read(dir)?.is_some() => return Ok(()),
        Ok(entries) => {
            // A new file system has one of these.
            let mut names = entries.flatten().map(|e| e.file_name());
            if names.any(|name| name != "lost+found") {
                return Err(format!(
                    "{shown} is neither empty nor a site: give an empty directory, or one that does not \
                     exist yet"
                ));
            }
        }
    }
    Ok(())
}

/// Makes a directory a site, or finds that it is one; its identity.
///
/// # Errors
/// It can't be one, or can't be written.
pub(super) fn adopt(dir: &Path, state: &Path) -> Result<Uuid, String> {
    check(dir, state)?;
    if let Some(known) = read(dir)? {
        return Ok(known.id);
    }
    let made = SiteFile { id: Uuid::new_v4(), keep: None };
    let write = || -> afterimage_journal::Result<()> {
        layout::make_dir(dir)?;
        layout::check_state(dir, true)?;
        let json = serde_json::to_vec_pretty(&made)
            .map_err(|e| Error::Invalid(format!("encode {SITE_FILE}: {e}")))?;
        layout::replace_file(&dir.join(SITE_FILE), &json)?;
        layout::sync_dir(dir.parent().unwrap_or(Path::new("/")))
    };
    write().map_err(|e| e.to_string())?;
    Ok(made.id)
}

/// The sink.
pub(super) struct DirectorySink {
    dir: PathBuf,
    id: Option<Uuid>,
    group: String,
    window: Arc<dyn Window>,
    storage: Arc<dyn Storage>,
    /// How far back the replica is kept, as of the last look.
    limits: Option<Limits>,
    file: Option<SiteFile>,
    /// The directory itself, by device and number.
    place: Option<(u64, u64)>,
    /// Before the replica: it is stopped while that still holds the journal's lock.
    keeper: Option<KeeperThread>,
    replica: Option<Replica>,
}

impl DirectorySink {
    pub(super) fn new(dir: &Path, id: Option<Uuid>, group: &str, window: Arc<dyn Window>) -> Self {
        Self {
            dir: dir.to_owned(),
            id,
            group: group.to_owned(),
            window,
            storage: RealStorage::shared(),
            limits: None,
            file: None,
            place: None,
            keeper: None,
            replica: None,
        }
    }

    /// The site's own word, if it is the site that was added.
    fn find(&self) -> Result<SiteFile, SinkError> {
        let shown = self.dir.display();
        match read(&self.dir) {
            Ok(Some(found)) if self.id.is_none_or(|id| id == found.id) => Ok(found),
            Ok(Some(_)) => Err(SinkError::Refused(format!(
                "{shown} is another site than the one that was added: put that one back, or \
                 `afterimage set {} --no-site {shown}` and add this one",
                self.group
            ))),
            Ok(None) => Err(SinkError::Away(format!(
                "there is no site in {shown}: is its file system mounted?"
            ))),
            Err(why) => Err(SinkError::Away(why)),
        }
    }

    /// The directory that the name leads to.
    fn place(&self) -> Option<(u64, u64)> {
        std::fs::metadata(&self.dir).ok().map(|meta| (meta.dev(), meta.ino()))
    }

    /// What was renamed or unmounted goes on taking in what it is sent, and nobody would find it.
    fn check_place(&self) -> Result<(), SinkError> {
        match self.place() {
            place if place == self.place => Ok(()),
            _ => Err(SinkError::Away(format!(
                "{} is not there any more: was its file system unmounted?",
                self.dir.display()
            ))),
        }
    }

    /// How far back it is to reach now.
    fn wanted(&self) -> Option<Limits> {
        match self.file.as_ref().and_then(|file| file.keep.clone()) {
            Some(keep) => Some(Limits::thinned(keep, None)),
            None => self.window.limits(),
        }
    }

    /// Follows what is wanted at the source.
    fn follow(&mut self) {
        let wanted = self.wanted();
        if let (Some(keeper), Some(limits)) = (&self.keeper, &wanted)
            && wanted != self.limits
        {
            keeper.shared().set(limits.clone());
            self.limits = wanted;
        }
    }

    fn keep(&self, limits: Limits, journal: &Path) -> Option<KeeperThread> {
        let setup = Setup {
            storage: Arc::clone(&self.storage),
            dir: journal.to_owned(),
            clock: Arc::new(clock::SystemClock),
            ground: Arc::new(Home { storage: Arc::clone(&self.storage) }),
            pace: Arc::new(Unpaced),
            key: self.window.key(),
            limits,
        };
        match KeeperThread::start(setup) {
            Ok(thread) => Some(thread),
            Err(error) => {
                let site = self.dir.display();
                tracing::error!(%site, group = self.group, %error, "the site's window is not kept");
                None
            }
        }
    }
}

/// What an error of the site's files means for who sends.
fn refusal(error: &Error) -> SinkError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::FreeSpace => SinkError::Full(text),
        ErrorKind::FixInput | ErrorKind::NotRestorable => SinkError::Refused(text),
        _ => SinkError::Away(text),
    }
}

impl Sink for DirectorySink {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        self.keeper = None;
        self.replica = None;
        self.place = self.place();
        let file = self.find()?;
        layout::check_state(&self.dir, false).map_err(|e| refusal(&e))?;
        let journal = layout::journal_dir(&self.dir, &self.group).map_err(|e| refusal(&e))?;
        let options = ReplicaOptions::at_home(&self.storage);
        let replica = Replica::open(&self.storage, &journal, options);
        let mut replica = replica.map_err(|e| refusal(&e))?;
        let inventory = replica.open(hello)?;
        self.file = Some(file);
        self.limits = self.wanted();
        self.keeper = self.limits.clone().and_then(|limits| self.keep(limits, &journal));
        if let Some(keeper) = &self.keeper {
            let shared = keeper.shared();
            replica.on_sealed(move |number| shared.sealed(number));
        }
        self.replica = Some(replica);
        Ok(inventory)
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        if matches!(op, Op::Sync { .. }) {
            self.check_place()?;
            self.follow();
        }
        match &mut self.replica {
            Some(replica) => replica.apply(op),
            None => Err(SinkError::Broken("it was not opened".into())),
        }
    }

    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        match &mut self.replica {
            Some(replica) => replica.ack(wait),
            None => Err(SinkError::Broken("it was not opened".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_file_that_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SITE_FILE);
        assert_eq!(read(dir.path()), Ok(None));
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(read(dir.path()).unwrap_err().contains("FIFO"));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(read(dir.path()).unwrap_err().contains("symbolic link"));
        std::fs::remove_file(&path).unwrap();
        std::fs::File::create(&path).unwrap().set_len(SITE_FILE_BYTES_MAX + 1).unwrap();
        assert!(read(dir.path()).unwrap_err().contains("limit"));
    }
}
