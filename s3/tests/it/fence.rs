//! Two writers: the one with the lower epoch is refused everywhere, whatever was deleted meanwhile.

use crate::fixture::{
    assert_same, closed_journal, hello, history_of, options, patient, send, sink, steps, url,
};
use crate::store::{Bag, Memory};
use afterimage_journal::History;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Op, Sink, SinkError};
use afterimage_s3::manifest::MILESTONE;
use afterimage_s3::sink::{S3Sink, SinkOptions};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn sync(token: u64) -> Op {
    Op::Sync { token, watermark: token, wall_ns: 1 }
}

fn is_refused(told: Result<(), SinkError>) -> bool {
    matches!(&told, Err(SinkError::Refused(why)) if why.contains("epoch 2"))
}

#[test]
fn a_lower_epoch_is_refused_at_its_next_manifest_and_at_its_opening() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 150);
    let steps = steps(&home, 50_000);
    let bag = Arc::new(Mutex::new(Bag::default()));
    let (mut old, mut new) = (sink(Memory::on(&bag)), sink(Memory::on(&bag)));
    old.open(&hello(&home, 1)).unwrap();
    let half = steps.len() / 2;
    send(&mut old, &steps[..half]).unwrap();
    new.open(&hello(&home, 2)).unwrap();
    // It only looked: the old one goes on.
    old.apply(sync(9000)).unwrap();
    assert!(matches!(new.apply(sync(9001)), Err(SinkError::Broken(_))), "what is there is another");
    new.open(&hello(&home, 2)).unwrap();
    new.apply(sync(9001)).unwrap();
    let before = bag.lock().unwrap().deleted.len();
    // What the old one writes, and what it gives up, gets nowhere.
    let told = old.apply(Op::Release(vec![FileName::Unit(1)])).and_then(|()| old.apply(sync(9999)));
    assert!(is_refused(told));
    assert!(is_refused(old.open(&hello(&home, 1)).map(drop)));
    assert_eq!(bag.lock().unwrap().deleted.len(), before, "nothing of it is deleted");
    send(&mut new, &steps).unwrap();
    assert_same(&History::load(&home).unwrap(), &history_of(&bag).unwrap(), u64::MAX);
}

#[test]
fn another_opening_of_the_same_epoch_ends_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 50);
    let steps = steps(&home, 50_000);
    let bag = Arc::new(Mutex::new(Bag::default()));
    let (mut first, mut second) = (sink(Memory::on(&bag)), sink(Memory::on(&bag)));
    first.open(&hello(&home, 1)).unwrap();
    second.open(&hello(&home, 1)).unwrap();
    second.apply(sync(1)).unwrap();
    assert!(matches!(send(&mut first, &steps), Err(SinkError::Broken(_))));
    send(&mut second, &steps).unwrap();
}

#[test]
fn another_journal_under_the_same_name_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (closed_journal(one.path(), 5), closed_journal(two.path(), 5));
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut first = sink(Memory::on(&bag));
    first.open(&hello(&one, 1)).unwrap();
    first.apply(sync(1)).unwrap();
    let told = sink(Memory::on(&bag)).open(&hello(&two, 7));
    assert!(matches!(&told, Err(SinkError::Refused(why)) if why.contains("another journal")));
}

/// Commits so often that the floor passes what was there.
fn pass_milestones(sink: &mut S3Sink, from: u64, manifests: u64) {
    for token in from..from + manifests {
        sink.apply(sync(token)).unwrap();
    }
    // Deletes are other threads': give them time, a manifest tells of them.
    for i in 0..200 {
        sink.apply(sync(from + manifests + i)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stale_writer_cannot_commit_under_a_number_that_was_collected() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 50);
    let steps = steps(&home, 50_000);
    let bag = Arc::new(Mutex::new(Bag::default()));
    let quick = SinkOptions { grace: Duration::ZERO, ..options() };
    let open = |memory| S3Sink::over(&url(), patient(memory), quick);
    let mut old = open(Memory::on(&bag));
    old.open(&hello(&home, 1)).unwrap();
    send(&mut old, &steps[..2]).unwrap();
    let last = bag.lock().unwrap().objects.keys().rfind(|k| k.contains("/manifest/")).cloned();
    let mut new = open(Memory::on(&bag));
    new.open(&hello(&home, 2)).unwrap();
    send(&mut new, &steps).unwrap();
    pass_milestones(&mut new, 100_000, 3 * MILESTONE);
    // All around it is gone; what the old one would write next is not free.
    let gone = !bag.lock().unwrap().objects.contains_key(&last.unwrap());
    assert!(gone, "its own manifest was collected");
    assert!(is_refused(old.apply(sync(9999))));
    // One that found the newest long ago and only now writes its first manifest.
    let slept = late_opening(&bag, &home);
    assert!(is_refused(slept), "an opening that slept");
    let theirs = history_of(&bag).unwrap();
    assert_same(&History::load(&home).unwrap(), &theirs, u64::MAX);
    let mut third = open(Memory { lists: false, ..Memory::on(&bag) });
    let found = third.open(&hello(&home, 3)).unwrap();
    assert!(found.watermark > 100_000, "the newest is found without listings");
}

/// Opens with epoch 1 a bucket that looks as it did long ago until the first manifest is written.
fn late_opening(bag: &Arc<Mutex<Bag>>, home: &std::path::Path) -> Result<(), SinkError> {
    // What it saw: numbers 1 to 10 and nothing behind, all of epoch 1.
    let past = Arc::new(Mutex::new(Bag::default()));
    let mut early = sink(Memory::on(&past));
    early.open(&hello(home, 1)).unwrap();
    for token in 1..10 {
        early.apply(sync(token)).unwrap();
    }
    let present = Arc::clone(bag);
    let memory = Memory::failing(&past, {
        let past = Arc::clone(&past);
        let mut woke = false;
        move |_, verb, key| {
            if verb == "create" && key.contains("/manifest/") && !woke {
                woke = true;
                // It wakes: from here on it sees and changes what is there now.
                let now = present.lock().unwrap();
                past.lock().unwrap().objects.clone_from(&now.objects);
            }
            None
        }
    });
    let mut late = sink(memory);
    late.open(&hello(home, 1))?;
    late.apply(sync(10))
}
