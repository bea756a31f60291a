//! Rot: the points that need it are refused by name, the rest stay, and it is always found.

use crate::bed::{Bed, GROUP, entries, flip, names, restore_at, restore_to};
use afterimage_journal::Seq;
use afterimage_journal::history::Entry;
use afterimage_restore::{Error, Format, Kind, Recovery, VerifyReport, verify};
use std::path::PathBuf;

fn entry(recovery: &Recovery, seq: Seq) -> (PathBuf, Entry) {
    let entry = recovery.history.entry(seq).unwrap().unwrap();
    (recovery.history.units[entry.unit as usize].path.clone(), entry)
}

fn verified(bed: &Bed) -> VerifyReport {
    verify(&bed.open(), &mut |_| {}).unwrap()
}

/// One disk, a write that is wholly overwritten later, by two others.
struct Overwritten {
    bed: Bed,
    before: Seq,
    rotten: Seq,
    half: Seq,
    whole: Seq,
    last: Seq,
}

fn overwritten() -> Overwritten {
    let mut bed = Bed::new(1, &[64 << 10]);
    bed.open_session();
    let before = bed.write_at(0, 32 << 10, &[1; 4096]);
    bed.note(before);
    let rotten = bed.write_at(0, 8192, &[2; 4096]);
    let half = bed.write_at(0, 8192, &[3; 2048]);
    bed.note(half);
    let whole = bed.zero_at(0, 10240, 2048);
    bed.note(whole);
    let last = bed.write_at(0, 0, &[5; 512]);
    bed.note(last);
    bed.stop_agent();
    Overwritten { bed, before, rotten, half, whole, last }
}

#[test]
fn only_the_points_that_need_a_rotten_payload_are_refused() {
    let o = overwritten();
    let (unit, found) = entry(&o.bed.open(), o.rotten);
    flip(&unit, found.at + 64 + 100);
    let recovery = o.bed.open();
    let out = tempfile::tempdir().unwrap();
    for (seq, disks) in &o.bed.known {
        let needs = (o.rotten..o.whole).contains(seq);
        match restore_at(&recovery, *seq, out.path(), Format::Raw) {
            Ok(report) => {
                assert!(!needs, "{seq} was made from a rotten record");
                assert!(std::fs::read(&report.disks[0].path).unwrap() == disks[0]);
            }
            Err(error) => assert!(needs, "{seq}: {error}"),
        }
    }
    let to = out.path().join("x");
    let error = restore_to(&recovery, o.half, &to, Format::Qcow2, &[]).unwrap_err();
    assert_eq!((error.kind(), error.kind().exit_code()), (Kind::NotRestorable, 3));
    let said = error.to_string();
    for part in [
        format!("seq:{} can't be restored", o.half),
        format!("record {} at byte {}", o.rotten, found.at),
        unit.display().to_string(),
        "web/d0 at byte 10240".into(),
        format!("(seq:{}) before, ", o.before),
        format!("(seq:{}) after", o.whole),
    ] {
        assert!(said.contains(&part), "{said}: lacks {part}");
    }
    assert_eq!(names(&to), [""; 0]);
    let report = verified(&o.bed);
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    assert_eq!(report.damage[0].seq, Some(o.rotten));
    assert_eq!(
        (report.damage[0].unit.as_ref(), report.damage[0].at),
        (Some(&unit), Some(found.at))
    );
    let refused = &report.refused;
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].from, refused[0].to), (o.rotten, Some(o.whole - 1)));
    assert!(o.last > o.whole);
}

#[test]
fn a_record_that_is_needed_to_the_end_takes_all_points_from_it_on() {
    let o = overwritten();
    let (unit, found) = entry(&o.bed.open(), o.before);
    flip(&unit, found.at + 64);
    let error = restore_at(&o.bed.open(), o.last, o.bed.dir.path(), Format::Raw).unwrap_err();
    let Error::Damaged { record, .. } = error else { panic!("{error}") };
    assert_eq!(record.seq, o.before);
    assert_eq!(record.nearest.before.unwrap().point.seq, o.before - 1);
    assert_eq!(record.nearest.after, None);
    let report = verified(&o.bed);
    assert_eq!((report.refused[0].from, report.refused[0].to), (o.before, None));
}

#[test]
fn a_record_that_no_point_needs_is_found_and_refuses_nothing() {
    let mut bed = Bed::new(2, &[64 << 10]);
    let early = bed.write_at(0, 0, &[1; 4096]);
    let covered = bed.write_at(0, 0, &[2; 4096]);
    bed.open_session();
    bed.stop_agent();
    let (unit, found) = entry(&bed.open(), early);
    flip(&unit, found.at + 64);
    let report = verified(&bed);
    assert!(!report.is_sound() && report.refused.is_empty(), "{report:?}");
    assert_eq!(report.damage[0].seq, Some(early));
    assert!(covered > early);
    let out = tempfile::tempdir().unwrap();
    let (seq, disks) = bed.known.last().unwrap();
    let report = restore_at(&bed.open(), *seq, out.path(), Format::Raw).unwrap();
    assert!(std::fs::read(&report.disks[0].path).unwrap() == disks[0]);
}

#[test]
fn a_rotten_copied_record_is_needed_until_captured_writes_cover_it() {
    use afterimage_journal::format::record::{FLAG_COPIED, Kind as RecordKind};
    use afterimage_journal::meta::{Copy, CopyCause, CopyEvent, Meta};
    let mut bed = Bed::new(3, &[64 << 10]);
    let copy = |event| {
        Meta::Copy(Copy {
            id: 1,
            volume: 1,
            event,
            cause: CopyCause::Initial,
            upto: 0,
            whole: true,
        })
    };
    bed.journal().append_meta(&copy(CopyEvent::Start)).unwrap();
    // Captured during the copy: it covers the first half whatever the order of numbers.
    bed.write_at(0, 0, &[2; 2048]);
    let mut draft = afterimage_journal::log::Draft::of(RecordKind::Write);
    (draft.volume, draft.len, draft.flags, draft.scope) = (1, 4096, FLAG_COPIED, 1);
    let copied = bed.journal().append(&draft, &[9; 4096]).unwrap();
    bed.journal().append_meta(&copy(CopyEvent::End)).unwrap();
    let opened = bed.open_session();
    let cover = bed.write_at(0, 2048, &[3; 2048]);
    bed.stop_agent();
    let (unit, found) = entry(&bed.open(), copied);
    flip(&unit, found.at + 64);
    let report = verified(&bed);
    assert_eq!(report.refused.len(), 1, "{report:?}");
    assert_eq!((report.refused[0].from, report.refused[0].to), (opened, Some(cover - 1)));
    let out = tempfile::tempdir().unwrap();
    assert!(restore_at(&bed.open(), opened, out.path(), Format::Raw).is_err());
    restore_at(&bed.open(), cover, out.path(), Format::Raw).unwrap();
}

/// Flips a byte of each structure and claims: it is found, or it is in no structure; and whatever
/// is still restored is right.
#[test]
fn one_flipped_byte_anywhere_is_found_and_never_restored() {
    let mut bed = Bed::new(4, &[128 << 10]);
    bed.open_session();
    bed.run(40);
    bed.stop_agent();
    let recovery = bed.open();
    let history = &recovery.history;
    let path = history.units[0].path.clone();
    let unit_bytes = history.identity.unit_bytes;
    let mut places: Vec<(&str, u64)> = vec![
        ("unit header: magic", 0),
        ("unit header: version", 8),
        ("unit header: group", 20),
        ("unit header: salt", 40),
        ("unit header: checksum", 121),
        ("footer: magic", unit_bytes - 64),
        ("footer: count", unit_bytes - 56),
        ("footer: index checksum", unit_bytes - 24),
        ("footer: checksum", unit_bytes - 20),
    ];
    let all = entries(history);
    let data = all.iter().filter(|e| e.record.payload_bytes >= 4096).nth(5).unwrap();
    for (what, offset) in [
        ("record: magic", 0),
        ("record: length", 4),
        ("record: frame checksum", 8),
        ("record: kind", 12),
        ("record: address", 16),
        ("record: time", 40),
        ("record: header checksum", 52),
        ("record: number", 56),
        ("record: payload", 64 + 99),
    ] {
        places.push((what, data.at + offset));
    }
    let all = entries(history);
    let of_kind = |kind| all.iter().find(|e| e.record.kind == kind).unwrap();
    use afterimage_journal::format::record::Kind as K;
    places.push(("configuration", of_kind(K::Config).at + 64 + 10));
    places.push(("session", of_kind(K::Session).at + 64 + 10));
    places.push(("watermark", of_kind(K::Watermark).at + 16));
    let last = all.iter().filter(|e| e.unit == 0).map(|e| e.at).max().unwrap();
    places.push(("index", index_at(&path, last)));
    drop(recovery);
    for (what, at) in places {
        flip(&path, at);
        match afterimage_restore::open(&bed.state(), GROUP) {
            Ok(recovery) => judge(&bed, &recovery, what),
            Err(error) => assert!(what.contains("version"), "{what}: {error}"),
        }
        flip(&path, at);
    }
    assert!(verified(&bed).is_sound());
}

/// The damage is found; each point is either restored right or refused, as was announced.
fn judge(bed: &Bed, recovery: &Recovery, what: &str) {
    let report = verify(recovery, &mut |_| {}).unwrap();
    assert!(!report.is_sound(), "{what}: not found");
    let out = tempfile::tempdir().unwrap();
    for (seq, disks) in &bed.known {
        let announced = is_refused(&report, *seq);
        match restore_at(recovery, *seq, out.path(), Format::Raw) {
            Ok(restored) => {
                let image = std::fs::read(&restored.disks[0].path).unwrap();
                assert!(image == disks[0], "{what}: wrong data at {seq}");
                assert!(!announced, "{what}: {seq} is said to be refused");
            }
            Err(e) => {
                assert_eq!(e.kind(), Kind::NotRestorable, "{what}: {e}");
                assert!(announced, "{what}: {seq} is refused unannounced: {e}");
            }
        }
    }
}

fn is_refused(report: &VerifyReport, seq: Seq) -> bool {
    report.refused.iter().any(|r| r.from <= seq && r.to.is_none_or(|to| seq <= to))
}

/// The first byte behind the records of a sealed unit: where its index begins, or near it.
fn index_at(unit: &std::path::Path, last_record: u64) -> u64 {
    let bytes = std::fs::read(unit).unwrap();
    let footer = bytes.len() - 64;
    let at = u64::from_le_bytes(bytes[footer + 32..footer + 40].try_into().unwrap());
    assert!(at > last_record, "{at} {last_record}");
    at + 8
}

#[test]
fn a_missing_unit_refuses_what_lies_behind_it_and_is_named() {
    let mut bed = Bed::eventful(5);
    bed.stop_agent();
    let recovery = bed.open();
    let middle = bed.known[bed.known.len() / 2].0;
    let (unit, found) = entry(&recovery, middle);
    let number = recovery.history.units[found.unit as usize].number();
    let first = recovery.history.units[found.unit as usize].first_seq;
    drop(recovery);
    std::fs::remove_file(&unit).unwrap();
    let report = verified(&bed);
    let said = format!("{:?}", report.damage);
    assert!(said.contains(&format!("to {number} are missing")), "{said}");
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    let mut kept = 0;
    for (seq, disks) in &bed.known {
        match restore_at(&recovery, *seq, out.path(), Format::Raw) {
            Ok(r) => {
                kept += 1;
                assert!(!is_refused(&report, *seq), "{seq} is said to be refused");
                for (disk, expected) in r.disks.iter().zip(disks) {
                    assert!(std::fs::read(&disk.path).unwrap() == *expected, "{seq}");
                }
            }
            Err(e) => {
                assert!(*seq >= first && is_refused(&report, *seq), "{seq}: {e}");
                assert_eq!(e.kind(), Kind::NotRestorable, "{e}");
            }
        }
    }
    assert!(kept > 0 && kept < bed.known.len(), "{kept}");
}

#[test]
fn a_unit_cut_short_is_damage_and_names_its_record() {
    let o = overwritten();
    let (unit, found) = entry(&o.bed.open(), o.last);
    let recovery = o.bed.open();
    // Behind the loading: the index was read, the payload is gone.
    recovery.history.records(found.unit).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&unit).unwrap();
    file.set_len(found.at + 64).unwrap();
    let error = restore_at(&recovery, o.last, o.bed.dir.path(), Format::Raw).unwrap_err();
    assert!(error.to_string().contains("can't be read"), "{error}");
    assert_eq!(error.kind(), Kind::NotRestorable);
    // Its neighbours, which were read by the same call, are not blamed.
    let Error::Damaged { record, .. } = error else { panic!("{error}") };
    assert_eq!(record.seq, o.last);
    restore_at(&recovery, o.whole, o.bed.dir.path(), Format::Raw).unwrap();
}
