//! The ring: shared memory in a file of the journal's directory that records are placed in, before
//! threads of the journal write them to the units' files in large pieces.
//!
//! What always holds:
//! * it outlives the process, as the page cache does: a record in it survives SIGKILL (I-1);
//! * it counts only in the boot and on the mount that it was opened in, and never after power loss;
//! * its space is used again only when what was there is in the unit's file.

mod header;
mod map;
mod overlay;
mod recover;
mod writer;

pub use header::{HEADER_BYTES, RingHeader, SLOTS, Slot};
pub use overlay::Overlay;
pub(crate) use recover::{Left, recover};
pub(crate) use writer::{Ring, Span};

use crate::clock::{Clock, SystemClock};
use crate::planted;
use crate::storage::{Storage, StoredFile};
use std::path::Path;

/// Name of the ring in a journal's directory.
pub const NAME: &str = "ring";

/// Where this process meets a ring: it counts only where it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    boot_id: [u8; 16],
    mount_id: u64,
    file_id: u64,
    file_born_ns: u64,
}

/// What tells a unit's file from a copy of it; 0: unknown.
pub(crate) fn file_id(file: &dyn StoredFile) -> u64 {
    file.identity().rotate_left(32) ^ file.born_ns()
}

impl Place {
    /// The machine's own boot: a journal's clock may be set by hand, memory is not.
    fn of(storage: &dyn Storage, dir: &Path, file: &dyn StoredFile) -> Self {
        Self {
            boot_id: SystemClock.boot_id(),
            mount_id: storage.mount_id(dir),
            file_id: file.identity(),
            file_born_ns: file.born_ns(),
        }
    }

    fn holds(&self, header: &RingHeader) -> bool {
        // Rings of older programs don't say when they were made.
        let is_known = header.file_born_ns != 0 && !planted::is("believe-a-ring-put-back");
        let file_born_ns = if is_known { header.file_born_ns } else { self.file_born_ns };
        self.boot_id != [0; 16]
            && *self
                == Self {
                    boot_id: header.boot_id,
                    mount_id: header.mount_id,
                    file_id: header.file_id,
                    file_born_ns,
                }
    }
}
