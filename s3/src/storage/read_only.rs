//! Files and disks of which nothing but reading is asked: the journal's traits with everything else refused.

use afterimage_journal::storage::{Access, Lock, LockKind, Room, Storage, StoredFile};
use std::fmt::Debug;
use std::fs::File as OsFile;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What a bucket that is only read can't do.
pub(crate) fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a bucket is read only")
}

/// Something that can be read.
pub(crate) trait Readable: Send + Sync + Debug {
    /// As [`StoredFile::read_at`].
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// As [`StoredFile::bytes`].
    fn size(&self) -> io::Result<u64>;
    /// As [`StoredFile::allocated_bytes`].
    fn allocated(&self) -> io::Result<u64>;
}

/// It, as a file.
#[derive(Debug)]
pub(crate) struct ReadOnly<T>(pub T);

impl<T: Readable> StoredFile for ReadOnly<T> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read(buffer, at)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.0.allocated()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn set_bytes(&self, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn punch(&self, _: u64, _: u64) {}

    fn as_file(&self) -> Option<&OsFile> {
        None
    }
}

/// A small file that is in memory.
#[derive(Debug)]
pub(crate) struct Text(pub Vec<u8>);

impl Readable for Text {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.0.len());
        let some = buffer.len().min(self.0.len() - from);
        buffer[..some].copy_from_slice(&self.0[from..from + some]);
        Ok(some)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.size()
    }
}

/// A disk on which there is one file, whatever name it is asked for by.
#[derive(Debug)]
pub(crate) struct Only(pub Arc<dyn StoredFile>);

impl Storage for Only {
    fn open(&self, _: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        if access == Access::Read { Ok(Arc::clone(&self.0)) } else { Err(read_only()) }
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn exists(&self, _: &Path) -> bool {
        true
    }

    fn lock(&self, _: &Path, _: LockKind) -> io::Result<Lock> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn room(&self, _: &Path) -> io::Result<Room> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn mount_id(&self, _: &Path) -> u64 {
        0
    }
}
