//! Ends that are meant.

use crate::guarded::{Guarded, signal, state};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn stop_is_passed_on_and_the_code_comes_back() {
    for asked in [Signal::TERM, Signal::INT] {
        let mut guarded = Guarded::start(&[("STOP_EXIT", "7")]);
        let mut guest = guarded.accept();
        signal(guarded.pid(), asked);
        assert_eq!(guest.line(), None);
        assert_eq!(guarded.wait().code(), Some(7));
    }
}

#[test]
fn worker_that_does_not_stop_is_killed_at_the_limit() {
    let mut guarded = Guarded::start(&[("STOP_LIMIT_MS", "300")]);
    guarded.accept();
    let asked = Instant::now();
    signal(guarded.pid(), Signal::TERM);
    assert_eq!(guarded.wait().code(), Some(128 + 9));
    assert!(asked.elapsed() >= Duration::from_millis(300), "{:?}", asked.elapsed());
}

#[test]
fn second_stop_kills_at_once() {
    let mut guarded = Guarded::start(&[("STOP_LIMIT_MS", "60000")]);
    guarded.accept();
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(10) {
        signal(guarded.pid(), Signal::TERM);
        std::thread::sleep(Duration::from_millis(100));
        if state(guarded.pid()) == Some('Z') {
            break;
        }
    }
    assert_eq!(guarded.wait().code(), Some(128 + 9));
}

#[test]
fn refusal_before_ready_ends_the_guard_with_its_code() {
    for code in ["0", "2", "3", "4"] {
        let mut guarded = Guarded::start(&[("START_EXIT", code)]);
        guarded.accept();
        assert_eq!(guarded.wait().code(), Some(code.parse().unwrap()));
    }
}

#[test]
fn same_code_after_ready_is_a_crash() {
    let guarded = Guarded::start(&[]);
    let mut first = guarded.accept();
    assert_eq!(first.ask("exit 3"), None);
    assert_ne!(guarded.accept().pid(), first.pid());
}

#[test]
fn end_by_itself_with_success_ends_the_guard() {
    let mut guarded = Guarded::start(&[]);
    assert_eq!(guarded.accept().ask("exit 0"), None);
    assert_eq!(guarded.wait().code(), Some(0));
}

#[test]
fn stop_in_a_pause_of_the_crash_loop_ends_the_guard() {
    let mut guarded = Guarded::start(&[("START_EXIT", "1")]);
    (0..5).for_each(|_| drop(guarded.accept()));
    let last = guarded.accept().pid();
    while state(last).is_some() {
        std::thread::yield_now();
    }
    signal(guarded.pid(), Signal::TERM);
    assert_eq!(guarded.wait().code(), Some(0));
    assert!(!guarded.starts_within(Duration::ZERO), "a worker was started after the stop");
}
