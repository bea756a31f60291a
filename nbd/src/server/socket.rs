//! The socket file that a server listens on.
//!
//! What always holds: a socket file is replaced only when nobody listens on it, and nothing else is
//! ever replaced or removed; of two servers that want one path at once, one gets it and the other
//! an error; the file has mode 0600 before anyone can find it; it is removed only by the server
//! that made it.
//!
//! A socket is made under a name of its own beside the path, listens, and is then renamed to the
//! path, so that clients find the stale socket or one that listens. Servers that do this in one
//! directory at a time take turns by a lock on the directory. Who holds it for too long is not
//! waited for: the renaming itself notices what came between.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use afterimage_planted as planted;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno as Os;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path of a socket that clients can connect to, in bytes.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Longest wait for other servers that make a socket in the same directory.
const TURN_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks whether they are done.
const TURN_RETRY: Duration = Duration::from_millis(2);
/// How often it is tried to find a free name, and to take a path that others take too.
const TRIES_MAX: u32 = 16;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server listens there.
    #[error("listen on {0}: another server listens there; stop it or choose another path")]
    InUse(PathBuf),
    /// Something that is no socket lies there.
    #[error("listen on {0}: a file that is no socket lies there; move it or choose another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A file as it was seen: device and inode.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// A socket file that [`bind`] made. Dropping it removes it, unless another has its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    place: Place,
    identity: Identity,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // With its turn: nobody can put another socket there between the look and the removal.
        let _turn = self.place.turn();
        let ours = self.place.look(&self.place.name).is_ok_and(|s| identity(&s) == self.identity);
        if ours && let Err(error) = self.place.remove(&self.place.name) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

/// Makes a listening socket at a path, mode 0600.
///
/// # Errors
/// Somebody listens there, something else lies there, or the system refuses.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed =
        |what| move |source: io::Error| ListenError::Io { what, path: path.to_owned(), source };
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        let words = format!("the path is {bytes} bytes long, the limit is {SOCKET_PATH_BYTES_MAX}");
        return Err(failed("listen on")(io::Error::new(io::ErrorKind::InvalidInput, words)));
    }
    let place = Place::open(path).map_err(failed("open the directory of"))?;
    let turn = place.turn();
    let beside = place.bind_beside().map_err(failed("bind a socket beside"))?;
    let taken = place.take(path, &beside);
    drop(turn);
    if taken.is_err() {
        // What has the name is ours, whatever happened to the path.
        let _ = place.remove_if(&beside.name, beside.identity);
    }
    taken?;
    let (listener, identity) = (beside.listener, beside.identity);
    Ok((listener, SocketFile { path: path.to_owned(), place, identity }))
}

/// A socket that listens under a name that nobody knows.
struct Beside {
    listener: UnixListener,
    name: OsString,
    identity: Identity,
}

/// Where a socket file goes: a directory that is held open, and a name in it.
#[derive(Debug)]
struct Place {
    dir: OwnedFd,
    /// The directory can be locked: it could be opened for reading.
    has_turns: bool,
    name: OsString,
}

/// The lock of a directory, until this is dropped.
struct Turn<'a>(Option<&'a OwnedFd>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.0 {
            let _ = rustix::fs::flock(dir, FlockOperation::Unlock);
        }
    }
}

impl Place {
    fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(dir, flags | OFlags::RDONLY, Mode::empty()) {
            Ok(dir) => Ok(Self { dir, has_turns: true, name }),
            Err(Os::ACCESS) => {
                let dir = rustix::fs::open(dir, flags | OFlags::PATH, Mode::empty())?;
                Ok(Self { dir, has_turns: false, name })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for other servers that make or remove a socket here, for [`TURN_MAX`] at most.
    fn turn(&self) -> Turn<'_> {
        let begin = Instant::now();
        if !self.has_turns {
            return Turn(None);
        }
        loop {
            match rustix::fs::flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Turn(Some(&self.dir)),
                Err(Os::AGAIN | Os::INTR) if begin.elapsed() < TURN_MAX => {
                    std::thread::sleep(TURN_RETRY);
                }
                Err(_) => return Turn(None),
            }
        }
    }

    fn look(&self, name: &OsStr) -> rustix::io::Result<Stat> {
        rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn remove_if(&self, name: &OsStr, wanted: Identity) -> io::Result<()> {
        if identity(&self.look(name)?) == wanted { self.remove(name) } else { Ok(()) }
    }

    /// A path to a name here that is short whatever the directory's is.
    fn short(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(self.dir.as_raw_fd().to_string()).join(name)
    }

    /// A listening socket under a name that nothing has.
    fn bind_beside(&self) -> io::Result<Beside> {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Linux gives the file the mode of the socket, less the umask.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        let mut tries = 0;
        let name = loop {
            let name = OsString::from(format!(".afterimage-{:08x}", random()?));
            match rustix::net::bind(&socket, &SocketAddrUnix::new(self.short(&name))?) {
                Ok(()) => break name,
                Err(Os::ADDRINUSE) if tries < TRIES_MAX => tries += 1,
                Err(error) => return Err(error.into()),
            }
        };
        rustix::net::listen(&socket, BACKLOG)?;
        let identity = identity(&self.look(&name)?);
        Ok(Beside { listener: UnixListener::from(socket), name, identity })
    }

    /// Gives the socket its real name, if nobody listens there.
    fn take(&self, path: &Path, beside: &Beside) -> Result<(), ListenError> {
        let failed =
            |what| move |e: Os| ListenError::Io { what, path: path.to_owned(), source: e.into() };
        for _ in 0..TRIES_MAX {
            let stale = match self.look(&self.name) {
                Err(Os::NOENT) => None,
                Err(error) => return Err(failed("look at")(error)),
                Ok(file) if FileType::from_raw_mode(file.st_mode) != FileType::Socket => {
                    return Err(ListenError::NotASocket(path.to_owned()));
                }
                Ok(file) => {
                    if self.is_listened_on().map_err(failed("probe"))? {
                        return Err(ListenError::InUse(path.to_owned()));
                    }
                    Some(identity(&file))
                }
            };
            if self.rename(beside, stale).map_err(failed("put in place"))? {
                return Ok(());
            }
        }
        // Others took it again and again.
        Err(ListenError::InUse(path.to_owned()))
    }

    /// Puts the socket in the place of nothing or of a stale one; false if something else came
    /// there meanwhile.
    fn rename(&self, beside: &Beside, stale: Option<Identity>) -> rustix::io::Result<bool> {
        let (dir, from, to) = (&self.dir, &*beside.name, &*self.name);
        if planted::is("socket-taken-by-both") {
            return rustix::fs::renameat(dir, from, dir, to).map(|()| true);
        }
        let Some(stale) = stale else {
            return match rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(true),
                Err(Os::EXIST) => Ok(false),
                Err(Os::INVAL) => rustix::fs::renameat(dir, from, dir, to).map(|()| true),
                Err(error) => Err(error),
            };
        };
        let exchange = || rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::EXCHANGE);
        match exchange() {
            Ok(()) => {}
            Err(Os::NOENT) => return Ok(false),
            // Not every file system can exchange names; our own servers take turns.
            Err(Os::INVAL) => return rustix::fs::renameat(dir, from, dir, to).map(|()| true),
            Err(error) => return Err(error),
        }
        if self.look(from).is_ok_and(|old| identity(&old) == stale) {
            // A stale socket that stays under this name is in nobody's way.
            let _ = rustix::fs::unlinkat(dir, from, AtFlags::empty());
            return Ok(true);
        }
        exchange()?;
        Ok(false)
    }

    fn is_listened_on(&self) -> rustix::io::Result<bool> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(self.short(&self.name))?) {
            Ok(()) | Err(Os::AGAIN) => Ok(true),
            Err(Os::CONNREFUSED | Os::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}
