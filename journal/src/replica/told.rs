//! The highest epoch that a replica took an op of (I-9): a file `epoch` in the journal's directory.
//!
//! What always holds: it never goes back, and is durable before that op is done; units that are there say
//! the same for theirs.

use crate::error::{Error, Result};
use crate::layout;
use crate::planted;
use crate::storage::{Access, Storage};
use std::io::ErrorKind;
use std::path::Path;

/// The file's name in the journal's directory.
pub const NAME: &str = "epoch";
/// Longest text of a number and a line's end, in bytes.
const TEXT_BYTES_MAX: usize = 32;

/// The highest epoch that the file names; 0 when there is none.
///
/// # Errors
/// It is there and can't be read: which epochs to refuse is not known then.
pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Result<u64> {
    let path = dir.join(NAME);
    let file = match storage.open(&path, Access::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let mut text = [0; TEXT_BYTES_MAX];
    let got = file.read_at(&mut text, 0).map_err(|e| Error::io("read", &path, e))?;
    let number = std::str::from_utf8(&text[..got]).ok().and_then(|t| t.trim().parse().ok());
    number.ok_or_else(|| {
        let why = "it should hold the highest epoch that this site was told: write a number that is \
                   at least that of the source into it";
        Error::Unusable { path, why: why.into() }
    })
}

/// Writes a higher one, durably.
///
/// # Errors
/// It can't be written; the old one is intact.
pub(super) fn write(storage: &dyn Storage, dir: &Path, epoch: u64) -> Result<()> {
    if planted::is("epoch-not-kept") {
        return Ok(());
    }
    layout::replace_file_in(storage, &dir.join(NAME), format!("{epoch}\n").as_bytes())
}
