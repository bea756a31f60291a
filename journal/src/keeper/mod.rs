//! Keeps a journal within its window and its limits: one bounded step at a time, beside capture.
//!
//! ```text
//!  unit sealed ─► catalogue ─► level runs ─► decide ─► base run, kept positions ─► both durable
//!                                              ▲                                        │
//!                              held files ◄── give up what was replaced ◄── merge a group
//! ```
//!
//! What always holds:
//! * the caller has the journal open for writing, and is the only one who keeps it;
//! * what stays restorable is durable before anything that only the rest needs is merged, a merged unit
//!   and the catalogue that names it before what it replaces is given up (I-8): killed between any two
//!   calls, the next keeper goes on;
//! * only units that are sealed, settled and sound are touched; what is damaged stays, and is named.

mod advance;
mod ground;
mod hole;
mod merging;
mod occupancy;
mod rebuild;
mod rows;
mod runs;
mod sight;
mod thinning;
mod thread;

pub use ground::{Ground, Home, PoolGround};
pub use occupancy::{Occupancy, ScrubProgress};
pub use rebuild::{Rebuilt, rebuild};
pub use thread::{KeeperThread, Shared};

use crate::Seq;
use crate::arrivals::Arrivals;
use crate::catalogue::{self, Catalogue, Extended, epoch_start, units_of};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::format::cipher::{Cipher, Key};
use crate::format::meta::EpochStart;
use crate::format::unit_header::UnitHeader;
use crate::history::CheckpointAt;
use crate::key;
use crate::layout::{self, Identity};
use crate::merge::{Pace, release};
use crate::pool::{FileName, Found, Places};
use crate::ring;
use crate::scrub::{Finding, Scrub};
use crate::storage::{Access, Storage};
use crate::window::age::held_ns;
use crate::window::limits::{DEAD_PERMILLE, MOVING_UNITS};
use crate::window::{Actions, Capture, Edge, Limits, Usage, decide};
use runs::Runs;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most findings of damage that are kept to be shown.
const DAMAGE_SHOWN_MAX: usize = 32;
/// Sealed units behind one that can't be taken into the catalogue, from which on that is told: the newest few
/// are seldom in it at once.
const WAITING_UNITS: u64 = 8;

const NO_KEY: &str = "the journal is encrypted and its key is not here: nothing is merged";

/// What a keeper works with.
#[derive(Clone)]
pub struct Setup {
    /// Where everything lies.
    pub storage: Arc<dyn Storage>,
    /// The journal's directory.
    pub dir: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where merged units go, and files that are given up.
    pub ground: Arc<dyn Ground>,
    /// How fast merging may go.
    pub pace: Arc<dyn Pace>,
    /// What the group may use, and keeps.
    pub limits: Limits,
    /// The key of an encrypted journal; without it nothing is merged, and everything else is done.
    pub key: Option<Key>,
}

/// See the module.
pub struct Keeper {
    setup: Setup,
    identity: Identity,
    cipher: Cipher,
    places: Places,
    catalogue: Catalogue,
    /// The catalogue has more than its file.
    unsaved: bool,
    /// Checkpoints with memory whose record was in no sealed unit when they were looked for.
    unsealed: Vec<CheckpointAt>,
    /// Highest number of a unit that was said to be sealed, and the one that was tried last.
    sealed: u64,
    refused_at: u64,
    /// The same when lost units were looked for last, which reads whole units.
    looked_at: u64,
    /// Units that were found lost at the last look, and whether nothing was left to do since.
    suspected: Option<((u64, u64), bool)>,
    /// Why the catalogue, and with it the window, does not get on.
    stands_still: Option<String>,
    /// Headers of units behind the catalogue, by number.
    behind: BTreeMap<u64, UnitHeader>,
    /// When what arrived; `None`: the journal is no site's.
    arrivals: Option<Arrivals>,
    runs: Runs,
    /// Groups that are left alone, by first and last number, and why.
    left_alone: BTreeMap<(u64, u64), String>,
    /// Whether capture is stopped for space.
    stopped: bool,
    actions: Actions,
    scrub: Scrub,
    occupancy: Occupancy,
}

impl Keeper {
    /// Begins to keep a journal that the caller has open for writing; clears away what somebody left
    /// who was killed.
    ///
    /// # Errors
    /// The journal can't be read, or what is left over can't be removed.
    pub fn open(setup: Setup) -> Result<Self> {
        let identity = layout::read_identity_in(setup.storage.as_ref(), &setup.dir)?;
        let cipher = key::cipher(&setup.dir, &identity, setup.key.as_ref())?;
        let places = Places::of(&setup.storage, &setup.dir)?;
        check_members(&places, &setup.dir)?;
        release::remove_drafts(&setup.storage, places.dirs())?;
        let mut catalogue = catalogue_of(&setup, &identity, &places)?;
        // Readers that began before know the units that a merged one replaced: under the pin.
        catalogue::save(setup.storage.as_ref(), &setup.dir, &identity, &mut catalogue)?;
        let left = release::leftovers(&places.units()?);
        release::release(&setup.storage, &setup.dir, setup.ground.as_ref(), &left)?;
        let mut runs = Runs::open(&setup.storage, &setup.dir, identity.group)?;
        runs.drop_ahead(catalogue.floor())?;
        let actions = Actions {
            floor: None,
            edge: None,
            dead_permille: DEAD_PERMILLE,
            alarm: None,
            capture: Capture::Go,
        };
        let mut keeper = Self {
            sealed: catalogue.last_unit(),
            setup,
            identity,
            cipher,
            places,
            catalogue,
            unsaved: false,
            unsealed: Vec::new(),
            refused_at: 0,
            looked_at: 0,
            suspected: None,
            stands_still: None,
            behind: BTreeMap::new(),
            arrivals: None,
            runs,
            left_alone: BTreeMap::new(),
            stopped: false,
            actions,
            scrub: Scrub::default(),
            occupancy: Occupancy::default(),
        };
        keeper.evaluate()?;
        Ok(keeper)
    }

    /// What the group may use and keeps from now on; nothing is copied anew for it.
    pub fn set(&mut self, limits: Limits) {
        self.setup.limits = limits;
    }

    /// A unit was sealed.
    pub fn sealed(&mut self, number: u64) {
        self.sealed = self.sealed.max(number);
    }

    /// Whether capture is stopped for space.
    pub fn set_stopped(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// What is used and held, as of the last step.
    #[must_use]
    pub fn occupancy(&self) -> &Occupancy {
        &self.occupancy
    }

    /// What was decided last.
    #[must_use]
    pub fn actions(&self) -> &Actions {
        &self.actions
    }

    /// Does one bounded thing of all that is to be done; `false`: there was nothing, until time goes
    /// on, a unit is sealed, or the limits change.
    ///
    /// # Errors
    /// Something could not be read or written; what was done so far stands, and the next step may
    /// try again.
    pub fn step(&mut self) -> Result<bool> {
        self.check_home()?;
        if self.lacks_units()? {
            self.reopen()?;
            return Ok(true);
        }
        match self.step_once() {
            Err(e) if self.lost_its_header(&e) => self.reopen().map(|()| true),
            done => done,
        }
    }

    fn step_once(&mut self) -> Result<bool> {
        if self.take_sealed()?
            || self.pass_hole()?
            || self.runs.build_one(&self.catalogue, &self.epochs())?
        {
            return Ok(true);
        }
        self.evaluate()?;
        let moved = self.advance_floor()? || self.thin()? || self.give_up_runs()?;
        let done = moved || self.count_thinned()? || self.merge_one()?;
        if done {
            self.evaluate()?;
            return Ok(true);
        }
        let ground = self.setup.ground.as_ref();
        let (storage, dir) = (&self.setup.storage, &self.setup.dir);
        self.occupancy.pinned_bytes =
            release::retry_held(storage, dir, self.places.dirs(), ground)?;
        if let Some((_, has_waited)) = &mut self.suspected {
            *has_waited = true;
        }
        Ok(false)
    }

    /// Makes one run that is missing, the base run at the present edge too; `false`: none is.
    fn build_runs(&mut self) -> Result<bool> {
        Ok(self.runs.build_one(&self.catalogue, &self.epochs())? || self.advance_floor()?)
    }

    /// Reads on through sealed units to find rot, at most so many bytes.
    pub fn scrub(&mut self, budget_bytes: u64) {
        let found =
            self.scrub.step(&self.setup.storage, &self.identity, &self.catalogue, budget_bytes);
        let journal = self.setup.dir.display();
        match found {
            Some(Finding::Damage(what)) => {
                tracing::error!(%journal, what, "scrubbing found damage");
                self.note_damage(what);
            }
            Some(Finding::Unread(what)) => {
                tracing::error!(%journal, what, "scrubbing could not read a unit");
                note(&mut self.occupancy.unread, what);
            }
            None => {}
        }
        let before = self.occupancy.scrub.passes;
        self.occupancy.scrub = self.scrub.progress(&self.catalogue);
        if self.occupancy.scrub.passes > before {
            // What still can't be read is found again.
            self.occupancy.unread.clear();
        }
    }

    fn note_damage(&mut self, what: String) {
        note(&mut self.occupancy.damage, what);
    }

    /// Adds sealed units to the catalogue, and saves it when there is none left.
    fn take_sealed(&mut self) -> Result<bool> {
        let storage = self.setup.storage.as_ref();
        let next = self.catalogue.last_unit() + 1;
        if next <= self.sealed && self.refused_at != self.sealed {
            let found = self.places.find(FileName::Unit(next));
            let found = found.map(|path| Found { name: FileName::Unit(next), path });
            // At a site, merged units come, too.
            let found = match found {
                Some(found) => Some(found),
                None => units_of(&self.places)?.into_iter().find(|f| f.name.numbers().0 == next),
            };
            let extended = match &found {
                Some(found) => match self.catalogue.extend(storage, &self.identity, found) {
                    // What is merged already, and what lies before it, is kept up all the same.
                    Err(e @ Error::Unusable { .. }) => Extended::NotYet(e.to_string()),
                    extended => extended?,
                },
                None => Extended::NotYet("it is not there".into()),
            };
            match extended {
                Extended::Added => (self.unsaved, self.stands_still) = (true, None),
                // Its numbers may go on in the next unit; then that one's seal asks again.
                Extended::NotYet(why) => {
                    tracing::debug!(unit = next, why, "not in the catalogue yet");
                    self.refused_at = self.sealed;
                    self.stands_still = (self.sealed >= next + WAITING_UNITS).then(|| {
                        format!(
                            "nothing from unit {next} on is merged, and the journal grows: {why}; \
                             see `afterimage verify`"
                        )
                    });
                }
            }
            return Ok(true);
        }
        if self.unsaved {
            self.save()?;
            self.behind.retain(|number, _| *number > self.catalogue.last_unit());
            return Ok(true);
        }
        Ok(false)
    }

    fn save(&mut self) -> Result<()> {
        self.check_home()?;
        let storage = self.setup.storage.as_ref();
        catalogue::save(storage, &self.setup.dir, &self.identity, &mut self.catalogue)?;
        self.unsaved = false;
        Ok(())
    }

    /// All epochs that began, those of units behind the catalogue too.
    fn epochs(&self) -> Vec<EpochStart> {
        let mut epochs = self.catalogue.epochs.clone();
        for start in self.behind.values().filter_map(epoch_start) {
            if epochs.iter().all(|e| e.epoch != start.epoch) {
                epochs.push(start);
            }
        }
        epochs
    }

    /// Where the base ends. With a base run, its units are the base; without one, all units with nothing
    /// above its end.
    fn floor(&self) -> Option<Edge> {
        let seq = self.catalogue.floor();
        if seq == 0 {
            return None;
        }
        if let Some(base) = self.runs.base().filter(|b| b.span().last_seq == seq) {
            return Some(Edge { unit: base.span().last_unit, seq });
        }
        self.whole_units(seq)
    }

    /// The last unit before which no number is above this one.
    fn whole_units(&self, seq: Seq) -> Option<Edge> {
        let below = self.catalogue.units().iter().take_while(|u| u.last_seq <= seq);
        below.last().map(|u| Edge { unit: u.name.numbers().1, seq })
    }

    /// Looks at window and limits, and decides.
    fn evaluate(&mut self) -> Result<()> {
        // Members come and go.
        self.places = Places::of(&self.setup.storage, &self.setup.dir)?;
        check_members(&self.places, &self.setup.dir)?;
        let rows = self.rows()?;
        let now = self.now();
        let worth = self.groups(&rows, &now).into_iter();
        let worth = worth.filter(|g| !self.left_alone.contains_key(&(g.first, g.last)));
        let units: u64 = rows.iter().map(|r| r.file_bytes).sum();
        let runs = self.runs.bytes();
        let usage = Usage {
            used_bytes: units + runs + self.fixed_bytes(),
            // A run is made of others, which go when it is there.
            moving_bytes: MOVING_UNITS * self.identity.unit_bytes + runs,
            free_bytes: self.setup.ground.free_bytes(&self.setup.dir),
            unit_bytes: self.identity.unit_bytes,
            reclaimable_bytes: worth.map(|g| g.freed_bytes()).sum(),
            stopped: self.stopped,
            floor: self.floor(),
        };
        let before = self.actions.alarm.as_ref().map(|a| a.level);
        self.actions = decide(&usage, &rows, &self.setup.limits, &now);
        if let Some(alarm) = self.actions.alarm.as_ref().filter(|a| Some(a.level) != before) {
            tracing::warn!(journal = %self.setup.dir.display(), text = alarm.text, "space");
        }
        let edge = self.whole_units(self.catalogue.edge());
        self.occupancy.take(&usage, &self.setup.limits, &self.actions);
        self.occupancy.merging_waits = match self.cipher {
            Cipher::Locked => Some(NO_KEY.into()),
            _ => self.stands_still.clone(),
        };
        self.occupancy.take_reach(&self.catalogue, held_ns(&rows, &now, edge));
        Ok(())
    }

    /// Bytes on the disk of what does not grow with the history, or hardly: the ring, the catalogue.
    fn fixed_bytes(&self) -> u64 {
        let storage = self.setup.storage.as_ref();
        let allocated = |name| {
            let file = storage.open(&self.setup.dir.join(name), Access::Read).ok()?;
            file.allocated_bytes().ok()
        };
        [ring::NAME, catalogue::NAME].into_iter().filter_map(allocated).sum()
    }

    /// Where a unit lies now: it may have moved to another member.
    fn found(&self, name: FileName) -> Result<Found> {
        let path = self.places.find(name);
        path.map(|path| Found { name, path }).ok_or_else(|| {
            let why = format!("{name} is not there{}", self.places.missing_text());
            Error::Unusable { path: self.setup.dir.clone(), why }
        })
    }
}

/// Adds a finding to those that are shown.
fn note(findings: &mut Vec<String>, what: String) {
    if findings.len() < DAMAGE_SHOWN_MAX && !findings.contains(&what) {
        findings.push(what);
    }
}

/// The catalogue with every merged unit that is there: who wrote one may have been killed before the
/// catalogue followed.
fn catalogue_of(setup: &Setup, identity: &Identity, places: &Places) -> Result<Catalogue> {
    let storage = &setup.storage;
    let mut catalogue = Catalogue::open(storage, &setup.dir)?;
    let found = units_of(places)?;
    let knows = |c: &Catalogue, name| c.units().iter().any(|u| u.name == name);
    let wider = found.iter().filter(|f| matches!(f.name, FileName::Merged(..)));
    for found in wider {
        let covers = found.name.numbers().1 <= catalogue.last_unit();
        if covers && !knows(&catalogue, found.name) {
            catalogue.replace(storage.as_ref(), identity, found)?;
        }
    }
    let there = |name| found.iter().any(|f| f.name == name);
    match catalogue.units().iter().all(|u| there(u.name)) {
        true => Ok(catalogue),
        false => Catalogue::rebuild(storage, &setup.dir),
    }
}

/// What a missing unit says of others (that their numbers are void, for one) is not known: while a member
/// is away nothing is merged or given up.
fn check_members(places: &Places, dir: &Path) -> Result<()> {
    if places.missing().is_empty() {
        return Ok(());
    }
    let why =
        format!("nothing is merged while members of the pool are away{}", places.missing_text());
    Err(Error::Unusable { path: dir.to_owned(), why })
}
