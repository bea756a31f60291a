//! Frames that memory has no room for, in a nameless file: a restore walks the same objects once for
//! every part of the disk that it writes, and they shall not come over the network as often.
//!
//! What always holds: the file has at most the bytes that it was given, and goes with the process however
//! that ends; what is read of it is the frame that was asked for, or nothing.

use super::cache::FrameId;
use crate::object::FRAME_BYTES;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most bytes of such a file.
pub const SPILL_BYTES_MAX: u64 = 16 << 30;
/// It takes at most one part in so many of the room that is free.
const ROOM_PART: u64 = 2;

/// A ring of frames in a file.
#[derive(Debug)]
pub(crate) struct Spill {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    /// Slot and bytes of each frame.
    at: HashMap<FrameId, (usize, usize)>,
    held: Vec<Option<FrameId>>,
    /// Slots that are being written.
    busy: HashSet<usize>,
    next: usize,
    /// How many there may be; 0: the disk is full or fails, nothing is kept any more.
    most: usize,
}

impl Spill {
    /// One in the directory for large temporary files (`TMPDIR`, else `/var/tmp`).
    ///
    /// # Errors
    /// It can't be made there.
    pub fn make() -> io::Result<Self> {
        let dir =
            std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let file = tempfile::tempfile_in(dir)?;
        let stat = rustix::fs::fstatvfs(&file)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(Self::over(file, SPILL_BYTES_MAX.min(free / ROOM_PART)))
    }

    fn over(file: File, bytes_max: u64) -> Self {
        let most = usize::try_from(bytes_max / FRAME_BYTES as u64).unwrap_or(usize::MAX);
        let slots =
            Slots { at: HashMap::new(), held: Vec::new(), busy: HashSet::new(), next: 0, most };
        Self { file, slots: Mutex::new(slots) }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn has(&self, id: &FrameId) -> bool {
        self.slots().at.contains_key(id)
    }

    /// Reads bytes of a frame from its byte `skip` on; `false`: they are not there.
    pub fn read(&self, id: &FrameId, skip: usize, bytes: &mut [u8]) -> bool {
        let Some((slot, frame_bytes)) = self.slots().at.get(id).copied() else { return false };
        let at = slot as u64 * FRAME_BYTES as u64 + skip as u64;
        if skip + bytes.len() > frame_bytes || self.file.read_exact_at(bytes, at).is_err() {
            return false;
        }
        // Nobody took its place meanwhile.
        self.slots().at.get(id) == Some(&(slot, frame_bytes))
    }

    /// Keeps a frame, in the place of the oldest if there is no other.
    pub fn put(&self, id: FrameId, frame: &[u8]) {
        let mut slots = self.slots();
        if slots.most == 0 || slots.at.contains_key(&id) || frame.len() > FRAME_BYTES {
            return;
        }
        let slot = slots.next;
        // Once round while one frame was written: that one is newer.
        if !slots.busy.insert(slot) {
            return;
        }
        slots.next = (slot + 1) % slots.most;
        if slot == slots.held.len() {
            slots.held.push(None);
        }
        if let Some(old) = slots.held[slot].take() {
            slots.at.remove(&old);
        }
        drop(slots);
        let written = self.file.write_all_at(frame, slot as u64 * FRAME_BYTES as u64);
        let mut slots = self.slots();
        slots.busy.remove(&slot);
        match written {
            Ok(()) => {
                slots.held[slot] = Some(id);
                slots.at.insert(id, (slot, frame.len()));
            }
            Err(error) => {
                tracing::debug!(%error, "nothing more is kept in a temporary file");
                slots.most = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_and_what_is_read_is_what_was_asked_for() {
        let spill = Spill::over(tempfile::tempfile().unwrap(), 3 * FRAME_BYTES as u64);
        for n in 0..5_u8 {
            spill.put(([n; 16], 0), &vec![n; FRAME_BYTES - n as usize]);
        }
        for n in 0..5_u8 {
            let mut read = vec![0xff; FRAME_BYTES - n as usize - 7];
            assert_eq!(spill.read(&([n; 16], 0), 7, &mut read), n >= 2, "{n}");
            assert!(n < 2 || read.iter().all(|byte| *byte == n), "{n}");
            assert!(!spill.read(&([n; 16], 0), 8 + n as usize, &mut read), "behind its end");
        }
        assert!(spill.file.metadata().unwrap().len() <= 3 * FRAME_BYTES as u64);
    }
}
