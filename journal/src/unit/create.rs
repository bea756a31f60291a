//! Making a unit: space first, then the header, then the name.

use crate::error::{Error, Result};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::planted;
use crate::pool::{FileName, Slot, strays, table};
use crate::storage::{Access, Storage, StoredFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Makes the file of a unit of `journal` in its place, and gives its path: when this returns, its space,
/// header and name are durable, and so is its row in the journal's unit table, if there is one. A spare file
/// is taken over where there is one; nothing that it held before can be read as a part of the unit, whose
/// salt is new.
///
/// # Errors
/// No space (nothing is left behind), or a failing device.
pub fn create(
    storage: &Arc<dyn Storage>,
    journal: &Path,
    slot: &Slot,
    header: &UnitHeader,
) -> Result<PathBuf> {
    let unit = FileName::Unit(header.number);
    let path = slot.dir.join(unit.to_string());
    strays::make_way(storage, &path, &header.group)?;
    make(&**storage, slot, header, &path)?;
    // Before the first record goes into it: what the table doesn't name holds none.
    table::note_made(storage, journal, &path, (unit, header))?;
    Ok(path)
}

fn make(storage: &dyn Storage, slot: &Slot, header: &UnitHeader, path: &Path) -> Result<()> {
    if let Some(spare) = &slot.spare {
        match recycle(storage, spare, header).and_then(|()| name(storage, spare, path)) {
            Ok(()) => return Ok(()),
            Err(error) => {
                // It is only a spare one: what is wrong with it shows when a new one is made.
                tracing::debug!(%error, "a spare unit can't be used");
                let _ = storage.remove(spare);
            }
        }
    }
    let draft = slot.dir.join("next-unit.tmp");
    let made = write_new(storage, &draft, header).and_then(|()| name(storage, &draft, path));
    if made.is_err() {
        let _ = storage.remove(&draft);
    }
    made
}

fn name(storage: &dyn Storage, draft: &Path, path: &Path) -> Result<()> {
    storage.rename(draft, path).map_err(|e| Error::io("rename to", path, e))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    if planted::is("skip-directory-sync") {
        return Ok(());
    }
    storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))
}

fn write_new(storage: &dyn Storage, draft: &Path, header: &UnitHeader) -> Result<()> {
    let file =
        storage.open(draft, Access::Replace).map_err(|e| Error::io("create unit", draft, e))?;
    // Blocks that exist: writing them takes no space that another may have taken by then.
    file.allocate(0, header.unit_bytes).map_err(|e| Error::io("allocate unit", draft, e))?;
    write_header(&file, draft, header)
}

fn recycle(storage: &dyn Storage, spare: &Path, header: &UnitHeader) -> Result<()> {
    let io = |what| move |e| Error::io(what, spare, e);
    let file = storage.open(spare, Access::Write).map_err(io("open spare unit"))?;
    if file.bytes().map_err(io("look at spare unit"))? != header.unit_bytes {
        return Err(Error::Unusable { path: spare.to_owned(), why: "it has another size".into() });
    }
    // Where a footer lies, only a footer of this unit or zeroes may be found.
    let last = header.unit_bytes - BLOCK_BYTES;
    file.write_all_at(&[0; BLOCK_BYTES as usize], last).map_err(io("write unit"))?;
    write_header(&file, spare, header)
}

fn write_header(file: &Arc<dyn StoredFile>, path: &Path, header: &UnitHeader) -> Result<()> {
    file.write_all_at(&header.encode(), 0).map_err(|e| Error::io("write unit", path, e))?;
    file.sync_data().map_err(|e| Error::io("sync unit", path, e))
}
