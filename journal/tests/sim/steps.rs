//! The steps of a run: what a guest and its agent do, and what befalls them.

use crate::disk::Keep;
use crate::model::{Doubt, Put};
use crate::rng::Rng;
use crate::run::{DIR, End, RAM, Run, SECTOR, STATE, UNIT_BYTES, VOLUME_SECTORS, VOLUMES, config};
use crate::world::Fault;
use afterimage_journal::clock::Clock;
use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::keeper::{Home, Keeper, PoolGround, Setup};
use afterimage_journal::log::Draft;
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, Copy, CopyCause, CopyEvent, GuestMemory, Memory, Meta, RamBlock,
    Session, SessionEvent,
};
use afterimage_journal::window::Limits;
use afterimage_journal::{Error, ErrorKind, Journal, Seq, VolumeId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bounded things that a keeper does before it is asked again.
const KEEPER_STEPS_MAX: u64 = 40;

impl Run {
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

    /// A write that is committed behind a sync which found its place reserved, maybe in a unit that is full.
    fn late(&mut self) -> Option<()> {
        let (volume, at, len) = self.place(20);
        let bytes = self.bytes(len);
        let reserved = self.journal().reserve(len as u32);
        match reserved {
            Ok(space) => self.held = Some(space),
            Err(e) => return self.took(Err(e), &Doubt::Nothing).map(drop),
        }
        for _ in 0..self.rng.below(6) {
            self.write(VOLUME_SECTORS, None)?;
        }
        self.sync();
        // What a fault ended knows nothing of the record.
        let mut space = self.held.take()?;
        space.payload_mut().copy_from_slice(&bytes);
        let draft = Draft { volume, addr: at, len: len as u32, ..Draft::of(Kind::Write) };
        let committed = space.commit(&draft);
        let put = Put { volume, at, len, data: Some(bytes), copy: None };
        self.took(committed, &Doubt::Put(put))?;
        if self.rng.percent(70) {
            self.sync();
        }
        Some(())
    }

    pub fn set_sizes(&mut self, sizes: BTreeMap<VolumeId, u64>) {
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
        let event = |event| {
            Meta::Copy(Copy { id, volume, event, cause: CopyCause::Compare, upto: 0, whole: false })
        };
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

    /// One random step of a run with many checkpoints, much of which is thinned.
    pub fn thinning_step(&mut self) {
        let what = match self.rng.below(100) {
            0..25 => 62,
            25..35 => 40,
            35..45 if !self.is_level => 55,
            45..55 => 76,
            _ => self.rng.below(100),
        };
        self.step_of(what);
    }

    /// One random step of a run whose guest's memory is kept, too.
    pub fn memory_step(&mut self) {
        match self.rng.below(100) {
            0..30 => _ = self.checkpoint(),
            30..40 if !self.is_level => self.step_of(55),
            _ => self.thinning_step(),
        }
    }

    /// A checkpoint with memory, between writes; a fifth of them is cut off.
    fn checkpoint(&mut self) -> Option<()> {
        self.digest.number(1000);
        self.say(format_args!("a checkpoint with memory"));
        self.clock.pass(self.rng.below(2_000_000_000));
        let instant = self.write(8, None)?;
        for _ in 0..1 + self.rng.below(6) {
            let at = self.rng.below(VOLUME_SECTORS);
            let len = (1 + self.rng.below(40)).min(VOLUME_SECTORS - at) * SECTOR;
            self.page(RAM, at * SECTOR, len)?;
            if self.rng.percent(30) {
                self.write(20, None)?;
            }
        }
        self.page(STATE, 0, 8 * SECTOR)?;
        if self.rng.percent(20) {
            return None;
        }
        self.mark += 1;
        let guest = GuestMemory {
            guest: "vm".into(),
            blocks: vec![RamBlock {
                volume: RAM,
                id: "ram".into(),
                bytes: VOLUME_SECTORS * SECTOR,
            }],
            state: STATE,
            head_bytes: SECTOR,
            tail_bytes: SECTOR,
            pause_us: 1,
        };
        let memory = Some(Memory { instant, wall_ns: self.clock.wall_ns(), guests: vec![guest] });
        let mark = Checkpoint { id: self.mark, kind: CheckpointKind::Crash, tag: None, memory };
        self.meta(&Meta::Mark(mark), &Doubt::Commit(self.mark, instant)).map(drop)
    }

    /// Memory that compresses well, not at all, or is zero.
    fn page(&mut self, volume: VolumeId, at: u64, len: u64) -> Option<Seq> {
        let data = match self.rng.below(5) {
            0 => None,
            1 | 2 => Some(self.bytes(len)),
            _ => Some(vec![1 + self.rng.below(250) as u8; len as usize]),
        };
        let result = match &data {
            Some(data) => self.journal().append_memory(volume, at, data),
            None => self.journal().append_memory_zero(volume, at, len as u32),
        };
        // It gives up where captured writes need what is left; the journal goes on.
        let gives_up = result
            .as_ref()
            .is_err_and(|e| matches!(e.kind(), ErrorKind::FreeSpace | ErrorKind::Retry));
        if gives_up && !self.storage.has_struck() && self.journal().stopped().is_none() {
            return None;
        }
        self.took(result, &Doubt::Put(Put { volume, at, len, data, copy: None }))
    }

    /// One random step of a run that nothing befalls.
    pub fn calm_step(&mut self) {
        let what = self.rng.below(84);
        self.step_of(what);
    }

    pub fn step_of(&mut self, what: u64) {
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
                let tag = (self.wish.thins() && id.is_multiple_of(4)).then(|| format!("t{id}"));
                let doubt = Doubt::Mark(id, tag.is_some());
                let _ = self.meta(&Meta::Mark(Checkpoint { id, kind, tag, memory: None }), &doubt);
            }
            64..67 => {
                let mut sizes = self.sizes.clone();
                let volume = 1 + self.rng.below(u64::from(VOLUMES)) as VolumeId;
                sizes.insert(volume, (1 + self.rng.below(VOLUME_SECTORS)) * SECTOR);
                self.set_sizes(sizes);
            }
            67..73 => self.sync(),
            73..75 => _ = self.late(),
            75..78 => self.keep(),
            78..82 => {
                let history = self.history();
                assert!(history.head >= self.model.acked, "a reader sees what was acknowledged");
                self.check(&history, 3);
            }
            _ => self.end(what),
        }
    }

    /// What a keeper of the journal needs.
    pub fn keeping(&self) -> Setup {
        Setup {
            storage: self.storage.shared(),
            dir: Path::new(DIR).to_owned(),
            clock: Arc::clone(&self.clock) as _,
            ground: match &self.pool {
                Some(pool) => PoolGround::shared(pool, "g", UNIT_BYTES),
                None => Arc::new(Home { storage: self.storage.shared() }),
            },
            pace: Arc::new(Unpaced),
            key: self.key.clone(),
            limits: Limits::thinned(self.wish.clone(), None),
        }
    }

    /// Keeps the window for a while: the catalogue, runs, the edge, merging, releasing.
    pub fn keep(&mut self) {
        let steps = self.rng.below(KEEPER_STEPS_MAX);
        let mut edge = 0;
        let kept = Keeper::open(self.keeping()).and_then(|mut keeper| {
            for _ in 0..steps {
                if !keeper.step()? {
                    break;
                }
            }
            edge = keeper.occupancy().edge;
            Ok(())
        });
        match kept {
            // A full disk stops neither the journal nor the next try; nor does a unit whose seal failed
            // when the journal was opened: the next opening seals it.
            Err(e) if may_fail(&e) && !self.storage.has_struck() => {}
            kept => {
                if self.survived(kept) {
                    // It lies in sealed units: durable, whether or not anybody asked for a sync.
                    self.model.durable = self.model.durable.max(edge);
                }
            }
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
                let mut dirs = vec![PathBuf::from(DIR)];
                dirs.extend(self.members.iter().cloned());
                let dir = &dirs[self.rng.below(dirs.len() as u64) as usize];
                let used = self.storage.used_bytes(dir);
                let more = self.rng.below(4 << 20);
                self.storage.limit(dir, Some(used + more));
            }
            _ => self.clock.jump(self.rng.below(20_000) as i64 - 10_000),
        }
    }

    /// Some of everything, small, over two epochs and a close.
    pub fn freeze_steps(&mut self) {
        self.copy();
        for round in 0..2 {
            self.session += 1;
            self.session(SessionEvent::Open);
            for step in [0, 31, 1, 61, 2, 65, 3, 32, 98, 4, 62, 70] {
                // Small ones: the text is carried by the repository.
                match step {
                    0..30 => _ = self.write(3, None),
                    _ => self.step_of(step),
                }
            }
            if round == 0 {
                self.recover(End::Orderly, &Doubt::Nothing);
                self.copy();
            }
        }
        self.session(SessionEvent::Close);
        self.journal.take().map_or(Ok(()), Journal::close).unwrap();
    }
}

fn may_fail(error: &Error) -> bool {
    error.kind() == ErrorKind::FreeSpace || error.to_string().contains("its index is damaged")
}
