//! A journal with volumes of memory, a guest's memory as plain arrays, and streams made of it.

use afterimage_agent::memory::{
    Block, Error, Event, Intake, Options, PAGE_BYTES, Result, STATE_BYTES_MAX, Source, SpoolAt,
    Stored, Table, Taken, store,
};
use afterimage_journal::history::Entry;
use afterimage_journal::meta::{Config, Guest, RamBlock, Volume, VolumeKind};
use afterimage_journal::{History, Journal, Key, Seq, View, VolumeId};
use afterimage_migration::Writer;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tempfile::TempDir;
use uuid::Uuid;

/// Not a time to be measured, but when a test has hung.
pub const HANG: Duration = Duration::from_secs(60);
/// The volume of the device state; RAM blocks follow it.
pub const STATE: VolumeId = 1;

/// xorshift64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = self.next() as u8);
    }
}

/// A guest's memory at an instant.
#[derive(Clone)]
pub struct Memory {
    pub blocks: Vec<(String, Vec<u8>)>,
    pub device: Vec<u8>,
}

impl Memory {
    /// A third of the pages zero.
    pub fn new(rng: &mut Rng, sizes_pages: &[usize]) -> Self {
        let mut blocks = Vec::new();
        for (index, pages) in sizes_pages.iter().enumerate() {
            let mut bytes = vec![0; pages * PAGE_BYTES];
            for page in bytes.chunks_mut(PAGE_BYTES) {
                if rng.below(3) > 0 {
                    rng.fill(page);
                }
            }
            blocks.push((format!("block{index}"), bytes));
        }
        let mut device = vec![0; 50_000];
        rng.fill(&mut device);
        Self { blocks, device }
    }

    pub fn listed(&self) -> Vec<Block> {
        let block =
            |(id, bytes): &(String, Vec<u8>)| Block { id: id.clone(), bytes: bytes.len() as u64 };
        self.blocks.iter().map(block).collect()
    }

    pub fn page(&mut self, block: usize, page: usize) -> &mut [u8] {
        &mut self.blocks[block].1[page * PAGE_BYTES..][..PAGE_BYTES]
    }

    /// Pages that differ, of all blocks.
    pub fn differing(&self, other: &Self) -> u64 {
        let mut differing = 0;
        for ((_, ours), (_, theirs)) in self.blocks.iter().zip(&other.blocks) {
            let pages = ours.chunks(PAGE_BYTES).zip(theirs.chunks(PAGE_BYTES));
            differing += pages.filter(|(a, b)| a != b).count() as u64;
        }
        differing
    }

    /// Every page, in a random order when asked; zero pages as such or, now and then, in full.
    pub fn stream(&self, mut shuffle: Option<&mut Rng>) -> Vec<u8> {
        let mut places: Vec<(usize, usize)> = Vec::new();
        for (index, (_, bytes)) in self.blocks.iter().enumerate() {
            places.extend((0..bytes.len()).step_by(PAGE_BYTES).map(|at| (index, at)));
        }
        if let Some(rng) = &mut shuffle {
            for i in (1..places.len()).rev() {
                places.swap(i, rng.below(i + 1));
            }
        }
        let pages = places.iter().map(|&(b, at)| (b, at, &self.blocks[b].1[at..at + PAGE_BYTES]));
        self.stream_of(pages)
    }

    pub fn stream_of<'p>(&self, pages: impl Iterator<Item = (usize, usize, &'p [u8])>) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &head(), &self.listed()).unwrap();
        for (i, (block, at, page)) in pages.enumerate() {
            if page.iter().all(|b| *b == 0) && i % 7 > 0 {
                writer.zero(block, at as u64).unwrap();
            } else {
                writer.page(block, at as u64, page).unwrap();
            }
        }
        writer.finish(&self.tail()).unwrap()
    }

    pub fn tail(&self) -> Vec<u8> {
        let mut tail = vec![4];
        tail.extend_from_slice(&self.device);
        tail.extend_from_slice(&[0, 6, 0, 0, 0, 2]);
        tail.extend_from_slice(b"{}");
        tail
    }
}

pub fn head() -> Vec<u8> {
    let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram".to_vec();
    head.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 4, 0x7e, 0, 0, 0, 2]);
    head
}

/// A journal with one guest's memory.
pub struct Bed {
    pub dir: TempDir,
    pub journal: Journal,
    pub ram: Vec<RamBlock>,
    pub table: Option<Table>,
    pub spool: SpoolAt,
    pub stall_limit: Duration,
}

impl Bed {
    pub fn new(blocks: &[Block]) -> Self {
        Self::made(blocks, None)
    }

    /// One whose journal is encrypted.
    pub fn encrypted(blocks: &[Block]) -> Self {
        Self::made(blocks, Some(Key::new([3; 32].into())))
    }

    fn made(blocks: &[Block], key: Option<Key>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let group = Uuid::new_v4();
        let options = afterimage_journal::Options {
            unit_bytes: 8 << 20,
            unit_wait: HANG,
            key,
            ..afterimage_journal::Options::default()
        };
        let journal = Journal::create(&dir.path().join("j"), group, "g", options).unwrap();
        let ids = STATE + 1..;
        let ram: Vec<RamBlock> = ids
            .zip(blocks)
            .map(|(volume, b)| RamBlock { volume, id: b.id.clone(), bytes: b.bytes })
            .collect();
        let mut volumes =
            vec![volume(STATE, VolumeKind::DeviceState, "device-state", STATE_BYTES_MAX)];
        volumes.extend(ram.iter().map(|b| volume(b.volume, VolumeKind::Ram, &b.id, b.bytes)));
        let guest = Guest {
            name: "vm".into(),
            command_line: vec![],
            libvirt_xml: None,
            qemu_version: String::new(),
        };
        let config = Config { group, name: "g".into(), guests: vec![guest], volumes };
        journal.set_config(&config).unwrap();
        let spool = SpoolAt { dir: dir.path().join("spool"), spool_bytes_max: None };
        let mut bed = Self { dir, journal, ram, table: None, spool, stall_limit: HANG };
        bed.rebuild();
        bed
    }

    pub fn volumes(&self) -> Vec<VolumeId> {
        std::iter::once(STATE).chain(self.ram.iter().map(|b| b.volume)).collect()
    }

    pub fn rebuild(&mut self) {
        let built = Table::build(&self.journal, &self.volumes(), &AtomicBool::new(false));
        self.table = Some(built.unwrap());
    }

    /// The journal closed and opened again, as by a restart.
    pub fn reopen(mut self) -> Self {
        self.table = None;
        let path = self.path();
        self.journal.close().unwrap();
        let options = afterimage_journal::Options {
            unit_wait: HANG,
            ..afterimage_journal::Options::default()
        };
        self.journal = Journal::open(&path, options).unwrap().0;
        self
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("j")
    }

    pub fn options(&mut self) -> Options {
        Options {
            table: self.table.take().expect("a table"),
            volumes: self.ram.iter().map(|b| (b.id.clone(), b.volume)).collect(),
            spool: self.spool.clone(),
            stall_limit: self.stall_limit,
        }
    }

    pub fn start(&mut self, source: Source) -> Intake {
        Intake::start(source, self.options(), |_: Event| {}).unwrap()
    }

    /// Takes a whole stream.
    pub fn take(&mut self, stream: Vec<u8>) -> Result<Taken> {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let intake = self.start(Source::Connected(ours));
        let sender = std::thread::spawn(move || {
            // The other end may have had enough.
            let _ = std::io::Write::write_all(&mut { theirs }, &stream);
        });
        let (taken, table) = intake.wait();
        sender.join().unwrap();
        self.table = table;
        taken
    }

    pub fn store(&mut self, taken: &Taken) -> Result<Stored> {
        self.store_until(taken, &AtomicBool::new(false))
    }

    pub fn store_until(&mut self, taken: &Taken, cancel: &AtomicBool) -> Result<Stored> {
        let table = self.table.as_mut().expect("a table");
        store(&self.journal, table, taken, &self.ram, STATE, cancel)
    }

    /// A whole checkpoint: what it stored, and the position at which it is read.
    pub fn checkpoint(&mut self, stream: Vec<u8>) -> (Stored, Seq) {
        let taken = self.take(stream).unwrap();
        let stored = self.store(&taken).unwrap();
        (stored, self.journal.head())
    }

    /// What the journal says of memory at a position is this memory.
    pub fn assert_holds(&self, seq: Seq, memory: &Memory) {
        let history = self.journal.history().unwrap();
        for (block, (id, bytes)) in self.ram.iter().zip(&memory.blocks) {
            let found = content(&history, block.volume, seq, bytes.len());
            let wrong = found.chunks(PAGE_BYTES).zip(bytes.chunks(PAGE_BYTES));
            let wrong = wrong.enumerate().find(|(_, (a, b))| a != b).map(|(page, _)| page);
            assert_eq!(wrong, None, "the first wrong page of {id} at {seq}");
        }
        let state = [head(), memory.tail()].concat();
        assert!(content(&history, STATE, seq, state.len()) == state, "the device state at {seq}");
    }

    /// Records of data behind a position.
    pub fn records(&self, behind: Seq) -> Vec<Entry> {
        use afterimage_journal::format::record::Kind;
        let history = self.journal.history().unwrap();
        let all: Vec<Entry> = history.entries().collect::<std::result::Result<_, _>>().unwrap();
        let is_data = |e: &Entry| matches!(e.record.kind, Kind::Write | Kind::Zero);
        all.into_iter().filter(|e| e.record.seq > behind && is_data(e)).collect()
    }
}

pub fn content(history: &History, volume: VolumeId, seq: Seq, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0xff; bytes];
    View::at(history, volume, seq).unwrap().read(0, &mut buffer).unwrap();
    buffer
}

fn volume(id: VolumeId, kind: VolumeKind, name: &str, bytes: u64) -> Volume {
    Volume {
        id,
        kind,
        uuid: Uuid::new_v4(),
        guest: "vm".into(),
        disk: name.into(),
        node: name.into(),
        bytes,
        format: "ram".into(),
        source: String::new(),
        active: true,
    }
}

/// The error of something that must not succeed.
pub fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}
