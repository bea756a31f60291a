//! From a guest's write to a committed record.
//!
//! ```text
//! QEMU ══ unix socket ══► connection thread: payload ─► unit ─► commit ─► reply
//!                              │ Watch: oldest unanswered request, beats ─► guard
//!                              └ Tap: one volume's records
//! ```
//!
//! What always holds: a reply is sent after the record's commit (I-1); a write that can't be
//! journaled is answered with an error, and by the journal's latch no later write of the group
//! counts as recorded before a resync (I-4).

mod discard;
mod gate;
pub mod instant;
mod tap;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use discard::DiscardServer;
pub use gate::Gate;
pub use instant::{Armed, Latch, Stopped};
pub use tap::{Tap, TapCounters, TapShared};
pub use watch::{CaptureEvent, Watch};

use afterimage_guard::Worker;
use afterimage_nbd::export::Exports;
use afterimage_nbd::server::{Limits, ListenError, Server, ServerHandle};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A volume's NBD server: QEMU's mirror writes to it.
pub struct Capture {
    /// Where it listens.
    pub socket: PathBuf,
    server: Option<ServerHandle>,
}

impl Capture {
    /// Listens on `socket` for the mirror of the tap's volume; `guest` is a number that all volumes of its
    /// guest share, with the process of its QEMU where that can be told.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn start(
        socket: &Path,
        tap: Arc<Tap>,
        worker: Option<Worker>,
        guest: (u64, Option<u32>),
        events: mpsc::UnboundedSender<CaptureEvent>,
    ) -> Result<Self, ListenError> {
        let watch = Watch::new(&tap, worker, guest, events);
        let limits = Limits {
            connections_max: 8,
            // What has arrived is answered at once or never: the guest waits for it.
            drain_max: Duration::from_millis(200),
            ..Limits::default()
        };
        let exports = Arc::new(Exports::single(tap));
        let server = Server::listen(socket, exports, limits, Arc::new(watch))?;
        Ok(Self { socket: socket.to_owned(), server: Some(server) })
    }

    /// Ends the server; QEMU sees the end of the connection and its mirror pauses. Blocking, for
    /// 200 ms at most.
    pub fn stop(mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
    }
}
