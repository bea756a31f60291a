//! Files under units' names that are none of the journal's: they are set aside, never overwritten.

use super::table;
use crate::error::{Error, Result};
use crate::storage::{Storage, make_own_dir};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// In a journal's directory on a member: files that were under units' names and are none of its units.
pub const STRAY_DIR: &str = "strays";
/// Most files of one name that are set aside.
const SAME_NAME_MAX: u32 = 1000;

/// Sees to it that no file of another journal is overwritten by the unit that is to get this path.
pub(crate) fn make_way(storage: &Arc<dyn Storage>, path: &Path, group: &[u8; 16]) -> Result<()> {
    if !storage.exists(path) {
        return Ok(());
    }
    let header = table::header_of(&**storage, path).map_err(|e| Error::io("read", path, e))?;
    match header {
        Some(header) if header.group != *group => set_aside(storage, path).map(drop),
        _ => Ok(()),
    }
}

/// Moves a file to the strays beside it, and says where it is now.
///
/// # Errors
/// It can't be renamed.
pub(crate) fn set_aside(storage: &Arc<dyn Storage>, path: &Path) -> Result<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Err(Error::Invalid(format!("{} has no directory", path.display())));
    };
    let strays = dir.join(STRAY_DIR);
    make_own_dir(&**storage, &strays).map_err(|e| Error::io("create directory", &strays, e))?;
    let free = (0..SAME_NAME_MAX)
        .map(|i| strays.join(format!("{name}.{i}")))
        .find(|to| !storage.exists(to))
        .ok_or_else(|| Error::Unusable {
            path: strays.clone(),
            why: format!("it holds {SAME_NAME_MAX} files named {name}: remove some"),
        })?;
    storage.rename(path, &free).map_err(|e| Error::io("rename to", &free, e))?;
    for dir in [strays.as_path(), dir] {
        storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
    }
    tracing::warn!(file = %path.display(), to = %free.display(), "set aside: not a unit of this journal");
    Ok(free)
}
