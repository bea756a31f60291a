//! The ring: what is in it only survives the process, is seen by readers, and holds up nobody.

use crate::fixture::{
    RING_BYTES, assert_whole, bytes_of, draft, entries, new_journal, options, quiet, write,
};
use afterimage_journal::log::Backend;
use afterimage_journal::pool::{Allocate, Slot};
use afterimage_journal::ring::NAME;
use afterimage_journal::{Error, History, Journal, Options, Seq};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DIR: &str = "JOURNAL_RING_DIR";
/// Too little for a write before somebody asks for one.
const COUNT: u64 = 20;

fn payload(i: u64) -> Vec<u8> {
    bytes_of(i, 3000 + 37 * i as usize)
}

/// Runs in the child only: writes, says so, and waits for its end. Nothing is ever synced or flushed.
#[test]
fn child_that_leaves_everything_in_the_ring() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let (journal, _) = Journal::open(&dir.join("j"), quiet()).unwrap();
    let first = (0..COUNT).map(|i| write_one(&journal, i)).next().unwrap();
    for i in 1..COUNT {
        write_one(&journal, i);
    }
    std::fs::write(dir.join("done.tmp"), first.to_string()).unwrap();
    std::fs::rename(dir.join("done.tmp"), dir.join("done")).unwrap();
    loop {
        std::thread::park();
    }
}

fn write_one(journal: &Journal, i: u64) -> Seq {
    let data = payload(i);
    journal.append(&draft(1, i, data.len()), &data).unwrap()
}

/// A journal whose writer was killed with its records in the ring only, and the first one's number.
pub fn killed(dir: &Path) -> Seq {
    drop(new_journal(&dir.join("j"), quiet()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ring::child_that_leaves_everything_in_the_ring"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !dir.join("done").exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::read_to_string(dir.join("done")).unwrap().parse().unwrap()
}

fn has_all(history: &History, first: Seq) -> bool {
    let mut found = Vec::new();
    (0..COUNT).all(|i| {
        history.entry(first + i).unwrap().is_some_and(|entry| {
            history.read_payload(&entry, &mut found).unwrap();
            found == payload(i)
        })
    })
}

#[test]
fn what_was_in_the_ring_only_when_the_process_was_killed_is_read_and_recovered() {
    let tmp = tempfile::tempdir().unwrap();
    let first = killed(tmp.path());
    let dir = tmp.path().join("j");
    let history = History::load(&dir).unwrap();
    assert_whole(&history);
    assert!(has_all(&history, first), "a reader with nobody there to ask");
    let (journal, history) = Journal::open(&dir, quiet()).unwrap();
    assert!(has_all(&history, first) && !history.torn);
    let next = write(&journal, 0, &[1; 512]);
    assert_eq!(next, history.head + 2, "no number was skipped: nothing can have been lost");
    journal.close().unwrap();
    assert!(!dir.join(NAME).exists(), "a closed journal needs none");
    assert!(has_all(&History::load(&dir).unwrap(), first), "it is in the units now");
}

/// Gives no place to any unit.
#[derive(Debug)]
struct Full;

impl Allocate for Full {
    fn allocate(&self, journal: &Path, _: u64) -> afterimage_journal::Result<Slot> {
        Err(Error::io("find a place in", journal, std::io::ErrorKind::StorageFull))
    }
}

#[test]
fn recovery_that_gets_no_further_is_done_again_and_comes_to_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let first = killed(tmp.path());
    let dir = tmp.path().join("j");
    for _ in 0..2 {
        let full = Options { allocator: Arc::new(Full), ..quiet() };
        assert!(Journal::open(&dir, full).is_err());
        let history = History::load(&dir).unwrap();
        assert_whole(&history);
        assert!(has_all(&history, first));
    }
    // The units have it all by now.
    std::fs::rename(dir.join(NAME), dir.join("aside")).unwrap();
    assert!(has_all(&History::load(&dir).unwrap(), first));
    std::fs::rename(dir.join("aside"), dir.join(NAME)).unwrap();
    let (journal, history) = Journal::open(&dir, quiet()).unwrap();
    assert!(has_all(&history, first));
    journal.close().unwrap();
}

#[test]
fn a_ring_that_is_lost_costs_the_tail_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let first = killed(tmp.path());
    let dir = tmp.path().join("j");
    std::fs::remove_file(dir.join(NAME)).unwrap();
    let history = History::load(&dir).unwrap();
    assert_whole(&history);
    assert!(history.entry(first).unwrap().is_none(), "else this test shows nothing");
    let journal = Journal::open(&dir, quiet()).unwrap().0;
    journal.close().unwrap();
    assert_whole(&History::load(&dir).unwrap());
}

#[test]
fn a_ring_that_was_copied_or_damaged_is_not_believed() {
    let tmp = tempfile::tempdir().unwrap();
    let first = killed(tmp.path());
    let dir = tmp.path().join("j");
    let ring = std::fs::read(dir.join(NAME)).unwrap();
    // The same bytes in another file.
    std::fs::rename(dir.join(NAME), dir.join("other")).unwrap();
    std::fs::write(dir.join(NAME), &ring).unwrap();
    assert!(History::load(&dir).unwrap().entry(first).unwrap().is_none());
    std::fs::rename(dir.join("other"), dir.join(NAME)).unwrap();
    assert!(has_all(&History::load(&dir).unwrap(), first));
    for at in [0, 9, 13, 20, 40, 50, 60, 66, 73, 85, 128, 140, 155, 161] {
        let mut bad = ring.clone();
        bad[at] ^= 0x40;
        // In place: it is the same file still.
        let file = std::fs::OpenOptions::new().write(true).open(dir.join(NAME)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bad, 0).unwrap();
        let history = History::load(&dir).unwrap();
        assert!(history.damage.is_empty() && history.entry(first).unwrap().is_none(), "byte {at}");
    }
}

#[test]
fn a_reader_beside_a_writer_that_turns_the_ring_over_sees_a_whole_prefix() {
    for backend in [Backend::Auto, Backend::Plain] {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("j");
        let often = Duration::from_millis(2);
        let journal = new_journal(&dir, Options { backend, sync_interval: often, ..options() });
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let (journal, done) = (&journal, &done);
                scope.spawn(move || {
                    let limit = 24 * RING_BYTES / 40_000;
                    for i in (0..limit).take_while(|_| !done.load(Ordering::Relaxed)) {
                        let data = bytes_of(i, 20_000);
                        journal.append(&draft(1, thread << 32 | i, data.len()), &data).unwrap();
                    }
                });
            }
            for _ in 0..12 {
                let before = journal.head();
                let history = History::load(&dir).unwrap();
                let mut data = Vec::new();
                let mut bad = None;
                for entry in entries(&history).iter().rev().take(60) {
                    let read = history.read_payload(entry, &mut data).is_ok();
                    let index = entry.record.addr & 0xffff_ffff;
                    if !read || (data.len() == 20_000 && data != bytes_of(index, 20_000)) {
                        bad = Some(entry.record.seq);
                    }
                }
                let whole = bad.is_none() && history.damage.is_empty() && history.head >= before;
                if !whole {
                    done.store(true, Ordering::Relaxed);
                }
                assert!(whole, "{bad:?} {:?} {} {before}", history.damage, history.head);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn every_backend_keeps_what_it_was_given() {
    let kinds = [Backend::Auto, Backend::Plain, Backend::Direct, Backend::Uring];
    for (backend, inline) in kinds.map(|b| (b, false)).into_iter().chain([(Backend::Plain, true)]) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("j");
        let journal = match Journal::create(
            &dir,
            uuid::Uuid::new_v4(),
            "g",
            Options { backend, inline, ..options() },
        ) {
            Ok(journal) => journal,
            Err(e) if matches!(backend, Backend::Direct | Backend::Uring) => {
                eprintln!("skipped: {e}");
                continue;
            }
            Err(e) => panic!("{e}"),
        };
        let mut written = Vec::new();
        for i in 0..300u64 {
            let data = bytes_of(i, (i as usize * 997) % 40_000);
            let seq = journal.append(&draft(1, i, data.len()), &data).unwrap();
            written.push((seq, data));
            if i % 40 == 0 {
                assert!(journal.sync().unwrap() >= seq);
            }
        }
        journal.close().unwrap();
        assert!(!dir.join(NAME).exists(), "a closed journal needs none");
        let history = History::load(&dir).unwrap();
        assert_whole(&history);
        let mut found = Vec::new();
        for (seq, data) in &written {
            history.read_payload(&history.entry(*seq).unwrap().unwrap(), &mut found).unwrap();
            assert!(found == *data, "{backend:?}: {seq}");
        }
    }
}

#[test]
fn a_reservation_that_comes_late_is_durable_and_those_behind_it_were_all_along() {
    for backend in [Backend::Auto, Backend::Plain] {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("j");
        let journal = new_journal(&dir, Options { backend, ..quiet() });
        let mut late = journal.reserve(5000).unwrap();
        for i in 0..8 {
            let seq = write_one(&journal, i);
            assert!(journal.sync().unwrap() >= seq, "a stalled neighbour holds up nobody");
        }
        late.payload_mut().fill(9);
        let seq = late.commit(&draft(1, 0, 5000)).unwrap();
        assert!(journal.sync().unwrap() >= seq);
        // Without the ring: what was synced is in the unit.
        let ring = dir.join(NAME);
        std::fs::rename(&ring, dir.join("aside")).unwrap();
        let history = History::load(&dir).unwrap();
        let mut found = Vec::new();
        history.read_payload(&history.entry(seq).unwrap().unwrap(), &mut found).unwrap();
        assert_eq!(found, vec![9; 5000]);
        std::fs::rename(dir.join("aside"), &ring).unwrap();
        journal.close().unwrap();
    }
}

#[test]
fn a_reservation_that_never_comes_stops_the_journal_after_a_bounded_wait() {
    let tmp = tempfile::tempdir().unwrap();
    let hasty = Options { unit_wait: Duration::from_millis(50), ..options() };
    let journal = new_journal(&tmp.path().join("j"), hasty);
    let late = journal.reserve(5000).unwrap();
    let error = (0..1000)
        .find_map(|i| journal.append(&draft(1, i, 8192), &[1; 8192]).err())
        .expect("the ring is full some time");
    assert!(error.to_string().contains("ring"), "{error}");
    drop(late);
}

#[test]
fn sealed_units_are_told_of_in_order() {
    let tmp = tempfile::tempdir().unwrap();
    let journal = new_journal(&tmp.path().join("j"), options());
    let (sender, told) = std::sync::mpsc::channel();
    journal.on_sealed(move |number| sender.send(number).unwrap());
    for i in 0..80 {
        journal.append(&draft(1, i, 65536), &[3; 65536]).unwrap();
    }
    journal.close().unwrap();
    let told: Vec<u64> = told.try_iter().collect();
    assert_eq!(told, (1..=told.len() as u64).collect::<Vec<_>>());
    assert!(told.len() > 4);
}
