//! Memory over a socket: whoever connects gets a guest's stream, made while it is sent.
//!
//! What always holds: each reader gets one whole stream or an early end, never a wrong one (I-12);
//! at most [`READERS_MAX`] are served at a time, others wait to be accepted; a reader that takes
//! nothing for [`STALL_MAX`] is cut off (I-11); nobody gets the memory once a disk was written to.

use super::live;
use crate::error::Result;
use crate::open::Recovery;
use crate::warm::{GuestPlan, StreamJob, WarmPoint};
use afterimage_nbd::SocketFile;
use rustix::event::{PollFd, PollFlags, poll};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Readers that are served at a time: each takes two batches of memory.
const READERS_MAX: usize = 4;
/// How long a reader may take nothing.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How often the server looks whether it shall end, and for readers that have.
const LOOK_EVERY_MS: u64 = 50;

/// How memory is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As one stream, which any `-incoming` takes: the guest runs when it has ended.
    Stream,
    /// To a guest that runs meanwhile.
    Live,
}

/// A guest's memory, being served until this is dropped.
pub(super) struct MemoryServer {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    _file: SocketFile,
}

/// What all threads of a server share.
struct Shared {
    recovery: Arc<Recovery>,
    point: WarmPoint,
    guest: GuestPlan,
    how: How,
    /// Set when a disk was written to: the memory belongs to it no more.
    touched: Vec<Arc<AtomicBool>>,
    is_ending: AtomicBool,
    /// Those that are being served.
    readers: Mutex<Vec<(JoinHandle<()>, UnixStream)>>,
}

impl MemoryServer {
    /// Serves a guest's memory on a socket that is bound.
    pub(super) fn start(
        bound: (UnixListener, SocketFile),
        recovery: Arc<Recovery>,
        point: WarmPoint,
        guest: GuestPlan,
        how: How,
        touched: Vec<Arc<AtomicBool>>,
    ) -> io::Result<Self> {
        let (listener, file) = bound;
        listener.set_nonblocking(true)?;
        let (is_ending, readers) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { recovery, point, guest, how, touched, is_ending, readers });
        let its = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("memory-accept".to_owned())
            .spawn(move || its.accept_all(&listener))?;
        Ok(Self { shared, acceptor: Some(acceptor), _file: file })
    }
}

impl Drop for MemoryServer {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let mut readers = self.shared.readers.lock().unwrap_or_else(PoisonError::into_inner);
        for (thread, stream) in readers.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>, listener: &UnixListener) {
        let pause = rustix::time::Timespec::try_from(Duration::from_millis(LOOK_EVERY_MS)).ok();
        while !self.is_ending.load(Ordering::Relaxed) {
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            readers.retain(|(thread, _)| !thread.is_finished());
            let is_full = readers.len() >= READERS_MAX;
            drop(readers);
            let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
            let watched = if is_full { &mut fds[..0] } else { &mut fds[..] };
            let _ = poll(watched, pause.as_ref());
            if fds[0].revents().is_empty() {
                continue;
            }
            let served = listener.accept().and_then(|(stream, _)| self.serve(stream));
            if let Err(error) = served
                && error.kind() != io::ErrorKind::WouldBlock
            {
                tracing::warn!(%error, "can't serve a reader of memory");
                std::thread::sleep(Duration::from_millis(LOOK_EVERY_MS));
            }
        }
    }

    fn serve(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(STALL_MAX))?;
        let known = stream.try_clone()?;
        let shared = Arc::clone(self);
        let thread =
            std::thread::Builder::new().name("memory-reader".to_owned()).spawn(move || {
                let end = stream.try_clone();
                if let Err(error) = shared.send(stream) {
                    tracing::error!(%error, "a reader of memory got no whole stream");
                }
                // The server holds a duplicate: closing alone would not tell the reader.
                let _ = end.and_then(|stream| stream.shutdown(Shutdown::Both));
            })?;
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.push((thread, known));
        Ok(())
    }

    fn send(&self, stream: UnixStream) -> Result<()> {
        if self.touched.iter().any(|t| t.load(Ordering::Relaxed)) {
            // Memory and disks of two moments would destroy what is on the disks.
            tracing::error!("memory not sent: the exported disks were written to since");
            return Ok(());
        }
        if self.how == How::Live {
            return live::send(&self.recovery, &self.point, &self.guest, &stream);
        }
        let job = StreamJob { recovery: &self.recovery, point: &self.point, guest: &self.guest };
        job.write(stream, None, Path::new("the reader"), &mut |_| {}).map(drop)
    }
}
