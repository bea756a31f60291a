//! What a server offers to its clients: the [`Export`] trait and the set that names exports.
//!
//! What always holds when the server calls an export: the range lies inside [`Export::bytes`],
//! it is not empty, it is aligned to the minimum block size, a write came to a writable export,
//! and a flag or command came only if [`ExportInfo`] offers it. Calls come from one thread a
//! connection, so an export with several connections is called concurrently.

mod file;
mod memory;
mod payload;
mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

pub use file::FileExport;
pub use memory::MemoryExport;
pub use payload::Payload;
pub(crate) use payload::Source;
pub use status::StatusSink;

use crate::errno::Errno;
use crate::proto::BASE_ALLOCATION;

/// Smallest block size that is offered unless an export says otherwise, in bytes.
pub const BLOCK_BYTES_MIN: u32 = 1;
/// Preferred block size unless an export says otherwise, in bytes.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Largest payload unless an export says otherwise, in bytes: what the protocol lets clients
/// assume when nothing is said.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// What a client is told about an export, and what the server accepts for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Text for people; empty for none.
    pub description: String,
    /// Writes are refused with EPERM.
    pub read_only: bool,
    /// Alignment of every request, in bytes; a power of two.
    pub block_bytes_min: u32,
    /// Size and alignment that are fast, in bytes; a power of two.
    pub block_bytes_preferred: u32,
    /// Largest payload of one READ or WRITE, in bytes.
    pub payload_bytes_max: u32,
    /// FLUSH is offered.
    pub can_flush: bool,
    /// FUA is offered.
    pub can_fua: bool,
    /// TRIM is offered.
    pub can_trim: bool,
    /// WRITE_ZEROES is offered.
    pub can_zero: bool,
    /// FAST_ZERO is offered.
    pub can_fast_zero: bool,
    /// CACHE is offered.
    pub can_cache: bool,
    /// A flush on one connection covers the finished writes of all, and each connection reads
    /// what another has written.
    pub multi_conn: bool,
    /// Seeking costs time.
    pub rotational: bool,
}

impl Default for ExportInfo {
    /// Writable, with flush, FUA, trim and zeroing, on several connections.
    fn default() -> Self {
        Self {
            description: String::new(),
            read_only: false,
            block_bytes_min: BLOCK_BYTES_MIN,
            block_bytes_preferred: BLOCK_BYTES_PREFERRED,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            can_flush: true,
            can_fua: true,
            can_trim: true,
            can_zero: true,
            can_fast_zero: false,
            can_cache: false,
            multi_conn: true,
            rotational: false,
        }
    }
}

/// How a write or a trim is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Durable before the call returns.
    pub fua: bool,
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Durable before the call returns.
    pub fua: bool,
    /// Leave the range allocated.
    pub no_hole: bool,
    /// Fail with [`Errno::NotSup`] rather than be as slow as writing.
    pub fast: bool,
}

/// A range of bytes that clients read and write.
pub trait Export: Send + Sync {
    /// Size in bytes. Must not change while a client is connected.
    fn bytes(&self) -> u64;

    /// What the export offers. Read once for each connection.
    fn info(&self) -> ExportInfo {
        ExportInfo::default()
    }

    /// Fills `buf` with the bytes from `at` on.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Takes the payload and writes it at `at`. The reply is sent when this returns.
    ///
    /// When receiving the payload fails, whatever is returned, the connection ends without a
    /// reply. What is not consumed on an error is drained by the server.
    fn write(&self, at: u64, payload: &mut Payload<'_>, flags: WriteFlags) -> Result<(), Errno>;

    /// Writes zeroes.
    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno>;

    /// Forgets the range; what it reads as afterwards is undefined. May do nothing.
    fn trim(&self, at: u64, len: u64, flags: WriteFlags) -> Result<(), Errno>;

    /// Makes durable every write that was answered before.
    fn flush(&self) -> Result<(), Errno>;

    /// Brings the range into a cache.
    fn cache(&self, at: u64, len: u64) -> Result<(), Errno> {
        let _ = (at, len);
        Ok(())
    }

    /// Reports the extents of the range in a metadata context of [`Export::contexts`], in
    /// order, from `at` on. It may stop early; it stops when the sink is full.
    fn block_status(
        &self,
        context: &str,
        at: u64,
        len: u64,
        sink: &mut StatusSink<'_>,
    ) -> Result<(), Errno> {
        let _ = (context, at);
        sink.push(len, 0);
        Ok(())
    }

    /// Names of the metadata contexts, `namespace:leaf`.
    fn contexts(&self) -> Vec<String> {
        vec![BASE_ALLOCATION.to_owned()]
    }
}

/// The exports of a server, by name.
pub trait ExportSet: Send + Sync {
    /// The export of that name; clients that name none ask for `""`.
    fn get(&self, name: &str) -> Option<Arc<dyn Export>>;
    /// The names that LIST shows.
    fn names(&self) -> Vec<String>;
}

/// An [`ExportSet`] that can change while the server runs.
#[derive(Default)]
pub struct Exports {
    by_name: RwLock<BTreeMap<String, Arc<dyn Export>>>,
}

impl Exports {
    /// A set with one export, named `""`.
    pub fn single(export: Arc<dyn Export>) -> Self {
        let exports = Self::default();
        exports.insert("", export);
        exports
    }

    /// Adds an export, or replaces the one of that name for connections to come.
    pub fn insert(&self, name: &str, export: Arc<dyn Export>) {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        by_name.insert(name.to_owned(), export);
    }

    /// Takes an export out for connections to come; those that exist keep it (see
    /// `ServerHandle::end_export`).
    pub fn remove(&self, name: &str) -> Option<Arc<dyn Export>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
}

impl ExportSet for Exports {
    fn get(&self, name: &str) -> Option<Arc<dyn Export>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
