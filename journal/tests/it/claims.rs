//! A sender with a valid certificate that lies: whatever stamps, epochs, edges and floors it sends, what the
//! site had stays restorable there, as far as the site's own clock and settings say.

use crate::rounds::{Bench, ROUND, finish};
use afterimage_journal::feed::Feed;
use afterimage_journal::format::index;
use afterimage_journal::format::meta::{EpochStart, Merged, Meta};
use afterimage_journal::format::record::{self, Kind, Record};
use afterimage_journal::format::unit_header::{
    BLOCK_BYTES, FLAG_EPOCH_START, FLAG_MERGED, UnitHeader,
};
use afterimage_journal::format::{align_up, checksum::crc32c};
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::pool::FileName;
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::wire::{Hello, Op, Sink};
use afterimage_journal::{History, Journal, Seq, View};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const FAR: u64 = 1 << 50;

/// A site with some history, complete, and a window that holds all of it.
struct Bed {
    bench: Bench,
    site: PathBuf,
    hello: Hello,
    _at: tempfile::TempDir,
    listed: Vec<Seq>,
    last: UnitHeader,
    watermark: Seq,
}

impl Bed {
    fn new(seed: u64) -> Self {
        let mut bench = Bench::new(seed);
        let at = tempfile::tempdir().unwrap();
        let site = at.path().join("g");
        bench.round(3);
        let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
        journal.sync().unwrap();
        let mut replica = replica(&bench, &site);
        let mut feed = Feed::new(&journal);
        let inventory = replica.open(&feed.hello()).unwrap();
        feed.start(&inventory, false).unwrap();
        loop {
            let op = match feed.fresh().unwrap() {
                Some(op) => Some(op),
                None => feed.background().unwrap(),
            };
            match op {
                Some(op) => replica.apply(op).unwrap(),
                None if feed.backlog().fresh_bytes == 0 => break,
                None => drop(feed.wait(Duration::from_millis(10))),
            }
        }
        bench.pass(ROUND);
        let (token, watermark) = (1 << 40, journal.head());
        replica.apply(Op::Sync { token, watermark, wall_ns: 0 }).unwrap();
        let hello = Hello { epoch: feed.hello().epoch + 1, ..feed.hello() };
        let watermark = replica.open(&hello).unwrap().watermark;
        drop(replica);
        journal.close().unwrap();
        let history = History::load(&site).unwrap();
        assert!(history.damage.is_empty(), "{:?}", history.damage);
        let last = history.units.iter().rfind(|u| u.count > 0).unwrap().header;
        let listed = (1..=history.head).filter(|seq| history.is_restorable(*seq)).collect();
        Self { bench, site, hello, _at: at, listed, last, watermark }
    }

    /// Lets the site's keeper do all that it wants to, now and a while later.
    fn keep(&self) {
        for _ in 0..2 {
            let storage = RealStorage::shared();
            let ground = Arc::new(Home { storage: Arc::clone(&storage) });
            let setup = Setup { ground, dir: self.site.clone(), ..self.bench.setup(100 * ROUND) };
            finish(&mut Keeper::open(setup).unwrap());
            self.bench.pass(ROUND);
        }
    }

    /// Whatever came of these ops, all that was listed is, and reads as it did.
    #[track_caller]
    fn survives(&self, what: &str, ops: Vec<Op>) {
        let mut site = replica(&self.bench, &self.site);
        let _ = site.open(&self.hello).unwrap();
        let mut taken = 0;
        for op in ops {
            match site.apply(op) {
                Ok(()) => taken += 1,
                Err(_) => drop(site.open(&self.hello)),
            }
        }
        drop(site);
        self.keep();
        let history = History::load(&self.site).unwrap();
        let lost = self.listed.iter().filter(|seq| !history.is_restorable(**seq)).count();
        let all = self.listed.len();
        assert_eq!(lost, 0, "{what}: {lost} of {all} positions are gone ({taken} ops were taken)");
        for (seq, disk) in &self.bench.points {
            let mut read = vec![0xee; disk.len()];
            View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
            assert!(read == *disk, "{what}: point {seq}");
        }
    }

    /// A header for the next unit.
    fn header(&self, behind: u64) -> UnitHeader {
        let number = self.last.number + behind;
        let after_seq = self.watermark;
        UnitHeader {
            number,
            after_seq,
            salt: [behind as u8; 16],
            epoch: self.hello.epoch,
            ..self.last
        }
    }

    fn begin(&self, header: UnitHeader) -> Vec<Op> {
        let (unit, at) = (header.number, BLOCK_BYTES);
        let tick = blank(Kind::Tick, self.watermark + 1);
        let bytes = record::encode(&header.salt, at, &tick).to_vec();
        vec![Op::Begin(Box::new(header)), Op::Bytes { unit, at, bytes }, sync(self.watermark + 1)]
    }

    /// A merged unit behind all that is there, which says this of itself.
    fn merged(&self, change: impl FnOnce(&mut Merged)) -> Vec<Op> {
        let first = self.last.number + 1;
        let text = format!(r#"{{"first":{first},"last":{first},"edge":0}}"#);
        let mut merged: Merged = serde_json::from_str(&text).unwrap();
        (merged.floor, merged.edge) = (Some(0), self.watermark + 9);
        (merged.first_seq, merged.last_seq) = (self.watermark + 1, self.watermark + 9);
        change(&mut merged);
        let payload = Meta::Merged(merged.clone()).encode().unwrap();
        let mut header = self.header(1);
        (header.flags, header.unit_bytes) = (FLAG_MERGED, 64 << 10);
        let own = Record {
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c(&payload),
            ..blank(Kind::Merged, merged.last_seq.max(1))
        };
        let mut file = header.encode();
        let mut records = vec![(BLOCK_BYTES, own)];
        file.extend(record::encode(&header.salt, BLOCK_BYTES, &own));
        file.extend(&payload);
        file.resize(align_up(file.len() as u64) as usize, 0);
        let at = file.len() as u64;
        let tick = blank(Kind::Tick, merged.last_seq.max(1));
        file.extend(record::encode(&header.salt, at, &tick));
        records.push((at, tick));
        let (index_at, area) = index::area(&header, &records);
        file.resize(index_at as usize, 0);
        file.extend(&area);
        assert_eq!(file.len() as u64, header.unit_bytes);
        let footer =
            index::Footer::decode(&header.salt, header.unit_bytes, &file[file.len() - 64..]);
        let name = FileName::Merged(first, first);
        let (file_bytes, len, index_crc) =
            (header.unit_bytes, header.unit_bytes, footer.unwrap().index_crc);
        vec![
            Op::Put { name, file_bytes, at: 0, bytes: file, len },
            Op::PutEnd { name, index_crc },
            sync(FAR),
        ]
    }
}

fn replica(bench: &Bench, dir: &Path) -> Replica {
    let storage = RealStorage::shared();
    let clock = Arc::new(bench.watch.clone());
    let options = ReplicaOptions { clock, ..ReplicaOptions::at_home(&storage) };
    Replica::open(&storage, dir, options).unwrap()
}

fn sync(watermark: Seq) -> Op {
    Op::Sync { token: 1, watermark, wall_ns: FAR }
}

fn blank(kind: Kind, seq: Seq) -> Record {
    Record {
        kind,
        flags: 0,
        volume: 0,
        addr: 0,
        len: 0,
        scope: 0,
        mono_ms: 0,
        wall_ns: FAR,
        payload_crc: crc32c(&[]),
        payload_bytes: 0,
        compression: 0,
        encrypted: false,
        seq,
    }
}

#[test]
fn stamps_of_a_sender_shorten_no_window() {
    for (mono_ns, boot_id) in [(FAR, [7; 16]), (FAR, [9; 16]), (0, [9; 16])] {
        let bed = Bed::new(41);
        let mut ops = Vec::new();
        for behind in 1..4 {
            let header = UnitHeader { mono_ns, wall_ns: FAR << 10, boot_id, ..bed.header(behind) };
            ops.extend(bed.begin(header));
        }
        bed.survives("stamps far ahead", ops);
    }
}

#[test]
fn an_epoch_of_a_sender_makes_nothing_void() {
    let bed = Bed::new(42);
    for (epoch, prev_last_seq) in [
        (bed.hello.epoch, 0),
        (bed.hello.epoch, bed.watermark - 1),
        (1, 0),
        (2, 1),
        (bed.last.epoch, 5),
    ] {
        let flags = FLAG_EPOCH_START;
        let ops = bed.begin(UnitHeader { epoch, prev_last_seq, flags, ..bed.header(1) });
        bed.survives("a unit of an epoch that takes numbers back", ops);
        let ops = bed.merged(|merged| {
            let first_seq = bed.watermark + 1;
            merged.epochs =
                vec![EpochStart { epoch, first_seq, prev_last_seq, id: None, unit: None }];
        });
        bed.survives("a merged unit with an epoch that takes numbers back", ops);
    }
}

#[test]
fn edge_and_floor_of_a_sender_give_nothing_up() {
    type Change = fn(&mut Merged, Seq);
    let lies: [(&str, Change); 7] = [
        ("a floor", |m, _| m.floor = None),
        ("a floor far ahead", |m, _| (m.floor, m.edge) = (Some(FAR), FAR)),
        ("an edge far ahead", |m, _| m.edge = FAR),
        ("records of all time", |m, _| m.first_seq = 1),
        ("records of all time, an edge far ahead", |m, _| (m.first_seq, m.edge) = (1, FAR)),
        ("no records, an edge", |m, at| (m.first_seq, m.last_seq, m.edge) = (0, 0, at)),
        ("records far ahead", |m, _| (m.last_seq, m.edge) = (FAR, FAR)),
    ];
    for (what, change) in lies {
        let bed = Bed::new(43);
        let ops = bed.merged(|merged| change(merged, bed.watermark));
        bed.survives(what, ops);
    }
    // One that doesn't lie is taken.
    let bed = Bed::new(43);
    let mut site = replica(&bed.bench, &bed.site);
    let _ = site.open(&bed.hello).unwrap();
    for op in bed.merged(|_| {}) {
        site.apply(op).unwrap();
    }
}
