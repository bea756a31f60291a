//! Members that come and go.
//!
//! What always holds: a directory becomes a member only when it is empty, or was one of this
//! pool as it is known; members never lie inside one another; the home stays. Whatever is cut
//! off in between can be asked for again.

use super::description::{
    Description, HOME, MEMBER_FILE, MEMBERS_MAX, MemberEntry, MemberFile, MemberState,
};
use super::live::{Pool, lock};
use super::survey::SPARE_DIR;
use super::trust::{Home, judge};
use crate::error::{Error, Result};
use crate::format::VERSION;
use crate::storage::Storage;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What is to be done with a member's limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// It stays; a new member has none.
    #[default]
    Keep,
    /// No limit but the file system's.
    None,
    /// In bytes.
    Bytes(u64),
}

impl Limit {
    fn of(self, before: Option<u64>) -> Option<u64> {
        match self {
            Self::Keep => before,
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

/// What [`Pool::add`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Added {
    /// The directory is a member now.
    New,
    /// It was one, and is where the path says now.
    Moved,
    /// It was being drained, and stays.
    Kept,
    /// It has another limit.
    Limited,
}

fn usage(text: String) -> Error {
    Error::Invalid(text)
}

/// An absolute path that a description can hold.
fn spelled(dir: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(dir).map_err(|e| Error::io("find", dir, e))?;
    let text = path.to_str().filter(|t| !t.contains(char::is_control));
    if text.is_none() {
        return Err(usage(format!("{} can't be a member: its name is no text", dir.display())));
    }
    // One spelling without a slash at the end.
    Ok(path.components().collect())
}

impl Pool {
    /// Adds a directory to the pool, or changes a member: gives it another limit, cancels its
    /// draining, or takes it in under the path that it has now.
    ///
    /// # Errors
    /// It is no directory, isn't empty, can't be written, lies inside a member or around one,
    /// belongs to another pool, or is an old copy of a member.
    pub fn add(&self, dir: &Path, limit: Limit) -> Result<Added> {
        let path = spelled(dir)?;
        self.storage.list(&path).map_err(|e| Error::io("add to the pool", &path, e))?;
        self.ensure_described()?;
        if let Some(uuid) = self.known_at(&path)? {
            return self.change_known(uuid, &path, limit);
        }
        self.check_apart(&path)?;
        let described = self.described()?;
        let found = MemberFile::read(&self.storage, &path)?;
        match found {
            Some(file) if file.pool != described.pool => Err(usage(format!(
                "{} belongs to another pool ({}): remove it there first",
                path.display(),
                file.pool
            ))),
            Some(file) if described.members.iter().any(|m| m.uuid == file.member) => {
                self.move_member(&described, file.member, &path, limit)
            }
            // An addition that was cut off.
            Some(file) if file.epoch == described.epoch || file.epoch == described.epoch + 1 => {
                self.take_in(&path, file.member, limit)
            }
            _ => {
                self.check_empty(&path)?;
                self.take_in(&path, Uuid::new_v4(), limit)
            }
        }
    }

    pub(super) fn described(&self) -> Result<Description> {
        let described = lock(&self.live).described.clone();
        described.ok_or_else(|| usage("the pool has no members but its home".into()))
    }

    /// Gives a home alone a description.
    fn ensure_described(&self) -> Result<()> {
        if self.described().is_ok() {
            return Ok(());
        }
        let described = Description::new();
        described.write(&self.storage, &self.home)?;
        let (pool, member, epoch) = (described.pool, described.members[0].uuid, described.epoch);
        MemberFile { format: VERSION, pool, member, epoch }.write(&self.storage, &self.home)?;
        self.adopt(Some(described));
        Ok(())
    }

    fn canonical(&self, path: &Path) -> PathBuf {
        self.storage.canonical(path).unwrap_or_else(|_| path.to_owned())
    }

    /// The member that has this path, under whatever spelling.
    fn known_at(&self, path: &Path) -> Result<Option<Uuid>> {
        let wanted = self.canonical(path);
        let live = lock(&self.live);
        let members: Vec<_> =
            live.members.iter().map(|m| (m.uuid, m.dir.clone(), m.serves())).collect();
        drop(live);
        let found = members.into_iter().find(|(_, dir, _)| self.canonical(dir) == wanted);
        match found {
            // Something else lies there now: not for us to say what it is worth.
            Some((uuid, _, false)) if !self.probe(uuid) => Err(usage(format!(
                "{} is a member of the pool that can't be trusted now: {}",
                path.display(),
                self.why(uuid)
            ))),
            found => Ok(found.map(|(uuid, _, _)| uuid)),
        }
    }

    fn why(&self, uuid: Uuid) -> String {
        let live = lock(&self.live);
        let member = live.members.iter().find(|m| m.uuid == uuid);
        member.and_then(|m| m.standing.why()).map_or_else(String::new, |why| format!("it {why}"))
    }

    fn change_known(&self, uuid: Uuid, path: &Path, limit: Limit) -> Result<Added> {
        let described = self.described()?;
        let entry = described.members.iter().find(|m| m.uuid == uuid);
        let entry = entry.ok_or_else(|| usage("no such member".into()))?;
        let drains = entry.state == MemberState::Draining;
        let limited = limit.of(entry.limit_bytes) != entry.limit_bytes;
        if !drains && !limited && limit == Limit::Keep {
            let path = path.display();
            return Err(usage(format!(
                "{path} is a member of the pool already; --limit changes its limit"
            )));
        }
        self.change_entry(uuid, |entry| {
            entry.limit_bytes = limit.of(entry.limit_bytes);
            entry.state = MemberState::Active;
        })?;
        lock(&self.live).drain_waits = None;
        Ok(if drains { Added::Kept } else { Added::Limited })
    }

    fn change_entry(&self, uuid: Uuid, change: impl FnOnce(&mut MemberEntry)) -> Result<()> {
        self.advance(|described| {
            let entry = described.members.iter_mut().find(|m| m.uuid == uuid);
            entry.map(change).ok_or_else(|| usage("no such member".into()))
        })
    }

    /// Members that lie inside one another would count and delete each other's files.
    fn check_apart(&self, path: &Path) -> Result<()> {
        let wanted = self.canonical(path);
        let dirs: Vec<_> = lock(&self.live).members.iter().map(|m| m.dir.clone()).collect();
        for dir in dirs {
            let other = self.canonical(&dir);
            if wanted.starts_with(&other) || other.starts_with(&wanted) {
                let (path, dir) = (path.display(), dir.display());
                return Err(usage(format!("{path} and the member {dir} lie inside one another")));
            }
        }
        Ok(())
    }

    fn check_empty(&self, path: &Path) -> Result<()> {
        let mut names =
            self.storage.list(path).map_err(|e| Error::io("add to the pool", path, e))?;
        names.retain(|n| !["lost+found", MEMBER_FILE, "member.tmp"].contains(&n.as_str()));
        names.retain(|n| {
            let is_empty = self.storage.list(&path.join(n)).is_ok_and(|found| found.is_empty());
            !([SPARE_DIR, "spare"].contains(&n.as_str()) && is_empty)
        });
        names.sort();
        match names.first() {
            None => Ok(()),
            Some(name) => Err(usage(format!(
                "{} is not empty (there is {name:?}): give the pool a directory of its own",
                path.display()
            ))),
        }
    }

    fn take_in(&self, path: &Path, uuid: Uuid, limit: Limit) -> Result<Added> {
        let described = self.described()?;
        if described.members.len() >= MEMBERS_MAX {
            return Err(usage(format!("the pool has {MEMBERS_MAX} members, which is the most")));
        }
        let (pool, epoch) = (described.pool, described.epoch + 1);
        // Here a failure is the caller's: later it would be a member that is away.
        MemberFile { format: VERSION, pool, member: uuid, epoch }.write(&self.storage, path)?;
        self.advance(|described| {
            described.members.push(MemberEntry {
                uuid,
                path: path.display().to_string(),
                limit_bytes: limit.of(None),
                state: MemberState::Active,
                epoch,
                tried: None,
            });
            Ok(())
        })?;
        Ok(Added::New)
    }

    fn move_member(
        &self,
        described: &Description,
        uuid: Uuid,
        path: &Path,
        limit: Limit,
    ) -> Result<Added> {
        let known = described.members.iter().find(|m| m.uuid == uuid);
        let known = known.filter(|m| m.path != HOME).ok_or_else(|| {
            usage(format!("{} is a copy of the pool's home, which can't be one", path.display()))
        })?;
        let serves = lock(&self.live).members.iter().any(|m| m.uuid == uuid && m.serves());
        if serves {
            return Err(usage(format!(
                "{} is a copy of the member {}, which is in use",
                path.display(),
                known.path
            )));
        }
        let entry = MemberEntry { path: path.display().to_string(), ..known.clone() };
        let standing = judge(&self.storage, &self.home, described, &entry);
        if let Some(why) = standing.why() {
            let (path, known) = (path.display(), &known.path);
            return Err(usage(format!("{path} was the member {known}, but it {why}")));
        }
        // It counts as served from here on: the new epoch is written to it, at its new place.
        let mut next = described.clone();
        for found in next.members.iter_mut().filter(|m| m.uuid == uuid) {
            *found = entry.clone();
        }
        self.adopt(Some(next));
        self.change_entry(uuid, |entry| {
            entry.limit_bytes = limit.of(entry.limit_bytes);
            entry.state = MemberState::Active;
        })?;
        Ok(Added::Moved)
    }

    /// Begins to drain a member: nothing new goes there, and [`Pool::drain_step`] moves what it
    /// has. With `lost`, a member that is gone for good is forgotten, and what lay on it is lost.
    ///
    /// # Errors
    /// It is no member, or the home; it is away (without `lost`), or it isn't (with it).
    pub fn remove(&self, dir: &Path, lost: bool) -> Result<()> {
        let path = spelled(dir)?;
        let wanted = self.canonical(&path);
        let live = lock(&self.live);
        let members: Vec<_> = live
            .members
            .iter()
            .map(|m| (m.uuid, m.dir.clone(), m.standing.why().map(str::to_owned)))
            .collect();
        drop(live);
        let found = members
            .iter()
            .find(|(_, dir, _)| *dir == path)
            .or_else(|| members.iter().find(|(_, dir, _)| self.canonical(dir) == wanted));
        let path = path.display();
        let Some((uuid, dir, why)) = found else {
            let all: Vec<_> = members.iter().map(|m| m.1.display().to_string()).collect();
            let all = all.join(", ");
            return Err(usage(format!("{path} is no member of the pool; there are: {all}")));
        };
        if *dir == self.home {
            return Err(usage(format!(
                "{path} is the pool's home, which stays; `pool add {path} --limit` bounds it"
            )));
        }
        match (why, lost) {
            (None, true) => Err(usage(format!(
                "{path} is there: without --lost, what lies on it is moved to the others"
            ))),
            (Some(why), false) => Err(usage(format!(
                "{path} {why}: what lies on it can't be moved. Put it back, or give it up for \
                 good, with all that lies on it, with --lost"
            ))),
            (None, false) => self.change_entry(*uuid, |entry| entry.state = MemberState::Draining),
            (Some(_), true) => self.forget(*uuid),
        }
    }

    /// Takes a member out of the description.
    pub(super) fn forget(&self, uuid: Uuid) -> Result<()> {
        self.advance(|described| {
            described.members.retain(|m| m.uuid != uuid);
            Ok(())
        })
    }

    /// Makes the description of a home anew that lost it, from its own word and that of the
    /// members in `dirs`: those that are not named are out of the pool from then on.
    ///
    /// # Errors
    /// The home has a description, or no word of its own either; a directory is no member of this
    /// pool, or not as new as the home; or the home can't be written.
    pub fn rebuild(storage: &Arc<dyn Storage>, home: &Path, dirs: &[PathBuf]) -> Result<()> {
        if !is_lost(storage, home)? {
            return Err(usage(format!("{} has its description", home.display())));
        }
        let file = MemberFile::read(storage, home)?;
        let file = file.ok_or_else(|| usage(format!("{MEMBER_FILE} is lost, too")))?;
        let mut described = Description::of_home(file.pool, file.member, file.epoch);
        for dir in dirs {
            let path = spelled(dir)?;
            let found = MemberFile::read(storage, &path)?;
            let fits = |f: &MemberFile| {
                let fresh = f.epoch == file.epoch || f.epoch == file.epoch + 1;
                let twice = described.members.iter().any(|m| m.uuid == f.member);
                f.pool == file.pool && fresh && !twice
            };
            let found = found.filter(fits).ok_or_else(|| {
                usage(format!(
                    "{} is no member of the pool as it was last (epoch {}): nothing was changed",
                    path.display(),
                    file.epoch
                ))
            })?;
            described.members.push(MemberEntry {
                uuid: found.member,
                path: path.display().to_string(),
                limit_bytes: None,
                state: MemberState::Active,
                epoch: found.epoch,
                tried: None,
            });
        }
        described.write(storage, home)
    }
}

/// Whether a home's description is lost, so that [`Pool::rebuild`] has to come first.
///
/// # Errors
/// A newer program wrote it.
pub fn is_lost(storage: &Arc<dyn Storage>, home: &Path) -> Result<bool> {
    Ok(matches!(Home::read(storage, home)?, Home::Lost(_)))
}
