//! Requests in flight, and the replies that answer them, in any order and in any pieces.
//!
//! What always holds: each byte of a read is brought once; a read that ends well has brought
//! all of them; a chunk that lies outside its request ends the connection before it is received.

use super::{Client, ClientError};
use crate::errno::Errno;
use crate::proto::flags::*;
use crate::proto::reply::{Chunk, EXTENDED_BYTES, Reply};
use crate::proto::{Fields, Mode, STRING_BYTES_MAX};

/// The most bytes of payload of an error chunk: number, length, text, offset.
const ERROR_BYTES_MAX: u64 = 14 + STRING_BYTES_MAX as u64;

/// One request that was not answered whole yet.
pub(super) struct Flight {
    pub(super) cookie: u64,
    pub(super) command: u16,
    pub(super) at: u64,
    pub(super) len: u64,
    /// The parts that were brought, sorted, neighbours joined.
    parts: Vec<(u64, u64)>,
    error: Option<(Errno, String)>,
}

/// Where the data of replies goes.
pub(super) trait Sink {
    /// Memory for `len` bytes at `at` of the export.
    fn room(&mut self, at: u64, len: usize) -> &mut [u8];
    /// The memory was filled.
    fn filled(&mut self, at: u64, len: usize);
    /// A hole.
    fn hole(&mut self, at: u64, len: u64);
    /// The payload of a status chunk of that kind.
    fn status(&mut self, kind: u16, payload: &[u8]) -> Result<(), String> {
        let _ = (kind, payload);
        Ok(())
    }
}

/// A sink for requests that bring nothing.
pub(super) struct NoData;

impl Sink for NoData {
    fn room(&mut self, _at: u64, _len: usize) -> &mut [u8] {
        &mut []
    }
    fn filled(&mut self, _at: u64, _len: usize) {}
    fn hole(&mut self, _at: u64, _len: u64) {}
}

fn command_name(command: u16) -> &'static str {
    match command {
        CMD_READ => "read",
        CMD_WRITE => "write",
        CMD_FLUSH => "flush",
        CMD_TRIM => "trim",
        CMD_CACHE => "cache",
        CMD_WRITE_ZEROES => "write-zeroes",
        CMD_BLOCK_STATUS => "block-status",
        _ => "request",
    }
}

impl Flight {
    pub(super) fn new(cookie: u64, command: u16, at: u64, len: u64) -> Self {
        Self { cookie, command, at, len, parts: Vec::new(), error: None }
    }

    /// The outcome of a request that was answered whole.
    pub(super) fn into_result(self) -> Result<(), ClientError> {
        let Some((errno, message)) = self.error else { return Ok(()) };
        let command = command_name(self.command);
        Err(ClientError::Request { command, at: self.at, len: self.len, errno, message })
    }

    /// Takes note that a part was brought; false when it lies outside or was brought before.
    fn bring(&mut self, at: u64, len: u64) -> bool {
        let Some(end) = at.checked_add(len) else { return false };
        if len == 0 || at < self.at || end > self.at + self.len {
            return false;
        }
        let next = self.parts.partition_point(|(start, _)| *start < at);
        let after_previous = next == 0 || self.parts[next - 1].1 <= at;
        let before_next = self.parts.get(next).is_none_or(|(start, _)| end <= *start);
        if !after_previous || !before_next {
            return false;
        }
        if next > 0 && self.parts[next - 1].1 == at {
            self.parts[next - 1].1 = end;
        } else {
            self.parts.insert(next, (at, end));
        }
        true
    }

    fn is_whole(&self) -> bool {
        self.parts.iter().map(|(start, end)| end - start).sum::<u64>() == self.len
    }
}

impl Client {
    /// Receives one reply or chunk; gives the request that it ended, if it did.
    pub(super) fn receive_reply(
        &mut self,
        flights: &mut Vec<Flight>,
        sink: &mut dyn Sink,
    ) -> Result<Option<Flight>, ClientError> {
        let (reply, bytes) = self.receive_header()?;
        self.inbox.consume(bytes);
        let cookie = match reply {
            Reply::Simple { cookie, .. } => cookie,
            Reply::Chunk(chunk) => chunk.cookie,
        };
        let Some(index) = flights.iter().position(|flight| flight.cookie == cookie) else {
            return Err(self.violated(format!("reply to unknown request {cookie}")));
        };
        let flight = &mut flights[index];
        let is_done = match reply {
            Reply::Simple { error, .. } => {
                self.receive_simple(flight, error, sink)?;
                true
            }
            Reply::Chunk(chunk) => {
                self.receive_chunk(flight, &chunk, sink)?;
                chunk.is_done()
            }
        };
        if !is_done {
            return Ok(None);
        }
        if flight.error.is_none() && flight.command == CMD_READ && !flight.is_whole() {
            return Err(self.violated("read ended before all data was sent"));
        }
        Ok(Some(flights.swap_remove(index)))
    }

    fn receive_header(&mut self) -> Result<(Reply, usize), ClientError> {
        let mut bytes = 4;
        loop {
            self.need(bytes)?;
            match Reply::decode(self.mode, self.inbox.buffered()) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) if bytes < EXTENDED_BYTES => bytes = self.inbox.buffered().len() + 1,
                Ok(None) => return Err(self.violated("reply header does not end")),
                Err(error) => return Err(self.violated(error.to_string())),
            }
        }
    }

    fn receive_simple(
        &mut self,
        flight: &mut Flight,
        error: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ClientError> {
        if error != 0 {
            flight.error = Some((Errno::from_code(error), String::new()));
            return Ok(());
        }
        match (flight.command, self.mode) {
            (CMD_READ, Mode::Simple) => self.receive_data(flight, flight.at, flight.len, sink),
            (CMD_READ | CMD_BLOCK_STATUS, _) => {
                Err(self.violated("simple reply where a structured one is due"))
            }
            _ => Ok(()),
        }
    }

    fn receive_data(
        &mut self,
        flight: &mut Flight,
        at: u64,
        len: u64,
        sink: &mut dyn Sink,
    ) -> Result<(), ClientError> {
        if !flight.bring(at, len) {
            return Err(self.violated(format!("data of {len} bytes at {at} was not asked for")));
        }
        // A read is at most a piece long, so this fits any usize.
        let len = len as usize;
        self.inbox.saw_payload(len);
        self.send_queued()?;
        self.receive(sink.room(at, len))?;
        sink.filled(at, len);
        Ok(())
    }

    fn receive_chunk(
        &mut self,
        flight: &mut Flight,
        chunk: &Chunk,
        sink: &mut dyn Sink,
    ) -> Result<(), ClientError> {
        if self.mode == Mode::Extended && chunk.offset != flight.at {
            return Err(self.violated("reply carries another request's offset"));
        }
        match (chunk.kind, flight.command) {
            (CHUNK_NONE, _) if chunk.length == 0 && chunk.is_done() => Ok(()),
            (CHUNK_OFFSET_DATA, CMD_READ) if chunk.length > 8 => {
                let at = self.receive_u64()?;
                self.receive_data(flight, at, chunk.length - 8, sink)
            }
            (CHUNK_OFFSET_HOLE, CMD_READ) if chunk.length == 12 => {
                let at = self.receive_u64()?;
                let mut len = [0; 4];
                self.receive(&mut len)?;
                let len = u64::from(u32::from_be_bytes(len));
                if !flight.bring(at, len) {
                    return Err(self.violated(format!("hole of {len} bytes at {at} is misplaced")));
                }
                sink.hole(at, len);
                Ok(())
            }
            (CHUNK_BLOCK_STATUS | CHUNK_BLOCK_STATUS_EXT, CMD_BLOCK_STATUS) => {
                self.receive_status(chunk, sink)
            }
            _ if chunk.is_error() => self.receive_error(flight, chunk),
            (kind, _) => Err(self.violated(format!(
                "chunk of type {kind} and {} bytes in reply to {}",
                chunk.length,
                command_name(flight.command)
            ))),
        }
    }

    fn receive_u64(&mut self) -> Result<u64, ClientError> {
        let mut bytes = [0; 8];
        self.receive(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn receive_error(&mut self, flight: &mut Flight, chunk: &Chunk) -> Result<(), ClientError> {
        if chunk.length < 6 || chunk.length > ERROR_BYTES_MAX {
            return Err(self.violated(format!("error chunk of {} bytes", chunk.length)));
        }
        let mut payload = vec![0; chunk.length as usize];
        self.receive(&mut payload)?;
        let mut fields = Fields::new(&payload);
        let code = fields.u32().unwrap_or(0);
        let text_bytes = usize::from(fields.u16().unwrap_or(0));
        let Some(text) = fields.bytes(text_bytes) else {
            return Err(self.violated("error text is longer than its chunk"));
        };
        let text = String::from_utf8_lossy(text).into_owned();
        flight.error.get_or_insert((Errno::from_code(code), text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Flight;

    #[test]
    fn parts_in_any_order_make_a_whole_and_overlaps_are_refused() {
        let mut flight = Flight::new(1, 0, 100, 50);
        assert!(flight.bring(130, 20));
        assert!(flight.bring(100, 10));
        assert!(!flight.is_whole());
        for (at, len) in [(99, 2), (105, 10), (125, 10), (140, 11), (100, 0), (u64::MAX, 2)] {
            assert!(!flight.bring(at, len), "{at}+{len}");
        }
        assert!(flight.bring(110, 20));
        assert!(flight.is_whole());
        assert!(!flight.bring(100, 50));
    }
}
