//! Members of the pool that are away: the newest point is not taken for another, the others stay.

use crate::bed::{Bed, GROUP, options, restore_at, restore_to};
use afterimage_journal::Options;
use afterimage_journal::pool::{Limit, Pool};
use afterimage_journal::storage::RealStorage;
use afterimage_restore::{Format, Kind, When, open};
use std::path::Path;

#[test]
fn the_newest_point_is_refused_while_the_newest_units_may_lie_on_a_member_that_is_away() {
    let member = tempfile::tempdir().unwrap();
    let second = member.path().join("b");
    std::fs::create_dir(&second).unwrap();
    let pooled = |home: &Path| {
        let pool = Pool::open(&RealStorage::shared(), home).unwrap();
        // The first point lies in the home.
        pool.add(&second, Limit::Bytes(0)).unwrap();
        Options { allocator: pool, ..options() }
    };
    let mut bed = Bed::with(1, &[1 << 20], pooled);
    let home = bed.state().join("pool");
    bed.open_session();
    let known = bed.write();
    bed.note(known);
    // One pool at a time holds a home.
    bed.stop_agent();
    let pool = Pool::open(&RealStorage::shared(), &home).unwrap();
    // From here on everything goes to the second member.
    pool.add(&second, Limit::None).unwrap();
    pool.add(&home, Limit::Bytes(0)).unwrap();
    bed.restart_with(Options { allocator: pool, ..options() });
    bed.open_session();
    bed.run(200);
    bed.stop_agent();
    let newest = bed.known.last().unwrap().0;
    let whole = bed.open();
    let point = whole.resolve(&When::Latest).unwrap();
    assert_eq!(
        point.seq, whole.history.head,
        "{:?} {:?}",
        whole.history.damage, whole.history.gaps
    );
    drop(whole);
    std::fs::rename(&second, member.path().join("gone")).unwrap();

    let recovery = open(&bed.state(), GROUP).unwrap();
    let error = recovery.resolve(&When::Latest).unwrap_err();
    assert_eq!((error.kind(), error.kind().exit_code()), (Kind::NotReachable, 4), "{error}");
    let said = error.to_string();
    for part in [format!("{} is not there", second.display()), " before, none after".into()] {
        assert!(said.contains(&part), "{said}: lacks {part}");
    }
    // What needs nothing of it is restored, what does is refused by name.
    let out = tempfile::tempdir().unwrap();
    let (seq, disks) = &bed.known[1];
    let report = restore_at(&recovery, *seq, out.path(), Format::Raw).unwrap();
    assert!(std::fs::read(&report.disks[0].path).unwrap() == disks[0]);
    let refused = restore_to(&recovery, newest, &out.path().join("x"), Format::Raw, &[]);
    assert_eq!(refused.unwrap_err().kind(), Kind::NotRestorable);

    std::fs::rename(member.path().join("gone"), &second).unwrap();
    let point = bed.open().resolve(&When::Latest).unwrap();
    assert!(point.seq >= newest);
}
