//! What the journal holds now of a guest's memory: a keyed hash of each page.
//!
//! Guests write the memory that is hashed, so the hash is BLAKE3 under a key that nobody else
//! knows, 128 bits of it: a page that looks like another can't be made on purpose, and does not
//! come by chance (I-12). A table costs 16 bytes a page: 4 MiB for each GiB of RAM, and 256 KiB for
//! a device state.
//!
//! What always holds: an entry changes only behind its append, so that it tells what the journal
//! holds whether a mark names it or not; where an append failed it is unknown. A table belongs to
//! one opening of a journal: when that stopped, or another epoch began, it is of no use and is built
//! anew.

use super::{Error, PAGE_BYTES, Result};
use afterimage_journal::{Journal, VolumeId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is known of a page.
pub type Hash = [u8; 16];

/// All its bytes are zero.
pub const ZERO: Hash = [0; 16];
/// Not known: differs from everything.
pub const UNKNOWN: Hash = [0xff; 16];

/// Tells tables of one process apart.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Which table, and how often it was written to: what was compared with it counts only as long as
/// it is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    id: u64,
    changes: u64,
}

/// The hashes of one guest's volumes of memory, its device state among them.
pub struct Table {
    key: [u8; 32],
    /// The journal's epoch that it was built in.
    epoch: u64,
    is_encrypted: bool,
    version: Version,
    /// A storing was left in the middle (its thread fell): the journal may hold what is not known
    /// here.
    is_spoiled: bool,
    volumes: BTreeMap<VolumeId, Known>,
}

/// A volume's pages.
pub(super) struct Known {
    pub(super) hashes: Vec<Hash>,
    /// Nothing was ever stored in it.
    pub(super) is_new: bool,
}

impl Table {
    /// A table without volumes, for the journal as it is open now.
    ///
    /// # Errors
    /// The system gives no random key.
    pub fn new(journal: &Journal) -> Result<Self> {
        let mut key = [0; 32];
        random(&mut key)?;
        let version = Version { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), changes: 0 };
        let (epoch, volumes) = (journal.epoch(), BTreeMap::new());
        let is_encrypted = journal.identity().encryption.is_some();
        Ok(Self { key, epoch, is_encrypted, version, is_spoiled: false, volumes })
    }

    /// Whether it tells what this journal holds now. If not, build another one.
    #[must_use]
    pub fn serves(&self, journal: &Journal) -> bool {
        !self.is_spoiled && self.epoch == journal.epoch() && journal.stopped().is_none()
    }

    /// Whether the journal that it was built for is encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Takes in a volume that the journal's configuration got just now and that no record is about:
    /// it reads as zeroes. One that is known already with this size stays as it is.
    ///
    /// # Errors
    /// The size is not a number of pages, or the volume is known with another one.
    pub fn add(&mut self, volume: VolumeId, bytes: u64) -> Result<()> {
        match self.bytes(volume) {
            None => self.put(volume, vec![ZERO; pages_of(bytes)?], true),
            Some(known) if known == bytes => {}
            Some(known) => {
                let what = format!("memory volume {volume} has {known} bytes, not {bytes}");
                return Err(Error::StaleTable(what));
            }
        }
        Ok(())
    }

    /// A volume has another size from now on: nothing is taken for known of it, and all of it is
    /// stored by the next checkpoint.
    ///
    /// # Errors
    /// The size is not a number of pages.
    pub fn resize(&mut self, volume: VolumeId, bytes: u64) -> Result<()> {
        self.put(volume, vec![UNKNOWN; pages_of(bytes)?], false);
        Ok(())
    }

    /// A volume's size in bytes, if it is known.
    #[must_use]
    pub fn bytes(&self, volume: VolumeId) -> Option<u64> {
        self.volumes.get(&volume).map(|v| (v.hashes.len() * PAGE_BYTES) as u64)
    }

    /// Pages of which nothing is known: what the journal has of them is damaged, or was resized.
    #[must_use]
    pub fn unknown_pages(&self) -> u64 {
        let hashes = self.volumes.values().flat_map(|v| &v.hashes);
        hashes.filter(|hash| **hash == UNKNOWN).count() as u64
    }

    /// Its hash of a page that is not all zeroes.
    #[must_use]
    pub fn hash(&self, page: &[u8]) -> Hash {
        hash(&self.key, page)
    }

    pub(super) fn put(&mut self, volume: VolumeId, hashes: Vec<Hash>, is_new: bool) {
        self.volumes.insert(volume, Known { hashes, is_new });
    }

    pub(super) fn known(&self, volume: VolumeId) -> Option<&Known> {
        self.volumes.get(&volume)
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Before the first append of a checkpoint: spoiled until [`Table::settle`], so that whatever
    /// cuts it short between an append and its entry leaves a table that nobody believes.
    pub(super) fn unsettle(&mut self) {
        self.version.changes += 1;
        self.is_spoiled = true;
    }

    /// All that was appended is in the table.
    pub(super) fn settle(&mut self) {
        self.is_spoiled = false;
    }

    /// What a volume holds from a page on, by an append that has ended.
    pub(super) fn set(&mut self, volume: VolumeId, page: usize, hashes: &[Hash]) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.is_new = false;
            known.hashes[page..page + hashes.len()].copy_from_slice(hashes);
        }
    }

    /// As [`Table::set`], for a run of zeroes.
    pub(super) fn set_zero(&mut self, volume: VolumeId, page: usize, pages: usize) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.is_new = false;
            known.hashes[page..page + pages].fill(ZERO);
        }
    }
}

/// The hash of a page that is not all zeroes, never one of the two that mean something else.
pub(super) fn hash(key: &[u8; 32], page: &[u8]) -> Hash {
    let mut short = ZERO;
    short.copy_from_slice(&blake3::keyed_hash(key, page).as_bytes()[..16]);
    if short == ZERO || short == UNKNOWN {
        short = [1; 16];
    }
    short
}

/// Pages of a volume of this size.
pub(super) fn pages_of(bytes: u64) -> Result<usize> {
    let pages = usize::try_from(bytes / PAGE_BYTES as u64).ok();
    pages.filter(|p| (*p * PAGE_BYTES) as u64 == bytes).ok_or_else(|| {
        Error::Invalid(format!(
            "{bytes} bytes of memory are not a number of {PAGE_BYTES}-byte pages"
        ))
    })
}

/// Whether a page holds nothing but zeroes.
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    // In pieces, so that most pages are told by their first one, and vector instructions are used.
    page.chunks(64).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

fn random(key: &mut [u8; 32]) -> Result<()> {
    let mut done = 0;
    while done < key.len() {
        let got = rustix::rand::getrandom(&mut key[done..], rustix::rand::GetRandomFlags::empty());
        done +=
            got.map_err(|e| Error::Invalid(format!("get a random key from the system: {e}")))?;
    }
    Ok(())
}
