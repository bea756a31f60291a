//! The journal's keeper: window and limits of a group, and whether a full journal has room again.
//!
//! What always holds: the keeper's thread runs only while this process holds the journal's lock: it is
//! started behind the journal's opening and stopped before the journal is let go of.

use super::Group;
use afterimage_journal::keeper::{Ground, Home, Keeper, KeeperThread, Occupancy, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::pool::{Allocate, Slot};
use afterimage_journal::window::{AlarmLevel, Limits};
use afterimage_journal::{Error, Journal, Result, layout};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most steps of making room before the journal is opened.
const STEPS_MAX: usize = 100_000;

/// See the module.
#[derive(Default)]
pub(super) struct Keeping(Mutex<State>);

/// Gives out no room for a unit when the keeper sees none.
pub(super) struct Limited {
    pub(super) inner: Arc<dyn Allocate>,
    pub(super) keeping: Arc<Keeping>,
}

impl fmt::Debug for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Allocate for Limited {
    fn allocate(&self, journal: &Path, unit_bytes: u64) -> Result<Slot> {
        // Not held over what the pool does.
        let occupancy = self.keeping.lock().thread.as_ref().map(|t| t.shared().occupancy());
        match occupancy {
            Some(full) if !full.has_room => {
                let why = full.alarm_text.unwrap_or_else(|| NO_ROOM.to_owned());
                Err(Error::NoRoom(why))
            }
            _ => self.inner.allocate(journal, unit_bytes),
        }
    }
}

const NO_ROOM: &str = "there is no room for its next unit";

#[derive(Default)]
struct State {
    /// `None`: not known yet, so nothing may be given up.
    limits: Option<Limits>,
    ground: Option<Arc<dyn Ground>>,
    thread: Option<KeeperThread>,
}

impl Keeping {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values, whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// Where merged units of this group go from the next opening on, and files that are given up.
    pub fn set_ground(&self, ground: Arc<dyn Ground>) {
        self.keeping.lock().ground = Some(ground);
    }

    /// Keeps the journal within these limits from now on; without a first call nothing is ever given
    /// up.
    pub fn keep(&self, limits: Limits) {
        let mut state = self.keeping.lock();
        state.limits = Some(limits.clone());
        if let Some(thread) = &state.thread {
            thread.shared().set(limits);
        }
        drop(state);
        let journal = self.lock().journal.clone();
        if let Some(journal) = journal {
            self.start_keeper(&journal);
        }
    }

    /// How far back the journal is to reach at its sites: as here, whatever space it takes there.
    pub(super) fn limits_at_sites(&self) -> Option<Limits> {
        let limits = self.keeping.lock().limits.clone()?;
        Some(Limits { limit_bytes: None, ..limits })
    }

    /// What the journal uses and holds; `None`: nothing is known yet.
    #[must_use]
    pub fn occupancy(&self) -> Option<Occupancy> {
        self.keeping.lock().thread.as_ref().map(|t| t.shared().occupancy())
    }

    /// Whether the journal has room for guests' memory: more than what is kept free for the writes that
    /// come next. What memory takes can't be given back before its time, as nothing older is left to go.
    ///
    /// # Errors
    /// It has none: what is, and what can be done.
    pub fn check_memory_room(&self) -> Result<()> {
        match self.occupancy() {
            Some(now) if now.alarm.as_deref() == Some(AlarmLevel::Full.name()) => {
                let why = now.alarm_text.unwrap_or_else(|| NO_ROOM.to_owned());
                Err(Error::NoRoom(format!(
                    "no memory is taken, so that captured writes have room: {why}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Why a guest has to be copied whole, if units of its journal were given up since it was level: told
    /// once. Blocking.
    pub fn units_lost(&self, guest: &str) -> Option<String> {
        let lost = self.occupancy()?.lost;
        if self.lock().lost_seen.get(guest).copied().unwrap_or(0) >= lost {
            return None;
        }
        // Where it can't be read now, the next look asks again.
        let history = self.journal().and_then(|j| j.history()).ok()?;
        self.lock().lost_seen.insert(guest.to_owned(), lost);
        let damage = history.damage.iter().find(|d| d.is_given_up && d.to.is_none())?;
        self.lock().damaged.insert(guest.to_owned());
        Some(format!("{}: its disks are copied whole", damage.what))
    }

    fn keeper_setup(&self, state: &State) -> Option<Setup> {
        let storage = Arc::clone(&self.options.storage);
        let home = || -> Arc<dyn Ground> { Arc::new(Home { storage: Arc::clone(&storage) }) };
        let ground = state.ground.clone().unwrap_or_else(home);
        Some(Setup {
            storage,
            dir: self.dir.clone(),
            clock: Arc::clone(&self.options.clock),
            ground,
            pace: Arc::new(Unpaced),
            // It was read when the journal was opened.
            key: self.secret.key().ok()?,
            limits: state.limits.clone()?,
        })
    }

    /// Begins to keep a journal that was just opened, once limits are known.
    pub(super) fn start_keeper(&self, journal: &Journal) {
        let mut state = self.keeping.lock();
        if state.thread.is_some() || journal.stopped().is_some() {
            return;
        }
        let Some(setup) = self.keeper_setup(&state) else { return };
        match KeeperThread::start(setup) {
            Ok(thread) => {
                let shared = thread.shared();
                journal.on_sealed(move |number| shared.sealed(number));
                state.thread = Some(thread);
            }
            Err(error) => tracing::error!(group = self.name, %error, "the window can't be kept"),
        }
    }

    /// Stops keeping; to be called before the journal is let go of.
    pub(super) fn stop_keeper(&self) {
        let thread = self.keeping.lock().thread.take();
        drop(thread);
    }

    /// Whether a journal that stopped for space has room again; its keeper goes on making some
    /// meanwhile.
    ///
    /// # Errors
    /// It has none: what is, and what can be done.
    pub(super) fn check_room(&self, journal: &Journal) -> Result<()> {
        let state = self.keeping.lock();
        let Some(thread) = &state.thread else { return Ok(()) };
        let shared = thread.shared();
        shared.set_stopped(true);
        let occupancy = shared.occupancy();
        if occupancy.stopped && occupancy.has_room {
            return Ok(());
        }
        let why = occupancy.alarm_text.unwrap_or_else(|| NO_ROOM.to_owned());
        Err(Error::Stopped { last_seq: journal.head(), why, space: true })
    }

    /// Makes room in a journal that can't be opened for want of it.
    pub(super) fn make_room(&self) -> Result<()> {
        let Some(setup) = self.keeper_setup(&self.keeping.lock()) else { return Ok(()) };
        let _lock = layout::take_lock(&self.dir)?;
        let mut keeper = Keeper::open(setup)?;
        keeper.set_stopped(true);
        for _ in 0..STEPS_MAX {
            if !keeper.step()? {
                break;
            }
        }
        Ok(())
    }
}
