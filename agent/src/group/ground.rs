//! What a group's keeper has of the pool.

use afterimage_journal::Result;
use afterimage_journal::keeper::Ground;
use afterimage_journal::merge::Give;
use afterimage_journal::pool::Pool;
use afterimage_journal::storage::Storage;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
