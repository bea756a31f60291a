//! Real storage in which a test may fail or hold any call, by what it does and to which file.

use afterimage_journal::storage::{Access, Lock, LockKind, RealStorage, Room, Storage, StoredFile};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Open,
    List,
    Lock,
    Read,
    Write,
    Sync,
}

type Hook = dyn Fn(Call, &Path) -> io::Result<()> + Send + Sync;

/// See the module.
#[derive(Clone)]
pub struct Hooked {
    hook: Arc<Hook>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hooked")
    }
}

impl Hooked {
    /// Calls `hook` before each call; its error is the call's.
    pub fn shared(
        hook: impl Fn(Call, &Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<dyn Storage> {
        Arc::new(Self { hook: Arc::new(hook) })
    }
}

impl Storage for Hooked {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        (self.hook)(Call::Open, path)?;
        let file = RealStorage.open(path, access)?;
        Ok(Arc::new(HookedFile { file, path: path.to_owned(), of: self.clone() }))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        (self.hook)(Call::List, dir)?;
        RealStorage.list(dir)
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.make_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealStorage.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealStorage.remove(path)
    }
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.remove_dir(dir)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        RealStorage.canonical(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.sync_dir(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        RealStorage.exists(path)
    }
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock> {
        (self.hook)(Call::Lock, path)?;
        RealStorage.lock(path, kind)
    }
    fn room(&self, path: &Path) -> io::Result<Room> {
        RealStorage.room(path)
    }
    fn mount_id(&self, path: &Path) -> u64 {
        RealStorage.mount_id(path)
    }
}

#[derive(Debug)]
struct HookedFile {
    file: Arc<dyn StoredFile>,
    path: PathBuf,
    of: Hooked,
}

impl StoredFile for HookedFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        (self.of.hook)(Call::Read, &self.path)?;
        self.file.read_at(buffer, at)
    }
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        (self.of.hook)(Call::Write, &self.path)?;
        self.file.write_all_at(bytes, at)
    }
    fn sync_data(&self) -> io::Result<()> {
        (self.of.hook)(Call::Sync, &self.path)?;
        self.file.sync_data()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }
    fn allocate(&self, from: u64, bytes: u64) -> io::Result<()> {
        self.file.allocate(from, bytes)
    }
    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_bytes(bytes)
    }
    fn punch(&self, from: u64, bytes: u64) {
        self.file.punch(from, bytes);
    }
    fn identity(&self) -> u64 {
        self.file.identity()
    }
    /// The ring is mapped.
    fn as_file(&self) -> Option<&File> {
        self.file.as_file()
    }
}
