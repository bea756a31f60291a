//! READ: how the bytes of an export become replies.
//!
//! What always holds: a simple reply is built whole before any of it is sent, for it can report no
//! error later; with chunks, a range that the export knows to be zero is sent as a hole, without
//! its bytes; at most [`CHUNK_BYTES`] of data wait in the outbox.

use super::connection::Transmission;
use super::observer::CloseReason;
use crate::errno::Errno;
use crate::export::StatusSink;
use crate::proto::flags::*;
use crate::proto::request::Request;
use crate::proto::{BASE_ALLOCATION, Mode, STATE_ZERO};
use afterimage_planted as planted;

/// Data of one chunk when a READ may be answered in several, in bytes.
const CHUNK_BYTES: u64 = 1 << 20;
/// A READ of this size must work with the DF flag; larger ones may be refused.
const UNFRAGMENTED_BYTES_MIN: u64 = 64 << 10;
/// Zeroes between data that are worth a chunk of their own, in bytes.
const HOLE_BYTES_MIN: u64 = 4096;
/// Extents that are asked for at a time.
const EXTENTS_MAX: usize = 1024;

impl Transmission<'_> {
    pub(super) fn read(&mut self, request: &Request) -> Result<(), CloseReason> {
        let mode = self.agreed.mode;
        if mode == Mode::Simple {
            self.read_simple(request);
            return Ok(());
        }
        if request.length == 0 {
            self.link.outbox.push_chunk(mode, request, CHUNK_NONE, 0, true);
            return Ok(());
        }
        let whole = request.flags & CMD_DF != 0;
        if whole && request.length > UNFRAGMENTED_BYTES_MIN.max(CHUNK_BYTES) {
            self.refuse(request, (Errno::Overflow, "too large to send unfragmented"));
            return Ok(());
        }
        let (mut at, end) = (request.offset, request.offset + request.length);
        while at < end {
            let upto = end.min(at + CHUNK_BYTES);
            let mark = self.link.outbox.bytes();
            let done = match whole || !self.agreed.tells_zeroes || planted::is("holes-as-data") {
                true => self.push_data(request, at, upto),
                false => self.push_sparse(request, at, upto),
            };
            if let Err(errno) = done {
                self.link.outbox.truncate(mark);
                self.refuse(request, (errno, "read failed"));
                return Ok(());
            }
            at = upto;
            if at < end {
                self.link.flush_early()?;
            }
        }
        Ok(())
    }

    fn read_simple(&mut self, request: &Request) {
        let mark = self.link.outbox.bytes();
        self.link.outbox.push_simple(request, 0);
        // At most payload_bytes_max, which is 32 bits wide.
        let bytes = request.length as usize;
        let room = self.link.outbox.room(bytes);
        // One buffer holds all of it: after the header there is no way to report an error.
        let done = if bytes == 0 { Ok(()) } else { self.agreed.export.read(request.offset, room) };
        if let Err(errno) = done {
            self.link.outbox.truncate(mark);
            self.finish(request, Err(errno));
        }
    }

    /// Adds a chunk with the bytes of a range.
    fn push_data(&mut self, request: &Request, at: u64, upto: u64) -> Result<(), Errno> {
        let (mode, is_last) = (self.agreed.mode, upto == request.offset + request.length);
        let bytes = (upto - at) as usize;
        let outbox = &mut self.link.outbox;
        outbox.push_chunk(mode, request, CHUNK_OFFSET_DATA, 8 + bytes, is_last);
        outbox.push(&at.to_be_bytes());
        self.agreed.export.read(at, outbox.room(bytes))
    }

    /// Adds a chunk that says that a range is zero.
    fn push_hole(&mut self, request: &Request, at: u64, upto: u64) {
        let (mode, is_last) = (self.agreed.mode, upto == request.offset + request.length);
        let outbox = &mut self.link.outbox;
        outbox.push_chunk(mode, request, CHUNK_OFFSET_HOLE, 12, is_last);
        outbox.push(&at.to_be_bytes());
        outbox.push(&((upto - at) as u32).to_be_bytes());
    }

    /// Adds the chunks of a range: zeroes as holes, the rest as data.
    fn push_sparse(&mut self, request: &Request, at: u64, upto: u64) -> Result<(), Errno> {
        // Taken out while it is used, and kept for the next request.
        let mut extents = std::mem::take(&mut self.extents);
        let mut sink = StatusSink::new(&mut extents, upto - at, EXTENTS_MAX);
        let export = std::sync::Arc::clone(&self.agreed.export);
        let mut done = export.block_status(BASE_ALLOCATION, at, upto - at, &mut sink);
        // `data` is where data begins that is not in a chunk yet; `next` is behind all extents.
        let (mut data, mut next) = (at, at);
        for (len, flags) in &extents {
            let end = next + len;
            let is_worth_it = *len >= HOLE_BYTES_MIN || *len == request.length;
            let is_hole = flags & STATE_ZERO != 0 && is_worth_it;
            if is_hole && done.is_ok() {
                if data < next {
                    done = self.push_data(request, data, next);
                }
                self.push_hole(request, next, end);
                data = end;
            }
            next = end;
        }
        self.extents = extents;
        done?;
        // What the export said nothing of is read.
        if data < upto { self.push_data(request, data, upto) } else { Ok(()) }
    }
}
