//! What an append must not cost the thread that makes it: memory, system calls, waiting for the disk.

use crate::encryption::key_of;
use crate::fixture::{new_journal, options, quiet, session, write};
use afterimage_journal::log::Backend;
use afterimage_journal::meta::SessionEvent;
use afterimage_journal::storage::{Access, Lock, LockKind, RealStorage, Room, Storage, StoredFile};
use afterimage_journal::{Journal, Key, Options};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Not a time to be measured, but when a test has hung.
const HANG: Duration = Duration::from_secs(120);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

/// The most bytes that this thread asked for at once while it did something.
pub fn largest_allocation_of<T>(work: impl FnOnce() -> T) -> (usize, T) {
    LARGEST.set(0);
    let done = work();
    (LARGEST.get(), done)
}

/// The system's allocator, which counts for each thread how often it was asked.
struct Counting;

// SAFETY: all of it is the system allocator's; counting touches only a thread's own plain cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note(bytes);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// System calls of this thread that write something.
fn writes() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("syscw: ")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn an_append_allocates_nothing_and_writes_to_no_file_itself() {
    appends_cost_nothing(None);
}

#[test]
fn an_encrypted_append_allocates_nothing_and_writes_to_no_file_itself() {
    appends_cost_nothing(Some(key_of(3)));
}

fn appends_cost_nothing(key: Option<Key>) {
    let temporary = tempfile::tempdir().unwrap();
    // All of it fits into the ring and into a unit: no turn to a next one.
    let options = Options { unit_bytes: 32 << 20, ring_bytes: 16 << 20, key, ..quiet() };
    let journal = new_journal(&temporary.path().join("j"), options);
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let payload = [7; 4096];
    // Queues get their size.
    for i in 0..64 {
        write(&journal, i * 4096, &payload);
    }
    let (allocated, written) = (ALLOCATIONS.get(), writes());
    // Reading the second has allocated already.
    let reading = ALLOCATIONS.get() - allocated;
    for i in 0..1000 {
        write(&journal, i % 64 * 4096, &payload);
    }
    let after = ALLOCATIONS.get();
    assert_eq!(after - allocated - reading, 0, "allocations of 1000 appends");
    assert_eq!(writes() - written, 0, "system calls of 1000 appends that write");
    assert!(reading > 0, "allocations are counted");
}

/// Holds up everybody who comes while it is shut.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is shut, and how many wait.
    state: Mutex<(bool, usize)>,
    moved: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.moved.notify_all();
        while state.0 {
            state = self.moved.wait(state).unwrap();
        }
        state.1 -= 1;
    }

    fn shut(&self, is_shut: bool) {
        self.state.lock().unwrap().0 = is_shut;
        self.moved.notify_all();
    }

    fn wait_for_one(&self) {
        let state = self.state.lock().unwrap();
        let waited = self.moved.wait_timeout_while(state, HANG, |state| state.1 == 0).unwrap();
        assert!(!waited.1.timed_out(), "nothing was written");
    }
}

/// A disk whose units can be made to stand still, those that have their name: writes and syncs begin,
/// and do not end.
#[derive(Debug)]
struct Frozen(Arc<Gate>);

#[derive(Debug)]
struct FrozenFile(Arc<dyn StoredFile>, Arc<Gate>);

fn is_unit(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("unit-"))
}

impl Storage for Frozen {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        let file = RealStorage.open(path, access)?;
        let gate = Arc::clone(&self.0);
        Ok(if is_unit(path) { Arc::new(FrozenFile(file, gate)) } else { file })
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealStorage.list(dir)
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.make_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealStorage.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealStorage.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.sync_dir(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        RealStorage.exists(path)
    }
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock> {
        RealStorage.lock(path, kind)
    }
    fn room(&self, path: &Path) -> io::Result<Room> {
        RealStorage.room(path)
    }
    fn mount_id(&self, path: &Path) -> u64 {
        RealStorage.mount_id(path)
    }
}

impl StoredFile for FrozenFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buffer, at)
    }
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.1.pass();
        self.0.write_all_at(bytes, at)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync_data()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn allocated_bytes(&self) -> io::Result<u64> {
        self.0.allocated_bytes()
    }
    fn allocate(&self, from: u64, bytes: u64) -> io::Result<()> {
        self.0.allocate(from, bytes)
    }
    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.0.set_bytes(bytes)
    }
    fn punch(&self, from: u64, bytes: u64) {
        self.0.punch(from, bytes);
    }
    fn as_file(&self) -> Option<&File> {
        None
    }
}

#[test]
fn appends_go_on_while_the_disk_stands_still() {
    let temporary = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let options = Options {
        unit_bytes: 32 << 20,
        ring_bytes: 16 << 20,
        storage: Arc::new(Frozen(Arc::clone(&gate))),
        backend: Backend::Plain,
        ..options()
    };
    let journal: Journal = new_journal(&temporary.path().join("j"), options);
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    gate.shut(true);
    let before = write(&journal, 0, &[1; 4096]);
    let waits = journal.clone();
    let synced = std::thread::spawn(move || waits.sync());
    gate.wait_for_one();
    let (tell, hear) = channel();
    let appends = journal.clone();
    std::thread::spawn(move || {
        // Half of what the ring holds.
        for i in 0..2000 {
            write(&appends, i % 64 * 4096, &[2; 4096]);
        }
        tell.send(appends.head()).unwrap();
    });
    let head = hear.recv_timeout(HANG);
    let durable = journal.durable();
    gate.shut(false);
    assert!(head.expect("appends waited for the disk") >= before + 2000);
    assert!(durable < before, "{durable}: nothing was written");
    assert!(synced.join().unwrap().unwrap() >= before);
    journal.close().unwrap();
}
