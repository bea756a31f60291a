//! A note of the newest epoch and number of a journal, in memory outside of the journal's own directory.
//!
//! What always holds: it is raised before a record is answered, survives the process, and ends with the
//! boot; so a journal that ends before it, in the same boot, is an older copy that was put back, however
//! that was done. What it doesn't say proves nothing: it may be missing.

use crate::Seq;
use crate::clock::{Clock, SystemClock};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"AIMGHEAD";
/// Bytes of the file.
const BYTES: usize = 4096;
/// Byte offsets: the magic, the boot, and the two words that change.
const BOOT_AT: usize = 8;
const EPOCH_AT: usize = 24;
const HEAD_AT: usize = 32;

/// What a note says: a journal of this boot had this epoch and this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) epoch: u64,
    pub(super) head: Seq,
}

/// The note of one journal, mapped.
pub(super) struct HeadNote {
    page: NonNull<c_void>,
    before: Option<Noted>,
}

// SAFETY: an address range whose words are only touched as atomics.
unsafe impl Send for HeadNote {}
// SAFETY: as above.
unsafe impl Sync for HeadNote {}

/// The path of the note of a group's journal.
pub(super) fn path_of(dir: &Path, group: [u8; 16]) -> PathBuf {
    dir.join(Uuid::from_bytes(group).to_string())
}

/// Removes the note of a journal that is purged.
pub fn forget_head_note(dir: &Path, group: Uuid) {
    // Where there is none, nothing is to be forgotten.
    let _ = std::fs::remove_file(path_of(dir, group.into_bytes()));
}

impl HeadNote {
    /// Opens the note of a group's journal below `dir`, which is made. Nothing of it changes yet.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn open(dir: &Path, group: [u8; 16]) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(flags).open(path_of(dir, group))?;
        let before = read(&file);
        if before.is_none() {
            let mut page = [0; BYTES];
            page[..BOOT_AT].copy_from_slice(&MAGIC);
            page[BOOT_AT..EPOCH_AT].copy_from_slice(&SystemClock.boot_id());
            file.write_all_at(&page, 0)?;
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses. The file is ours alone and has
        // its whole length; the mapping outlives the descriptor.
        let page = unsafe { mmap(null_mut(), BYTES, access, MapFlags::SHARED, &file, 0)? };
        let page = NonNull::new(page).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { page, before })
    }

    /// What it said when it was opened.
    pub(super) fn before(&self) -> Option<Noted> {
        self.before
    }

    /// Begins an epoch, of which no record is there yet.
    pub(super) fn begin(&self, epoch: u64, head: Seq) {
        // Killed in between, it says less than is true.
        self.word(HEAD_AT).store(0, Ordering::Release);
        self.word(EPOCH_AT).store(epoch, Ordering::Release);
        self.word(HEAD_AT).store(head, Ordering::Release);
    }

    /// Raises the number; the caller has the tail lock.
    pub(super) fn raise(&self, head: Seq) {
        self.word(HEAD_AT).store(head, Ordering::Release);
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: an aligned word of the mapped page, which lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.page.as_ptr().byte_add(at).cast()) }
    }
}

impl Drop for HeadNote {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has a reference into it any more.
        let _ = unsafe { munmap(self.page.as_ptr(), BYTES) };
    }
}

/// What a file says, if it is a note of this boot.
fn read(file: &File) -> Option<Noted> {
    let mut page = [0; BYTES];
    file.read_exact_at(&mut page, 0).ok()?;
    let boot_id = SystemClock.boot_id();
    let is_ours = page[..BOOT_AT] == MAGIC && page[BOOT_AT..EPOCH_AT] == boot_id;
    let word = |at: usize| page[at..].first_chunk().map(|w| u64::from_ne_bytes(*w));
    let noted = Noted { epoch: word(EPOCH_AT)?, head: word(HEAD_AT)? };
    (is_ours && boot_id != [0; 16]).then_some(noted)
}
