//! Flipped bytes and missing files: named, never wrong data, never taken for a tail.

use crate::fixture::{bytes_of, draft, entries, new_journal, quiet, session, write};
use afterimage_journal::format::record::FLAG_COPIED;
use afterimage_journal::meta::{Copy, CopyCause, CopyEvent, Meta, SessionEvent};
use afterimage_journal::unit::ScanEnd;
use afterimage_journal::{History, Journal, Seq, View, layout};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

struct Sample {
    _tmp: tempfile::TempDir,
    dir: PathBuf,
    /// Number, address and data of each write.
    writes: Vec<(Seq, u64, Vec<u8>)>,
}

fn sample(sealed: bool) -> Sample {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = new_journal(&dir, quiet());
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let mut writes = vec![];
    for i in 0..6u64 {
        let data = bytes_of(i + 1, 512);
        writes.push((write(&journal, i * 256, &data), i * 256, data));
    }
    journal.sync().unwrap();
    if sealed {
        journal.close().unwrap();
    } else {
        drop(journal);
    }
    Sample { _tmp: tmp, dir, writes }
}

impl Sample {
    fn expected(&self, seq: Seq) -> Vec<u8> {
        let mut disk = vec![0; 2048];
        for (_, at, data) in self.writes.iter().filter(|w| w.0 <= seq) {
            disk[*at as usize..*at as usize + 512].copy_from_slice(data);
        }
        disk
    }

    /// Whether anything wrong was noticed; panics when wrong data was handed out.
    fn notices(&self, before: &History, flipped: &str) -> bool {
        let Ok(history) = History::load(&self.dir) else { return true };
        let mut noticed = !history.damage.is_empty()
            || history.units.iter().any(|u| matches!(u.end, ScanEnd::Damaged { .. }));
        let lost = history.head < before.watermark;
        assert!(!lost || !history.damage.is_empty(), "{flipped}: rot passed for a tail");
        for seq in 1..=before.head {
            if !history.is_restorable(seq) {
                assert!(!before.is_restorable(seq) || noticed || seq > before.watermark);
                continue;
            }
            assert!(before.is_restorable(seq), "{flipped}: {seq} was never restorable");
            let mut found = vec![0; 2048];
            match View::at(&history, 1, seq).and_then(|v| v.read(0, &mut found)) {
                Ok(()) => assert!(found == self.expected(seq), "{flipped}: wrong data at {seq}"),
                Err(e) => {
                    noticed = true;
                    assert!(!e.to_string().is_empty());
                }
            }
        }
        let same = history.head == before.head && entries(&history).len() == entries(before).len();
        noticed || !same
    }
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn every_flip_is_noticed(sample: &Sample, ranges: &[std::ops::Range<u64>]) {
    let before = History::load(&sample.dir).unwrap();
    assert!(before.damage.is_empty());
    let unit = layout::unit_path(&sample.dir, 1);
    for at in ranges.iter().cloned().flatten() {
        flip(&unit, at);
        assert!(sample.notices(&before, &format!("byte {at}")), "byte {at} passed unnoticed");
        flip(&unit, at);
    }
    assert!(!sample.notices(&before, "nothing"));
}

/// The unit's header, and each record's header and the ends of its payload.
fn record_ranges(dir: &Path) -> Vec<std::ops::Range<u64>> {
    let history = History::load(dir).unwrap();
    let mut ranges = Vec::new();
    ranges.push(0..132);
    for entry in entries(&history).iter().filter(|e| e.unit == 0) {
        let end = entry.at + 64 + u64::from(entry.record.payload_bytes);
        ranges.push(entry.at..entry.at + 64);
        ranges.push(end.saturating_sub(2).max(entry.at + 64)..end);
    }
    ranges
}

#[test]
fn a_flipped_byte_of_an_open_unit_is_never_wrong_data_nor_a_tail() {
    let sample = sample(false);
    every_flip_is_noticed(&sample, &record_ranges(&sample.dir));
}

#[test]
fn a_flipped_byte_of_an_index_footer_or_payload_of_a_sealed_unit_is_noticed() {
    let sample = sample(true);
    let history = History::load(&sample.dir).unwrap();
    let end = history.identity.unit_bytes;
    let index_at = (end - 64 - entries(&history).len() as u64 * 48) & !63;
    let index = index_at..index_at + entries(&history).len() as u64 * 48;
    let all = entries(&history);
    let payloads = all.iter().filter(|e| e.record.payload_bytes > 0).map(|e| {
        let at = e.at + 64 + u64::from(e.record.payload_bytes);
        at - 1..at
    });
    let mut ranges: Vec<_> = payloads.collect();
    ranges.extend([index, end - 64..end, 0..132]);
    every_flip_is_noticed(&sample, &ranges);
}

#[test]
fn points_before_a_rotten_record_stay_and_the_unit_is_named() {
    let sample = sample(false);
    let (seq, ..) = sample.writes[3];
    let history = History::load(&sample.dir).unwrap();
    flip(&layout::unit_path(&sample.dir, 1), history.entry(seq).unwrap().unwrap().at + 20);
    let history = History::load(&sample.dir).unwrap();
    assert_eq!((history.damage[0].from, history.damage[0].last), (seq, seq));
    assert!(history.damage[0].what.contains("unit-0000000001"), "{:?}", history.damage);
    assert!(history.is_restorable(seq - 1) && !history.is_restorable(seq));
    assert!(!history.is_restorable(history.head));
}

#[test]
fn a_flipped_value_of_the_identity_is_refused_by_name() {
    let sample = sample(true);
    let path = sample.dir.join("journal.json");
    let good = std::fs::read_to_string(&path).unwrap();
    for (at, byte) in good.bytes().enumerate() {
        if !byte.is_ascii_alphanumeric() {
            continue;
        }
        flip(&path, at as u64);
        let error = History::load(&sample.dir).unwrap_err();
        assert!(error.to_string().contains("journal.json"), "{error}");
        flip(&path, at as u64);
    }
    History::load(&sample.dir).unwrap();
}

#[test]
fn an_unreadable_last_unit_is_kept_and_neither_its_numbers_nor_its_epoch_come_again() {
    let sample = sample(false);
    let (journal, history) = Journal::open(&sample.dir, quiet()).unwrap();
    let (epoch, first) = (journal.epoch(), history.head);
    write(&journal, 0, &[7; 512]);
    let issued = journal.head();
    drop(journal);
    for number in layout::units(&sample.dir).unwrap().into_iter().skip(1) {
        flip(&layout::unit_path(&sample.dir, number), 50);
    }
    let rotten = layout::units(&sample.dir).unwrap();
    let history = History::load(&sample.dir).unwrap();
    assert_eq!(history.head, first);
    assert!(history.is_restorable(first), "{:?}", history.damage);
    let (journal, _) = Journal::open(&sample.dir, quiet()).unwrap();
    assert!(journal.epoch() > epoch && journal.head() > issued);
    journal.close().unwrap();
    let units = layout::units(&sample.dir).unwrap();
    assert!(units.len() > rotten.len(), "nothing was written over");
    let history = History::load(&sample.dir).unwrap();
    assert!(!history.damage.is_empty() && history.is_restorable(first));
}

#[test]
fn damage_within_a_copy_is_not_healed_by_the_session_that_follows_it() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = new_journal(&dir, quiet());
    let copy = |id, event| {
        let (volume, cause, upto) = (1, CopyCause::Compare, 1 << 20);
        let copy = Copy { id, volume, event, cause, upto, whole: id != 1 };
        journal.append_meta(&Meta::Copy(copy)).unwrap()
    };
    let copied = |id| {
        let draft =
            afterimage_journal::log::Draft { flags: FLAG_COPIED, scope: id, ..draft(1, 0, 512) };
        journal.append(&draft, &[id as u8; 512]).unwrap()
    };
    copy(1, CopyEvent::Start);
    let lost = copied(1);
    copy(1, CopyEvent::End);
    let opened = journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    journal.append_meta(&session(1, SessionEvent::Close)).unwrap();
    copy(2, CopyEvent::Start);
    copied(2);
    copy(2, CopyEvent::End);
    let healed = journal.append_meta(&session(2, SessionEvent::Open)).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let at = History::load(&dir).unwrap().entry(lost).unwrap().unwrap().at;
    flip(&layout::unit_path(&dir, 1), at + 20);
    let history = History::load(&dir).unwrap();
    assert!(!history.is_restorable(opened), "a block of its copy is lost");
    assert!(history.is_restorable(healed), "a whole copy began behind the damage");
}

#[test]
fn a_missing_first_unit_takes_every_point_away() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = new_journal(&dir, quiet());
    for _ in 0..40 {
        write(&journal, 0, &[1; 65536]);
    }
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    journal.close().unwrap();
    assert!(!History::load(&dir).unwrap().level.is_empty());
    std::fs::remove_file(layout::unit_path(&dir, 1)).unwrap();
    let history = History::load(&dir).unwrap();
    assert!(history.level.is_empty() && !history.damage.is_empty());
}
