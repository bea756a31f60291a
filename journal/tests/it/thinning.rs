//! Thinned history: what is kept reads as it was, what isn't is refused, whatever happens in between.

use crate::fixture::session;
use crate::mortal::Mortal;
use crate::rounds::{Bench, MINUTE, copy_files, finish, members_of, names};
use afterimage_journal::catalogue::Catalogue;
use afterimage_journal::clock::Clock;
use afterimage_journal::history::When;
use afterimage_journal::keeper::{Keeper, Setup, rebuild};
use afterimage_journal::meta::{Checkpoint, CheckpointKind, Meta, SessionEvent};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::window::{Keep, Limits};
use afterimage_journal::{History, Journal, Seq, View};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;

/// A checkpoint that was made.
#[derive(Debug, Clone, Copy)]
struct Mark {
    seq: Seq,
    wall_ns: u64,
    tagged: bool,
}

/// A journal with many checkpoints, and what each position of interest held.
struct Thinning {
    bench: Bench,
    marks: Vec<Mark>,
    rounds: u32,
    checks: usize,
}

/// One point of so many is read at a check, another one at the next.
const READ_OF: usize = 8;

impl Thinning {
    fn new(seed: u64) -> Self {
        Self::over(seed, 1)
    }

    /// One over so many members of a pool.
    fn over(seed: u64, members: usize) -> Self {
        Self { bench: Bench::over(seed, members), marks: Vec::new(), rounds: 0, checks: 0 }
    }

    /// Writes about so many units in bursts of up to `burst` writes, with time and mostly a checkpoint
    /// between them. The journal is closed behind it.
    fn round(&mut self, units: u64, burst: u64) {
        let (journal, _) = Journal::open(&self.bench.dir, self.bench.options()).unwrap();
        self.rounds += 1;
        journal.append_meta(&session(self.rounds, SessionEvent::Open)).unwrap();
        let mut written = 0;
        while written < units << 20 {
            for _ in 0..1 + self.bench.rng.next() % burst {
                let (draft, seed) = (self.bench.random_draft(), self.bench.rng.next());
                let seq = self.bench.put(&journal, &draft, seed);
                written += u64::from(draft.len);
                if self.bench.rng.next().is_multiple_of(8) {
                    self.bench.points.push((seq, self.bench.disk.clone()));
                }
            }
            match self.bench.rng.next() % 12 {
                0 => self.bench.copy(&journal),
                1 => {}
                _ => self.mark(&journal),
            }
            let pause = 1 + self.bench.rng.next() % 20;
            self.bench.pass(pause * SECOND);
        }
        journal.append_meta(&session(self.rounds, SessionEvent::Close)).unwrap();
        journal.close().unwrap();
    }

    fn mark(&mut self, journal: &Journal) {
        let id = 1 + self.bench.points.last().map_or(0, |(seq, _)| *seq);
        let tagged = self.bench.rng.next().is_multiple_of(16);
        let tag = tagged.then(|| format!("t{id}"));
        let wall_ns = self.bench.watch.wall_ns();
        let mark = Meta::Mark(Checkpoint { id, kind: CheckpointKind::Crash, tag, memory: None });
        let seq = journal.append_meta(&mark).unwrap();
        self.marks.push(Mark { seq, wall_ns, tagged });
        self.bench.points.push((seq, self.bench.disk.clone()));
    }

    fn setup_on(&self, storage: Arc<dyn Storage>, keep: &str) -> Setup {
        let mut setup = self.bench.setup_on(storage, 0);
        let keep: Keep = keep.parse().unwrap();
        setup.limits = Limits { guaranteed_ns: 0, ..Limits::thinned(keep, None) };
        setup
    }

    fn keep(&self, keep: &str) -> Keeper {
        let mut keeper = Keeper::open(self.setup_on(RealStorage::shared(), keep)).unwrap();
        finish(&mut keeper);
        keeper
    }

    fn catalogue(&self) -> Catalogue {
        Catalogue::open(&RealStorage::shared(), &self.bench.dir).unwrap()
    }

    /// Every point that a history lists reads as it was, and every one from the edge on is listed.
    fn check_exact(&self, history: &History) -> BTreeSet<Seq> {
        assert!(history.damage.is_empty(), "{:?}", history.damage);
        let mut listed = BTreeSet::new();
        for (at, (seq, disk)) in self.bench.points.iter().enumerate() {
            if !history.is_restorable(*seq) {
                assert!(*seq < history.edge, "{seq} with the edge {}", history.edge);
                continue;
            }
            listed.insert(*seq);
            if !(at + self.checks).is_multiple_of(READ_OF) {
                continue;
            }
            let mut read = vec![0xee; disk.len()];
            let view = View::at(history, 1, *seq).unwrap();
            view.read(0, &mut read).unwrap();
            let differs = read.iter().zip(disk).position(|(a, b)| a != b);
            let (floor, edge) = (history.floor, history.edge);
            assert_eq!(differs, None, "point {seq}, floor {floor}, edge {edge}");
        }
        listed
    }

    /// The same with the catalogue's word: before the edge, only checkpoints are listed. Without it at
    /// least what was listed with it.
    fn check(&mut self) -> Vec<Mark> {
        self.checks += 1;
        let history = History::load(&self.bench.dir).unwrap();
        let listed = self.check_exact(&history);
        let thinned: Vec<Mark> =
            self.marks.iter().filter(|m| history.is_restorable(m.seq)).copied().collect();
        let thinned: Vec<Mark> = thinned.into_iter().filter(|m| m.seq < history.edge).collect();
        let below: Vec<Seq> = listed.range(..history.edge).copied().collect();
        assert_eq!(below, thinned.iter().map(|m| m.seq).collect::<Vec<_>>());
        let shown: Vec<Seq> = history.checkpoints.iter().map(|c| c.seq).collect();
        assert!(shown.is_sorted() && below.iter().all(|seq| shown.contains(seq)));
        assert!(thinned.iter().all(|m| m.seq >= history.floor), "floor {}", history.floor);
        let alone = History::rebuild(&RealStorage::shared(), &self.bench.dir).unwrap();
        let without = self.check_exact(&alone);
        assert!(without.is_superset(&listed), "lost: {:?}", listed.difference(&without));
        let named: BTreeSet<Seq> = alone.checkpoints.iter().map(|c| c.seq).collect();
        assert!(below.iter().all(|seq| named.contains(seq)), "a kept checkpoint lost its name");
        thinned
    }

    fn age_ns(&self, mark: &Mark) -> u64 {
        self.bench.watch.wall_ns() - mark.wall_ns
    }
}

#[test]
fn each_slot_keeps_a_checkpoint_that_reads_as_it_was_and_tagged_ones_stay() {
    let mut merged = 0;
    for seed in 1..=4 {
        let mut thinning = Thinning::over(seed * 6151, members_of(seed));
        // Bursts of a few writes: many kept positions in a unit; of many: many units between two.
        let burst = if seed % 2 == 0 { 3 } else { 40 };
        for round in 0..10 {
            thinning.round(2, burst);
            merged += thinning.keep("2m,1m:20m,5m:60m").occupancy().merged_bytes;
            let kept = thinning.check();
            let slot = |m: &Mark| m.wall_ns / (5 * MINUTE);
            let there: BTreeSet<u64> = kept.iter().map(slot).collect();
            let edge = thinning.catalogue().edge();
            for mark in thinning.marks.iter().filter(|m| m.seq < edge) {
                // By the clock of the test it is at least as old as anything proves.
                if thinning.age_ns(mark) < 60 * MINUTE {
                    assert!(there.contains(&slot(mark)), "seed {seed}, round {round}: {mark:?}");
                    let is_kept = kept.iter().any(|k| k.seq == mark.seq);
                    assert!(is_kept || !mark.tagged, "seed {seed}, round {round}: {mark:?}");
                }
            }
        }
        let kept = thinning.check();
        let given_up = thinning.marks.iter().filter(|m| m.seq < thinning.catalogue().edge());
        assert!(kept.len() > 3 && kept.len() * 2 < given_up.count(), "{} are kept", kept.len());
    }
    assert!(merged > 0);
}

#[test]
fn whatever_is_wished_in_turn_what_is_listed_reads_as_it_was() {
    let wishes = ["2m", "1m,30s:30m", "4m,1m:10m,5m:40m", "30s,2m:6m", "10m,10m:2h"];
    for seed in 1..=4 {
        let mut thinning = Thinning::over(seed * 3571, members_of(seed));
        for _ in 0..12 {
            thinning.bench.member_away();
            thinning.round(1 + seed % 3, 20);
            let wish = wishes[(thinning.bench.rng.next() % 5) as usize];
            thinning.keep(wish);
            thinning.check();
            if thinning.bench.rng.next().is_multiple_of(3) {
                // The catalogue is lost; now and then the runs, too.
                fs::remove_file(thinning.bench.dir.join("catalogue")).unwrap();
                if thinning.bench.rng.next().is_multiple_of(2) {
                    rebuild(thinning.setup_on(RealStorage::shared(), "1w")).unwrap();
                }
                thinning.check_exact(&History::load(&thinning.bench.dir).unwrap());
                thinning.keep(wish);
                thinning.check();
            }
        }
        assert!(thinning.bench.dirs().iter().any(|dir| !names(dir, "merged-").is_empty()));
    }
}

#[test]
fn killed_at_any_call_thinning_is_done_again() {
    const KEEP: &str = "30s,1m:3m,3m:8m";
    let mut thinning = Thinning::new(77);
    for _ in 0..3 {
        thinning.round(3, 30);
        thinning.keep(KEEP);
    }
    thinning.round(5, 30);
    thinning.bench.pass(MINUTE);
    let before = tempfile::tempdir().unwrap();
    copy_files(&thinning.bench.dir, before.path());
    let mut calls = 0;
    loop {
        fs::remove_dir_all(&thinning.bench.dir).unwrap();
        copy_files(before.path(), &thinning.bench.dir);
        let mortal = Arc::new(Mortal::new(calls));
        let run = |keeper: Keeper| {
            let mut keeper = keeper;
            while keeper.step()? {}
            Ok(())
        };
        let killed = Keeper::open(thinning.setup_on(mortal.clone(), KEEP)).and_then(run);
        assert_eq!(killed.is_err(), mortal.is_dead(), "{killed:?}");
        let first = thinning.check();
        thinning.keep(KEEP);
        let again = thinning.check();
        let gone = first.iter().filter(|m| again.iter().all(|a| a.seq != m.seq)).count();
        assert!(gone == 0 || killed.is_err(), "{gone} are given up by asking again");
        if !mortal.is_dead() {
            break;
        }
        calls += 1;
    }
    assert!(calls > 30, "only {calls} calls");
    assert!(!names(&thinning.bench.dir, "merged-").is_empty());
}

#[test]
fn a_moment_between_kept_ones_is_refused_with_its_neighbours() {
    let mut thinning = Thinning::new(99);
    for _ in 0..6 {
        thinning.round(2, 10);
    }
    thinning.keep("2m,1m:60m");
    let kept = thinning.check();
    let history = History::load(&thinning.bench.dir).unwrap();
    assert!(kept.len() > 4);
    for pair in kept.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        for seq in [before.seq + 1, after.seq - 1] {
            let refused = history.resolve(&When::Seq(seq)).unwrap_err();
            assert!(refused.why.contains("merged away"), "{}", refused.why);
            let near = (refused.before.map(|p| p.seq), refused.after.map(|p| p.seq));
            assert_eq!(near, (Some(before.seq), Some(after.seq)));
        }
        // A time is one that was kept, to the millisecond that is shown, or none.
        assert_eq!(history.resolve(&When::Time(after.wall_ns)).unwrap().seq, after.seq);
        let shown = after.wall_ns / 1_000_000 * 1_000_000;
        assert_eq!(history.resolve(&When::Time(shown)).unwrap().seq, after.seq);
        for ns in [before.wall_ns + SECOND / 2, after.wall_ns - SECOND / 2] {
            let refused = history.resolve(&When::Time(ns)).unwrap_err();
            let near = (refused.before.map(|p| p.seq), refused.after.map(|p| p.seq));
            assert_eq!(near, (Some(before.seq), Some(after.seq)), "{ns}: {}", refused.why);
        }
    }
    let oldest = history.thinned_from().unwrap();
    assert_eq!(oldest.seq, kept[0].seq);
    let (from, _) = history.window().unwrap();
    assert!(from.seq >= history.edge);
}

#[test]
fn a_longer_window_keeps_what_is_left_and_none_gives_all_up() {
    let mut thinning = Thinning::new(123);
    for _ in 0..5 {
        thinning.round(2, 10);
    }
    thinning.keep("1m,30s:60m");
    let kept = thinning.check();
    assert!(kept.len() > 4);
    // All of it lies within the new window, in which single checkpoints alone are left.
    thinning.keep("50m,10m:60m");
    let after = thinning.check();
    assert!(kept.iter().all(|k| after.iter().any(|a| a.seq == k.seq)));
    thinning.keep("1m");
    assert!(thinning.check().is_empty());
}

#[test]
fn near_the_limit_thinned_history_goes_before_the_window_does() {
    let mut thinning = Thinning::new(57);
    let limit = 16 << 20;
    for _ in 0..10 {
        thinning.round(3, 30);
        let mut setup = thinning.setup_on(RealStorage::shared(), "1m,30s:100h");
        setup.limits.limit_bytes = Some(limit);
        finish(&mut Keeper::open(setup).unwrap());
        thinning.check();
        let (files, catalogue) = (thinning.bench.bytes(), thinning.catalogue());
        assert!(files < limit + (4 << 20), "{files} bytes");
        assert!(catalogue.floor() <= catalogue.edge());
    }
    assert!(thinning.catalogue().floor() > 0);
}

#[test]
fn thinned_history_ages_and_goes_in_the_end() {
    let mut thinning = Thinning::new(31);
    let mut most = 0;
    for _ in 0..60 {
        thinning.round(1, 30);
        thinning.keep("1m,1m:8m");
        most = most.max(thinning.bench.bytes());
        let old = thinning.bench.points.len().saturating_sub(60);
        let behind = thinning.bench.points.drain(..old).next_back().map_or(0, |(seq, _)| seq);
        thinning.marks.retain(|m| m.seq > behind);
    }
    thinning.bench.pass(2 * MINUTE);
    thinning.keep("1m,1m:8m");
    let kept = thinning.check();
    let oldest = kept.first().map_or(0, |m| thinning.age_ns(m));
    assert!(oldest < 15 * MINUTE, "the oldest is {} s old", oldest / SECOND);
    assert!(thinning.catalogue().floor() > 0);
    // Everything that was written is some 60 MiB.
    assert!(most < 30 << 20, "{most} bytes");
}
