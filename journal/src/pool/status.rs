//! What a pool says of itself to people and programs.

use super::description::MemberState;
use super::live::{Member, Pool, lock};
use super::places::Places;
use super::strays::STRAY_DIR;
use super::survey::{self, Usage};
use super::trust::Standing;
use crate::error::{Error, Result};
use crate::storage::Storage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// A member, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Who it is; nil for a home alone.
    pub uuid: Uuid,
    /// Its directory.
    pub path: PathBuf,
    /// Whether it is the home.
    pub home: bool,
    /// `active`, `draining`, `away`, `stale`.
    pub state: String,
    /// Why it is away or stale, or why its draining waits.
    #[serde(default)]
    pub reason: Option<String>,
    /// What may lie on it.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// What of ours lies on it.
    pub used_bytes: u64,
    /// What its file system has left.
    pub free_bytes: u64,
    /// Size of its file system.
    pub total_bytes: u64,
    /// Units on it.
    pub units: u64,
    /// Bytes of its warm spares.
    pub spare_bytes: u64,
}

/// A file under a unit's name that is none of a journal's units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrayFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it is, as a clause: "belongs to another journal".
    pub why: String,
}

impl std::fmt::Display for StrayFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: it is not read", self.path.display(), self.why)
    }
}

/// The files on a journal's members that are under units' names and are none of its units, those that were
/// set aside too. Copies that a move left are none.
///
/// # Errors
/// The journal's own directory or unit table can't be read.
pub fn stray_files(storage: &Arc<dyn Storage>, journal: &Path) -> Result<Vec<StrayFile>> {
    let places = Places::of(storage, journal)?;
    let strays = places.listing()?.strays.into_iter().filter(|s| !s.is_copy);
    let mut files: Vec<StrayFile> =
        strays.map(|s| StrayFile { path: s.path, why: s.why.to_owned() }).collect();
    for dir in places.dirs().iter().map(|d| d.join(STRAY_DIR)) {
        let names = survey::names(storage, &dir).map_err(|e| Error::io("list", &dir, e))?;
        let aside = |n: &String| StrayFile { path: dir.join(n), why: "was set aside".into() };
        files.extend(names.iter().map(aside));
    }
    Ok(files)
}

/// A pool, for people and programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its epoch; 0 for a home alone.
    pub epoch: u64,
    /// Its members; the home is the first.
    pub members: Vec<MemberStatus>,
    /// What each journal takes, on all members that serve.
    pub journals: BTreeMap<String, Usage>,
    /// Files that are none of the journals' units.
    #[serde(default)]
    pub strays: Vec<StrayFile>,
}

impl Pool {
    /// All that there is to say of it.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let mut journals = BTreeMap::<String, Usage>::new();
        for (name, usage) in lock(&self.live).members.iter().flat_map(|m| &m.contents.groups) {
            journals.entry(name.clone()).or_default().add(usage);
        }
        let known = lock(&self.live).strays.clone();
        let strays = known.unwrap_or_else(|| self.find_strays());
        PoolStatus { epoch: self.epoch(), members: self.list(), journals, strays }
    }

    /// Looks for strays of every journal; those of one that can't be read are not known.
    pub(super) fn find_strays(&self) -> Vec<StrayFile> {
        let groups = survey::groups(&self.storage, &self.home).unwrap_or_default();
        let found = groups.iter().map(|g| stray_files(&self.storage, &self.home.join(g)));
        found.filter_map(Result::ok).flatten().collect()
    }

    /// The pool's members; the home is the first.
    #[must_use]
    pub fn list(&self) -> Vec<MemberStatus> {
        let live = lock(&self.live);
        let status = |m: &Member| {
            let (state, reason) = match (&m.standing, m.state) {
                (Standing::Trusted(_), MemberState::Active) => ("active", None),
                (Standing::Trusted(_), MemberState::Draining) => {
                    ("draining", live.drain_waits.clone())
                }
                (Standing::Away(why), _) => ("away", Some(why.clone())),
                (Standing::Stale(why) | Standing::Ahead(why), _) => ("stale", Some(why.clone())),
            };
            MemberStatus {
                uuid: m.uuid,
                path: m.dir.clone(),
                home: m.dir == self.home,
                state: state.to_owned(),
                reason,
                limit_bytes: m.limit_bytes,
                used_bytes: m.contents.used_bytes(),
                free_bytes: m.room.free_bytes,
                total_bytes: m.room.total_bytes,
                units: m.contents.units(),
                spare_bytes: m.contents.spare_bytes(),
            }
        };
        live.members.iter().map(status).collect()
    }

    /// What a group takes on all members that serve.
    #[must_use]
    pub fn usage(&self, group: &str) -> Usage {
        let mut sum = Usage::default();
        let live = lock(&self.live);
        for found in live.members.iter().filter_map(|m| m.contents.groups.get(group)) {
            sum.add(found);
        }
        sum
    }

    /// The pool's epoch; 0 for a home alone.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        lock(&self.live).described.as_ref().map_or(0, |d| d.epoch)
    }

    /// The members that serve, with their directories.
    pub(super) fn serving(&self) -> Vec<(Uuid, PathBuf)> {
        let live = lock(&self.live);
        live.members.iter().filter(|m| m.serves()).map(|m| (m.uuid, m.dir.clone())).collect()
    }

    /// The home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }
}
