//! The stream below NBD, and the receive buffer above it.
//!
//! [`Transport`] is what a connection needs of a stream: Unix and TCP sockets have it, an
//! encrypted one can come later. [`Inbox`] owns the one receive buffer of a connection. What
//! always holds: bytes leave the inbox in the order in which they arrived, and a payload's
//! bytes that are not buffered yet never pass through the buffer.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

/// A connected byte stream.
pub trait Transport: Send + Sync + 'static {
    /// Receives into the slices in order and gives the number of bytes, 0 at the end of the
    /// stream. With `wait` false it fails with `WouldBlock` when nothing is there.
    fn receive(&self, into: &mut [IoSliceMut<'_>], wait: bool) -> io::Result<usize>;
    /// Sends some of the slices, in order, and gives the number of bytes sent. Never raises
    /// SIGPIPE.
    fn send(&self, from: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Limits how long one receive may wait; `None` waits for ever.
    fn limit_receive(&self, limit: Option<Duration>) -> io::Result<()>;
    /// Limits how long one send may wait; `None` waits for ever.
    fn limit_send(&self, limit: Option<Duration>) -> io::Result<()>;
    /// Ends receiving; what has arrived already can still be received.
    fn end_receive(&self);
    /// Ends both directions; whoever is blocked on the stream wakes up.
    fn end(&self);
    /// The descriptor, for watchers.
    fn fd(&self) -> BorrowedFd<'_>;
}

fn socket_receive(
    fd: BorrowedFd<'_>,
    into: &mut [IoSliceMut<'_>],
    wait: bool,
) -> io::Result<usize> {
    loop {
        let got = match &mut *into {
            [one] => {
                let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
                rustix::net::recv(fd, &mut one[..], flags).map(|(bytes, _)| bytes)
            }
            many if wait => rustix::io::readv(fd, many),
            many => {
                let mut control = RecvAncillaryBuffer::default();
                rustix::net::recvmsg(fd, many, &mut control, RecvFlags::DONTWAIT)
                    .map(|message| message.bytes)
            }
        };
        match got {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn socket_send(fd: BorrowedFd<'_>, from: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        let sent = match from {
            [one] => rustix::net::send(fd, one, SendFlags::NOSIGNAL),
            many => {
                let mut control = SendAncillaryBuffer::default();
                rustix::net::sendmsg(fd, many, &mut control, SendFlags::NOSIGNAL)
            }
        };
        match sent {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

macro_rules! socket_transport {
    ($socket:ty) => {
        impl Transport for $socket {
            fn receive(&self, into: &mut [IoSliceMut<'_>], wait: bool) -> io::Result<usize> {
                socket_receive(self.as_fd(), into, wait)
            }
            fn send(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
                socket_send(self.as_fd(), from)
            }
            fn limit_receive(&self, limit: Option<Duration>) -> io::Result<()> {
                Ok(set_socket_timeout(self, Timeout::Recv, limit)?)
            }
            fn limit_send(&self, limit: Option<Duration>) -> io::Result<()> {
                Ok(set_socket_timeout(self, Timeout::Send, limit)?)
            }
            fn end_receive(&self) {
                // Fails only when the peer is gone already, which is what is wanted.
                let _ = rustix::net::shutdown(self, Shutdown::Read);
            }
            fn end(&self) {
                let _ = rustix::net::shutdown(self, Shutdown::Both);
            }
            fn fd(&self) -> BorrowedFd<'_> {
                self.as_fd()
            }
        }
    };
}
socket_transport!(UnixStream);
socket_transport!(TcpStream);

/// Sends all of `bytes`.
pub(crate) fn send_all(to: &dyn Transport, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.send(&[IoSlice::new(bytes)])? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => bytes = &bytes[sent..],
        }
    }
    Ok(())
}

/// Payloads of this many bytes and more make the inbox read only a little ahead, so that the
/// next payload is received in place instead of being copied out of the buffer.
const LARGE_PAYLOAD_BYTES: usize = 32 << 10;
/// How far the inbox reads ahead between large payloads.
const AHEAD_BYTES: usize = 4 << 10;

/// The receive buffer of one connection.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    ahead_bytes: usize,
}

impl Inbox {
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = bytes.max(AHEAD_BYTES);
        Self { buffer: vec![0; bytes].into_boxed_slice(), start: 0, end: 0, ahead_bytes: bytes }
    }

    /// What has been received and not been consumed.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The most that can ever be buffered, in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Drops the first `bytes` of what is buffered.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
    }

    /// Receives once behind what is buffered. Gives 0 at the end of the stream.
    pub(crate) fn fill(&mut self, from: &dyn Transport, wait: bool) -> io::Result<usize> {
        // At most a partial header is left over here, so moving it costs nothing.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let limit = (self.end + self.ahead_bytes).min(self.buffer.len());
        let free = &mut self.buffer[self.end..limit];
        if free.is_empty() {
            return Err(io::Error::other("receive buffer is full"));
        }
        let got = from.receive(&mut [IoSliceMut::new(free)], wait)?;
        self.end += got;
        Ok(got)
    }

    /// Copies what is buffered into `dst` and gives the number of bytes.
    pub(crate) fn take(&mut self, dst: &mut [u8]) -> usize {
        let bytes = dst.len().min(self.end - self.start);
        dst[..bytes].copy_from_slice(&self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        bytes
    }

    /// Receives once into `dst` and, past its end, into the (empty) buffer. Gives the number of
    /// bytes that went to `dst`; 0 means the end of the stream.
    pub(crate) fn receive_past(
        &mut self,
        from: &dyn Transport,
        dst: &mut [u8],
        wait: bool,
    ) -> io::Result<usize> {
        debug_assert!(self.start == self.end && !dst.is_empty());
        (self.start, self.end) = (0, 0);
        let wanted = dst.len();
        let ahead = &mut self.buffer[..self.ahead_bytes];
        let got = from.receive(&mut [IoSliceMut::new(dst), IoSliceMut::new(ahead)], wait)?;
        self.end = got.saturating_sub(wanted);
        Ok(got.min(wanted))
    }

    /// Adapts how far to read ahead to the size of the payload that was just asked for.
    pub(crate) fn saw_payload(&mut self, bytes: usize) {
        self.ahead_bytes =
            if bytes >= LARGE_PAYLOAD_BYTES { AHEAD_BYTES } else { self.buffer.len() };
    }
}
