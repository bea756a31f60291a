//! Making a unit: space first, then the header, then the name.

use crate::error::{Error, Result};
use crate::format::unit_header::UnitHeader;
use crate::layout;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Creates the unit's file: when this returns, its space, header and name are durable.
///
/// # Errors
/// No space (nothing is left behind), or a failing device.
pub fn create(journal: &Path, header: &UnitHeader) -> Result<File> {
    let draft = journal.join("next-unit.tmp");
    let made = write_draft(&draft, header).and_then(|file| {
        let path = layout::unit_path(journal, header.number);
        fs::rename(&draft, &path).map_err(|e| Error::io("rename to", &path, e))?;
        layout::sync_dir(journal)?;
        Ok(file)
    });
    if made.is_err() {
        let _ = fs::remove_file(&draft);
    }
    made
}

fn write_draft(draft: &Path, header: &UnitHeader) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(draft)
        .map_err(|e| Error::io("create unit", draft, e))?;
    // Blocks that exist: a mapped write can then not run out of space.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, header.unit_bytes)
        .map_err(|e| Error::io("allocate unit", draft, e))?;
    file.write_all_at(&header.encode(), 0).map_err(|e| Error::io("write unit", draft, e))?;
    file.sync_all().map_err(|e| Error::io("sync unit", draft, e))?;
    Ok(file)
}
