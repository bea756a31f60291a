//! A file or block device as an export. Owns the descriptor; its size is fixed at opening.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno as Os;

use super::{Export, ExportInfo, Payload, StatusSink, WriteFlags, ZeroFlags};
use crate::errno::Errno;
use crate::proto::{STATE_HOLE, STATE_ZERO};

/// Bytes of a payload that are received and written at a time.
const SCRATCH_BYTES: usize = 1 << 20;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A file as an export.
pub struct FileExport {
    file: File,
    bytes: u64,
    info: ExportInfo,
}

impl FileExport {
    /// Opens the file at `path`, for reading only if `read_only`.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let bytes = seek(&file, SeekFrom::End(0))?;
        let info = ExportInfo { read_only, can_fast_zero: true, ..ExportInfo::default() };
        Ok(Self { file, bytes, info })
    }

    fn sync(&self, wanted: bool) -> Result<(), Errno> {
        if wanted {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> rustix::io::Result<()> {
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)
    }
}

impl Export for FileExport {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        Ok(self.file.read_exact_at(buf, at)?)
    }

    fn write(&self, at: u64, payload: &mut Payload<'_>, flags: WriteFlags) -> Result<(), Errno> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut at = at;
            while payload.left() > 0 {
                let bytes = payload.left().min(SCRATCH_BYTES);
                if scratch.len() < bytes {
                    scratch.resize(bytes, 0);
                }
                payload.read_into(&mut scratch[..bytes])?;
                self.file.write_all_at(&scratch[..bytes], at)?;
                at += bytes as u64;
            }
            self.sync(flags.fua)
        })
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        let done = if flags.no_hole {
            fallocate(&self.file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, at, len)
        } else {
            self.punch(at, len)
        };
        match done {
            Ok(()) => {}
            Err(Os::OPNOTSUPP) if flags.fast => return Err(Errno::NotSup),
            Err(Os::OPNOTSUPP) => {
                let zeroes = [0; 64 << 10];
                let (mut at, end) = (at, at + len);
                while at < end {
                    let bytes = (end - at).min(zeroes.len() as u64);
                    self.file.write_all_at(&zeroes[..bytes as usize], at)?;
                    at += bytes;
                }
            }
            Err(error) => return Err(io::Error::from(error).into()),
        }
        self.sync(flags.fua)
    }

    fn trim(&self, at: u64, len: u64, flags: WriteFlags) -> Result<(), Errno> {
        match self.punch(at, len) {
            Ok(()) | Err(Os::OPNOTSUPP) => self.sync(flags.fua),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn flush(&self) -> Result<(), Errno> {
        self.sync(true)
    }

    fn block_status(
        &self,
        _context: &str,
        at: u64,
        len: u64,
        sink: &mut StatusSink<'_>,
    ) -> Result<(), Errno> {
        let (mut at, end) = (at, at + len);
        while at < end {
            // The offset is the descriptor's own and shared, but nothing here relies on it.
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                Err(Os::NXIO) => end,
                Err(_) => at,
            };
            if data > at && !sink.push(data - at, STATE_HOLE | STATE_ZERO) {
                return Ok(());
            }
            if data >= end {
                return Ok(());
            }
            let hole = seek(&self.file, SeekFrom::Hole(data)).unwrap_or(end).min(end);
            if !sink.push(hole.saturating_sub(data).max(1), 0) {
                return Ok(());
            }
            at = hole.max(data + 1);
        }
        Ok(())
    }
}
