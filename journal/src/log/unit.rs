//! A unit that is being written: its place in the ring, its file, and its records for the index.
//!
//! What always holds: bytes are stored to the ring only in ranges that the tail lock handed out; the
//! flusher's handle and the sealer's are two, so that each hears of a failed sync itself; no byte is handed
//! out twice, so that none of its offsets is a nonce twice.

use super::tail::page_up;
use crate::error::{Error, Result};
use crate::format::cipher::{Key, UnitKey};
use crate::format::record::{self, HEADER_BYTES, Record, SEQ_AT};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::format::{align_up, checksum};
use crate::ring::{self, Ring, Slot};
use crate::storage::{Access, Storage, StoredFile};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Records that a unit is expected to have, a byte of it: those of 4 KiB each.
const RECORD_BYTES_USUAL: u64 = 4096 + HEADER_BYTES;

/// A unit open for writing.
pub(super) struct OpenUnit {
    /// Its header.
    pub(super) header: UnitHeader,
    /// Its file's path.
    pub(super) path: PathBuf,
    /// Tells its file from a copy of it.
    file_id: u64,
    /// The file, for the sealer.
    pub(super) file: Arc<dyn StoredFile>,
    /// The file, for the flusher; past the page cache where that can be had.
    pub(super) data: Arc<dyn StoredFile>,
    /// Position of its byte 0, and its slot in the ring's header; set when it is begun.
    base: AtomicU64,
    slot: AtomicUsize,
    /// Position at which its records end; `u64::MAX` until it is full.
    pub(super) end: AtomicU64,
    /// Whether it is full, and all of it in its file.
    pub(super) is_written: AtomicBool,
    /// What its data is encrypted with.
    key: Option<Arc<UnitKey>>,
    /// Bytes below this one were handed out.
    handed: AtomicU64,
    /// Its committed records with their byte offsets, in the order of their numbers.
    pub(super) records: Mutex<Vec<(u64, Record)>>,
}

impl OpenUnit {
    /// A unit whose file was just made.
    ///
    /// # Errors
    /// The file can't be opened, or is shorter than its header says.
    pub(super) fn new(
        storage: &dyn Storage,
        header: UnitHeader,
        path: PathBuf,
        (is_direct, key): (bool, Option<&Key>),
    ) -> Result<Self> {
        let io = |e| Error::io("open unit", &path, e);
        let file = storage.open(&path, Access::Write).map_err(io)?;
        let data = match is_direct {
            true => storage.open_direct(&path).map_err(io)?,
            false => storage.open(&path, Access::Write).map_err(io)?,
        };
        let length = file.bytes().map_err(io)?;
        if length != header.unit_bytes {
            let why = format!("it has {length} bytes instead of {}", header.unit_bytes);
            return Err(Error::Unusable { path, why });
        }
        let records = Vec::with_capacity((header.unit_bytes / RECORD_BYTES_USUAL) as usize);
        Ok(Self {
            header,
            path,
            file_id: ring::file_id(&*file),
            file,
            data,
            base: AtomicU64::new(0),
            slot: AtomicUsize::new(0),
            end: AtomicU64::new(u64::MAX),
            is_written: AtomicBool::new(false),
            key: key.map(|key| key.unit(&header)),
            handed: AtomicU64::new(BLOCK_BYTES),
            records: Mutex::new(records),
        })
    }

    /// Places it in the ring: its first record goes to `position`.
    pub(super) fn begin(&self, ring: &Ring, slot: usize, position: u64) {
        let base = position.wrapping_sub(BLOCK_BYTES);
        self.base.store(base, Ordering::Relaxed);
        self.slot.store(slot, Ordering::Relaxed);
        let (number, salt) = (self.header.number, self.header.salt);
        let file_id = self.file_id;
        let named = Slot { number, salt, base, flushed: position, placed: position, file_id };
        ring.begin_unit(slot, &named);
    }

    /// The position of its byte `at`.
    pub(super) fn position(&self, at: u64) -> u64 {
        self.base.load(Ordering::Relaxed).wrapping_add(at)
    }

    /// The byte that lies at a position.
    pub(super) fn offset(&self, position: u64) -> u64 {
        position.wrapping_sub(self.base.load(Ordering::Relaxed))
    }

    /// The position of its first record.
    pub(super) fn start(&self) -> u64 {
        self.position(BLOCK_BYTES)
    }

    /// The end of the last page that has records of it; `u64::MAX` until it is full.
    pub(super) fn end_page(&self) -> u64 {
        match self.end.load(Ordering::Relaxed) {
            u64::MAX => u64::MAX,
            end => page_up(end),
        }
    }

    /// Its slot in the ring's header.
    pub(super) fn slot(&self) -> usize {
        self.slot.load(Ordering::Relaxed)
    }

    /// Notes that space for a record at byte `at` is handed out; the caller has the tail lock.
    pub(super) fn hand_out(&self, at: u64, payload_bytes: u32) {
        let end = align_up(at + HEADER_BYTES + u64::from(payload_bytes));
        let handed = self.handed.load(Ordering::Relaxed);
        self.handed.store(end, Ordering::Relaxed);
        // A nonce that comes twice gives away what both records hold: better no journal.
        assert!(at >= handed, "byte {at} of a unit is handed out twice");
    }

    /// Encrypts a record's payload into its place in the ring, and notes both in the record.
    ///
    /// # Errors
    /// The unit has no key, or the sizes don't fit.
    pub(super) fn encrypt(
        &self,
        ring: &Ring,
        at: u64,
        record: &mut Record,
        payload: &[u8],
    ) -> Result<()> {
        let seq = record.seq;
        let broken = |why: &str| Error::Invalid(format!("record {seq}: {why}"));
        let key = self.key.as_ref().ok_or_else(|| broken("its unit has no key"))?;
        let position = self.position(at + HEADER_BYTES);
        // SAFETY: this payload's place belongs to the caller's reservation until the number is in.
        let stored = unsafe { ring.range_mut(position, record.payload_bytes.into()) };
        key.seal(record, at, payload, stored).map_err(broken)?;
        record.encrypted = true;
        record.payload_crc = checksum::crc32c(stored);
        Ok(())
    }

    /// Commits a record: everything but the number first, the number last.
    pub(super) fn write_commit(&self, ring: &Ring, at: u64, record: &Record) {
        let bytes = record::encode(&self.header.salt, at, record);
        // SAFETY: this header belongs to the caller's reservation until the number is in.
        let header = unsafe { ring.range_mut(self.position(at), HEADER_BYTES) };
        header[record::FRAME_BYTES..SEQ_AT].copy_from_slice(&bytes[record::FRAME_BYTES..SEQ_AT]);
        // SAFETY: 64-byte aligned records put the number on an 8-byte boundary inside the
        // mapping; a scan by another process reads it as bytes, and the release store orders
        // everything above before it.
        let seq = unsafe { AtomicU64::from_ptr(header.as_mut_ptr().add(SEQ_AT).cast()) };
        seq.store(record.seq.to_le(), Ordering::Release);
        super::lock(&self.records).push((at, *record));
    }
}
