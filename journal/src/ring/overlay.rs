//! Reading units while some of their bytes are in the ring only: beside the writer, and after its
//! end in the same boot and mount, with nobody there to ask.
//!
//! What always holds: bytes are taken from the ring only if they had not been given up when the copy
//! was done; else they are in the unit's file by then. The order is: header, file, ring, header
//! again. A ring of another boot, another mount, or that was copied is never looked at.

use super::header::{HEADER_BYTES, RingHeader, Slot};
use super::{NAME, Place};
use crate::error::{Error, Result};
use crate::planted;
use crate::storage::{Access, Storage, StoredFile};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Tries to copy from a ring that is being written over. Each is lost only if the whole ring was
/// turned over during one copy.
const TRIES_MAX: usize = 64;

/// What the units of a journal have in its ring.
#[derive(Debug, Clone)]
pub struct Overlay {
    file: Arc<dyn StoredFile>,
    header: RingHeader,
}

impl Overlay {
    /// The ring of the journal in `dir`, when there is one that counts.
    ///
    /// # Errors
    /// It is there, and the host can't read it: records that were acknowledged may be in it alone.
    pub fn open(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Option<Self>> {
        match Self::try_open(storage, dir) {
            Err(e) if e.is_host() && !planted::is("ring-ignored-on-host-error") => Err(e),
            opened => Ok(opened.ok().flatten()),
        }
    }

    fn try_open(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let io = |e| Error::io("read ring", &path, e);
        let file = storage.open(&path, Access::Read).map_err(io)?;
        let header = RingHeader::decode(&page(&*file).map_err(io)?);
        let place = Place::of(&**storage, dir, &*file);
        Ok(header.filter(|h| place.holds(h)).map(|header| Self { file, header }))
    }

    /// Fills `buffer` with the bytes of a unit from `at` on, out of its file and the ring.
    ///
    /// # Errors
    /// The file or the ring can't be read; `UnexpectedEof` behind the end of the file.
    pub fn read(
        &self,
        unit: &dyn StoredFile,
        number: u64,
        at: u64,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let end = at + buffer.len() as u64;
        let mut file_upto = at;
        for _ in 0..TRIES_MAX {
            let Some(slot) = self.slot(number)? else { break };
            let ring = slot.unflushed();
            let (from, to) = (ring.start.clamp(at, end), ring.end.clamp(at, end));
            if from >= to {
                break;
            }
            // What lies below was in the file when the header said so.
            let split = (from - at) as usize;
            let done = (file_upto - at) as usize;
            if split > done {
                unit.read_exact_at(&mut buffer[done..split], file_upto)?;
                file_upto = from;
            }
            let copied = &mut buffer[split..(to - at) as usize];
            self.copy(slot.base.wrapping_add(from), copied)?;
            let again = self.slot(number)?;
            if again.is_some_and(|s| s.base == slot.base && s.unflushed().start <= from) {
                let tail = (to - at) as usize;
                return unit.read_exact_at(&mut buffer[tail..], to);
            }
        }
        // None of it is in the ring any more, or never was.
        let done = (file_upto - at) as usize;
        unit.read_exact_at(&mut buffer[done..], file_upto)
    }

    /// Whether some bytes of the unit may be in the ring only.
    ///
    /// # Errors
    /// The ring can't be read.
    pub fn has(&self, number: u64) -> io::Result<bool> {
        Ok(self.slot(number)?.is_some())
    }

    fn slot(&self, number: u64) -> io::Result<Option<Slot>> {
        let page = page(&*self.file)?;
        // Another opening: everything was put into the files before it began.
        let same = RingHeader::decode(&page).is_some_and(|h| h == self.header);
        let slots = if same { Slot::decode_all(&self.header, &page) } else { Vec::new() };
        Ok(slots.into_iter().find(|s| s.number == number))
    }

    fn copy(&self, mut position: u64, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            let start = position % self.header.ring_bytes;
            let bytes = (self.header.ring_bytes - start).min(into.len() as u64);
            let (now, rest) = into.split_at_mut(bytes as usize);
            self.file.read_exact_at(now, HEADER_BYTES + start)?;
            (into, position) = (rest, position + bytes);
        }
        Ok(())
    }

    /// All units that have bytes in the ring only; for the one that puts them into their files.
    pub(super) fn slots(&self) -> io::Result<Vec<Slot>> {
        Ok(Slot::decode_all(&self.header, &page(&*self.file)?))
    }

    pub(super) fn group(&self) -> [u8; 16] {
        self.header.group
    }

    pub(super) fn epoch(&self) -> u64 {
        self.header.epoch
    }
}

fn page(file: &dyn StoredFile) -> io::Result<Vec<u8>> {
    let mut page = vec![0; HEADER_BYTES as usize];
    file.read_exact_at(&mut page, 0)?;
    Ok(page)
}
