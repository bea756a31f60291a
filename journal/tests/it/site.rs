//! A directory as a site: what it has after outages, what it refuses, and what no sender can do to it.

use crate::fixture::{new_journal, quiet, write};
use crate::rounds::{Bench, ROUND, names};
use afterimage_journal::feed::Feed;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::wire::{Inventory, OP_BYTES_MAX, Op, Sink, SinkError};
use afterimage_journal::{Error, History, Journal, Seq, View};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn replica(dir: &Path) -> Replica {
    let storage = RealStorage::shared();
    Replica::open(&storage, dir, ReplicaOptions::at_home(&storage)).unwrap()
}

/// A replica by the clock of a bench.
fn replica_of(bench: &Bench, dir: &Path) -> Replica {
    let storage = RealStorage::shared();
    let clock = Arc::new(bench.watch.clone());
    let options = ReplicaOptions { clock, ..ReplicaOptions::at_home(&storage) };
    Replica::open(&storage, dir, options).unwrap()
}

/// Everything that there is; says how many bytes went as files and as the log's end.
fn ship(journal: &Journal, site: &mut Replica) -> (u64, u64) {
    let mut feed = Feed::new(journal);
    let inventory = site.open(&feed.hello()).unwrap();
    feed.start(&inventory, false).unwrap();
    let (mut files, mut log) = (0, 0);
    loop {
        let op = match feed.fresh().unwrap() {
            Some(op) => Some(op),
            None => feed.background().unwrap(),
        };
        match &op {
            Some(Op::Put { bytes, .. }) => files += bytes.len() as u64,
            Some(Op::Bytes { bytes, .. }) => log += bytes.len() as u64,
            Some(_) => {}
            None if feed.backlog().fresh_bytes == 0 => break,
            None => {
                // The source seals a unit before it goes on.
                let _ = feed.wait(Duration::from_millis(10));
                continue;
            }
        }
        site.apply(op.unwrap()).unwrap();
        if let Some(ack) = site.ack(Duration::ZERO).unwrap() {
            feed.acked(&ack);
        }
    }
    let left = feed.backlog();
    assert_eq!((left.fresh_bytes, left.background_bytes, left.background_files), (0, 0, 0));
    (files, log)
}

fn opened(bench: &Bench) -> Journal {
    let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
    journal.sync().unwrap();
    journal
}

/// Compares the points that `is_due` names with what the site has.
fn check(bench: &Bench, site: &Path, is_due: impl Fn(Seq) -> bool) -> usize {
    let history = History::load(site).unwrap();
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    let mut count = 0;
    for (seq, disk) in bench.points.iter().filter(|(seq, _)| is_due(*seq)) {
        assert!(history.is_restorable(*seq), "point {seq}, edge {}", history.edge);
        let mut read = vec![0xee; disk.len()];
        View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
        assert_eq!(read.iter().zip(disk).position(|(a, b)| a != b), None, "point {seq}");
        count += 1;
    }
    count
}

#[test]
fn an_outage_beyond_the_window_costs_what_changed_and_older_points_stay() {
    for seed in [3, 14, 15] {
        let mut bench = Bench::new(seed);
        let at = tempfile::tempdir().unwrap();
        let dir = at.path().join("g");
        bench.round(3);
        bench.keep(100 * ROUND);
        let journal = opened(&bench);
        ship(&journal, &mut replica(&dir));
        journal.close().unwrap();
        let before = bench.points.last().unwrap().0;
        assert_eq!(check(&bench, &dir, |_| true), bench.points.len());

        // Nothing arrives while most of what happens is merged, and much of it by zeroes.
        let zero = afterimage_journal::log::Draft {
            volume: 1,
            addr: 0,
            len: 256 << 10,
            ..afterimage_journal::log::Draft::of(afterimage_journal::format::record::Kind::Zero)
        };
        for _ in 0..4 {
            bench.round(2);
            let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
            bench.put(&journal, &zero, 0);
            journal.close().unwrap();
            bench.keep(ROUND);
        }
        let edge = crate::rounds::edge_of(&bench.dir);
        assert!(edge > before, "the source's edge is {edge}, the site has {before}");
        let journal = opened(&bench);
        let (files, _) = ship(&journal, &mut replica(&dir));
        journal.close().unwrap();
        assert!(!names(&dir, "merged-").is_empty() && files > 0);
        let merged: u64 = names(&bench.dir, "merged-")
            .iter()
            .map(|n| std::fs::metadata(bench.dir.join(n)).unwrap().len())
            .sum();
        let units = (names(&bench.dir, "unit-").len() as u64) << 20;
        assert!(files <= merged + units, "{files} bytes went, {merged} and {units} are there");
        let count = check(&bench, &dir, |seq| seq <= before || seq >= edge);
        assert!(count > 3, "only {count} points");
        let left = std::fs::read_dir(&bench.dir).unwrap().map(|e| e.unwrap().file_name());
        let left: Vec<_> = left.filter(|n| n.to_string_lossy().ends_with(".tmp")).collect();
        assert!(left.is_empty(), "drafts stay at the source: {left:?}");
    }
}

#[test]
fn a_site_with_a_window_of_its_own_merges_and_is_sent_nothing_twice() {
    let mut bench = Bench::new(77);
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("g");
    for round in 0..5 {
        bench.round(2);
        bench.keep(3 * ROUND);
        let journal = opened(&bench);
        let mut site = replica_of(&bench, &dir);
        ship(&journal, &mut site);
        let storage = RealStorage::shared();
        let setup = Setup {
            ground: Arc::new(Home { storage: Arc::clone(&storage) }),
            dir: dir.clone(),
            ..bench.setup(2 * ROUND)
        };
        let mut keeper = Keeper::open(setup).unwrap();
        crate::rounds::finish(&mut keeper);
        let (files, log) = ship(&journal, &mut site);
        assert_eq!((files, log), (0, 0), "round {round}: it was all there");
        journal.close().unwrap();
        let edge = crate::rounds::edge_of(&dir);
        assert!(check(&bench, &dir, |seq| seq >= edge) > 0);
    }
    assert!(!names(&dir, "merged-").is_empty());
}

#[test]
fn an_older_epoch_is_refused_by_whoever_opens_the_site_and_another_journal_too() {
    let at = tempfile::tempdir().unwrap();
    let journal = new_journal(&at.path().join("g"), quiet());
    let dir = at.path().join("site");
    let mut hello = Feed::new(&journal).hello();
    let op = || Op::Sync { token: 1, watermark: 0, wall_ns: 0 };
    hello.epoch = 9;
    replica(&dir).open(&hello).unwrap();
    hello.epoch = 7;
    let mut site = replica(&dir);
    site.open(&hello).expect("one that was only told shuts nobody out");
    site.apply(op()).unwrap();
    drop(site);
    hello.epoch = 6;
    let refused = replica(&dir).open(&hello).unwrap_err();
    assert!(matches!(&refused, SinkError::Refused(why) if why.contains("epoch 7")), "{refused}");
    let mut site = replica(&dir);
    site.open(&hello).unwrap_err();
    assert!(site.apply(op()).is_err(), "nothing is taken from who was not let in");
    hello.epoch = 8;
    hello.identity.name = "other".into();
    assert!(matches!(site.open(&hello), Err(SinkError::Refused(_))));
    let locked = Journal::open(&dir, quiet()).err().unwrap();
    assert!(matches!(locked, Error::Locked { .. }), "{locked}");
}

#[test]
fn what_is_not_durable_stays_and_what_is_goes_at_once() {
    let at = tempfile::tempdir().unwrap();
    let journal = new_journal(&at.path().join("g"), quiet());
    let mut feed = Feed::new(&journal);
    feed.start(&Inventory::default(), false).unwrap();
    write(&journal, 0, &[1; 4096]);
    let mut bytes = 0;
    let mut count = |feed: &mut Feed| {
        while let Some(op) = feed.fresh().unwrap() {
            if let Op::Bytes { bytes: got, .. } = op {
                bytes += got.len();
            }
        }
        bytes
    };
    assert_eq!(count(&mut feed), 0, "nothing was synced");
    let waiter = std::thread::spawn({
        let journal = journal.clone();
        move || {
            std::thread::sleep(Duration::from_millis(50));
            journal.sync().unwrap()
        }
    });
    let began = Instant::now();
    assert!(feed.wait(Duration::from_secs(20)) && began.elapsed() < Duration::from_secs(10));
    waiter.join().unwrap();
    assert!(count(&mut feed) > 4096);
    assert!(!feed.is_done());
    journal.close().unwrap();
    count(&mut feed);
    assert!(feed.is_done());
}

#[test]
fn a_site_that_is_ahead_is_refused_by_name_and_keeps_what_it_has() {
    let mut bench = Bench::new(9);
    let at = tempfile::tempdir().unwrap();
    let (dir, old) = (at.path().join("g"), at.path().join("old"));
    bench.round(2);
    crate::rounds::copy_files(&bench.dir, &old);
    bench.round(2);
    let journal = opened(&bench);
    ship(&journal, &mut replica(&dir));
    journal.close().unwrap();
    // The journal was put back from a copy, and is so often opened that its epoch is the higher one.
    for _ in 0..8 {
        let (journal, _) = Journal::open(&old, bench.options()).unwrap();
        write(&journal, 0, &[3; 512]);
        journal.close().unwrap();
    }
    let (journal, _) = Journal::open(&old, bench.options()).unwrap();
    journal.sync().unwrap();
    let mut feed = Feed::new(&journal);
    let inventory = replica(&dir).open(&feed.hello()).unwrap();
    let refused = feed.start(&inventory, false).unwrap_err();
    assert!(refused.to_string().contains("another branch"), "{refused}");
    assert_eq!(check(&bench, &dir, |_| true), bench.points.len());
    // The right one's is the lower epoch: it goes on.
    bench.round(1);
    let journal = opened(&bench);
    assert!(journal.epoch() < feed.hello().epoch);
    ship(&journal, &mut replica(&dir));
    assert_eq!(check(&bench, &dir, |_| true), bench.points.len());
}

/// Ops as a broken or hostile sender makes them, of those of an honest one.
fn mutated(bench: &mut Bench, ops: &[Op]) -> Op {
    let mut pick = |n: u64| bench.rng.next() % n.max(1);
    let mut op = ops[pick(ops.len() as u64) as usize].clone();
    let odd = [0, 1, 63, 4096, 1 << 20, u64::MAX, u64::MAX - 64][pick(7) as usize];
    match &mut op {
        Op::Begin(header) => match pick(4) {
            0 => header.number = odd,
            1 => header.epoch = odd,
            2 => header.flags = odd as u32,
            _ => header.unit_bytes = odd,
        },
        Op::Bytes { unit, at, bytes } => match pick(5) {
            0 => *unit = odd,
            1 => *at = odd,
            2 => bytes.truncate(pick(bytes.len() as u64) as usize),
            3 => *bytes = vec![0x5a; OP_BYTES_MAX + 1],
            _ if bytes.is_empty() => {}
            _ => {
                let at = pick(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << pick(8);
            }
        },
        Op::Seal { unit, end, index_crc } => match pick(3) {
            0 => *unit = odd,
            1 => *end = odd,
            _ => *index_crc ^= 1,
        },
        Op::Put { file_bytes, at, bytes, len, .. } => match pick(5) {
            0 => *file_bytes = odd,
            1 => *at = odd,
            2 => *len = odd,
            3 => bytes.clear(),
            _ if bytes.is_empty() => {}
            _ => {
                let at = pick(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << pick(8);
            }
        },
        Op::PutEnd { index_crc, .. } => *index_crc ^= pick(2) as u32,
        Op::Release(names) => names.truncate(1),
        Op::Sync { token, watermark, .. } => (*token, *watermark) = (odd, odd),
    }
    op
}

#[test]
fn no_sender_harms_what_is_there_or_brings_in_what_its_checks_do_not_prove() {
    let mut bench = Bench::new(21);
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("g");
    bench.round(2);
    bench.keep(ROUND);
    let journal = opened(&bench);
    ship(&journal, &mut replica(&dir));
    journal.close().unwrap();
    let sure = bench.points.len();
    // What an honest sender would bring now, all at once.
    bench.round(3);
    let journal = opened(&bench);
    let mut feed = Feed::new(&journal);
    let mut site = replica(&dir);
    let inventory = site.open(&feed.hello()).unwrap();
    let mut ops = Vec::new();
    for known in [inventory, Inventory::default()] {
        feed.start(&known, false).unwrap();
        while let Some(op) = feed.fresh().unwrap() {
            ops.push(op);
        }
        while let Some(op) = feed.background().unwrap() {
            ops.push(op);
        }
    }
    ops.push(Op::Release(vec![afterimage_journal::pool::FileName::Unit(1)]));
    let hello = feed.hello();
    let mut refused = 0;
    for round in 0..600 {
        let op = if round % 5 == 0 {
            ops[bench.rng.next() as usize % ops.len()].clone()
        } else {
            mutated(&mut bench, &ops)
        };
        if site.apply(op).is_err() {
            refused += 1;
            site.open(&hello).unwrap();
        }
    }
    assert!(refused > 100, "only {refused} were refused");
    let points = bench.points.split_off(sure);
    let edge = crate::rounds::edge_of(&dir);
    let history = History::load(&dir).unwrap();
    for seq in 1..=history.head {
        if history.is_restorable(seq) && seq % 16 == 0 {
            let mut read = vec![0; 1 << 20];
            View::at(&history, 1, seq).unwrap().read(0, &mut read).unwrap();
        }
    }
    drop(history);
    check_only(&bench, &dir, edge);
    // And an honest one brings the rest, unless the other one made up a branch: then it is told.
    let inventory = site.open(&hello).unwrap();
    match feed.start(&inventory, false) {
        Ok(()) => {
            bench.points.extend(points);
            ship(&journal, &mut site);
            check(&bench, &dir, |seq| seq >= edge);
        }
        Err(e) => assert!(e.to_string().contains("another branch"), "{e}"),
    }
}

/// Of what is there for sure nothing is gone, whatever else is missing behind it.
fn check_only(bench: &Bench, site: &Path, edge: Seq) {
    let history = History::load(site).unwrap();
    for (seq, disk) in bench.points.iter().filter(|(seq, _)| *seq >= edge) {
        assert!(history.is_restorable(*seq), "point {seq}: {:?}", history.damage);
        let mut read = vec![0xee; disk.len()];
        View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
        assert!(read == *disk, "point {seq}");
    }
}
