//! Checkpoints with memory: listed whole or not at all, whatever was merged, thinned, cut off or lost.

mod appender;
mod guest;
mod unsealed;

use crate::mortal::Mortal;
use crate::rounds::{MINUTE, copy_files, members_of, names};
use afterimage_journal::clock::Clock;
use afterimage_journal::keeper::{Keeper, rebuild};
use afterimage_journal::meta::{Checkpoint, CheckpointKind, Meta, SessionEvent};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::{History, Journal};
use guest::{VOLUMES, Warm, described};
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

#[test]
fn a_checkpoint_with_memory_is_listed_at_its_instant_and_only_once_committed() {
    let mut warm = Warm::new(3);
    for _ in 0..3 {
        warm.round(6);
    }
    let listed = warm.check();
    assert_eq!(listed.len(), warm.made.len());
    assert!(warm.cut_off > 0 && !warm.plain.is_empty());
    let history = History::load(&warm.bench.dir).unwrap();
    for pair in warm.made.windows(2) {
        let near = history.nearest_memory(pair[1].instant - 1);
        let ids = [near.0, near.1].map(|c| c.map(|c| c.checkpoint.id));
        assert_eq!(ids, [Some(pair[0].id), Some(pair[1].id)]);
        assert!(history.memory_at(pair[0].commit).is_none());
    }
    let plain = history.checkpoints.iter().filter(|c| !c.is_warm()).count();
    assert_eq!(plain, warm.plain.len(), "no other checkpoint has memory");
}

#[test]
fn memory_reads_as_it_was_under_a_moving_window() {
    for seed in 1..=3 {
        let mut warm = Warm::over(seed * 7919, members_of(seed));
        let mut merged = 0;
        for _ in 0..8 {
            warm.round(8);
            let window = ["30s", "2m", "5m"][(seed % 3) as usize];
            merged += warm.keep(window);
            warm.check();
        }
        assert!(merged > 0 && warm.bench.dirs().iter().any(|d| !names(d, "merged-").is_empty()));
    }
}

#[test]
fn thinning_keeps_a_warm_checkpoint_of_each_slot_with_disks_and_memory() {
    let mut merged = 0;
    for seed in 1..=3 {
        let mut warm = Warm::over(seed * 6151, members_of(seed));
        for round in 0..8 {
            warm.round(10);
            merged += warm.keep("1m,1m:10m,5m:60m");
            let kept = warm.check();
            let slot = |wall_ns: u64| wall_ns / (5 * MINUTE);
            let there: BTreeSet<u64> = kept.values().map(|m| slot(m.wall_ns)).collect();
            for made in &warm.made {
                let age_ns = warm.bench.watch.wall_ns() - made.wall_ns;
                if age_ns < 60 * MINUTE {
                    let id = made.id;
                    assert!(there.contains(&slot(made.wall_ns)), "seed {seed}, {round}: {id}");
                    assert!(!made.is_tagged || kept.contains_key(&id), "seed {seed}: {id} is gone");
                }
            }
        }
        let kept = warm.check();
        assert!(kept.len() > 4 && kept.len() * 2 < warm.made.len(), "{} are kept", kept.len());
        let history = History::load(&warm.bench.dir).unwrap();
        assert!(kept.values().any(|m| m.instant < history.edge));
        kept.values().for_each(|made| warm.compare(&history, made));
    }
    assert!(merged > 0);
}

#[test]
fn whatever_is_wished_in_turn_and_lost_in_between_warm_checkpoints_read_as_they_were() {
    let wishes = ["2m", "1m,30s:30m", "4m,1m:10m,5m:40m", "30s,2m:6m", "10m,10m:2h"];
    for seed in 1..=3 {
        let mut warm = Warm::over(seed * 3571, members_of(seed));
        for _ in 0..10 {
            warm.round(6);
            let wish = wishes[(warm.bench.rng.next() % 5) as usize];
            warm.keep(wish);
            warm.check();
            if warm.bench.rng.next().is_multiple_of(3) {
                fs::remove_file(warm.bench.dir.join("catalogue")).unwrap();
                if warm.bench.rng.next().is_multiple_of(2) {
                    rebuild(warm.setup_on(RealStorage::shared(), "1w")).unwrap();
                }
                warm.check_exact(&History::load(&warm.bench.dir).unwrap());
                warm.keep(wish);
                warm.check();
            }
        }
    }
}

#[test]
fn with_the_keeper_killed_at_any_call_no_warm_checkpoint_is_lost_or_wrong() {
    const KEEP: &str = "30s,1m:5m,3m:20m";
    let mut warm = Warm::new(77);
    for _ in 0..3 {
        warm.round(12);
        warm.keep(KEEP);
    }
    warm.round(30);
    warm.bench.pass(MINUTE);
    let before = tempfile::tempdir().unwrap();
    copy_files(&warm.bench.dir, before.path());
    let mut calls = 0;
    loop {
        fs::remove_dir_all(&warm.bench.dir).unwrap();
        copy_files(before.path(), &warm.bench.dir);
        let mortal = Arc::new(Mortal::new(calls));
        let run = |mut keeper: Keeper| {
            while keeper.step()? {}
            Ok(())
        };
        let killed = Keeper::open(warm.setup_on(mortal.clone(), KEEP)).and_then(run);
        assert_eq!(killed.is_err(), mortal.is_dead(), "{killed:?}");
        let first = warm.check();
        warm.keep(KEEP);
        let again = warm.check();
        let gone = first.keys().filter(|id| !again.contains_key(id)).count();
        assert!(gone == 0 || killed.is_err(), "{gone} are given up by asking again");
        if !mortal.is_dead() {
            break;
        }
        calls += 1;
    }
    assert!(calls > 30, "only {calls} calls");
}

#[test]
fn a_commit_that_names_what_is_not_there_leaves_a_cold_checkpoint_that_says_why() {
    let mut warm = Warm::new(5);
    warm.round(1);
    let journal = warm.open();
    journal.append_meta(&crate::fixture::session(99, SessionEvent::Open)).unwrap();
    let good = |instant| described(instant, 1);
    let mut wrong_volume = good(journal.head());
    wrong_volume.guests[0].blocks[0].volume = 1;
    let mut too_long = good(journal.head());
    too_long.guests[0].blocks[1].bytes = VOLUMES[1].1 as u64 + 1;
    let mut nobody = good(journal.head());
    nobody.guests.clear();
    let ahead = good(journal.head() + 1000);
    for (id, memory) in (900..).zip([wrong_volume, too_long, nobody, ahead]) {
        let kind = CheckpointKind::Crash;
        let mark = Checkpoint { id, kind, tag: None, memory: Some(memory) };
        journal.append_meta(&Meta::Mark(mark)).unwrap();
    }
    journal.close().unwrap();
    let history = History::load(&warm.bench.dir).unwrap();
    let listed = history.checkpoints.iter().filter(|c| c.checkpoint.id >= 900);
    let cold: Vec<_> =
        listed.inspect(|c| assert!(!c.is_warm() && c.memory_lost.is_some())).collect();
    assert_eq!(cold.len(), 4);
}

#[test]
fn damage_takes_the_memory_of_checkpoints_behind_it_for_good_and_no_other() {
    let mut warm = Warm::new(11);
    warm.round(12);
    let made = warm.made.clone();
    let (journal, _) = Journal::open(&warm.bench.dir, warm.bench.options()).unwrap();
    drop(journal);
    let lost = &made[made.len() / 2];
    let history = History::load(&warm.bench.dir).unwrap();
    let entry = history.entry(lost.commit - 1).unwrap().unwrap();
    let unit = history.units[entry.unit as usize].path.clone();
    drop(history);
    // Its index is gone, too: a record that is nowhere.
    let mut bytes = fs::read(&unit).unwrap();
    let end = bytes.len();
    bytes[end - 30] ^= 1;
    bytes[entry.at as usize + 20] ^= 1;
    fs::write(&unit, &bytes).unwrap();
    let history = History::load(&warm.bench.dir).unwrap();
    assert!(!history.damage.is_empty());
    for made in &made {
        let is_warm = history.memory_at(made.instant).is_some();
        assert_eq!(is_warm, made.commit < lost.commit, "checkpoint {}", made.id);
        if is_warm {
            warm.compare(&history, made);
        }
    }
    // The disk is copied anew; of memory nobody knows what was lost.
    let journal = warm.open();
    warm.bench.copy_whole(&journal);
    warm.checkpoint(&journal, None);
    journal.close().unwrap();
    let history = History::load(&warm.bench.dir).unwrap();
    let last = warm.made.last().unwrap();
    assert!(history.is_restorable(last.instant) && history.memory_at(last.instant).is_none());
    let cold = history.checkpoints.iter().find(|c| c.checkpoint.id == last.id).unwrap();
    assert!(cold.memory_lost.as_ref().unwrap().contains("damaged"), "{cold:?}");
}
