//! Points restore to what the disks held, in every format, and only recovery points do.

use crate::bed::{Bed, Dice, GUEST, SECTOR, guest, names, restore_at, restore_to, volume};
use afterimage_journal::History;
use afterimage_journal::meta::{Copy, CopyCause, CopyEvent, Guest, Meta, Session, SessionEvent};
use afterimage_restore::{
    Error, Format, Kind, Progress, RestoreOptions, Selection, When, open, plan, restore,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

pub fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img").args(args).output().expect("qemu-img is installed");
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "qemu-img {args:?}: {text}");
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_noted_point_restores_to_what_the_disks_held() {
    for seed in 1..=4 {
        let bed = Bed::eventful(seed);
        let recovery = bed.open();
        assert!(recovery.history.units.len() > 3, "{}", recovery.history.units.len());
        let out = tempfile::tempdir().unwrap();
        for (seq, disks) in &bed.known {
            let report = restore_at(&recovery, *seq, out.path(), Format::Raw).unwrap();
            assert_eq!(report.seq, *seq);
            for (disk, expected) in report.disks.iter().zip(disks) {
                let found = std::fs::read(&disk.path).unwrap();
                assert!(found == *expected, "seed {seed}, seq {seq}, {}", disk.node);
            }
        }
    }
}

#[test]
fn qcow2_images_are_sound_and_equal_to_the_raw_ones() {
    let bed = Bed::eventful(5);
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    for (seq, _) in bed.known.iter().step_by(5) {
        let raw = restore_at(&recovery, *seq, out.path(), Format::Raw).unwrap();
        let qcow2 = restore_at(&recovery, *seq, out.path(), Format::Qcow2).unwrap();
        assert_eq!(qcow2.bytes_written, raw.bytes_written);
        for (raw, qcow2) in raw.disks.iter().zip(&qcow2.disks) {
            let (raw, qcow2) = (text(&raw.path), text(&qcow2.path));
            qemu_img(&["check", "-q", "-f", "qcow2", qcow2]);
            qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", raw, qcow2]);
            // A comparison takes a shorter image for one with zeroes at its end.
            let header = std::fs::read(qcow2).unwrap();
            let bytes = u64::from_be_bytes(header[24..32].try_into().unwrap());
            assert_eq!(bytes, std::fs::metadata(raw).unwrap().len());
        }
    }
}

#[test]
fn a_large_qcow2_image_has_sound_tables_and_stays_sparse() {
    // 70 GiB: many L2 tables; data enough for a second refcount block would be 2 GiB, so the
    // tables' own arithmetic is tried with scattered writes.
    let bytes = 70u64 << 30;
    let mut bed = Bed::new(6, &[SECTOR]);
    bed.config.volumes[0].bytes = bytes;
    bed.journal().set_config(&bed.config).unwrap();
    bed.open_session();
    let mut last = 0;
    let mut places: Vec<u64> = (0..40).map(|i| i * 1_800_000_000 / 512 * 512 + 63 * 1024).collect();
    places.push(bytes - 4096);
    for (i, addr) in places.iter().enumerate() {
        let mut draft =
            afterimage_journal::log::Draft::of(afterimage_journal::format::record::Kind::Write);
        (draft.volume, draft.addr, draft.len) = (1, *addr, 4096);
        last = bed.journal().append(&draft, &[i as u8 + 1; 4096]).unwrap();
    }
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    let raw = restore_at(&recovery, last, out.path(), Format::Raw).unwrap();
    let qcow2 = restore_at(&recovery, last, out.path(), Format::Qcow2).unwrap();
    let (raw, qcow2) = (&raw.disks[0].path, &qcow2.disks[0].path);
    assert_eq!(raw.metadata().unwrap().len(), bytes);
    for image in [raw, qcow2] {
        let allocated = image.metadata().unwrap().blocks() * 512;
        assert!(allocated < 16 << 20, "{} takes {allocated} bytes", image.display());
    }
    qemu_img(&["check", "-q", "-f", "qcow2", text(qcow2)]);
    qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", text(raw), text(qcow2)]);
}

#[test]
fn zeroes_stay_holes_and_are_not_counted() {
    let mut bed = Bed::new(7, &[4 << 20]);
    bed.open_session();
    bed.write_at(0, 0, &vec![0; 64 << 10]);
    bed.write_at(0, 1 << 20, &vec![9; 64 << 10]);
    bed.write_at(0, 2 << 20, &vec![7; 64 << 10]);
    let last = bed.zero_at(0, 2 << 20, 64 << 10);
    let out = tempfile::tempdir().unwrap();
    let recovery = bed.open();
    for format in [Format::Raw, Format::Qcow2] {
        let report = restore_at(&recovery, last, out.path(), format).unwrap();
        assert_eq!(report.bytes_written, 64 << 10);
        let meta = report.disks[0].path.metadata().unwrap();
        assert!(meta.blocks() * 512 < 512 << 10, "{format:?}: {}", meta.blocks());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_moment_in_a_gap_is_refused_with_the_points_on_both_sides() {
    let mut bed = Bed::new(9, &[64 << 10]);
    bed.open_session();
    let before = bed.write_at(0, 0, &[1; 512]);
    bed.kill_agent();
    bed.restart_agent();
    let inside = bed.write_at(0, 0, &[2; 512]);
    let after = bed.open_session();
    let recovery = bed.open();
    let error = recovery.resolve(&When::Seq(inside)).unwrap_err();
    assert_eq!((error.kind(), error.kind().exit_code()), (Kind::NotRestorable, 3));
    let said = error.to_string();
    for part in [
        &format!("seq:{inside} lies in a gap (the agent was not running). Nearest points: "),
        &format!("(seq:{before}) before, "),
        &format!("(seq:{after}) after"),
    ] {
        assert!(said.contains(part.as_str()), "{said}");
    }
    // By time as well, and the point itself is no way around it.
    let ns = recovery.history.wall_ns(inside);
    let error = recovery.resolve(&When::Time(ns)).unwrap_err().to_string();
    assert!(error.contains(&afterimage_restore::wall_clock(ns)), "{error}");
    let out = tempfile::tempdir().unwrap();
    let options = RestoreOptions { to: out.path().join("x"), disks: vec![], format: Format::Raw };
    let point = recovery.history.point(inside);
    let error = restore(&recovery, point, &options, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::NotRestorable);
    assert!(!options.to.exists());
}

#[test]
fn a_detached_guest_keeps_its_points_and_the_reason_is_said() {
    let mut bed = Bed::new(19, &[64 << 10]);
    bed.open_session();
    let last = bed.write();
    bed.note(last);
    let closed = bed.close_session();
    let outside = bed.write();
    let recovery = bed.open();
    assert_eq!(recovery.resolve(&When::Latest).unwrap().seq, closed);
    let error = recovery.resolve(&When::Seq(outside)).unwrap_err().to_string();
    assert!(error.contains("lies in a gap (detached by hand)"), "{error}");
    assert!(error.contains("none after"), "{error}");
    let out = tempfile::tempdir().unwrap();
    let report = restore_at(&recovery, closed, out.path(), Format::Raw).unwrap();
    assert!(std::fs::read(&report.disks[0].path).unwrap() == bed.known.last().unwrap().1[0]);
}

#[test]
fn the_future_and_the_time_before_the_window_are_refused() {
    let mut bed = Bed::new(10, &[64 << 10]);
    let recovery = bed.open();
    let early = recovery.resolve(&When::Latest).unwrap_err();
    assert!(early.to_string().contains("there is no recovery point yet"), "{early}");
    bed.open_session();
    bed.write();
    let recovery = bed.open();
    for when in [When::Time(1), When::Seq(1 << 40), When::Checkpoint(7), When::Tag("x".into())] {
        let error = recovery.resolve(&when).unwrap_err();
        assert_eq!(error.kind(), Kind::NotRestorable, "{error}");
    }
    let future = recovery.history.wall_ns(recovery.history.head) + 60_000_000_000;
    let error = recovery.resolve(&When::Time(future)).unwrap_err();
    assert!(error.to_string().contains("behind the newest recovery point"), "{error}");
}

#[test]
fn disks_are_chosen_by_every_name_they_have() {
    let mut bed = Bed::new(11, &[64 << 10, 64 << 10]);
    bed.open_session();
    let last = bed.write_at(1, 512, &[3; 512]);
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    let uuid = bed.config.volumes[1].uuid.to_string();
    let wanted = ["d1", "virtio2", "/images/d1.img", "d1.img", "web/d1", &uuid];
    for (i, name) in wanted.iter().enumerate() {
        let to = out.path().join(i.to_string());
        let report = restore_to(&recovery, last, &to, Format::Raw, &[name]).unwrap();
        assert_eq!(names(&to), ["web-d1.raw"], "{name}");
        assert_eq!(report.disks[0].node, "d1");
    }
    let to = out.path().join("none");
    let error = restore_to(&recovery, last, &to, Format::Raw, &["d7"]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    let said = error.to_string();
    assert!(said.contains("\"d7\"") && said.contains("web/d0 (virtio1) on"), "{said}");
    assert!(!to.exists());
}

/// Adds a second guest with a disk of the same node name, whose first sync has begun.
fn add_guest(bed: &mut Bed) -> Guest {
    let other = guest("db");
    bed.config.guests.push(other.clone());
    bed.config.volumes.push(volume(9, "db", "d0", 64 << 10));
    bed.journal().set_config(&bed.config).unwrap();
    other
}

fn session_of(guest: &str, id: u32) -> Meta {
    Meta::Session(Session {
        id,
        guest: guest.into(),
        event: SessionEvent::Open,
        reason: String::new(),
        upto: None,
        full: true,
        images: vec![],
        maps: vec![],
    })
}

#[test]
fn a_guest_in_its_first_sync_is_left_out_of_the_groups_points_and_has_none() {
    let mut bed = Bed::new(12, &[64 << 10]);
    bed.open_session();
    add_guest(&mut bed);
    let early = bed.write_at(0, 0, &[1; 512]);
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    let report = restore_at(&recovery, early, out.path(), Format::Raw).unwrap();
    assert_eq!((report.disks.len(), &report.skipped[..]), (1, &["db/d0".to_owned()][..]));
    let to = out.path().join("named");
    let error = restore_to(&recovery, early, &to, Format::Raw, &["db/d0"]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotRestorable);
    let error = restore_to(&recovery, early, &to, Format::Raw, &["d0"]).unwrap_err();
    assert!(error.to_string().contains("more than one disk"), "{error}");
    let by_guest = open(&bed.state(), "db").unwrap();
    assert_eq!(by_guest.resolve(&When::Latest).unwrap_err().kind(), Kind::NotRestorable);
    // Once it is level, both are there, and each alone.
    let late = bed.journal().append_meta(&session_of("db", 50)).unwrap();
    let by_guest = open(&bed.state(), "db").unwrap();
    assert_eq!(by_guest.resolve(&When::Latest).unwrap().seq, by_guest.history.head);
    let error = by_guest.resolve(&When::Seq(early)).unwrap_err();
    assert!(error.to_string().contains(&format!("(seq:{late}) after")), "{error}");
    let report = restore_at(&by_guest, late, out.path(), Format::Raw).unwrap();
    assert_eq!(report.disks.len(), 1);
    assert!(report.disks[0].path.ends_with("db-d0.raw"));
    let to = out.path().join("both");
    let report = restore_to(&bed.open(), late, &to, Format::Raw, &[]).unwrap();
    assert_eq!((report.disks.len(), report.skipped.len()), (2, 0));
}

#[test]
fn a_disk_whose_first_copy_still_runs_is_not_restored() {
    let mut bed = Bed::new(13, &[64 << 10]);
    bed.open_session();
    bed.config.volumes.push(volume(2, GUEST, "new", 64 << 10));
    bed.journal().set_config(&bed.config).unwrap();
    let copy = |event| {
        Meta::Copy(Copy {
            id: 90,
            volume: 2,
            event,
            cause: CopyCause::Initial,
            upto: 0,
            whole: true,
        })
    };
    let during = bed.journal().append_meta(&copy(CopyEvent::Start)).unwrap();
    let done = bed.journal().append_meta(&copy(CopyEvent::End)).unwrap();
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    let report = restore_at(&recovery, during, out.path(), Format::Raw).unwrap();
    assert_eq!(report.skipped, ["web/new"]);
    let report = restore_at(&recovery, done, out.path(), Format::Raw).unwrap();
    assert_eq!(report.disks.len(), 2);
}

#[test]
fn progress_only_grows_and_ends_at_the_whole() {
    let bed = Bed::eventful(14);
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    let point = recovery.resolve(&When::Latest).unwrap();
    let options = RestoreOptions { to: out.path().to_owned(), disks: vec![], format: Format::Raw };
    let mut seen: Vec<Progress> = vec![];
    restore(&recovery, point, &options, &mut |p| seen.push(p)).unwrap();
    assert!(seen.len() > 2 && seen.is_sorted_by_key(|p| p.done_bytes));
    let last = seen.last().unwrap();
    assert_eq!(last.done_bytes, last.total_bytes);
}

#[test]
fn the_report_is_the_json_that_programs_rely_on() {
    let mut bed = Bed::new(15, &[64 << 10]);
    bed.open_session();
    let last = bed.write();
    let out = tempfile::tempdir().unwrap();
    let report = restore_at(&bed.open(), last, out.path(), Format::Raw).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["bytes_written", "disks", "memory", "seconds", "seq", "time"]);
    assert!(json["memory"].is_null() && json["seq"] == last);
    assert_eq!(json["disks"][0]["node"], "d0");
    assert!(json["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn a_journal_is_restored_while_it_is_written() {
    let mut bed = Bed::new(16, &[256 << 10]);
    bed.open_session();
    bed.run(20);
    let (seq, disks) = bed.known.last().unwrap().clone();
    let journal = bed.journal().clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice::new(1);
            let mut bytes = vec![0; 16 << 10];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                dice.fill(&mut bytes);
                let mut draft = afterimage_journal::log::Draft::of(
                    afterimage_journal::format::record::Kind::Write,
                );
                (draft.volume, draft.len) = (1, bytes.len() as u32);
                draft.addr = dice.below(8) * (16 << 10);
                if journal.append(&draft, &bytes).is_err() {
                    break;
                }
                // Units of 1 MiB: give the keeper its turn.
                std::thread::yield_now();
            }
        });
        let out = tempfile::tempdir().unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..10 {
                let recovery = bed.open();
                assert!(recovery.history.damage.is_empty(), "{:?}", recovery.history.damage);
                let to = out.path().join(format!("old-{round}"));
                let report = restore_to(&recovery, seq, &to, Format::Raw, &[]).unwrap();
                assert!(std::fs::read(&report.disks[0].path).unwrap() == disks[0]);
                let latest = recovery.resolve(&When::Latest).unwrap();
                let to = out.path().join(format!("new-{round}"));
                restore_to(&recovery, latest.seq, &to, Format::Raw, &[]).unwrap();
            }
        }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        result.unwrap();
    });
}

#[test]
fn the_pool_alone_copied_elsewhere_restores_the_same() {
    let mut bed = Bed::eventful(17);
    bed.stop_agent();
    let copy = tempfile::tempdir().unwrap();
    let from = bed.journal_dir();
    let to = copy.path().join("pool").join(crate::bed::GROUP);
    std::fs::create_dir_all(&to).unwrap();
    for name in names(&from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
    let _ = std::fs::remove_file(to.join("pin"));
    let recovery = open(copy.path(), GUEST).unwrap();
    let out = tempfile::tempdir().unwrap();
    let (seq, disks) = bed.known.last().unwrap();
    let report = restore_at(&recovery, *seq, out.path(), Format::Raw).unwrap();
    for (disk, expected) in report.disks.iter().zip(disks) {
        assert!(std::fs::read(&disk.path).unwrap() == *expected);
    }
}

#[test]
fn a_history_without_disks_is_an_error_and_no_empty_success() {
    let mut bed = Bed::new(18, &[]);
    let seq = bed.open_session();
    let recovery = bed.open();
    let history: &History = &recovery.history;
    let error = plan(history, history.point(seq), Selection::default(), Format::Raw).unwrap_err();
    assert!(matches!(error, Error::NotRestorable { .. }), "{error}");
}
