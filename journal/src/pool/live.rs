//! The pool of a running writer: which members serve, what lies on them, its epoch.
//!
//! What always holds:
//! * the caller is the one writer of the state directory (it holds its lock);
//! * `live` is never locked over input or output: a member that hangs holds nobody up who doesn't
//!   need it;
//! * a member in trouble gets nothing new until it is judged trusted again.

use super::description::{Description, MemberEntry, MemberFile, MemberState};
use super::placement::Candidate;
use super::survey::{self, Contents};
use super::trust::{Home, Standing, judge, place_of};
use crate::error::{Error, Result};
use crate::format::VERSION;
use crate::storage::{Room, Storage};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Shortest time between two epochs, but for changes of the members.
const BUMP_EVERY: Duration = Duration::from_secs(60);
/// How often the files are counted.
const SURVEY_EVERY: Duration = Duration::from_secs(30);
/// How long a member that took a write counts as one that does.
const WRITTEN_LIMIT: Duration = Duration::from_secs(5);
/// A member that doesn't answer for this long is not asked for room.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// A pool that is open for writing.
#[derive(Debug)]
pub struct Pool {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) home: PathBuf,
    pub(super) live: Mutex<Live>,
    /// Held while the description changes.
    changing: Mutex<()>,
    /// Held while a unit's file changes its name, so that moving and releasing don't cross.
    pub(super) renaming: Mutex<()>,
}

#[derive(Debug)]
pub(super) struct Live {
    /// As it was written last; `None`: the home alone.
    pub described: Option<Description>,
    pub members: Vec<Member>,
    /// Hard limits of groups, in bytes.
    pub limits: BTreeMap<String, u64>,
    /// Sizes of units that were asked for: spares of others are of no use.
    pub unit_sizes: BTreeSet<u64>,
    /// Why the drain waits.
    pub drain_waits: Option<String>,
    /// Files that are no units, as of the last count; `None`: they were not looked for yet.
    pub strays: Option<Vec<super::status::StrayFile>>,
    bumped: Option<Instant>,
    surveyed: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub uuid: Uuid,
    pub dir: PathBuf,
    pub limit_bytes: Option<u64>,
    pub state: MemberState,
    pub standing: Standing,
    pub room: Room,
    pub contents: Contents,
    /// Device and inode of its `member.json`, where there are such.
    place: Option<(u64, u64)>,
    /// Since when it is being looked at.
    probing: Option<Instant>,
    /// When it took a write last.
    written: Option<Instant>,
}

impl Member {
    pub fn serves(&self) -> bool {
        matches!(self.standing, Standing::Trusted(_))
    }

    /// The pool's epoch that it has, as far as it serves.
    fn epoch(&self) -> u64 {
        if let Standing::Trusted(epoch) = self.standing { epoch } else { 0 }
    }

    pub fn takes_units(&self) -> bool {
        let answers = self.probing.is_none_or(|since| since.elapsed() < PROBE_LIMIT);
        self.serves() && answers && self.state == MemberState::Active
    }

    pub fn candidate(&self, unit_bytes: u64) -> Candidate {
        let fitting = self.contents.spares.iter().filter(|s| s.bytes == unit_bytes);
        Candidate {
            takes_units: self.takes_units(),
            room: self.room,
            used_bytes: self.contents.used_bytes(),
            limit_bytes: self.limit_bytes,
            spares: fitting.count() as u64,
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves plain values: they are whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const NO_ROOM: Room = Room { total_bytes: 0, free_bytes: 0 };

impl Pool {
    /// The pool of a home as it is, without changing anything: to look at.
    ///
    /// # Errors
    /// Its description is lost or damaged, or a newer program wrote it, or the home can't be read.
    pub fn look(storage: &Arc<dyn Storage>, home: &Path) -> Result<Self> {
        let described = match Home::read(storage, home)? {
            Home::Alone => None,
            Home::Described(described) => Some(described),
            Home::Lost(why) => {
                let why = format!(
                    "the pool's description is lost ({why}); what lies in the home can be \
                     restored; `afterimage pool add DIR...` with all members that were there \
                     makes it anew"
                );
                return Err(Error::Unusable { path: home.to_owned(), why });
            }
        };
        Ok(Self::of(storage, home, described))
    }

    pub(super) fn of(
        storage: &Arc<dyn Storage>,
        home: &Path,
        described: Option<Description>,
    ) -> Self {
        let pool = Self {
            storage: Arc::clone(storage),
            home: home.to_owned(),
            live: Mutex::new(Live {
                described: None,
                members: Vec::new(),
                limits: BTreeMap::new(),
                unit_sizes: BTreeSet::new(),
                drain_waits: None,
                strays: None,
                bumped: None,
                surveyed: None,
            }),
            changing: Mutex::new(()),
            renaming: Mutex::new(()),
        };
        pool.adopt(described);
        pool
    }

    /// Opens the pool of a home for writing: starts an epoch of it, so that whatever was copied
    /// before is older, and ends moves that were broken off.
    ///
    /// # Errors
    /// As [`Pool::look`]; a member is ahead of the home, which is an old copy then; the home can't
    /// be written.
    pub fn open(storage: &Arc<dyn Storage>, home: &Path) -> Result<Arc<Self>> {
        let pool = Self::look(storage, home)?;
        let ahead = lock(&pool.live).members.iter().find_map(|m| match &m.standing {
            Standing::Ahead(why) => Some(format!("{} {why}", m.dir.display())),
            _ => None,
        });
        if let Some(why) = ahead {
            let why = format!(
                "member {why}. This home is an old copy: nothing is written to it, so that the \
                 newer one isn't lost. Put the newer home back; what is here can be restored"
            );
            return Err(Error::Unusable { path: home.to_owned(), why });
        }
        pool.move_old_spares();
        pool.clear_drafts();
        if let Err(error) = pool.purge() {
            tracing::warn!(%error, "what purged groups left on members stays for now");
        }
        pool.finish_moves();
        pool.advance(|_| Ok(()))?;
        Ok(Arc::new(pool))
    }

    /// Takes over a description: members that stay keep what is known of them.
    pub(super) fn adopt(&self, described: Option<Description>) {
        let alone = Description::of_home(Uuid::nil(), Uuid::nil(), 0);
        let entries = described.as_ref().unwrap_or(&alone).members.clone();
        let mut known = std::mem::take(&mut lock(&self.live).members);
        let mut members = Vec::new();
        for entry in &entries {
            let dir = Description::dir_of(&self.home, entry);
            // The home gets its identity with the first description.
            let at = known.iter().position(|m| m.uuid == entry.uuid || m.dir == dir);
            let mut member = match at {
                Some(at) => known.swap_remove(at),
                None => self.meet(described.as_ref(), entry, &dir),
            };
            if member.dir != dir || member.uuid != entry.uuid {
                member = self.meet(described.as_ref(), entry, &dir);
            }
            member.limit_bytes = entry.limit_bytes;
            member.state = entry.state;
            members.push(member);
        }
        let mut live = lock(&self.live);
        live.members = members;
        live.described = described;
    }

    /// Looks at a member for the first time.
    fn meet(&self, described: Option<&Description>, entry: &MemberEntry, dir: &Path) -> Member {
        let standing = match described {
            None => Standing::Trusted(0),
            Some(described) => match judge(&self.storage, &self.home, described, entry) {
                // The first description is written before the home's own word.
                Standing::Away(_) if dir == self.home => Standing::Trusted(entry.epoch),
                standing => standing,
            },
        };
        let mut member = Member {
            uuid: entry.uuid,
            dir: dir.to_owned(),
            limit_bytes: entry.limit_bytes,
            state: entry.state,
            standing,
            room: NO_ROOM,
            contents: Contents::default(),
            place: None,
            probing: None,
            written: None,
        };
        if member.serves() {
            let looked = survey::survey(&self.storage, dir)
                .and_then(|contents| Ok((contents, self.storage.room(dir)?)));
            match looked {
                Ok((contents, room)) => (member.contents, member.room) = (contents, room),
                Err(e) => member.standing = Standing::Away(format!("can't be read ({e})")),
            }
            member.place = place_of(&self.storage, dir).ok().flatten();
        }
        member
    }

    /// Changes the description (or only its epoch): every member that serves takes the new epoch
    /// first, durably, then the home's description says so. A home alone has none to change.
    pub(super) fn advance(
        &self,
        change: impl FnOnce(&mut Description) -> Result<()>,
    ) -> Result<()> {
        let _one = lock(&self.changing);
        let (described, away) = {
            let live = lock(&self.live);
            // What a member was seen at counts, though a crash kept it out of the description.
            let mut described = live.described.clone();
            for entry in described.iter_mut().flat_map(|d| &mut d.members) {
                let member = live.members.iter().find(|m| m.uuid == entry.uuid);
                if let Some(Standing::Trusted(epoch)) = member.map(|m| &m.standing) {
                    entry.epoch = *epoch;
                }
            }
            let away = live.members.iter().filter(|m| !m.serves()).map(|m| m.uuid);
            (described, away.collect::<BTreeSet<_>>())
        };
        let Some(mut next) = described else { return Ok(()) };
        change(&mut next)?;
        next.epoch += 1;
        let mut failed = Vec::new();
        for entry in next.members.iter_mut().filter(|e| !away.contains(&e.uuid)) {
            let dir = Description::dir_of(&self.home, entry);
            let (pool, member, epoch) = (next.pool, entry.uuid, next.epoch);
            match (MemberFile { format: VERSION, pool, member, epoch }).write(&self.storage, &dir) {
                Ok(()) => (entry.epoch, entry.tried) = (epoch, None),
                Err(e) if dir == self.home => return Err(e),
                Err(e) => {
                    entry.tried = Some(epoch);
                    failed.push((entry.uuid, format!("can't be written ({e})")));
                }
            }
        }
        next.write(&self.storage, &self.home)?;
        let epoch = next.epoch;
        self.adopt(Some(next));
        for (uuid, why) in failed {
            self.mark(uuid, Standing::Away(why));
        }
        let places: Vec<_> = self.serving();
        for (uuid, dir) in places {
            let place = place_of(&self.storage, &dir).ok().flatten();
            self.change_member(uuid, |m| {
                m.place = place;
                m.standing = Standing::Trusted(epoch);
                m.written = Some(Instant::now());
            });
        }
        lock(&self.live).bumped = Some(Instant::now());
        Ok(())
    }

    /// Starts an epoch, at most once a minute: what is copied before is older from then on. To be
    /// called whenever something was written that an old copy must not pass for.
    ///
    /// # Errors
    /// The home can't be written. A member that can't be is out of service from then on.
    pub fn bump(&self) -> Result<()> {
        let due = lock(&self.live).bumped.is_none_or(|at| at.elapsed() >= BUMP_EVERY);
        if due { self.advance(|_| Ok(())) } else { Ok(()) }
    }

    /// Writes to every member, which shows those that can't be written any more.
    ///
    /// # Errors
    /// As [`Pool::bump`].
    pub fn check(&self) -> Result<()> {
        self.tend();
        self.advance(|_| Ok(()))
    }

    /// Looks at every member: one that is gone or was swapped is taken out of service, one that
    /// came back as it went is taken in again. Counts the files now and then. Blocking; to be
    /// called every second or so.
    pub fn tend(&self) {
        let (members, count) = {
            let mut live = lock(&self.live);
            let count = live.surveyed.is_none_or(|at| at.elapsed() >= SURVEY_EVERY);
            if count {
                live.surveyed = Some(Instant::now());
            }
            let members: Vec<_> =
                live.members.iter().map(|m| (m.uuid, m.dir.clone(), m.serves())).collect();
            (members, count)
        };
        let mut returned = false;
        for (uuid, dir, served) in members {
            self.change_member(uuid, |m| m.probing = Some(Instant::now()));
            let serves = self.probe(uuid);
            self.change_member(uuid, |m| m.probing = None);
            if serves && (count || !served) {
                self.recount(uuid, &dir);
            }
            returned |= serves && !served;
        }
        if count {
            let strays = self.find_strays();
            lock(&self.live).strays = Some(strays);
        }
        if returned && let Err(error) = self.advance(|_| Ok(())).and_then(|()| self.purge()) {
            tracing::warn!(%error, "a member that is back is not taken in whole");
        }
    }

    /// Counts the files of a member anew.
    pub(super) fn recount(&self, uuid: Uuid, dir: &Path) {
        match survey::survey(&self.storage, dir) {
            Ok(contents) => self.change_member(uuid, |m| m.contents = contents),
            Err(e) => self.mark(uuid, Standing::Away(format!("can't be read ({e})"))),
        }
    }

    /// Whether a member still serves: the same file system with the same word on it, or one that
    /// can be trusted all the same.
    pub(super) fn probe(&self, uuid: Uuid) -> bool {
        let (described, dir, place, served) = {
            let live = lock(&self.live);
            let Some(member) = live.members.iter().find(|m| m.uuid == uuid) else { return false };
            let place = if member.serves() { member.place } else { None };
            (live.described.clone(), member.dir.clone(), place, member.serves())
        };
        let entry = described.as_ref().and_then(|d| d.members.iter().find(|e| e.uuid == uuid));
        let found = place_of(&self.storage, &dir).ok().flatten();
        let standing = match (&described, entry) {
            (Some(described), Some(entry)) if found.is_none() || found != place => {
                judge(&self.storage, &self.home, described, entry)
            }
            _ => Standing::Trusted(entry.map_or(0, |e| e.epoch)),
        };
        let room = self.storage.room(&dir);
        let standing = match (standing, &room) {
            (Standing::Trusted(_), Err(e)) => Standing::Away(format!("can't be read ({e})")),
            // What can be read from memory may not be there any more.
            (Standing::Trusted(epoch), _) if !served => match self.try_write(uuid, &dir, epoch) {
                Ok(()) => Standing::Trusted(epoch),
                Err(e) => Standing::Away(format!("can't be written ({e})")),
            },
            (standing, _) => standing,
        };
        let serves = matches!(standing, Standing::Trusted(_));
        self.mark(uuid, standing);
        let found = if served { found } else { place_of(&self.storage, &dir).ok().flatten() };
        self.change_member(uuid, |m| {
            m.room = room.unwrap_or(NO_ROOM);
            if serves {
                m.place = found;
            }
        });
        serves
    }

    /// Whether a member that is to get a unit takes writes; one that doesn't is out of service.
    pub(super) fn takes_writes(&self, uuid: Uuid) -> bool {
        let found = {
            let live = lock(&self.live);
            // A home alone has no word of its own, and nothing else to turn to.
            let asked = live.members.iter().filter(|_| live.members.len() > 1);
            let member = asked.clone().find(|m| m.uuid == uuid);
            let fresh = |at: Instant| at.elapsed() < WRITTEN_LIMIT;
            member.filter(|m| !m.written.is_some_and(fresh)).map(|m| (m.dir.clone(), m.epoch()))
        };
        let Some((dir, epoch)) = found else { return true };
        let tried = self.try_write(uuid, &dir, epoch);
        let place = place_of(&self.storage, &dir).ok().flatten();
        match tried {
            Ok(()) => self.change_member(uuid, |m| m.place = place),
            Err(ref e) => self.mark(uuid, Standing::Away(format!("can't be written ({e})"))),
        }
        tried.is_ok()
    }

    /// Writes a member's word again, as it is.
    fn try_write(&self, uuid: Uuid, dir: &Path, epoch: u64) -> Result<()> {
        let _one = lock(&self.changing);
        let described = lock(&self.live).described.clone();
        let Some(described) = described else { return Ok(()) };
        let now = lock(&self.live).members.iter().find(|m| m.uuid == uuid).map(Member::epoch);
        let (pool, epoch) = (described.pool, now.unwrap_or(epoch).max(epoch));
        MemberFile { format: VERSION, pool, member: uuid, epoch }.write(&self.storage, dir)?;
        self.change_member(uuid, |m| m.written = Some(Instant::now()));
        Ok(())
    }

    /// Notes what a member is worth now, and says so when that changed.
    pub(super) fn mark(&self, uuid: Uuid, standing: Standing) {
        self.change_member(uuid, |m| {
            let member = m.dir.display();
            match (m.serves(), standing.why()) {
                (true, Some(why)) => tracing::error!(%member, "a member of the pool {why}"),
                (false, None) => tracing::info!(%member, "a member of the pool is back"),
                _ => {}
            }
            m.standing = standing;
        });
    }

    pub(super) fn change_member(&self, uuid: Uuid, change: impl FnOnce(&mut Member)) {
        if let Some(member) = lock(&self.live).members.iter_mut().find(|m| m.uuid == uuid) {
            change(member);
        }
    }
}
