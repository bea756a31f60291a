//! Finding records without reading whole indexes: the same as with them, whatever is asked for.

use crate::fixture::{Rng, entries, new_journal, options, write};
use afterimage_journal::History;
use afterimage_journal::format::index::{ENTRY_BYTES, FOOTER_BYTES};
use afterimage_journal::history::Entry;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Several sealed units of small records.
fn several_units(dir: &Path) -> Vec<Entry> {
    let journal = new_journal(dir, options());
    let mut rng = Rng(5);
    for _ in 0..6000 {
        let len = 512 * (1 + rng.next() % 2) as usize;
        write(&journal, rng.next() % 1000 * 512, &vec![rng.next() as u8; len]);
    }
    journal.close().unwrap();
    let history = History::load(dir).unwrap();
    assert!(history.units.len() > 3);
    entries(&history)
}

#[test]
fn every_record_is_found_at_each_end_without_an_index_and_none_beside_it() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let all = several_units(&dir);
    let history = History::load(&dir).unwrap();
    let mut locator = history.locator();
    for entry in &all {
        let record = &entry.record;
        for addr in [record.addr, record.addr + u64::from(record.len.max(1)) - 1] {
            assert_eq!(history.locate(record.seq, addr).unwrap(), *entry);
            assert_eq!(locator.locate(record.seq, addr).unwrap(), *entry);
        }
    }
    // What isn't there is found nowhere; that takes the indexes, and what is there is found in them.
    let entry = all.iter().rev().find(|e| e.record.kind.is_data()).unwrap();
    let behind = entry.record.addr + u64::from(entry.record.len);
    assert!(history.locate(entry.record.seq, behind).is_err());
    assert!(locator.locate(history.head + 1, 0).is_err());
    assert_eq!(history.locate(entry.record.seq, behind - 1).unwrap(), *entry);
}

#[test]
fn an_entry_that_rotted_is_not_believed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let all = several_units(&dir);
    let history = History::load(&dir).unwrap();
    let unit = &history.units[1];
    let in_it: Vec<&Entry> = all.iter().filter(|e| e.unit == 1).collect();
    let index_at = (unit.header.unit_bytes - FOOTER_BYTES - unit.count * ENTRY_BYTES) & !63;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&unit.path).unwrap();
    // Each place of an entry in turn: number, address, length, offset, kind.
    for (i, byte) in [0, 9, 24, 36, 44].into_iter().enumerate() {
        let which = 100 + 50 * i;
        let at = index_at + which as u64 * ENTRY_BYTES + byte;
        let mut old = [0];
        file.read_exact_at(&mut old, at).unwrap();
        file.write_all_at(&[old[0] ^ 2], at).unwrap();
        let history = History::load(&dir).unwrap();
        let mut locator = history.locator();
        for entry in &in_it[which - 3..which + 3] {
            let (seq, addr) = (entry.record.seq, entry.record.addr);
            let found = history.locate(seq, addr).map(|e| (e.at, e.record.payload_crc));
            assert_eq!(found.unwrap(), (entry.at, entry.record.payload_crc), "byte {byte}");
            let found = locator.locate(seq, addr).map(|e| (e.at, e.record.payload_crc));
            assert_eq!(found.unwrap(), (entry.at, entry.record.payload_crc), "byte {byte}");
        }
        file.write_all_at(&old, at).unwrap();
    }
}
