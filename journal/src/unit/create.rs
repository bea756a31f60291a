//! Making a unit: space first, then the header, then the name.

use crate::error::{Error, Result};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::planted;
use crate::pool::{FileName, Slot};
use crate::storage::{Access, Storage, StoredFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Makes the unit's file in its place, and gives its path: when this returns, its space, header and
/// name are durable. A spare file is taken over where there is one; nothing that it held before can
/// be read as a part of the unit, whose salt is new.
///
/// # Errors
/// No space (nothing is left behind), or a failing device.
pub fn create(storage: &dyn Storage, slot: &Slot, header: &UnitHeader) -> Result<PathBuf> {
    let path = slot.dir.join(FileName::Unit(header.number).to_string());
    if let Some(spare) = &slot.spare {
        match recycle(storage, spare, header).and_then(|()| name(storage, spare, &path)) {
            Ok(()) => return Ok(path),
            Err(error) => {
                // It is only a spare one: what is wrong with it shows when a new one is made.
                tracing::debug!(%error, "a spare unit can't be used");
                let _ = storage.remove(spare);
            }
        }
    }
    let draft = slot.dir.join("next-unit.tmp");
    let made = write_new(storage, &draft, header).and_then(|()| name(storage, &draft, &path));
    if made.is_err() {
        let _ = storage.remove(&draft);
    }
    made.map(|()| path)
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
