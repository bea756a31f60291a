//! What the tests share: small journals, a clock that is set by hand, checked reading.

use afterimage_journal::clock::Clock;
use afterimage_journal::format::record::Kind;
use afterimage_journal::history::Entry;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{Config, Guest, Meta, Session, SessionEvent, Volume, VolumeKind};
use afterimage_journal::{History, Journal, Options, Seq, View, VolumeId};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

pub const VOLUME_BYTES: u64 = 1 << 20;
/// Small enough to be turned over often.
pub const RING_BYTES: u64 = 1 << 20;

pub fn options() -> Options {
    // A busy machine must not fail a test that is not about waiting.
    let unit_wait = Duration::from_secs(20);
    Options { unit_bytes: 1 << 20, unit_wait, ring_bytes: RING_BYTES, ..Options::default() }
}

/// Nothing happens by itself: no sync, no tick.
pub fn quiet() -> Options {
    let never = Duration::from_secs(3600);
    Options { sync_interval: never, tick_interval: never, ..options() }
}

pub struct ManualClock {
    pub wall_ns: AtomicU64,
    pub boot: u8,
}

impl Clock for ManualClock {
    fn wall_ns(&self) -> u64 {
        self.wall_ns.load(Ordering::Relaxed)
    }
    fn mono_ns(&self) -> u64 {
        1
    }
    fn boot_id(&self) -> [u8; 16] {
        [self.boot; 16]
    }
}

pub fn with_boot(boot: u8) -> Options {
    let wall_ns = AtomicU64::new(u64::from(boot) * 1_000_000_000);
    // Room for all that is placed behind a reservation that comes late.
    let ring_bytes = 8 << 20;
    Options { clock: Arc::new(ManualClock { wall_ns, boot }), ring_bytes, ..quiet() }
}

pub fn config(group: Uuid) -> Config {
    let volume = |id| Volume {
        id,
        kind: VolumeKind::Disk,
        uuid: Uuid::new_v4(),
        guest: "vm".into(),
        disk: format!("vd{id}"),
        node: format!("d{id}"),
        bytes: VOLUME_BYTES,
        format: "raw".into(),
        source: String::new(),
        active: true,
    };
    Config {
        group,
        name: "g".into(),
        guests: vec![Guest {
            name: "vm".into(),
            command_line: vec![],
            libvirt_xml: None,
            qemu_version: String::new(),
        }],
        volumes: vec![volume(1)],
    }
}

pub fn new_journal(dir: &Path, options: Options) -> Journal {
    let group = Uuid::new_v4();
    let journal = Journal::create(dir, group, "g", options).unwrap();
    journal.set_config(&config(group)).unwrap();
    journal
}

pub fn draft(volume: VolumeId, addr: u64, len: usize) -> Draft {
    Draft { volume, addr, len: len as u32, ..Draft::of(Kind::Write) }
}

pub fn write(journal: &Journal, addr: u64, data: &[u8]) -> Seq {
    journal.append(&draft(1, addr, data.len()), data).unwrap()
}

pub fn session(id: u32, event: SessionEvent) -> Meta {
    Meta::Session(Session {
        id,
        guest: "vm".into(),
        event,
        reason: "test".into(),
        upto: None,
        full: true,
        images: vec![],
        maps: vec![],
    })
}

pub fn content(dir: &Path, seq: Seq, at: u64, len: usize) -> Vec<u8> {
    let history = History::load(dir).unwrap();
    let mut buffer = vec![0xff; len];
    View::at(&history, 1, seq).unwrap().read(at, &mut buffer).unwrap();
    buffer
}

/// Bytes that follow from a seed.
pub fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(seed | 1);
    (0..len).map(|_| rng.next() as u8).collect()
}

/// xorshift64: enough to pick sectors and moments from a seed that a failing case prints.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// All records, by number.
pub fn entries(history: &History) -> Vec<Entry> {
    history.entries().collect::<Result<_, _>>().unwrap()
}

/// Every number from 1 (or behind an epoch's jump) up to the head is there, whole.
pub fn assert_whole(history: &History) {
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    let mut buffer = Vec::new();
    for entry in &entries(history) {
        history.read_payload(entry, &mut buffer).unwrap();
    }
}
