//! The link against a site that answers late, twice, wrongly, with errors or not at all.

use super::model::{Manners, PIECE_BYTES, RECORD_BYTES, Run};
use super::*;
use crate::api::sites::SiteState;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_site_that_works_is_level_within_a_moment_and_its_lag_is_told() {
    let manners = Manners { ack_after: Duration::from_millis(5), ..Manners::default() };
    let mut run = Run::new(manners, 1, Duration::from_millis(1), 0);
    run.go(10 * SECOND);
    let shown = run.status();
    assert_eq!(shown.state, SiteState::Shipping, "{shown:?}");
    assert!(shown.lag_ms.unwrap() < 250 && shown.rpo_ms.unwrap() < 250, "{shown:?}");
    assert_eq!(run.site.at().opens, 1);
    run.log.records_max = run.log.head();
    run.go(SECOND);
    let shown = run.status();
    assert_eq!((shown.lag_ms, shown.rpo_ms, shown.backlog_bytes), (Some(0), Some(0), 0));
    // Nothing new: nothing is asked for again and again.
    let ops = run.site.at().ops;
    run.go(10 * SECOND);
    assert_eq!(run.site.at().ops, ops);
}

#[test]
fn a_full_copy_does_not_delay_the_increments() {
    // A disk at the other end that takes 50 MiB a second, and answers after what is ahead of a `Sync`.
    for (ack_ms, held_ms) in [(1, 20), (150, 20), (1500, 20)] {
        let manners = Manners { ack_after: Duration::from_millis(ack_ms), ..Manners::default() };
        let mut run = Run::new(manners, 2, Duration::from_millis(7), 1_000_000);
        run.go(20 * SECOND);
        let shown = run.status();
        assert_eq!(shown.state, SiteState::Copying, "{shown:?}");
        assert_eq!(shown.rpo_ms, None, "nothing can be restored there");
        assert!(run.held_max <= Duration::from_millis(held_ms), "{ack_ms} {:?}", run.held_max);
        let place = run.site.at();
        let ahead = place.pieces - place.pieces_durable;
        let slow = ack_ms >= 500;
        assert!(
            ahead * PIECE_BYTES as u64 <= if slow { 2 << 20 } else { AHEAD_BYTES_MAX },
            "{ahead}"
        );
        assert!(place.pieces_durable > if slow { 5 } else { 500 }, "{}", place.pieces_durable);
    }
}

#[test]
fn nothing_old_goes_while_anything_new_waits() {
    let mut run = Run::new(Manners::default(), 9, Duration::from_nanos(1), 100);
    run.log.records_max = 5000;
    run.site.at().elapsed = Duration::from_millis(1);
    while run.log.sent < 5000 {
        run.one();
        assert!(run.log.sent == 5000 || run.site.at().pieces == 0, "{}", run.log.sent);
    }
    run.go(SECOND);
    assert_eq!(run.site.at().pieces_durable, 100);
}

#[test]
fn the_background_keeps_to_its_rate_and_the_increments_know_none() {
    let manners = Manners { ack_after: Duration::from_millis(1), ..Manners::default() };
    let mut run = Run::new(manners, 3, Duration::from_micros(500), 10_000);
    run.link.set_rate(10 << 20);
    run.go(10 * SECOND);
    let pieces = run.site.at().pieces;
    assert!((95..=105).contains(&pieces), "{pieces}");
    assert!(run.log.head() - run.log.sent < 100);
}

#[test]
fn the_copy_is_over_only_when_its_end_is_acknowledged() {
    let manners = Manners { ack_after: Duration::from_secs(3), ..Manners::default() };
    let mut run = Run::new(manners, 4, Duration::from_millis(100), 1);
    while !run.link.is_open() {
        run.one();
    }
    // Much may be on its way: it is found that nothing is left before anything is acknowledged.
    run.link.ahead_bytes_max = AHEAD_BYTES_MAX;
    while run.log.pieces_sent < 1 {
        run.one();
    }
    while run.site.at().pieces_durable < 1 {
        assert_ne!(run.status().state, SiteState::Shipping);
        run.one();
    }
    run.go(10 * SECOND);
    assert_eq!(run.status().state, SiteState::Shipping);
    assert!(run.status().rpo_ms.is_some());
}

#[test]
fn a_site_that_does_not_answer_is_away_and_never_level() {
    let mut run = Run::new(Manners::default(), 5, Duration::from_millis(10), 0);
    run.go(2 * SECOND);
    let durable = run.site.at().durable;
    run.site.at().manners.silent = true;
    run.go(40 * SECOND);
    let shown = run.status();
    assert_eq!((shown.state, shown.watermark), (SiteState::Behind, Some(durable)), "{shown:?}");
    assert!(shown.lag_ms.unwrap() > 35_000 && shown.rpo_ms.unwrap() > 35_000, "{shown:?}");
    assert!(shown.alarm.unwrap().contains("/site"));
    run.go(ACK_LIMIT);
    let failed = run.status();
    assert!(failed.error.as_ref().unwrap().contains("not acknowledged"), "{failed:?}");
    run.site.at().manners.silent = false;
    run.go(30 * SECOND);
    let shown = run.status();
    assert_eq!((shown.state, shown.alarm, shown.failing), (SiteState::Shipping, None, false));
    assert!(shown.error.is_some(), "the last error stays to be read");
}

#[test]
fn each_kind_of_trouble_is_shown_and_tried_again_in_its_time() {
    for (down, state, tries) in [
        (SinkError::Away as fn(String) -> SinkError, SiteState::Away, 60..=90),
        (SinkError::Full, SiteState::Full, 20..=40),
        (SinkError::Refused, SiteState::Refused, 8..=20),
        (SinkError::Broken, SiteState::Away, 60..=90),
    ] {
        let mut run = Run::new(Manners::default(), 6, Duration::from_millis(10), 0);
        run.go(2 * SECOND);
        let (durable, opens) = {
            let mut place = run.site.at();
            place.manners.down = Some(down);
            (place.durable, place.opens)
        };
        run.go(600 * SECOND);
        let shown = run.status();
        assert_eq!((shown.state, shown.watermark), (state, Some(durable)), "{shown:?}");
        assert!(shown.lag_ms.unwrap() > 590_000 && shown.alarm.is_some(), "{shown:?}");
        assert_eq!((shown.catch_up_s, shown.failing), (None, true));
        assert!(shown.backlog_bytes > 50_000 * RECORD_BYTES as u64, "{shown:?}");
        let since = shown.error_since.unwrap().as_second();
        assert!((2..=3).contains(&since), "since the first failure, not the last: {since}");
        let tried = run.site.at().opens - opens;
        assert!(tries.contains(&tried), "{state} {tried}");
        run.site.at().manners.down = None;
        run.go(80 * SECOND);
        assert_eq!(run.status().state, SiteState::Shipping);
    }
}

#[test]
fn an_ack_of_what_was_never_asked_for_is_not_believed() {
    let mut run = Run::new(Manners::default(), 7, Duration::from_millis(10), 0);
    run.site.at().manners.lies = true;
    run.go(10 * SECOND);
    let shown = run.status();
    assert_eq!((shown.state, shown.watermark), (SiteState::Away, Some(0)), "{shown:?}");
    assert!(shown.error.unwrap().contains("acknowledged"));
}

#[test]
fn a_site_that_lost_something_is_said_to_have_lost_it() {
    let mut run = Run::new(Manners::default(), 8, Duration::from_millis(10), 0);
    run.go(10 * SECOND);
    {
        let mut place = run.site.at();
        place.durable = 100;
        place.manners.down = Some(SinkError::Away);
    }
    run.is_spoilt = true;
    run.one();
    run.site.at().manners.down = None;
    while !run.link.is_open() {
        run.one();
    }
    run.is_spoilt = false;
    let shown = run.status();
    assert_eq!((shown.watermark, shown.state), (Some(100), SiteState::Copying), "{shown:?}");
    assert!(shown.lag_ms.unwrap() > 8000, "{shown:?}");
    run.go(5 * SECOND);
    assert_eq!(run.status().state, SiteState::Shipping);
}

#[test]
fn whatever_fails_nothing_is_left_out_and_nothing_is_claimed() {
    for seed in 1..=24 {
        let manners = Manners {
            ack_after: Duration::from_millis(seed * 7 % 400),
            failing_permille: 1 + seed % 30,
            twice_permille: 200,
            ..Manners::default()
        };
        let mut run = Run::new(manners, seed, Duration::from_millis(3), 200);
        run.go(30 * SECOND);
        run.site.at().manners.failing_permille = 0;
        run.log.records_max = run.log.head();
        run.go(150 * SECOND);
        let (place, head) = (run.site.at(), run.log.records_max);
        assert_eq!((place.durable, place.pieces_durable), (head, 200), "seed {seed}");
        drop(place);
        let shown = run.status();
        assert_eq!((shown.state, shown.lag_ms), (SiteState::Shipping, Some(0)), "seed {seed}");
    }
}
