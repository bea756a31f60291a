//! What is said of a site, from what is known of it.

use super::*;

struct Looked(Option<u64>);

impl Ages for Looked {
    fn behind_ms(&self, _: Seq) -> Option<u64> {
        self.0
    }

    fn newest_ms(&self, _: Seq) -> u64 {
        100
    }
}

const NOW_NS: u64 = 1_000_000_000_000;

fn moment(head: Option<Seq>) -> Moment {
    Moment { head, now_ns: NOW_NS, alarm_ms: 30_000, local_rpo_ms: Some(40) }
}

fn durable(watermark: Seq, age_ms: u64) -> Durable {
    Durable { watermark, wall_ns: NOW_NS - age_ms * 1_000_000 }
}

fn level() -> Board {
    let board = Board::new("/site".into());
    board.opened(0);
    board.acked(durable(10, 500));
    board.left(Left::default(), true);
    board
}

#[test]
fn what_the_last_ack_does_not_cover_is_not_called_shipped_however_quiet_the_thread_is() {
    let board = level();
    let status = |head, looked| board.status(&moment(Some(head)), &Looked(looked));
    let shown = status(10, None);
    assert_eq!((shown.state, shown.lag_ms, shown.rpo_ms), (SiteState::Shipping, Some(0), Some(40)));
    // One record more: as old as it was seen to be, at most as old as what is there.
    let shown = status(11, Some(300));
    assert_eq!(
        (shown.state, shown.lag_ms, shown.rpo_ms),
        (SiteState::Shipping, Some(400), Some(300))
    );
    assert_eq!(status(11, None).rpo_ms, Some(500));
    let later = Moment { now_ns: NOW_NS + 40_000_000_000, ..moment(Some(11)) };
    let shown = board.status(&later, &Looked(Some(39_000)));
    assert_eq!((shown.state, shown.rpo_ms), (SiteState::Behind, Some(39_000)));
    assert!(shown.alarm.unwrap().contains("39 s"));
}

#[test]
fn a_journal_that_is_not_open_is_not_known_to_be_level() {
    let shown = level().status(&moment(None), &Looked(None));
    assert_eq!(shown.lag_ms, Some(500), "{shown:?}");
    assert_ne!(shown.rpo_ms, Some(0));
}

#[test]
fn a_guest_that_is_not_restorable_here_is_not_there_either() {
    let gap = Moment { local_rpo_ms: Some(70_000), ..moment(Some(10)) };
    assert_eq!(level().status(&gap, &Looked(None)).rpo_ms, Some(70_000));
    let never = Moment { local_rpo_ms: None, ..moment(Some(10)) };
    assert_eq!(level().status(&never, &Looked(None)).rpo_ms, None);
}

#[test]
fn before_it_answers_a_site_is_not_known_to_have_anything() {
    let board = Board::new("/site".into());
    let shown = board.status(&moment(Some(10)), &Looked(None));
    assert_eq!((shown.state, shown.watermark), (SiteState::Connecting, None));
    assert_eq!((shown.lag_ms, shown.rpo_ms, shown.alarm), (None, None, None));
    board.failed(Trouble::Away, "no route".into(), NOW_NS);
    assert_eq!(board.status(&moment(Some(10)), &Looked(None)).state, SiteState::Away);
    // It has said what it has, but not when that was written.
    board.opened(5);
    board.acked(Durable { watermark: 5, wall_ns: 0 });
    let shown = board.status(&moment(Some(10)), &Looked(Some(7000)));
    assert_eq!((shown.lag_ms, shown.rpo_ms), (Some(7000), None), "older files may be missing");
}
