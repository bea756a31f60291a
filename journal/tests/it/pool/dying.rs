//! A disk under a process that is killed at a certain step: nothing that it does after that counts.

use afterimage_journal::storage::{Access, Lock, LockKind, RealStorage, Room, Storage, StoredFile};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Real files, until so many changes were made.
#[derive(Debug)]
pub struct Dying {
    left: Arc<AtomicI64>,
}

impl Dying {
    pub fn after(changes: i64) -> (Arc<dyn Storage>, Arc<AtomicI64>) {
        let left = Arc::new(AtomicI64::new(changes));
        (Arc::new(Self { left: Arc::clone(&left) }), left)
    }

    fn change(&self) -> io::Result<()> {
        change(&self.left)
    }

    fn look(&self) -> io::Result<()> {
        let dead = self.left.load(Ordering::Relaxed) < 0;
        if dead { Err(io::Error::other("killed")) } else { Ok(()) }
    }
}

fn change(left: &AtomicI64) -> io::Result<()> {
    let dead = left.fetch_sub(1, Ordering::Relaxed) <= 0;
    if dead { Err(io::Error::other("killed")) } else { Ok(()) }
}

#[derive(Debug)]
struct DyingFile(Arc<dyn StoredFile>, Arc<AtomicI64>);

impl Storage for Dying {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        if access == Access::Replace {
            self.change()?
        } else {
            self.look()?
        };
        Ok(Arc::new(DyingFile(RealStorage.open(path, access)?, Arc::clone(&self.left))))
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

impl StoredFile for DyingFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buffer, at)
    }
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        change(&self.1)?;
        self.0.write_all_at(bytes, at)
    }
    fn sync_data(&self) -> io::Result<()> {
        change(&self.1)?;
        self.0.sync_data()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.0.allocated_bytes()
    }
    fn allocate(&self, from: u64, bytes: u64) -> io::Result<()> {
        change(&self.1)?;
        self.0.allocate(from, bytes)
    }
    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        change(&self.1)?;
        self.0.set_bytes(bytes)
    }
    fn punch(&self, from: u64, bytes: u64) {
        self.0.punch(from, bytes);
    }
    fn as_file(&self) -> Option<&File> {
        self.0.as_file()
    }
}
