//! Failing devices: no space, a failed sync.

use crate::fixture::{draft, new_journal, options, quiet, write};
use afterimage_journal::log::Backend;
use afterimage_journal::{ErrorKind, History, Journal, Options, layout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use uuid::Uuid;

const DIR: &str = "JOURNAL_FAULT_DIR";
const ONLY_SEALS: &str = "JOURNAL_FAULT_ONLY_SEALS";

/// A small file system in memory; needs root.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        if mount.wait().ok()?.success() {
            return Some(Self(dir));
        }
        eprintln!("skipped: mounting a file system takes root");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_the_journal_as_a_whole_and_loses_nothing_acknowledged() {
    let Some(mount) = Mount::new(8 << 20) else { return };
    let ballast = mount.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).unwrap();
    let dir = mount.0.path().join("j");
    let hasty = Options { unit_wait: Duration::from_millis(1500), ..options() };
    let journal = new_journal(&dir, hasty.clone());
    let mut acknowledged = vec![];
    let error = loop {
        let payload = vec![acknowledged.len() as u8; 16384];
        match journal.append(&draft(1, 0, payload.len()), &payload) {
            Ok(seq) => acknowledged.push(seq),
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::FreeSpace, "{error}");
    assert!(acknowledged.len() > 100 && journal.is_out_of_space());
    assert!(journal.append(&draft(1, 0, 0), &[]).is_err(), "no later record may succeed");
    drop(journal);
    assert_eq!(Journal::open(&dir, hasty.clone()).err().unwrap().kind(), ErrorKind::FreeSpace);
    std::fs::remove_file(&ballast).unwrap();
    let (journal, history) = Journal::open(&dir, hasty).unwrap();
    assert!(history.damage.is_empty());
    let mut payload = Vec::new();
    for (i, seq) in acknowledged.iter().enumerate() {
        history.read_payload(&history.entry(*seq).unwrap().unwrap(), &mut payload).unwrap();
        assert_eq!(payload, vec![i as u8; 16384]);
    }
    assert!(write(&journal, 0, &[1; 512]) > *acknowledged.last().unwrap());
}

#[test]
fn creating_on_a_full_disk_leaves_nothing_behind() {
    let Some(mount) = Mount::new(4 << 20) else { return };
    for ballast_bytes in [(4 << 20) - 8192, 7 << 19] {
        let ballast = mount.0.path().join("ballast");
        std::fs::write(&ballast, vec![0; ballast_bytes]).unwrap();
        let dir = mount.0.path().join("j");
        let error = Journal::create(&dir, Uuid::new_v4(), "g", options()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::FreeSpace, "{error}");
        assert!(!dir.exists(), "{:?}", std::fs::read_dir(&dir).unwrap().collect::<Vec<_>>());
    }
}

/// Runs in the child only, under a tracer that fails one of its syncs.
#[test]
fn child_whose_sync_fails() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let plain = Options { backend: Backend::Plain, ..quiet() };
    let journal = new_journal(&dir.join("j"), plain);
    let mut failed = false;
    let only_seals = std::env::var_os(ONLY_SEALS).is_some();
    let mut synced = 0;
    for i in 0..200_000u64 {
        let payload = [i as u8; 1024];
        if journal.append(&draft(1, 0, payload.len()), &payload).is_err() {
            failed = true;
            break;
        }
        if i % 50 == 0 && !only_seals {
            match journal.sync() {
                Ok(durable) => synced = durable,
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
    }
    assert_eq!(journal.durable().max(1), synced.max(1), "the watermark moves behind a sync only");
    assert!(failed && journal.stopped().is_some());
    assert!(journal.append(&draft(1, 0, 0), &[]).is_err());
    std::fs::write(dir.join("durable"), journal.durable().to_string()).unwrap();
}

/// `sealed`: a unit was sealed before, past the watermark.
fn sync_that_fails(dir: &Path, when: u32, only_seals: bool, sealed: bool) {
    let mut tracer = Command::new("strace");
    if only_seals {
        tracer.env(ONLY_SEALS, "1");
    }
    // Only units that have their names: making one is tried again.
    for number in 1..100 {
        tracer.arg("-P").arg(layout::unit_path(&dir.join("j"), number));
    }
    let tracer = tracer
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"])
        .args(["-e", &format!("inject=fdatasync:error=EIO:when={when}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults::child_whose_sync_fails"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .status();
    let Ok(status) = tracer else {
        eprintln!("skipped: strace is not installed");
        return;
    };
    assert!(status.success());
    let durable: u64 = std::fs::read_to_string(dir.join("durable")).unwrap().parse().unwrap();
    let dir = dir.join("j");
    assert_eq!(layout::read_distrust(&dir).unwrap(), Some(durable));
    let head = History::load(&dir).unwrap().head;
    assert!(if sealed { head > durable } else { head == durable }, "readers heed it, too: {head}");
    let (journal, history) = Journal::open(&dir, quiet()).unwrap();
    assert_eq!(history.head, head);
    assert!(history.damage.is_empty() && layout::read_distrust(&dir).unwrap().is_none());
    assert!(journal.head() > head + 50, "numbers of lost records are skipped");
    write(&journal, 0, &[1; 512]);
    journal.close().unwrap();
    assert!(History::load(&dir).unwrap().damage.is_empty());
}

#[test]
fn a_failed_sync_stops_the_journal_and_the_next_opening_cuts_at_the_watermark() {
    let syncs = [(2, false), (7, false), (22, false), (1, true), (2, true)];
    for (when, only_seals) in syncs {
        let dir = tempfile::tempdir().unwrap();
        sync_that_fails(dir.path(), when, only_seals, false);
    }
}

/// Three syncs seal a unit: what it holds was durable before the second one's failed.
#[test]
fn a_failed_sync_costs_nothing_that_a_sealed_unit_holds() {
    for when in [4, 5] {
        let dir = tempfile::tempdir().unwrap();
        sync_that_fails(dir.path(), when, true, true);
    }
}
