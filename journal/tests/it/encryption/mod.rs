//! Encrypted journals: what is written comes back with the key, stays hidden without it, and is refused by
//! name when somebody changed it.

mod tampering;

use crate::fixture::{bytes_of, draft, entries, new_journal, options, quiet, write};
use crate::rounds::{Bench, MINUTE, finish};
use afterimage_journal::format::cipher::KEY_BYTES;
use afterimage_journal::keeper::{Keeper, Setup};
use afterimage_journal::{Error, ErrorKind, History, Journal, Key, Options, View, key};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What no file may hold.
const SECRET: &[u8; 32] = b"the guest's own secret, in full ";
const DIR: &str = "JOURNAL_ENCRYPTED_DIR";

/// A key of these bytes.
pub fn key_of(byte: u8) -> Key {
    Key::new([byte; KEY_BYTES].into())
}

fn encrypted() -> Options {
    Options { key: Some(key_of(1)), ..quiet() }
}

fn secret(len: usize) -> Vec<u8> {
    SECRET.iter().copied().cycle().take(len).collect()
}

fn opened(dir: &Path) -> History {
    let mut history = History::load(dir).unwrap();
    history.unlock(Some(&key_of(1))).unwrap();
    history
}

/// Files below a directory in which the secret can be read.
fn telling(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let path = entry.path();
        let mode = entry.metadata().map_or(0, |m| m.permissions().mode());
        assert_eq!(mode & 0o077, 0, "{} is for nobody else", path.display());
        if path.is_dir() {
            found.extend(telling(&path));
            continue;
        }
        // A draft may be gone meanwhile.
        let bytes = std::fs::read(&path).unwrap_or_default();
        // Any eight bytes of it, at any offset: parts are merged, and pages cut.
        let parts: BTreeSet<&[u8]> = SECRET.windows(8).collect();
        if bytes.windows(8).any(|w| w[0] != 0 && parts.contains(w)) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn rounds_of_writes_copies_and_merging_read_back_with_the_key() {
    for members in [1, 3] {
        rounds_with_the_key(members);
    }
}

fn rounds_with_the_key(members: usize) {
    let mut bench = Bench::made(77, Some(key_of(1)), members);
    for round in 0..6 {
        bench.member_away();
        bench.round(3);
        drop(bench.keep(MINUTE * 3));
        assert!(bench.check() > 0, "round {round}");
    }
    let history = opened(&bench.dir);
    assert!(history.units.iter().any(|u| u.merged.is_some()), "something was merged");
    let writes = entries(&history).into_iter().filter(|e| e.record.payload_bytes > 100);
    assert!(writes.filter(|e| e.record.encrypted).count() > 100);
}

#[test]
fn nothing_of_what_guests_write_is_in_any_file_in_the_clear() {
    let mut bench = Bench::with_key(5, key_of(1));
    for round in 0..5 {
        let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
        for i in 0..300 {
            write(&journal, i * 3584, &secret(4096 + 512 * (i as usize % 8)));
        }
        // Not random, so it is compressed; and what is given up was filled in.
        journal.append_memory(1, 0, &secret(200 << 10)).unwrap();
        let mut given_up = journal.reserve(4096).unwrap();
        given_up.payload_mut().copy_from_slice(&secret(4096));
        drop(given_up);
        assert_eq!(telling(&bench.dir), Vec::<String>::new(), "with the ring as it is");
        journal.sync().unwrap();
        journal.close().unwrap();
        bench.pass(MINUTE * 2);
        if round > 0 {
            bench.round(1);
            drop(bench.keep(MINUTE));
        }
        assert_eq!(telling(&bench.dir), Vec::<String>::new(), "round {round}");
    }
    let history = opened(&bench.dir);
    assert!(history.units.iter().any(|u| u.merged.is_some()), "something was merged");
    // The search finds what is there: the same without a key.
    let plain = tempfile::tempdir().unwrap();
    write(&new_journal(plain.path(), quiet()), 0, &secret(4096));
    assert!(!telling(plain.path()).is_empty());
}

#[test]
fn equal_data_is_never_stored_twice_the_same() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("g");
    let journal = new_journal(&dir, encrypted());
    for _ in 0..3 {
        for _ in 0..400 {
            write(&journal, 0, &secret(8192));
        }
        assert!(journal.turn() || journal.head() > 0);
    }
    journal.close().unwrap();
    let history = opened(&dir);
    let (mut stored, mut salts) = (BTreeSet::new(), BTreeSet::new());
    assert!(history.units.len() >= 6, "{} units", history.units.len());
    assert!(history.units.iter().all(|u| salts.insert(u.header.salt)), "a unit's salt is its own");
    for entry in entries(&history).iter().filter(|e| e.record.encrypted) {
        let file = std::fs::read(&history.units[entry.unit as usize].path).unwrap();
        let from = entry.at as usize + 64;
        assert!(stored.insert(file[from..from + 32].to_vec()), "a nonce came twice with a key");
    }
    assert_eq!(stored.len(), 1200);
}

#[test]
fn without_its_key_a_journal_lists_everything_and_reads_nothing() {
    let mut bench = Bench::with_key(9, key_of(1));
    bench.round(2);
    let journal = || Journal::open(&bench.dir, Options { key: None, ..bench.options() });
    let refused = journal().err().unwrap();
    assert!(matches!(refused, Error::KeyMissing { .. }), "{refused}");
    let mut history = History::load(&bench.dir).unwrap();
    let (seq, _) = bench.points.last().unwrap();
    assert!(history.is_restorable(*seq) && !history.checkpoints.is_empty(), "points are listed");
    let mut read = vec![0; 1 << 20];
    let refused = View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap_err();
    assert!(matches!(refused, Error::KeyMissing { .. }), "{refused}");
    assert!(refused.to_string().contains("--key-file") && refused.kind() == ErrorKind::FixInput);
    let wrong = Some(key_of(2));
    let refused = history.unlock(wrong.as_ref()).unwrap_err();
    assert!(matches!(refused, Error::KeyUnfit { .. }), "{refused}");
    let refused = Journal::open(&bench.dir, Options { key: wrong, ..bench.options() });
    let refused = refused.err().unwrap();
    assert!(matches!(refused, Error::KeyUnfit { .. }), "{refused}");
    history.unlock(Some(&key_of(1))).unwrap();
    View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
    // Nothing of the key is in the journal.
    let identity = std::fs::read_to_string(bench.dir.join("journal.json")).unwrap();
    let check = key::describe(&key_of(1)).check;
    assert!(identity.contains(&check) && check.len() == 32, "{identity}");
}

#[test]
fn a_journal_in_the_clear_takes_no_key_and_reads_as_ever() {
    let mut bench = Bench::new(3);
    bench.round(1);
    let with_key = Options { key: Some(key_of(1)), ..bench.options() };
    let refused = Journal::open(&bench.dir, with_key).err().unwrap().to_string();
    assert!(refused.contains("not encrypted") && refused.contains("--purge"), "{refused}");
    let identity = std::fs::read_to_string(bench.dir.join("journal.json")).unwrap();
    assert!(!identity.contains("encryption"), "{identity}");
    assert!(bench.check() > 0);
}

#[test]
fn without_the_key_a_keeper_does_all_but_merging() {
    let mut bench = Bench::with_key(21, key_of(1));
    for _ in 0..5 {
        bench.round(3);
    }
    let mut keeper = Keeper::open(Setup { key: None, ..bench.setup(MINUTE) }).unwrap();
    finish(&mut keeper);
    let held = keeper.occupancy();
    assert!(held.merging_waits.is_some() && held.merged_bytes == 0 && held.edge > 0, "{held:?}");
    keeper.scrub(u64::MAX >> 1);
    assert!(keeper.occupancy().damage.is_empty(), "{:?}", keeper.occupancy().damage);
    assert_eq!(keeper.occupancy().scrub.passes, 1, "the checksums were read");
    drop(keeper);
    let keeper = bench.keep(MINUTE);
    assert!(keeper.occupancy().merged_bytes > 0 && keeper.occupancy().merging_waits.is_none());
    drop(keeper);
    assert!(bench.check() > 0);
}

/// Runs in the child only: leaves everything in the ring, and waits for its end.
#[test]
fn child_that_leaves_encrypted_records_in_the_ring() {
    let Some(dir) = std::env::var_os(DIR).map(std::path::PathBuf::from) else { return };
    let (journal, _) = Journal::open(&dir.join("j"), encrypted()).unwrap();
    let first = write(&journal, 0, &secret(5000 / 512 * 512));
    for i in 1..20u64 {
        let data = bytes_of(i, 4096);
        journal.append(&draft(1, i * 8192, data.len()), &data).unwrap();
    }
    std::fs::write(dir.join("done.tmp"), first.to_string()).unwrap();
    std::fs::rename(dir.join("done.tmp"), dir.join("done")).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn what_was_in_the_ring_only_at_a_kill_is_hidden_there_read_and_recovered() {
    let temporary = tempfile::tempdir().unwrap();
    let (at, dir) = (temporary.path(), temporary.path().join("j"));
    drop(new_journal(&dir, encrypted()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "encryption::child_that_leaves_encrypted_records_in_the_ring"])
        .env(DIR, at)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !at.join("done").exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let first: u64 = std::fs::read_to_string(at.join("done")).unwrap().parse().unwrap();
    assert_eq!(telling(&dir), Vec::<String>::new());
    let all_there = |history: &History| {
        let view = View::at(history, 1, first + 19).unwrap();
        let mut read = vec![0; 4096];
        view.read(0, &mut read).unwrap();
        assert_eq!(read, secret(4096));
        for i in 1..20u64 {
            view.read(i * 8192, &mut read).unwrap();
            assert_eq!(read, bytes_of(i, 4096), "write {i}");
        }
    };
    all_there(&opened(&dir));
    let (journal, history) = Journal::open(&dir, encrypted()).unwrap();
    all_there(&history);
    all_there(&journal.history().unwrap());
    journal.close().unwrap();
    all_there(&opened(&dir));
    assert_eq!(telling(&dir), Vec::<String>::new());
}

#[test]
fn space_for_a_write_is_filled_with_one_and_has_the_size_that_was_asked_for() {
    let temporary = tempfile::tempdir().unwrap();
    let journal =
        new_journal(&temporary.path().join("g"), Options { key: Some(key_of(1)), ..options() });
    let most = journal.payload_bytes_max();
    assert!(most.is_multiple_of(512));
    let mut space = journal.reserve(most as u32).unwrap();
    assert_eq!(space.payload_mut().len() as u64, most);
    space.commit(&draft(1, 0, most as usize)).unwrap();
    let space = journal.reserve(4096).unwrap();
    let zero = afterimage_journal::log::Draft {
        kind: afterimage_journal::format::record::Kind::Zero,
        ..draft(1, 0, 4096)
    };
    assert!(space.commit(&zero).is_err());
    journal.sync().unwrap();
}
