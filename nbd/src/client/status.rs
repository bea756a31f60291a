//! BLOCK_STATUS of the client: asks on until the whole range is answered.

use super::flight::{Flight, Sink};
use super::{COMPACT_EFFECT_BYTES_MAX, Client, ClientError};
use crate::proto::flags::{CHUNK_BLOCK_STATUS, CMD_BLOCK_STATUS};
use crate::proto::reply::Chunk;
use crate::proto::{Fields, Mode};

/// Extents in one chunk that are accepted; the protocol asks servers to send no more.
const EXTENTS_MAX: u64 = 1 << 20;

/// Collects the extents of one context.
struct Extents {
    context: u32,
    left: u64,
    found: Vec<(u64, u32)>,
    was_answered: bool,
}

impl Extents {
    fn push(&mut self, len: u64, flags: u32) {
        // The last extent may reach past what was asked.
        let len = len.min(self.left);
        if len == 0 {
            return;
        }
        self.left -= len;
        match self.found.last_mut() {
            Some((last, same)) if *same == flags => *last += len,
            _ => self.found.push((len, flags)),
        }
    }
}

impl Sink for Extents {
    fn room(&mut self, _at: u64, _len: usize) -> &mut [u8] {
        &mut []
    }

    fn filled(&mut self, _at: u64, _len: usize) {}

    fn hole(&mut self, _at: u64, _len: u64) {}

    fn status(&mut self, kind: u16, payload: &[u8]) -> Result<(), String> {
        let mut fields = Fields::new(payload);
        if fields.u32() != Some(self.context) {
            return Ok(());
        }
        if std::mem::replace(&mut self.was_answered, true) {
            return Err("two status chunks for one context".to_owned());
        }
        let compact = kind == CHUNK_BLOCK_STATUS;
        if !compact {
            let count = fields.u32().unwrap_or(0) as usize;
            if count != 0 && count * 16 != fields.rest().len() {
                return Err("status chunk counts its extents wrongly".to_owned());
            }
        }
        while !fields.is_empty() {
            let extent = if compact {
                fields.u32().map(u64::from).zip(fields.u32())
            } else {
                fields.u64().zip(fields.u64().and_then(|flags| u32::try_from(flags).ok()))
            };
            match extent {
                Some((len, flags)) if len > 0 => self.push(len, flags),
                _ => return Err("malformed extent".to_owned()),
            }
        }
        Ok(())
    }
}

impl Client {
    /// The extents of the range in a metadata context, in order and without gaps: length in
    /// bytes and the context's flags. Asks as often as the server's answers are short.
    pub fn block_status(
        &mut self,
        context: &str,
        at: u64,
        len: u64,
    ) -> Result<Vec<(u64, u32)>, ClientError> {
        self.usable()?;
        self.in_range(at, len)?;
        let Some((id, _)) = self.contexts.iter().find(|(_, own)| own == context) else {
            return Err(ClientError::Context(context.to_owned()));
        };
        let mut extents =
            Extents { context: *id, left: len, found: Vec::new(), was_answered: false };
        while extents.left > 0 {
            let at = at + (len - extents.left);
            let piece = match self.mode {
                Mode::Extended => extents.left,
                _ => extents.left.min(COMPACT_EFFECT_BYTES_MAX),
            };
            extents.was_answered = false;
            let cookie = self.queue(CMD_BLOCK_STATUS, 0, at, piece, &[])?;
            let mut flights = vec![Flight::new(cookie, CMD_BLOCK_STATUS, at, piece)];
            while !flights.is_empty() {
                if let Some(done) = self.receive_reply(&mut flights, &mut extents)? {
                    done.into_result()?;
                }
            }
            if !extents.was_answered {
                return Err(self.violated("no status chunk for the context"));
            }
        }
        Ok(extents.found)
    }

    pub(super) fn receive_status(
        &mut self,
        chunk: &Chunk,
        sink: &mut dyn Sink,
    ) -> Result<(), ClientError> {
        let (head, each) = if chunk.kind == CHUNK_BLOCK_STATUS { (4, 8) } else { (8, 16) };
        let body = chunk.length.saturating_sub(head);
        let fits = chunk.length > head
            && body.is_multiple_of(each)
            && body / each <= EXTENTS_MAX
            && (each == 8 || self.mode == Mode::Extended);
        if !fits {
            return Err(self.violated(format!("status chunk of {} bytes", chunk.length)));
        }
        let mut payload = std::mem::take(&mut self.scratch);
        payload.resize(chunk.length as usize, 0);
        let received = self.receive(&mut payload);
        let parsed = received.map(|()| sink.status(chunk.kind, &payload));
        self.scratch = payload;
        parsed?.map_err(|what| self.violated(what))
    }
}
