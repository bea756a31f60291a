//! What is restored from a bucket is what is restored from the journal it came from.

use crate::fixture::{
    Rng, UNIT_BYTES, assert_same, closed_journal, hello, history_of, new_journal_of,
    new_journal_with, patient, quiet, send, sink, steps, url, write_some,
};
use crate::store::{Bag, Memory};
use afterimage_journal::clock::Clock;
use afterimage_journal::format::record::Kind;
use afterimage_journal::history::When;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::log::Draft;
use afterimage_journal::merge::Unpaced;
use afterimage_journal::storage::{Access, RealStorage, Storage};
use afterimage_journal::window::Limits;
use afterimage_journal::wire::{Op, Sink};
use afterimage_journal::{History, Key, Options, layout};
use afterimage_restore::{Format, Recovery, RestoreOptions};
use afterimage_s3::storage::S3Storage;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MINUTE: u64 = 60_000_000_000;

struct Watch(AtomicU64);

impl Clock for Watch {
    fn wall_ns(&self) -> u64 {
        1_700_000_000_000_000_000 + self.mono_ns()
    }
    fn mono_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn boot_id(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// A closed journal of which the older half was merged.
pub fn merged_journal(dir: &Path) -> PathBuf {
    let home = layout::journal_dir(dir, "g").unwrap();
    std::fs::create_dir_all(&home).unwrap();
    let watch = Arc::new(Watch(AtomicU64::new(MINUTE)));
    let clock: Arc<dyn Clock> = watch.clone();
    let journal = new_journal_with(&home, Options { clock: Arc::clone(&clock), ..quiet() });
    let mut rng = Rng(11);
    for _ in 0..8 {
        write_some(&journal, 300, &mut rng);
        journal.sync().unwrap();
        watch.0.fetch_add(MINUTE, Ordering::Relaxed);
    }
    journal.close().unwrap();
    let storage = RealStorage::shared();
    let mut keeper = Keeper::open(Setup {
        ground: Arc::new(Home { storage: Arc::clone(&storage) }),
        storage,
        dir: home.clone(),
        clock,
        pace: Arc::new(Unpaced),
        key: None,
        limits: Limits { guaranteed_ns: 0, ..Limits::new(3 * MINUTE, None) },
    })
    .unwrap();
    while keeper.step().unwrap() {}
    home
}

/// A bag with all of a journal.
fn sent(home: &Path) -> Arc<Mutex<Bag>> {
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut sink = sink(Memory::on(&bag));
    sink.open(&hello(home, 9)).unwrap();
    send(&mut sink, &steps(home, 100_000)).unwrap();
    bag
}

fn open(bag: &Arc<Mutex<Bag>>, name: &str) -> Recovery {
    let storage = S3Storage::over(&url(), patient(Memory::on(bag)), 8 << 20);
    let state = storage.state_dir().to_owned();
    let storage: Arc<dyn Storage> = Arc::new(storage);
    afterimage_restore::open_in(&storage, &state, name).unwrap()
}

fn restored(recovery: &Recovery, when: &When) -> Vec<u8> {
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("out");
    let options = RestoreOptions { to: to.clone(), disks: vec![], format: Format::Raw };
    let point = recovery.resolve(when).unwrap();
    afterimage_restore::restore(recovery, point, &options, &mut |_| {}).unwrap();
    let mut files = std::fs::read_dir(&to).unwrap().map(|e| e.unwrap().path());
    std::fs::read(files.find(|p| p.extension().is_some_and(|e| e == "raw")).unwrap()).unwrap()
}

#[test]
fn a_restore_from_the_bucket_is_the_one_from_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let home = merged_journal(dir.path());
    let bag = sent(&home);
    let ours = afterimage_restore::open(dir.path(), "vm").unwrap();
    let theirs = open(&bag, "vm");
    assert_eq!(theirs.guest.as_deref(), Some("vm"));
    assert!(ours.history.units.iter().any(|u| u.merged.is_some()));
    let ranges = ours.history.level.clone();
    assert_eq!(format!("{ranges:?}"), format!("{:?}", theirs.history.level));
    let middle = (ranges[0].from + ranges[0].to) / 2;
    for when in [When::Latest, When::Seq(ranges[0].from), When::Seq(middle)] {
        assert!(restored(&ours, &when) == restored(&theirs, &when), "{when:?}");
    }
    let report = afterimage_restore::verify(&theirs, &mut |_| {}).unwrap();
    assert!(report.is_sound(), "{report:?}");
}

fn key_in(dir: &Path) -> Key {
    let path = dir.join("key");
    std::fs::write(&path, "05".repeat(32)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, mode).unwrap();
    afterimage_journal::key::read(&path).unwrap()
}

#[test]
fn an_encrypted_journal_is_sent_without_its_key_and_read_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let home = layout::journal_dir(dir.path(), "g").unwrap();
    std::fs::create_dir_all(&home).unwrap();
    let key = key_in(dir.path());
    let journal = new_journal_with(&home, Options { key: Some(key.clone()), ..quiet() });
    write_some(&journal, 200, &mut Rng(3));
    journal.close().unwrap();
    let bag = sent(&home);
    let unlocked = |mut recovery: Recovery| {
        assert!(recovery.history.check_key().is_err(), "without its key");
        recovery.history.unlock(Some(&key)).unwrap();
        restored(&recovery, &When::Latest)
    };
    let ours = unlocked(afterimage_restore::open(dir.path(), "g").unwrap());
    assert!(ours == unlocked(open(&bag, "g")));
}

#[test]
fn reading_in_order_takes_a_request_an_object_and_a_small_read_takes_little() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 600);
    let bag = sent(&home);
    let unit = "s3://vault/site/pool/g/unit-0000000001";
    let store = patient(Memory::on(&bag));
    let storage = S3Storage::over(&url(), store.clone(), 64 << 20);
    let file = storage.open(Path::new(unit), Access::Read).unwrap();
    let before = store.stats().now();
    let mut all = vec![0; UNIT_BYTES as usize];
    for (i, part) in all.chunks_mut(40_000).enumerate() {
        file.read_exact_at(part, i as u64 * 40_000).unwrap();
    }
    let objects = bag.lock().unwrap().objects.keys().filter(|k| k.contains("unit-")).count();
    let gets = store.stats().now().gets - before.gets;
    assert!(gets as usize <= objects + 8, "{gets} requests for {objects} objects");
    let source = std::fs::read(home.join("unit-0000000001")).unwrap();
    assert!(all == source, "the file is the source's, index and footer too");
    assert_eq!(file.bytes().unwrap(), UNIT_BYTES);
    assert!(file.allocated_bytes().unwrap() < UNIT_BYTES, "compressed");
}

/// A closed journal whose volume of 96 MiB was written once, and then a part of it here and there; with the
/// bytes that were written.
fn large_journal(dir: &Path) -> (PathBuf, u64) {
    const BYTES: u64 = 96 << 20;
    let home = layout::journal_dir(dir, "g").unwrap();
    std::fs::create_dir_all(&home).unwrap();
    let options = Options { unit_bytes: 16 << 20, ring_bytes: 16 << 20, ..quiet() };
    let journal = new_journal_of(&home, options, BYTES);
    let mut rng = Rng(5);
    let mut written = 0;
    let mut write = |addr: u64, len: u64| {
        written += len;
        let data: Vec<u8> = (0..len / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
        let draft = Draft { volume: 1, addr, len: len as u32, ..Draft::of(Kind::Write) };
        journal.append(&draft, &data).unwrap();
    };
    (0..BYTES).step_by(128 << 10).for_each(|addr| write(addr, 128 << 10));
    let mut places = Rng(6);
    for _ in 0..768 {
        let len = 4096 << (places.next() % 6);
        write(places.next() % ((BYTES - len) / 512) * 512, len);
    }
    journal.close().unwrap();
    (home, written)
}

#[test]
fn a_restore_fetches_each_object_once_through_a_cache_that_holds_few_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (home, written) = large_journal(dir.path());
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut filled = sink(Memory::on(&bag));
    filled.open(&hello(&home, 9)).unwrap();
    let steps = steps(&home, 1 << 20);
    let last = steps.last().unwrap().1;
    steps.into_iter().for_each(|(op, _)| filled.apply(op).unwrap());
    filled.apply(Op::Sync { token: 1, watermark: last, wall_ns: last }).unwrap();
    while filled.ack(Duration::from_millis(10)).unwrap().is_none() {}
    let store = patient(Memory::on(&bag));
    let storage = S3Storage::over(&url(), store.clone(), 80 << 20);
    let state = storage.state_dir().to_owned();
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let theirs = afterimage_restore::open_in(&storage, &state, "vm").unwrap();
    let ours = afterimage_restore::open(dir.path(), "vm").unwrap();
    assert!(restored(&ours, &When::Latest) == restored(&theirs, &When::Latest));
    let received = store.stats().now().received_bytes;
    assert!(received < written + written / 5, "{received} bytes came of {written}");
}

#[test]
fn a_rotten_object_is_named_and_never_restored() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 300);
    let ours = History::load(&home).unwrap();
    let bag = sent(&home);
    let named = history_of(&bag).unwrap();
    assert_same(&ours, &named, u64::MAX);
    let key = {
        let mut bag = bag.lock().unwrap();
        let found = bag.objects.iter_mut().rfind(|(k, _)| k.contains("/unit-0000000002/"));
        let (key, bytes) = found.unwrap();
        bytes[2000] ^= 4;
        key.clone()
    };
    let storage = S3Storage::over(&url(), patient(Memory::on(&bag)), 8 << 20);
    let unit = storage.state_dir().join("pool/g/unit-0000000002");
    let file = storage.open(&unit, Access::Read).unwrap();
    let told = file.read_exact_at(&mut vec![0; UNIT_BYTES as usize], 0).unwrap_err().to_string();
    assert!(told.contains(&key) && told.contains("checksum"), "{told}");
}

#[test]
fn nothing_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 10);
    let storage = S3Storage::over(&url(), patient(Memory::on(&sent(&home))), 8 << 20);
    let unit = storage.state_dir().join("pool/g/unit-0000000001");
    assert!(storage.open(&unit, Access::Write).is_err());
    assert!(storage.remove(&unit).is_err() && storage.exists(&unit));
    let outside = storage.open(Path::new("/etc/passwd"), Access::Read).unwrap_err();
    assert_eq!(outside.kind(), std::io::ErrorKind::NotFound);
}
