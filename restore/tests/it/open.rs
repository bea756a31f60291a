//! Finding a journal by name, with and without a state directory, beside an agent.

use crate::bed::{Bed, GROUP, GUEST};
use afterimage_restore::{Kind, open};
use rustix::fs::{FlockOperation, flock};
use std::fs;

#[test]
fn a_name_is_a_group_or_a_guest_and_another_one_lists_what_there_is() {
    let mut bed = Bed::new(1, &[4096]);
    bed.open_session();
    assert_eq!(open(&bed.state(), GROUP).unwrap().guest, None);
    let by_guest = open(&bed.state(), GUEST).unwrap();
    assert_eq!((by_guest.guest.as_deref(), by_guest.name()), (Some(GUEST), GUEST));
    let error = open(&bed.state(), "wbe").unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    let said = error.to_string();
    assert!(said.contains("groups: shop; guests: web"), "{said}");
    assert_eq!(open(&bed.state(), "../shop").unwrap_err().kind(), Kind::Usage);
}

#[test]
fn a_wrong_state_directory_is_said_to_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let missing = open(&dir.path().join("none"), "x").unwrap_err();
    assert!(missing.to_string().contains("there is no directory"), "{missing}");
    let empty = open(dir.path(), "x").unwrap_err();
    assert!(empty.to_string().contains("is not a state directory"), "{empty}");
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    let error = open(&file, "x").unwrap_err();
    assert!(error.to_string().contains("is a file"), "{error}");
    for error in [missing, empty, error] {
        assert_eq!(error.kind(), Kind::Usage);
    }
    fs::create_dir(dir.path().join("pool")).unwrap();
    let nothing = open(dir.path(), "x").unwrap_err();
    assert!(nothing.to_string().contains("nothing is protected"), "{nothing}");
    fs::write(dir.path().join("format"), "999\n").unwrap();
    let newer = open(dir.path(), "x").unwrap_err();
    assert!(newer.to_string().contains("format version 999"), "{newer}");
    fs::write(dir.path().join("format"), "cheese\n").unwrap();
    let odd = open(dir.path(), "x").unwrap_err();
    assert!(odd.to_string().contains("is this a state directory?"), "{odd}");
}

#[test]
fn a_damaged_or_newer_journal_is_no_unknown_name() {
    let bed = Bed::new(2, &[4096]);
    let identity = bed.journal_dir().join("journal.json");
    let whole = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, whole.replace("\"format\": 1", "\"format\": 7")).unwrap();
    for name in [GROUP, GUEST] {
        let error = open(&bed.state(), name).unwrap_err();
        assert!(error.to_string().contains("has format version 7"), "{name}: {error}");
    }
    fs::write(&identity, "{").unwrap();
    let error = open(&bed.state(), GROUP).unwrap_err();
    assert!(error.to_string().contains("not a journal's identity"), "{error}");
}

#[test]
fn a_reader_holds_the_pin_until_it_is_dropped() {
    let bed = Bed::new(3, &[4096]);
    let recovery = bed.open();
    let pin = fs::File::open(bed.journal_dir().join("pin")).unwrap();
    let second = bed.open();
    assert!(flock(&pin, FlockOperation::NonBlockingLockExclusive).is_err());
    drop(recovery);
    assert!(flock(&pin, FlockOperation::NonBlockingLockExclusive).is_err());
    drop(second);
    flock(&pin, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn a_reader_waits_for_a_deletion_that_is_under_way() {
    let bed = Bed::new(4, &[4096]);
    drop(bed.open());
    let pin = fs::File::open(bed.journal_dir().join("pin")).unwrap();
    flock(&pin, FlockOperation::NonBlockingLockExclusive).unwrap();
    let state = bed.state();
    let reader = std::thread::spawn(move || open(&state, GROUP).map(|_| ()));
    assert!(!reader.is_finished());
    drop(pin);
    reader.join().unwrap().unwrap();
}
