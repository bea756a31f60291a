//! A pool of several members for the suites: units go from one to the other, whatever room they have.

use afterimage_journal::Result;
use afterimage_journal::pool::{Allocate, Limit, Pool, Slot};
use afterimage_journal::storage::RealStorage;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Places units on one member after the other.
#[derive(Debug)]
pub struct InTurn {
    pub pool: Arc<Pool>,
    /// The home first.
    pub dirs: Vec<PathBuf>,
    pub next: AtomicUsize,
}

impl Allocate for InTurn {
    fn allocate(&self, journal: &Path, unit_bytes: u64) -> Result<Slot> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let there: Vec<&PathBuf> = self.dirs.iter().filter(|d| d.exists()).collect();
        let wanted = there[next % there.len()];
        // Whatever the pool does for a unit on a member, done for this one.
        for dir in there.iter().copied() {
            let limit = if dir == wanted { Limit::None } else { Limit::Bytes(0) };
            self.pool.add(dir, limit)?;
        }
        self.pool.allocate(journal, unit_bytes)
    }
}

/// A pool below a directory: its home, and up to two more members.
#[derive(Clone)]
pub struct Members {
    pub pool: Arc<Pool>,
    pub dirs: Vec<PathBuf>,
    pub allocator: Arc<InTurn>,
}

impl Members {
    pub fn below(dir: &Path, count: usize) -> Self {
        let dirs: Vec<PathBuf> =
            ["pool", "b", "c"].iter().take(count).map(|n| dir.join(n)).collect();
        dirs.iter().for_each(|d| std::fs::create_dir_all(d).unwrap());
        let pool = Pool::open(&RealStorage::shared(), &dirs[0]).unwrap();
        for dir in &dirs[1..] {
            if pool.list().iter().all(|m| m.path != *dir) {
                pool.add(dir, Limit::Keep).unwrap();
            }
        }
        Self::of(pool, dirs)
    }

    fn of(pool: Arc<Pool>, dirs: Vec<PathBuf>) -> Self {
        let allocator =
            InTurn { pool: Arc::clone(&pool), dirs: dirs.clone(), next: AtomicUsize::new(0) };
        Self { pool, dirs, allocator: Arc::new(allocator) }
    }

    /// The pool as the next process finds it.
    pub fn reopen(&mut self) {
        let pool = Pool::open(&RealStorage::shared(), &self.dirs[0]).unwrap();
        *self = Self::of(pool, std::mem::take(&mut self.dirs));
    }

    /// A member goes away.
    pub fn hide(&mut self, dir: &Path) {
        std::fs::rename(dir, dir.with_extension("away")).unwrap();
        self.reopen();
    }

    /// It comes back.
    pub fn show(&mut self, dir: &Path) {
        std::fs::rename(dir.with_extension("away"), dir).unwrap();
        self.reopen();
    }

    /// It is dead for good, and given up by a person.
    pub fn lose(&mut self, dir: &Path) {
        self.hide(dir);
        self.pool.remove(dir, true).unwrap();
        self.dirs.retain(|d| d != dir);
        self.reopen();
    }
}
