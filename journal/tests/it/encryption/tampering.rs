//! Somebody who can write to a journal's files, and makes all checksums right: nothing that was moved or
//! changed is ever read as data.

use super::{key_of, opened};
use crate::fixture::{bytes_of, entries, new_journal, quiet, write};
use afterimage_journal::format::checksum::crc32c;
use afterimage_journal::format::index::{self, Footer};
use afterimage_journal::format::record::{self, FLAG_COPIED, Record};
use afterimage_journal::format::unit_header::UnitHeader;
use afterimage_journal::{Error, History, Options};
use std::path::{Path, PathBuf};

const LEN: usize = 4096;

/// A sealed unit as somebody changes it.
struct Unit {
    path: PathBuf,
    header: UnitHeader,
    bytes: Vec<u8>,
    records: Vec<(u64, Record)>,
}

impl Unit {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let header = UnitHeader::decode(bytes[..4096].try_into().unwrap()).unwrap();
        let footer = &bytes[bytes.len() - 64..];
        let footer = Footer::decode(&header.salt, header.unit_bytes, footer).unwrap();
        let (from, count) = (footer.index_at as usize, footer.count as usize);
        let records = index::decode(&bytes[from..from + 48 * count], header.unit_bytes).unwrap();
        Self { path: path.to_owned(), header, bytes, records }
    }

    /// The places of its encrypted records in `records`.
    fn writes(&self) -> Vec<usize> {
        let all = self.records.iter().enumerate();
        all.filter(|(_, (_, r))| r.encrypted).map(|(i, _)| i).collect()
    }

    fn stored(&mut self, i: usize) -> &mut [u8] {
        let (at, record) = self.records[i];
        let from = at as usize + 64;
        &mut self.bytes[from..from + record.payload_bytes as usize]
    }

    fn record(&mut self, i: usize) -> &mut Record {
        &mut self.records[i].1
    }

    /// Writes it back with every checksum right.
    fn write(mut self) {
        self.bytes[..4096].copy_from_slice(&self.header.encode());
        for i in 0..self.records.len() {
            let crc = crc32c(self.stored(i));
            self.record(i).payload_crc = crc;
            let (at, record) = self.records[i];
            let header = record::encode(&self.header.salt, at, &record);
            self.bytes[at as usize..at as usize + 64].copy_from_slice(&header);
        }
        let (index_at, area) = index::area(&self.header, &self.records);
        self.bytes[index_at as usize..].copy_from_slice(&area);
        std::fs::write(&self.path, &self.bytes).unwrap();
        // Derived, and made anew from what the units say.
        let _ = std::fs::remove_file(self.path.with_file_name("catalogue"));
    }
}

fn written(dir: &Path) -> Vec<PathBuf> {
    let journal = new_journal(dir, Options { key: Some(key_of(1)), ..quiet() });
    for i in 0..600u64 {
        write(&journal, i % 200 * LEN as u64, &bytes_of(i, LEN));
    }
    journal.close().unwrap();
    let history = opened(dir);
    history.units.iter().map(|u| u.path.clone()).collect()
}

/// How many records can't be read, and are named as changed.
fn refused(history: &History) -> usize {
    let mut data = Vec::new();
    let mut refused = 0;
    for entry in entries(history).iter().filter(|e| e.record.kind.is_data()) {
        match history.read_payload(entry, &mut data) {
            Ok(()) => {}
            Err(Error::Damaged { why, .. }) => {
                assert!(why.contains("on purpose"), "{why}");
                refused += 1;
            }
            Err(e) => panic!("{e}"),
        }
    }
    refused
}

/// Changes two units by hand; says how many records are refused.
fn after(change: impl FnOnce(&mut Unit, &mut Unit)) -> usize {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("g");
    let units = written(&dir);
    assert_eq!(refused(&opened(&dir)), 0);
    let (mut a, mut b) = (Unit::read(&units[0]), Unit::read(&units[1]));
    change(&mut a, &mut b);
    a.write();
    b.write();
    refused(&opened(&dir))
}

#[test]
fn what_is_not_changed_is_read() {
    assert_eq!(after(|_, _| {}), 0);
}

#[test]
fn records_exchanged_inside_a_unit_are_refused() {
    let exchanged = after(|a, _| {
        let (x, y) = (a.writes()[3], a.writes()[9]);
        let (of_x, of_y) = (a.stored(x).to_vec(), a.stored(y).to_vec());
        a.stored(x).copy_from_slice(&of_y);
        a.stored(y).copy_from_slice(&of_x);
    });
    assert_eq!(exchanged, 2, "payloads alone");
    let exchanged = after(|a, _| {
        let (x, y) = (a.writes()[3], a.writes()[9]);
        let (of_x, of_y) = (a.stored(x).to_vec(), a.stored(y).to_vec());
        a.stored(x).copy_from_slice(&of_y);
        a.stored(y).copy_from_slice(&of_x);
        let (at_x, at_y) = (a.records[x].0, a.records[y].0);
        (a.records[x].0, a.records[y].0) = (at_y, at_x);
    });
    assert_eq!(exchanged, 2, "whole records, headers and all");
    let exchanged = after(|a, _| {
        let (x, y) = (a.writes()[3], a.writes()[9]);
        let (of_x, of_y) = (a.records[x].1, a.records[y].1);
        (a.record(x).seq, a.record(y).seq) = (of_y.seq, of_x.seq);
    });
    assert_eq!(exchanged, 2, "an older write that would be the newer one");
}

#[test]
fn records_of_another_unit_are_refused() {
    let moved = after(|a, b| {
        // The same offset in both: what an older state of a recycled file would be.
        let same =
            |i: &usize| b.records.iter().any(|(at, r)| *at == a.records[*i].0 && r.encrypted);
        let x = *a.writes().iter().find(|i| same(i)).unwrap();
        let at = a.records[x].0;
        let y = b.records.iter().position(|(b_at, _)| *b_at == at).unwrap();
        let older = a.stored(x).to_vec();
        b.stored(y).copy_from_slice(&older);
    });
    assert_eq!(moved, 1);
    let moved = after(|a, b| {
        let same =
            |i: &usize| b.records.iter().any(|(at, r)| *at == a.records[*i].0 && r.encrypted);
        let x = *a.writes().iter().find(|i| same(i)).unwrap();
        let (at, record) = a.records[x];
        let y = b.records.iter().position(|(b_at, _)| *b_at == at).unwrap();
        let older = a.stored(x).to_vec();
        b.stored(y).copy_from_slice(&older);
        // With the header that it had, but for the number, which has to be this unit's.
        let seq = b.records[y].1.seq;
        *b.record(y) = Record { seq, ..record };
    });
    assert_eq!(moved, 1);
}

#[test]
fn headers_that_were_changed_with_their_checksums_are_refused() {
    type Change = fn(&mut Record);
    let changes: [(&str, Change); 7] = [
        ("address", |r| r.addr += 512),
        ("length", |r| r.len -= 512),
        ("volume", |r| r.volume = 7),
        ("flags", |r| r.flags = FLAG_COPIED),
        ("session", |r| r.scope += 1),
        ("time", |r| r.wall_ns += 1_000_000_000),
        ("in the clear", |r| r.encrypted = false),
    ];
    for (what, change) in changes {
        let refused = after(|a, _| {
            let x = a.writes()[5];
            change(a.record(x));
        });
        assert_eq!(refused, 1, "{what}");
    }
    let all = after(|a, _| a.header.epoch += 1);
    assert!(all > 50, "of another epoch: {all}");
    let flipped = after(|a, _| {
        let x = a.writes()[5];
        a.stored(x)[100] ^= 1;
    });
    assert_eq!(flipped, 1);
}

#[test]
fn rot_is_named_as_rot() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("g");
    let units = written(&dir);
    let mut unit = Unit::read(&units[0]);
    let x = unit.writes()[5];
    unit.stored(x)[100] ^= 1;
    std::fs::write(&unit.path, &unit.bytes).unwrap();
    let history = opened(&dir);
    let mut data = Vec::new();
    let all = entries(&history);
    let mut errors = all.iter().filter_map(|e| history.read_payload(e, &mut data).err());
    let why = errors.next().unwrap().to_string();
    assert!(why.contains("checksum") && !why.contains("purpose"), "{why}");
    assert!(errors.next().is_none());
}
