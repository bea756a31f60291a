//! Units that move off a member while a site's copy of a journal is written, and a death at every step.

use super::{Bed, UNIT, units};
use crate::fixture::{assert_whole, bytes_of, entries, new_journal, quiet, write};
use crate::mortal::Mortal;
use afterimage_journal::feed::Feed;
use afterimage_journal::format::record::Kind;
use afterimage_journal::keeper::PoolGround;
use afterimage_journal::pool::{Allocate, DrainStep, Limit, Places, Pool, UnitUse};
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::Storage;
use afterimage_journal::wire::{Sink, SinkError};
use afterimage_journal::{History, Journal, Options};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A journal elsewhere, of small units.
struct Source {
    _dir: tempfile::TempDir,
    journal: Journal,
    written: u64,
}

impl Source {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { unit_bytes: UNIT, ..quiet() };
        let journal = new_journal(&dir.path().join("web"), options);
        Self { _dir: dir, journal, written: 0 }
    }

    fn write(&mut self, records: u64) {
        for _ in 0..records {
            self.written += 1;
            write(&self.journal, 0, &bytes_of(self.written, 30_000));
        }
        self.journal.sync().unwrap();
    }

    /// A copy of it holds all that was written, once.
    fn assert_copied(&self, dir: &Path) {
        let history = History::load(dir).unwrap();
        assert_whole(&history);
        let mut copied = BTreeMap::new();
        for entry in entries(&history).iter().filter(|e| e.record.kind == Kind::Write) {
            let mut payload = Vec::new();
            history.read_payload(entry, &mut payload).unwrap();
            copied.insert(entry.record.seq, payload);
        }
        let wanted: Vec<_> = (1..=self.written).map(|i| bytes_of(i, 30_000)).collect();
        let differs = copied.values().zip(&wanted).position(|(a, b)| a != b);
        assert_eq!((copied.len(), differs), (wanted.len(), None));
    }
}

fn replica(storage: &Arc<dyn Storage>, pool: &Arc<Pool>, dir: &Path) -> Result<Replica, String> {
    let options = ReplicaOptions {
        allocator: Arc::<Pool>::clone(pool) as Arc<dyn Allocate>,
        ground: PoolGround::shared(pool, "web", UNIT),
        mirror: false,
        clock: Arc::new(afterimage_journal::clock::SystemClock),
    };
    Replica::open(storage, dir, options).map_err(|e| e.to_string())
}

fn begin(source: &Source, site: &mut Replica) -> Result<Feed, SinkError> {
    let mut feed = Feed::new(&source.journal);
    let inventory = site.open(&feed.hello())?;
    feed.start(&inventory, false).unwrap();
    Ok(feed)
}

fn ship(feed: &mut Feed, site: &mut Replica) -> Result<(), SinkError> {
    loop {
        let op = match feed.fresh().unwrap() {
            Some(op) => op,
            None => match feed.background().unwrap() {
                Some(op) => op,
                None if feed.backlog().fresh_bytes == 0 => return Ok(()),
                // The source seals a unit before it goes on.
                None => {
                    let _ = feed.wait(Duration::from_millis(10));
                    continue;
                }
            },
        };
        site.apply(op)?;
        if let Some(ack) = site.ack(Duration::ZERO)? {
            feed.acked(&ack);
        }
    }
}

/// Moves everything off a member; nothing is written meanwhile.
fn empty(pool: &Pool, dir: &Path) -> afterimage_journal::Result<DrainStep> {
    pool.remove(dir, false)?;
    loop {
        match pool.drain_step(&|_, _| UnitUse::Idle)? {
            DrainStep::Moved(_) => {}
            step => return Ok(step),
        }
    }
}

#[test]
fn a_copy_goes_on_where_its_open_units_were_moved_to() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    let dir = bed.path("pool/web");
    let mut source = Source::new();
    let mut site = replica(&bed.storage, &pool, &dir).unwrap();
    source.write(20);
    let mut feed = begin(&source, &mut site).unwrap();
    ship(&mut feed, &mut site).unwrap();
    for (from, to) in ["b", "c", "b", "c"].iter().zip(["c", "b", "c", "b"]) {
        let (from, to) = (bed.path(from), bed.path(to));
        assert!(!units(&from.join("web")).is_empty());
        pool.add(&to, Limit::Keep).unwrap();
        assert_eq!(empty(&pool, &from).unwrap(), DrainStep::Done(from));
        site.follow_moved().unwrap();
        source.write(15);
        // The same link, which noticed nothing.
        ship(&mut feed, &mut site).unwrap();
        source.assert_copied(&dir);
    }
    assert!(units(&dir).is_empty() && units(&bed.path("b/web")).len() > 2);
}

#[test]
fn a_unit_whose_header_rotted_is_sent_again_and_the_bad_file_does_not_shadow_it() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Bytes(0)).unwrap();
    let dir = bed.path("pool/web");
    let mut source = Source::new();
    let mut site = replica(&bed.storage, &pool, &dir).unwrap();
    source.write(80);
    let mut feed = begin(&source, &mut site).unwrap();
    ship(&mut feed, &mut site).unwrap();
    drop(site);
    // A sealed one, and the one that grows.
    let all = units(&dir);
    for name in [&all[0], all.last().unwrap()] {
        let mut bytes = std::fs::read(dir.join(name)).unwrap();
        bytes[50] ^= 1;
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    pool.add(&bed.path("b"), Limit::None).unwrap();
    for _ in 0..2 {
        let mut site = replica(&bed.storage, &pool, &dir).unwrap();
        let mut feed = begin(&source, &mut site).unwrap();
        ship(&mut feed, &mut site).unwrap();
        source.write(3);
        ship(&mut feed, &mut site).unwrap();
        drop(site);
        source.assert_copied(&dir);
    }
    assert!(!units(&bed.path("b/web")).is_empty());
}

#[test]
fn a_unit_that_is_nowhere_after_a_move_ends_the_link() {
    let bed = Bed::new();
    let pool = bed.open();
    let dir = bed.path("pool/web");
    let mut source = Source::new();
    let mut site = replica(&bed.storage, &pool, &dir).unwrap();
    source.write(1);
    let mut feed = begin(&source, &mut site).unwrap();
    ship(&mut feed, &mut site).unwrap();
    let last = dir.join(units(&dir).pop().unwrap());
    std::fs::rename(&last, bed.path("elsewhere")).unwrap();
    let error = site.follow_moved().unwrap_err().to_string();
    assert!(error.contains(last.to_str().unwrap()), "{error}");
    source.write(1);
    ship(&mut feed, &mut site).unwrap_err();
    std::fs::rename(bed.path("elsewhere"), &last).unwrap();
    let mut feed = begin(&source, &mut site).unwrap();
    ship(&mut feed, &mut site).unwrap();
    source.assert_copied(&dir);
}

/// What a site does from its start to the end of a move, and beyond, as far as its disk lives.
fn moved(bed: &Bed, storage: &Arc<dyn Storage>, source: &mut Source) -> Result<(), String> {
    let text = |e: afterimage_journal::Error| e.to_string();
    let told = |e: SinkError| e.to_string();
    let pool = Pool::open(storage, &bed.home()).map_err(text)?;
    let mut site = replica(storage, &pool, &bed.path("pool/web"))?;
    let mut feed = begin(source, &mut site).map_err(told)?;
    ship(&mut feed, &mut site).map_err(told)?;
    let emptied = empty(&pool, &bed.path("b"));
    // Whatever came of it, whoever writes goes on.
    let followed = site.follow_moved();
    source.write(2);
    ship(&mut feed, &mut site).map_err(told)?;
    followed.and(emptied).map(drop).map_err(text)
}

#[test]
fn a_move_of_open_units_that_dies_at_any_step_loses_and_doubles_nothing() {
    for step in 0.. {
        let bed = Bed::new();
        let mut source = Source::new();
        source.write(3);
        {
            let pool = bed.open();
            pool.add(&bed.path("b"), Limit::Keep).unwrap();
            pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
            let mut site = replica(&bed.storage, &pool, &bed.path("pool/web")).unwrap();
            let mut feed = begin(&source, &mut site).unwrap();
            ship(&mut feed, &mut site).unwrap();
            pool.add(&bed.home(), Limit::None).unwrap();
        }
        source.write(1);
        let mortal = Mortal::new(step);
        let storage: Arc<dyn Storage> = Arc::new(mortal.clone());
        let ended = moved(&bed, &storage, &mut source);
        let is_dead = mortal.is_dead();
        assert!(is_dead || ended.is_ok(), "step {step}: {ended:?}");
        // Started again, whatever it was at.
        let pool = bed.open();
        let dir = bed.path("pool/web");
        let mut site = replica(&bed.storage, &pool, &dir).unwrap();
        let mut feed = begin(&source, &mut site).unwrap();
        ship(&mut feed, &mut site).unwrap();
        if pool.list().iter().any(|m| m.path == bed.path("b")) {
            assert_eq!(empty(&pool, &bed.path("b")).unwrap(), DrainStep::Done(bed.path("b")));
        }
        site.follow_moved().unwrap();
        source.write(1);
        ship(&mut feed, &mut site).unwrap();
        source.assert_copied(&dir);
        assert!(!bed.path("b/web").exists(), "step {step}");
        if !is_dead {
            assert!(step > 30, "it changes more than that: {step}");
            return;
        }
    }
}

#[test]
fn a_look_at_all_members_misses_no_unit_that_moves_meanwhile() {
    let bed = Bed::new();
    bed.open().add(&bed.path("b"), Limit::Keep).unwrap();
    let (home, b) = (bed.path("pool/web"), bed.path("b/web"));
    std::fs::create_dir_all(&home).unwrap();
    std::fs::create_dir_all(&b).unwrap();
    let names: Vec<String> = (1..=3000).map(|i| format!("unit-{i:010}")).collect();
    for name in &names {
        std::fs::write(b.join(name), "").unwrap();
    }
    let places = Places::of(&bed.storage, &home).unwrap();
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| {
            for name in &names {
                std::fs::hard_link(b.join(name), home.join(name)).unwrap();
                std::fs::remove_file(b.join(name)).unwrap();
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        while !moved.is_finished() {
            assert_eq!(places.units().unwrap().len(), names.len());
        }
    });
    assert_eq!(places.units().unwrap().len(), names.len());
}
