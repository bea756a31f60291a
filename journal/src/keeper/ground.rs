//! What the keeper needs of the pool: where merged units go, what room there is, and who takes files
//! that are given up.

use crate::error::{Error, Result};
use crate::merge::{Give, Remove};
use crate::pool::Pool;
use crate::storage::Storage;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See the module.
pub trait Ground: Give {
    /// The directory for a merged unit of at most so many bytes; it is there.
    ///
    /// # Errors
    /// There is no room.
    fn place(&self, journal: &Path, bytes: u64) -> Result<PathBuf>;

    /// Bytes that the journal's members can still take.
    fn free_bytes(&self, journal: &Path) -> u64;
}

/// Everything in the journal's own directory.
#[derive(Debug, Clone)]
pub struct Home {
    /// Where that is.
    pub storage: Arc<dyn Storage>,
}

impl Give for Home {
    fn give(&self, storage: &dyn Storage, path: &Path) -> Result<()> {
        Remove.give(storage, path)
    }
}

impl Ground for Home {
    fn place(&self, journal: &Path, bytes: u64) -> Result<PathBuf> {
        if self.free_bytes(journal) < bytes {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(Error::io("find room for a merged unit in", journal, full));
        }
        Ok(journal.to_owned())
    }

    fn free_bytes(&self, journal: &Path) -> u64 {
        self.storage.room(journal).map_or(0, |room| room.free_bytes)
    }
}

/// Room on the pool's members for one group.
pub struct PoolGround {
    pool: Arc<Pool>,
    group: String,
    unit_bytes: u64,
}

impl PoolGround {
    /// It, to be shared.
    #[must_use]
    pub fn shared(pool: &Arc<Pool>, group: &str, unit_bytes: u64) -> Arc<dyn Ground> {
        Arc::new(Self { pool: Arc::clone(pool), group: group.to_owned(), unit_bytes })
    }
}

impl Give for PoolGround {
    fn give(&self, _storage: &dyn Storage, path: &Path) -> Result<()> {
        self.pool.release(path)
    }
}

impl Ground for PoolGround {
    fn place(&self, _journal: &Path, bytes: u64) -> Result<PathBuf> {
        self.pool.place(&self.group, bytes)
    }

    fn free_bytes(&self, _journal: &Path) -> u64 {
        self.pool.room(&self.group, self.unit_bytes)
    }
}
