//! Reads and writes, many in flight. One thread does both directions: requests without payload
//! are small, and replies to writes are, so neither side can fill the other's buffers.

use std::io;
use std::ops::Range;

use super::flight::{Flight, Sink};
use super::{Client, ClientError, Content};
use crate::proto::flags::{CMD_FUA, CMD_READ, CMD_WRITE};

/// The most requests in flight on one connection.
pub const DEPTH_MAX: usize = 256;
/// Requests in flight for one large read or write.
const DEPTH: usize = 4;

/// Reads straight into one buffer.
struct Into<'a> {
    from: u64,
    buf: &'a mut [u8],
}

impl Sink for Into<'_> {
    fn room(&mut self, at: u64, len: usize) -> &mut [u8] {
        let start = (at - self.from) as usize;
        &mut self.buf[start..start + len]
    }

    fn filled(&mut self, _at: u64, _len: usize) {}

    fn hole(&mut self, at: u64, len: u64) {
        self.room(at, len as usize).fill(0);
    }
}

/// Hands each part to a function, until that fails.
struct Call<'a> {
    buffer: Vec<u8>,
    take: &'a mut dyn FnMut(u64, Content<'_>) -> io::Result<()>,
    failed: Option<io::Error>,
}

impl Sink for Call<'_> {
    fn room(&mut self, _at: u64, len: usize) -> &mut [u8] {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        &mut self.buffer[..len]
    }

    fn filled(&mut self, at: u64, len: usize) {
        if self.failed.is_none() {
            self.failed = (self.take)(at, Content::Data(&self.buffer[..len])).err();
        }
    }

    fn hole(&mut self, at: u64, len: u64) {
        if self.failed.is_none() {
            self.failed = (self.take)(at, Content::Hole(len)).err();
        }
    }
}

/// Cuts ranges into pieces that one request can carry.
struct Pieces<I> {
    ranges: I,
    current: Range<u64>,
    bytes: u64,
}

impl<I: Iterator<Item = Range<u64>>> Iterator for Pieces<I> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        while self.current.is_empty() {
            self.current = self.ranges.next()?;
        }
        let at = self.current.start;
        // Later pieces start aligned, whatever the first one did.
        let to_boundary = self.bytes - at % self.bytes;
        let len = (self.current.end - at).min(to_boundary);
        self.current.start += len;
        Some((at, len))
    }
}

impl Client {
    /// Fills `buf` with the bytes from `at` on.
    pub fn read(&mut self, at: u64, buf: &mut [u8]) -> Result<(), ClientError> {
        self.in_range(at, buf.len() as u64)?;
        let range = at..at + buf.len() as u64;
        let mut sink = Into { from: at, buf };
        self.read_into(std::iter::once(range), DEPTH, &mut sink, |_| true)
    }

    /// Reads the ranges with up to `depth` requests in flight and hands each part, as it comes,
    /// to `take`: parts come in any order, none twice, and all of them unless this fails.
    ///
    /// On the first failure no more is asked for; what is in flight is received and dropped, so
    /// that the connection can be used on after a [`ClientError::Request`] or
    /// [`ClientError::Sink`].
    pub fn read_many(
        &mut self,
        ranges: impl IntoIterator<Item = Range<u64>>,
        depth: usize,
        mut take: impl FnMut(u64, Content<'_>) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut sink =
            Call { buffer: std::mem::take(&mut self.scratch), take: &mut take, failed: None };
        let done = self.read_into(ranges.into_iter(), depth, &mut sink, |s| s.failed.is_none());
        let Call { buffer, failed, .. } = sink;
        self.scratch = buffer;
        match failed {
            Some(error) if done.is_ok() => Err(ClientError::Sink(error)),
            _ => done,
        }
    }

    fn read_into<S: Sink>(
        &mut self,
        ranges: impl Iterator<Item = Range<u64>>,
        depth: usize,
        sink: &mut S,
        go_on: impl Fn(&S) -> bool,
    ) -> Result<(), ClientError> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let bytes = u64::from(self.piece_bytes);
        let mut pieces = Pieces { ranges, current: 0..0, bytes };
        let mut flights = Vec::with_capacity(depth);
        let mut result = Ok(());
        self.usable()?;
        loop {
            while result.is_ok() && go_on(sink) && flights.len() < depth {
                let Some((at, len)) = pieces.next() else { break };
                if let Err(error) = self.in_range(at, len) {
                    result = Err(error);
                    break;
                }
                let cookie = self.queue(CMD_READ, 0, at, len, &[])?;
                flights.push(Flight::new(cookie, CMD_READ, at, len));
            }
            if flights.is_empty() {
                return result;
            }
            if let Some(done) = self.receive_reply(&mut flights, sink)? {
                result = result.and(done.into_result());
            }
        }
    }

    /// Writes `data` at `at`; durable before this returns if `fua`.
    pub fn write(&mut self, at: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        self.in_range(at, data.len() as u64)?;
        let mut pieces = data.chunks(self.piece_bytes as usize);
        let mut next = at;
        let pieces = std::iter::from_fn(move || {
            let piece = pieces.next()?;
            let at = next;
            next += piece.len() as u64;
            Some((at, piece))
        });
        self.write_many(pieces, DEPTH, fua)
    }

    /// Sends the writes with up to `depth` of them in flight; each must fit
    /// [`Client::payload_bytes_max`]. On the first failure no more is sent.
    pub fn write_many<'d>(
        &mut self,
        writes: impl IntoIterator<Item = (u64, &'d [u8])>,
        depth: usize,
        fua: bool,
    ) -> Result<(), ClientError> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let flags = if fua { CMD_FUA } else { 0 };
        let mut writes = writes.into_iter();
        let mut flights = Vec::with_capacity(depth);
        let mut result = Ok(());
        self.usable()?;
        loop {
            while result.is_ok() && flights.len() < depth {
                let Some((at, data)) = writes.next() else { break };
                let len = data.len() as u64;
                let fits = len <= u64::from(self.payload_bytes_max);
                if let Err(error) = self.in_range(at, if fits { len } else { u64::MAX }) {
                    result = Err(error);
                    break;
                }
                let cookie = self.queue(CMD_WRITE, flags, at, len, data)?;
                flights.push(Flight::new(cookie, CMD_WRITE, at, len));
            }
            if flights.is_empty() {
                return result;
            }
            // Whatever has arrived makes room for that many requests to go out in one send.
            loop {
                if let Some(done) = self.receive_reply(&mut flights, &mut super::flight::NoData)? {
                    result = result.and(done.into_result());
                }
                if flights.is_empty() || self.inbox.buffered().is_empty() {
                    break;
                }
            }
        }
    }
}
