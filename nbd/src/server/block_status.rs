//! BLOCK_STATUS: which contexts are asked about, and the chunks that answer.
//!
//! What always holds: one chunk for each context that was asked for, each with one extent at
//! least; extents never reach past the request, so compact lengths fit their 32 bits.

use super::connection::Transmission;
use super::observer::CloseReason;
use crate::errno::Errno;
use crate::export::{Source, StatusSink};
use crate::proto::flags::*;
use crate::proto::request::Request;
use crate::proto::{Fields, Mode};

/// Extents in one chunk; a client asks again for what is left.
const EXTENTS_MAX: usize = 4096;
/// Contexts that a payload may name.
const CONTEXTS_MAX: usize = 32;

/// What a client wants to know.
pub(super) struct Query {
    at: u64,
    len: u64,
    /// One bit for each selected context, in their order.
    wanted: u64,
    extents_max: usize,
}

type Refused = (Errno, &'static str);

impl Query {
    /// The query of a request, with its payload if it has one; the inner error is the client's.
    pub(super) fn receive(
        to: &mut Transmission<'_>,
        request: &Request,
    ) -> Result<Result<Self, Refused>, CloseReason> {
        let extents_max = if request.flags & CMD_REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let at = request.offset;
        if request.flags & CMD_PAYLOAD_LEN == 0 {
            let query = Self { at, len: request.length, wanted: u64::MAX, extents_max };
            return Ok(query.checked());
        }
        let mut bytes = [0; 8 + 4 * CONTEXTS_MAX];
        let fits =
            (12..=bytes.len() as u64).contains(&request.length) && request.length.is_multiple_of(4);
        if !fits {
            to.link.drain(request.length)?;
            return Ok(Err((Errno::Inval, "malformed block status payload")));
        }
        let bytes = &mut bytes[..request.length as usize];
        to.link.receive(bytes)?;
        let mut fields = Fields::new(bytes);
        let (len, mut wanted) = (fields.u64().unwrap_or(0), 0);
        while let Some(id) = fields.u32() {
            let index = to.agreed.contexts.iter().position(|(own, _)| *own == id);
            match index.map(|index| 1_u64.checked_shl(index as u32).unwrap_or(0)) {
                Some(bit) if bit != 0 && wanted & bit == 0 => wanted |= bit,
                _ => return Ok(Err((Errno::Inval, "unknown or repeated metadata context"))),
            }
        }
        if let Err(refused) = to.in_bounds(at, len, Errno::Inval) {
            return Ok(Err(refused));
        }
        Ok(Self { at, len, wanted, extents_max }.checked())
    }

    fn checked(self) -> Result<Self, Refused> {
        if self.len == 0 { Err((Errno::Inval, "empty range")) } else { Ok(self) }
    }

    /// Adds the chunks of the reply.
    pub(super) fn answer(&self, to: &mut Transmission<'_>, request: &Request) -> Result<(), Errno> {
        let is_wanted = |index: usize| self.wanted.checked_shr(index as u32).unwrap_or(0) & 1 == 1;
        let count = to.agreed.contexts.len();
        let last = (0..count).rev().find(|index| is_wanted(*index));
        for index in (0..count).filter(|index| is_wanted(*index)) {
            let (id, context) = &to.agreed.contexts[index];
            let mut sink = StatusSink::new(&mut to.extents, self.len, self.extents_max);
            to.agreed.export.block_status(context, self.at, self.len, &mut sink)?;
            if sink.is_empty() {
                tracing::error!(context, "export reported no extent");
                return Err(Errno::Io);
            }
            let (mode, done) = (to.agreed.mode, Some(index) == last);
            let outbox = &mut to.link.outbox;
            if mode == Mode::Extended {
                let length = 8 + 16 * to.extents.len();
                outbox.push_chunk(mode, request, CHUNK_BLOCK_STATUS_EXT, length, done);
                outbox.push(&id.to_be_bytes());
                outbox.push(&(to.extents.len() as u32).to_be_bytes());
                for (len, flags) in &to.extents {
                    outbox.push(&len.to_be_bytes());
                    outbox.push(&u64::from(*flags).to_be_bytes());
                }
            } else {
                let length = 4 + 8 * to.extents.len();
                outbox.push_chunk(mode, request, CHUNK_BLOCK_STATUS, length, done);
                outbox.push(&id.to_be_bytes());
                for (len, flags) in &to.extents {
                    outbox.push(&(*len as u32).to_be_bytes());
                    outbox.push(&flags.to_be_bytes());
                }
            }
        }
        Ok(())
    }
}
