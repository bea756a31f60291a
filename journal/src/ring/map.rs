//! A file in memory whose data lies there twice, one copy right behind the other: a range that wraps
//! around the end of the data is contiguous.
//!
//! What always holds: the mapping is shared, so what is stored through it is the file's content at
//! once; both copies are the same memory; it lives as long as the value.

use super::HEADER_BYTES;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::{NonNull, null_mut};

/// Bytes that are faulted in by one call: a bounded hold of the process's memory map.
const POPULATE_BYTES: usize = 4 << 20;

/// A mapped ring: the header, the data, the data again.
pub(super) struct DoubleMap {
    start: NonNull<c_void>,
    ring_bytes: usize,
}

// SAFETY: it is only an address range; what may be done with it is said where pointers are handed out.
unsafe impl Send for DoubleMap {}
// SAFETY: as above.
unsafe impl Sync for DoubleMap {}

impl DoubleMap {
    /// Maps a file of a header and `ring_bytes` of data, a multiple of 4096.
    pub(super) fn new(file: &File, ring_bytes: u64) -> io::Result<Self> {
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let ring_bytes = usize::try_from(ring_bytes).map_err(too_large)?;
        let header_bytes = HEADER_BYTES as usize;
        let whole = header_bytes + 2 * ring_bytes;
        // SAFETY: a new range at an address that the kernel chooses touches nothing that exists.
        let start =
            unsafe { mmap_anonymous(null_mut(), whole, ProtFlags::empty(), MapFlags::PRIVATE)? };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = Self { start, ring_bytes };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let parts = [
            (0, header_bytes + ring_bytes, 0),
            (header_bytes + ring_bytes, ring_bytes, HEADER_BYTES),
        ];
        for (at, bytes, offset) in parts {
            // SAFETY: it replaces a part of the range that was reserved above, and nobody has a
            // pointer into that yet.
            unsafe { mmap(start.as_ptr().byte_add(at), bytes, access, flags, file, offset)? };
        }
        map.populate(whole);
        Ok(map)
    }

    /// Faults in every page, writable: an append never waits for one.
    fn populate(&self, whole: usize) {
        for at in (0..whole).step_by(POPULATE_BYTES) {
            let bytes = POPULATE_BYTES.min(whole - at);
            // SAFETY: inside the mapping; populating changes no content. A refusal (an old kernel)
            // only costs the page faults later.
            let _ = unsafe {
                madvise(self.start.as_ptr().byte_add(at), bytes, Advice::LinuxPopulateWrite)
            };
        }
    }

    /// The address of a byte of the header page.
    pub(super) fn header(&self, at: usize) -> *mut u8 {
        assert!(at < HEADER_BYTES as usize);
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.start.as_ptr().cast::<u8>().add(at) }
    }

    /// The address of `bytes` of data from byte `at` of the ring on; the range may wrap.
    pub(super) fn data(&self, at: usize, bytes: usize) -> *mut u8 {
        assert!(at < self.ring_bytes && bytes <= self.ring_bytes);
        // SAFETY: inside the mapping by the assertion: the data is there twice.
        unsafe { self.start.as_ptr().cast::<u8>().add(HEADER_BYTES as usize + at) }
    }
}

impl Drop for DoubleMap {
    fn drop(&mut self) {
        // SAFETY: the whole range is this value's own, and nothing borrowed from it outlives it.
        let _ = unsafe { munmap(self.start.as_ptr(), HEADER_BYTES as usize + 2 * self.ring_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StoredFile;

    #[test]
    fn a_range_that_wraps_is_contiguous_and_is_the_files_content() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(HEADER_BYTES + 8192).unwrap();
        let map = DoubleMap::new(&file, 8192).unwrap();
        // SAFETY: the only pointer into the mapping.
        unsafe { std::slice::from_raw_parts_mut(map.data(8190, 4), 4) }.copy_from_slice(b"wrap");
        let mut all = vec![0; HEADER_BYTES as usize + 8192];
        file.read_exact_at(&mut all, 0).unwrap();
        let data = &all[HEADER_BYTES as usize..];
        assert_eq!((&data[8190..], &data[..2]), (&b"wr"[..], &b"ap"[..]));
        assert!(all[..HEADER_BYTES as usize].iter().all(|b| *b == 0));
    }
}
