//! An NBD server that takes every write and keeps none: a mirror of ours whose own server is gone
//! can end only while somebody answers its writes.
//!
//! Whoever starts one has first seen to it that the mirror is never believed again: its disk owes the
//! blocks of QEMU's map, or has no map left.

use afterimage_nbd::Errno;
use afterimage_nbd::export::{Export, ExportInfo, Exports, Payload, WriteFlags, ZeroFlags};
use afterimage_nbd::server::{Limits, ListenError, NoObserver, Server, ServerHandle};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a payload that are taken from the socket at once.
const PIECE_BYTES: usize = 16 << 10;

/// Takes a payload and forgets it.
pub(super) fn forget(payload: &mut Payload<'_>) -> Result<(), Errno> {
    let mut piece = [0; PIECE_BYTES];
    while payload.left() > 0 {
        let bytes = payload.left().min(PIECE_BYTES);
        payload.read_into(&mut piece[..bytes]).map_err(|_| Errno::Io)?;
    }
    Ok(())
}

struct Discard {
    bytes: u64,
}

impl Export for Discard {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn info(&self) -> ExportInfo {
        let description = "afterimage: a mirror that is being removed".into();
        ExportInfo { description, can_fast_zero: true, ..ExportInfo::default() }
    }

    /// A mirror never reads its target; nothing that was written can be given back.
    fn read(&self, _at: u64, _buf: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::Io)
    }

    fn write(&self, _at: u64, payload: &mut Payload<'_>, _: WriteFlags) -> Result<(), Errno> {
        forget(payload)
    }

    fn write_zeroes(&self, _at: u64, _len: u64, _: ZeroFlags) -> Result<(), Errno> {
        Ok(())
    }

    fn trim(&self, _at: u64, _len: u64, _: WriteFlags) -> Result<(), Errno> {
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// A running server that forgets what it is sent. Dropping it ends it, within 200 ms.
pub(crate) struct DiscardServer {
    _server: ServerHandle,
}

impl DiscardServer {
    /// Serves `bytes` on a socket that nobody listens on.
    ///
    /// # Errors
    /// Somebody listens there, or the socket can't be made.
    pub(crate) fn start(socket: &Path, bytes: u64) -> Result<Self, ListenError> {
        let limits = Limits { drain_max: Duration::from_millis(200), ..Limits::default() };
        let exports = Arc::new(Exports::single(Arc::new(Discard { bytes })));
        let server = Server::listen(socket, exports, limits, Arc::new(NoObserver))?;
        Ok(Self { _server: server })
    }
}
