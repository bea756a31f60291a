//! Stalls: what the guests see of a worker that hangs.

use crate::guarded::{Guarded, signal, state, stop};
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const STALL_LIMIT: Duration = Duration::from_secs(1);

#[test]
fn stopped_worker_is_killed_within_the_limit_when_a_guest_waits() {
    let guarded = Guarded::start(&[]);
    let mut guest = guarded.accept();
    assert_eq!(guest.ask("echo"), Some("echo".into()));
    stop(guest.pid());
    let stall = guest.stall_of("echo");
    assert!(stall < STALL_LIMIT, "{stall:?}");
    let next = guarded.accept();
    assert_eq!((next.told(2), next.told(3)), ("1", "1"), "a restart, a kill by stall");
    assert_eq!(next.told(5), "Some(ProcessHung)");
    let told_ms: u64 = next.told(6).parse().unwrap();
    assert!((500..1000).contains(&told_ms), "the stall is told: {told_ms} ms");
}

#[test]
fn stopped_in_the_middle_of_a_request_is_killed_within_the_limit() {
    let guarded = Guarded::start(&[]);
    let mut guest = guarded.accept();
    let sent = Instant::now();
    guest.send("sleep 400");
    stop(guest.pid());
    assert_eq!(guest.line(), None);
    assert!(sent.elapsed() < STALL_LIMIT, "{:?}", sent.elapsed());
}

#[test]
fn idle_stopped_worker_has_no_victim_until_a_request_comes_or_it_lasts() {
    let guarded = Guarded::start(&[("STALL_MS", "1000")]);
    let mut guest = guarded.accept();
    stop(guest.pid());
    // Claims that nothing happens, so time is all there is to wait for.
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(state(guest.pid()), Some('T'));
    let stall = guest.stall_of("echo");
    assert!(stall < Duration::from_millis(1000 + 100), "{stall:?}");
    // A guest may wait though nobody sees it: what was received is not noted yet, or no longer.
    let guest = guarded.accept();
    stop(guest.pid());
    let ended = guarded.accept();
    assert_eq!(ended.told(5), "Some(ProcessHung)");
}

#[test]
fn only_loop_that_hangs_costs_the_worker_its_life_at_once() {
    let guarded = Guarded::start(&[]);
    let mut guest = guarded.accept();
    let stall = guest.stall_of("hang");
    assert!(stall < STALL_LIMIT, "{stall:?}");
    assert_eq!(guarded.accept().told(5), "Some(AllLoopsStuck)");
}

#[test]
fn one_stuck_loop_loses_its_socket_and_no_other() {
    let guarded = Guarded::start(&[("LOOPS", "3")]);
    let mut guests = [guarded.accept(), guarded.accept(), guarded.accept()];
    let stall = guests[0].stall_of("mute");
    assert!(stall < STALL_LIMIT, "{stall:?}");
    // Past the grace: the loop has ended, so the worker stays.
    let began = Instant::now();
    while began.elapsed() < STALL_LIMIT + STALL_LIMIT / 4 {
        assert_eq!(guests[1].ask("sleep 10"), Some("sleep 10".into()));
    }
    assert_eq!(guests[2].ask("echo"), Some("echo".into()));
}

#[test]
fn loop_that_stays_stuck_after_its_socket_was_shut_costs_the_worker_its_life() {
    let guarded = Guarded::start(&[("LOOPS", "2")]);
    let mut guests = [guarded.accept(), guarded.accept()];
    let began = Instant::now();
    let stall = guests[0].stall_of("hang");
    assert!(stall < STALL_LIMIT, "{stall:?}");
    while guests[1].ask("sleep 10").is_some() {}
    assert!(began.elapsed() > stall + STALL_LIMIT / 4 * 3, "{:?}", began.elapsed());
    let next = guarded.accept();
    assert_eq!((next.told(4), next.told(5)), ("1", "Some(LoopDidNotEnd)"));
    let told_ms: u64 = next.told(6).parse().unwrap();
    assert!(told_ms >= 600, "the stall that the shutdown ended is told: {told_ms} ms");
}

#[test]
fn slow_loop_below_the_threshold_is_left_alone() {
    let guarded = Guarded::start(&[]);
    let mut guest = guarded.accept();
    for _ in 0..3 {
        assert_eq!(guest.ask("sleep 400"), Some("sleep 400".into()));
    }
}

#[test]
fn loop_that_moves_is_left_alone_however_much_is_unread() {
    let guarded = Guarded::start(&[]);
    let mut guest = guarded.accept();
    (0..40).for_each(|_| guest.send("sleep 50"));
    for _ in 0..40 {
        assert_eq!(guest.line(), Some("sleep 50".into()));
    }
}

#[test]
fn duplicate_keeps_no_connection_open_that_the_worker_ended() {
    let guarded = Guarded::start(&[("LOOPS", "10")]);
    let mut guests: Vec<_> = (0..10).map(|_| guarded.accept()).collect();
    let mut ends: Vec<Duration> = guests.iter_mut().map(|guest| guest.stall_of("bye")).collect();
    ends.sort();
    assert!(ends[3] < Duration::from_millis(20), "sooner than a tick: {ends:?}");
}

#[test]
fn held_reply_is_exempt_until_its_limit() {
    let guarded = Guarded::start(&[("STALL_MS", "300"), ("HOLD_MS", "1000")]);
    let mut guest = guarded.accept();
    assert_eq!(guest.ask("hold 900"), Some("hold 900".into()), "675 ms, twice the limit");
    let stall = guest.stall_of("hold 60000");
    assert!(stall >= Duration::from_millis(1000), "{stall:?}");
    assert!(stall < Duration::from_millis(1000 + 500), "{stall:?}");
}

#[test]
fn death_ends_the_stall_even_where_the_socket_outlives_the_worker() {
    for ending in ["exit 9", "echo"] {
        let guarded = Guarded::start(&[]);
        let mut guest = guarded.accept();
        let keeper: u32 = guest.ask("keep").unwrap().parse().unwrap();
        if ending == "echo" {
            stop(guest.pid());
        }
        let stall = guest.stall_of(ending);
        assert!(stall < STALL_LIMIT, "{stall:?}");
        assert!(state(keeper).is_some());
        let open = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
        let open: Vec<PathBuf> =
            open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
        let is_socket = |file: &&PathBuf| file.to_string_lossy().starts_with("socket:");
        let sockets = open.iter().filter(is_socket).count();
        assert_eq!(sockets, 1, "the worker's child has {open:?}");
        signal(keeper, Signal::KILL);
    }
}

#[test]
fn machine_that_was_paused_costs_no_worker() {
    // A long limit, for the second look to be long enough on a machine under load.
    let guarded = Guarded::start(&[("STALL_MS", "3000")]);
    let mut guest = guarded.accept();
    guest.send("sleep 50");
    stop(guarded.pid());
    stop(guest.pid());
    // The pause of both, as of a machine that was not run for a while.
    std::thread::sleep(Duration::from_millis(2500));
    signal(guarded.pid(), Signal::CONT);
    signal(guest.pid(), Signal::CONT);
    assert_eq!(guest.line(), Some("sleep 50".into()));
    assert_eq!(guest.ask("echo"), Some("echo".into()));
}

#[test]
fn guest_that_stays_frozen_gets_the_worker_killed() {
    let guarded = Guarded::start(&[("UNDO", "quick")]);
    let mut guest = guarded.accept();
    let began = Instant::now();
    assert_eq!(guest.ask("freeze"), Some("freeze".into()));
    assert_eq!(guest.line(), None);
    assert!(began.elapsed() < STALL_LIMIT, "{:?}", began.elapsed());
    assert_eq!(guarded.accept().told(0), "undo");
    assert_eq!(guarded.accept().told(5), "Some(NoSocket)");
}
