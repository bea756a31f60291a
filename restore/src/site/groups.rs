//! All groups of a site, by name.

use super::group::{Group, GroupSink};
use super::place::StatePlace;
use super::settings::{self, Settings};
use super::status::{ConnectionStatus, SiteGroupStatus};
use afterimage_journal::layout;
use afterimage_journal::pool::{Pool, UnitUse, Writers};
use afterimage_journal::storage::Storage;
use afterimage_journal::wire::{Sink, SinkError};
use afterimage_link::files::Stamp;
use afterimage_link::identity::text::to_hex;
use afterimage_link::server::{Connection, Host};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most groups of a site.
const GROUPS_MAX: usize = 1000;

/// See the module.
pub(super) struct Groups {
    state: PathBuf,
    place: Arc<StatePlace>,
    storage: Arc<dyn Storage>,
    pool: Arc<Pool>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    groups: BTreeMap<String, Arc<Group>>,
    settings: Settings,
    stamp: Stamp,
}

impl Groups {
    /// Those whose journals lie below a state directory; each is kept from now on.
    pub(super) fn open(
        state: &Path,
        storage: &Arc<dyn Storage>,
        pool: &Arc<Pool>,
    ) -> afterimage_link::Result<Arc<Self>> {
        let stamp = Stamp::of(&settings::path(state));
        let known = Known { settings: Settings::load(state)?, stamp, ..Known::default() };
        let local = |e: afterimage_journal::Error| afterimage_link::Error::Local(e.to_string());
        let groups = Self {
            state: state.to_owned(),
            place: Arc::new(StatePlace::of(state).map_err(local)?),
            storage: Arc::clone(storage),
            pool: Arc::clone(pool),
            known: Mutex::new(known),
        };
        let names = layout::journals(state);
        let names = names.map_err(local)?;
        for name in names {
            match groups.group(&name) {
                Ok(group) => group.start(),
                Err(error) => tracing::error!(group = name, %error, "a journal is left alone"),
            }
        }
        Ok(Arc::new(groups))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A map and plain values, whole at every step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self, name: &str) -> Result<Arc<Group>, SinkError> {
        let mut known = self.lock();
        if let Some(group) = known.groups.get(name) {
            return Ok(Arc::clone(group));
        }
        if known.groups.len() >= GROUPS_MAX {
            return Err(SinkError::Full(format!("the site has {GROUPS_MAX} groups: no more fit")));
        }
        let dir = layout::journal_dir(&self.state, name);
        let dir = dir.map_err(|e| SinkError::Refused(e.to_string()))?;
        let settings = known.settings.of(name);
        let group = Group::new(name, (dir, &self.place), &self.storage, &self.pool, settings);
        known.groups.insert(name.to_owned(), Arc::clone(&group));
        Ok(group)
    }

    /// Looks whether settings were changed.
    pub(super) fn follow_settings(&self) {
        let mut known = self.lock();
        let stamp = Stamp::of(&settings::path(&self.state));
        if stamp == known.stamp {
            return;
        }
        known.stamp = stamp;
        match Settings::load(&self.state) {
            Ok(settings) => known.settings = settings,
            Err(error) => {
                tracing::error!(%error, "the settings stay as they were");
                return;
            }
        }
        for (name, group) in &known.groups {
            group.set(&known.settings.of(name));
        }
    }

    /// How all are.
    pub(super) fn status(&self) -> Vec<SiteGroupStatus> {
        let groups: Vec<_> = self.lock().groups.values().cloned().collect();
        groups.iter().map(|g| g.status()).collect()
    }

    /// Lets go of all.
    pub(super) fn stop(&self) {
        let groups: Vec<_> = self.lock().groups.values().cloned().collect();
        for group in groups {
            group.stop();
        }
    }
}

impl Host for Groups {
    fn sink(&self, group: &str) -> Result<Box<dyn Sink>, SinkError> {
        let group = self.group(group)?;
        Ok(Box::new(GroupSink { group, syncs: VecDeque::new() }))
    }

    fn connected(&self, group: &str, connection: &Connection) {
        if let Ok(group) = self.group(group) {
            group.connected(ConnectionStatus {
                addr: connection.addr.to_string(),
                serial: to_hex(&connection.serial),
                epoch: connection.epoch,
                since: jiff::Timestamp::now(),
            });
        }
    }

    fn disconnected(&self, group: &str, why: &str) {
        if let Ok(group) = self.group(group) {
            group.disconnected(why);
        }
    }
}

impl Writers for Groups {
    fn in_use(&self, _group: &str, _number: u64) -> UnitUse {
        // An agent may come at any moment: what is not sealed is moved by who keeps it from writing.
        UnitUse::Written
    }

    fn give_way(&self, name: &str) {
        match self.group(name) {
            Ok(group) => group.move_open_units(),
            Err(error) => tracing::error!(group = name, %error, "its open units can't be moved"),
        }
    }
}
