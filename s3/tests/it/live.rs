//! A live journal, its feed and its keeper, into a bucket: what real sources send.

use crate::fixture::{Rng, assert_same, history_of, new_journal_with, quiet, sink, write_some};
use crate::store::{Bag, Fault, Memory};
use afterimage_journal::feed::Feed;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::pool::FileName;
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::Limits;
use afterimage_journal::wire::{Extent, Op, Sink};
use afterimage_journal::{History, Journal, Options};
use afterimage_s3::sink::S3Sink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Sends all there is to send; false: something failed, begin anew.
fn catch_up(feed: &mut Feed, sink: &mut S3Sink) -> bool {
    let Ok(inventory) = sink.open(&feed.hello()) else { return false };
    feed.start(&inventory, sink.mirrors()).unwrap();
    loop {
        let op = match feed.fresh().unwrap() {
            Some(op) => op,
            None => match feed.background() {
                Ok(Some(op)) => op,
                Ok(None) => return sink.ack(Duration::from_millis(50)).is_ok(),
                Err(_) => return false,
            },
        };
        if sink.apply(op).is_err() {
            return false;
        }
        match sink.ack(Duration::ZERO) {
            Ok(Some(ack)) => feed.acked(&ack),
            Ok(None) => {}
            Err(_) => return false,
        }
    }
}

fn keep(dir: &Path, window: Duration) {
    let storage = RealStorage::shared();
    let mut keeper = Keeper::open(Setup {
        ground: Arc::new(Home { storage: Arc::clone(&storage) }),
        storage,
        dir: dir.to_owned(),
        clock: Options::default().clock,
        pace: Arc::new(Unpaced),
        key: None,
        limits: Limits { guaranteed_ns: 0, ..Limits::new(window.as_nanos() as u64, None) },
    })
    .unwrap();
    while keeper.step().unwrap() {}
}

/// Rounds of writing, merging and sending through a store that fails as it is told.
fn follows(seed: u64, faults: &'static [Fault]) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("g");
    std::fs::create_dir_all(&home).unwrap();
    let options = || Options { sync_interval: Duration::from_millis(2), ..quiet() };
    let mut journal = new_journal_with(&home, options());
    let bag = Arc::new(Mutex::new(Bag::default()));
    let (mut dice, mut rng) = (Rng(seed), Rng(seed ^ 99));
    let memory = Memory::failing(&bag, move |_, _, _| {
        let fault = dice.next();
        let some = !faults.is_empty() && fault.is_multiple_of(6);
        some.then(|| faults[(fault / 6) as usize % faults.len()])
    });
    let mut sink = sink(memory);
    for round in 0..8 {
        write_some(&journal, 150, &mut rng);
        journal.sync().unwrap();
        if round % 3 == 2 {
            // The source ends and comes back: another epoch, the unit of before is sealed.
            drop(journal);
            journal = Journal::open(&home, options()).unwrap().0;
        }
        if round == 5 {
            keep(&home, Duration::ZERO);
        }
        let mut feed = Feed::new(&journal);
        let mut tries = 0;
        while !catch_up(&mut feed, &mut sink) {
            Memory::deliver(&bag);
            tries += 1;
            assert!(tries < 100, "seed {seed}, round {round}: it never arrives");
        }
    }
    journal.close().unwrap();
    let ours = History::load(&home).unwrap();
    let theirs = history_of(&bag).unwrap();
    assert_eq!(ours.edge, theirs.edge, "seed {seed}");
    assert!(ours.edge > 0, "something was merged");
    assert_same(&ours, &theirs, theirs.head);
    assert_eq!(format!("{:?}", ours.level.first()), format!("{:?}", theirs.level.first()));
    let names = |h: &History| h.units.iter().map(|u| u.name).collect::<Vec<_>>();
    assert_eq!(names(&ours)[0], names(&theirs)[0], "the bucket mirrors the source");
}

#[test]
fn a_bucket_follows_a_live_journal_that_merges_and_ends_and_comes_back() {
    for seed in 1..4 {
        follows(seed, &[]);
    }
}

#[test]
fn it_does_so_through_every_fault() {
    for seed in 1..4 {
        follows(seed, &[Fault::Before, Fault::After, Fault::Late, Fault::Twice]);
    }
}

#[test]
fn pieces_over_a_unit_that_began_take_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let home = crate::fixture::closed_journal(dir.path(), 600);
    let ours = History::load(&home).unwrap();
    let steps = crate::fixture::steps(&home, 50_000);
    let sealed = steps.iter().position(|(op, _)| matches!(op, Op::Seal { .. })).unwrap();
    let unit = ours.units[0].clone();
    let pieces: Vec<Op> = crate::server::pieces(&unit.path, unit.name, unit.index_crc).collect();
    for (upto, goes_on) in [(2, true), (3, false), (pieces.len() - 1, true), (pieces.len(), false)]
    {
        let bag = Arc::new(Mutex::new(Bag::default()));
        let mut sink = sink(Memory::on(&bag));
        sink.open(&crate::fixture::hello(&home, 9)).unwrap();
        let acked = crate::fixture::send(&mut sink, &steps[..sealed / 2]).unwrap();
        for op in &pieces[..upto] {
            sink.apply(op.clone()).unwrap();
        }
        sink.apply(Op::Sync { token: 99_999, watermark: acked, wall_ns: 1 }).unwrap();
        let theirs = history_of(&bag).unwrap();
        assert!(theirs.head >= acked && theirs.damage.is_empty(), "{upto} pieces");
        assert_same(&ours, &theirs, acked);
        let found = sink.open(&crate::fixture::hello(&home, 9)).unwrap();
        assert_eq!(found.files[0].name, FileName::Unit(1));
        assert!(
            upto == pieces.len() || matches!(found.files[0].extent, Extent::Open(at) if at > 4096)
        );
        if !goes_on {
            pieces.iter().for_each(|op| sink.apply(op.clone()).unwrap());
        }
        crate::fixture::send(&mut sink, &steps).unwrap();
        assert_same(&ours, &history_of(&bag).unwrap(), u64::MAX);
    }
}
