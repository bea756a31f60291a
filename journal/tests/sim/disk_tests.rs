//! What the simulated disk keeps and loses: a disk that loses nothing would prove nothing.

use crate::disk::Keep;
use crate::storage::SimStorage;
use crate::world::Fault;
use afterimage_journal::storage::{Access, LockKind, Storage};
use std::io::ErrorKind;
use std::path::Path;

const DIR: &str = "/d";
const FILE: &str = "/d/f";

fn storage() -> SimStorage {
    let storage = SimStorage::new(1);
    storage.make_dir(Path::new(DIR)).unwrap();
    storage.sync_dir(Path::new("/")).unwrap();
    storage
}

fn write(storage: &SimStorage, path: &str, bytes: &[u8], sync: bool) {
    let file = storage.open(Path::new(path), Access::Replace).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    if sync {
        file.sync_data().unwrap();
    }
}

fn read(storage: &SimStorage, path: &str) -> Option<Vec<u8>> {
    let file = storage.open(Path::new(path), Access::Read).ok()?;
    let mut bytes = vec![0; file.bytes().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn a_kill_keeps_what_a_power_cut_loses() {
    for (sync_file, sync_dir) in [(false, false), (true, false), (false, true), (true, true)] {
        let storage = storage();
        write(&storage, FILE, &[7; 1000], sync_file);
        if sync_dir {
            storage.sync_dir(Path::new(DIR)).unwrap();
        }
        let killed = storage.kill();
        assert_eq!(read(&killed, FILE).unwrap(), [7; 1000]);
        let cut = killed.power(Keep::Nothing);
        let expected = match (sync_file, sync_dir) {
            (_, false) => None,
            (false, true) => Some(vec![]),
            (true, true) => Some(vec![7; 1000]),
        };
        assert_eq!(read(&cut, FILE), expected, "{sync_file} {sync_dir}");
    }
}

#[test]
fn unsynced_writes_tear_at_sectors_and_in_any_order() {
    let mut seen = [[0; 2]; 4];
    for seed in 0..64 {
        let storage = SimStorage::new(seed);
        storage.make_dir(Path::new(DIR)).unwrap();
        storage.sync_dir(Path::new("/")).unwrap();
        write(&storage, FILE, &[1; 2048], true);
        storage.sync_dir(Path::new(DIR)).unwrap();
        let file = storage.open(Path::new(FILE), Access::Write).unwrap();
        file.write_all_at(&[2; 2000], 40).unwrap();
        let cut = storage.power(Keep::Percent(50));
        let bytes = read(&cut, FILE).unwrap();
        for (i, sector) in bytes.chunks(512).enumerate() {
            let (from, to) = (if i == 0 { 40 } else { 0 }, if i == 3 { 504 } else { 512 });
            let new = sector[from] == 2;
            seen[i][usize::from(new)] += 1;
            assert!(sector[from..to].iter().all(|b| *b == sector[from]), "torn within a sector");
            assert!(sector[..from].iter().chain(&sector[to..]).all(|b| *b == 1));
        }
    }
    assert!(seen.iter().flatten().all(|count| *count > 8), "{seen:?}");
}

#[test]
fn a_rename_is_whole_or_not_at_all_and_kept_by_its_directory() {
    for keep in [Keep::All, Keep::Nothing] {
        let storage = storage();
        write(&storage, FILE, b"old", true);
        storage.sync_dir(Path::new(DIR)).unwrap();
        write(&storage, "/d/draft", b"new", true);
        storage.rename(Path::new("/d/draft"), Path::new(FILE)).unwrap();
        let cut = storage.power(keep);
        let expected: &[u8] = if keep == Keep::All { b"new" } else { b"old" };
        assert_eq!(read(&cut, FILE).unwrap(), expected);
        assert_eq!(read(&cut, "/d/draft"), None);
    }
}

#[test]
fn what_a_failed_sync_lost_no_later_sync_brings_back() {
    let mut lost = 0;
    for seed in 0..32 {
        let storage = SimStorage::new(seed);
        storage.make_dir(Path::new(DIR)).unwrap();
        storage.sync_dir(Path::new("/")).unwrap();
        let file = storage.open(Path::new(FILE), Access::Replace).unwrap();
        storage.sync_dir(Path::new(DIR)).unwrap();
        file.write_all_at(&[3; 4096], 0).unwrap();
        storage.arm(1, Fault::FailSync);
        file.sync_data().unwrap_err();
        assert_eq!(storage.struck(), Some(Fault::FailSync));
        file.sync_data().unwrap();
        assert_eq!(read(&storage, FILE).unwrap(), [3; 4096], "the page cache shows it");
        let cut = storage.power(Keep::All);
        lost += usize::from(read(&cut, FILE).unwrap() != [3; 4096]);
    }
    assert!(lost > 8, "{lost}");
}

#[test]
fn the_dead_do_nothing_and_hold_no_locks() {
    let storage = storage();
    let path = Path::new("/d/lock");
    let held = storage.lock(path, LockKind::Exclusive).unwrap();
    let shared = storage.lock(path, LockKind::Shared).unwrap_err();
    assert_eq!(shared.kind(), ErrorKind::WouldBlock);
    let file = storage.open(Path::new(FILE), Access::Replace).unwrap();
    storage.arm(1, Fault::Kill);
    file.write_all_at(b"x", 0).unwrap_err();
    let next = storage.now();
    let retaken = next.lock(path, LockKind::Exclusive).unwrap();
    drop(held);
    next.lock(path, LockKind::Shared).unwrap_err();
    drop(retaken);
    next.lock(path, LockKind::Shared).unwrap();
    file.write_all_at(b"x", 0).unwrap_err();
    assert_eq!(read(&next, FILE).unwrap(), b"");
}

#[test]
fn a_full_device_says_so_and_a_ring_outlives_the_process_only() {
    let storage = storage();
    storage.limit(Path::new(DIR), Some(8192));
    let file = storage.open(Path::new(FILE), Access::Replace).unwrap();
    file.allocate(0, 8192).unwrap();
    let full = file.allocate(8192, 1).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    storage.remove(Path::new(FILE)).unwrap();
    assert_eq!(storage.room(Path::new(FILE)).unwrap().free_bytes, 8192);
    let ring = storage.open(Path::new("/d/ring"), Access::Replace).unwrap();
    ring.set_bytes(4096).unwrap();
    ring.write_all_at(b"kept", 0).unwrap();
    assert!(ring.as_file().is_some());
    storage.sync_dir(Path::new(DIR)).unwrap();
    let killed = storage.kill();
    assert!(read(&killed, "/d/ring").unwrap().starts_with(b"kept"));
    let mounted = killed.mount_id(Path::new(DIR));
    let cut = killed.power(Keep::Percent(50));
    assert!(read(&cut, "/d/ring").is_none_or(|bytes| !bytes.starts_with(b"kept")));
    assert_ne!(cut.mount_id(Path::new(DIR)), mounted, "by that a ring of before is known");
}

#[test]
fn a_member_that_went_away_comes_back_as_it_was_once() {
    let storage = storage();
    write(&storage, FILE, b"then", true);
    let copy = storage.disk().copy_of(Path::new(DIR));
    write(&storage, FILE, b"now", true);
    storage.set_gone(Path::new(DIR), true);
    assert!(!storage.exists(Path::new(FILE)) && storage.list(Path::new(DIR)).is_err());
    storage.set_gone(Path::new(DIR), false);
    assert_eq!(read(&storage, FILE).unwrap(), b"now");
    storage.edit(|disk| disk.put_back(Path::new(DIR), &copy));
    assert_eq!(read(&storage, FILE).unwrap(), b"then");
}
