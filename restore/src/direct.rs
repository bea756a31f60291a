//! Reading and writing past the page cache: what a restore moves is needed once, and the memory of
//! the host belongs to its guests. Copying through the page cache also costs more processor time
//! than all the rest of a restore.
//!
//! What always holds: it is only ever a second way to a file that is open anyway; where it can't be
//! had, or fails, the first way is taken, and tells what is wrong.

use std::fs::{File, OpenOptions};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// What offsets, lengths and memory have to be multiples of, in bytes.
pub(crate) const GRAIN_BYTES: usize = 4096;

/// Memory that begins at a multiple of [`GRAIN_BYTES`], to be used again and again.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    /// Makes it so many bytes long; what they hold is anything.
    pub(crate) fn resize(&mut self, len: usize) {
        if self.bytes.len() < len + GRAIN_BYTES {
            // Fresh zeroes cost nothing until they are touched, growing would copy what is old.
            self.bytes = Vec::new();
            self.bytes = vec![0; len + GRAIN_BYTES];
            self.from = self.bytes.as_ptr().align_offset(GRAIN_BYTES).min(GRAIN_BYTES);
        }
        self.len = len;
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.len]
    }
}

/// Opens a file that is open once more, past the page cache; `None`: that can't be had.
pub(crate) fn reopen(file: &File, to_write: bool) -> Option<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(!to_write).write(to_write).custom_flags(direct);
    options.open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// Reads the bytes from `start` up to `end`, and what lies around them up to multiples of
/// [`GRAIN_BYTES`], into `buffer`; says where in it they begin. `None`: that didn't work.
pub(crate) fn read(file: &File, start: u64, end: u64, buffer: &mut Aligned) -> Option<usize> {
    let grain = GRAIN_BYTES as u64;
    let from = start / grain * grain;
    buffer.resize((end.next_multiple_of(grain) - from) as usize);
    let needed = (end - from) as usize;
    let mut done = 0;
    while done < needed {
        match file.read_at(&mut buffer[done..], from + done as u64) {
            // A part that is no multiple is the end of the file.
            Ok(got) if got > 0 && (got % GRAIN_BYTES == 0 || done + got >= needed) => done += got,
            _ => return None,
        }
    }
    Some((start - from) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_a_file_is_read_and_none_behind_its_end() {
        let content: Vec<u8> = (0..50_000_u32).map(|i| (i / 7) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &content).unwrap();
        file.as_file().sync_all().unwrap();
        // Where that can't be had the ordinary way must give the same.
        let direct = reopen(file.as_file(), false).unwrap_or(file.reopen().unwrap());
        let mut buffer = Aligned::default();
        for (start, end) in [(0, 1), (4095, 4097), (8192, 12288), (5, 49_999), (40_960, 50_000)] {
            let at = read(&direct, start, end, &mut buffer).unwrap();
            let len = (end - start) as usize;
            assert_eq!(buffer.as_ptr() as usize % GRAIN_BYTES, 0);
            assert!(buffer[at..at + len] == content[start as usize..end as usize]);
        }
        assert!(read(&direct, 49_000, 50_001, &mut buffer).is_none());
    }
}
