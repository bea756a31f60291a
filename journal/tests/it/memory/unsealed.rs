//! Thinning beside a writer whose open unit has the record that commits an older instant.

use super::guest::{SECOND, Warm};
use crate::fixture::session;
use afterimage_journal::History;
use afterimage_journal::meta::SessionEvent;

/// One for each minute: all that this test makes.
const KEEP: &str = "1m,1m:10h";

#[test]
fn an_instant_is_kept_though_the_record_that_commits_it_is_in_no_sealed_unit() {
    let mut across = 0;
    for seed in 1..=4 {
        let mut warm = Warm::new(seed * 9973);
        let journal = warm.open();
        journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
        for round in 0..24 {
            warm.write(&journal, 3 + (seed + round) % 7);
            warm.work();
            warm.checkpoint(&journal, None);
            journal.sync().unwrap();
            warm.bench.pass(150 * SECOND);
            warm.keep(KEEP);
            let history = History::load(&warm.bench.dir).unwrap();
            let listed = warm.check_exact(&history);
            let last = warm.made.last().unwrap();
            across += usize::from((last.instant..last.commit).contains(&history.edge));
            for made in &warm.made {
                assert!(listed.contains_key(&made.id), "seed {seed}, {round}: {} is gone", made.id);
            }
        }
        warm.check();
        journal.close().unwrap();
    }
    assert!(across > 3, "the edge was between instant and commit {across} times only");
}
