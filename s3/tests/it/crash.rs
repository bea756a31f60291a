//! The writer ends at any request: what the bucket then holds is a consistent beginning of the journal, with
//! all that was acknowledged; and the next opening goes on from there.

use crate::fixture::{
    Step, assert_same, closed_journal, entries, hello, history_of, options, patient, send, sink,
    steps, url,
};
use crate::store::{Bag, Fault, Memory};
use afterimage_journal::wire::{Op, Sink};
use afterimage_journal::{History, Seq};
use afterimage_s3::sink::{S3Sink, SinkOptions};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is acknowledged until the process ends.
fn send_until_it_ends(memory: Memory, grace: Duration, home: &Path, steps: &[Step]) -> Seq {
    let options = SinkOptions { grace, ..options() };
    let (mut sink, mut acked) = (S3Sink::over(&url(), patient(memory), options), 0);
    if sink.open(&hello(home, 1)).is_err() {
        return 0;
    }
    for (i, (op, seq)) in steps.iter().enumerate() {
        let sync = Op::Sync { token: i as u64 + 1, watermark: *seq, wall_ns: 1 };
        if sink.apply(op.clone()).is_err() || sink.apply(sync).is_err() {
            return acked;
        }
        match sink.ack(Duration::ZERO) {
            Ok(ack) => acked = ack.map_or(acked, |a| a.watermark),
            Err(_) => return acked,
        }
    }
    acked
}

#[test]
fn ended_at_any_request_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 120);
    let ours = History::load(&home).unwrap();
    let steps = steps(&home, 200_000);
    let whole = Arc::new(Mutex::new(Bag::default()));
    let memory = Memory::on(&whole);
    let counted = Arc::new(Mutex::new(0));
    let count = Arc::clone(&counted);
    let counting = Memory::failing(&memory.bag, move |n, _, _| {
        *count.lock().unwrap() = n + 1;
        None
    });
    let late = Duration::from_secs(3600);
    assert_eq!(send_until_it_ends(counting, late, &home, &steps), ours.head);
    let requests = *counted.lock().unwrap();
    assert!((20..400).contains(&requests), "{requests} requests");
    for at in 0..requests {
        // With deletions between, whose requests come when they come, and without.
        for (fault, grace) in [
            (Fault::Dead, late),
            (Fault::DeadAfter, late),
            (Fault::Dead, Duration::ZERO),
            (Fault::DeadAfter, Duration::ZERO),
        ] {
            let bag = Arc::new(Mutex::new(Bag::default()));
            let memory = Memory::failing(&bag, move |n, _, _| (n == at).then_some(fault));
            let acked = send_until_it_ends(memory, grace, &home, &steps);
            match history_of(&bag) {
                None => assert_eq!(acked, 0, "request {at}, {fault:?}"),
                Some(theirs) => {
                    assert!(theirs.head >= acked, "request {at}, {fault:?}: {acked} is lost");
                    let some = entries(&theirs).len();
                    let first: Vec<Seq> =
                        entries(&ours).iter().take(some).map(|e| e.record.seq).collect();
                    let found: Vec<Seq> = entries(&theirs).iter().map(|e| e.record.seq).collect();
                    assert_eq!(found, first, "request {at}, {fault:?}");
                    assert_same(&ours, &theirs, theirs.head);
                }
            }
            // The next one goes on, and no name was used twice.
            let mut next = sink(Memory::on(&bag));
            next.open(&hello(&home, 2)).unwrap();
            assert_eq!(send(&mut next, &steps).unwrap(), ours.head);
            assert_same(&ours, &history_of(&bag).unwrap(), Seq::MAX);
            let twice: Vec<_> = bag.lock().unwrap().written.clone().into_iter().collect();
            assert!(twice.iter().all(|(_, times)| *times == 1), "request {at}: {twice:?}");
        }
    }
}
