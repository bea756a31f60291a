//! One seeded run: random steps against a journal on the simulated disk, with every kind of end,
//! each judged by the model.

use crate::clock::SimClock;
use crate::disk::Keep;
use crate::model::{Doubt, Model, Put};
use crate::rng::{Digest, Rng};
use crate::storage::SimStorage;
use crate::world::Fault;
use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::log::{Backend, Draft};
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, Config, Copy, CopyCause, CopyEvent, Guest, Meta, Session,
    SessionEvent, Volume,
};
use afterimage_journal::storage::Storage;
use afterimage_journal::{History, Journal, Options, Result, Seq, VolumeId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

pub const DIR: &str = "/state/pool/g";
const SECTOR: u64 = 512;
const VOLUMES: VolumeId = 3;
const VOLUME_SECTORS: u64 = 160;
const UNIT_BYTES: u64 = 1 << 20;

/// How a process ended, for what must have survived it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
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
    pub digest: Digest,
    rng: Rng,
    sizes: BTreeMap<VolumeId, u64>,
    session: u32,
    is_level: bool,
    copy: u32,
    mark: u64,
    filled: u64,
    is_told: bool,
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

pub fn config(sizes: &BTreeMap<VolumeId, u64>) -> Config {
    let volume = |(id, bytes): (&VolumeId, &u64)| Volume {
        id: *id,
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

    /// The same on this disk.
    pub fn on(storage: SimStorage, seed: u64) -> Self {
        let clock = Arc::new(SimClock::new());
        let options = options(&storage, &clock);
        let journal = Journal::create(Path::new(DIR), Uuid::from_u128(1), "g", options).unwrap();
        let sizes = (1..=VOLUMES).map(|id| (id, VOLUME_SECTORS * SECTOR)).collect();
        let mut run = Self {
            storage,
            clock,
            model: Model::default(),
            journal: Some(journal),
            digest: Digest::default(),
            rng: Rng::new(seed),
            sizes,
            session: 0,
            is_level: false,
            copy: 0,
            mark: 0,
            filled: 0,
            is_told: std::env::var_os("AFTERIMAGE_SEED").is_some(),
        };
        run.set_sizes(run.sizes.clone());
        run.sync();
        run
    }

    fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }

    pub fn history(&self) -> History {
        let storage: Arc<dyn Storage> = self.storage.shared();
        History::load_in(&storage, Path::new(DIR)).unwrap()
    }

    /// Takes what a call came to. The dead have heard of nothing: whatever it returned does not
    /// count when the process ended in it.
    fn took(&mut self, result: Result<Seq>, doubt: &Doubt) -> Option<Seq> {
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

    fn sync(&mut self) {
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
    fn survived(&mut self, result: Result<()>) -> bool {
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
    fn say(&self, what: std::fmt::Arguments<'_>) {
        if self.is_told {
            let Model { acked, durable, seen, .. } = self.model;
            eprintln!("{what}; acknowledged {acked}, durable {durable}, seen {seen}");
        }
    }

    /// Opens the journal anew, which may be cut off itself, and judges what it finds.
    fn recover(&mut self, end: End, doubt: &Doubt) {
        self.say(format_args!("ended: {end:?}, in doubt: {}", doubt.name()));
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
        self.storage.limit(Path::new(DIR), None);
        for round in 0.. {
            self.storage = self.storage.now();
            self.clock.boot(self.storage.boot());
            let history = self.history();
            self.digest.number(history.head);
            self.say(format_args!("found up to {}", history.head));
            self.model.settle(&history, &doubt, floor);
            doubt = Doubt::Nothing;
            self.check(&history, 2);
            let head = history.head;
            drop(history);
            if round < 3 && self.rng.percent(30) {
                let fault = if self.rng.percent(50) { Fault::Kill } else { Fault::Power };
                self.storage.arm(1 + self.rng.below(40), fault);
            }
            let opened = Journal::open(Path::new(DIR), options(&self.storage, &self.clock));
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

    /// Judges a history at some positions.
    fn check(&mut self, history: &History, count: u64) {
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

    fn append(&mut self, put: Put) -> Option<Seq> {
        let kind = if put.data.is_some() { Kind::Write } else { Kind::Zero };
        let draft = Draft {
            kind,
            flags: if put.copy.is_some() { FLAG_COPIED } else { 0 },
            volume: put.volume,
            addr: put.at,
            len: put.len as u32,
            scope: put.copy.unwrap_or(0),
        };
        let result = self.journal().append(&draft, put.data.as_deref().unwrap_or(&[]));
        self.took(result, &Doubt::Put(put))
    }

    fn meta(&mut self, body: &Meta, doubt: &Doubt) -> Option<Seq> {
        let result = self.journal().append_meta(body);
        self.took(result, doubt)
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        self.filled += 1;
        // Never zero, so that zeroes are told from data, and no two writes alike.
        let mut rng = Rng::new(self.filled);
        (0..len).map(|_| rng.next() as u8 | 1).collect()
    }

    fn place(&mut self, sectors_max: u64) -> (VolumeId, u64, u64) {
        let volume = 1 + self.rng.below(u64::from(VOLUMES)) as VolumeId;
        let sectors = self.sizes[&volume] / SECTOR;
        let at = self.rng.below(sectors);
        let count = (1 + self.rng.below(sectors_max)).min(sectors - at);
        (volume, at * SECTOR, count * SECTOR)
    }

    fn write(&mut self, sectors_max: u64, copy: Option<u32>) -> Option<Seq> {
        let (volume, at, len) = self.place(sectors_max);
        let data = Some(self.bytes(len));
        self.append(Put { volume, at, len, data, copy })
    }

    fn set_sizes(&mut self, sizes: BTreeMap<VolumeId, u64>) {
        let result = self.journal().set_config(&config(&sizes));
        if self.took(result, &Doubt::Sizes(sizes.clone())).is_some() {
            self.sizes = sizes;
        }
    }

    fn session(&mut self, event: SessionEvent) {
        let body = Meta::Session(Session {
            id: self.session,
            guest: "vm".into(),
            event,
            reason: String::new(),
            upto: None,
            full: true,
            images: vec![],
            maps: vec![],
        });
        let opens = event == SessionEvent::Open;
        let id = self.session;
        let doubt = if opens { Doubt::Open(id) } else { Doubt::Close(id) };
        self.is_level = self.meta(&body, &doubt).is_some() && opens;
    }

    /// A resync: captured writes land between its blocks.
    fn copy(&mut self) -> Option<()> {
        self.copy += 1;
        let id = self.copy;
        let (volume, ..) = self.place(1);
        let event =
            |event| Meta::Copy(Copy { id, volume, event, cause: CopyCause::Compare, upto: 0 });
        self.meta(&event(CopyEvent::Start), &Doubt::CopyStart(id))?;
        for _ in 0..1 + self.rng.below(4) {
            match self.rng.below(3) {
                0 => _ = self.write(9, None)?,
                _ => {
                    let sectors = self.sizes[&volume] / SECTOR;
                    let at = self.rng.below(sectors);
                    let len = (1 + self.rng.below(30)).min(sectors - at) * SECTOR;
                    let data = self.rng.percent(80).then(|| self.bytes(len));
                    self.append(Put { volume, at: at * SECTOR, len, data, copy: Some(id) })?;
                }
            }
        }
        self.meta(&event(CopyEvent::End), &Doubt::Nothing)?;
        Some(())
    }

    /// One random step.
    pub fn step(&mut self) {
        let what = self.rng.below(100);
        self.step_of(what);
    }

    /// One random step of a run that nothing befalls.
    pub fn calm_step(&mut self) {
        let what = self.rng.below(84);
        self.step_of(what);
    }

    fn step_of(&mut self, what: u64) {
        self.digest.number(what);
        self.say(format_args!("step {what}"));
        self.clock.pass(self.rng.below(2_000_000_000));
        match what {
            0..30 => _ = self.write(20, None),
            30..38 => {
                let (volume, at, len) = self.place(40);
                let _ = self.append(Put { volume, at, len, data: None, copy: None });
            }
            38..44 => {
                for _ in 0..self.rng.below(14) {
                    if self.write(VOLUME_SECTORS, None).is_none() {
                        break;
                    }
                }
            }
            44..50 if !self.is_level => _ = self.copy(),
            50..58 if !self.is_level => {
                self.session += 1;
                self.session(SessionEvent::Open);
            }
            58..60 if self.is_level => self.session(SessionEvent::Close),
            60..64 => {
                self.mark += 1;
                let (id, kind) = (self.mark, CheckpointKind::Crash);
                let body = Meta::Mark(Checkpoint { id, kind, tag: None });
                let _ = self.meta(&body, &Doubt::Mark(id));
            }
            64..67 => {
                let mut sizes = self.sizes.clone();
                let volume = 1 + self.rng.below(u64::from(VOLUMES)) as VolumeId;
                sizes.insert(volume, (1 + self.rng.below(VOLUME_SECTORS)) * SECTOR);
                self.set_sizes(sizes);
            }
            67..78 => self.sync(),
            78..82 => {
                let history = self.history();
                assert!(history.head >= self.model.acked, "a reader sees what was acknowledged");
                self.check(&history, 3);
            }
            _ => self.end(what),
        }
    }

    /// Ends of processes, faults to come, and set clocks.
    fn end(&mut self, what: u64) {
        match what {
            82..84 => {
                let journal = self.journal.take();
                let closed = journal.map_or(Ok(()), Journal::close);
                if self.survived(closed) {
                    self.recover(End::Orderly, &Doubt::Nothing);
                }
            }
            84 => self.recover(End::Orderly, &Doubt::Nothing),
            85..87 => {
                self.storage = self.storage.kill();
                self.recover(End::Kill, &Doubt::Nothing);
            }
            87..90 => {
                let keep = Keep::any(&mut self.rng);
                self.storage = self.storage.power(keep);
                self.recover(End::Hard, &Doubt::Nothing);
            }
            90..97 => {
                let faults =
                    [Fault::Kill, Fault::Power, Fault::Power, Fault::FailSync, Fault::FailWrite];
                let fault = self.rng.pick(&faults);
                let after = 1 + self.rng.below(60);
                self.say(format_args!("{fault:?} in {after} operations"));
                self.storage.arm(after, fault);
            }
            97 => {
                let used = self.storage.used_bytes(Path::new(DIR));
                let more = self.rng.below(4 << 20);
                self.storage.limit(Path::new(DIR), Some(used + more));
            }
            _ => self.clock.jump(self.rng.below(20_000) as i64 - 10_000),
        }
    }

    /// Everything that a run did, in one number.
    pub fn finish(mut self) -> Digest {
        self.recover(End::Orderly, &Doubt::Nothing);
        self.check_all();
        self.digest.number(self.storage.trace().0);
        self.digest.number(self.storage.ops());
        self.digest
    }
}
