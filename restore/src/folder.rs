//! A directory that files are written to, held open: what lies in it is found by its name there alone.
//!
//! What always holds: whoever may write there or above it, and renames directories or puts links, FIFOs or
//! files in our way, has nothing written, read or removed outside of the directory that was opened, and has
//! nobody wait.

use afterimage_planted as planted;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: File,
    path: PathBuf,
}

impl Folder {
    /// Opens a directory. A symbolic link in its place is followed if it is ours or root's.
    ///
    /// # Errors
    /// It is no directory, or another user's link; or the operating system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(path, flags | OFlags::NOFOLLOW, Mode::empty()) {
            // With O_DIRECTORY a link is "no directory".
            Err(Errno::LOOP | Errno::NOTDIR) => {
                rustix::fs::open(link_target(path)?, flags, Mode::empty())
            }
            other => other,
        };
        Ok(Self { dir: File::from(opened?), path: path.to_owned() })
    }

    /// Its path as it was given, for people and for texts.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who else may replace what is written here; `None`: nobody but us and root.
    ///
    /// # Errors
    /// The operating system's.
    pub fn writer(&self) -> io::Result<Option<Writer>> {
        let meta = self.dir.metadata()?;
        let is_sticky = meta.mode() & 0o1000 != 0;
        Ok(match meta.uid() {
            uid if uid != 0 && uid != rustix::process::geteuid().as_raw() => {
                Some(Writer::User(uid))
            }
            _ if meta.mode() & 0o002 != 0 && !is_sticky => Some(Writer::Everybody),
            _ if meta.mode() & 0o020 != 0 && !is_sticky => Some(Writer::Group(meta.gid())),
            _ => None,
        })
    }

    /// Whether there is anything of this name, a link that leads nowhere included.
    pub fn has(&self, name: &OsStr) -> bool {
        !matches!(self.look(name), Err(Errno::NOENT))
    }

    fn look(&self, name: &OsStr) -> rustix::io::Result<Stat> {
        self.within(|dir| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Creates a file that is not there.
    ///
    /// # Errors
    /// `AlreadyExists`: something of this name is; or the operating system's.
    pub fn create_new(&self, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(File::from(self.open_at(name, flags, mode)?))
    }

    /// Opens a regular file to read it.
    ///
    /// # Errors
    /// `InvalidData`: it is no regular file. Else the operating system's.
    pub fn open_plain(&self, name: &OsStr) -> io::Result<File> {
        let foreign = || io::Error::new(io::ErrorKind::InvalidData, "it is no regular file");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match self.open_at(name, flags, 0) {
            Ok(file) => File::from(file),
            // A link, or a socket.
            Err(Errno::LOOP | Errno::NXIO) => return Err(foreign()),
            Err(e) => return Err(e.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(foreign());
        }
        Ok(file)
    }

    fn open_at(&self, name: &OsStr, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        self.within(|dir| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)))
    }

    /// Does something in the directory, which is never looked for again.
    fn within<T>(
        &self,
        work: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        if planted::is("restored-files-are-found-by-path") {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            return work(rustix::fs::open(&self.path, flags, Mode::empty())?.as_fd());
        }
        work(self.dir.as_fd())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(self.within(|dir| rustix::fs::unlinkat(dir, name, AtFlags::empty()))?)
    }

    /// Removes a file if it is this one.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove_if(&self, name: &OsStr, file: &File) -> io::Result<()> {
        let (there, meta) = (self.look(name)?, file.metadata()?);
        if (there.st_dev, there.st_ino) == (meta.dev(), meta.ino()) {
            return self.remove(name);
        }
        Ok(())
    }

    /// Whether two open files are one.
    ///
    /// # Errors
    /// The operating system's.
    pub fn is_one(a: &File, b: &File) -> io::Result<bool> {
        let (a, b) = (a.metadata()?, b.metadata()?);
        Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    /// Gives a file another name, and never one that something has.
    ///
    /// # Errors
    /// `AlreadyExists`; or the operating system's.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let flags = RenameFlags::NOREPLACE;
        match self.within(|dir| rustix::fs::renameat_with(dir, from, dir, to, flags)) {
            // A file system that doesn't know the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.within(|dir| rustix::fs::linkat(dir, from, dir, to, AtFlags::empty()))?;
                self.remove(from)
            }
            other => Ok(other?),
        }
    }

    /// Makes its names durable.
    ///
    /// # Errors
    /// The operating system's.
    pub fn sync(&self) -> io::Result<()> {
        self.dir.sync_all()
    }
}

/// Who may replace what is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A user.
    User(u32),
    /// The members of a group.
    Group(u32),
    /// All users.
    Everybody,
}

impl std::fmt::Display for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Group(gid) => write!(f, "the members of group {gid}"),
            Self::Everybody => f.write_str("every user"),
        }
    }
}

/// Where a link leads that can be trusted.
fn link_target(path: &Path) -> io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&link)?;
    let ours = [0, rustix::process::geteuid().as_raw()];
    // What is no link at all fails here, too: it is no directory either.
    let target = rustix::fs::readlinkat(&link, "", Vec::new())
        .map_err(|_| io::Error::from(io::ErrorKind::NotADirectory))?;
    if !ours.contains(&stat.st_uid) && !planted::is("restored-files-are-found-by-path") {
        let why = format!("it is a symbolic link of user {}", stat.st_uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
    Ok(path.parent().unwrap_or(Path::new("/")).join(target))
}

/// Locks a file against another process that does.
///
/// # Errors
/// `WouldBlock`: another has locked it.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        // A file system without locks can't tell.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
