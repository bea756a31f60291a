//! Memory as an export, for tests and measurements. Owns the bytes and which blocks of them
//! were written. A client that stops in the middle of a payload never holds the lock.

use std::cell::RefCell;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Export, ExportInfo, Payload, StatusSink, WriteFlags, ZeroFlags};
use crate::errno::Errno;
use crate::proto::{STATE_HOLE, STATE_ZERO};

/// Granularity in which allocation is tracked, in bytes.
const BLOCK_BYTES: usize = 4096;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Content {
    data: Vec<u8>,
    allocated: Vec<bool>,
}

/// Memory as an export.
pub struct MemoryExport {
    content: RwLock<Content>,
    bytes: usize,
    info: ExportInfo,
}

impl MemoryExport {
    /// An export of `bytes` zero bytes.
    pub fn new(bytes: usize) -> Self {
        Self::with_info(bytes, ExportInfo { can_fast_zero: true, ..ExportInfo::default() })
    }

    /// An export of `bytes` zero bytes that offers what `info` says.
    pub fn with_info(bytes: usize, info: ExportInfo) -> Self {
        let content =
            Content { data: vec![0; bytes], allocated: vec![false; bytes.div_ceil(BLOCK_BYTES)] };
        Self { content: RwLock::new(content), bytes, info }
    }

    /// A copy of everything in it.
    pub fn snapshot(&self) -> Vec<u8> {
        self.shared().data.clone()
    }

    fn shared(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn touch(&mut self, at: usize, len: usize) -> &mut [u8] {
        self.allocated[at / BLOCK_BYTES..(at + len).div_ceil(BLOCK_BYTES)].fill(true);
        &mut self.data[at..at + len]
    }

    fn clear(&mut self, at: usize, len: usize) {
        self.data[at..at + len].fill(0);
        let (first, last) = (at.div_ceil(BLOCK_BYTES), (at + len) / BLOCK_BYTES);
        if first < last {
            self.allocated[first..last].fill(false);
        }
    }
}

impl Export for MemoryExport {
    fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let at = at as usize;
        buf.copy_from_slice(&self.shared().data[at..at + buf.len()]);
        Ok(())
    }

    fn write(&self, at: u64, payload: &mut Payload<'_>, _flags: WriteFlags) -> Result<(), Errno> {
        let (at, len) = (at as usize, payload.len());
        if payload.is_here() {
            return Ok(payload.read_into(self.exclusive().touch(at, len))?);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < len {
                scratch.resize(len, 0);
            }
            payload.read_into(&mut scratch[..len])?;
            self.exclusive().touch(at, len).copy_from_slice(&scratch[..len]);
            Ok(())
        })
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        let (at, len) = (at as usize, len as usize);
        if flags.no_hole {
            self.exclusive().touch(at, len).fill(0);
        } else {
            self.exclusive().clear(at, len);
        }
        Ok(())
    }

    fn trim(&self, at: u64, len: u64, _flags: WriteFlags) -> Result<(), Errno> {
        self.exclusive().clear(at as usize, len as usize);
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn block_status(
        &self,
        _context: &str,
        at: u64,
        len: u64,
        sink: &mut StatusSink<'_>,
    ) -> Result<(), Errno> {
        let content = self.shared();
        let (mut at, end) = (at as usize, (at + len) as usize);
        while at < end {
            let next = ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(end);
            let allocated = content.allocated[at / BLOCK_BYTES];
            let flags = if allocated { 0 } else { STATE_HOLE | STATE_ZERO };
            if !sink.push((next - at) as u64, flags) {
                break;
            }
            at = next;
        }
        Ok(())
    }
}
