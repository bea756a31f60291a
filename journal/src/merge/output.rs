//! The file of a merged unit as it is written: in large pieces, past the page cache where that can be
//! had, since nobody is going to read it soon and the guests' own data may be there.
//!
//! What always holds: only pieces of [`BUFFER_BYTES`], at multiples of it, go past the page cache,
//! each once; what is left in the end, and the index, go through it. With a key, data is encrypted before
//! it gets here: records come one behind the other, so no offset is a nonce twice.

use crate::error::{Error, Result};
use crate::format::cipher::{TAG_BYTES, UnitKey};
use crate::format::record::{self, Kind, Record};
use crate::format::{align_up, checksum};
use crate::planted;
use crate::storage::{Storage, StoredFile};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What is gathered before it is written, bytes.
const BUFFER_BYTES: usize = 1 << 20;
/// What memory is aligned to for a write past the page cache, bytes.
const PAGE_BYTES: usize = 4096;

/// See the module.
pub(super) struct Output<'a> {
    file: Arc<dyn StoredFile>,
    /// The same file, past the page cache.
    direct: Option<Arc<dyn StoredFile>>,
    path: &'a Path,
    salt: [u8; 16],
    /// What data is encrypted with, and memory for that.
    key: Option<Arc<UnitKey>>,
    sealed: Vec<u8>,
    /// [`BUFFER_BYTES`] from `start` on, `filled` of which are to be written.
    memory: Vec<u8>,
    start: usize,
    filled: usize,
    /// Bytes in the file.
    written: u64,
    /// Records that were put, with their byte offsets.
    pub records: Vec<(u64, Record)>,
}

impl<'a> Output<'a> {
    /// Begins a file, which is there and empty, with its header.
    pub fn begin(
        (storage, file): (&dyn Storage, &Arc<dyn StoredFile>),
        path: &'a Path,
        (salt, header): ([u8; 16], &[u8]),
        key: Option<Arc<UnitKey>>,
    ) -> Result<Self> {
        let memory = vec![0; BUFFER_BYTES + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES);
        let direct = storage.open_direct(path).ok();
        let mut output = Self {
            file: Arc::clone(file),
            direct,
            path,
            salt,
            key,
            sealed: Vec::new(),
            memory,
            start,
            filled: 0,
            written: 0,
            records: Vec::new(),
        };
        output.push(header)?;
        Ok(output)
    }

    /// The byte behind the last record that was put.
    pub fn end(&self) -> u64 {
        self.written + self.filled as u64
    }

    /// Adds a record with this payload, whose checksum it says already; data is encrypted if there is a
    /// key.
    pub fn put(&mut self, mut record: Record, payload: &[u8]) -> Result<()> {
        let is_data = record.kind == Kind::Write && !payload.is_empty();
        let Some(key) = self.key.clone().filter(|_| is_data && !planted::is("merge-writes-plain"))
        else {
            return self.put_stored(record, payload);
        };
        let mut sealed = std::mem::take(&mut self.sealed);
        sealed.resize(payload.len() + TAG_BYTES as usize, 0);
        let done = key.seal(&record, self.end(), payload, &mut sealed);
        done.map_err(|why| Error::Invalid(format!("record {}: {why}", record.seq)))?;
        record.encrypted = true;
        record.payload_bytes = sealed.len() as u32;
        record.payload_crc = checksum::crc32c(&sealed);
        let put = self.put_stored(record, &sealed);
        self.sealed = sealed;
        put
    }

    fn put_stored(&mut self, record: Record, payload: &[u8]) -> Result<()> {
        let at = self.end();
        self.push(&record::encode(&self.salt, at, &record))?;
        self.push(payload)?;
        let end = self.end();
        self.push(&[0; PAGE_BYTES][..(align_up(end) - end) as usize])?;
        self.records.push((at, record));
        Ok(())
    }

    /// Adds a record with this payload, whose checksum is made.
    pub fn put_new(&mut self, mut record: Record, payload: &[u8]) -> Result<()> {
        record.payload_bytes = payload.len() as u32;
        record.payload_crc = checksum::crc32c(payload);
        self.put(record, payload)
    }

    /// Writes what is left; the file's end is where the caller puts it.
    pub fn finish(mut self) -> Result<Vec<(u64, Record)>> {
        let rest = &self.memory[self.start..self.start + self.filled];
        let wrote = self.file.write_all_at(rest, self.written);
        wrote.map_err(|e| Error::io("write merged unit", self.path, e))?;
        Ok(std::mem::take(&mut self.records))
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let taken = bytes.len().min(BUFFER_BYTES - self.filled);
            let (now, later) = bytes.split_at(taken);
            let at = self.start + self.filled;
            self.memory[at..at + taken].copy_from_slice(now);
            self.filled += taken;
            bytes = later;
            if self.filled == BUFFER_BYTES {
                self.write_out().map_err(|e| Error::io("write merged unit", self.path, e))?;
            }
        }
        Ok(())
    }

    /// Writes a whole buffer.
    fn write_out(&mut self) -> io::Result<()> {
        let piece = &self.memory[self.start..self.start + BUFFER_BYTES];
        let tried = self.direct.as_ref().map(|direct| direct.write_all_at(piece, self.written));
        match tried {
            Some(Ok(())) => {}
            Some(Err(e)) if !is_refused(&e) => return Err(e),
            // A file system may refuse only the write.
            Some(Err(_)) | None => {
                self.direct = None;
                self.file.write_all_at(piece, self.written)?;
            }
        }
        self.written += BUFFER_BYTES as u64;
        self.filled = 0;
        Ok(())
    }
}

fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::{BUFFER_BYTES, Output};
    use crate::format::record::{HEADER_BYTES, Kind, Record};
    use crate::storage::{Access, RealStorage, Storage, StoredFile};
    use std::path::Path;
    use std::sync::Arc;

    /// Real files, which can't be had past the page cache, or refuse the write.
    #[derive(Debug)]
    struct Buffered {
        refuses: bool,
    }

    impl Buffered {
        fn written(&self, dir: &Path, name: &str) -> Vec<u8> {
            let path = dir.join(name);
            let file = RealStorage.open(&path, Access::Replace).unwrap();
            let direct = RealStorage.open_direct(&path).unwrap();
            let mut out =
                Output::begin((&RealStorage, &file), &path, ([7; 16], &[1; 4096]), None).unwrap();
            out.direct = match self.refuses {
                // Memory that isn't aligned is refused.
                true => {
                    out.start += 1;
                    out.memory.push(0);
                    out.memory.copy_within(out.start - 1..out.start - 1 + out.filled, out.start);
                    Some(direct)
                }
                false => None,
            };
            put_all(out);
            std::fs::read(path).unwrap()
        }
    }

    fn put_all(mut out: Output<'_>) {
        // Larger than the buffer, as large as it, and such that ends lie anywhere.
        let sizes = [BUFFER_BYTES * 2 + 77, BUFFER_BYTES - 64, 4096, 100, 0, 512];
        for (seq, bytes) in (1..).zip(sizes.iter().cycle().take(40)) {
            out.put_new(record(seq), &vec![seq as u8; *bytes]).unwrap();
        }
        assert_eq!(out.finish().unwrap().len(), 40);
    }

    fn record(seq: u64) -> Record {
        Record {
            kind: Kind::Write,
            flags: 0,
            volume: 1,
            addr: 0,
            len: 0,
            scope: 0,
            mono_ms: 0,
            wall_ns: 0,
            payload_crc: 0,
            payload_bytes: 0,
            compression: 0,
            encrypted: false,
            seq,
        }
    }

    #[test]
    fn a_file_written_past_the_page_cache_has_the_bytes_of_one_written_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let through = Buffered { refuses: false }.written(dir, "through");
        let path = dir.join("past");
        let file: Arc<dyn StoredFile> = RealStorage.open(&path, Access::Replace).unwrap();
        let out = Output::begin((&RealStorage, &file), &path, ([7; 16], &[1; 4096]), None).unwrap();
        put_all(out);
        let past = std::fs::read(&path).unwrap();
        assert!(through == past && past.len() > 20 * HEADER_BYTES as usize + BUFFER_BYTES);
        assert!(Buffered { refuses: true }.written(dir, "refused") == past);
    }
}
