//! A qcow2 image, version 3, as QEMU's `docs/interop/qcow2.txt` specifies it.
//!
//! ```text
//! | header | data clusters, in the order of first writes | L2 | L1 | refcount blocks | table |
//! ```
//!
//! 64 KiB clusters, 16-bit refcounts, no backing file, no features. What always holds:
//! * a cluster is allocated at its first write, so what is never written takes no space;
//! * the header is written last: before that, the file is no qcow2 image;
//! * memory: 8 bytes an entry, in tables of 64 KiB for each 512 MiB of the volume that has data.

use super::sink::Sink;
use super::{Target, for_each_nonzero};
use std::fs::File;
use std::io;

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table, and of any other cluster of 64-bit entries.
const TABLE_ENTRIES: u64 = CLUSTER_BYTES / 8;
/// Entries of a refcount block: 16 bits each.
const REFCOUNT_ENTRIES: u64 = CLUSTER_BYTES / 2;
const REFCOUNT_ORDER: u32 = 4;
/// Bit of an L1 or L2 entry: its cluster has a refcount of one.
const COPIED: u64 = 1 << 63;
const HEADER_BYTES: u32 = 104;
/// Largest disk: QEMU opens L1 tables of up to 32 MiB.
const DISK_BYTES_MAX: u64 = (32 << 20) / 8 * CLUSTER_BYTES * TABLE_ENTRIES;

/// A qcow2 image being written.
pub(crate) struct Qcow2 {
    sink: Sink,
    bytes: u64,
    /// For each 512 MiB of the volume the host cluster of each of its clusters, 0: none.
    tables: Vec<Option<Box<[u64]>>>,
    /// The next free cluster of the file.
    next: u64,
    written_bytes: u64,
    /// The first cluster of the file of which the disk was not told yet to begin with it.
    fresh: u64,
}

impl Qcow2 {
    /// Makes an empty file an image of `bytes` zeroes. Its size is rounded up to whole sectors,
    /// which is all that the format knows.
    ///
    /// # Errors
    /// It is larger than QEMU opens: nothing is allocated for it.
    pub(crate) fn new(file: File, bytes: u64) -> io::Result<Self> {
        if bytes > DISK_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "the journal gives the disk {bytes} bytes, a qcow2 image has at most \
                     {DISK_BYTES_MAX}"
                ),
            ));
        }
        let bytes = bytes.next_multiple_of(512);
        let tables = bytes.div_ceil(CLUSTER_BYTES * TABLE_ENTRIES) as usize;
        Ok(Self {
            sink: Sink::new(file),
            bytes,
            tables: vec![None; tables],
            next: 1,
            written_bytes: 0,
            fresh: 1,
        })
    }

    /// The host cluster of a cluster of the volume.
    fn allocate(&mut self, cluster: u64) -> io::Result<u64> {
        let table = self
            .tables
            .get_mut((cluster / TABLE_ENTRIES) as usize)
            .ok_or_else(|| io::Error::other("a write lies behind the volume's end"))?;
        let table = table.get_or_insert_with(|| vec![0; TABLE_ENTRIES as usize].into_boxed_slice());
        let entry = &mut table[(cluster % TABLE_ENTRIES) as usize];
        if *entry == 0 {
            *entry = self.next;
            self.next += 1;
        }
        Ok(*entry)
    }

    /// Writes neighbouring host clusters with one call.
    fn write_data(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        self.written_bytes += bytes.len() as u64;
        let (mut from, mut host) = (0, 0);
        let mut at = 0;
        while at < bytes.len() {
            let guest = addr + at as u64;
            let within = guest % CLUSTER_BYTES;
            let here = self.allocate(guest / CLUSTER_BYTES)? * CLUSTER_BYTES + within;
            if at == 0 {
                host = here;
            } else if here != host + (at - from) as u64 {
                self.sink.write(host, &bytes[from..at])?;
                (from, host) = (at, here);
            }
            at = bytes.len().min(at + (CLUSTER_BYTES - within) as usize);
        }
        self.sink.write(host, &bytes[from..])
    }

    /// Writes a table of 64-bit entries behind what is there; returns its offset.
    fn write_table(&mut self, entries: &[u64]) -> io::Result<u64> {
        let offset = self.next * CLUSTER_BYTES;
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
        self.sink.write(offset, &bytes)?;
        self.next += (bytes.len() as u64).div_ceil(CLUSTER_BYTES).max(1);
        Ok(offset)
    }

    fn write_refcounts(&mut self) -> io::Result<(u64, u64)> {
        let used = self.next;
        let (mut blocks, mut table) = (0, 0);
        loop {
            let all = used + blocks + table;
            let more = all.div_ceil(REFCOUNT_ENTRIES);
            let wide = more.div_ceil(TABLE_ENTRIES);
            if (more, wide) == (blocks, table) {
                break;
            }
            (blocks, table) = (more, wide);
        }
        let mut left = used + blocks + table;
        let mut offsets = Vec::new();
        for _ in 0..blocks {
            let ones = left.min(REFCOUNT_ENTRIES) as usize;
            left -= ones as u64;
            let block = [0u8, 1].repeat(ones);
            let offset = self.next * CLUSTER_BYTES;
            self.sink.write(offset, &block)?;
            self.next += 1;
            offsets.push(offset);
        }
        Ok((self.write_table(&offsets)?, table))
    }

    fn header(&self, l1_offset: u64, refcounts: (u64, u64)) -> Vec<u8> {
        let mut header = b"QFI\xfb".to_vec();
        let word = |v: u32| v.to_be_bytes();
        header.extend(word(3)); // version
        header.extend([0; 12]); // no backing file: offset, length
        header.extend(word(CLUSTER_BITS));
        header.extend(self.bytes.to_be_bytes());
        header.extend(word(0)); // no encryption
        header.extend(word(self.tables.len() as u32)); // L1 entries
        header.extend(l1_offset.to_be_bytes());
        header.extend(refcounts.0.to_be_bytes());
        header.extend(word(refcounts.1 as u32)); // clusters of the refcount table
        header.extend([0; 12]); // no snapshots: count, offset
        header.extend([0; 24]); // no features: incompatible, compatible, autoclear
        header.extend(word(REFCOUNT_ORDER));
        header.extend(word(HEADER_BYTES));
        header.extend([0; 8]); // end of header extensions
        header
    }
}

impl Target for Qcow2 {
    fn write(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        for_each_nonzero(addr, bytes, |addr, bytes| self.write_data(addr, bytes))
    }

    fn begin_sync(&mut self) {
        // The last cluster may get more.
        let behind = self.next.saturating_sub(1).max(self.fresh);
        self.sink.begin_sync(self.fresh * CLUSTER_BYTES, behind * CLUSTER_BYTES);
        self.fresh = behind;
    }

    fn finish(&mut self) -> io::Result<()> {
        let tables = std::mem::take(&mut self.tables);
        let mut l1 = vec![0; tables.len()];
        for (slot, table) in l1.iter_mut().zip(&tables) {
            let Some(table) = table else { continue };
            let entry = |host: &u64| if *host == 0 { 0 } else { (host * CLUSTER_BYTES) | COPIED };
            let entries: Vec<u64> = table.iter().map(entry).collect();
            *slot = self.write_table(&entries)? | COPIED;
        }
        let l1_offset = self.write_table(&l1)?;
        let refcounts = self.write_refcounts()?;
        self.tables = tables;
        self.sink.file().set_len(self.next * CLUSTER_BYTES)?;
        // Only an image that is whole and durable gets the header that makes it one.
        self.sink.file().sync_all()?;
        self.sink.write(0, &self.header(l1_offset, refcounts))?;
        self.sink.file().sync_all()
    }

    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_no_image_can_have_is_refused_before_anything_is_allocated() {
        for bytes in [u64::MAX, 1 << 63, DISK_BYTES_MAX + 1] {
            let refused = Qcow2::new(tempfile::tempfile().unwrap(), bytes).err();
            assert_eq!(refused.unwrap().kind(), io::ErrorKind::FileTooLarge, "{bytes}");
        }
        assert!(Qcow2::new(tempfile::tempfile().unwrap(), DISK_BYTES_MAX).is_ok());
    }
}
