//! A journal over several members, and what is left of it without one of them.

use super::{Bed, units};
use crate::fixture::{assert_whole, bytes_of, content, new_journal, options, write};
use afterimage_journal::clock::SystemClock;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::pool::{Allocate, Limit};
use afterimage_journal::window::Limits;
use afterimage_journal::{History, Journal, Options, Seq};
use std::sync::Arc;

/// A journal whose first units lie in the home and the others on `b`; positions of a write on each.
fn spread(bed: &Bed) -> (Seq, Seq) {
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Bytes(0)).unwrap();
    let allocator: Arc<dyn Allocate> = pool.clone();
    let journal = new_journal(&bed.path("pool/web"), Options { allocator, ..options() });
    let at_home = write(&journal, 0, &bytes_of(1, 4096));
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    pool.add(&bed.path("b"), Limit::None).unwrap();
    let mut last = 0;
    for i in 2..60 {
        last = write(&journal, 0, &bytes_of(i, 100_000));
    }
    journal.close().unwrap();
    let both = (units(&bed.path("pool/web")).len(), units(&bed.path("b/web")).len());
    assert!(both.0 > 0 && both.1 > 2, "{both:?}");
    (at_home, last)
}

#[test]
fn a_journal_is_read_from_all_its_members() {
    let bed = Bed::new();
    let (at_home, last) = spread(&bed);
    let web = bed.path("pool/web");
    assert_whole(&History::load(&web).unwrap());
    assert_eq!(content(&web, at_home, 0, 4096), bytes_of(1, 4096));
    assert_eq!(content(&web, last, 0, 100_000), bytes_of(59, 100_000));
}

#[test]
fn an_old_copy_costs_the_points_that_need_it_by_name_and_no_others() {
    let bed = Bed::new();
    bed.open();
    let (at_home, last) = spread(&bed);
    bed.copy("b", "old");
    // Of the same bytes even: whoever is old may lack what was written since.
    bed.open();
    bed.swap("b", "old");
    let web = bed.path("pool/web");
    let history = History::load(&web).unwrap();
    let damage = history.damage.first().unwrap();
    assert!(damage.what.contains("/b is an old copy"), "{damage:?}");
    assert!(at_home < damage.from && damage.from <= last && history.head < last, "{damage:?}");
    assert_eq!(content(&web, at_home, 0, 4096), bytes_of(1, 4096));
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    let what = &History::load(&web).unwrap().damage[0].what;
    assert!(what.contains("/b is not there"), "{what}");
    std::fs::rename(bed.path("old"), bed.path("b")).unwrap();
    assert_whole(&History::load(&web).unwrap());
    assert_eq!(content(&web, last, 0, 100_000), bytes_of(59, 100_000));
}

fn setup(bed: &Bed, journal: &std::path::Path, limits: Limits) -> Setup {
    Setup {
        storage: Arc::clone(&bed.storage),
        dir: journal.to_owned(),
        clock: Arc::new(SystemClock),
        ground: Arc::new(Home { storage: Arc::clone(&bed.storage) }),
        pace: Arc::new(Unpaced),
        key: None,
        limits,
    }
}

#[test]
fn nothing_is_merged_while_a_member_is_away() {
    let bed = Bed::new();
    spread(&bed);
    let web = bed.path("pool/web");
    let allocator: Arc<dyn Allocate> = bed.open();
    let (journal, _) = Journal::open(&web, Options { allocator, ..options() }).unwrap();
    let writes: Vec<Seq> = (2..60).map(|i| write(&journal, 0, &bytes_of(i, 100_000))).collect();
    let last = writes[writes.len() - 1];
    journal.close().unwrap();
    let keep = || {
        let mut keeper =
            Keeper::open(setup(&bed, &web, Limits { guaranteed_ns: 0, ..Limits::new(0, None) }))?;
        while keeper.step()? {}
        afterimage_journal::Result::Ok(keeper.occupancy().clone())
    };
    let (before, on_b) = (units(&web), units(&bed.path("b/web")).len());
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    let refused = keep().unwrap_err().to_string();
    assert!(refused.contains("/b is not there"), "{refused}");
    assert_eq!(units(&web), before);
    std::fs::rename(bed.path("gone"), bed.path("b")).unwrap();
    let kept = keep().unwrap();
    assert!(kept.edge > 0 && kept.merged_bytes > 0, "{kept:?}");
    let left = units(&bed.path("b/web")).len();
    assert!(left < on_b, "{left} of {on_b}: what was merged is given up on every member");
    assert_eq!(content(&web, last, 0, 100_000), bytes_of(59, 100_000));
}

#[test]
fn units_of_a_member_that_goes_away_under_the_keeper_are_not_given_up() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let web = bed.path("pool/web");
    let allocator: Arc<dyn Allocate> = pool.clone();
    let journal = new_journal(&web, Options { allocator, ..options() });
    let mut last = 0;
    for i in 0..200 {
        last = write(&journal, 0, &bytes_of(i, 100_000));
    }
    journal.close().unwrap();
    let all = || (units(&web), units(&bed.path("b/web")));
    let before = all();
    assert!(!before.0.is_empty() && !before.1.is_empty(), "{before:?}");
    let mut keeper = Keeper::open(setup(&bed, &web, Limits::new(u64::MAX / 2, None))).unwrap();
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    for _ in 0..40 {
        let _ = keeper.step();
    }
    std::fs::rename(bed.path("gone"), bed.path("b")).unwrap();
    while keeper.step().unwrap() || keeper.step().unwrap() {}
    assert_eq!(all(), before);
    assert_whole(&History::load(&web).unwrap());
    assert_eq!(content(&web, last, 0, 100_000), bytes_of(199, 100_000));
}

#[test]
fn a_window_that_stands_still_says_why() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let web = bed.path("pool/web");
    let allocator: Arc<dyn Allocate> = pool.clone();
    let journal = new_journal(&web, Options { allocator, ..options() });
    for i in 0..160 {
        write(&journal, 0, &bytes_of(i, 100_000));
    }
    journal.close().unwrap();
    let dir = if web.join("unit-0000000003").exists() { web.clone() } else { bed.path("b/web") };
    let path = dir.join("unit-0000000003");
    let mut bytes = std::fs::read(&path).unwrap();
    // One record in it, and its index: what is left counts.
    bytes[4096 + 100_096 + 20] ^= 1;
    let footer = bytes.len() - 64;
    bytes[footer..].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let mut keeper = Keeper::open(Setup {
        storage: Arc::clone(&bed.storage),
        dir: web.clone(),
        clock: Arc::new(SystemClock),
        ground: Arc::new(Home { storage: Arc::clone(&bed.storage) }),
        pace: Arc::new(Unpaced),
        key: None,
        limits: Limits { guaranteed_ns: 0, ..Limits::new(0, None) },
    })
    .unwrap();
    keeper.sealed(15);
    while keeper.step().unwrap() {}
    let why = keeper.occupancy().merging_waits.clone().unwrap();
    assert!(why.contains("from unit 3 on") && why.contains("sealed"), "{why}");
}
