//! A raw image: a sparse file of the volume's size.

use super::sink::Sink;
use super::{Target, for_each_nonzero};
use std::fs::File;
use std::io;
use std::ops::Range;

/// A raw image being written.
pub(crate) struct Raw {
    sink: Sink,
    written_bytes: u64,
    /// What was written since the disk was last told to begin with it.
    fresh: Range<u64>,
}

impl Raw {
    /// Makes an empty file an image of `bytes` zeroes.
    pub(crate) fn new(file: File, bytes: u64) -> io::Result<Self> {
        file.set_len(bytes)?;
        Ok(Self { sink: Sink::new(file), written_bytes: 0, fresh: 0..0 })
    }
}

impl Target for Raw {
    fn write(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        for_each_nonzero(addr, bytes, |addr, bytes| {
            let end = addr + bytes.len() as u64;
            self.written_bytes += bytes.len() as u64;
            self.fresh = if self.fresh.is_empty() { addr } else { self.fresh.start }..end;
            self.sink.write(addr, bytes)
        })
    }

    fn begin_sync(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.sink.begin_sync(fresh.start, fresh.end);
    }

    fn finish(&mut self) -> io::Result<()> {
        self.sink.file().sync_all()
    }

    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}
