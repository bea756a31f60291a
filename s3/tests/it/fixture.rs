//! What the tests share: journals in directories, the ops that they are, what a bucket makes of them.

use crate::server::each_op;
use crate::store::{Bag, Memory};
use afterimage_journal::format::record::Kind;
use afterimage_journal::history::Entry;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{Config, Guest, Meta, Session, SessionEvent, Volume, VolumeKind};
use afterimage_journal::storage::Storage;
use afterimage_journal::unit::ScanEnd;
use afterimage_journal::wire::{Hello, Op, Sink};
use afterimage_journal::{History, Journal, Options, Seq, View, layout};
use afterimage_s3::sink::{S3Sink, SinkOptions};
use afterimage_s3::storage::S3Storage;
use afterimage_s3::store::{Patience, Patient, Store};
use afterimage_s3::url::S3Url;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use uuid::Uuid;

pub const VOLUME_BYTES: u64 = 4 << 20;
pub const UNIT_BYTES: u64 = 1 << 20;

pub fn url() -> S3Url {
    "s3://vault/site".parse().unwrap()
}

/// Short pauses, and nothing waits for its age.
pub fn options() -> SinkOptions {
    SinkOptions {
        age: Duration::ZERO,
        background_age: Duration::ZERO,
        grace: Duration::from_secs(3600),
        patience: patience(),
        ..SinkOptions::of(&url())
    }
}

pub fn patience() -> Patience {
    let ms = Duration::from_millis;
    Patience { first: ms(1), longest: ms(4), whole: ms(200) }
}

pub fn patient(store: impl Store + 'static) -> Patient {
    Patient::new(Arc::new(store), patience())
}

pub fn sink(store: impl Store + 'static) -> S3Sink {
    S3Sink::over(&url(), patient(store), options())
}

/// Nothing happens by itself: no sync, no tick.
pub fn quiet() -> Options {
    let never = Duration::from_secs(3600);
    Options {
        unit_bytes: UNIT_BYTES,
        ring_bytes: 1 << 20,
        unit_wait: Duration::from_secs(20),
        sync_interval: never,
        tick_interval: never,
        ..Options::default()
    }
}

/// A journal of one volume in a session.
pub fn new_journal_with(dir: &Path, options: Options) -> Journal {
    new_journal_of(dir, options, VOLUME_BYTES)
}

/// The same with a volume of so many bytes.
pub fn new_journal_of(dir: &Path, options: Options, bytes: u64) -> Journal {
    let group = Uuid::new_v4();
    let journal = Journal::create(dir, group, "g", options).unwrap();
    let volume = Volume {
        id: 1,
        kind: VolumeKind::Disk,
        uuid: Uuid::new_v4(),
        guest: "vm".into(),
        disk: "vda".into(),
        node: "d1".into(),
        bytes,
        format: "raw".into(),
        source: String::new(),
        active: true,
    };
    let guest = Guest {
        name: "vm".into(),
        command_line: vec![],
        libvirt_xml: None,
        qemu_version: String::new(),
    };
    let config = Config { group, name: "g".into(), guests: vec![guest], volumes: vec![volume] };
    journal.set_config(&config).unwrap();
    let open = Session {
        id: 1,
        guest: "vm".into(),
        event: SessionEvent::Open,
        reason: "test".into(),
        upto: None,
        full: true,
        images: vec![],
        maps: vec![],
    };
    journal.append_meta(&Meta::Session(open)).unwrap();
    journal
}

/// xorshift64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Writes here and there, some zstd can do something about and some not.
pub fn write_some(journal: &Journal, count: usize, rng: &mut Rng) {
    for _ in 0..count {
        let len = 512 << (rng.next() % 6);
        let addr = rng.next() % (VOLUME_BYTES / 512 - len / 512) * 512;
        let noisy = rng.next().is_multiple_of(2);
        let byte = rng.next() as u8;
        let data: Vec<u8> = (0..len).map(|_| if noisy { rng.next() as u8 } else { byte }).collect();
        let draft = Draft { volume: 1, addr, len: len as u32, ..Draft::of(Kind::Write) };
        journal.append(&draft, &data).unwrap();
    }
}

/// A closed journal of some units below `dir`, as below a state directory.
pub fn closed_journal(dir: &Path, writes: usize) -> PathBuf {
    let home = layout::journal_dir(dir, "g").unwrap();
    std::fs::create_dir_all(&home).unwrap();
    let journal = new_journal_with(&home, quiet());
    write_some(&journal, writes, &mut Rng(7));
    journal.sync().unwrap();
    // Full units are sealed by another thread.
    let begin = Instant::now();
    let is_sealed = |home: &Path| {
        let history = History::load(home).unwrap();
        let mut full = history.units.iter().rev().filter(|u| u.count > 0).skip(1);
        full.all(|u| u.end == ScanEnd::Sealed)
    };
    while !is_sealed(&home) {
        assert!(begin.elapsed() < Duration::from_secs(30), "units are not sealed");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(journal);
    home
}

/// An op, and the highest number in it and those before.
pub type Step = (Op, Seq);

/// The ops that a journal's files are: units as the log's end, others in pieces.
pub fn steps(dir: &Path, chunk_bytes: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    each_op(dir, chunk_bytes, |op, seq| steps.push((op, seq)));
    steps
}

pub fn hello(dir: &Path, epoch: u64) -> Hello {
    Hello { identity: layout::read_identity(dir).unwrap(), epoch }
}

/// Sends steps, a sync behind each; the highest number that was acknowledged.
pub fn send(sink: &mut S3Sink, steps: &[Step]) -> Result<Seq, afterimage_journal::wire::SinkError> {
    let mut acked = 0;
    for (i, (op, seq)) in steps.iter().enumerate() {
        sink.apply(op.clone())?;
        let token = i as u64 + 1;
        sink.apply(Op::Sync { token, watermark: *seq, wall_ns: *seq })?;
        while let Some(ack) = sink.ack(Duration::ZERO)? {
            acked = acked.max(ack.watermark);
        }
    }
    Ok(acked)
}

/// The journal that a bag holds.
pub fn history_of(bag: &Arc<Mutex<Bag>>) -> Option<History> {
    history_in(&patient(Memory::on(bag)))
}

pub fn history_in(store: &Patient) -> Option<History> {
    let storage: Arc<dyn Storage> = Arc::new(S3Storage::over(&url(), store.clone(), 8 << 20));
    let dir = Path::new("s3://vault/site/pool/g");
    storage.exists(dir).then(|| History::load_in(&storage, dir).unwrap())
}

pub fn entries(history: &History) -> Vec<Entry> {
    history.entries().collect::<Result<_, _>>().unwrap()
}

/// What two journals say of all numbers up to `to` is the same, data included.
pub fn assert_same(ours: &History, theirs: &History, to: Seq) {
    let upto = |history: &History| -> Vec<(Seq, u64, Vec<u8>)> {
        let mut buffer = Vec::new();
        let wanted = entries(history).into_iter().filter(|e| e.record.seq <= to);
        wanted
            .map(|e| {
                history.read_payload(&e, &mut buffer).unwrap();
                (e.record.seq, e.at, buffer.clone())
            })
            .collect()
    };
    assert!(theirs.damage.is_empty(), "{:?}", theirs.damage);
    let (ours, theirs) = (upto(ours), upto(theirs));
    assert_eq!(ours.len(), theirs.len(), "records up to {to}");
    assert!(ours == theirs, "records differ");
}

/// The volume's bytes at a position.
pub fn volume_at(history: &History, seq: Seq) -> Vec<u8> {
    let mut buffer = vec![0xff; VOLUME_BYTES as usize];
    View::at(history, 1, seq).unwrap().read(0, &mut buffer).unwrap();
    buffer
}
