//! Deaths of the worker and what follows.

use crate::guarded::{Guarded, ending, signal, state, wait_for};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn killed_worker_is_reaped_then_restarted_within_100_ms() {
    // The best of a few: other tests load the machine.
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let guarded = Guarded::start(&[]);
        let first = guarded.accept();
        let killed = Instant::now();
        signal(first.pid(), Signal::KILL);
        let mut second = guarded.accept();
        best = best.min(killed.elapsed());
        assert_eq!(state(first.pid()), None, "the predecessor is gone, not a zombie");
        assert_eq!(second.told(2), "1", "one restart is told");
        assert_eq!(second.told(3), "0", "no kill of the guard's");
        assert_eq!(second.ask("echo"), Some("echo".into()));
        if best < Duration::from_millis(100) {
            return;
        }
    }
    panic!("the quickest took {best:?}");
}

#[test]
fn crash_loop_backs_off() {
    let guarded = Guarded::start(&[("START_EXIT", "1")]);
    let mut starts = Vec::new();
    for _ in 0..6 {
        guarded.accept();
        starts.push(Instant::now());
    }
    let pauses: Vec<Duration> = starts.windows(2).map(|two| two[1] - two[0]).collect();
    for (pause, least_ms) in pauses.iter().zip([0, 50, 100, 200, 400]) {
        // What is seen here is the arrival of a greeting, some milliseconds after a start.
        assert!(*pause >= Duration::from_millis(least_ms * 9 / 10), "{pauses:?}");
    }
}

#[test]
fn descriptors_do_not_leak_over_100_restarts() {
    let guarded = Guarded::start(&[("BACKOFF_MAX_MS", "1"), ("LOOPS", "2")]);
    let open = || std::fs::read_dir(format!("/proc/{}/fd", guarded.pid())).unwrap().count();
    let mut before = 0;
    for round in 0..103 {
        let (mut one, mut two) = (guarded.accept(), guarded.accept());
        assert_eq!(two.ask("echo"), Some("echo".into()));
        if round == 2 {
            before = open();
        } else if round == 102 {
            // Some come and go with each start.
            assert!(open() < before + 20, "{before} descriptors, then {}", open());
        }
        one.send("exit 9");
        assert_eq!(one.line(), None);
    }
}

#[test]
fn what_undoes_runs_between_two_workers() {
    let guarded = Guarded::start(&[("UNDO", "quick")]);
    let first = guarded.accept();
    signal(first.pid(), Signal::KILL);
    let undo = guarded.accept();
    assert_eq!(undo.told(0), "undo");
    assert_eq!(state(first.pid()), None);
    let second = guarded.accept();
    assert_eq!(second.told(0), "worker");
    assert_eq!(state(undo.pid()), None);
}

#[test]
fn what_undoes_cannot_hang_the_guard() {
    let guarded = Guarded::start(&[("UNDO", "hang"), ("UNDO_LIMIT_MS", "300")]);
    let first = guarded.accept();
    signal(first.pid(), Signal::KILL);
    let undo = guarded.accept();
    assert_eq!(undo.told(0), "undo");
    let mut second = guarded.accept();
    assert_eq!(state(undo.pid()), None);
    assert_eq!(second.ask("echo"), Some("echo".into()));
}

#[test]
fn no_successor_before_the_predecessor_is_gone_but_guests_are_thawed() {
    let guarded = Guarded::start(&[("UNDO", "quick")]);
    let mut first = guarded.accept();
    let mut tracer = guarded.trace(first.pid());
    assert_eq!(first.ask("freeze"), Some("freeze".into()));
    assert_eq!(first.line(), None, "its socket was shut");
    assert_eq!(guarded.accept().told(0), "undo");
    // Claims that nothing happens, so time is all there is to wait for.
    assert!(!guarded.starts_within(Duration::from_millis(500)));
    assert!(state(first.pid()).is_some());
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    assert_eq!(guarded.accept().told(0), "worker", "undone once, then the next");
    assert_eq!(state(first.pid()), None);
}

#[test]
fn worker_dies_with_its_guard() {
    let mut guarded = Guarded::start(&[]);
    let mut guest = guarded.accept();
    let end = ending(guest.pid());
    signal(guarded.pid(), Signal::KILL);
    guarded.wait();
    assert_eq!(guest.line(), None);
    wait_for(&end, "the worker to end");
}

#[test]
fn loops_beyond_the_slots_work_unwatched() {
    let guarded = Guarded::start(&[("LOOPS", "260")]);
    let mut guests: Vec<_> = (0..260).map(|_| guarded.accept()).collect();
    for guest in [0, 128, 255, 256, 259] {
        assert_eq!(guests[guest].ask("echo"), Some("echo".into()));
    }
}
