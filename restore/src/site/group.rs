//! One group at the site: its replica, its keeper, and what is to be said of it.

use super::ground::{KeeperNow, Limited};
use super::place::StatePlace;
use super::settings::GroupSettings;
use super::status::{ConnectionStatus, SiteGroupStatus};
use afterimage_journal::keeper::{Ground, KeeperThread, PoolGround, Setup};
use afterimage_journal::layout::{self, Identity};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::pool::{DrainStep, Pool, UnitUse};
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::Storage;
use afterimage_journal::wire::{Ack, Hello, Inventory, OP_BYTES_MAX, Op, Sink, SinkError};
use afterimage_journal::{Error, ErrorKind, clock};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most syncs that are remembered until they are acknowledged.
const SYNCS_MAX: usize = 1024;

/// Most units that are moved while a link waits.
const MOVES_MAX: usize = 4;

/// What everybody may look at.
#[derive(Default)]
struct Facts {
    settings: GroupSettings,
    link: Option<ConnectionStatus>,
    ended: Option<String>,
    watermark: u64,
    /// Of the newest acknowledged record; 0: none was since the site started.
    wall_ns: u64,
    received_bytes: u64,
    error: Option<String>,
}

/// See the module.
pub(super) struct Group {
    name: String,
    dir: PathBuf,
    state: Arc<StatePlace>,
    storage: Arc<dyn Storage>,
    pool: Arc<Pool>,
    facts: Mutex<Facts>,
    keeper: KeeperNow,
    open: Mutex<Open>,
}

/// What writes, and keeps.
#[derive(Default)]
struct Open {
    /// Before the replica: it is stopped while that still holds the journal's lock.
    keeper: Option<KeeperThread>,
    replica: Option<Replica>,
    is_mirror: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values; a replica that panicked in the middle of an op is opened anew before the next.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sink_error(error: &Error) -> SinkError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::FreeSpace => SinkError::Full(text),
        ErrorKind::FixInput | ErrorKind::NotRestorable => SinkError::Refused(text),
        ErrorKind::Retry | ErrorKind::Broken => SinkError::Away(text),
    }
}

impl Group {
    pub(super) fn new(
        name: &str,
        (dir, state): (PathBuf, &Arc<StatePlace>),
        storage: &Arc<dyn Storage>,
        pool: &Arc<Pool>,
        settings: GroupSettings,
    ) -> Arc<Self> {
        pool.set_limit(name, settings.limit_bytes);
        let facts = Facts { settings, ..Facts::default() };
        Arc::new(Self {
            name: name.to_owned(),
            dir,
            state: Arc::clone(state),
            storage: Arc::clone(storage),
            pool: Arc::clone(pool),
            facts: Mutex::new(facts),
            keeper: KeeperNow::default(),
            open: Mutex::default(),
        })
    }

    /// Opens the journal that is there, and keeps it within its window.
    pub(super) fn start(&self) {
        let mut open = lock(&self.open);
        let opened = self.find(&mut open).and_then(|()| self.keep(&mut open));
        self.note(opened.as_ref().err().map(ToString::to_string));
        if let Err(error) = opened {
            tracing::error!(group = self.name, %error, "the journal can't be opened");
        }
    }

    fn note(&self, error: Option<String>) {
        lock(&self.facts).error = error;
    }

    /// Opens the replica, if it isn't.
    fn find(&self, open: &mut Open) -> afterimage_journal::Result<()> {
        let mirror = lock(&self.facts).settings.mirror;
        self.state.check()?;
        if open.replica.as_ref().is_some_and(|replica| !replica.is_in_place()) {
            let dir = self.dir.display();
            tracing::error!(group = self.name, %dir, "the journal is gone: it is begun anew");
            self.let_go(open);
        }
        if open.replica.is_some() && open.is_mirror == mirror {
            return Ok(());
        }
        self.let_go(open);
        let unit_bytes = layout::read_identity(&self.dir).map_or(0, |i: Identity| i.unit_bytes);
        let options = ReplicaOptions {
            allocator: Arc::new(Limited {
                pool: Arc::clone(&self.pool),
                keeper: Arc::clone(&self.keeper),
            }),
            ground: self.ground(unit_bytes),
            mirror,
            clock: Arc::new(clock::SystemClock),
        };
        open.replica = Some(Replica::open(&self.storage, &self.dir, options)?);
        open.is_mirror = mirror;
        Ok(())
    }

    fn ground(&self, unit_bytes: u64) -> Arc<dyn Ground> {
        PoolGround::shared(&self.pool, &self.name, unit_bytes)
    }

    /// Starts the keeper of a journal that is there; a mirror has none.
    fn keep(&self, open: &mut Open) -> afterimage_journal::Result<()> {
        let Open { keeper, replica: Some(replica), is_mirror: false } = open else { return Ok(()) };
        let Some(identity) = replica.identity().filter(|_| keeper.is_none()) else { return Ok(()) };
        let started = KeeperThread::start(Setup {
            storage: Arc::clone(&self.storage),
            dir: self.dir.clone(),
            clock: Arc::new(clock::SystemClock),
            ground: self.ground(identity.unit_bytes),
            pace: Arc::new(Unpaced),
            limits: lock(&self.facts).settings.limits(),
            key: None,
        })?;
        let shared = started.shared();
        *lock(&self.keeper) = Some(Arc::clone(&shared));
        replica.on_sealed(move |number| shared.sealed(number));
        *keeper = Some(started);
        Ok(())
    }

    fn stop_keeper(&self, open: &mut Open) {
        *lock(&self.keeper) = None;
        open.keeper = None;
    }

    fn let_go(&self, open: &mut Open) {
        self.stop_keeper(open);
        open.replica = None;
    }

    /// Moves what may still be written off a member that is being drained, while nothing is: the link, if
    /// there is one, waits, and goes on where the units lie then.
    pub(super) fn move_open_units(&self) {
        let mut open = lock(&self.open);
        // Its lock keeps others from writing, too.
        if open.replica.is_none()
            && let Err(error) = self.find(&mut open).and_then(|()| self.keep(&mut open))
        {
            tracing::error!(group = self.name, %error, "its open units can't be moved");
            return;
        }
        for _ in 0..MOVES_MAX {
            match self.pool.drain_step(&|group, _| self.unit_use(group)) {
                Ok(DrainStep::Moved(path)) => {
                    tracing::debug!(path = %path.display(), "moved to another member");
                }
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(group = self.name, %error, "draining failed");
                    break;
                }
            }
        }
        if let Some(Err(error)) = open.replica.as_mut().map(Replica::follow_moved) {
            tracing::error!(group = self.name, %error, "a unit that was moved is not found: its agent comes again");
        }
    }

    /// While this group's link waits, nobody writes to its units.
    fn unit_use(&self, group: &str) -> UnitUse {
        if group == self.name { UnitUse::Idle } else { UnitUse::Written }
    }

    /// Stops keeping, and lets go of the journal.
    pub(super) fn stop(&self) {
        self.let_go(&mut lock(&self.open));
    }

    /// What is wanted of it from now on. Whether it mirrors is looked at when a link begins.
    pub(super) fn set(&self, settings: &GroupSettings) {
        {
            let mut facts = lock(&self.facts);
            if facts.settings == *settings {
                return;
            }
            facts.settings = settings.clone();
        }
        tracing::info!(group = self.name, ?settings, "settings");
        self.pool.set_limit(&self.name, settings.limit_bytes);
        if let Some(keeper) = lock(&self.keeper).as_ref() {
            keeper.set(settings.limits());
        }
    }

    pub(super) fn connected(&self, link: ConnectionStatus) {
        let mut facts = lock(&self.facts);
        facts.link = Some(link);
        facts.ended = None;
    }

    pub(super) fn disconnected(&self, why: &str) {
        let mut facts = lock(&self.facts);
        facts.link = None;
        facts.ended = Some(why.to_owned());
    }

    /// How it is. The journal itself is looked at by who asks.
    pub(super) fn status(&self) -> SiteGroupStatus {
        let facts = lock(&self.facts);
        let (window_s, mirror) =
            (facts.settings.limits().keep.every_write_ns() / 1_000_000_000, facts.settings.mirror);
        SiteGroupStatus {
            group: self.name.clone(),
            connection: facts.link.clone(),
            ended: facts.ended.clone(),
            watermark: facts.watermark,
            newest_ns: (facts.wall_ns > 0).then_some(facts.wall_ns),
            received_bytes: facts.received_bytes,
            window_s,
            limit_bytes: facts.settings.limit_bytes,
            mirror,
            error: facts.error.clone(),
            space: lock(&self.keeper).as_ref().map(|k| k.occupancy()),
            ..SiteGroupStatus::default()
        }
    }
}

/// A group's sink: opens the journal at the first link, and goes on keeping it after the last.
pub(super) struct GroupSink {
    pub(super) group: Arc<Group>,
    /// Syncs that were not acknowledged yet: token, time of the newest record.
    pub(super) syncs: VecDeque<(u64, u64)>,
}

impl Sink for GroupSink {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        self.syncs.clear();
        let group = &self.group;
        let mut open = lock(&group.open);
        // Nothing is merged away while it is looked at.
        group.stop_keeper(&mut open);
        let mut inventory = group.find(&mut open).map_err(|e| sink_error(&e));
        if let (Ok(()), Some(replica)) = (&inventory, &mut open.replica) {
            let opened = replica.open(hello);
            lock(&group.facts).watermark = opened.as_ref().map_or(0, |i| i.watermark);
            // The journal is kept, whoever may or may not write to it.
            let kept = group.keep(&mut open).map_err(|e| sink_error(&e));
            group.note(kept.as_ref().err().map(ToString::to_string));
            return kept.and(opened);
        }
        inventory = inventory.and(Err(SinkError::Away("the journal is not open".into())));
        inventory.map(|()| Inventory::default())
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        let bytes = match &op {
            Op::Bytes { bytes, .. } | Op::Put { bytes, .. } => bytes.len().min(OP_BYTES_MAX),
            Op::Sync { token, wall_ns, .. } => {
                if self.syncs.len() >= SYNCS_MAX {
                    self.syncs.pop_front();
                }
                self.syncs.push_back((*token, *wall_ns));
                0
            }
            _ => 0,
        };
        let mut open = lock(&self.group.open);
        let replica = open.replica.as_mut();
        replica.ok_or_else(|| SinkError::Broken("it was not opened".into()))?.apply(op)?;
        drop(open);
        lock(&self.group.facts).received_bytes += bytes as u64;
        Ok(())
    }

    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        let mut open = lock(&self.group.open);
        let replica = open.replica.as_mut();
        let ack =
            replica.ok_or_else(|| SinkError::Broken("it was not opened".into()))?.ack(wait)?;
        drop(open);
        if let Some(ack) = &ack {
            let mut facts = lock(&self.group.facts);
            facts.watermark = facts.watermark.max(ack.watermark);
            while let Some((_, wall_ns)) = self.syncs.pop_front_if(|(t, _)| *t <= ack.token) {
                facts.wall_ns = facts.wall_ns.max(wall_ns);
            }
        }
        Ok(ack)
    }

    fn mirrors(&self) -> bool {
        lock(&self.group.open).is_mirror
    }
}
