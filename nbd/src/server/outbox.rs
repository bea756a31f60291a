//! The replies that wait to be sent, and the memory that READ payloads are read into.
//!
//! What always holds: `buffer[..filled]` is what goes out next; all of `buffer` is initialised
//! memory, so reserving room again costs no clearing; after a large reply it shrinks back.

use crate::proto::Mode;
use crate::proto::flags::{CHUNK_DONE, CHUNK_ERROR, CHUNK_NONE};
use crate::proto::reply::{self, Chunk, Reply};
use crate::proto::request::Request;

/// What the buffer keeps once it is empty again, in bytes.
const KEPT_BYTES: usize = 2 << 20;

pub(super) struct Outbox {
    buffer: Vec<u8>,
    filled: usize,
}

impl Outbox {
    pub(super) fn new(bytes: usize) -> Self {
        Self { buffer: vec![0; bytes], filled: 0 }
    }

    pub(super) fn pending(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    pub(super) fn bytes(&self) -> usize {
        self.filled
    }

    pub(super) fn clear(&mut self) {
        self.filled = 0;
        if self.buffer.len() > KEPT_BYTES {
            self.buffer.truncate(KEPT_BYTES);
            self.buffer.shrink_to_fit();
        }
    }

    /// Takes back everything past the first `bytes`.
    pub(super) fn truncate(&mut self, bytes: usize) {
        self.filled = self.filled.min(bytes);
    }

    /// Adds `bytes` of room to be filled; its content is whatever was there.
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.filled;
        self.filled += bytes;
        if self.filled > self.buffer.len() {
            self.buffer.resize(self.filled, 0);
        }
        &mut self.buffer[start..self.filled]
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// Adds the header of a simple reply.
    pub(super) fn push_simple(&mut self, request: &Request, error: u32) {
        let mut out = [0; reply::EXTENDED_BYTES];
        let simple = Reply::Simple { error, cookie: request.cookie };
        let bytes = simple.encode(Mode::Simple, &mut out);
        self.push(&out[..bytes]);
    }

    /// Adds the header of a chunk with `length` bytes of payload.
    pub(super) fn push_chunk(
        &mut self,
        mode: Mode,
        request: &Request,
        kind: u16,
        length: usize,
        done: bool,
    ) {
        let mut out = [0; reply::EXTENDED_BYTES];
        let chunk = Reply::Chunk(Chunk {
            flags: if done { CHUNK_DONE } else { 0 },
            kind,
            cookie: request.cookie,
            offset: request.offset,
            length: length as u64,
        });
        let bytes = chunk.encode(mode, &mut out);
        self.push(&out[..bytes]);
    }

    /// Adds the whole reply to a request that brings no data back.
    pub(super) fn push_success(&mut self, mode: Mode, request: &Request) {
        match mode {
            // Structured mode allows simple replies where there is no data; they are shorter.
            Mode::Simple | Mode::Structured => self.push_simple(request, 0),
            Mode::Extended => self.push_chunk(mode, request, CHUNK_NONE, 0, true),
        }
    }

    /// Adds the whole reply to a request that failed, or its last chunk.
    pub(super) fn push_error(&mut self, mode: Mode, request: &Request, error: u32, text: &str) {
        if mode == Mode::Simple {
            return self.push_simple(request, error);
        }
        self.push_chunk(mode, request, CHUNK_ERROR, 6 + text.len(), true);
        self.push(&error.to_be_bytes());
        self.push(&(text.len() as u16).to_be_bytes());
        self.push(text.as_bytes());
    }
}
