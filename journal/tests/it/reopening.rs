//! Openings that die: whatever was done of one, the next never gives out a number or an epoch again.

use crate::fixture::{new_journal, with_boot, write};
use crate::mortal::Mortal;
use crate::rounds::copy_files;
use afterimage_journal::{Journal, Options, layout};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a unit's records begin.
const RECORDS_AT: usize = 4096;

/// Waits until the units behind the one in use are prepared: only then is it known what lies where.
fn wait_for_units(dir: &Path, last: u64) {
    let begun = Instant::now();
    while !layout::unit_path(dir, last).exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "unit {last} is never prepared");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What was written to a unit and not synced is lost with the power.
fn lose_records(dir: &Path, unit: u64, from: usize) {
    let path = layout::unit_path(dir, unit);
    let bytes = fs::metadata(&path).unwrap().len() as usize;
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0; bytes - from], from as u64).unwrap();
}

/// Three boots. The first ends with a failed sync, whose record is in unit 1 and distrusted, and with
/// two units prepared behind it. The second begins its epoch in unit 4, far above what the first may
/// have numbered; it can't seal units 2 and 3 (the disk refuses that), gives out a number, and loses
/// the record with the power. So unit 4 has no record, and its header alone tells of the second
/// epoch. The third dies at each of its calls.
#[test]
fn an_opening_that_dies_forgets_no_number_that_was_seen() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("j");
    let journal = new_journal(&dir, with_boot(1));
    write(&journal, 0, &[1; 512]);
    journal.sync().unwrap();
    wait_for_units(&dir, 3);
    let sure = journal.head();
    write(&journal, 0, &[2; 512]);
    journal.sync().unwrap();
    drop(journal);
    fs::write(dir.join(layout::DISTRUST), format!("{sure}\n")).unwrap();
    let prepared = [2, 3].map(|n| layout::unit_path(&dir, n)).map(|p| (fs::read(&p).unwrap(), p));

    let (journal, history) = Journal::open(&dir, with_boot(2)).unwrap();
    assert!(history.torn);
    wait_for_units(&dir, 6);
    let seen = write(&journal, 0, &[4; 512]);
    let epoch = journal.epoch();
    drop(journal);
    for (bytes, path) in prepared {
        fs::write(path, bytes).unwrap();
    }
    lose_records(&dir, 4, RECORDS_AT);
    let _ = fs::remove_file(dir.join(afterimage_journal::ring::NAME));

    let mut died = 0;
    for calls in 0.. {
        let disk = home.path().join("disk");
        copy_files(&dir, &disk);
        let mortal = Arc::new(Mortal::new(calls));
        let third = Options { storage: mortal.clone(), ..with_boot(3) };
        let opened = Journal::open(&disk, third).map(drop);
        died += u32::from(opened.is_err());
        let (journal, _) = Journal::open(&disk, with_boot(3)).unwrap();
        let next = (journal.head() + 1, journal.epoch());
        assert!(next.0 > seen && next.1 > epoch, "{calls} calls: {next:?}, {seen} in {epoch}");
        drop(journal);
        fs::remove_dir_all(&disk).unwrap();
        if opened.is_ok() && !mortal.is_dead() {
            break;
        }
    }
    assert!(died > 10, "an opening changes more than {died} times");
}
