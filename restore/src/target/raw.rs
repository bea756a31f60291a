//! A raw image: a sparse file of the volume's size.

use super::{Target, for_each_nonzero};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A raw image being written.
pub(crate) struct Raw {
    file: File,
    written_bytes: u64,
}

impl Raw {
    /// Makes an empty file an image of `bytes` zeroes.
    pub(crate) fn new(file: File, bytes: u64) -> io::Result<Self> {
        file.set_len(bytes)?;
        Ok(Self { file, written_bytes: 0 })
    }
}

impl Target for Raw {
    fn write(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        for_each_nonzero(addr, bytes, |addr, bytes| {
            self.written_bytes += bytes.len() as u64;
            self.file.write_all_at(bytes, addr)
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}
