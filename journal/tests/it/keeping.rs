//! The keeper over real files: whatever it merges, every point from the edge on reads the same.

use crate::fixture::{Rng, VOLUME_BYTES, bytes_of, content, new_journal, quiet, session};
use crate::mortal::Mortal;
use afterimage_journal::clock::Clock;
use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::log::Draft;
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, Copy, CopyCause, CopyEvent, Meta, SessionEvent,
};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::window::Limits;
use afterimage_journal::{History, Journal, Options, Seq, View};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MINUTE: u64 = 60_000_000_000;
/// A round of writes takes this long by the clock of the test.
const ROUND: u64 = MINUTE;

/// A clock that goes when it is told to.
#[derive(Clone)]
struct Watch(Arc<AtomicU64>);

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
struct Bench {
    _dir: tempfile::TempDir,
    dir: PathBuf,
    watch: Watch,
    disk: Vec<u8>,
    rng: Rng,
    copies: u32,
    points: Vec<(Seq, Vec<u8>)>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("g");
        let watch = Watch(Arc::new(AtomicU64::new(MINUTE)));
        let bench = Self {
            _dir: temporary,
            dir,
            watch,
            disk: vec![0; VOLUME_BYTES as usize],
            rng: Rng(seed | 1),
            copies: 0,
            points: Vec::new(),
        };
        new_journal(&bench.dir, bench.options()).close().unwrap();
        bench
    }

    fn options(&self) -> Options {
        Options { clock: Arc::new(self.watch.clone()), ..quiet() }
    }

    fn pass(&self, ns: u64) {
        self.watch.0.fetch_add(ns, Ordering::Relaxed);
    }

    fn put(&mut self, journal: &Journal, draft: &Draft, seed: u64) -> Seq {
        let (from, len) = (draft.addr as usize, draft.len as usize);
        let bytes = if draft.kind == Kind::Zero { vec![0; len] } else { bytes_of(seed, len) };
        let payload: &[u8] = if draft.kind == Kind::Zero { &[] } else { &bytes };
        let seq = journal.append(draft, payload).unwrap();
        self.disk[from..from + len].copy_from_slice(&bytes);
        seq
    }

    fn random_draft(&mut self) -> Draft {
        let sectors = VOLUME_BYTES / 512;
        let len = 1 + self.rng.next() % 64;
        let at = self.rng.next() % (sectors - len);
        let kind = if self.rng.next().is_multiple_of(8) { Kind::Zero } else { Kind::Write };
        Draft { volume: 1, addr: at * 512, len: (len * 512) as u32, ..Draft::of(kind) }
    }

    /// Writes about `units` units, with a point now and then; the journal is closed behind it.
    fn round(&mut self, units: u64) {
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
                    let mark = Checkpoint { id: seq, kind: CheckpointKind::Crash, tag };
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
    fn copy(&mut self, journal: &Journal) {
        self.copies += 1;
        let id = self.copies;
        let event = |event| {
            let copy = Copy { id, volume: 1, event, cause: CopyCause::Compare, upto: 0 };
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

    fn setup(&self, window_ns: u64) -> Setup {
        self.setup_on(RealStorage::shared(), window_ns)
    }

    fn setup_on(&self, storage: Arc<dyn Storage>, window_ns: u64) -> Setup {
        Setup {
            ground: Arc::new(Home { storage: Arc::clone(&storage) }),
            storage,
            dir: self.dir.clone(),
            clock: Arc::new(self.watch.clone()),
            pace: Arc::new(Unpaced),
            limits: Limits { window_ns, guaranteed_ns: 0, limit_bytes: None },
        }
    }

    fn keep(&self, window_ns: u64) -> Keeper {
        let mut keeper = Keeper::open(self.setup(window_ns)).unwrap();
        finish(&mut keeper);
        keeper
    }

    /// Every point from the edge on reads as it was; says how many there are.
    fn check(&self) -> usize {
        let history = History::load(&self.dir).unwrap();
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

    fn bytes(&self) -> u64 {
        let files = fs::read_dir(&self.dir).unwrap().map(|e| e.unwrap().metadata().unwrap());
        files.filter(|m| m.is_file()).map(|m| m.len()).sum()
    }
}

fn edge_of(dir: &Path) -> Seq {
    afterimage_journal::catalogue::Catalogue::open(&RealStorage::shared(), dir).unwrap().edge()
}

/// Lets it do all there is to do.
fn finish(keeper: &mut Keeper) {
    for _ in 0..10_000 {
        if !keeper.step().unwrap() {
            return;
        }
    }
    panic!("the keeper never comes to rest");
}

fn names(dir: &Path, prefix: &str) -> Vec<String> {
    let all = fs::read_dir(dir).map(|l| l.map(|e| e.unwrap().file_name().into_string().unwrap()));
    let mut found: Vec<String> = match all {
        Ok(all) => all.filter(|n| n.starts_with(prefix)).collect(),
        Err(_) => Vec::new(),
    };
    found.sort();
    found
}

#[test]
fn points_from_the_edge_on_read_the_same_whatever_was_merged() {
    for seed in [1, 2, 3] {
        let mut bench = Bench::new(seed * 7919);
        let mut merged = 0;
        for round in 0..12 {
            let units = 1 + bench.rng.next() % 4;
            bench.round(units);
            let rounds = bench.rng.next() % 6;
            let keeper = bench.keep(rounds * ROUND);
            merged += keeper.occupancy().merged_bytes;
            drop(keeper);
            let points = bench.check();
            assert!(points > 0, "seed {seed}, round {round}");
        }
        assert!(merged > 0 && edge_of(&bench.dir) > 0);
        assert!(!names(&bench.dir, "merged-").is_empty());
    }
}

#[test]
fn killed_at_any_call_it_is_done_again() {
    let mut bench = Bench::new(42);
    for _ in 0..3 {
        bench.round(2);
        bench.keep(10 * ROUND);
    }
    bench.round(2);
    let before = tempfile::tempdir().unwrap();
    copy_files(&bench.dir, before.path());
    let mut calls = 0;
    loop {
        fs::remove_dir_all(&bench.dir).unwrap();
        copy_files(before.path(), &bench.dir);
        let mortal = Arc::new(Mortal::new(calls));
        let killed = Keeper::open(bench.setup_on(mortal.clone(), ROUND)).and_then(|mut keeper| {
            while keeper.step()? {}
            Ok(())
        });
        assert_eq!(killed.is_err(), mortal.is_dead(), "{killed:?}");
        bench.check();
        let after = names(&bench.dir, "");
        let again = Keeper::open(bench.setup(ROUND)).and_then(|mut keeper| {
            while keeper.step()? {}
            Ok(())
        });
        assert!(again.is_ok(), "{again:?} behind {calls} calls, which left {after:?}");
        bench.check();
        let left = names(&bench.dir, "").into_iter().filter(|n| n.ends_with(".tmp")).count();
        assert_eq!(left, 0);
        if !mortal.is_dead() {
            break;
        }
        calls += 1;
    }
    assert!(calls > 20, "only {calls} calls");
    assert!(!names(&bench.dir, "merged-").is_empty());
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.metadata().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_reader_that_began_before_reads_on_and_what_it_held_goes_with_it() {
    let mut bench = Bench::new(5);
    bench.round(3);
    let history = History::load(&bench.dir).unwrap();
    let points = bench.points.clone();
    for _ in 0..4 {
        bench.round(3);
        bench.keep(ROUND);
    }
    assert!(edge_of(&bench.dir) > points.last().unwrap().0, "its points are merged meanwhile");
    assert!(!names(&bench.dir.join("held"), "unit-").is_empty());
    for (seq, disk) in &points {
        let mut read = vec![0xee; disk.len()];
        View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
        assert!(read == *disk, "point {seq}");
    }
    let pinned = bench.keep(ROUND).occupancy().clone();
    assert!(pinned.pinned_bytes > 0);
    drop(history);
    assert_eq!(bench.keep(ROUND).occupancy().pinned_bytes, 0);
    assert!(names(&bench.dir.join("held"), "").is_empty());
    bench.check();
}

#[test]
fn disk_use_stays_bounded_however_much_is_written() {
    let mut bench = Bench::new(11);
    let mut most = 0;
    for _ in 0..40 {
        bench.round(3);
        bench.keep(2 * ROUND);
        most = most.max(bench.bytes());
        bench.points.drain(..bench.points.len().saturating_sub(30));
    }
    // The window is two rounds and one in progress, each of some four units; the base a volume of 1
    // MiB in merged units, of which half may be dead.
    assert!(most < 24 << 20, "{most} bytes");
    bench.check();
}

#[test]
fn a_limit_shortens_the_window_but_not_below_what_is_guaranteed() {
    let mut bench = Bench::new(13);
    let limit = 16 << 20;
    for _ in 0..10 {
        bench.round(3);
        let mut setup = bench.setup(1000 * ROUND);
        setup.limits.limit_bytes = Some(limit);
        finish(&mut Keeper::open(setup).unwrap());
    }
    assert!(edge_of(&bench.dir) > 0 && bench.bytes() < limit, "{} bytes", bench.bytes());
    bench.check();
    // What is guaranteed stays, and the alarm says what comes next.
    let edge = edge_of(&bench.dir);
    bench.round(12);
    let mut setup = bench.setup(1000 * ROUND);
    setup.limits = Limits { guaranteed_ns: 1000 * ROUND, limit_bytes: Some(limit), ..setup.limits };
    let mut keeper = Keeper::open(setup).unwrap();
    finish(&mut keeper);
    assert_eq!(edge_of(&bench.dir), edge);
    let occupancy = keeper.occupancy();
    assert!(!occupancy.has_room && occupancy.alarm.as_deref() == Some("full"), "{occupancy:?}");
    bench.check();
}

#[test]
fn a_damaged_record_is_named_and_never_copied() {
    let mut bench = Bench::new(17);
    bench.round(3);
    bench.round(3);
    // Every page of the second unit, of which something is always left.
    let first = bench.dir.join("unit-0000000002");
    let mut bytes = fs::read(&first).unwrap();
    for at in (8192..bytes.len() - 65536).step_by(4096) {
        bytes[at + 100] ^= 0x55;
    }
    fs::write(&first, &bytes).unwrap();
    bench.round(6);
    let keeper = bench.keep(ROUND);
    let damage = &keeper.occupancy().damage;
    assert!(damage.iter().any(|d| d.contains("unit-0000000002")), "{damage:?}");
    assert!(first.exists(), "evidence stays");
}

#[test]
fn catalogue_and_runs_are_made_anew_from_units_alone() {
    let mut bench = Bench::new(19);
    for _ in 0..4 {
        bench.round(3);
        bench.keep(ROUND);
    }
    let (edge, points) = (edge_of(&bench.dir), bench.check());
    for name in names(&bench.dir, "map-").iter().chain(&["catalogue".to_owned()]) {
        fs::remove_file(bench.dir.join(name)).unwrap();
    }
    assert_eq!(bench.check(), points);
    bench.keep(ROUND);
    assert!(edge_of(&bench.dir) >= edge);
    bench.check();
    assert!(!names(&bench.dir, "map-base-").is_empty());
    // One that rotted is as good as none.
    let base = bench.dir.join(&names(&bench.dir, "map-base-")[0]);
    let mut bytes = fs::read(&base).unwrap();
    bytes[4096 + 50] ^= 1;
    fs::write(&base, &bytes).unwrap();
    bench.round(3);
    bench.keep(ROUND);
    bench.check();
}

#[test]
fn scrubbing_finds_rot_before_anybody_reads_it() {
    let mut bench = Bench::new(23);
    bench.round(3);
    let mut keeper = bench.keep(1000 * ROUND);
    let pass = |keeper: &mut Keeper| (0..200).for_each(|_| keeper.scrub(1 << 20));
    pass(&mut keeper);
    assert!(keeper.occupancy().scrub.passes > 0 && keeper.occupancy().damage.is_empty());
    let unit = bench.dir.join("unit-0000000002");
    let mut bytes = fs::read(&unit).unwrap();
    bytes[4096 * 8 + 70] ^= 1;
    fs::write(&unit, &bytes).unwrap();
    pass(&mut keeper);
    let damage = &keeper.occupancy().damage;
    assert!(damage.len() == 1 && damage[0].contains("unit-0000000002"), "{damage:?}");
}

#[test]
fn content_at_the_edge_is_that_of_a_plain_read() {
    let mut bench = Bench::new(29);
    bench.round(2);
    bench.pass(10 * ROUND);
    bench.round(2);
    bench.keep(ROUND);
    let (seq, disk) = bench.points.last().unwrap();
    assert!(content(&bench.dir, *seq, 0, disk.len()) == *disk);
}
