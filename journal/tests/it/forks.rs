//! Journals that were put back from a copy, or copied and run twice: a site that holds one branch never
//! takes anything of another one, whatever was merged meanwhile.

use crate::fixture::write;
use crate::rounds::{Bench, ROUND, copy_files, names};
use afterimage_journal::feed::Feed;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::wire::{Op, Sink};
use afterimage_journal::{Error, History, Journal, Result, View};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub fn replica(bench: &Bench, dir: &Path, mirror: bool) -> Replica {
    let storage = RealStorage::shared();
    let clock = Arc::new(bench.watch.clone());
    let options = ReplicaOptions { mirror, clock, ..ReplicaOptions::at_home(&storage) };
    Replica::open(&storage, dir, options).unwrap()
}

/// Sends all that there is.
pub fn ship(journal: &Journal, site: &mut Replica) -> Result<()> {
    let mut feed = Feed::new(journal);
    let inventory = site.open(&feed.hello()).unwrap();
    feed.start(&inventory, site.mirrors())?;
    loop {
        let op = match feed.fresh()? {
            Some(op) => Some(op),
            None => feed.background()?,
        };
        match op {
            Some(op) => site.apply(op).unwrap(),
            None if feed.backlog().fresh_bytes == 0 => break,
            // The source seals a unit before it goes on.
            None => drop(feed.wait(Duration::from_millis(10))),
        }
        if let Some(ack) = site.ack(Duration::ZERO).unwrap() {
            feed.acked(&ack);
        }
    }
    site.apply(Op::Sync { token: u64::MAX, watermark: feed.hello().epoch, wall_ns: 0 }).unwrap();
    Ok(())
}

fn opened(bench: &Bench) -> Journal {
    let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
    journal.sync().unwrap();
    journal
}

/// Merges at the site what is older than a window there.
fn keep_at(site: &Path, bench: &Bench, window_ns: u64) {
    let storage = RealStorage::shared();
    let ground = Arc::new(Home { storage: Arc::clone(&storage) });
    let setup = Setup { ground, dir: site.to_owned(), ..bench.setup(window_ns) };
    crate::rounds::finish(&mut Keeper::open(setup).unwrap());
}

#[track_caller]
fn refused(bench: &Bench, journal: &Journal, site: &Path, mirror: bool) {
    let said =
        ship(journal, &mut replica(bench, site, mirror)).expect_err("the site took another branch");
    assert!(matches!(said, Error::OtherBranch(_)), "{said}");
    assert!(said.to_string().contains("aside"), "it does not say what to do: {said}");
}

/// The state is put back from a copy that was made while the journal was closed, and run on: both branches
/// give the same numbers to their epochs, units and records.
fn put_back(seed: u64, mirror: bool, merges_at_site: bool) {
    let mut bench = Bench::new(seed);
    let at = tempfile::tempdir().unwrap();
    let (site, old) = (at.path().join("g"), at.path().join("old"));
    bench.round(2);
    if merges_at_site {
        let journal = opened(&bench);
        ship(&journal, &mut replica(&bench, &site, mirror)).unwrap();
        journal.close().unwrap();
    }
    copy_files(&bench.dir, &old);
    let before = (bench.disk.clone(), bench.points.clone());
    bench.round(2);
    let journal = opened(&bench);
    ship(&journal, &mut replica(&bench, &site, mirror)).unwrap();
    journal.close().unwrap();
    let held =
        replica(&bench, &site, mirror).open(&Feed::new(&opened(&bench)).hello()).unwrap().watermark;
    if merges_at_site {
        keep_at(&site, &bench, ROUND / 2);
        assert!(!names(&site, "merged-").is_empty());
    }
    let kept = std::mem::take(&mut bench.points);
    bench.dir = old;
    (bench.disk, bench.points) = before;
    let mut is_past = false;
    for _ in 0..6 {
        bench.round(2);
        bench.keep(ROUND);
        let journal = opened(&bench);
        refused(&bench, &journal, &site, mirror);
        let unit = |n: &String| n.trim_start_matches("unit-").parse::<u64>().unwrap();
        let first = names(&bench.dir, "unit-").iter().map(unit).min().unwrap();
        is_past |= journal.head() > held && first > 8;
        journal.close().unwrap();
    }
    assert!(is_past, "the forked units were never merged");
    let history = History::load(&site).unwrap();
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    let mut count = 0;
    for (seq, disk) in kept.iter().filter(|(seq, _)| history.is_restorable(*seq)) {
        let mut read = vec![0xee; disk.len()];
        View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
        assert!(read == *disk, "point {seq}");
        count += 1;
    }
    assert!(count == kept.len() || (merges_at_site && count > 0), "{count} of {}", kept.len());
}

#[test]
fn a_fork_stays_refused_after_the_source_merged_it() {
    for seed in [5, 6] {
        put_back(seed, false, false);
    }
}

#[test]
fn a_fork_stays_refused_by_a_site_that_merged() {
    put_back(7, false, true);
}

#[test]
fn a_fork_stays_refused_by_a_mirror() {
    put_back(8, true, false);
}

/// The files of a journal that is open: what comes and goes meanwhile is none of it.
fn copy_live(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in names(from, "") {
        if !name.ends_with(".tmp") && from.join(&name).is_file() {
            std::fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

/// The state is copied while the journal is written: both branches share the epoch, of which the site has
/// more than the copy, in the same unit or in one behind.
#[test]
fn a_fork_within_an_epoch_stays_refused() {
    for behind_units in [0, 2] {
        let mut bench = Bench::new(31 + behind_units);
        let at = tempfile::tempdir().unwrap();
        let (site, old) = (at.path().join("g"), at.path().join("old"));
        bench.round(2);
        let journal = opened(&bench);
        write(&journal, 0, &[1; 4096]);
        journal.sync().unwrap();
        copy_live(&bench.dir, &old);
        for i in 0..behind_units * 260 + 8 {
            write(&journal, i % 64 * 4096, &[2; 4096]);
        }
        journal.sync().unwrap();
        ship(&journal, &mut replica(&bench, &site, false)).unwrap();
        let held = journal.head();
        journal.close().unwrap();
        bench.dir = old;
        let mut is_past = false;
        for _ in 0..5 {
            bench.round(2);
            bench.keep(ROUND);
            let journal = opened(&bench);
            refused(&bench, &journal, &site, false);
            is_past |= journal.head() > held;
            journal.close().unwrap();
        }
        assert!(is_past && !names(&bench.dir, "merged-").is_empty());
    }
}

/// A journal that is only behind, at a site that lost nothing, is not taken for a fork: torn off ends, epochs
/// without records, units that were merged at both ends.
#[test]
fn an_honest_journal_is_never_refused() {
    let mut bench = Bench::new(77);
    let at = tempfile::tempdir().unwrap();
    let site = at.path().join("g");
    for round in 0..8 {
        bench.round(1 + round % 2);
        for _ in 0..round % 3 {
            opened(&bench).close().unwrap();
        }
        if round % 2 == 1 {
            bench.keep(2 * ROUND);
        }
        if round % 3 != 1 {
            let journal = opened(&bench);
            ship(&journal, &mut replica(&bench, &site, false)).unwrap();
            journal.close().unwrap();
        }
        if round % 4 == 2 {
            keep_at(&site, &bench, 3 * ROUND);
        }
    }
}
