//! Room for units: who gets it, when it is refused, and what is used again.

use super::{Bed, UNIT};
use afterimage_journal::pool::{Allocate, Limit, Pool, SPARE_DIR, Slot};
use afterimage_journal::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// What the log does with a slot.
fn fill(slot: &Slot, name: &str) -> PathBuf {
    let path = slot.dir.join(name);
    if let Some(spare) = &slot.spare {
        std::fs::rename(spare, &path).unwrap();
    }
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(&path).unwrap();
    file.write_all_at(&vec![7; UNIT as usize], 0).unwrap();
    path
}

fn no_room(result: Result<Slot, Error>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FreeSpace, "{error}");
    error.to_string()
}

#[test]
fn limits_of_members_send_units_elsewhere_and_then_refuse_them() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.home(), Limit::Bytes(2 * UNIT)).unwrap();
    pool.add(&bed.path("b"), Limit::Bytes(3 * UNIT)).unwrap();
    let (web, db) = (bed.path("pool/web"), bed.path("pool/db"));
    let mut dirs = Vec::new();
    for i in 0..5 {
        let slot = pool.allocate(if i % 2 == 0 { &web } else { &db }, UNIT).unwrap();
        fill(&slot, &format!("unit-{:010}", i + 1));
        dirs.push(slot.dir);
    }
    let on_b = dirs.iter().filter(|d| d.starts_with(bed.path("b"))).count();
    assert_eq!(on_b, 3, "{dirs:?}");
    let text = no_room(pool.allocate(&web, UNIT));
    assert!(
        text.contains("2.0 MiB of its limit of 2.0 MiB") && text.contains("pool add"),
        "{text}"
    );
    assert_eq!((pool.usage("web").units, pool.usage("db").units), (3, 2));
    drop(pool);
    // Counted anew from the files, it is the same.
    let pool = bed.open();
    assert_eq!(pool.usage("web").bytes, 3 * UNIT);
    no_room(pool.allocate(&web, UNIT));
    std::fs::remove_file(dirs[0].join("unit-0000000001")).unwrap();
    drop(pool);
    bed.open().allocate(&web, UNIT).unwrap();
}

#[test]
fn a_group_over_its_hard_limit_gets_nothing_and_the_others_do() {
    let bed = Bed::new();
    let pool = bed.open();
    // Two units of it are left free for merging and moving.
    pool.set_limit("web", Some(4 * UNIT));
    let web = bed.path("pool/web");
    assert_eq!(pool.room("web", UNIT), 4 * UNIT);
    let first = fill(&pool.allocate(&web, UNIT).unwrap(), "unit-0000000001");
    fill(&pool.allocate(&web, UNIT).unwrap(), "unit-0000000002");
    let text = no_room(pool.allocate(&web, UNIT));
    assert!(text.contains("web may take 4.0 MiB and takes 2.0 MiB"), "{text}");
    pool.allocate(&bed.path("pool/db"), UNIT).unwrap();
    // What went behind the pool's back is seen before anything is refused.
    std::fs::remove_file(first).unwrap();
    pool.allocate(&web, UNIT).unwrap();
    pool.set_limit("web", None);
    pool.allocate(&web, UNIT).unwrap();
}

#[test]
fn ring_and_map_runs_count_against_a_limit_the_runs_twice() {
    let bed = Bed::new();
    let web = bed.path("pool/web");
    std::fs::create_dir_all(&web).unwrap();
    std::fs::write(web.join("ring"), vec![1; UNIT as usize]).unwrap();
    std::fs::write(web.join("map-1-0000000001-0000000008"), vec![1; UNIT as usize]).unwrap();
    let pool = bed.open();
    pool.set_limit("web", Some(5 * UNIT));
    no_room(pool.allocate(&web, UNIT));
    pool.set_limit("web", Some(6 * UNIT));
    pool.allocate(&web, UNIT).unwrap();
}

#[test]
fn a_released_unit_is_used_again_by_any_group() {
    let bed = Bed::new();
    let pool = bed.open();
    let path = fill(&pool.allocate(&bed.path("pool/web"), UNIT).unwrap(), "unit-0000000001");
    pool.release(&path).unwrap();
    assert!(!path.exists());
    assert_eq!((pool.usage("web").units, pool.list()[0].spare_bytes), (0, UNIT));
    assert!(pool.allocate(&bed.path("pool/db"), 2 * UNIT).unwrap().spare.is_none());
    drop(pool);
    let pool = bed.open();
    let slot = pool.allocate(&bed.path("pool/db"), UNIT).unwrap();
    let spare = slot.spare.clone().unwrap();
    assert!(spare.starts_with(bed.path("pool").join(SPARE_DIR)) && spare.exists());
    fill(&slot, "unit-0000000001");
    assert!(pool.allocate(&bed.path("pool/db"), UNIT).unwrap().spare.is_none());
}

#[test]
fn spares_are_few_whole_and_given_up_for_room() {
    let bed = Bed::new();
    let pool = bed.open();
    let web = bed.path("pool/web");
    let paths: Vec<_> = (1..=6)
        .map(|i| fill(&pool.allocate(&web, UNIT).unwrap(), &format!("unit-{i:010}")))
        .collect();
    let punched = bed.path("pool/web/unit-0000000007");
    std::fs::File::create(&punched).unwrap().set_len(UNIT).unwrap();
    pool.release(&punched).unwrap();
    assert_eq!(pool.list()[0].spare_bytes, 0, "nothing but holes is not warm");
    for path in &paths {
        pool.release(path).unwrap();
        assert!(!path.exists());
    }
    assert_eq!(pool.list()[0].spare_bytes, 4 * UNIT);
    pool.add(&bed.home(), Limit::Bytes(5 * UNIT)).unwrap();
    // Of another size: the spares are no use for it, and in its way.
    pool.allocate(&web, 2 * UNIT).unwrap();
    assert_eq!(pool.list()[0].spare_bytes, 0);
    assert_eq!(std::fs::read_dir(bed.path("pool/.spare")).unwrap().count(), 0);
}

#[test]
fn a_member_that_went_away_gets_nothing_from_that_moment() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.home(), Limit::Bytes(UNIT)).unwrap();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let web = bed.path("pool/web");
    assert!(pool.allocate(&web, UNIT).unwrap().dir.starts_with(bed.path("b")));
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    let slot = pool.allocate(&web, UNIT).unwrap();
    assert_eq!(slot.dir, web);
    // A refusal counts anew what lies there: so it has to.
    fill(&slot, "unit-0000000001");
    let text = no_room(pool.allocate(&web, UNIT));
    assert!(text.contains("/b is not there"), "{text}");
    assert!(Pool::look(&bed.storage, &bed.home()).is_ok());
}
