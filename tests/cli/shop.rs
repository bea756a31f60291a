//! A journal with a known story, written as an agent would, on a clock of its own:
//!
//! ```text
//!  +0 s  +10 s  +20 s     +30 s     +60 s    +90 s    +100 s  +110 s
//!  open  'A'    'B'       close     'C'      open     'D'     end
//!        #1     #2 (tag)  |------ gap ------|         #3
//! ```

use crate::kit::{Cli, Outcome};
use afterimage_journal::clock::Clock;
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, Config, Copy, CopyCause, CopyEvent, Guest, Meta, Session,
    SessionEvent, Volume, VolumeKind,
};
use afterimage_journal::{Journal, Key, Options, Seq, layout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use uuid::Uuid;

/// Size of each of the two disks, in bytes.
pub const DISK_BYTES: u64 = 1 << 20;
/// Size of each write.
pub const WRITE_BYTES: usize = 4096;

pub const SECOND_NS: u64 = 1_000_000_000;

/// A clock that says what it was told.
pub struct Told(pub AtomicU64);

impl Clock for Told {
    fn wall_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn mono_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn boot_id(&self) -> [u8; 16] {
        [7; 16]
    }
}

/// The state directory, and what was written.
pub struct Shop {
    dir: TempDir,
    /// Commands over it.
    pub cli: Cli,
    /// Its beginning, an hour ago.
    begin_ns: u64,
    /// Positions of the writes A to D.
    pub writes: [Seq; 4],
}

impl Shop {
    pub fn new() -> Self {
        Self::made(None, false)
    }

    /// One whose clock is set back at +20 s, to +15 s, and is at +18 s at its end.
    pub fn set_back() -> Self {
        Self::made(None, true)
    }

    /// One whose journal is encrypted.
    pub fn encrypted(key: Key) -> Self {
        Self::made(Some(key), false)
    }

    fn made(key: Option<Key>, set_back: bool) -> Self {
        let dir = TempDir::with_prefix("shop-").unwrap();
        let state = dir.path().join("state");
        layout::check_state(&state, true).unwrap();
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        let begin_ns = hour_ago.duration_since(UNIX_EPOCH).unwrap().as_secs() * SECOND_NS;
        let journal = layout::journal_dir(&state, "shop").unwrap();
        let writes = match set_back {
            true => tell_set_back(&journal, begin_ns),
            false => tell(&journal, begin_ns, key),
        };
        let cli = Cli::new(env!("CARGO_BIN_EXE_afterimage"), &state);
        Self { dir, cli, begin_ns, writes }
    }

    /// A place beside the state directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// RFC 3339 of so many seconds after the beginning.
    pub fn time(&self, seconds: u64) -> String {
        let ns = self.begin_ns + seconds * SECOND_NS;
        jiff::Timestamp::from_nanosecond(i128::from(ns)).unwrap().to_string()
    }

    /// The file of the first unit.
    pub fn unit(&self) -> PathBuf {
        layout::unit_path(&layout::journal_dir(self.cli.state(), "shop").unwrap(), 1)
    }

    /// `restore web --at AT` to a new directory.
    pub fn restore(&self, at: &str, to: &str) -> Outcome {
        let to = self.path(to).display().to_string();
        self.cli.run(&["restore", "web", "--at", at, "--to", &to, "--json"])
    }
}

/// The first bytes of the disk with this node in a report of `restore --json`.
pub fn head_of(report: &serde_json::Value, node: &str) -> Vec<u8> {
    let disks = report["disks"].as_array().unwrap();
    let disk = disks.iter().find(|d| d["node"] == node).unwrap();
    let image = std::fs::read(disk["path"].as_str().unwrap()).unwrap();
    assert_eq!(image.len() as u64, DISK_BYTES);
    image[..WRITE_BYTES * 4].to_vec()
}

fn tell_set_back(dir: &Path, begin_ns: u64) -> [Seq; 4] {
    let (journal, clock) = begin(dir, begin_ns, None);
    let at = |seconds: u64| clock.0.store(begin_ns + seconds * SECOND_NS, Ordering::SeqCst);
    session(&journal, 1, SessionEvent::Open);
    let mut id = 0;
    let told = [(10, b'A'), (20, b'B'), (15, b'C'), (16, b'D')].map(|(seconds, byte)| {
        at(seconds);
        let seq = write(&journal, 1, 0, byte);
        id += 1;
        mark(&journal, id, None);
        seq
    });
    journal.close().unwrap();
    told
}

fn tell(dir: &Path, begin_ns: u64, key: Option<Key>) -> [Seq; 4] {
    let (journal, clock) = begin(dir, begin_ns, key);
    let at = |seconds: u64| clock.0.store(begin_ns + seconds * SECOND_NS, Ordering::SeqCst);
    session(&journal, 1, SessionEvent::Open);
    at(10);
    let a = write(&journal, 1, 0, b'A');
    mark(&journal, 1, None);
    at(20);
    let b = write(&journal, 2, 1, b'B');
    mark(&journal, 2, Some("before-upgrade"));
    at(30);
    session(&journal, 1, SessionEvent::Close);
    at(60);
    let c = write(&journal, 1, 2, b'C');
    at(90);
    session(&journal, 2, SessionEvent::Open);
    at(100);
    let d = write(&journal, 1, 0, b'D');
    mark(&journal, 3, None);
    at(110);
    journal.close().unwrap();
    [a, b, c, d]
}

/// A journal of two disks that are synced, and its clock.
fn begin(dir: &Path, begin_ns: u64, key: Option<Key>) -> (Journal, Arc<Told>) {
    let clock = Arc::new(Told(AtomicU64::new(begin_ns)));
    let options = Options {
        unit_wait: Duration::from_secs(60),
        unit_bytes: 1 << 20,
        sync_interval: Duration::from_secs(3600),
        clock: clock.clone(),
        key,
        ..Options::default()
    };
    let group = Uuid::new_v4();
    let journal = Journal::create(dir, group, "shop", options).unwrap();
    journal.set_config(&config(group)).unwrap();
    for volume in [1, 2] {
        for event in [CopyEvent::Start, CopyEvent::End] {
            let (id, cause) = (volume.into(), CopyCause::Initial);
            let copy = Copy { id, volume, event, cause, upto: DISK_BYTES, whole: true };
            journal.append_meta(&Meta::Copy(copy)).unwrap();
        }
    }
    (journal, clock)
}

/// A guest with two disks.
pub fn config(group: Uuid) -> Config {
    let volume = |id: u16, node: &str| Volume {
        id,
        kind: VolumeKind::Disk,
        uuid: Uuid::new_v4(),
        guest: "web".into(),
        disk: format!("virtio{id}"),
        node: node.into(),
        bytes: DISK_BYTES,
        format: "raw".into(),
        source: format!("/images/{node}.img"),
        active: true,
    };
    let guest = Guest {
        name: "web".into(),
        command_line: vec![],
        libvirt_xml: None,
        qemu_version: "10.0.2".into(),
    };
    let volumes = vec![volume(1, "system"), volume(2, "data")];
    Config { group, name: "shop".into(), guests: vec![guest], volumes }
}

/// Writes a block full of one byte.
pub fn write(journal: &Journal, volume: u16, block: u64, byte: u8) -> Seq {
    let mut draft = Draft::of(Kind::Write);
    draft.volume = volume;
    draft.addr = block * WRITE_BYTES as u64;
    draft.len = WRITE_BYTES as u32;
    journal.append(&draft, &[byte; WRITE_BYTES]).unwrap()
}

/// Opens or closes a session.
pub fn session(journal: &Journal, id: u32, event: SessionEvent) {
    let session = Session {
        id,
        guest: "web".into(),
        event,
        reason: "detached by hand".into(),
        upto: None,
        full: true,
        images: vec![],
        maps: vec![],
    };
    journal.append_meta(&Meta::Session(session)).unwrap();
}

/// Makes a checkpoint.
pub fn mark(journal: &Journal, id: u64, tag: Option<&str>) -> Seq {
    let tag = tag.map(str::to_owned);
    let checkpoint = Checkpoint { id, kind: CheckpointKind::Crash, tag, memory: None };
    journal.append_meta(&Meta::Mark(checkpoint)).unwrap()
}
