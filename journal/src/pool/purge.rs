//! Deleting what a journal has on the members of the pool, those that are away now too.
//!
//! What always holds: before the journal's own directory goes, a file in the home's `.purged` names the group
//! and the members that may have units of it. A member that comes back is cleared by that word, also when
//! there is a new journal of the same name; only units of that very group go, and none of a group whose
//! journal is (still, or again) there.

use super::live::{Pool, lock};
use super::strays::STRAY_DIR;
use super::survey::{self, HELD_DIR};
use super::{description, table};
use crate::error::{Error, Result};
use crate::layout;
use crate::planted;
use crate::storage::Access;
use serde::{Deserialize, Serialize};
use std::path::Path;
use uuid::Uuid;

/// In the home: a file for each group that was purged and may have units on members that were away.
const PURGED_DIR: &str = ".purged";
/// Largest file that is read as one.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Purged {
    name: String,
    group: Uuid,
    /// Members that were not cleared yet.
    members: Vec<Uuid>,
}

impl Pool {
    /// Notes that a journal is going to be deleted; to be called before its own directory goes, and
    /// [`Pool::purge`] behind that. Should it stay, nothing comes of it.
    ///
    /// # Errors
    /// The home can't be written.
    pub fn begin_purge(&self, name: &str, group: Uuid) -> Result<()> {
        let members: Vec<Uuid> = lock(&self.live)
            .members
            .iter()
            .filter(|m| m.dir != self.home)
            .map(|m| m.uuid)
            .collect();
        if members.is_empty() || planted::is("forget-who-was-away-at-a-purge") {
            return Ok(());
        }
        let dir = self.home.join(PURGED_DIR);
        self.storage.make_dir(&dir).map_err(|e| Error::io("create directory", &dir, e))?;
        let sync = self.storage.sync_dir(&self.home);
        sync.map_err(|e| Error::io("sync directory", &self.home, e))?;
        self.write_purged(&Purged { name: name.to_owned(), group, members })
    }

    fn write_purged(&self, purged: &Purged) -> Result<()> {
        let path = self.home.join(PURGED_DIR).join(purged.group.to_string());
        let json = serde_json::to_vec_pretty(purged)
            .map_err(|e| Error::Invalid(format!("encode {}: {e}", path.display())))?;
        description::replace(&self.storage, &path, &json)
    }

    /// Deletes what journals that were purged have on the members that serve.
    ///
    /// # Errors
    /// A member can't be written: what is left goes at the next try.
    pub fn purge(&self) -> Result<()> {
        let dir = self.home.join(PURGED_DIR);
        let names = survey::names(&self.storage, &dir).map_err(|e| Error::io("list", &dir, e))?;
        for path in names.iter().filter(|n| !n.ends_with(".tmp")).map(|n| dir.join(n)) {
            let purged = match self.read_purged(&path) {
                Ok(purged) => purged,
                Err(error) => {
                    tracing::warn!(%error, "what was purged is not known");
                    continue;
                }
            };
            self.clear_purged(purged, &path)?;
        }
        Ok(())
    }

    fn read_purged(&self, path: &Path) -> Result<Purged> {
        let io = |e| Error::io("read", path, e);
        let file = self.storage.open(path, Access::Read).map_err(io)?;
        let mut bytes = vec![0; file.bytes().map_err(io)?.min(FILE_BYTES_MAX) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let purged: Purged = serde_json::from_slice(&bytes).map_err(|e| Error::Unusable {
            path: path.to_owned(),
            why: format!("it is damaged ({e}): remove it, and what the group left on members"),
        })?;
        layout::check_name(&purged.name)?;
        Ok(purged)
    }

    fn clear_purged(&self, mut purged: Purged, path: &Path) -> Result<()> {
        let journal = self.home.join(&purged.name);
        let identity = match self.storage.exists(&journal.join("journal.json")) {
            true => Some(layout::read_identity_in(&*self.storage, &journal)?),
            false => None,
        };
        let before = purged.members.len();
        let is_alone = identity.is_none();
        if identity.is_some_and(|i| i.group == purged.group) {
            // It was not deleted after all.
            purged.members.clear();
        }
        let serving = self.serving();
        let described: Vec<Uuid> = lock(&self.live).members.iter().map(|m| m.uuid).collect();
        purged.members.retain(|member| described.contains(member));
        for (member, dir) in serving.iter().filter(|(m, _)| purged.members.contains(m)) {
            self.clear_member(&dir.join(&purged.name), purged.group, is_alone)?;
            self.recount(*member, dir);
        }
        purged.members.retain(|member| !serving.iter().any(|(m, _)| m == member));
        if purged.members.is_empty() {
            return self.storage.remove(path).map_err(|e| Error::io("remove", path, e));
        }
        if purged.members.len() == before { Ok(()) } else { self.write_purged(&purged) }
    }

    /// Removes a group's units from its directory on a member, and the directory if nothing else is there;
    /// where there is no journal of the name, all else that is not of another group, too.
    fn clear_member(&self, dir: &Path, group: Uuid, is_alone: bool) -> Result<()> {
        let group = group.into_bytes();
        for dir in [dir.join(HELD_DIR), dir.join(STRAY_DIR), dir.to_owned()] {
            let names =
                survey::names(&self.storage, &dir).map_err(|e| Error::io("list", &dir, e))?;
            let is_dir = |path: &Path| [HELD_DIR, STRAY_DIR].iter().any(|n| path.ends_with(n));
            for path in names.iter().map(|n| dir.join(n)) {
                let header = table::header_of(&*self.storage, &path).ok().flatten();
                if header.map_or(is_alone && !is_dir(&path), |h| h.group == group) {
                    self.storage.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
                }
            }
            let _ = self.storage.remove_dir(&dir);
        }
        Ok(())
    }
}
