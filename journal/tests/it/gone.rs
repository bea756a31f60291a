//! A journal whose directory or open units go away while it is written: it stops within moments, and makes
//! nothing in their place.

use crate::fixture::{new_journal, options, write};
use afterimage_journal::{History, Journal, Options};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Far past what a look needs, on a machine that has much to do.
const LIMIT: Duration = Duration::from_secs(60);

/// Units that a journal has by itself: the one that is written, and two ahead.
const UNITS: usize = 3;

/// A journal with threads and one record, and with its units made: what is made at the very instant in
/// which the directory goes may land in the new place.
fn running(dir: &Path) -> Journal {
    let journal = new_journal(dir, Options { inline: false, ..options() });
    write(&journal, 0, &[1; 4096]);
    journal.sync().unwrap();
    let begun = Instant::now();
    let names = || std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let is_unit = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("unit-");
    while names().filter(is_unit).count() < UNITS {
        assert!(begun.elapsed() < LIMIT, "{:?}", names().collect::<Vec<_>>());
        std::thread::yield_now();
    }
    journal
}

#[track_caller]
fn expect_stop(journal: &Journal, word: &str) {
    let begun = Instant::now();
    let why = loop {
        match journal.stopped() {
            Some(why) => break why,
            None => assert!(begun.elapsed() < LIMIT, "it goes on"),
        }
        std::thread::yield_now();
    };
    assert!(why.contains(word), "{why}");
    assert!(journal.look_at_home().is_err());
}

fn units(dir: &Path) -> Vec<PathBuf> {
    let history = History::load(dir).unwrap();
    history.units.iter().map(|u| u.path.clone()).collect()
}

#[test]
fn journal_stops_when_its_directory_is_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = running(&dir);
    std::fs::remove_dir_all(&dir).unwrap();
    expect_stop(&journal, "removed");
    assert!(!dir.exists());
}

#[test]
fn journal_makes_nothing_in_a_directory_that_replaced_its_own() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = running(&dir);
    std::fs::rename(&dir, tmp.path().join("aside")).unwrap();
    std::fs::create_dir(&dir).unwrap();
    // Whoever asks is told at once.
    assert!(journal.look_at_home().unwrap_err().to_string().contains("another one"));
    expect_stop(&journal, "another one");
    drop(journal);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn journal_stops_when_its_files_are_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = running(&dir);
    std::fs::remove_file(&units(&dir)[0]).unwrap();
    expect_stop(&journal, "removed");
    drop(journal);

    let dir = tmp.path().join("k");
    let journal = running(&dir);
    std::fs::remove_file(dir.join("journal.json")).unwrap();
    expect_stop(&journal, "journal.json was removed");
}

#[test]
fn journal_stops_when_an_open_unit_is_replaced_by_a_copy() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = running(&dir);
    let unit = units(&dir).swap_remove(0);
    std::fs::copy(&unit, tmp.path().join("unit")).unwrap();
    std::fs::rename(tmp.path().join("unit"), &unit).unwrap();
    expect_stop(&journal, "another one");
}
