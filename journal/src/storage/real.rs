//! The operating system's files.
//!
//! What always holds: only regular files are opened. The last part of a path is never followed as a symbolic
//! link, and nothing waits for the other end of a FIFO, whoever put it there.

use super::{Access, Held, Lock, LockKind, Room, Storage, StoredFile};
use crate::planted;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
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
        options.read(true);
        match access {
            Access::Read => {}
            Access::Write => drop(options.write(true)),
            Access::Replace => drop(options.write(true).create(true).truncate(true)),
        }
        Ok(Arc::new(open_regular(options, path, OFlags::empty())?))
    }

    fn open_direct(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Ok(Arc::new(open_regular(options, path, OFlags::DIRECT)?))
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
        let directory = OFlags::DIRECTORY.bits() as i32;
        OpenOptions::new().read(true).custom_flags(directory).open(dir)?.sync_all()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn is_link(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
    }

    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let made = open_regular(options, path, OFlags::empty());
        // A lock that is there can be shared on a medium that can't be written.
        let file = match (made, kind) {
            (Err(_), LockKind::Shared) => {
                let mut options = OpenOptions::new();
                options.read(true);
                open_regular(options, path, OFlags::empty())?
            }
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

    fn hold_dir(&self, dir: &Path) -> io::Result<Option<File>> {
        let directory = OFlags::DIRECTORY.bits() as i32;
        OpenOptions::new().read(true).custom_flags(directory).open(dir).map(Some)
    }
}

/// Whether a path leads to the file or directory that is held open.
///
/// # Errors
/// The operating system's: nothing is there, or it can't be looked at.
pub(crate) fn leads_to(path: &Path, held: &File) -> io::Result<bool> {
    let (found, ours) = (fs::metadata(path)?, held.metadata()?);
    Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino()))
}

/// Whether nothing is at a path, for certain.
pub(crate) fn is_missing(path: &Path) -> bool {
    let absent = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    fs::metadata(path).is_err_and(|e| absent.contains(&e.kind()))
}

/// Opens a regular file, or fails with `InvalidData`: whatever else lies there is none of ours.
fn open_regular(mut options: OpenOptions, path: &Path, more: OFlags) -> io::Result<File> {
    if planted::is("wait-for-a-fifo") {
        return options.mode(0o600).custom_flags(more.bits() as i32).open(path);
    }
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | more;
    let opened = options.mode(0o600).custom_flags(flags.bits() as i32).open(path);
    let file = opened.map_err(|e| match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::LOOP) => not_regular("a symbolic link"),
        // A socket, or a FIFO that nobody reads.
        Some(Errno::NXIO) => not_regular("a socket, a FIFO or a device"),
        _ => e,
    })?;
    let kind = file.metadata()?.file_type();
    let what = match () {
        () if kind.is_file() => {
            // With it io_uring would not wait for the disk.
            fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
            return Ok(file);
        }
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () => "a device",
    };
    Err(not_regular(what))
}

/// Reads a regular file of at most `bytes_max` bytes whole. Waits for nobody and follows no symbolic link in
/// the place of the file.
///
/// # Errors
/// `NotFound`: there is nothing of this name. `InvalidData`: it is no regular file, or a larger one. Else the
/// operating system's.
pub fn read_plain(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_limited(open_plain(path)?, bytes_max)
}

/// Opens a regular file to read it, as [`read_plain`] does.
///
/// # Errors
/// As there.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    open_regular(options, path, OFlags::empty())
}

/// Reads an open file of at most `bytes_max` bytes from where it stands to its end.
///
/// # Errors
/// `InvalidData`: it is larger. Else the operating system's.
pub fn read_limited(file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // The file may grow meanwhile: what is read counts, not what it said.
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let why = format!("it is larger than the limit of {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(bytes)
}

fn not_regular(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is {what}, not a regular file"))
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

    #[test]
    fn whatever_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap();
        assert!(made.success());
        fs::create_dir(at("directory")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("link")).unwrap();
        std::os::unix::fs::symlink("/dev/null", at("device")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["fifo", "directory", "link", "device", "socket"] {
            for access in [Access::Read, Access::Write, Access::Replace] {
                assert!(RealStorage.open(&at(name), access).is_err(), "{name}, {access:?}");
            }
            assert!(RealStorage.open_direct(&at(name)).is_err(), "{name}");
            for kind in [LockKind::Shared, LockKind::Exclusive] {
                let refused = RealStorage.lock(&at(name), kind).unwrap_err();
                let known = [io::ErrorKind::InvalidData, io::ErrorKind::IsADirectory];
                assert!(known.contains(&refused.kind()), "{name}: {refused}");
            }
        }
        assert!(!at("elsewhere").exists(), "nothing is made behind a link");
        assert!(RealStorage.open(Path::new("/dev/null"), Access::Read).is_err());
        assert!(RealStorage.sync_dir(&at("fifo")).is_err());
        for name in ["fifo", "directory", "link", "device", "socket"] {
            let refused = read_plain(&at(name), 10).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{name}: {refused}");
        }
    }

    #[test]
    fn file_above_the_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read_plain(&path, 4).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, b"1234").unwrap();
        assert_eq!(read_plain(&path, 4).unwrap(), b"1234");
        assert_eq!(read_plain(&path, 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
