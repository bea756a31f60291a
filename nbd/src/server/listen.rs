//! Listens, admits connections, and gives each its thread.
//!
//! What always holds: a socket file is replaced only when nobody listens on it, it has mode 0600
//! before anyone can find it, and it is removed only by the server that made it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Limits;
use super::connection;
use super::handshake::OPTION_BYTES_MAX;
use super::link::Link;
use super::observer::{CloseReason, Observer};
use super::outbox::Outbox;
use super::registry::{Refused, Registry, Seat};
use crate::export::ExportSet;
use crate::transport::{Inbox, Transport};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Pause after a failed accept, such as when the process is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

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

/// Starts servers.
pub struct Server;

impl Server {
    /// Listens on a Unix socket at `path` (mode 0600; a stale one is replaced) and serves.
    pub fn listen(
        path: &Path,
        exports: Arc<dyn ExportSet>,
        limits: Limits,
        observer: Arc<dyn Observer>,
    ) -> Result<ServerHandle, ListenError> {
        let (listener, file) = bind(path)?;
        let mut handle = Self::serve(listener, exports, limits, observer)
            .map_err(|source| ListenError::Io { what: "serve", path: path.to_owned(), source })?;
        handle.file = Some(file);
        Ok(handle)
    }

    /// Serves on a listener that was made elsewhere.
    pub fn serve(
        listener: UnixListener,
        exports: Arc<dyn ExportSet>,
        limits: Limits,
        observer: Arc<dyn Observer>,
    ) -> io::Result<ServerHandle> {
        listener.set_nonblocking(true)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let core = Arc::new(Core { exports, limits, observer, registry: Arc::default() });
        let (its_core, its_wake) = (Arc::clone(&core), Arc::clone(&wake));
        let acceptor = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept_all(&listener, &its_wake, &its_core))?;
        Ok(ServerHandle { core, wake, acceptor: Some(acceptor), file: None })
    }
}

/// A running server. Dropping it shuts it down.
pub struct ServerHandle {
    core: Arc<Core>,
    wake: Arc<OwnedFd>,
    acceptor: Option<JoinHandle<()>>,
    file: Option<SocketFile>,
}

impl ServerHandle {
    /// Serves one connected stream, as if it had been accepted. Fails when the connection limit
    /// is reached, the server is stopping, or no thread can be had.
    pub fn adopt(&self, stream: impl Transport) -> io::Result<()> {
        self.core.admit(stream)
    }

    /// Connections at this moment.
    pub fn connections(&self) -> usize {
        self.core.registry.count()
    }

    /// Cuts every connection that uses the export, or is about to, and waits up to `limit` for
    /// their threads to let go of it. Gives how many have not. Take the export out of the set
    /// first, so that nobody connects to it again. Not to be called from within an export.
    pub fn end_export(&self, name: &str, limit: Duration) -> usize {
        self.core.registry.end_export(name, limit)
    }

    /// Stops accepting, removes the socket file, lets connections answer the requests that have
    /// arrived (for [`Limits::drain_max`]), cuts them, and joins their threads.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        if let Err(error) = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot wake the accepting thread");
        }
        let _ = acceptor.join();
        drop(self.file.take());
        self.core.registry.stop(self.core.limits.drain_max);
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What all threads of a server share.
struct Core {
    exports: Arc<dyn ExportSet>,
    limits: Limits,
    observer: Arc<dyn Observer>,
    registry: Arc<Registry>,
}

impl Core {
    fn admit<T: Transport>(self: &Arc<Self>, stream: T) -> io::Result<()> {
        let transport: Arc<dyn Transport> = Arc::new(stream);
        let seat = self
            .registry
            .admit(Arc::clone(&transport), self.limits.connections_max)
            .map_err(|refused| match refused {
                Refused::Full => io::Error::other("too many connections"),
                Refused::Stopping => io::Error::other("server is stopping"),
            })?;
        let (id, core) = (seat.id, Arc::clone(self));
        let thread = thread::Builder::new()
            .name("nbd-connection".to_owned())
            .spawn(move || core.serve(transport, seat))?;
        self.registry.seat_thread(id, thread);
        Ok(())
    }

    fn serve(&self, transport: Arc<dyn Transport>, seat: Seat) {
        let observer = self.observer.connected(transport.fd());
        // The longest option and its header fit at once.
        let receive_bytes = self.limits.receive_bytes.max(2 * OPTION_BYTES_MAX as usize);
        let mut link = Link {
            transport,
            inbox: Inbox::new(receive_bytes),
            outbox: Outbox::new(self.limits.reply_bytes.max(4096)),
            observer,
        };
        let served = catch_unwind(AssertUnwindSafe(|| {
            connection::serve(&mut link, &*self.exports, &seat, &self.limits)
        }));
        let reason = match served {
            Err(_) => CloseReason::Panicked,
            Ok(CloseReason::Disconnected) => CloseReason::Disconnected,
            Ok(_) if seat.is_ended() => CloseReason::Shutdown,
            Ok(reason) => reason,
        };
        // Others may hold duplicates of the descriptor: closing alone would not tell the client.
        link.transport.end();
        let noteworthy = matches!(&reason, CloseReason::Protocol(_) | CloseReason::Panicked);
        let words = reason.to_string();
        let Link { transport, observer, .. } = link;
        drop(transport);
        observer.closed(reason);
        drop(seat);
        // Last: a log can be slow.
        match noteworthy {
            true => tracing::warn!(reason = words, "NBD connection ended"),
            false => tracing::debug!(reason = words, "NBD connection ended"),
        }
    }
}

fn accept_all(listener: &UnixListener, wake: &OwnedFd, core: &Arc<Core>) {
    let mut retry = false;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        // After a failed accept the listener stays readable: only the wake-up counts for a while.
        let watched = if retry { &mut fds[..1] } else { &mut fds[..] };
        let pause = rustix::time::Timespec::try_from(ACCEPT_RETRY).ok();
        match poll(watched, if retry { pause.as_ref() } else { None }) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "cannot poll the listening socket"),
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        retry = false;
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = core.admit(stream) {
                    tracing::warn!(%error, "NBD connection refused");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept NBD connection");
                retry = true;
            }
        }
    }
}

/// A socket file that [`bind`] made. Dropping it removes it, unless another has its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| file.dev() == self.device && file.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

/// Makes a listening socket at a path, mode 0600: beside it and renamed over it, so that clients
/// find either the stale socket or one that listens.
///
/// # Errors
/// Somebody listens there, something else lies there, or the system refuses.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed = |what, source| ListenError::Io { what, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) if is_listened_on(path).map_err(|error| failed("probe", error))? => {
            return Err(ListenError::InUse(path.to_owned()));
        }
        Ok(_) => {}
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("clear the way for", error));
        }
        _ => {}
    }
    let listener = bind_private(&beside).map_err(|error| failed("bind", error))?;
    let file = std::fs::symlink_metadata(&beside).map_err(|error| failed("look at", error))?;
    std::fs::rename(&beside, path).map_err(|error| failed("put in place", error))?;
    let file = SocketFile { path: path.to_owned(), device: file.dev(), inode: file.ino() };
    Ok((listener, file))
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket, less the umask.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn is_listened_on(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
