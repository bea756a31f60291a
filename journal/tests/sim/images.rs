//! Crash images: a run is recorded, operation by operation; at every sync and at points between,
//! the power goes, with all, none and arbitrary parts of what was not synced: sectors of 512 bytes
//! in any order, renames, removals and sizes one by one. Each image must open to exactly a prefix
//! at or past what had been called durable, and open to the same again.

use crate::clock::SimClock;
use crate::disk::{Disk, Keep, Op};
use crate::model::Model;
use crate::rng::Rng;
use crate::run::{DIR, Run, empty_disk, key, open_pool, options, thinned, unlocked};
use crate::seeds::each;
use crate::storage::SimStorage;
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::storage::Storage;
use afterimage_journal::{History, Journal, Options, Seq};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const STEPS: u64 = 80;
/// Images at each chosen point; the first two are "all" and "nothing".
const IMAGES_A_POINT: u64 = 4;
/// Images of a recorded run.
const IMAGES_A_RUN: usize = 200;

/// What had been said when this many operations had been done.
struct Said {
    ops: usize,
    durable: Seq,
    seen: Seq,
}

struct Recorded {
    start: Disk,
    ops: Vec<Op>,
    said: Vec<Said>,
    model: Model,
    /// The boot that it ended in.
    boot: u64,
}

fn record(seed: u64) -> Recorded {
    let storage = empty_disk(seed);
    let start = storage.start_record();
    // Alone, and over two to four members.
    let mut run = Run::over(storage.clone(), seed, seed % 4);
    if seed % 2 == 1 {
        run.wish = thinned(seed);
    }
    let mut said = Vec::new();
    for _ in 0..STEPS {
        let Model { durable, seen, .. } = run.model;
        said.push(Said { ops: storage.recorded(), durable, seen });
        run.calm_step();
    }
    run.journal.take();
    // The machine may have been off and on in between.
    let boot = run.storage.boot();
    Recorded { start, ops: storage.take_record(), said, model: run.model, boot }
}

/// Before and behind each sync, and here and there between; as many as an even spread allows.
fn points(ops: &[Op], first: usize, rng: &mut Rng) -> Vec<usize> {
    let mut points: Vec<usize> = (first..=ops.len())
        .filter(|at| {
            let synced = |at: usize| ops.get(at).is_some_and(Op::is_sync);
            synced(*at) || (*at > first && synced(at - 1)) || rng.percent(4)
        })
        .collect();
    while points.len() > IMAGES_A_RUN / IMAGES_A_POINT as usize {
        points.swap_remove(rng.below(points.len() as u64) as usize);
    }
    points.sort_unstable();
    points
}

/// Replays a recorded run and checks its images; returns how many.
fn images(seed: u64) -> u64 {
    let recorded = record(seed);
    let mut rng = Rng::new(seed ^ 0x696d_6167_6573);
    let mut disk = recorded.start.clone();
    let mut done = 0;
    let mut count = 0;
    for at in points(&recorded.ops, recorded.said[0].ops, &mut rng) {
        for op in &recorded.ops[done..at] {
            disk.apply(op);
        }
        done = at;
        let said = recorded.said.iter().rev().find(|s| s.ops <= at).unwrap();
        for i in 0..IMAGES_A_POINT {
            let keep = match i {
                0 => Keep::All,
                1 => Keep::Nothing,
                _ => Keep::any(&mut rng),
            };
            let image = disk.cut(keep, &mut rng);
            let what =
                || format!("seed {seed}, {at} of {} operations, {keep:?}", recorded.ops.len());
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                check(image, &recorded, said, &mut rng.clone());
            }));
            assert!(checked.is_ok(), "the image of {} is wrong", what());
            count += 1;
        }
    }
    count
}

fn load(storage: &SimStorage) -> History {
    let storage: Arc<dyn Storage> = storage.shared();
    let loaded = History::load_in(&storage, Path::new(DIR));
    unlocked(loaded.unwrap_or_else(|e| panic!("it can't be read: {e}")))
}

fn check(image: Disk, recorded: &Recorded, said: &Said, rng: &mut Rng) {
    let storage = SimStorage::over(image, rng.next()).after_boots(recorded.boot);
    let clock = Arc::new(SimClock::new());
    clock.boot(storage.boot());
    let history = load(&storage);
    let head = history.head;
    assert!(head >= said.durable, "the head is {head}, {} was durable", said.durable);
    let mut model = recorded.model.clone();
    model.truncate(head);
    model.seen = head;
    let at = [head, 1 + rng.below(head.max(1))];
    model.check(&history, &at);
    drop(history);

    let key = load(&storage).identity.encryption.is_some().then(key);
    let mut options = Options { key, ..options(&storage, &clock) };
    if storage.exists(Path::new("/state/pool/pool.json")) {
        options.allocator = open_pool(&storage).unwrap_or_else(|e| panic!("the pool: {e}"));
    }
    let (journal, found) = Journal::open(Path::new(DIR), options)
        .unwrap_or_else(|e| panic!("it can't be opened: {e}"));
    assert_eq!(found.head, head, "the writer sees what a reader saw");
    drop(found);
    let next = journal.append(&Draft::of(Kind::Flush), &[]).unwrap();
    assert!(next > said.seen, "{next} is given out again, {} was seen", said.seen);
    journal.sync().unwrap();
    // The power goes again before anything else: what was opened is what stays.
    let storage = storage.power(Keep::any(rng));
    drop(journal);
    let history = load(&storage);
    assert!(history.head >= next, "{next} was durable, the head is {}", history.head);
    model.check(&history, &at);
    for seq in head + 1..=history.head {
        assert!(!history.is_restorable(seq), "{seq}: no session is open");
    }
}

fn many(test: &str, first_seed: u64, wanted: u64) {
    let count = AtomicU64::new(0);
    let runs = wanted.div_ceil(IMAGES_A_RUN as u64);
    each(test, first_seed..first_seed + runs, |seed| {
        count.fetch_add(images(seed), Ordering::Relaxed);
    });
    let count = count.into_inner();
    eprintln!("{count} images");
    assert!(std::env::var_os("AFTERIMAGE_SEED").is_some() || count > wanted / 2, "{count} images");
}

#[test]
fn every_image_of_a_power_cut_is_a_prefix_at_or_past_what_was_durable() {
    many("every_image_of_a_power_cut_is_a_prefix_at_or_past_what_was_durable", 0, 1_600);
}

#[test]
#[ignore = "long"]
fn a_hundred_thousand_images_are_prefixes_at_or_past_what_was_durable() {
    many("a_hundred_thousand_images_are_prefixes_at_or_past_what_was_durable", 1000, 100_000);
}
