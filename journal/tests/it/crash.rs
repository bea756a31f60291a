//! The end of the process: a child appends from several threads until SIGKILL.

use crate::fixture::{Rng, bytes_of, config, draft, options};
use crate::members::Members;
use afterimage_journal::{History, Journal, Options};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

const DIR: &str = "JOURNAL_CRASH_DIR";
const THREADS: u64 = 3;
const ROUNDS: u64 = 12;

/// One acknowledgement: thread, count, number, and the highest number acknowledged to anybody
/// before this record was issued.
type Ack = [u64; 4];

fn payload(thread: u64, count: u64) -> Vec<u8> {
    bytes_of(thread << 32 ^ count, 512 * (1 + count as usize % 9))
}

/// Runs in the child only.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let often = Options { sync_interval: Duration::from_millis(3), ..options() };
    let members = dir.join("b").exists().then(|| Members::below(&dir, 3));
    let often = match &members {
        Some(members) => Options { allocator: Arc::clone(&members.allocator) as _, ..often },
        None => often,
    };
    let (journal, _) = Journal::open(&dir.join("pool/j"), often).unwrap();
    let acks = std::fs::OpenOptions::new().append(true).create(true).open(dir.join("acks"));
    let acks = acks.unwrap();
    let newest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (journal, mut acks, newest) = (&journal, &acks, &newest);
            scope.spawn(move || {
                for count in 0.. {
                    let data = payload(thread, count);
                    let floor = newest.load(Ordering::SeqCst);
                    let seq = journal.append(&draft(1, count, data.len()), &data).unwrap();
                    newest.fetch_max(seq, Ordering::SeqCst);
                    let ack: Ack = [thread, count, seq, floor];
                    let bytes: Vec<u8> = ack.iter().flat_map(|n| n.to_le_bytes()).collect();
                    acks.write_all(&bytes).unwrap();
                }
            });
        }
    });
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_that_appends_until_it_is_killed"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn acks(dir: &Path) -> Vec<Ack> {
    let bytes = std::fs::read(dir.join("acks")).unwrap_or_default();
    let number = |c: &[u8], i: usize| u64::from_le_bytes(c[i * 8..i * 8 + 8].try_into().unwrap());
    bytes.chunks_exact(32).map(|c| std::array::from_fn(|i| number(c, i))).collect()
}

#[test]
fn whatever_was_acknowledged_before_sigkill_is_there_in_order() {
    killed_over(1);
}

#[test]
fn whatever_was_acknowledged_before_sigkill_is_there_on_three_members() {
    killed_over(3);
}

fn killed_over(members: usize) {
    let dir = tempfile::tempdir().unwrap();
    let group = Uuid::new_v4();
    let members = Members::below(dir.path(), members);
    let first = Options { allocator: Arc::clone(&members.allocator) as _, ..options() };
    let journal = Journal::create(&dir.path().join("pool/j"), group, "g", first).unwrap();
    journal.set_config(&config(group)).unwrap();
    drop(journal);
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let (mut last, mut total) = (0, 0);
    for round in 0..ROUNDS {
        let _ = std::fs::remove_file(dir.path().join("acks"));
        let mut child = start(dir.path());
        let deadline = Instant::now() + Duration::from_secs(30);
        while acks(dir.path()).len() < 20 {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
            std::thread::yield_now();
        }
        // The moment is what is varied here, not awaited.
        std::thread::sleep(Duration::from_micros(rng.next() % 40_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let history = History::load(&dir.path().join("pool/j")).unwrap();
        assert!(history.damage.is_empty(), "round {round}: {:?}", history.damage);
        assert!(history.epoch == round + 2 && !history.torn);
        let acks = acks(dir.path());
        let mut data = Vec::new();
        for [thread, count, seq, floor] in &acks {
            assert!(seq > floor && *seq > last, "round {round}: {seq} {floor} {last}");
            let entry = history.entry(*seq).unwrap();
            let entry = entry.unwrap_or_else(|| panic!("round {round}: lost {seq}"));
            assert_eq!(entry.record.addr, *count);
            history.read_payload(&entry, &mut data).unwrap();
            assert!(data == payload(*thread, *count), "round {round}: {seq} differs");
        }
        let mut numbers: Vec<u64> = acks.iter().map(|a| a[2]).collect();
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|p| p[0] < p[1]), "a number was given out twice");
        last = history.head;
        total += acks.len();
    }
    assert!(total > 20 * ROUNDS as usize);
}
