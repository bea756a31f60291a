//! The operating system's files.

use super::{Access, Held, Lock, LockKind, Room, Storage, StoredFile};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealStorage;

impl RealStorage {
    /// It, to be shared.
    #[must_use]
    pub fn shared() -> Arc<dyn Storage> {
        Arc::new(Self)
    }
}

impl Storage for RealStorage {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match access {
            Access::Read => {}
            Access::Write => drop(options.write(true)),
            Access::Replace => drop(options.write(true).create(true).truncate(true)),
        }
        Ok(Arc::new(options.open(path)?))
    }

    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>> {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path)?;
        Ok(Arc::new(file))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that isn't text is nobody's of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock> {
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path);
        // A lock that is there can be shared on a medium that can't be written.
        let file = match (made, kind) {
            (Err(_), LockKind::Shared) => File::open(path)?,
            (made, _) => made?,
        };
        let operation = match kind {
            LockKind::Shared => FlockOperation::NonBlockingLockShared,
            LockKind::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        rustix::fs::flock(&file, operation)?;
        Ok(Lock::new(Box::new(Flocked(file))))
    }

    fn room(&self, path: &Path) -> io::Result<Room> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Room {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn mount_id(&self, path: &Path) -> u64 {
        crate::layout::mount_id(path)
    }
}

/// A file whose lock ends with it, not with its last descriptor: a process that is started meanwhile
/// holds a copy of every descriptor from its fork to its exec (flock(2): the lock is the open file's).
#[derive(Debug)]
struct Flocked(File);

impl Held for Flocked {}

impl Drop for Flocked {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl StoredFile for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.blocks() * 512)
    }

    fn allocate(&self, from: u64, bytes: u64) -> io::Result<()> {
        Ok(fallocate(self, FallocateFlags::empty(), from, bytes)?)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn punch(&self, from: u64, bytes: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // A file system without holes keeps the space: nothing else depends on it.
        let _ = fallocate(self, flags, from, bytes);
    }

    fn identity(&self) -> u64 {
        self.metadata().map_or(0, |m| m.ino())
    }

    fn born_ns(&self) -> u64 {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        let found = statx(self, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
        let known = found.ok().filter(|s| s.stx_mask & StatxFlags::BTIME.bits() != 0);
        known.map_or(0, |s| {
            let seconds = u64::try_from(s.stx_btime.tv_sec).unwrap_or(0);
            seconds.saturating_mul(1_000_000_000).saturating_add(s.stx_btime.tv_nsec.into())
        })
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_though_a_process_that_is_being_started_has_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        drop(RealStorage.lock(&path, LockKind::Exclusive).unwrap());
        let file = File::open(&path).unwrap();
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let of_the_child = file.try_clone().unwrap();
        let lock = Lock::new(Box::new(Flocked(file)));
        assert!(RealStorage.lock(&path, LockKind::Shared).is_err());
        drop(lock);
        RealStorage.lock(&path, LockKind::Exclusive).unwrap();
        drop(of_the_child);
    }
}
