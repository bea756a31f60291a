//! A journal of format 1 as a program wrote it once, kept as text: every later program must read the
//! same from it.
//!
//! The text holds each file in runs of bytes that are not zero, and what must be read: the head, the
//! checkpoints, the restorable ranges, and a hash of each volume at each position.

use crate::run::{DIR, Run, key, unlocked};
use crate::storage::SimStorage;
use afterimage_journal::storage::{Access, Storage};
use afterimage_journal::{History, Journal, Options, View};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes in a line of a file.
const LINE_BYTES: usize = 64;
/// What a journal consists of; everything else is made out from it, or is a lock.
const KEPT: [&str; 3] = ["journal.json", "unit-", "merged-"];

/// In the clear, and encrypted.
const FIXTURES: [&str; 2] = ["format-1.txt", "format-1-encrypted.txt"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
    (0..hex.len() / 2).map(digits).collect()
}

/// The files of the journal, as text.
fn files(storage: &SimStorage) -> String {
    let mut names = storage.list(Path::new(DIR)).unwrap();
    names.retain(|name| KEPT.iter().any(|kept| name.starts_with(kept)));
    names.sort();
    let mut text = String::new();
    for name in names {
        let file = storage.open(&Path::new(DIR).join(&name), Access::Read).unwrap();
        let mut all = vec![0; file.bytes().unwrap() as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        writeln!(text, "file {name} {}", all.len()).unwrap();
        for (i, line) in all.chunks(LINE_BYTES).enumerate() {
            if line.iter().any(|byte| *byte != 0) {
                writeln!(text, "{} {}", i * LINE_BYTES, hex(line)).unwrap();
            }
        }
    }
    text
}

/// What is read from the journal, as text.
fn read(storage: &SimStorage) -> String {
    let storage: Arc<dyn Storage> = storage.shared();
    let history = unlocked(History::load_in(&storage, Path::new(DIR)).unwrap());
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    let mut text = String::new();
    writeln!(text, "read epoch {} head {} closed {}", history.epoch, history.head, history.closed)
        .unwrap();
    for range in &history.level {
        writeln!(text, "read level {} {}", range.from, range.to).unwrap();
    }
    for at in &history.checkpoints {
        let tag = at.checkpoint.tag.as_deref().unwrap_or("-");
        writeln!(text, "read checkpoint {} {} {} {tag}", at.checkpoint.id, at.seq, at.wall_ns)
            .unwrap();
    }
    for seq in (1..=history.head).filter(|seq| history.is_restorable(*seq)) {
        for volume in history.volumes_at(seq) {
            let mut contents = vec![0; volume.bytes as usize];
            View::at(&history, volume.id, seq).unwrap().read(0, &mut contents).unwrap();
            let hash = &blake3::hash(&contents).to_hex()[..32];
            writeln!(text, "read {seq} {} {} {hash}", volume.id, contents.len()).unwrap();
        }
    }
    text
}

fn put_back(text: &str) -> SimStorage {
    let storage = crate::run::empty_disk(1);
    storage.make_dir(Path::new(DIR)).unwrap();
    let mut file = None;
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.starts_with("read ")) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["file", name, size] => {
                let new = storage.open(&Path::new(DIR).join(name), Access::Replace).unwrap();
                new.set_bytes(size.parse().unwrap()).unwrap();
                file = Some(new);
            }
            [at, data] => {
                file.as_ref().unwrap().write_all_at(&bytes(data), at.parse().unwrap()).unwrap();
            }
            _ => panic!("what is {line:?}?"),
        }
    }
    storage
}

#[test]
fn a_journal_of_format_1_reads_as_it_was_written() {
    for name in FIXTURES {
        reads_as_it_was_written(name);
    }
}

fn reads_as_it_was_written(name: &str) {
    let text = std::fs::read_to_string(path(name)).unwrap();
    let expected: String =
        text.lines().filter(|l| l.starts_with("read ")).map(|l| format!("{l}\n")).collect();
    assert!(expected.lines().count() > 50, "it holds too little");
    let storage = put_back(&text);
    assert_eq!(read(&storage), expected);
    // Taken on by a writer of today, all of it stays as it was.
    let clock = Arc::new(crate::clock::SimClock::new());
    let key = (name != FIXTURES[0]).then(key);
    let options = Options { key, ..crate::run::options(&storage, &clock) };
    Journal::open(Path::new(DIR), options).unwrap().0.close().unwrap();
    let now = read(&storage);
    for line in expected.lines().filter(|l| !l.starts_with("read epoch")) {
        assert!(now.contains(line), "{line} is gone");
    }
}

/// Makes the fixture anew; only when version 1 has not been given to anybody yet.
#[test]
#[ignore = "writes into the source tree"]
fn freeze_a_journal_of_format_1() {
    freeze(1, FIXTURES[0]);
}

/// The same of an encrypted one.
#[test]
#[ignore = "writes into the source tree"]
fn freeze_an_encrypted_journal_of_format_1() {
    freeze(3, FIXTURES[1]);
}

fn freeze(seed: u64, name: &str) {
    let mut run = Run::new(seed);
    run.freeze_steps();
    let head = "# A journal of format 1, and what must be read from it. See journal/tests/sim/frozen.rs.\n";
    let text = [head, &files(&run.storage), &read(&run.storage)].concat();
    std::fs::write(path(name), text).unwrap();
}
