//! What a pool says of itself to people and programs.

use super::description::MemberState;
use super::live::{Member, Pool, lock};
use super::survey::Usage;
use super::trust::Standing;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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

/// A pool, for people and programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its epoch; 0 for a home alone.
    pub epoch: u64,
    /// Its members; the home is the first.
    pub members: Vec<MemberStatus>,
    /// What each journal takes, on all members that serve.
    pub journals: BTreeMap<String, Usage>,
}

impl Pool {
    /// All that there is to say of it.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let mut journals = BTreeMap::<String, Usage>::new();
        for (name, usage) in lock(&self.live).members.iter().flat_map(|m| &m.contents.groups) {
            journals.entry(name.clone()).or_default().add(usage);
        }
        PoolStatus { epoch: self.epoch(), members: self.list(), journals }
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

    /// The home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }
}
