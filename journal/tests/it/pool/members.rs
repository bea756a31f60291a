//! Who belongs to the pool, and who is believed.

use super::{Bed, state};
use afterimage_journal::ErrorKind;
use afterimage_journal::pool::{Added, Limit, MemberFile, Pool};

fn refused(bed: &Bed, pool: &Pool, dir: &str) -> String {
    let error = pool.add(&bed.path(dir), Limit::Keep).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FixInput, "{error}");
    error.to_string()
}

#[test]
fn a_home_alone_stays_as_it_is() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.bump().unwrap();
    pool.tend();
    pool.check().unwrap();
    assert_eq!((pool.list().len(), pool.epoch()), (1, 0));
    assert_eq!(std::fs::read_dir(bed.home()).unwrap().count(), 0);
}

#[test]
fn only_an_empty_directory_apart_from_the_others_becomes_a_member() {
    let bed = Bed::new();
    let pool = bed.open();
    assert_eq!(pool.add(&bed.path("b"), Limit::Bytes(5)).unwrap(), Added::New);
    assert_eq!(pool.list()[1].limit_bytes, Some(5));
    assert!(refused(&bed, &pool, "b").contains("member of the pool already"));
    assert!(refused(&bed, &pool, "nowhere").contains("No such file"));
    std::fs::create_dir_all(bed.path("b/sub")).unwrap();
    std::fs::create_dir_all(bed.path("pool/sub")).unwrap();
    for inside in ["b/sub", "pool/sub", ""] {
        assert!(refused(&bed, &pool, inside).contains("inside one another"), "{inside}");
    }
    std::os::unix::fs::symlink(bed.path("b"), bed.path("link")).unwrap();
    assert!(refused(&bed, &pool, "link").contains("member of the pool already"));
    std::fs::write(bed.path("c/letter"), "dear").unwrap();
    assert!(refused(&bed, &pool, "c").contains("not empty"));
    assert!(refused(&bed, &pool, "c/letter").contains("ot a directory"));
    std::fs::remove_file(bed.path("c/letter")).unwrap();
    std::fs::create_dir(bed.path("c/lost+found")).unwrap();
    assert_eq!(pool.add(&bed.path("c"), Limit::Keep).unwrap(), Added::New);
}

#[test]
fn a_member_of_another_pool_and_copies_of_members_are_refused() {
    let (bed, other) = (Bed::new(), Bed::new());
    bed.open().add(&bed.path("b"), Limit::Keep).unwrap();
    let error = other.open().add(&bed.path("b"), Limit::Keep).unwrap_err().to_string();
    assert!(error.contains("belongs to another pool"), "{error}");
    let pool = bed.open();
    bed.copy("b", "copy");
    assert!(refused(&bed, &pool, "copy").contains("copy of the member"));
    bed.copy("pool", "home");
    assert!(refused(&bed, &pool, "home").contains("copy of the pool's home"));
}

#[test]
fn limits_are_set_changed_and_lifted_the_home_s_too() {
    let bed = Bed::new();
    let pool = bed.open();
    assert_eq!(pool.add(&bed.home(), Limit::Bytes(7)).unwrap(), Added::Limited);
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    assert_eq!(pool.add(&bed.path("b"), Limit::Bytes(9)).unwrap(), Added::Limited);
    drop(pool);
    let limits: Vec<_> = bed.open().list().iter().map(|m| m.limit_bytes).collect();
    assert_eq!(limits, [Some(7), Some(9)]);
    bed.open().add(&bed.home(), Limit::None).unwrap();
    assert_eq!(bed.open().list()[0].limit_bytes, None);
}

#[test]
fn an_old_copy_swapped_in_is_noticed_while_the_agent_runs_and_after() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    pool.add(&bed.path("c"), Limit::Keep).unwrap();
    bed.copy("b", "old");
    pool.check().unwrap();
    bed.swap("b", "old");
    pool.tend();
    let (found, why) = state(&pool, &bed.path("b"));
    assert_eq!(found, "stale");
    assert!(why.contains("old copy"), "{why}");
    assert_eq!(state(&pool, &bed.path("c")).0, "active");
    assert!(refused(&bed, &pool, "b").contains("old copy"));
    drop(pool);
    let pool = bed.open();
    assert_eq!(state(&pool, &bed.path("b")).0, "stale");
    // The true one was away meanwhile, and is as it went.
    bed.swap("b", "old");
    pool.tend();
    assert_eq!(state(&pool, &bed.path("b")).0, "active");
    drop(pool);
    assert_eq!(state(&bed.open(), &bed.path("b")).0, "active");
}

#[test]
fn a_member_that_vanishes_is_named_and_taken_in_again_under_another_path() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    std::fs::rename(bed.path("b"), bed.path("moved")).unwrap();
    pool.tend();
    assert_eq!(state(&pool, &bed.path("b")), ("away".into(), "is not there".into()));
    for _ in 0..3 {
        pool.check().unwrap();
    }
    drop(pool);
    let pool = bed.open();
    assert_eq!(pool.add(&bed.path("moved"), Limit::Keep).unwrap(), Added::Moved);
    assert_eq!(state(&pool, &bed.path("moved")).0, "active");
    drop(pool);
    assert_eq!(state(&bed.open(), &bed.path("moved")).0, "active");
}

#[test]
fn an_old_copy_of_the_home_is_not_written_to() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    drop(pool);
    bed.copy("pool", "old");
    bed.open();
    bed.open();
    bed.swap("pool", "old");
    let error = Pool::open(&bed.storage, &bed.home()).unwrap_err();
    assert!(error.to_string().contains("home is an old copy"), "{error}");
    assert_eq!(state(&Pool::look(&bed.storage, &bed.home()).unwrap(), &bed.path("b")).0, "stale");
    bed.swap("pool", "old");
    assert_eq!(state(&bed.open(), &bed.path("b")).0, "active");
}

#[test]
fn a_lost_description_is_made_anew_from_all_members() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    bed.copy("c", "old");
    pool.add(&bed.path("c"), Limit::Keep).unwrap();
    drop(pool);
    let uuids: Vec<_> = bed.open().list().iter().map(|m| m.uuid).collect();
    std::fs::remove_file(bed.path("pool/pool.json")).unwrap();
    let error = Pool::open(&bed.storage, &bed.home()).unwrap_err().to_string();
    assert!(error.contains("description is lost"), "{error}");
    let stranger = [bed.path("b"), bed.path("old")];
    assert!(Pool::rebuild(&bed.storage, &bed.home(), &stranger).is_err());
    let dirs = [bed.path("b"), bed.path("c")];
    Pool::rebuild(&bed.storage, &bed.home(), &dirs).unwrap();
    let pool = bed.open();
    assert_eq!(pool.list().iter().map(|m| m.uuid).collect::<Vec<_>>(), uuids);
    assert!(pool.list().iter().all(|m| m.state == "active"));
}

#[test]
fn the_home_stays_and_a_lost_member_goes_only_when_it_is_said_so() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let text = |r: afterimage_journal::Result<()>| r.unwrap_err().to_string();
    assert!(text(pool.remove(&bed.home(), false)).contains("home, which stays"));
    assert!(text(pool.remove(&bed.path("c"), false)).contains("no member"));
    assert!(text(pool.remove(&bed.path("b"), true)).contains("without --lost"));
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    pool.tend();
    assert!(text(pool.remove(&bed.path("b"), false)).contains("--lost"));
    pool.remove(&bed.path("b"), true).unwrap();
    assert_eq!(pool.list().len(), 1);
    // What is left of it is an old copy of nobody: empty, it may come in anew.
    assert_eq!(pool.add(&bed.path("gone"), Limit::Keep).unwrap(), Added::New);
    let word = MemberFile::read(&bed.storage, &bed.path("gone")).unwrap().unwrap();
    assert_eq!(word.member, pool.list()[1].uuid);
}
