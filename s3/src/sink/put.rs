//! Files that come in pieces, from their first byte to their last; they count when all of it is there and
//! was looked at.

use super::live::Live;
use super::ops::broken;
use super::verify;
use crate::manifest::{File, Holding};
use afterimage_journal::format::unit_header::{BLOCK_BYTES, UnitHeader};
use afterimage_journal::pool::FileName;
use afterimage_journal::unit::UNIT_BYTES_MAX;
use afterimage_journal::wire::{OP_BYTES_MAX, SinkError};
use std::time::Instant;

impl Live {
    pub(super) fn put(
        &mut self,
        name: FileName,
        file_bytes: u64,
        at: u64,
        bytes: &[u8],
        len: u64,
    ) -> Result<(), SinkError> {
        let end = at.checked_add(len).filter(|end| *end <= file_bytes);
        let fits = bytes.len() <= OP_BYTES_MAX && bytes.len() as u64 <= len;
        let (Some(end), true, true) = (end, fits, file_bytes <= UNIT_BYTES_MAX) else {
            return Err(broken(name, "a piece that doesn't fit in it"));
        };
        if at == 0 && !self.put_first(name, file_bytes, bytes)? {
            return Ok(());
        }
        match self.state.files.get(&name) {
            Some(file) if file.holding == Holding::Whole => return Ok(()),
            Some(file) if file.file_bytes == file_bytes => {
                let is_open = file.holding == Holding::Open;
                // A unit that began: what it has of its records is the same.
                if is_open && end > self.tail(name)?.gather.end() {
                    self.take_pieces(name)?;
                }
            }
            _ => return Err(broken(name, "a piece of a file that began in another way")),
        }
        let have = self.tail(name)?.gather.end();
        let Some(skip) = have.checked_sub(at) else {
            return Err(broken(name, &format!("a piece from {at} on, but it ends at {have}")));
        };
        if end <= have {
            return Ok(());
        }
        let bytes = bytes.get(skip as usize..).unwrap_or_default();
        self.append(name, 0, bytes)?;
        self.append(name, end - have - bytes.len() as u64, &[])?;
        self.background_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// The piece with the header: whether the file is wanted.
    fn put_first(
        &mut self,
        name: FileName,
        file_bytes: u64,
        bytes: &[u8],
    ) -> Result<bool, SinkError> {
        let block = bytes.get(..BLOCK_BYTES as usize);
        let header = block.and_then(|b| UnitHeader::decode(b).ok());
        let header = header.ok_or_else(|| broken(name, "its first piece has no sound header"))?;
        self.check_header(name, &header)?;
        if header.unit_bytes != file_bytes {
            return Err(broken(name, "its header names another size"));
        }
        if let Some(there) = self.state.files.get(&name) {
            if there.salt == header.salt {
                return Ok(there.holding != Holding::Whole);
            }
            self.give_up(name);
        }
        let file = File::begun(&header, Holding::Part);
        self.state.files.insert(name, file);
        self.change.touch(name, 0);
        Ok(true)
    }

    pub(super) fn put_end(&mut self, name: FileName, index_crc: u32) -> Result<(), SinkError> {
        match self.state.files.get(&name) {
            Some(file) if file.holding != Holding::Whole => {}
            Some(file) if file.index_crc == index_crc => {
                // It came twice: it counts already, and whoever sent it is told so again.
                self.whole.push(name);
                self.fresh_since.get_or_insert_with(Instant::now);
                return Ok(());
            }
            Some(_) => return Err(broken(name, "it is there with another index")),
            None => return Err(broken(name, "it ends before it began")),
        }
        let tail = self.tail(name)?;
        let have = tail.gather.end();
        if let Some(cut) = tail.gather.finish() {
            self.write(name, cut)?;
        }
        self.settle()?;
        if self.state.files.get(&name).is_some_and(|f| f.file_bytes != have) {
            return Err(broken(name, &format!("it ends at {have}, before its last byte")));
        }
        let merged = verify::whole(self, name, index_crc)?;
        self.finish(name, index_crc, merged.as_ref())?;
        let (first, last) = name.numbers();
        let replaced = |other: &FileName| {
            let (from, to) = other.numbers();
            *other != name && first <= from && to <= last
        };
        if matches!(name, FileName::Merged(..)) {
            let all: Vec<FileName> = self.state.files.keys().copied().filter(replaced).collect();
            all.into_iter().for_each(|other| self.give_up(other));
        }
        Ok(())
    }
}
