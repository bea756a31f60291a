//! A journal that is written in rounds, kept in between, and compared with plain arrays.

use crate::fixture::{Rng, VOLUME_BYTES, bytes_of, new_journal, quiet, session};
use crate::members::Members;
use afterimage_journal::clock::Clock;
use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::keeper::{Home, Keeper, PoolGround, Setup};
use afterimage_journal::log::Draft;
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, Copy, CopyCause, CopyEvent, Meta, SessionEvent,
};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::window::Limits;
use afterimage_journal::{History, Journal, Key, Options, Seq, View};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const MINUTE: u64 = 60_000_000_000;
/// A round of writes takes this long by the clock of the test.
pub const ROUND: u64 = MINUTE;

/// A clock that goes when it is told to.
#[derive(Clone)]
pub struct Watch(pub Arc<AtomicU64>);

impl Clock for Watch {
    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.mono_ns()
    }
    fn mono_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn boot_id(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// A journal that is written in rounds, and what it should hold.
pub struct Bench {
    _dir: tempfile::TempDir,
    pub dir: PathBuf,
    pub watch: Watch,
    pub disk: Vec<u8>,
    pub rng: Rng,
    pub copies: u32,
    pub points: Vec<(Seq, Vec<u8>)>,
    key: Option<Key>,
    pub members: Option<Members>,
}

impl Bench {
    pub fn new(seed: u64) -> Self {
        Self::made(seed, None, 1)
    }

    /// One over so many members of a pool.
    pub fn over(seed: u64, members: usize) -> Self {
        Self::made(seed, None, members)
    }

    /// One whose journal is encrypted.
    pub fn with_key(seed: u64, key: Key) -> Self {
        Self::made(seed, Some(key), 1)
    }

    pub fn made(seed: u64, key: Option<Key>, members: usize) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let members = (members > 1).then(|| Members::below(temporary.path(), members));
        let home = members.as_ref().map_or(temporary.path(), |m| &m.dirs[0]);
        let dir = home.join("g");
        let watch = Watch(Arc::new(AtomicU64::new(MINUTE)));
        let bench = Self {
            _dir: temporary,
            dir,
            watch,
            disk: vec![0; VOLUME_BYTES as usize],
            rng: Rng(seed | 1),
            copies: 0,
            points: Vec::new(),
            key,
            members,
        };
        new_journal(&bench.dir, bench.options()).close().unwrap();
        bench
    }

    pub fn options(&self) -> Options {
        let key = self.key.clone();
        let options = Options { clock: Arc::new(self.watch.clone()), key, ..quiet() };
        match &self.members {
            Some(members) => Options { allocator: Arc::clone(&members.allocator) as _, ..options },
            None => options,
        }
    }

    pub fn pass(&self, ns: u64) {
        self.watch.0.fetch_add(ns, Ordering::Relaxed);
    }

    pub fn put(&mut self, journal: &Journal, draft: &Draft, seed: u64) -> Seq {
        let (from, len) = (draft.addr as usize, draft.len as usize);
        let bytes = if draft.kind == Kind::Zero { vec![0; len] } else { bytes_of(seed, len) };
        let payload: &[u8] = if draft.kind == Kind::Zero { &[] } else { &bytes };
        let seq = journal.append(draft, payload).unwrap();
        self.disk[from..from + len].copy_from_slice(&bytes);
        seq
    }

    pub fn random_draft(&mut self) -> Draft {
        let sectors = VOLUME_BYTES / 512;
        let len = 1 + self.rng.next() % 64;
        let at = self.rng.next() % (sectors - len);
        let kind = if self.rng.next().is_multiple_of(8) { Kind::Zero } else { Kind::Write };
        Draft { volume: 1, addr: at * 512, len: (len * 512) as u32, ..Draft::of(kind) }
    }

    /// Writes about `units` units, with a point now and then; the journal is closed behind it.
    pub fn round(&mut self, units: u64) {
        self.pass(ROUND);
        let (journal, _) = Journal::open(&self.dir, self.options()).unwrap();
        let id = self.copies + 1000 + self.points.len() as u32;
        journal.append_meta(&session(id, SessionEvent::Open)).unwrap();
        let mut written = 0;
        while written < units << 20 {
            let draft = self.random_draft();
            let seed = self.rng.next();
            let seq = self.put(&journal, &draft, seed);
            written += u64::from(draft.len);
            match self.rng.next() % 40 {
                0 => self.points.push((seq, self.disk.clone())),
                1 => self.copy(&journal),
                2 => {
                    let tag = self.rng.next().is_multiple_of(2).then(|| format!("t{seq}"));
                    let mark =
                        Checkpoint { id: seq, kind: CheckpointKind::Crash, tag, memory: None };
                    journal.append_meta(&Meta::Mark(mark)).unwrap();
                }
                _ => {}
            }
        }
        self.points.push((journal.head(), self.disk.clone()));
        journal.append_meta(&session(id, SessionEvent::Close)).unwrap();
        journal.close().unwrap();
    }

    /// A resync into which a captured write falls: what is copied after it must not hide it.
    pub fn copy(&mut self, journal: &Journal) {
        self.copies += 1;
        let id = self.copies;
        let event = |event| {
            let copy =
                Copy { id, volume: 1, event, cause: CopyCause::Compare, upto: 0, whole: false };
            journal.append_meta(&Meta::Copy(copy)).unwrap()
        };
        event(CopyEvent::Start);
        let captured = self.random_draft();
        let seed = self.rng.next();
        self.put(journal, &captured, seed);
        // A stale block over all of it, and a block that is as it was elsewhere.
        let stale = Draft { kind: Kind::Write, flags: FLAG_COPIED, scope: id, ..captured };
        journal.append(&stale, &bytes_of(seed ^ 0xff, captured.len as usize)).unwrap();
        let other = self.random_draft();
        let apart = other.addr + u64::from(other.len) <= captured.addr
            || captured.addr + u64::from(captured.len) <= other.addr;
        if apart {
            let copied = Draft { flags: FLAG_COPIED, scope: id, ..other };
            self.put(journal, &copied, seed ^ 0x55);
        }
        event(CopyEvent::End);
    }

    /// Every block is copied, whatever the journal has, while the guest writes; then it is level. Says where.
    pub fn copy_whole(&mut self, journal: &Journal) -> Seq {
        self.copies += 1;
        let id = self.copies;
        let event = |event| {
            let (volume, cause) = (1, CopyCause::Compare);
            let copy = Copy { id, volume, event, cause, upto: VOLUME_BYTES, whole: true };
            journal.append_meta(&Meta::Copy(copy)).unwrap()
        };
        event(CopyEvent::Start);
        let (captured, seed, before) = (self.random_draft(), self.rng.next(), self.disk.clone());
        self.put(journal, &captured, seed);
        for (at, piece) in (0..).step_by(65536).zip(before.chunks(65536)) {
            let len = piece.len() as u32;
            let draft = Draft { volume: 1, addr: at, len, ..Draft::of(Kind::Write) };
            let copied = Draft { flags: FLAG_COPIED, scope: id, ..draft };
            journal.append(&copied, piece).unwrap();
        }
        event(CopyEvent::End);
        let id = id + 500_000;
        let opened = journal.append_meta(&session(id, SessionEvent::Open)).unwrap();
        self.points.push((opened, self.disk.clone()));
        opened
    }

    pub fn setup(&self, window_ns: u64) -> Setup {
        self.setup_on(RealStorage::shared(), window_ns)
    }

    pub fn setup_on(&self, storage: Arc<dyn Storage>, window_ns: u64) -> Setup {
        Setup {
            ground: match &self.members {
                Some(members) => PoolGround::shared(&members.pool, "g", 1 << 20),
                None => Arc::new(Home { storage: Arc::clone(&storage) }),
            },
            storage,
            dir: self.dir.clone(),
            clock: Arc::new(self.watch.clone()),
            pace: Arc::new(Unpaced),
            key: self.key.clone(),
            limits: Limits { guaranteed_ns: 0, ..Limits::new(window_ns, None) },
        }
    }

    pub fn keep(&self, window_ns: u64) -> Keeper {
        let mut keeper = Keeper::open(self.setup(window_ns)).unwrap();
        finish(&mut keeper);
        keeper
    }

    /// Every point from the edge on reads as it was; says how many there are.
    pub fn check(&self) -> usize {
        let mut history = History::load(&self.dir).unwrap();
        history.unlock(self.key.as_ref()).unwrap();
        assert!(history.damage.is_empty(), "{:?}", history.damage);
        let edge = edge_of(&self.dir);
        let kept: Vec<_> = self.points.iter().filter(|(seq, _)| *seq >= edge).collect();
        for (seq, disk) in &kept {
            assert!(history.is_restorable(*seq), "{seq} with the edge {edge}");
            let mut read = vec![0xee; disk.len()];
            View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
            let differs = read.iter().zip(disk).position(|(a, b)| a != b);
            assert_eq!(differs, None, "point {seq} with the edge {edge}");
        }
        for (seq, _) in self.points.iter().filter(|(seq, _)| *seq < edge) {
            assert!(!history.is_restorable(*seq), "{seq} below the edge {edge}");
        }
        kept.len()
    }

    /// A member is away, and back: what is listed meanwhile is right, nothing is merged, and all is there
    /// again.
    pub fn member_away(&mut self) {
        let Some(members) = &mut self.members else { return };
        let at = 1 + (self.rng.next() as usize) % (members.dirs.len() - 1);
        let dir = members.dirs[at].clone();
        members.hide(&dir);
        let mut history = History::load(&self.dir).unwrap();
        history.unlock(self.key.as_ref()).unwrap();
        for (seq, disk) in self.points.iter().filter(|(seq, _)| history.is_restorable(*seq)) {
            let mut read = vec![0xee; disk.len()];
            View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
            assert!(read == *disk, "point {seq} without {}", dir.display());
        }
        drop(history);
        assert!(
            Keeper::open(self.setup(0)).is_err(),
            "nothing is merged without {}",
            dir.display()
        );
        self.members.as_mut().unwrap().show(&dir);
    }

    pub fn bytes(&self) -> u64 {
        self.dirs().iter().map(|dir| bytes_in(dir)).sum()
    }

    /// The journal's directories, on all members.
    pub fn dirs(&self) -> Vec<PathBuf> {
        match &self.members {
            Some(members) => members.dirs.iter().map(|d| d.join("g")).collect(),
            None => vec![self.dir.clone()],
        }
    }
}

/// How many members the pool of a seed has: one to three.
pub fn members_of(seed: u64) -> usize {
    [3, 1, 2][seed as usize % 3]
}

fn bytes_in(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().metadata().unwrap());
    files.filter(|m| m.is_file()).map(|m| m.len()).sum()
}

pub fn edge_of(dir: &Path) -> Seq {
    afterimage_journal::catalogue::Catalogue::open(&RealStorage::shared(), dir).unwrap().edge()
}

/// Lets it do all there is to do; what is lost is looked at twice.
pub fn finish(keeper: &mut Keeper) {
    for _ in 0..10_000 {
        if !keeper.step().unwrap() && !keeper.step().unwrap() {
            return;
        }
    }
    panic!("the keeper never comes to rest");
}

pub fn names(dir: &Path, prefix: &str) -> Vec<String> {
    let all = fs::read_dir(dir).map(|l| l.map(|e| e.unwrap().file_name().into_string().unwrap()));
    let mut found: Vec<String> = match all {
        Ok(all) => all.filter(|n| n.starts_with(prefix)).collect(),
        Err(_) => Vec::new(),
    };
    found.sort();
    found
}

pub fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.metadata().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
