//! How memory gets into the journal: compressed where that pays, and second to captured writes.

use super::guest::PAGE;
use crate::fixture::{Rng, bytes_of, config, entries, new_journal, options, write};
use afterimage_journal::format::payload::{PACKED_LEN_BYTES_MAX, PLAIN, ZSTD};
use afterimage_journal::format::record::{self, Decoded};
use afterimage_journal::format::{checksum, index};
use afterimage_journal::meta::{Volume, VolumeKind};
use afterimage_journal::pool::{Allocate, HomeAllocator, Slot};
use afterimage_journal::{Error, ErrorKind, History, Journal, Options, Result, View};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const RAM: u16 = 2;
const RAM_BYTES: usize = 1 << 20;

fn with_memory(dir: &Path, options: Options) -> Journal {
    let journal = new_journal(dir, options);
    let mut config = config(journal.identity().group);
    let like = config.volumes[0].clone();
    config.volumes.push(Volume { id: RAM, kind: VolumeKind::Ram, disk: "ram".into(), ..like });
    journal.set_config(&config).unwrap();
    journal
}

/// Text that compresses well, no two pages alike.
fn text(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| b"afterimage "[i % 11] ^ (seed as usize + i / PAGE) as u8 & 7).collect()
}

#[test]
fn memory_is_compressed_where_that_pays_and_reads_as_it_was() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = with_memory(&dir, options());
    let mut model = vec![0; RAM_BYTES];
    let mut rng = Rng(7);
    let mut appender = journal.memory_appender().unwrap();
    for round in 0..60 {
        let len = 512 * (1 + rng.next() as usize % 400);
        let at = 512 * (rng.next() as usize % ((RAM_BYTES - len) / 512));
        let (seq, data) = match round % 3 {
            0 => (journal.append_memory_zero(RAM, at as u64, len as u32), vec![0; len]),
            kind => {
                let data = if kind == 1 { text(round, len) } else { bytes_of(round, len) };
                (appender.append(RAM, at as u64, &data), data)
            }
        };
        seq.unwrap();
        model[at..at + len].copy_from_slice(&data);
    }
    assert!(appender.append(RAM, 0, &[]).is_err());
    let check = || {
        let history = History::load(&dir).unwrap();
        let mut read = vec![0xee; RAM_BYTES];
        View::at(&history, RAM, history.head).unwrap().read(0, &mut read).unwrap();
        assert!(read == model);
        let all = entries(&history);
        let records: Vec<_> = all.iter().filter(|e| e.record.volume == RAM).collect();
        let mut payload = Vec::new();
        for entry in &records {
            let record = &entry.record;
            assert!(record.compression == PLAIN || record.payload_bytes * 8 <= record.len * 7);
            assert!(record.len <= PACKED_LEN_BYTES_MAX || record.payload_bytes == 0);
            history.read_payload(entry, &mut payload).unwrap();
            assert_eq!(payload.len(), record.data_bytes() as usize);
        }
        assert!(records.iter().filter(|e| e.record.compression == ZSTD).count() > 20);
        assert!(records.iter().filter(|e| e.record.payload_bytes == e.record.len).count() > 20);
    };
    drop(appender);
    check();
    journal.close().unwrap();
    check();
}

#[test]
fn what_has_its_checksum_and_does_not_unpack_is_damage_by_name() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = with_memory(&dir, options());
    let seq = journal.append_memory(RAM, 0, &text(1, 16 * PAGE)).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let history = History::load(&dir).unwrap();
    let entry = history.entry(seq).unwrap().unwrap();
    let unit = &history.units[entry.unit as usize];
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&unit.path).unwrap();
    let mut stored = vec![0; entry.record.payload_bytes as usize];
    file.read_exact_at(&mut stored, entry.at + 64).unwrap();
    let salt = unit.header.salt;
    let (good, record) = (stored.clone(), entry.record);
    drop(history);
    let read = |buffer: &mut [u8]| {
        let history = History::load(&dir)?;
        View::at(&history, RAM, seq)?.read(0, buffer)
    };
    // Bytes that are no frame, a frame cut off, more than one, and one of another length.
    let short = {
        let mut packer = afterimage_journal::format::payload::Packer::new().unwrap();
        packer.pack(&text(1, 15 * PAGE)).1.to_vec()
    };
    let cut = good[..good.len() - 3].to_vec();
    for bad in [bytes_of(3, good.len()), cut, [&good[..], &good].concat(), short] {
        let mut forged = record;
        forged.payload_bytes = bad.len() as u32;
        forged.payload_crc = checksum::crc32c(&bad);
        file.write_all_at(&record::encode(&salt, entry.at, &forged), entry.at).unwrap();
        file.write_all_at(&bad, entry.at + 64).unwrap();
        let error = read(&mut [0; PAGE]).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("unpacked"), "{error}");
    }
    file.write_all_at(&record::encode(&salt, entry.at, &record), entry.at).unwrap();
    file.write_all_at(&good, entry.at + 64).unwrap();
    read(&mut [0; PAGE]).unwrap();
    // Lengths that no writer gives out are not believed.
    for (len, payload_bytes) in [(PACKED_LEN_BYTES_MAX + 512, 100), (4096, 4096), (4096, 0)] {
        let forged = record::Record { len, payload_bytes, ..record };
        let bytes = record::encode(&salt, entry.at, &forged);
        let decoded = record::decode(&salt, entry.at, &bytes);
        assert!(matches!(decoded, Decoded::Broken { .. }), "{decoded:?}");
        assert!(index::decode(&index::encode(&[(4096, forged)]), 1 << 20).is_none());
    }
}

/// Waits until a number stays the same.
fn settled(of: impl Fn() -> u64) -> u64 {
    let mut last = of();
    loop {
        std::thread::sleep(Duration::from_millis(150));
        let now = of();
        if now == last {
            return now;
        }
        last = now;
    }
}

#[test]
fn captured_writes_do_not_wait_for_memory_which_goes_on_when_there_is_room() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let unit_wait = Duration::from_millis(300);
    let (unit_bytes, ring_bytes) = (64 << 20, 16 << 20);
    let memory_wait = Duration::from_secs(60);
    let options = Options { unit_bytes, unit_wait, ring_bytes, memory_wait, ..options() };
    let journal = with_memory(&dir, options);
    // While it is held, no space behind it is used again: as with a disk that hangs.
    let held = journal.reserve(512).unwrap();
    let sent = AtomicU64::new(0);
    let total_bytes = 24 << 20;
    std::thread::scope(|scope| {
        let memory = scope.spawn(|| {
            let mut appender = journal.memory_appender().unwrap();
            while sent.load(Ordering::Relaxed) < total_bytes {
                let page = bytes_of(sent.load(Ordering::Relaxed) + 1, 32 << 10);
                appender.append(RAM, 0, &page).unwrap();
                sent.fetch_add(page.len() as u64, Ordering::Relaxed);
            }
        });
        let stalled = settled(|| sent.load(Ordering::Relaxed));
        assert!(stalled > 0 && stalled <= ring_bytes / 4, "{stalled} bytes of memory are in");
        let started = Instant::now();
        for i in 0..ring_bytes / 2 / 8192 {
            write(&journal, 0, &[i as u8; 8192]);
        }
        assert!(started.elapsed() < unit_wait, "{:?}", started.elapsed());
        assert_eq!(sent.load(Ordering::Relaxed), stalled);
        drop(held);
        memory.join().unwrap();
    });
    assert_eq!(journal.stopped(), None);
}

#[test]
fn memory_that_waited_too_long_is_not_taken_and_the_journal_goes_on() {
    let tmp = tempfile::tempdir().unwrap();
    let memory_wait = Duration::from_millis(200);
    let journal = with_memory(&tmp.path().join("j"), Options { memory_wait, ..options() });
    let held = journal.reserve(512).unwrap();
    let noise = bytes_of(1, 16 << 10);
    let error = loop {
        if let Err(e) = journal.append_memory(RAM, 0, &noise) {
            break e;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    write(&journal, 0, &[1; 512]);
    drop(held);
    journal.sync().unwrap();
    journal.append_memory(RAM, 0, &noise).unwrap();
}

/// Room for some units.
#[derive(Debug)]
struct Few(AtomicU64);

impl Allocate for Few {
    fn allocate(&self, journal: &Path, unit_bytes: u64) -> Result<Slot> {
        let left = self.0.load(Ordering::Relaxed);
        if left == 0 {
            return Err(Error::NoRoom("the pool is full".into()));
        }
        self.0.store(left - 1, Ordering::Relaxed);
        HomeAllocator.allocate(journal, unit_bytes)
    }
}

#[test]
fn memory_leaves_the_last_units_to_captured_writes() {
    let tmp = tempfile::tempdir().unwrap();
    let allocator = Arc::new(Few(AtomicU64::new(6)));
    let options = Options { allocator, ..options() };
    let journal = with_memory(&tmp.path().join("j"), options);
    let mut taken = 0;
    let error = loop {
        match journal.append_memory(RAM, 0, &bytes_of(taken + 1, 16 << 10)) {
            Ok(_) => taken += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::FreeSpace, "{error}");
    assert!(taken > 128, "{taken} records of memory");
    assert_eq!(journal.stopped(), None);
    // A whole unit is left, but for what its end is for.
    for i in 0..(900 << 10) / 4096 {
        write(&journal, 0, &[i as u8; 4096]);
    }
    assert!(journal.append_memory(RAM, 0, &[1; 512]).is_err());
    assert_eq!(journal.stopped(), None);
}
