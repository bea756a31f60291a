//! The pool over real directories: membership, trust, room, draining, and a death at every step.

mod crash;
mod drain;
mod found_twice;
mod members;
mod moved;
mod names;
mod room;
mod spread;

use afterimage_journal::pool::{DrainStep, FileName, Pool, UnitUse};
use afterimage_journal::storage::{RealStorage, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

pub const UNIT: u64 = 1 << 20;

/// A home and two more directories.
pub struct Bed {
    dir: TempDir,
    pub storage: Arc<dyn Storage>,
}

impl Bed {
    pub fn new() -> Self {
        let bed = Self { dir: tempfile::tempdir().unwrap(), storage: RealStorage::shared() };
        for name in ["pool", "b", "c"] {
            std::fs::create_dir(bed.path(name)).unwrap();
        }
        bed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("pool")
    }

    pub fn open(&self) -> Arc<Pool> {
        Pool::open(&self.storage, &self.home()).unwrap()
    }

    /// `cp -a`.
    pub fn copy(&self, from: &str, to: &str) {
        let mut cp = std::process::Command::new("cp");
        assert!(cp.arg("-a").arg(self.path(from)).arg(self.path(to)).status().unwrap().success());
    }

    pub fn swap(&self, a: &str, b: &str) {
        std::fs::rename(self.path(a), self.path("between")).unwrap();
        std::fs::rename(self.path(b), self.path(a)).unwrap();
        std::fs::rename(self.path("between"), self.path(b)).unwrap();
    }
}

/// The state and the reason of a member.
pub fn state(pool: &Pool, dir: &Path) -> (String, String) {
    let all = pool.list();
    let found = all.iter().find(|m| m.path == dir).unwrap_or_else(|| panic!("{all:?}"));
    (found.state.clone(), found.reason.clone().unwrap_or_default())
}

/// Drains until nothing is left to do, or it can't go on.
pub fn drain(pool: &Pool) -> DrainStep {
    loop {
        match pool.drain_step(&|_, _| UnitUse::Written).unwrap() {
            DrainStep::Moved(_) => {}
            step => return step,
        }
    }
}

/// Units in a directory.
pub fn units(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = names.map(|e| e.file_name().into_string().unwrap()).collect();
    names.retain(|n| FileName::parse(n).is_some());
    names.sort();
    names
}
