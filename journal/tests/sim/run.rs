//! One seeded run: random steps against a journal on the simulated disk, with every kind of end,
//! each judged by the model.

use crate::clock::SimClock;
use crate::model::{Doubt, Model};
use crate::rng::{Digest, Rng};
use crate::storage::SimStorage;
use crate::world::Fault;
use afterimage_journal::catalogue::Catalogue;
use afterimage_journal::keeper::Keeper;
use afterimage_journal::log::Backend;
use afterimage_journal::meta::{Config, Guest, Volume, VolumeKind};
use afterimage_journal::pool::{Limit, Pool};
use afterimage_journal::storage::Storage;
use afterimage_journal::window::Keep;
use afterimage_journal::{History, Journal, Key, Options, Reservation, Result, Seq, VolumeId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Most steps of a keeper that has nothing new to do.
const STEPS_MAX: usize = 2000;
pub const DIR: &str = "/state/pool/g";
pub const SECTOR: u64 = 512;
pub const VOLUMES: VolumeId = 3;
pub const VOLUME_SECTORS: u64 = 160;
/// Volumes of memory, in runs that have them: a block of RAM, and the device state.
pub const RAM: VolumeId = 8;
pub const STATE: VolumeId = 9;
pub const UNIT_BYTES: u64 = 1 << 20;

/// How a process ended, for what must have survived it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The journal was closed, or ran out of space: everything is there.
    Orderly,
    Kill,
    /// Power, or a device that failed: what was durable is there.
    Hard,
}

pub struct Run {
    pub storage: SimStorage,
    pub clock: Arc<SimClock>,
    pub model: Model,
    pub journal: Option<Journal>,
    /// Space for a record that is committed late.
    pub held: Option<Reservation>,
    pub digest: Digest,
    pub rng: Rng,
    pub sizes: BTreeMap<VolumeId, u64>,
    pub session: u32,
    pub is_level: bool,
    pub copy: u32,
    pub mark: u64,
    pub filled: u64,
    pub is_told: bool,
    /// Every third journal is encrypted.
    pub key: Option<Key>,
    /// What is to be restorable; steps of it thin.
    pub wish: Keep,
    /// The members of the pool besides its home.
    pub members: Vec<PathBuf>,
    /// The pool, if there are any.
    pub pool: Option<Arc<Pool>>,
}

/// How far back these journals are to reach: some dozens of steps.
const WINDOW_NS: u64 = 30_000_000_000;

/// A wish that thins, by seed: what goes soon, and what stays.
pub fn thinned(seed: u64) -> Keep {
    let wishes = ["20s,5s:60s,20s:120s", "20s,20s:1d", "30s,10s:1d", "20s,3s:40s"];
    wishes[(seed % 4) as usize].parse().unwrap()
}

/// A disk on which there is room for a journal.
pub fn empty_disk(seed: u64) -> SimStorage {
    let storage = SimStorage::new(seed);
    storage.make_dir(Path::new("/state/pool")).unwrap();
    for dir in ["/", "/state"] {
        storage.sync_dir(Path::new(dir)).unwrap();
    }
    storage
}

pub fn open_pool(storage: &SimStorage) -> Result<Arc<Pool>> {
    Pool::open(&(storage.shared() as Arc<dyn Storage>), Path::new("/state/pool"))
}

/// Empty directories that become members.
fn new_members(storage: &SimStorage, count: u64) -> Vec<PathBuf> {
    let members: Vec<PathBuf> = (1..=count).map(|i| PathBuf::from(format!("/m{i}"))).collect();
    for dir in &members {
        storage.make_dir(dir).unwrap();
        storage.sync_dir(Path::new("/")).unwrap();
    }
    members
}

pub fn options(storage: &SimStorage, clock: &Arc<SimClock>) -> Options {
    let never = Duration::from_secs(3600);
    Options {
        unit_bytes: UNIT_BYTES,
        sync_interval: never,
        tick_interval: never,
        clock: Arc::clone(clock) as _,
        storage: storage.shared(),
        backend: Backend::Plain,
        ring_bytes: 1 << 20,
        inline: true,
        ..Options::default()
    }
}

/// The key of those that are encrypted.
pub fn key() -> Key {
    Key::new([11; 32].into())
}

/// A history with its key, if it needs one.
pub fn unlocked(mut history: History) -> History {
    let key = history.identity.encryption.is_some().then(key);
    history.unlock(key.as_ref()).unwrap();
    history
}

pub fn config(sizes: &BTreeMap<VolumeId, u64>) -> Config {
    let kind = |id: VolumeId| match id {
        RAM => VolumeKind::Ram,
        STATE => VolumeKind::DeviceState,
        _ => VolumeKind::Disk,
    };
    let volume = |(id, bytes): (&VolumeId, &u64)| Volume {
        id: *id,
        kind: kind(*id),
        uuid: Uuid::from_u128(u128::from(*id)),
        guest: "vm".into(),
        disk: format!("vd{id}"),
        node: format!("d{id}"),
        bytes: *bytes,
        format: "raw".into(),
        source: String::new(),
        active: true,
    };
    Config {
        group: Uuid::from_u128(1),
        name: "g".into(),
        guests: vec![Guest {
            name: "vm".into(),
            command_line: vec![],
            libvirt_xml: None,
            qemu_version: String::new(),
        }],
        volumes: sizes.iter().map(volume).collect(),
    }
}

impl Run {
    /// A new journal with its configuration, durable, on a new disk.
    pub fn new(seed: u64) -> Self {
        Self::on(empty_disk(seed), seed)
    }

    /// A new one whose guest has memory.
    pub fn with_memory(seed: u64) -> Self {
        let mut run = Self::new(seed);
        let mut sizes = run.sizes.clone();
        sizes.extend([(RAM, VOLUME_SECTORS * SECTOR), (STATE, 8 * SECTOR)]);
        run.set_sizes(sizes);
        run.sync();
        run
    }

    /// The same on this disk.
    pub fn on(storage: SimStorage, seed: u64) -> Self {
        Self::over(storage, seed, 0)
    }

    /// The same over the home and so many more members of a pool.
    pub fn over(storage: SimStorage, seed: u64, members: u64) -> Self {
        let clock = Arc::new(SimClock::new());
        let key = seed.is_multiple_of(3).then(key);
        let members = new_members(&storage, members);
        let mut options = Options { key: key.clone(), ..options(&storage, &clock) };
        let pool = (!members.is_empty()).then(|| open_pool(&storage).unwrap());
        if let Some(pool) = &pool {
            for dir in &members {
                pool.add(dir, Limit::Keep).unwrap();
            }
            options.allocator = Arc::<Pool>::clone(pool);
        }
        let journal = Journal::create(Path::new(DIR), Uuid::from_u128(1), "g", options).unwrap();
        let sizes = (1..=VOLUMES).map(|id| (id, VOLUME_SECTORS * SECTOR)).collect();
        let mut run = Self {
            storage,
            clock,
            model: Model::default(),
            journal: Some(journal),
            held: None,
            digest: Digest::default(),
            rng: Rng::new(seed),
            sizes,
            session: 0,
            is_level: false,
            copy: 0,
            mark: 0,
            filled: 0,
            key,
            wish: Keep::every_write(WINDOW_NS),
            members,
            pool,
            is_told: std::env::var_os("AFTERIMAGE_SEED").is_some(),
        };
        run.set_sizes(run.sizes.clone());
        run.sync();
        run
    }

    pub fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }

    pub fn history(&self) -> History {
        let storage: Arc<dyn Storage> = self.storage.shared();
        unlocked(History::load_in(&storage, Path::new(DIR)).unwrap())
    }

    /// Takes what a call came to. The dead have heard of nothing: whatever it returned does not
    /// count when the process ended in it.
    pub fn took(&mut self, result: Result<Seq>, doubt: &Doubt) -> Option<Seq> {
        let struck = self.storage.struck();
        if let Some(fault) = struck {
            self.digest.number(fault as u64);
        }
        match (struck, result) {
            (Some(Fault::Kill), _) => self.recover(End::Kill, doubt),
            (Some(Fault::Power), _) => self.recover(End::Hard, doubt),
            (_, Ok(seq)) => {
                self.model.acknowledge(seq);
                self.model.happened(seq, doubt);
                self.digest.number(seq);
                return Some(seq);
            }
            (Some(_), Err(_)) => self.recover(End::Hard, doubt),
            (None, Err(e)) => {
                let full = self.journal().is_out_of_space();
                assert!(full || self.journal().stopped().is_some(), "an error from nowhere: {e}");
                self.recover(if full { End::Orderly } else { End::Hard }, doubt);
            }
        }
        None
    }

    pub fn sync(&mut self) {
        let result = self.journal().sync();
        let durable = result.as_ref().ok().copied();
        let head = self.model.acked;
        if self.survived(result.map(drop)) {
            let durable = durable.unwrap_or_default();
            assert!(durable >= head, "a sync up to {head} gave {durable}");
            assert!(durable >= self.model.durable, "the watermark went back");
            self.model.durable = durable;
        }
    }

    /// As [`Run::took`], for a call that gives out no number.
    pub fn survived(&mut self, result: Result<()>) -> bool {
        match (self.storage.struck(), result) {
            (Some(Fault::Kill), _) => self.recover(End::Kill, &Doubt::Nothing),
            (Some(_), _) => self.recover(End::Hard, &Doubt::Nothing),
            (None, Ok(())) => return true,
            (None, Err(e)) => {
                let full = self.journal.as_ref().is_some_and(Journal::is_out_of_space);
                assert!(full, "an error from nowhere: {e}");
                self.recover(End::Orderly, &Doubt::Nothing);
            }
        }
        false
    }

    /// What happens, for one who replays a seed.
    pub fn say(&self, what: std::fmt::Arguments<'_>) {
        if self.is_told {
            let Model { acked, durable, seen, .. } = self.model;
            let (ops, trace) = (self.storage.ops(), self.storage.trace().0);
            eprintln!(
                "{what}; acknowledged {acked}, durable {durable}, seen {seen}; {ops} operations, \
                 trace {trace:016x}"
            );
        }
    }

    /// Opens the journal anew, which may be cut off itself, and judges what it finds.
    pub fn recover(&mut self, end: End, doubt: &Doubt) {
        self.say(format_args!("ended: {end:?}, in doubt: {}", doubt.name()));
        // It would keep the journal open.
        drop(self.held.take());
        drop(self.journal.take());
        self.is_level = false;
        // Whoever lets go of a journal may do something yet.
        let end = match self.storage.struck() {
            None => end,
            Some(Fault::Kill) if end != End::Hard => End::Kill,
            Some(_) => End::Hard,
        };
        let mut floor = match end {
            End::Orderly | End::Kill => self.model.acked,
            End::Hard => self.model.durable,
        };
        let mut doubt = doubt.clone();
        self.storage.disarm();
        self.lift_limits();
        for round in 0.. {
            self.storage = self.storage.now();
            self.clock.boot(self.storage.boot());
            let history = self.history();
            self.digest.number(history.head);
            let History { head, damage, epochs, level, edge, .. } = &history;
            self.say(format_args!(
                "found up to {head}, edge {edge}, damage {damage:?}, epochs {epochs:?}, level {level:?}"
            ));
            self.model.settle(&history, &doubt, floor);
            doubt = Doubt::Nothing;
            self.check(&history, 2);
            let head = history.head;
            drop(history);
            if round < 3 && self.rng.percent(30) {
                let fault = if self.rng.percent(50) { Fault::Kill } else { Fault::Power };
                self.storage.arm(1 + self.rng.below(40), fault);
            }
            let opened = self.open_journal();
            self.storage.disarm();
            floor = match (self.storage.struck(), opened) {
                (Some(Fault::Kill), _) => self.model.acked.min(head),
                (Some(_), _) => self.model.durable,
                (None, Ok((journal, found))) => {
                    assert_eq!(found.head, head, "the writer sees what the reader saw");
                    self.model.durable = self.model.durable.max(head);
                    self.model.acked = head;
                    self.model.seen = self.model.seen.max(journal.head());
                    self.say(format_args!("opened, epoch {}", journal.epoch()));
                    self.journal = Some(journal);
                    self.sizes = self.model.sizes(head);
                    return;
                }
                (None, Err(e)) => panic!("it can't be opened: {e}"),
            };
        }
    }

    pub fn lift_limits(&self) {
        let members = self.members.iter().map(PathBuf::as_path);
        members.chain([Path::new(DIR)]).for_each(|dir| self.storage.limit(dir, None));
    }

    /// Opens the journal, and the pool first if there is one.
    pub fn open_journal(&mut self) -> Result<(Journal, History)> {
        let mut options = Options { key: self.key.clone(), ..options(&self.storage, &self.clock) };
        if !self.members.is_empty() {
            let pool = open_pool(&self.storage)?;
            options.allocator = Arc::<Pool>::clone(&pool);
            self.pool = Some(pool);
        }
        Journal::open(Path::new(DIR), options)
    }

    /// Judges a history at some positions.
    pub fn check(&mut self, history: &History, count: u64) {
        let head = history.head;
        let mut at: Vec<Seq> = (0..count).map(|_| 1 + self.rng.below(head.max(1))).collect();
        at.push(head);
        self.model.check(history, &at);
    }

    /// Checks every position that is listed.
    pub fn check_all(&mut self) {
        let history = self.history();
        let at: Vec<Seq> = (1..=history.head).collect();
        let step = at.len() / 24 + 1;
        let at: Vec<Seq> = at.into_iter().rev().step_by(step).collect();
        self.model.check(&history, &at);
    }

    /// Whatever happened, the keeper comes to an end, and the catalogue gets on: without it the window
    /// would slide no more.
    fn check_progress(&self) {
        let setup = self.keeping();
        let mut keeper = Keeper::open(setup).expect("a keeper");
        let is_done = (0..STEPS_MAX).any(|_| !keeper.step().expect("a step of the keeper"));
        assert!(is_done, "the keeper finds work for ever");
        let history = self.history();
        let newest = history.units.last().map_or(0, |u| u.name.numbers().1);
        let storage: Arc<dyn Storage> = self.storage.shared();
        let catalogue = Catalogue::open(&storage, Path::new(DIR)).expect("a catalogue");
        // The open one and those prepared behind it are not in it; the one before may not be told of.
        let last = catalogue.last_unit();
        assert!(
            !history.damage.is_empty() || last + 4 >= newest,
            "the catalogue ends with unit {last}, the newest is {newest}"
        );
    }

    /// Everything that a run did, in one number.
    pub fn finish(mut self) -> Digest {
        self.recover(End::Orderly, &Doubt::Nothing);
        self.check_all();
        self.check_progress();
        self.digest.number(self.storage.trace().0);
        self.digest.number(self.storage.ops());
        self.digest
    }
}
