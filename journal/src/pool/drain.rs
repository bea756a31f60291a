//! Emptying a member: its units go to the others, one at a time, while capture goes on.
//!
//! ```text
//! sealed unit ──copy──► draft on another member ──verified, synced──► its name there ──► source gone
//! ```
//!
//! What always holds: a unit is there whole under its name at every moment, on one member or, the
//! same, on two; its source goes only when the copy was read back and is durable, and only when
//! nobody reads the journal (else it is held). Killed anywhere, it goes on where it was.

use super::description::{MEMBER_FILE, MemberState};
use super::live::{Pool, lock};
use super::places::FileName;
use super::survey::{self, HELD_DIR, SPARE_DIR};
use super::tails;
use crate::error::{Error, ErrorKind, Result};
use crate::format::index::{FOOTER_BYTES, Footer};
use crate::format::unit_header::{BLOCK_BYTES, UnitHeader};
use crate::storage::{Access, LockKind, StoredFile};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// How the name of a draft of a move ends.
const DRAFT: &str = ".moved.tmp";
/// What is copied at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Zeroes of this length stay holes.
const HOLE_BYTES: usize = 64 << 10;

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

/// Whether a journal's unit of this number may still be written: asked for those without a seal.
pub type InUse<'a> = &'a dyn Fn(&str, u64) -> bool;

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
        left.files += survey::names(&self.storage, &dir.join(HELD_DIR)).map_or(0, |n| n.len());
        let named = names.iter().filter_map(|n| Some((n, FileName::parse(n)?.numbers().1)));
        for (name, number) in named {
            let from = dir.join(name);
            match self.is_sealed(&from).map(|sealed| sealed || !in_use(group, number)) {
                Ok(true) => {}
                Ok(false) => {
                    if !left.open.iter().any(|g| g == group) {
                        left.open.push(group.to_owned());
                    }
                    continue;
                }
                // Released in between.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io("read", &from, e)),
            }
            match self.move_file(source, group, name) {
                Ok(()) => return Ok(Some(DrainStep::Moved(from))),
                Err(e) if e.kind() == ErrorKind::FreeSpace => left.waits = Some(e.to_string()),
                Err(Error::Io { source: e, .. }) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
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

    fn move_file(&self, source: &Source, group: &str, name: &str) -> Result<()> {
        let from = source.dir.join(group).join(name);
        let file =
            self.storage.open(&from, Access::Read).map_err(|e| Error::io("open", &from, e))?;
        let taken = file.allocated_bytes().map_err(|e| Error::io("look at", &from, e))?;
        let there = self.elsewhere(source, group, name);
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
        } else if let Some(there) = &there {
            self.check_same(&file, &from, there)?;
        }
        let _one = lock(&self.renaming);
        let gone = self.let_go(source, group, name);
        if let (Err(_), Some(to)) = (&gone, &copy)
            && self.storage.exists(&from)
        {
            // Who writes to it goes on where it was: no second one stays behind.
            let _ = self.storage.remove(&to.join(name));
            self.uncount(to, group, taken);
        }
        gone?;
        self.change_member(source.uuid, |m| m.contents.lessen(group, taken, false));
        Ok(())
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
                let twice = names.iter().filter(|name| {
                    FileName::parse(name).is_some()
                        && self.elsewhere(source, &group, name).is_some()
                });
                for name in twice {
                    if let Err(error) = self.move_file(source, &group, name) {
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

    /// Copies a file into a directory, reads it back, and gives it its name.
    fn copy(&self, file: &Arc<dyn StoredFile>, from: &Path, to: &Path, name: &str) -> Result<()> {
        let draft = to.join(format!("{name}{DRAFT}"));
        let written = self
            .storage
            .open(&draft, Access::Replace)
            .map_err(|e| Error::io("create", &draft, e))?;
        let bytes = file.bytes().map_err(|e| Error::io("look at", from, e))?;
        written.set_bytes(bytes).map_err(|e| Error::io("create", &draft, e))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < bytes {
            let got = file.read_at(&mut chunk, at).map_err(|e| Error::io("read", from, e))?;
            if got == 0 {
                return Err(Error::io("read", from, io::ErrorKind::UnexpectedEof));
            }
            for (i, piece) in chunk[..got].chunks(HOLE_BYTES).enumerate() {
                if piece.iter().any(|b| *b != 0) {
                    written
                        .write_all_at(piece, at + (i * HOLE_BYTES) as u64)
                        .map_err(|e| Error::io("write", &draft, e))?;
                }
            }
            at += got as u64;
        }
        written.sync_data().map_err(|e| Error::io("sync", &draft, e))?;
        self.check_same(file, from, &draft)?;
        let _one = lock(&self.renaming);
        if !self.storage.exists(from) {
            return Err(Error::io("find", from, io::ErrorKind::NotFound));
        }
        let path = to.join(name);
        self.storage.rename(&draft, &path).map_err(|e| Error::io("rename to", &path, e))?;
        self.storage.sync_dir(to).map_err(|e| Error::io("sync directory", to, e))
    }

    /// Reads both and compares.
    fn check_same(&self, file: &Arc<dyn StoredFile>, from: &Path, to: &Path) -> Result<()> {
        let other = self.storage.open(to, Access::Read).map_err(|e| Error::io("open", to, e))?;
        let (mut a, mut b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut at = 0;
        loop {
            let got = file.read_at(&mut a, at).map_err(|e| Error::io("read", from, e))?;
            let got_b = other.read_at(&mut b, at).map_err(|e| Error::io("read", to, e))?;
            if a[..got] != b[..got_b] {
                let why = format!("it is not the same as {}, which stays", from.display());
                return Err(Error::Unusable { path: to.to_owned(), why });
            }
            if got == 0 {
                return Ok(());
            }
            at += got as u64;
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
                self.storage
                    .make_dir(&held)
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
                let _ = self.storage.remove(&dir.join(name));
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

    /// Deletes what a journal has on the members but the home, after it is gone from there.
    ///
    /// # Errors
    /// A member can't be written.
    pub fn purge(&self, group: &str) -> Result<()> {
        for (uuid, member) in self.serving().into_iter().filter(|(_, d)| *d != self.home) {
            let dir = member.join(group);
            if !self.storage.exists(&dir) {
                continue;
            }
            let doomed = member.join(format!(".purged-{group}-{}", Uuid::new_v4()));
            self.storage.rename(&dir, &doomed).map_err(|e| Error::io("rename", &dir, e))?;
            for dir in [doomed.join(HELD_DIR), doomed.clone()] {
                for name in survey::names(&self.storage, &dir).unwrap_or_default() {
                    let _ = self.storage.remove(&dir.join(name));
                }
                let _ = self.storage.remove_dir(&dir);
            }
            self.change_member(uuid, |m| m.contents.groups.retain(|name, _| name != group));
        }
        Ok(())
    }
}
