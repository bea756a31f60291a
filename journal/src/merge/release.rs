//! Giving up files that are replaced: never under a reader (I-7).
//!
//! Readers hold `pin` shared from before they load the catalogue. So whoever has it exclusively, after
//! a catalogue without the file was made durable, knows that nobody needs the file. As long as readers
//! are there, files go to `held/` beside where they were, under their own name, where readers look
//! next; the writer tries again now and then. Held files count against no limit.

use crate::error::{Error, Result};
use crate::pool::{FileName, Found};
use crate::storage::{Lock, LockKind, Storage, list_own, make_own_dir};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the directory of what readers hold.
pub const HELD: &str = "held";
/// Most files that are given up under one hold of the pin, for which readers that begin have to wait.
const FILES_AT_ONCE_MAX: usize = 64;

/// What takes files that nobody needs any more.
pub trait Give: Send + Sync {
    /// Removes it, or makes it a spare.
    ///
    /// # Errors
    /// It could not be removed.
    fn give(&self, storage: &dyn Storage, path: &Path) -> Result<()>;
}

/// Removes files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Remove;

impl Give for Remove {
    fn give(&self, storage: &dyn Storage, path: &Path) -> Result<()> {
        match storage.remove(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
            _ => Ok(()),
        }
    }
}

/// What became of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Gone.
    pub given: usize,
    /// Held by readers.
    pub held: usize,
}

/// Gives up files that no durable catalogue names any more.
///
/// # Errors
/// A rename, removal or sync failed; what is left is found again by [`leftovers`].
pub fn release(
    storage: &Arc<dyn Storage>,
    journal: &Path,
    give: &dyn Give,
    files: &[PathBuf],
) -> Result<Released> {
    let mut released = Released::default();
    for files in files.chunks(FILES_AT_ONCE_MAX) {
        let pin = exclusive(storage, journal)?;
        for path in files.iter().filter(|p| storage.exists(p)) {
            if pin.is_some() {
                give.give(storage.as_ref(), path)?;
                released.given += 1;
            } else {
                hold(storage, path)?;
                released.held += 1;
            }
        }
        drop(pin);
        sync_parents(storage, files)?;
    }
    Ok(released)
}

/// Gives up what was held, if no reader is there now; says what is still held, in bytes.
///
/// # Errors
/// As [`release`].
pub fn retry_held(
    storage: &Arc<dyn Storage>,
    journal: &Path,
    dirs: &[PathBuf],
    give: &dyn Give,
) -> Result<u64> {
    let held = held_files(storage, dirs)?;
    if held.is_empty() {
        return Ok(0);
    }
    let mut left = held.as_slice();
    while !left.is_empty() {
        let Some(pin) = exclusive(storage, journal)? else { break };
        let (now, later) = left.split_at(left.len().min(FILES_AT_ONCE_MAX));
        now.iter().try_for_each(|path| give.give(storage.as_ref(), path))?;
        drop(pin);
        sync_parents(storage, now)?;
        left = later;
    }
    Ok(left.iter().map(|path| file_bytes(storage, path)).sum())
}

/// Files in the `held/` of these directories.
///
/// # Errors
/// One of them can't be read.
pub fn held_files(storage: &Arc<dyn Storage>, dirs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut held = Vec::new();
    for dir in dirs.iter().map(|d| d.join(HELD)) {
        let names = list_own(&**storage, &dir);
        let names = names.map_err(|e| Error::io("list what is held", &dir, e))?;
        held.extend(names.iter().map(|n| dir.join(n)));
    }
    held.sort();
    Ok(held)
}

/// Units that lie inside of a merged one that is there, and merged ones inside of a wider one: left by
/// somebody who was killed before giving them up.
#[must_use]
pub fn leftovers(units: &[Found]) -> Vec<PathBuf> {
    let within = |inner: (u64, u64), outer: (u64, u64)| outer.0 <= inner.0 && inner.1 <= outer.1;
    let merged: Vec<(u64, u64)> = units
        .iter()
        .filter(|f| matches!(f.name, FileName::Merged(..)))
        .map(|f| f.name.numbers())
        .collect();
    let left = units.iter().filter(|f| {
        let own = f.name.numbers();
        let unit = matches!(f.name, FileName::Unit(_));
        merged.iter().any(|m| within(own, *m) && (unit || *m != own))
    });
    left.map(|f| f.path.clone()).collect()
}

/// Removes drafts of merged units and runs; only the writer may.
///
/// # Errors
/// A directory can't be read, or a draft can't be removed.
pub fn remove_drafts(storage: &Arc<dyn Storage>, dirs: &[PathBuf]) -> Result<()> {
    for dir in dirs {
        let mut names = match storage.list(dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("list journal", dir, e)),
        };
        names.sort();
        let draft = |n: &&String| {
            n.ends_with(".tmp") && (n.starts_with("merged-") || n.starts_with("map-"))
        };
        for path in names.iter().filter(draft).map(|n| dir.join(n)) {
            storage.remove(&path).map_err(|e| Error::io("remove draft", &path, e))?;
        }
    }
    Ok(())
}

fn exclusive(storage: &Arc<dyn Storage>, journal: &Path) -> Result<Option<Lock>> {
    let path = journal.join("pin");
    match storage.lock(&path, LockKind::Exclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(Error::io("lock", &path, e)),
    }
}

fn hold(storage: &Arc<dyn Storage>, path: &Path) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Invalid(format!("{} has no place to be held", path.display())));
    };
    let held = dir.join(HELD);
    make_own_dir(&**storage, &held).map_err(|e| Error::io("create directory", &held, e))?;
    storage.rename(path, &held.join(name)).map_err(|e| Error::io("rename to", &held, e))?;
    storage.sync_dir(&held).map_err(|e| Error::io("sync directory", &held, e))
}

fn sync_parents(storage: &Arc<dyn Storage>, files: &[PathBuf]) -> Result<()> {
    let dirs: BTreeSet<&Path> = files.iter().filter_map(|f| f.parent()).collect();
    let synced = dirs.into_iter().filter(|d| storage.exists(d));
    for dir in synced {
        storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
    }
    Ok(())
}

fn file_bytes(storage: &Arc<dyn Storage>, path: &Path) -> u64 {
    let file = storage.open(path, crate::storage::Access::Read);
    file.and_then(|f| f.allocated_bytes()).unwrap_or(0)
}
