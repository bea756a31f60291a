//! Which way bytes take to the disk: tried out on the first unit, once at each opening.

use super::device::Device;
use super::plain::Plain;
use super::uring::Uring;
use crate::error::{Error, Result};
use crate::log::Options;
use crate::storage::Storage;
use std::io;
use std::path::Path;

/// How bytes get from the ring into the units' files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backend {
    /// `Uring` where the kernel and the file system have what it takes, else `Plain`.
    #[default]
    Auto,
    /// io_uring past the page cache, several writes in flight.
    Uring,
    /// `pwrite` into the page cache, `fdatasync`: works everywhere.
    Plain,
    /// `pwrite` past the page cache, `fdatasync`.
    Direct,
}

/// What does the writing, and whether files are opened past the page cache for it. `path` is a unit
/// that was just made.
///
/// # Errors
/// What was asked for by name can't be had here.
pub(in crate::log) fn choose(options: &Options, path: &Path) -> Result<(Box<dyn Device>, bool)> {
    let plain = || Box::new(Plain::new(options.inline));
    let is_inline = options.inline;
    let wanted = match options.backend {
        Backend::Auto if is_inline => Backend::Plain,
        backend => backend,
    };
    if wanted == Backend::Plain {
        return Ok((plain(), false));
    }
    let tried = try_direct(&*options.storage, path).and_then(|()| match wanted {
        Backend::Direct => Ok(plain() as Box<dyn Device>),
        _ => Uring::new().map(|uring| Box::new(uring) as Box<dyn Device>),
    });
    match tried {
        Ok(device) => Ok((device, true)),
        Err(error) if wanted == Backend::Auto => {
            tracing::debug!(%error, path = %path.display(), "units are written by plain writes");
            Ok((plain(), false))
        }
        Err(error) => Err(Error::io("write past the page cache to", path, error)),
    }
}

const BLOCK_BYTES: usize = 4096;

/// Writes the unit's header over itself: a file system may refuse only the write.
fn try_direct(storage: &dyn Storage, path: &Path) -> io::Result<()> {
    let file = storage.open_direct(path)?;
    if file.as_file().is_none() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut buffer = vec![0u8; 2 * BLOCK_BYTES];
    let start = buffer.as_ptr().align_offset(BLOCK_BYTES);
    let block = &mut buffer[start..start + BLOCK_BYTES];
    file.read_exact_at(block, 0)?;
    file.write_all_at(block, 0)
}
