//! Storage that dies at a chosen call: whatever would change something, or look for files, fails from
//! then on, as after SIGKILL; what was done stays.

use afterimage_journal::storage::{Access, Lock, LockKind, RealStorage, Room, Storage, StoredFile};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

#[derive(Debug, Clone)]
pub struct Mortal {
    left: Arc<AtomicI64>,
}

impl Mortal {
    /// Dies behind so many calls that change something.
    pub fn new(calls: i64) -> Self {
        Self { left: Arc::new(AtomicI64::new(calls)) }
    }

    pub fn is_dead(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }

    fn change(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.left.store(-1, Ordering::Relaxed);
            return Err(io::Error::other("killed"));
        }
        Ok(())
    }

    fn look(&self) -> io::Result<()> {
        if self.is_dead() { Err(io::Error::other("killed")) } else { Ok(()) }
    }
}

impl Storage for Mortal {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        if access == Access::Replace {
            self.change()?;
        }
        self.look()?;
        let file = RealStorage.open(path, access)?;
        Ok(Arc::new(MortalFile { file, of: self.clone() }))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.look()?;
        RealStorage.list(dir)
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.change()?;
        RealStorage.make_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        RealStorage.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        RealStorage.remove(path)
    }
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.change()?;
        RealStorage.remove_dir(dir)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        RealStorage.canonical(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change()?;
        RealStorage.sync_dir(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        RealStorage.exists(path)
    }
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock> {
        self.look()?;
        RealStorage.lock(path, kind)
    }
    fn room(&self, path: &Path) -> io::Result<Room> {
        self.look()?;
        RealStorage.room(path)
    }
    fn mount_id(&self, path: &Path) -> u64 {
        RealStorage.mount_id(path)
    }
}

#[derive(Debug)]
struct MortalFile {
    file: Arc<dyn StoredFile>,
    of: Mortal,
}

impl StoredFile for MortalFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.of.change()?;
        self.file.write_all_at(bytes, at)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.of.change()?;
        self.file.sync_data()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }
    fn allocate(&self, from: u64, bytes: u64) -> io::Result<()> {
        self.of.change()?;
        self.file.allocate(from, bytes)
    }
    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.of.change()?;
        self.file.set_bytes(bytes)
    }
    fn punch(&self, from: u64, bytes: u64) {
        if !self.of.is_dead() {
            self.file.punch(from, bytes);
        }
    }
    fn as_file(&self) -> Option<&File> {
        None
    }
}
