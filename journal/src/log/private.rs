//! Memory in which payloads of an encrypted journal wait for their number: what is encrypted is bound to
//! that, and the ring is a file.
//!
//! What always holds: nothing of it is ever in a file; buffers are used again, so that an append allocates
//! nothing once as many are there as are filled at a time.

use super::lock;
use std::sync::Mutex;

/// Most buffers that are kept for later.
const BUFFERS_KEPT_MAX: usize = 32;
/// Largest buffer that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// Buffers that nobody uses.
#[derive(Default)]
pub(super) struct Private {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Private {
    /// A buffer of at least this many bytes, with anything in it.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = {
            let mut free = lock(&self.free);
            // One that is large enough, so that small ones don't all grow.
            let fits = free.iter().rposition(|b| b.len() >= bytes);
            match fits {
                Some(at) => free.swap_remove(at),
                None => free.pop().unwrap_or_default(),
            }
        };
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        buffer
    }

    /// Gives one back.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut free = lock(&self.free);
        if free.len() < BUFFERS_KEPT_MAX && buffer.len() <= KEPT_BYTES_MAX {
            if free.capacity() == 0 {
                free.reserve_exact(BUFFERS_KEPT_MAX);
            }
            free.push(buffer);
        }
    }
}
