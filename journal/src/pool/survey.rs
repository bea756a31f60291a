//! What lies on a member, counted from its files.
//!
//! What always holds: a file counts with the bytes that it takes on the disk; what belongs to no
//! journal and is no spare is not ours and doesn't count.

use super::description::{MEMBER_FILE, POOL_FILE};
use super::name::FileName;
use super::strays::STRAY_DIR;
use crate::layout;
use crate::map::RunName;
use crate::storage::{Access, Storage, list_own, make_own_dir};
use crate::window::limits::MOVING_UNITS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The directory of a member's spares. Our own names begin with a dot, which no group's name does.
pub const SPARE_DIR: &str = ".spare";
/// The same in older versions, beside the directories of groups: one may have that name.
const SPARE_DIR_BEFORE: &str = "spare";
/// In a journal's directory: what was released while somebody read the journal (I-7).
pub const HELD_DIR: &str = "held";
/// How the name of a spare begins.
pub(super) const SPARE_PREFIX: &str = "spare-";

/// What a group takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Units of the log and merged ones.
    pub units: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were released while somebody read them.
    pub held_bytes: u64,
    /// Bytes of everything else: map runs, the ring, the catalogue.
    pub other_bytes: u64,
    /// Of these, bytes of map runs.
    #[serde(default)]
    pub run_bytes: u64,
}

impl Usage {
    /// All of it.
    #[must_use]
    pub fn all_bytes(&self) -> u64 {
        self.bytes + self.held_bytes + self.other_bytes
    }

    /// What a group's limit is about: a pin never costs capture.
    #[must_use]
    pub fn counted_bytes(&self) -> u64 {
        self.bytes + self.other_bytes
    }

    /// What may come on top of that for a moment, and a limit has to have room for: units of this size that
    /// are merged or moved, runs that are made of others, which go when it is there.
    #[must_use]
    pub fn moving_bytes(&self, unit_bytes: u64) -> u64 {
        MOVING_UNITS * unit_bytes + self.run_bytes
    }

    /// Adds what the group has elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.units += other.units;
        self.bytes += other.bytes;
        self.held_bytes += other.held_bytes;
        self.other_bytes += other.other_bytes;
        self.run_bytes += other.run_bytes;
    }
}

/// A warm file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spare {
    pub path: PathBuf,
    pub bytes: u64,
    /// The directory that it came from, as long as it isn't sure that it is gone from there.
    pub from: Option<PathBuf>,
}

/// What lies on a member.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    pub groups: BTreeMap<String, Usage>,
    pub spares: Vec<Spare>,
}

impl Contents {
    pub fn used_bytes(&self) -> u64 {
        let groups: u64 = self.groups.values().map(Usage::all_bytes).sum();
        groups + self.spare_bytes()
    }

    pub fn spare_bytes(&self) -> u64 {
        self.spares.iter().map(|s| s.bytes).sum()
    }

    /// Notes that a unit's file of a group is gone.
    pub fn lessen(&mut self, group: &str, bytes: u64, was_held: bool) {
        let Some(usage) = self.groups.get_mut(group) else { return };
        if was_held {
            usage.held_bytes = usage.held_bytes.saturating_sub(bytes);
        } else {
            usage.units = usage.units.saturating_sub(1);
            usage.bytes = usage.bytes.saturating_sub(bytes);
        }
    }

    pub fn units(&self) -> u64 {
        self.groups.values().map(|u| u.units).sum()
    }
}

/// Length and allocated bytes of a file; `None`: it is gone, or no file.
fn size(storage: &Arc<dyn Storage>, path: &Path) -> Option<(u64, u64)> {
    let file = storage.open(path, Access::Read).ok()?;
    Some((file.bytes().ok()?, file.allocated_bytes().ok()?))
}

/// Names in a directory; none where it isn't one.
pub(super) fn names(storage: &Arc<dyn Storage>, dir: &Path) -> io::Result<Vec<String>> {
    // The directory of a group may be a link, which somebody made who knew why.
    let is_ours = [HELD_DIR, STRAY_DIR, SPARE_DIR].iter().any(|name| dir.ends_with(name));
    match storage.list(dir) {
        _ if is_ours => list_own(&**storage, dir),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

/// The directories of journals on a member, by name.
pub(super) fn groups(storage: &Arc<dyn Storage>, member: &Path) -> io::Result<Vec<String>> {
    let mut found = storage.list(member)?;
    found.retain(|n| {
        layout::check_name(n).is_ok() && ![POOL_FILE, MEMBER_FILE].contains(&n.as_str())
    });
    found.sort();
    Ok(found)
}

/// Moves the spares of older versions to where they are now. A group of that name keeps what is its own.
pub(super) fn move_old_spares(storage: &Arc<dyn Storage>, member: &Path) -> io::Result<()> {
    let (before, now) = (member.join(SPARE_DIR_BEFORE), member.join(SPARE_DIR));
    let found = names(storage, &before)?;
    let spares: Vec<&String> = found.iter().filter(|n| n.starts_with(SPARE_PREFIX)).collect();
    if !spares.is_empty() {
        make_own_dir(&**storage, &now)?;
    }
    for name in spares {
        storage.rename(&before.join(name), &now.join(name))?;
    }
    if storage.exists(&before) {
        // It stays where a group has its units.
        let _ = storage.remove_dir(&before);
    }
    Ok(())
}

/// Counts what lies on a member.
pub(super) fn survey(storage: &Arc<dyn Storage>, member: &Path) -> io::Result<Contents> {
    let mut contents = Contents::default();
    for group in groups(storage, member)? {
        let dir = member.join(&group);
        let names = names(storage, &dir)?;
        if !names.is_empty() {
            contents.groups.insert(group, count(storage, &dir, &names)?);
        }
    }
    let dir = member.join(SPARE_DIR);
    for name in names(storage, &dir)?.iter().filter(|n| n.starts_with(SPARE_PREFIX)) {
        let path = dir.join(name);
        contents.spares.extend(size(storage, &path).map(|(bytes, _)| Spare {
            path,
            bytes,
            from: None,
        }));
    }
    Ok(contents)
}

fn count(storage: &Arc<dyn Storage>, dir: &Path, found: &[String]) -> io::Result<Usage> {
    let mut usage = Usage::default();
    for name in found {
        if name == HELD_DIR || name == STRAY_DIR {
            let dir = dir.join(name);
            let held = names(storage, &dir)?;
            usage.held_bytes += held
                .iter()
                .filter_map(|n| size(storage, &dir.join(n)))
                .map(|(_, b)| b)
                .sum::<u64>();
            continue;
        }
        let Some((_, bytes)) = size(storage, &dir.join(name)) else { continue };
        if FileName::parse(name).is_some() {
            usage.units += 1;
            usage.bytes += bytes;
        } else {
            usage.other_bytes += bytes;
            usage.run_bytes += if RunName::parse(name).is_some() { bytes } else { 0 };
        }
    }
    Ok(usage)
}
