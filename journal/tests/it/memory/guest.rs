//! A guest with a disk and memory, its journal, and plain arrays of what each checkpoint held.

use crate::fixture::{bytes_of, config, session};
use crate::rounds::{Bench, finish};
use afterimage_journal::clock::Clock;
use afterimage_journal::format::record::Kind;
use afterimage_journal::history::CheckpointAt;
use afterimage_journal::keeper::{Keeper, Setup};
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, GuestMemory, Memory, Meta, RamBlock, SessionEvent, Volume,
    VolumeKind,
};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::window::{Keep, Limits};
use afterimage_journal::{History, Journal, Seq, View, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const PAGE: usize = 4096;
pub const SECOND: u64 = 1_000_000_000;
/// Volumes of memory with their sizes: two blocks of RAM, then the device state.
pub const VOLUMES: [(VolumeId, usize); 3] = [(2, 160 * PAGE), (3, 16 * PAGE), (4, 8 * PAGE)];
/// Index of the device state's.
const STATE: usize = 2;
/// Pages that are compared and appended at a time.
const RUN_PAGES: usize = 16;

/// A checkpoint with memory that was committed.
#[derive(Clone)]
pub struct Made {
    pub id: u64,
    pub instant: Seq,
    pub commit: Seq,
    pub wall_ns: u64,
    pub is_tagged: bool,
    /// What each volume of memory held, and the disk.
    pub memory: Vec<Vec<u8>>,
    pub disk: Vec<u8>,
}

/// See the module.
pub struct Warm {
    pub bench: Bench,
    pub made: Vec<Made>,
    /// Positions of plain checkpoints.
    pub plain: Vec<Seq>,
    /// What the journal's memory volumes hold now, and what the guest's memory is.
    held: Vec<Vec<u8>>,
    now: Vec<Vec<u8>>,
    session: u32,
    marks: u64,
    pub cut_off: usize,
    checks: usize,
}

impl Warm {
    pub fn new(seed: u64) -> Self {
        Self::over(seed, 1)
    }

    /// One over so many members of a pool.
    pub fn over(seed: u64, members: usize) -> Self {
        let empty: Vec<Vec<u8>> = VOLUMES.iter().map(|(_, bytes)| vec![0; *bytes]).collect();
        let warm = Self {
            bench: Bench::over(seed, members),
            made: Vec::new(),
            plain: Vec::new(),
            held: empty.clone(),
            now: empty,
            session: 0,
            marks: 0,
            cut_off: 0,
            checks: 0,
        };
        let journal = warm.open();
        let mut config = config(journal.identity().group);
        for (index, (id, bytes)) in VOLUMES.into_iter().enumerate() {
            let kind = if index == STATE { VolumeKind::DeviceState } else { VolumeKind::Ram };
            let (disk, bytes) = (format!("block{id}"), bytes as u64);
            let like = config.volumes[0].clone();
            config.volumes.push(Volume { id, kind, node: disk.clone(), disk, bytes, ..like });
        }
        journal.set_config(&config).unwrap();
        journal.close().unwrap();
        warm
    }

    pub fn open(&self) -> Journal {
        Journal::open(&self.bench.dir, self.bench.options()).unwrap().0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.bench.rng.next() % n
    }

    /// The guest works in its memory: zero pages, text, and noise.
    pub fn work(&mut self) {
        for (volume, (_, bytes)) in VOLUMES.into_iter().enumerate() {
            let pages = bytes / PAGE;
            for _ in 0..1 + self.below(pages as u64 / 4 + 1) {
                let at = self.below(pages as u64) as usize * PAGE;
                let seed = self.bench.rng.next();
                let page = &mut self.now[volume][at..at + PAGE];
                match seed % 4 {
                    0 => page.fill(0),
                    1 => page.copy_from_slice(&bytes_of(seed, PAGE)),
                    _ => page.fill(1 + (seed >> 32) as u8 % 200),
                }
                if seed % 4 == 2 {
                    page[seed as usize % PAGE..].fill(0);
                }
            }
        }
    }

    /// Writes to the disk, a plain checkpoint now and then.
    pub fn write(&mut self, journal: &Journal, count: u64) {
        for _ in 0..count {
            let (draft, seed) = (self.bench.random_draft(), self.bench.rng.next());
            self.bench.put(journal, &draft, seed);
            if seed.is_multiple_of(7) {
                let seq = self.mark(journal, None, false);
                self.plain.push(seq);
                self.bench.points.push((seq, self.bench.disk.clone()));
            }
        }
    }

    fn mark(&mut self, journal: &Journal, memory: Option<Memory>, is_tagged: bool) -> Seq {
        self.marks += 1;
        let tag = is_tagged.then(|| format!("t{}", self.marks));
        let mark = Checkpoint { id: self.marks, kind: CheckpointKind::Crash, tag, memory };
        journal.append_meta(&Meta::Mark(mark)).unwrap()
    }

    /// A checkpoint with memory; cut off behind so many runs of pages, if there are as many.
    pub fn checkpoint(&mut self, journal: &Journal, cut_at: Option<usize>) {
        let taken = self.now.clone();
        let disk = self.bench.disk.clone();
        let instant = journal.append(&Draft::of(Kind::Flush), &[]).unwrap();
        let wall_ns = self.bench.watch.wall_ns();
        self.bench.points.push((instant, disk.clone()));
        let mut runs = 0;
        for (volume, memory) in taken.iter().enumerate() {
            for at in (0..memory.len()).step_by(RUN_PAGES * PAGE) {
                if Some(runs) == cut_at {
                    self.cut_off += 1;
                    return;
                }
                runs += 1;
                self.append_changed(journal, volume, memory, at);
                if self.below(3) == 0 {
                    self.write(journal, 1);
                }
            }
        }
        let is_tagged = self.below(12) == 0;
        let commit = self.mark(journal, Some(described(instant, wall_ns)), is_tagged);
        let id = self.marks;
        self.made.push(Made { id, instant, commit, wall_ns, is_tagged, memory: taken, disk });
    }

    /// Appends the pages of a run that the journal holds otherwise, neighbours together.
    fn append_changed(&mut self, journal: &Journal, volume: usize, memory: &[u8], at: usize) {
        let held = &mut self.held[volume];
        let end = (at + RUN_PAGES * PAGE).min(memory.len());
        let id = VOLUMES[volume].0;
        let mut from = at;
        while from < end {
            let is_zero = |at: usize| memory[at..at + PAGE].iter().all(|b| *b == 0);
            let differs = |at: usize| memory[at..at + PAGE] != held[at..at + PAGE];
            let mut to = from;
            while to < end && differs(to) && is_zero(to) == is_zero(from) {
                to += PAGE;
            }
            if to == from {
                from += PAGE;
                continue;
            }
            let (addr, page) = (from as u64, &memory[from..to]);
            let appended = match is_zero(from) {
                true => journal.append_memory_zero(id, addr, (to - from) as u32),
                false => journal.append_memory(id, addr, page),
            };
            appended.unwrap();
            held[from..to].copy_from_slice(page);
            from = to;
        }
    }

    /// Some checkpoints with writes between them; the journal is closed behind it, or let go.
    pub fn round(&mut self, checkpoints: u64) {
        let journal = self.open();
        self.session += 1;
        journal.append_meta(&session(self.session, SessionEvent::Open)).unwrap();
        for _ in 0..checkpoints {
            let count = self.below(12);
            self.write(&journal, count);
            self.work();
            let cut_at = (self.below(4) == 0).then(|| self.below(12) as usize);
            self.checkpoint(&journal, cut_at);
            let pause = 1 + self.below(20);
            self.bench.pass(pause * SECOND);
        }
        if self.below(3) == 0 {
            return;
        }
        journal.append_meta(&session(self.session, SessionEvent::Close)).unwrap();
        journal.close().unwrap();
    }

    pub fn setup_on(&self, storage: Arc<dyn Storage>, keep: &str) -> Setup {
        let mut setup = self.bench.setup_on(storage, 0);
        let keep: Keep = keep.parse().unwrap();
        setup.limits = Limits { guaranteed_ns: 0, ..Limits::thinned(keep, None) };
        setup
    }

    pub fn keep(&self, keep: &str) -> u64 {
        let mut keeper = Keeper::open(self.setup_on(RealStorage::shared(), keep)).unwrap();
        finish(&mut keeper);
        keeper.occupancy().merged_bytes
    }

    /// What is listed reads as it was; says which checkpoints are listed warm.
    pub fn check_exact(&self, history: &History) -> BTreeMap<u64, Made> {
        assert!(history.damage.is_empty(), "{:?}", history.damage);
        let mut warm = BTreeMap::new();
        for point in history.checkpoints.iter().filter(|c| c.is_warm()) {
            let made = self.made.iter().find(|m| m.id == point.checkpoint.id);
            let made = made.unwrap_or_else(|| panic!("{point:?} was never committed"));
            assert_eq!((point.seq, point.committed), (made.instant, made.commit));
            assert!(history.is_restorable(point.seq));
            assert_eq!(history.memory_at(made.instant).map(|c| c.checkpoint.id), Some(made.id));
            if (made.id as usize + self.checks).is_multiple_of(3) {
                self.compare(history, made);
            }
            warm.insert(made.id, made.clone());
        }
        warm
    }

    pub fn compare(&self, history: &History, made: &Made) {
        assert_reads(history, 1, made.instant, &made.disk);
        for ((volume, _), memory) in VOLUMES.iter().zip(&made.memory) {
            assert_reads(history, *volume, made.commit, memory);
        }
    }

    /// The same with and without the catalogue, of which the latter may list more.
    pub fn check(&mut self) -> BTreeMap<u64, Made> {
        self.checks += 1;
        let history = History::load(&self.bench.dir).unwrap();
        let warm = self.check_exact(&history);
        // Whatever is in the window is there.
        for made in self.made.iter().filter(|m| m.instant >= history.edge) {
            assert!(warm.contains_key(&made.id), "checkpoint {} is not warm", made.id);
        }
        let alone = History::rebuild(&RealStorage::shared(), &self.bench.dir).unwrap();
        let without = self.check_exact(&alone);
        for id in warm.keys() {
            assert!(without.contains_key(id), "without a catalogue, checkpoint {id} is lost");
        }
        let listed = |c: &&CheckpointAt| history.is_restorable(c.seq);
        let named = history.checkpoints.iter().filter(listed).map(|c| c.checkpoint.id);
        for id in named {
            let found = alone.checkpoints.iter().any(|c| c.checkpoint.id == id);
            assert!(found, "without a catalogue, checkpoint {id} has no name");
        }
        for (seq, disk) in self.bench.points.iter().skip(self.checks % 5).step_by(5) {
            if history.is_restorable(*seq) {
                assert_reads(&history, 1, *seq, disk);
            } else {
                assert!(*seq < history.edge);
            }
        }
        warm
    }
}

/// What commits a checkpoint of all volumes.
pub fn described(instant: Seq, wall_ns: u64) -> Memory {
    let block = |index: usize| {
        let (volume, bytes) = VOLUMES[index];
        RamBlock { volume, id: format!("block{volume}"), bytes: bytes as u64 }
    };
    let guest = GuestMemory {
        guest: "vm".into(),
        blocks: vec![block(0), block(1)],
        state: VOLUMES[STATE].0,
        head_bytes: 100,
        tail_bytes: (VOLUMES[STATE].1 - 100) as u64,
        pause_us: 1,
    };
    Memory { instant, wall_ns, guests: vec![guest] }
}

fn assert_reads(history: &History, volume: VolumeId, seq: Seq, expected: &[u8]) {
    let mut read = vec![0xee; expected.len()];
    View::at(history, volume, seq).unwrap().read(0, &mut read).unwrap();
    let differs = read.iter().zip(expected).position(|(a, b)| a != b);
    let (floor, edge) = (history.floor, history.edge);
    assert_eq!(differs, None, "volume {volume} at {seq}, floor {floor}, edge {edge}");
}
