//! Emptying a member: its units go to the others, one at a time, while capture goes on.
//!
//! ```text
//! sealed unit ──copy──► draft on another member ──verified, synced──► its name there ──► source gone
//! ```
//!
//! What always holds: a unit is there whole under its name at every moment, on one member or, the
//! same, on two; its source goes only when the copy was read back and is durable, and only when
//! nobody reads the journal (else it is held). Killed anywhere, it goes on where it was.

use super::copying::DRAFT;
use super::description::{MEMBER_FILE, MemberState};
use super::live::{Pool, lock};
use super::name::FileName;
use super::places::{Listing, Places, Stray};
use super::survey::{self, HELD_DIR, SPARE_DIR};
use super::{strays, table, tails};
use crate::error::{Error, ErrorKind, Result};
use crate::format::index::{FOOTER_BYTES, Footer};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::planted;
use crate::storage::{Access, Lock, LockKind, make_own_dir};
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What a step of draining did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainStep {
    /// No member is being drained.
    Idle,
    /// It moved this file; there may be more.
    Moved(PathBuf),
    /// These journals write to a unit on the member: it can be moved once it is sealed.
    Open(Vec<String>),
    /// It can't go on now: the text says why.
    Waiting(String),
    /// This directory is a member no more.
    Done(PathBuf),
}

/// Whether a unit without a seal may still be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitUse {
    /// It may be, at any moment.
    Written,
    /// It is not, says who has the journal open.
    Idle,
    /// Nobody here has the journal open, as far as is known: it is moved under the journal's lock.
    Unknown,
}

/// How a journal's unit of this number is used: asked for those without a seal.
pub type InUse<'a> = &'a dyn Fn(&str, u64) -> UnitUse;

struct Source {
    uuid: Uuid,
    dir: PathBuf,
}

/// What one journal's directory on the member has.
#[derive(Default)]
struct Left {
    open: Vec<String>,
    waits: Option<String>,
    files: usize,
}

impl Pool {
    /// Moves one file off a member that is being drained, or ends its membership. A unit without a
    /// seal that nobody writes any more (it is damaged, say) moves as it is.
    ///
    /// # Errors
    /// A system call failed in a way that another try won't mend.
    pub fn drain_step(&self, in_use: InUse) -> Result<DrainStep> {
        let source = {
            let live = lock(&self.live);
            let mut draining = live.members.iter();
            let found = draining.find(|m| m.serves() && m.state == MemberState::Draining);
            found.map(|m| Source { uuid: m.uuid, dir: m.dir.clone() })
        };
        let Some(source) = source else { return Ok(DrainStep::Idle) };
        let step = self.step_of(&source, in_use);
        let waits = match &step {
            Ok(DrainStep::Waiting(why)) => Some(why.clone()),
            Ok(DrainStep::Open(groups)) => {
                Some(format!("{} still writes to a unit there", groups.join(", ")))
            }
            Err(e) => Some(e.to_string()),
            _ => None,
        };
        lock(&self.live).drain_waits = waits;
        step
    }

    fn step_of(&self, source: &Source, in_use: InUse) -> Result<DrainStep> {
        if !self.probe(source.uuid) {
            return Ok(DrainStep::Waiting("the member went away".into()));
        }
        let mut left = Left::default();
        let groups = survey::groups(&self.storage, &source.dir)
            .map_err(|e| Error::io("list", &source.dir, e))?;
        for group in &groups {
            self.sweep_held(source, group);
            if let Some(step) = self.move_one(source, group, in_use, &mut left)? {
                return Ok(step);
            }
        }
        if !left.open.is_empty() {
            return Ok(DrainStep::Open(left.open));
        }
        if let Some(why) = left.waits {
            return Ok(DrainStep::Waiting(why));
        }
        if left.files > 0 {
            let why = "a restore or export still reads what was there";
            return Ok(DrainStep::Waiting(why.into()));
        }
        self.end(source, &groups)?;
        Ok(DrainStep::Done(source.dir.clone()))
    }

    /// Moves the first file of a journal that can be moved.
    fn move_one(
        &self,
        source: &Source,
        group: &str,
        in_use: InUse,
        left: &mut Left,
    ) -> Result<Option<DrainStep>> {
        let dir = source.dir.join(group);
        let mut names =
            survey::names(&self.storage, &dir).map_err(|e| Error::io("list", &dir, e))?;
        names.sort();
        names.retain(|n| FileName::parse(n).is_some());
        left.files += survey::names(&self.storage, &dir.join(HELD_DIR)).map_or(0, |n| n.len());
        let listing = if names.is_empty() { Listing::default() } else { self.listing(group)? };
        let named = names.iter().filter_map(|n| Some((n, FileName::parse(n)?.numbers().1)));
        for (name, number) in named {
            let from = dir.join(name);
            if listing.strays.iter().any(|s| s.path == from && !s.is_copy) {
                // None of the journal's: it stays behind, and the drain ends.
                strays::set_aside(&self.storage, &from)?;
                return Ok(Some(DrainStep::Moved(from)));
            }
            let lock = match self.hold_still(&from, in_use(group, number)) {
                Ok(Some(lock)) => lock,
                Ok(None) => {
                    if !left.open.iter().any(|g| g == group) {
                        left.open.push(group.to_owned());
                    }
                    continue;
                }
                // Released in between.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("read", &from, e)),
            };
            let moved = self.move_file(source, group, name, &listing);
            drop(lock);
            match moved {
                Ok(()) => return Ok(Some(DrainStep::Moved(from))),
                Err(e) if e.kind() == ErrorKind::FreeSpace => left.waits = Some(e.to_string()),
                Err(Error::Io { source: e, .. }) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The files of a journal on all members; without a journal in the home, nothing is judged.
    fn listing(&self, group: &str) -> Result<Listing> {
        let journal = self.home.join(group);
        match self.storage.exists(&journal) {
            true => Places::of(&self.storage, &journal)?.listing(),
            false => Ok(Listing::default()),
        }
    }

    /// Sees to it that nobody writes to a file until what is returned is dropped; `None`: somebody may.
    fn hold_still(&self, path: &Path, used: UnitUse) -> io::Result<Option<Option<Lock>>> {
        if self.is_sealed(path)? {
            return Ok(Some(None));
        }
        let group = path.parent().and_then(Path::file_name).map(|name| self.home.join(name));
        match (used, group) {
            (UnitUse::Idle, _) => Ok(Some(None)),
            (UnitUse::Unknown, _) if planted::is("drain-without-the-lock") => Ok(Some(None)),
            (UnitUse::Unknown, Some(journal)) if self.storage.exists(&journal) => {
                match self.storage.lock(&journal.join("lock"), LockKind::Exclusive) {
                    Ok(lock) => Ok(Some(Some(lock))),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                    Err(e) => Err(e),
                }
            }
            (UnitUse::Unknown, _) => Ok(Some(None)),
            (UnitUse::Written, _) => Ok(None),
        }
    }

    /// Whether a unit's file never changes any more.
    fn is_sealed(&self, path: &Path) -> io::Result<bool> {
        let file = self.storage.open(path, Access::Read)?;
        let bytes = file.bytes()?;
        if bytes < BLOCK_BYTES + FOOTER_BYTES {
            return Ok(false);
        }
        let mut block = vec![0; BLOCK_BYTES as usize];
        file.read_exact_at(&mut block, 0)?;
        let Ok(header) = UnitHeader::decode(&block) else { return Ok(false) };
        let mut footer = [0; FOOTER_BYTES as usize];
        file.read_exact_at(&mut footer, bytes - FOOTER_BYTES)?;
        Ok(Footer::decode(&header.salt, bytes, &footer).is_some())
    }

    fn move_file(&self, source: &Source, group: &str, name: &str, listing: &Listing) -> Result<()> {
        let from = source.dir.join(group).join(name);
        let file =
            self.storage.open(&from, Access::Read).map_err(|e| Error::io("open", &from, e))?;
        let taken = file.allocated_bytes().map_err(|e| Error::io("look at", &from, e))?;
        let mut there = self.elsewhere(source, group, name);
        if let Some(other) = &there
            && !self.is_same(&file, &from, other)?
        {
            // The one of the two that doesn't count is set aside. Without a journal nothing tells.
            if listing.found.is_empty() {
                let why = format!("it is not the same as {}, which stays", from.display());
                return Err(Error::Unusable { path: other.clone(), why });
            }
            let counts = listing.found.iter().any(|f| f.path == from);
            strays::set_aside(&self.storage, if counts { other } else { &from })?;
            if !counts {
                return Ok(());
            }
            there = None;
        }
        let mut copy = None;
        if there.is_none() {
            let bytes = file.bytes().map_err(|e| Error::io("look at", &from, e))?;
            // Holes stay holes: what it takes now is what it will take.
            let to = self.grant(group, taken.min(bytes), false)?.dir;
            let copied = self.copy(&file, &from, &to, name);
            copied.inspect_err(|_| {
                let _ = self.storage.remove(&to.join(format!("{name}{DRAFT}")));
                self.uncount(&to, group, taken);
            })?;
            copy = Some(to);
        }
        let _one = lock(&self.renaming);
        let moved_to = copy.as_ref().map(|to| to.join(name)).or(there);
        if let Some(path) = &moved_to {
            self.note_place(group, path)?;
        }
        let gone = self.let_go(source, group, name);
        if let (Err(_), Some(to)) = (&gone, &copy)
            && self.storage.exists(&from)
        {
            // Who writes to it goes on where it was: no second one stays behind.
            self.note_place(group, &from)?;
            let _ = self.storage.remove(&to.join(name));
            self.uncount(to, group, taken);
        }
        gone?;
        self.change_member(source.uuid, |m| m.contents.lessen(group, taken, false));
        Ok(())
    }

    /// Has the journal's unit table say where a unit lies now.
    fn note_place(&self, group: &str, path: &Path) -> Result<()> {
        let header = table::header_of(&*self.storage, path);
        let header = header.map_err(|e| Error::io("read", path, e))?;
        let name = path.file_name().and_then(|n| FileName::parse(n.to_str()?));
        // Without a header that can be used it is found where it is.
        let (Some(header), Some(name)) = (header, name) else { return Ok(()) };
        table::note_made(&self.storage, &self.home.join(group), path, (name, &header))
    }

    /// Ends moves that were cut off between the copy's name and the source's end. Only before anybody
    /// writes: one of the two would grow then.
    pub(super) fn finish_moves(&self) {
        let draining: Vec<Source> = lock(&self.live)
            .members
            .iter()
            .filter(|m| m.serves() && m.state == MemberState::Draining)
            .map(|m| Source { uuid: m.uuid, dir: m.dir.clone() })
            .collect();
        for source in &draining {
            for group in survey::groups(&self.storage, &source.dir).unwrap_or_default() {
                let dir = source.dir.join(&group);
                let names = survey::names(&self.storage, &dir).unwrap_or_default();
                let Ok(listing) = self.listing(&group) else { continue };
                let twice = names.iter().filter(|name| {
                    let stray = |s: &Stray| s.path == dir.join(name) && !s.is_copy;
                    FileName::parse(name).is_some()
                        && !listing.strays.iter().any(stray)
                        && self.elsewhere(source, &group, name).is_some()
                });
                for name in twice {
                    if let Err(error) = self.move_file(source, &group, name, &listing) {
                        tracing::error!(unit = %dir.join(name).display(), %error, "on two members");
                    }
                }
            }
        }
    }

    /// The same file on another member: left by a move that was cut off.
    fn elsewhere(&self, source: &Source, group: &str, name: &str) -> Option<PathBuf> {
        let others = self.serving().into_iter().filter(|(uuid, _)| *uuid != source.uuid);
        others.map(|(_, dir)| dir.join(group).join(name)).find(|p| self.storage.exists(p))
    }

    fn uncount(&self, to: &Path, group: &str, bytes: u64) {
        if let Some((uuid, _, _)) = self.member_at(to) {
            self.change_member(uuid, |m| m.contents.lessen(group, bytes, false));
        }
    }

    /// Removes the source of a move; while somebody reads the journal it is held instead (I-7).
    fn let_go(&self, source: &Source, group: &str, name: &str) -> Result<()> {
        let dir = source.dir.join(group);
        let from = dir.join(name);
        let pin = self.storage.lock(&self.home.join(group).join("pin"), LockKind::Exclusive);
        let gone = match pin {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let held = dir.join(HELD_DIR);
                make_own_dir(&*self.storage, &held)
                    .and_then(|()| self.storage.rename(&from, &held.join(name)))
            }
            // Kept until the file is gone; without a journal there is nobody to read it.
            _pin => self.storage.remove(&from),
        };
        match gone {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &from, e)),
            _ => self.storage.sync_dir(&dir).map_err(|e| Error::io("sync directory", &dir, e)),
        }
    }

    /// Removes what is held on the member, if nobody reads the journal any more.
    fn sweep_held(&self, source: &Source, group: &str) {
        let held = source.dir.join(group).join(HELD_DIR);
        let Ok(names) = survey::names(&self.storage, &held) else { return };
        if names.is_empty() {
            return;
        }
        if let Ok(_pin) = self.storage.lock(&self.home.join(group).join("pin"), LockKind::Exclusive)
        {
            for name in names {
                // What stays is tried again at the next step.
                let _ = self.storage.remove(&held.join(name));
            }
        }
    }

    /// Ends the membership of a member without units: what is left goes, then its entry, then its
    /// word, which alone makes a directory no less empty.
    fn end(&self, source: &Source, groups: &[String]) -> Result<()> {
        let mut dirs: Vec<_> = groups.iter().map(|g| source.dir.join(g)).collect();
        dirs.push(source.dir.join(SPARE_DIR));
        for dir in &dirs {
            for name in survey::names(&self.storage, dir).unwrap_or_default() {
                // What was set aside stays, in a directory of its own.
                if name != strays::STRAY_DIR {
                    let _ = self.storage.remove(&dir.join(name));
                }
            }
            let _ = self.storage.remove_dir(&dir.join(HELD_DIR));
            let _ = self.storage.remove_dir(dir);
        }
        for group in survey::groups(&self.storage, &self.home).unwrap_or_default() {
            tails::forget(&self.storage, &self.home.join(group), source.uuid);
        }
        self.forget(source.uuid)?;
        let path = source.dir.join(MEMBER_FILE);
        if let Err(error) = self.storage.remove(&path) {
            tracing::warn!(path = %path.display(), %error, "left behind");
        }
        Ok(())
    }

    /// Removes what a broken move left, on every member that serves.
    pub(super) fn clear_drafts(&self) {
        for (_, member) in self.serving() {
            for group in survey::groups(&self.storage, &member).unwrap_or_default() {
                let dir = member.join(group);
                let names = survey::names(&self.storage, &dir).unwrap_or_default();
                for name in names.iter().filter(|n| n.ends_with(DRAFT)) {
                    let _ = self.storage.remove(&dir.join(name));
                }
            }
        }
    }
}
