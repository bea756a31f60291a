//! The keeper over real files: whatever it merges, every point from the edge on reads the same.

use crate::fixture::content;
use crate::mortal::Mortal;
use crate::rounds::{Bench, ROUND, copy_files, edge_of, finish, names};
use afterimage_journal::keeper::Keeper;
use afterimage_journal::window::Limits;
use afterimage_journal::{History, View};
use std::fs;
use std::sync::Arc;

#[test]
fn points_from_the_edge_on_read_the_same_whatever_was_merged() {
    for (seed, members) in [(1, 1), (2, 3), (3, 2)] {
        let mut bench = Bench::over(seed * 7919, members);
        let mut merged = 0;
        for round in 0..12 {
            if round % 3 == 2 {
                bench.member_away();
            }
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
        assert!(bench.dirs().iter().any(|dir| !names(dir, "merged-").is_empty()));
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
    for members in [1, 3] {
        a_limit_shortens(members);
    }
}

fn a_limit_shortens(members: usize) {
    let mut bench = Bench::over(13, members);
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
