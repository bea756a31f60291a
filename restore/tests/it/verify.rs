//! Checking: a sound journal is found sound, and the two ways to a point agree, or it shows.

use crate::bed::{Bed, entries, flip};
use afterimage_journal::format::record::Kind as RecordKind;
use afterimage_restore::{Kind, Progress, When, verify, verify_at};

#[test]
fn a_sound_journal_is_sound_open_and_closed() {
    let mut bed = Bed::eventful(1);
    for round in 0..2 {
        let recovery = bed.open();
        let mut seen: Vec<Progress> = vec![];
        let report = verify(&recovery, &mut |p| seen.push(p)).unwrap();
        assert!(report.is_sound() && report.refused.is_empty(), "{round}: {:?}", report.damage);
        assert_eq!(report.records, entries(&recovery.history).len() as u64);
        assert_eq!(report.units, recovery.history.units.len() as u64);
        let bytes: u64 =
            entries(&recovery.history).iter().map(|e| u64::from(e.record.payload_bytes)).sum();
        assert_eq!(report.bytes, bytes);
        assert_eq!(seen.last().unwrap().done_bytes, bytes);
        if round == 0 {
            bed.stop_agent();
        }
    }
}

#[test]
fn both_ways_to_a_point_lead_to_the_digest_of_what_the_disks_held() {
    let bed = Bed::eventful(2);
    let recovery = bed.open();
    for (seq, disks) in bed.known.iter().step_by(4) {
        let point = recovery.resolve(&When::Seq(*seq)).unwrap();
        let mut last = None;
        let report = verify_at(&recovery, point, &mut |p| last = Some(p)).unwrap();
        assert!(report.is_equal(), "{report:?}");
        assert_eq!(report.disks.len(), disks.len());
        for (disk, held) in report.disks.iter().zip(disks) {
            assert_eq!(disk.restored, blake3::hash(held).to_hex().to_string(), "seq {seq}");
            assert_eq!(disk.replayed, disk.restored);
        }
        let last = last.unwrap();
        assert_eq!(last.done_bytes, last.total_bytes);
    }
}

#[test]
fn a_point_that_needs_a_damaged_record_has_no_digest() {
    let mut bed = Bed::new(3, &[64 << 10]);
    bed.open_session();
    let covered = bed.write_at(0, 0, &[1; 4096]);
    bed.write_at(0, 0, &[2; 4096]);
    let needed = bed.write_at(0, 8192, &[3; 4096]);
    bed.stop_agent();
    let recovery = bed.open();
    let place = |seq| {
        let entry = recovery.history.entry(seq).unwrap().unwrap();
        assert_eq!(entry.record.kind, RecordKind::Write);
        (recovery.history.units[entry.unit as usize].path.clone(), entry.at + 64)
    };
    let point = recovery.resolve(&When::Seq(needed)).unwrap();
    // What is overwritten may be rotten: neither way uses it.
    let (unit, at) = place(covered);
    flip(&unit, at);
    assert!(verify_at(&recovery, point, &mut |_| {}).unwrap().is_equal());
    let (unit, at) = place(needed);
    flip(&unit, at);
    let error = verify_at(&recovery, point, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::NotRestorable, "{error}");
}
