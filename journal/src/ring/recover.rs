//! What a writer that was killed left in the ring goes into the units' files, before anything reads
//! them to decide something.
//!
//! What always holds: the ring is not changed here, and the same bytes go to the same places however
//! often it is done: killed anywhere, it is done again. Nothing is made durable: the next epoch's
//! opening does that.

use super::header::Slot;
use super::overlay::Overlay;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::pool::{FileName, Places};
use crate::storage::{Access, Storage, StoredFile};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// What the last writer left of its ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    /// None that counts: there is none, or it is one of another boot or mount, or a copy.
    Nothing,
    /// The ring of an epoch.
    Ring {
        /// The epoch.
        epoch: u64,
        /// A unit that the writer had open, and whose file is gone, or a copy of it.
        replaced: Option<PathBuf>,
    },
}

/// Writes what is in the ring of the journal in `dir` only; the caller is its only writer.
///
/// # Errors
/// A unit can't be written: nothing is lost, and it can be tried again.
pub(crate) fn recover(storage: &Arc<dyn Storage>, dir: &Path, group: [u8; 16]) -> Result<Left> {
    let path = dir.join(super::NAME);
    if SystemClock.boot_id() == [0; 16] && storage.exists(&path) {
        let why = "this host's boot id can't be read, so it is not known whether the ring counts";
        return Err(Error::io("recover", &path, io::Error::other(why)));
    }
    let Some(ring) = Overlay::open(storage, dir)?.filter(|r| r.group() == group) else {
        return Ok(Left::Nothing);
    };
    let mut replaced = None;
    let places = Places::of(storage, dir)?;
    let slots = ring.slots().map_err(|e| Error::io("read ring", &path, e))?;
    for slot in &slots {
        let name = FileName::Unit(slot.number);
        let Some(path) = places.find(name) else {
            replaced = Some(dir.join(name.to_string()));
            continue;
        };
        let opened = storage.open(&path, Access::Write);
        let file = opened.map_err(|e| Error::io("open unit", &path, e))?;
        let Some(bytes) = write_back(&*file, &ring, slot, &path)? else { continue };
        if slot.file_id != 0 && slot.file_id != super::file_id(&*file) {
            replaced = Some(path.clone());
        }
        tracing::debug!(unit = %path.display(), bytes, "written from the ring");
    }
    Ok(Left::Ring { epoch: ring.epoch(), replaced })
}

/// The bytes that were written; `None` when another unit has its name now, or none.
fn write_back(
    file: &dyn StoredFile,
    ring: &Overlay,
    slot: &Slot,
    path: &Path,
) -> Result<Option<u64>> {
    let io = |what| move |e| Error::io(what, path, e);
    let length = file.bytes().map_err(io("look at unit"))?;
    // Writes past the page cache may outlive the process that began them, by which they would take
    // what is placed in the ring next to where the old bytes belong. Allocating waits for them; that
    // there is nothing to allocate, or that it can't be done, is no matter.
    let _ = file.allocate(0, length);
    let mut block = vec![0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut block, 0).map_err(io("read unit"))?;
    let is_same = UnitHeader::decode(&block)
        .is_ok_and(|h| (h.number, h.salt, h.group) == (slot.number, slot.salt, ring.group()));
    let range = slot.unflushed();
    if !is_same || range.start < BLOCK_BYTES || range.end > length {
        return Ok(None);
    }
    let mut piece = Vec::new();
    for at in range.clone().step_by(PIECE_BYTES as usize) {
        piece.resize(PIECE_BYTES.min(range.end - at) as usize, 0);
        ring.read(file, slot.number, at, &mut piece).map_err(io("read ring for"))?;
        file.write_all_at(&piece, at).map_err(io("write unit"))?;
    }
    Ok(Some(range.end - range.start))
}
