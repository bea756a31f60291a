//! Building a table anew: reading what the journal holds of a guest's memory.
//!
//! What always holds: only what was read and passed its checksum counts as known; a page that
//! can't be read is unknown, and the next checkpoint stores it.

use super::table::{Hash, Table, UNKNOWN, ZERO, hash, is_zero, pages_of};
use super::{Error, PAGE_BYTES, Result};
use afterimage_journal::view::Blocks;
use afterimage_journal::{History, Journal, VolumeId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Pages that are read at a time: 4 MiB.
const WINDOW_PAGES: usize = 1024;
/// Threads that read and hash: a rebuilding must not take the machine from the guests.
const THREADS_MAX: usize = 2;

impl Table {
    /// Reads these volumes as they are at the journal's head. For a thread that may wait: it takes
    /// about as long as reading the guest's memory from the disk. No checkpoint of the guest may be
    /// stored meanwhile.
    ///
    /// # Errors
    /// `stop` was set, the journal can't be read or stopped, or a volume is not in its configuration.
    pub fn build(journal: &Journal, volumes: &[VolumeId], stop: &AtomicBool) -> Result<Self> {
        let mut table = Self::new(journal)?;
        if !volumes.is_empty() {
            let history = journal.history()?;
            for &volume in volumes {
                let hashes = read(&history, volume, table.key(), stop)?;
                let is_new = !history.has_data.contains(&volume);
                table.put(volume, hashes, is_new);
            }
        }
        match table.serves(journal) {
            true => Ok(table),
            false => Err(Error::StaleTable("the journal stopped while it was read".into())),
        }
    }
}

fn read(
    history: &History,
    volume: VolumeId,
    key: &[u8; 32],
    stop: &AtomicBool,
) -> Result<Vec<Hash>> {
    let blocks = Blocks::at(history, volume, history.head)?;
    let mut hashes = vec![ZERO; pages_of(blocks.bytes())?];
    let windows = Mutex::new(hashes.chunks_mut(WINDOW_PAGES).enumerate());
    let next = || windows.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut buffer = vec![0; WINDOW_PAGES * PAGE_BYTES];
        while let Some((index, window)) = next() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let bytes = &mut buffer[..window.len() * PAGE_BYTES];
            let at = (index * WINDOW_PAGES * PAGE_BYTES) as u64;
            read_window(history, &blocks, key, at, bytes, window);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS_MAX {
            scope.spawn(work);
        }
        work();
    });
    if stop.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(hashes) }
}

fn read_window(
    history: &History,
    blocks: &Blocks,
    key: &[u8; 32],
    at: u64,
    bytes: &mut [u8],
    hashes: &mut [Hash],
) {
    if blocks.is_hole(at..at + bytes.len() as u64).unwrap_or(false) {
        return;
    }
    let is_whole = blocks.read(history, at, bytes).is_ok();
    for (i, (page, known)) in bytes.chunks_mut(PAGE_BYTES).zip(hashes).enumerate() {
        let is_read = is_whole || blocks.read(history, at + (i * PAGE_BYTES) as u64, page).is_ok();
        *known = match is_read {
            false => UNKNOWN,
            true if is_zero(page) => ZERO,
            true => hash(key, page),
        };
    }
}
