//! One block device, opened past the page cache: what is written here has been acknowledged by QEMU
//! when the call returns.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const BLKDISCARD: libc::c_ulong = 0x1277;
const BLKZEROOUT: libc::c_ulong = 0x127f;

/// Bytes at an address that O_DIRECT accepts.
pub struct Buffer {
    bytes: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Buffer {
    /// `length` zero bytes.
    pub fn new(length: usize) -> Self {
        let bytes = vec![0; length + 4096];
        let begin = bytes.as_ptr().align_offset(4096);
        Self { bytes, begin, length }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + self.length]
    }
}

/// A block device.
pub struct Disk {
    file: File,
    /// Its size.
    pub bytes: u64,
}

impl Disk {
    /// Opens `path` for direct reads and writes.
    pub fn open(path: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .map_err(|e| io::Error::other(format!("open {path}: {e}")))?;
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, bytes })
    }

    /// Writes all of `block`, which must be aligned (see [`Buffer`]).
    pub fn write(&self, block: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(block, offset)
    }

    /// Fills `block` from `offset`.
    pub fn read(&self, block: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(block, offset)
    }

    /// Flushes the disk's write cache.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Tells the disk that a range is not needed; its content is then undefined.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.range_ioctl(BLKDISCARD, offset, length)
    }

    /// Zeroes a range without sending zeroes.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.range_ioctl(BLKZEROOUT, offset, length)
    }

    fn range_ioctl(&self, request: libc::c_ulong, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        // SAFETY: both requests read two u64 (start, length) from a pointer that outlives the call.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, range.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
