//! Requests that fail, come late, come twice, or whose replies are lost; servers that lack what is needed.

use crate::fixture::{
    assert_same, closed_journal, hello, history_of, options, patient, send, sink, steps, url,
};
use crate::store::{Bag, Fault, Memory};
use afterimage_journal::History;
use afterimage_journal::wire::{Sink, SinkError};
use afterimage_s3::sink::{S3Sink, SinkOptions};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Sends a journal through faults, opening again after each error, until all of it is there.
fn arrives(seed: u64, faults: &'static [Fault], one_in: u64) {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 150);
    let ours = History::load(&home).unwrap();
    let steps = steps(&home, 100_000);
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut rng = crate::fixture::Rng(seed);
    let memory = Memory::failing(&bag, move |_, _, _| {
        let dice = rng.next();
        dice.is_multiple_of(one_in).then(|| faults[(dice / one_in) as usize % faults.len()])
    });
    let (mut sink, mut acked, mut tries) = (sink(memory), 0, 0);
    while acked < ours.head {
        let sent = sink.open(&hello(&home, 1)).and_then(|_| send(&mut sink, &steps));
        match sent {
            Ok(seq) => acked = seq,
            Err(SinkError::Away(_) | SinkError::Broken(_)) => {}
            Err(e) => panic!("seed {seed}: {e}"),
        }
        tries += 1;
        assert!(tries < 200, "seed {seed}: no end");
        // What was late arrives now, behind what came after it.
        Memory::deliver(&bag);
        if let Some(theirs) = history_of(&bag) {
            assert_same(&ours, &theirs, theirs.head);
            assert!(theirs.head >= acked, "seed {seed}");
        }
    }
    Memory::deliver(&bag);
    assert_same(&ours, &history_of(&bag).unwrap(), u64::MAX);
}

#[test]
fn answers_of_5xx_and_lost_replies_are_survived() {
    for seed in 1..6 {
        arrives(seed, &[Fault::Before, Fault::After], 4);
    }
}

#[test]
fn writes_that_come_late_or_twice_change_nothing() {
    for seed in 1..6 {
        arrives(seed, &[Fault::Late, Fault::Twice, Fault::After], 5);
    }
}

#[test]
fn a_server_that_never_answers_is_away_in_bounded_time() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 10);
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut sink = sink(Memory::failing(&bag, |_, _, _| Some(Fault::Late)));
    let begin = Instant::now();
    assert!(matches!(sink.open(&hello(&home, 1)), Err(SinkError::Away(_))));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn a_server_without_conditional_writes_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 10);
    let memory = Memory { heeds_conditions: false, ..Memory::new() };
    let bag = Arc::clone(&memory.bag);
    let Err(SinkError::Refused(why)) = sink(memory).open(&hello(&home, 1)) else {
        panic!("it was not refused")
    };
    assert!(why.contains("If-None-Match"), "{why}");
    assert!(bag.lock().unwrap().objects.is_empty(), "nothing is left there");
}

#[test]
fn a_bucket_without_object_lock_is_refused_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 10);
    let options = SinkOptions { lock_days: Some(3), ..options() };
    let mut sink = S3Sink::over(&url(), patient(Memory::new()), options);
    let Err(SinkError::Refused(why)) = sink.open(&hello(&home, 1)) else {
        panic!("it was not refused")
    };
    assert!(why.contains("object lock"), "{why}");
}

#[test]
fn a_listing_that_shows_nothing_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 150);
    let steps = steps(&home, 50_000);
    let memory = Memory { lists: false, ..Memory::new() };
    let bag = Arc::clone(&memory.bag);
    let mut sink = sink(memory);
    sink.open(&hello(&home, 1)).unwrap();
    let acked = send(&mut sink, &steps[..steps.len() / 2]).unwrap();
    let found = sink.open(&hello(&home, 1)).unwrap();
    assert_eq!(found.watermark, acked);
    send(&mut sink, &steps).unwrap();
    assert_same(&History::load(&home).unwrap(), &history_of(&bag).unwrap(), u64::MAX);
}
