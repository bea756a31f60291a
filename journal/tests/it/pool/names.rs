//! Names of groups beside our own: what is ours lies where no group's name can be.

use super::{Bed, drain, state, units};
use crate::fixture::{bytes_of, content, new_journal, options, write};
use afterimage_journal::layout::{check_name, check_new_name};
use afterimage_journal::pool::{Allocate, DrainStep, Limit};
use afterimage_journal::{History, Journal, Options};
use std::sync::Arc;
use uuid::Uuid;

#[test]
fn a_group_named_spare_keeps_its_units_through_a_drain() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let allocator: Arc<dyn Allocate> = pool.clone();
    let dir = bed.path("pool/spare");
    let journal = new_journal(&dir, Options { allocator, ..options() });
    let mut last = 0;
    for i in 0..30 {
        last = write(&journal, 0, &bytes_of(i, 100_000));
    }
    journal.close().unwrap();
    // What an older version kept there goes where it is now.
    std::fs::write(bed.path("b/spare/spare-1"), vec![1; 4096]).unwrap();
    drop(pool);
    let pool = bed.open();
    assert!(bed.path("b/.spare/spare-1").exists() && !units(&bed.path("b/spare")).is_empty());
    pool.add(&bed.home(), Limit::None).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
    assert!(History::load(&dir).unwrap().damage.is_empty());
    assert_eq!(content(&dir, last, 0, 100_000), bytes_of(29, 100_000));
    assert_eq!(state(&pool, &bed.home()).0, "active");
}

#[test]
fn names_of_our_own_files_are_refused_for_new_groups_and_read_for_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["pool.json", "member.json", "a.json", "pool.tmp", "B.TMP", "x.Json"] {
        check_name(name).unwrap();
        let text = check_new_name(name).unwrap_err().to_string();
        assert!(text.contains(".json or .tmp are kept"), "{text}");
        let path = dir.path().join(name);
        Journal::create(&path, Uuid::new_v4(), name, options()).map(drop).unwrap_err();
        assert!(!path.exists());
    }
    for name in ["spare", "json", "a.jsonx", "held", "strays", "units"] {
        check_new_name(name).unwrap();
    }
}
