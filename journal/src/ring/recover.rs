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
use crate::storage::{Access, Storage};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Bytes copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Writes what is in the ring of the journal in `dir` only; the caller is its only writer.
///
/// # Errors
/// A unit can't be written: nothing is lost, and it can be tried again.
pub(crate) fn recover(storage: &Arc<dyn Storage>, dir: &Path, group: [u8; 16]) -> Result<()> {
    let path = dir.join(super::NAME);
    if SystemClock.boot_id() == [0; 16] && storage.exists(&path) {
        let why = "this host's boot id can't be read, so it is not known whether the ring counts";
        return Err(Error::io("recover", &path, io::Error::other(why)));
    }
    let Some(ring) = Overlay::open(storage, dir)?.filter(|r| r.group() == group) else {
        return Ok(());
    };
    let places = Places::of(storage, dir)?;
    let slots = ring.slots().map_err(|e| Error::io("read ring", &path, e))?;
    for slot in &slots {
        // A unit that is gone, or another one under its name, is found out by reading the journal.
        if let Some(path) = places.find(FileName::Unit(slot.number)) {
            let bytes = write_back(&**storage, &ring, slot, &path)?;
            tracing::debug!(unit = %path.display(), bytes, "written from the ring");
        }
    }
    Ok(())
}

fn write_back(storage: &dyn Storage, ring: &Overlay, slot: &Slot, path: &Path) -> Result<u64> {
    let io = |what| move |e| Error::io(what, path, e);
    let file = storage.open(path, Access::Write).map_err(io("open unit"))?;
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
        return Ok(0);
    }
    let mut piece = Vec::new();
    for at in range.clone().step_by(PIECE_BYTES as usize) {
        piece.resize(PIECE_BYTES.min(range.end - at) as usize, 0);
        ring.read(&*file, slot.number, at, &mut piece).map_err(io("read ring for"))?;
        file.write_all_at(&piece, at).map_err(io("write unit"))?;
    }
    Ok(range.end - range.start)
}
