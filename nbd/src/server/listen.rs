//! Admits connections and gives each its thread.
//!
//! What always holds: a client is served, or is told why it is not, or (when too many are being
//! told at a time) is cut; the log says so in each case.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::Limits;
use super::connection;
use super::handshake::{Handshake, OPTION_BYTES_MAX};
use super::link::Link;
use super::observer::{CloseReason, NoObserver, Observer};
use super::outbox::Outbox;
use super::refusals::Refusals;
use super::registry::{Refused, Registry, Seat};
use super::socket::{ListenError, SocketFile, bind};
use crate::export::ExportSet;
use crate::transport::{Inbox, Transport};
use afterimage_planted as planted;

/// Pause after a failed accept, such as when the process is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

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
        let (registry, refusals) = (Arc::default(), Refusals::default());
        let core = Arc::new(Core { exports, limits, observer, registry, refusals });
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

    /// Connections at this moment, without those that are being refused.
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
    refusals: Refusals,
}

impl Core {
    fn admit<T: Transport>(self: &Arc<Self>, stream: T) -> io::Result<()> {
        let transport: Arc<dyn Transport> = Arc::new(stream);
        let admitted = self.registry.admit(Arc::clone(&transport), self.limits.connections_max);
        let seat = match admitted {
            Ok(seat) => seat,
            Err(Refused::Stopping) => return Err(io::Error::other("server is stopping")),
            Err(Refused::Full) => return Err(self.refuse(transport)),
        };
        let (id, core) = (seat.id, Arc::clone(self));
        let thread = thread::Builder::new()
            .name("nbd-connection".to_owned())
            .spawn(move || core.serve(transport, seat))?;
        self.registry.seat_thread(id, thread);
        Ok(())
    }

    /// Has a thread tell a client that there is no place for it; gives what it is told.
    fn refuse(self: &Arc<Self>, transport: Arc<dyn Transport>) -> io::Error {
        let limit = self.limits.connections_max;
        let why = format!(
            "{limit} clients are connected, and that is the limit: disconnect one and try again"
        );
        if let Ok(seat) = self.registry.admit_refused(Arc::clone(&transport))
            && !planted::is("client-refused-silently")
        {
            let (id, core, words) = (seat.id, Arc::clone(self), why.clone());
            let thread = thread::Builder::new()
                .name("nbd-refusal".to_owned())
                .spawn(move || core.tell_refused(transport, &seat, &words));
            if let Ok(thread) = thread {
                self.registry.seat_thread(id, thread);
            }
        }
        io::Error::other(why)
    }

    fn tell_refused(&self, transport: Arc<dyn Transport>, seat: &Seat, why: &str) {
        let limits = self.refusals.limits(&self.limits);
        let inbox = Inbox::new(2 * OPTION_BYTES_MAX as usize);
        let mut link = Link::new(transport, inbox, Outbox::new(4096), Box::new(NoObserver));
        let reason = Handshake::new(&mut link, &*self.exports, seat, &limits).refuse(why);
        link.transport.end();
        tracing::debug!(%reason, "refused NBD client is gone");
    }

    fn serve(&self, transport: Arc<dyn Transport>, seat: Seat) {
        let observer = self.observer.connected(transport.fd());
        // The longest option and its header fit at once.
        let receive_bytes = self.limits.receive_bytes.max(2 * OPTION_BYTES_MAX as usize);
        let outbox = Outbox::new(self.limits.reply_bytes.max(4096));
        let mut link = Link::new(transport, Inbox::new(receive_bytes), outbox, observer);
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
        let noteworthy = matches!(
            &reason,
            CloseReason::Protocol(_) | CloseReason::Panicked | CloseReason::RequestTimeout(_)
        );
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
                    core.refusals.log(&error);
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
