//! Giving out room for units and taking it back.
//!
//! What always holds: a unit is only ever given room on a member that was looked at in the same
//! call; a group over its hard limit gets none; a released file becomes a spare only when it is
//! whole, and spares are given up before anybody is told that there is no room.

use super::allocate::{Allocate, Slot};
use super::live::{Member, Pool, lock};
use super::placement::{self, Candidate};
use super::settle;
use super::survey::{self, HELD_DIR, SPARE_DIR, SPARE_PREFIX, Spare, Usage};
use crate::error::{Error, ErrorKind, Result};
use crate::layout;
use crate::storage::make_own_dir;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Most spares of a member.
const SPARES_MAX: usize = 4;
/// Units that have to have room besides before a released one is kept as a spare.
const ROOM_BESIDES_UNITS: u64 = 4;

/// A size for people: at least two digits.
pub(super) fn shown(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, name)) => format!("{:.1} {name}", bytes as f64 / *size as f64),
        None => format!("{bytes} bytes"),
    }
}

/// What a chosen member gives.
struct Choice {
    uuid: Uuid,
    dir: PathBuf,
}

impl Pool {
    /// Sets or lifts a group's hard limit, in bytes of all that it has on all members, but for what is held.
    pub fn set_limit(&self, group: &str, limit_bytes: Option<u64>) {
        let mut live = lock(&self.live);
        match limit_bytes {
            Some(bytes) => drop(live.limits.insert(group.to_owned(), bytes)),
            None => drop(live.limits.remove(group)),
        }
    }

    /// Bytes that a group may still take: under its limit, and on the members.
    #[must_use]
    pub fn room(&self, group: &str, unit_bytes: u64) -> u64 {
        let used = self.usage(group).counted_bytes();
        let live = lock(&self.live);
        let limit = live.limits.get(group).copied().unwrap_or(u64::MAX);
        let taking = live.members.iter().filter(|m| m.takes_units());
        let room: u64 = taking
            .map(|m| m.candidate(unit_bytes))
            .map(|c| placement::free_bytes(&c, unit_bytes) + c.spares * unit_bytes)
            .sum();
        room.min(limit.saturating_sub(used))
    }

    /// The member that a path lies on, and the path's first name below it.
    pub(super) fn member_at(&self, path: &Path) -> Option<(Uuid, PathBuf, String)> {
        let live = lock(&self.live);
        live.members.iter().find_map(|m| {
            let rest = path.strip_prefix(&m.dir).ok()?;
            let group = rest.components().next()?.as_os_str().to_str()?;
            Some((m.uuid, m.dir.clone(), group.to_owned()))
        })
    }

    /// The directory of the member that a path lies on.
    #[must_use]
    pub fn member_of(&self, path: &Path) -> Option<PathBuf> {
        self.member_at(path).map(|(_, dir, _)| dir)
    }

    /// A directory for a file of a group that is not a whole unit (a merged one), of this size at
    /// the most. The group's hard limit doesn't count: merging is what makes room.
    ///
    /// # Errors
    /// There is no room.
    pub fn place(&self, group: &str, bytes: u64) -> Result<PathBuf> {
        self.grant(group, bytes, false).map(|slot| slot.dir)
    }

    /// Takes back a unit's file that nobody reads any more and that is in no catalogue: it
    /// becomes a spare, or it is removed.
    ///
    /// # Errors
    /// A system call failed; the file may still be there.
    pub fn release(&self, path: &Path) -> Result<()> {
        let _one = lock(&self.renaming);
        let found = self.member_at(path);
        let spare = found.as_ref().and_then(|(uuid, dir, _)| self.spare_for(*uuid, dir, path));
        let dir = path.parent().unwrap_or(Path::new("."));
        let bytes = self.allocated_bytes(path);
        match &spare {
            None => match self.storage.remove(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path, e));
                }
                _ => {}
            },
            Some(spare) => {
                let spares = spare.path.parent().unwrap_or(dir);
                make_own_dir(&*self.storage, spares).map_err(|e| Error::io("create", spares, e))?;
                self.storage.rename(path, &spare.path).map_err(|e| Error::io("rename", path, e))?;
            }
        }
        let Some((uuid, _, group)) = found else { return Ok(()) };
        self.change_member(uuid, |m| {
            m.contents.lessen(&group, bytes, dir.ends_with(HELD_DIR));
            m.contents.spares.extend(spare);
        });
        Ok(())
    }

    fn allocated_bytes(&self, path: &Path) -> u64 {
        let file = self.storage.open(path, crate::storage::Access::Read);
        file.and_then(|f| f.allocated_bytes()).unwrap_or(0)
    }

    /// What a released file becomes, when it is worth keeping.
    fn spare_for(&self, uuid: Uuid, dir: &Path, path: &Path) -> Option<Spare> {
        let file = self.storage.open(path, crate::storage::Access::Read).ok()?;
        let (bytes, allocated) = (file.bytes().ok()?, file.allocated_bytes().ok()?);
        let live = lock(&self.live);
        let member = live.members.iter().find(|m| m.uuid == uuid)?;
        let room = placement::free_bytes(&member.candidate(bytes), bytes);
        let wanted = live.unit_sizes.contains(&bytes)
            && allocated >= bytes
            && member.takes_units()
            && member.contents.spares.len() < SPARES_MAX
            && room >= ROOM_BESIDES_UNITS * bytes;
        let name = format!("{SPARE_PREFIX}{}", Uuid::new_v4());
        let from = path.parent().map(Path::to_owned);
        wanted.then(|| Spare { path: dir.join(SPARE_DIR).join(name), bytes, from })
    }

    /// Refuses a unit for which there is no room below the group's limit, what merging and moving need for
    /// a moment included.
    fn check_limit(&self, group: &str, unit_bytes: u64) -> Result<()> {
        let Some(limit) = lock(&self.live).limits.get(group).copied() else { return Ok(()) };
        let needed = |usage: &Usage| usage.counted_bytes() + usage.moving_bytes(unit_bytes);
        let over = |pool: &Self| needed(&pool.usage(group)).saturating_add(unit_bytes) > limit;
        if !over(self) {
            return Ok(());
        }
        // What was counted a while ago is no reason to end a capture.
        for (uuid, dir) in self.serving() {
            self.recount(uuid, &dir);
        }
        if !over(self) {
            return Ok(());
        }
        let usage = self.usage(group);
        Err(Error::NoRoom(format!(
            "the journal {group} may take {} and takes {}, {} are left free for merging: there is no room \
             for {} more; raise its limit or shorten its window",
            shown(limit),
            shown(usage.counted_bytes()),
            shown(usage.moving_bytes(unit_bytes)),
            shown(unit_bytes)
        )))
    }

    fn choose(&self, bytes: u64) -> Option<Choice> {
        let live = lock(&self.live);
        let candidates: Vec<Candidate> = live.members.iter().map(|m| m.candidate(bytes)).collect();
        let member = live.members.get(placement::choose(&candidates, bytes)?)?;
        Some(Choice { uuid: member.uuid, dir: member.dir.clone() })
    }

    /// Finds room, notes it as taken, and makes the directory.
    pub(super) fn grant(&self, group: &str, bytes: u64, unit: bool) -> Result<Slot> {
        layout::check_name(group)?;
        let mut counted = false;
        loop {
            let Some(choice) = self.choose(bytes) else {
                // What was counted a while ago is no reason to refuse.
                if !std::mem::replace(&mut counted, true) {
                    for (uuid, dir) in self.serving() {
                        if self.probe(uuid) {
                            self.recount(uuid, &dir);
                        }
                    }
                    continue;
                }
                if self.drop_spares() {
                    continue;
                }
                return Err(Error::NoRoom(self.no_room(bytes)));
            };
            // Each round that fails takes a member out, or finds it fuller.
            if !self.probe(choice.uuid) || !self.takes_writes(choice.uuid) {
                continue;
            }
            let dir = choice.dir.join(group);
            self.note(&choice, group)?;
            if let Err(e) = self.make_group_dir(&choice, &dir) {
                if choice.dir == self.home || e.kind() == ErrorKind::FreeSpace {
                    return Err(e);
                }
                let why = format!("can't be written ({e})");
                self.mark(choice.uuid, super::trust::Standing::Away(why));
                continue;
            }
            if let Some(spare) = self.take(&choice, group, bytes, unit) {
                return Ok(Slot { dir, spare: spare.and_then(|s| self.settle(s)) });
            }
        }
    }

    /// Sees to it that the journal's unit table will name the unit that goes to this member.
    fn note(&self, choice: &Choice, group: &str) -> Result<()> {
        let journal = self.home.join(group);
        // Where there is no journal nobody opens one.
        if choice.dir == self.home || !self.storage.exists(&journal.join("journal.json")) {
            return Ok(());
        }
        settle::begin(&self.storage, &journal, choice.uuid)
    }

    fn make_group_dir(&self, choice: &Choice, dir: &Path) -> Result<()> {
        if self.storage.exists(dir) {
            return Ok(());
        }
        self.storage.make_dir(dir).map_err(|e| Error::io("create directory", dir, e))?;
        let member = &choice.dir;
        self.storage.sync_dir(member).map_err(|e| Error::io("sync directory", member, e))
    }

    /// Notes the room as taken, if it is still there now that the member was looked at.
    #[allow(clippy::option_option)]
    fn take(&self, choice: &Choice, group: &str, bytes: u64, unit: bool) -> Option<Option<Spare>> {
        let mut live = lock(&self.live);
        let member = live.members.iter_mut().find(|m| m.uuid == choice.uuid)?;
        placement::choose(&[member.candidate(bytes)], bytes)?;
        let at = member.contents.spares.iter().position(|s| unit && s.bytes == bytes);
        let spare = at.map(|at| member.contents.spares.swap_remove(at));
        if spare.is_none() {
            member.room.free_bytes = member.room.free_bytes.saturating_sub(bytes);
        }
        let usage = member.contents.groups.entry(group.to_owned()).or_default();
        usage.add(&Usage { units: 1, bytes, ..Usage::default() });
        Some(spare)
    }

    /// Sees to it that a spare's old name is gone for good before it gets another.
    fn settle(&self, spare: Spare) -> Option<PathBuf> {
        if let Some(from) = &spare.from {
            let synced = [spare.path.parent(), Some(from)]
                .into_iter()
                .flatten()
                .try_for_each(|dir| self.storage.sync_dir(dir));
            // Without it the unit is made anew; the spare is found again when files are counted.
            synced.ok()?;
        }
        Some(spare.path)
    }

    /// Moves spares of older versions to where they are now.
    pub(super) fn move_old_spares(&self) {
        for (uuid, dir) in self.serving() {
            match survey::move_old_spares(&self.storage, &dir) {
                Ok(()) => self.recount(uuid, &dir),
                Err(error) => tracing::warn!(member = %dir.display(), %error, "its spares stay"),
            }
        }
    }

    /// Gives the spares' room back; whether there were any.
    pub(super) fn drop_spares(&self) -> bool {
        let spares = {
            let mut live = lock(&self.live);
            let members = live.members.iter_mut().filter(|m| m.serves());
            let taken: Vec<_> = members
                .map(|m| (m.uuid, m.dir.clone(), std::mem::take(&mut m.contents.spares)))
                .filter(|(_, _, spares)| !spares.is_empty())
                .collect();
            taken
        };
        for (uuid, dir, spares) in &spares {
            for spare in spares {
                // One that stays is found again when the files are counted.
                let _ = self.storage.remove(&spare.path);
            }
            if let Ok(room) = self.storage.room(dir) {
                self.change_member(*uuid, |m| m.room = room);
            }
        }
        !spares.is_empty()
    }

    fn no_room(&self, bytes: u64) -> String {
        let live = lock(&self.live);
        let each: Vec<_> = live.members.iter().map(|m| why_not(m, bytes)).collect();
        format!(
            "the pool has no room for {} more: {}; free space there, raise a limit, or add a \
             directory with `afterimage pool add`",
            shown(bytes),
            each.join("; ")
        )
    }
}

fn why_not(member: &Member, bytes: u64) -> String {
    let dir = member.dir.display();
    if let Some(why) = member.standing.why() {
        return format!("{dir} {why}");
    }
    if !member.takes_units() {
        return format!("{dir} is being drained, or doesn't answer");
    }
    let candidate = member.candidate(bytes);
    let used = shown(candidate.used_bytes);
    match candidate.limit_bytes {
        Some(limit) if limit.saturating_sub(candidate.used_bytes) < bytes => {
            format!("{dir} has {used} of its limit of {}", shown(limit))
        }
        _ => format!("{dir} has {} free on its file system", shown(candidate.room.free_bytes)),
    }
}

impl Allocate for Pool {
    fn allocate(&self, journal: &Path, unit_bytes: u64) -> Result<Slot> {
        let name = journal.file_name().and_then(|n| n.to_str());
        let (Some(group), true) = (name, journal.parent() == Some(&self.home)) else {
            let (journal, home) = (journal.display(), self.home.display());
            return Err(Error::Invalid(format!("{journal} is no journal of the pool {home}")));
        };
        lock(&self.live).unit_sizes.insert(unit_bytes);
        self.check_limit(group, unit_bytes)?;
        self.grant(group, unit_bytes, true)
    }
}
