//! What an opening takes for lost: each way by which records that had been answered can be missing, and
//! the ends by which none is.

use crate::fixture::{new_journal, options, quiet, with_boot, write};
use crate::ring::killed;
use afterimage_journal::log::Loss;
use afterimage_journal::ring::NAME;
use afterimage_journal::{History, Journal, Options};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Opens a journal, and says what that took for lost.
fn loss(dir: &Path, options: Options) -> Option<Loss> {
    let (journal, history) = Journal::open(dir, options).unwrap();
    journal.close().unwrap();
    assert!(history.loss.as_ref().is_none_or(|l| l.certain == history.head));
    history.loss
}

#[track_caller]
fn expect(found: Option<&Loss>, word: &str) {
    let why = found.map_or("nothing", |l| &l.why);
    assert!(why.contains(word), "{word}: {why}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        match std::fs::copy(&path, to.join(path.file_name().unwrap())) {
            // A file of a running journal may go away meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            copied => drop(copied.unwrap()),
        }
    }
}

#[test]
fn closed_or_killed_writer_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    killed(tmp.path());
    assert_eq!(loss(&tmp.path().join("j"), quiet()), None);
    assert_eq!(loss(&tmp.path().join("j"), with_boot(9)), None, "closed, and restarted since");
}

#[test]
fn unclean_end_in_another_boot_is_a_loss() {
    let tmp = tempfile::tempdir().unwrap();
    killed(tmp.path());
    expect(loss(&tmp.path().join("j"), with_boot(9)).as_ref(), "restarted");
}

#[test]
fn ring_that_is_lost_is_a_loss() {
    let tmp = tempfile::tempdir().unwrap();
    killed(tmp.path());
    let dir = tmp.path().join("j");
    std::fs::remove_file(dir.join(NAME)).unwrap();
    expect(loss(&dir, quiet()).as_ref(), "ring");
}

#[test]
fn copy_of_an_open_journal_is_a_loss_whatever_its_inodes() {
    let tmp = tempfile::tempdir().unwrap();
    killed(tmp.path());
    let dir = tmp.path().join("j");
    // Removed first, so that the numbers of its files may be used again.
    let aside = tmp.path().join("aside");
    copy(&dir, &aside);
    std::fs::remove_dir_all(&dir).unwrap();
    copy(&aside, &dir);
    expect(loss(&dir, quiet()).as_ref(), "ring");
}

#[test]
fn open_unit_that_was_replaced_by_a_copy_or_removed_is_a_loss() {
    let tmp = tempfile::tempdir().unwrap();
    killed(tmp.path());
    let dir = tmp.path().join("j");
    let newest = newest_unit(&dir);
    std::fs::copy(&newest, tmp.path().join("unit")).unwrap();
    std::fs::rename(tmp.path().join("unit"), &newest).unwrap();
    expect(loss(&dir, quiet()).as_ref(), "put back from a copy");

    let tmp = tempfile::tempdir().unwrap();
    killed(tmp.path());
    let dir = tmp.path().join("j");
    std::fs::remove_file(newest_unit(&dir)).unwrap();
    assert!(loss(&dir, quiet()).is_some());
}

/// The unit that the writer had open: the newest that isn't sealed and has records or a slot in the ring.
fn newest_unit(dir: &Path) -> PathBuf {
    let history = History::load(dir).unwrap();
    let used =
        (0..history.units.len() as u32).rev().find(|i| !history.records(*i).unwrap().is_empty());
    history.units[used.unwrap() as usize].path.clone()
}

#[test]
fn older_journal_put_back_in_place_is_a_loss_by_the_note_of_its_head() {
    let tmp = tempfile::tempdir().unwrap();
    let (dir, aside) = (tmp.path().join("j"), tmp.path().join("aside"));
    let noting = || Options { notes_dir: Some(tmp.path().join("notes")), ..options() };
    let journal = new_journal(&dir, noting());
    write(&journal, 0, &[1; 4096]);
    journal.close().unwrap();
    assert_eq!(loss(&dir, noting()), None);
    let (journal, _) = Journal::open(&dir, noting()).unwrap();
    journal.sync().unwrap();
    copy(&dir, &aside);
    write(&journal, 4096, &[2; 4096]);
    journal.close().unwrap();
    // Into the very files where they are there still.
    for entry in std::fs::read_dir(&aside).unwrap() {
        let from = entry.unwrap().path();
        let to = dir.join(from.file_name().unwrap());
        match std::fs::OpenOptions::new().write(true).open(&to) {
            Ok(file) => file.write_all_at(&std::fs::read(&from).unwrap(), 0).unwrap(),
            Err(_) => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
    expect(loss(&dir, noting()).as_ref(), "older copy");
    assert_eq!(loss(&dir, noting()), None, "told once");
}

#[test]
fn loss_is_known_to_later_openings() {
    let tmp = tempfile::tempdir().unwrap();
    killed(tmp.path());
    let dir = tmp.path().join("j");
    let (journal, history) = Journal::open(&dir, with_boot(9)).unwrap();
    assert!(history.loss.is_some() && history.cut_at == 0);
    journal.close().unwrap();
    let (journal, again) = Journal::open(&dir, with_boot(9)).unwrap();
    assert!(again.loss.is_none() && again.cut_at > history.head, "{}", again.cut_at);
    journal.close().unwrap();
}
