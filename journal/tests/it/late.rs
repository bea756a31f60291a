//! Records that are committed late: behind a sync that wrote their place, in a unit that is full.

use crate::fixture::{bytes_of, draft, entries, new_journal, with_boot};
use crate::hooked::{Call, Hooked};
use afterimage_journal::{History, Journal, Options, layout};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A storage that knows which units were written to since their last sync.
fn watched() -> (Options, Arc<Mutex<BTreeSet<PathBuf>>>) {
    let unsynced = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&unsynced);
    let storage = Hooked::shared(move |call, path| {
        match call {
            Call::Write => drop(locked(&seen).insert(path.to_owned())),
            Call::Sync => drop(locked(&seen).remove(path)),
            _ => {}
        }
        Ok(())
    });
    let backend = afterimage_journal::log::Backend::Plain;
    (Options { storage, backend, ..with_boot(1) }, unsynced)
}

#[test]
fn sync_covers_a_late_record_of_a_full_unit() {
    for late_count in 1..=3 {
        let dir = tempfile::tempdir().unwrap();
        let (options, unsynced) = watched();
        let journal = new_journal(dir.path(), options);
        let mut late: Vec<_> = (0..late_count).map(|_| journal.reserve(512).unwrap()).collect();
        // The unit is full, and the log goes on in the next one.
        let payload = bytes_of(7, 60_000);
        for _ in 0..20 {
            journal.append(&draft(1, 0, payload.len()), &payload).unwrap();
        }
        journal.sync().unwrap();
        let full = layout::unit_path(dir.path(), 1);
        while let Some(mut space) = late.pop() {
            space.payload_mut().fill(9);
            let seq = space.commit(&draft(1, 4096, 512)).unwrap();
            assert!(journal.sync().unwrap() >= seq);
            let left = locked(&unsynced).clone();
            assert!(!left.contains(&full), "durable up to {seq}, but unsynced: {left:?}");
        }
    }
}

/// Fails the sealer's first sync when the test says so.
struct Gate {
    begun: Receiver<()>,
    go: Sender<()>,
}

fn gated() -> (Options, Gate) {
    let (told, begun) = channel();
    let (go, wait) = channel();
    let (told, wait) = (Mutex::new(told), Mutex::new(wait));
    let storage = Hooked::shared(move |call, path| {
        let is_unit =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"unit-"));
        let is_sealer = std::thread::current().name() == Some("journal-sealer");
        if call != Call::Sync || !is_unit || !is_sealer {
            return Ok(());
        }
        let _ = locked(&told).send(());
        // Once the other end is gone it is held no more, and fails all the same.
        let _ = locked(&wait).recv();
        Err(rustix::io::Errno::IO.into())
    });
    let backend = afterimage_journal::log::Backend::Plain;
    (Options { storage, backend, ..with_boot(1) }, Gate { begun, go })
}

#[test]
fn close_fails_if_a_seal_failed_and_hides_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let (options, gate) = gated();
    let journal = new_journal(dir.path(), options);
    let payload = bytes_of(3, 60_000);
    while gate.begun.try_recv().is_err() {
        journal.append(&draft(1, 0, payload.len()), &payload).unwrap();
    }
    let durable = journal.sync().unwrap();
    let closing = journal.clone();
    let closed = std::thread::spawn(move || closing.close());
    while journal.stopped().is_none() {
        std::thread::yield_now();
    }
    gate.go.send(()).unwrap();
    drop(gate);
    let closed = closed.join().unwrap();
    assert!(closed.is_err(), "a unit could not be sealed");
    drop(journal);
    let bound = layout::read_distrust(dir.path()).unwrap().unwrap();
    assert!(bound >= durable, "{bound} is trusted, {durable} was durable");

    let history = History::load(dir.path()).unwrap();
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    assert_eq!(history.head, bound);
    assert!(entries(&history).len() as u64 >= bound, "records are hidden");
    drop(history);
    let (journal, history) = Journal::open(dir.path(), with_boot(1)).unwrap();
    assert_eq!(history.head, bound);
    journal.close().unwrap();
    assert!(History::load(dir.path()).unwrap().damage.is_empty());
}
