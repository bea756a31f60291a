//! A write's payload on its way from the socket to the export.
//!
//! What always holds: an export gets exactly the bytes that the request declared, each once and
//! in order; after a failed receive it gets none any more.

use std::io;
use std::time::Duration;

/// Where a payload comes from.
pub(crate) trait Source {
    /// Fills `dst`.
    fn receive(&mut self, dst: &mut [u8]) -> io::Result<()>;
    /// Fills `dst` as far as that takes no longer than about `limit`; gives the bytes received.
    fn receive_within(&mut self, dst: &mut [u8], limit: Duration) -> io::Result<usize>;
    /// Bytes that can be received without waiting.
    fn buffered(&self) -> usize;
}

impl Source for &[u8] {
    fn receive_within(&mut self, dst: &mut [u8], _limit: Duration) -> io::Result<usize> {
        self.receive(dst).map(|()| dst.len())
    }

    fn receive(&mut self, dst: &mut [u8]) -> io::Result<()> {
        io::Read::read_exact(self, dst)
    }

    fn buffered(&self) -> usize {
        self.len()
    }
}

/// The payload of one WRITE, not received yet or not all of it.
///
/// [`Payload::read_into`] copies what the connection has buffered and receives the rest straight
/// into the given memory. It waits for the client: hold no lock over it that others need, unless
/// [`Payload::is_here`].
pub struct Payload<'a> {
    bytes: usize,
    left: usize,
    failed: bool,
    source: &'a mut dyn Source,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(bytes: usize, source: &'a mut dyn Source) -> Self {
        Self { bytes, left: bytes, failed: false, source }
    }

    /// A payload that is all of `bytes`, for callers that have no client: tests, replays.
    pub fn from_slice(bytes: &'a mut &'_ [u8]) -> Self {
        Self { bytes: bytes.len(), left: bytes.len(), failed: false, source: bytes }
    }

    /// Bytes of the whole payload.
    #[allow(clippy::len_without_is_empty, reason = "a payload is never empty")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Bytes that were not consumed yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Whether all that is left has arrived: then `read_into` is a copy and cannot wait or fail.
    pub fn is_here(&self) -> bool {
        self.source.buffered() >= self.left
    }

    /// Fills `dst` with the next bytes. Fails with `InvalidInput` when fewer are left, and with
    /// the socket's error when the client is gone: nothing can be read after that.
    pub fn read_into(&mut self, dst: &mut [u8]) -> io::Result<()> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if dst.len() > self.left {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let received = self.source.receive(dst);
        match received {
            Ok(()) => self.left -= dst.len(),
            Err(_) => self.failed = true,
        }
        received
    }

    /// As [`Payload::read_into`], but gives up waiting after about `limit`: gives how many bytes of
    /// `dst` were filled. For memory that others wait for.
    pub fn read_within(&mut self, dst: &mut [u8], limit: Duration) -> io::Result<usize> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if dst.len() > self.left {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let received = self.source.receive_within(dst, limit);
        match &received {
            Ok(bytes) => self.left -= bytes,
            Err(_) => self.failed = true,
        }
        received
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed
    }
}
