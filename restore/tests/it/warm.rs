//! Checkpoints with memory, as a model has it: what a stream holds, what is refused and how, and
//! that disks are restored as ever beside it.

use crate::bed::{Bed, GUEST, flip, guest, names, options, restore_at};
use crate::ram::{PAGE, Ram, STATE_VOLUME, tail};
use afterimage_journal::Seq;
use afterimage_journal::meta::{Checkpoint, CheckpointKind, Memory, Meta};
use afterimage_restore::{
    Error, Facts, Format, Host, Kind, Kvm, Program, Recovery, Report, RestoreOptions, Result, When,
    open, plan_warm, restore_warm, verify_at,
};
use std::path::Path;

/// A host that everything fits on.
pub struct Roomy;

impl Host for Roomy {
    fn facts(&self, _: &str, _: bool) -> Facts {
        Facts {
            program: Program::Found { version: None, machines: vec![] },
            kvm: Kvm::Works,
            memory_available_bytes: None,
            is_root: true,
            has_userfault: true,
        }
    }
}

fn warm(recovery: &Recovery, when: &When, to: &Path) -> Result<Report> {
    let options = RestoreOptions { to: to.to_owned(), disks: vec![], format: Format::Raw };
    let point = recovery.resolve_warm(when)?;
    let plan = plan_warm(recovery, &point, &options, &Roomy)?;
    restore_warm(recovery, &plan, &mut |_| {})
}

/// A checkpoint, and what it has to give.
struct Known {
    id: u64,
    instant: Seq,
    committed: Seq,
    disks: Vec<Vec<u8>>,
    ram: Ram,
}

/// A guest with two disks and three RAM blocks, one of them never touched; checkpoints with disk
/// writes before, between instant and commit, and behind.
fn eventful(seed: u64) -> (Bed, Vec<Known>) {
    let mut bed = Bed::new(seed, &[256 << 10, 64 << 10]);
    bed.open_session();
    let mut ram = Ram::made_up(&[("pc.ram", 1 << 20), ("vga.vram", 64 << 10), ("rom", PAGE)]);
    ram.configure(&mut bed);
    let mut known: Vec<Known> = vec![];
    for id in 1..=4 {
        bed.run(10);
        let mut dice = std::mem::replace(&mut bed.dice, crate::bed::Dice::new(0));
        ram.run(&mut dice, 60);
        bed.dice = dice;
        ram.parts.tail = [&[0x04, id as u8][..], &tail("running")[2..]].concat();
        let (instant, disks) = (bed.write(), bed.disks.clone());
        bed.note(instant);
        // The guest goes on while its memory is read.
        bed.run(5);
        let before = known.last().map(|k| &k.ram);
        let committed = ram.checkpoint(&bed, before, id, instant);
        known.push(Known { id, instant, committed, disks, ram: ram.clone() });
    }
    // One that was cut off: pages that nothing names.
    let mut dice = std::mem::replace(&mut bed.dice, crate::bed::Dice::new(0));
    ram.run(&mut dice, 60);
    bed.dice = dice;
    ram.append(&bed, known.last().map(|k| &k.ram));
    bed.run(10);
    (bed, known)
}

#[test]
fn each_checkpoint_gives_disks_and_memory_of_its_instant() {
    for seed in 1..=3 {
        let (mut bed, known) = eventful(seed);
        if seed == 2 {
            bed.stop_agent();
        }
        let recovery = bed.open();
        let out = tempfile::tempdir().unwrap();
        for k in &known {
            let to = out.path().join(format!("{}", k.id));
            let report = warm(&recovery, &When::Checkpoint(k.id), &to).unwrap();
            assert_eq!(report.seq, k.instant);
            assert!(k.instant < k.committed);
            for (disk, expected) in report.disks.iter().zip(&k.disks) {
                assert!(std::fs::read(&disk.path).unwrap() == *expected, "#{}", k.id);
            }
            let restored = Ram::read(report.memory.as_ref().unwrap());
            assert!(restored.bytes == k.ram.bytes, "memory of #{}", k.id);
            assert_eq!(restored.parts, k.ram.parts);
            assert_eq!(names(&to), ["web-d0.raw", "web-d1.raw", "web.memory"]);
            let point = recovery.resolve(&When::Seq(k.instant)).unwrap();
            let report = verify_at(&recovery, point, &mut |_| {}).unwrap();
            assert!(report.is_equal() && report.memory.len() == 4, "{report:?}");
            let hash = blake3::hash(&k.ram.bytes[0]).to_hex().to_string();
            assert_eq!(report.memory[0].restored, hash);
        }
        // And every other point as ever.
        for (seq, disks) in &bed.known {
            let report = restore_at(&recovery, *seq, out.path(), Format::Raw).unwrap();
            assert_eq!((report.disks.len(), &report.memory), (2, &None));
            for (disk, expected) in report.disks.iter().zip(disks) {
                assert!(std::fs::read(&disk.path).unwrap() == *expected);
            }
        }
    }
}

#[test]
fn a_moment_means_a_checkpoint_exactly_or_is_refused_with_its_neighbours() {
    let (bed, known) = eventful(4);
    let recovery = bed.open();
    let head = recovery.history.head;
    let [first, second, third, last] = &known[..] else { panic!() };
    let found = |when: &When| recovery.resolve_warm(when).unwrap().id;
    assert_eq!(found(&When::Latest), last.id);
    assert_eq!(found(&When::Seq(second.instant)), second.id);
    assert_eq!(found(&When::Tag("tag3".into())), third.id);
    let wall_ns = recovery.resolve_warm(&When::Checkpoint(1)).unwrap().point.wall_ns;
    assert_eq!(found(&When::Time(wall_ns)), first.id);
    assert_eq!(recovery.warm_at(third.instant).unwrap().committed, third.committed);
    let refused = |when: When, words: &[String]| {
        let error = recovery.resolve_warm(&when).unwrap_err();
        assert_eq!(error.kind(), Kind::NotRestorable, "{when:?}: {error}");
        for word in words {
            assert!(error.to_string().contains(word), "{when:?}: {error}: lacks {word}");
        }
    };
    let near = |k: &Known, side: &str| {
        let own = recovery.resolve_warm(&When::Checkpoint(k.id)).unwrap().point;
        let time = afterimage_restore::wall_clock(own.wall_ns);
        format!("#{} ({time}, seq:{}) {side}", k.id, k.instant)
    };
    let between = vec![near(second, "before"), near(third, "after"), "without --warm".into()];
    refused(When::Seq(second.instant + 1), &between);
    // Not even the number of the commit: its disks are of another moment.
    refused(When::Seq(second.committed), &between);
    refused(When::Seq(head), &[near(last, "before"), "none after".into()]);
    refused(When::Seq(first.instant - 1), &["none before".into(), near(first, "after")]);
    refused(When::Time(wall_ns + 1_000_000), &["has no memory of shop".into()]);
    refused(When::Seq(head + 9), &["doesn't exist yet".into()]);
    refused(When::Checkpoint(9), &["no checkpoint #9".into()]);
}

#[test]
fn a_checkpoint_without_memory_is_none_and_a_group_without_any_says_so() {
    let mut bed = Bed::new(5, &[64 << 10]);
    bed.open_session();
    bed.run(3);
    let mark = Checkpoint { id: 1, kind: CheckpointKind::Crash, tag: None, memory: None };
    bed.journal().append_meta(&Meta::Mark(mark)).unwrap();
    let recovery = bed.open();
    let error = recovery.resolve_warm(&When::Checkpoint(1)).unwrap_err();
    assert!(matches!(error, Error::NotWarm { .. }), "{error}");
    assert!(error.to_string().contains("no checkpoint with memory"), "{error}");
    assert!(recovery.resolve_warm(&When::Latest).is_err());
}

#[test]
fn a_damaged_page_costs_the_checkpoints_that_need_it_and_no_disk() {
    let (mut bed, known) = eventful(6);
    bed.stop_agent();
    // A page that the third checkpoint wrote.
    let recovery = bed.open();
    let rotten = recovery.history.entries().map(|e| e.unwrap()).find(|e| {
        let record = &e.record;
        record.volume == STATE_VOLUME + 1
            && record.payload_bytes > 0
            && (known[1].committed..known[2].committed).contains(&record.seq)
    });
    let rotten = rotten.unwrap();
    let unit = recovery.history.units[rotten.unit as usize].path.clone();
    drop(recovery);
    flip(&unit, rotten.at + 64 + 100);
    let recovery = bed.open();
    let out = tempfile::tempdir().unwrap();
    let warm_at =
        |id: u64| warm(&recovery, &When::Checkpoint(id), &out.path().join(format!("{id}")));
    warm_at(1).unwrap();
    warm_at(2).unwrap();
    let error = warm_at(3).unwrap_err();
    assert_eq!(error.kind(), Kind::NotRestorable);
    let said = error.to_string();
    for part in [
        "#3 (seq:".to_owned(),
        unit.display().to_string(),
        format!("record {} at byte {}", rotten.record.seq, rotten.at),
        "web/pc.ram at byte".into(),
        "Without --warm its disks".into(),
        "#2 (".into(),
    ] {
        assert!(said.contains(&part), "{said}: lacks {part}");
    }
    assert_eq!(names(&out.path().join("3")), [""; 0]);
    let report = restore_at(&recovery, known[2].instant, out.path(), Format::Raw).unwrap();
    assert!(std::fs::read(&report.disks[0].path).unwrap() == known[2].disks[0]);
}

#[test]
fn a_damaged_device_state_is_found_before_anything_is_written() {
    let (mut bed, known) = eventful(7);
    bed.stop_agent();
    let recovery = bed.open();
    let of_state = |e: &afterimage_journal::history::Entry| e.record.volume == STATE_VOLUME;
    let all = recovery.history.entries().map(|e| e.unwrap());
    let rotten = all.filter(of_state).find(|e| e.record.seq < known[0].committed).unwrap();
    let unit = recovery.history.units[rotten.unit as usize].path.clone();
    drop(recovery);
    flip(&unit, rotten.at + 64 + 3);
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("out");
    let error = warm(&bed.open(), &When::Checkpoint(1), &to).unwrap_err();
    assert!(matches!(error, Error::MemoryDamaged { id: 1, .. }), "{error}");
    assert!(error.to_string().contains(&unit.display().to_string()), "{error}");
    assert!(!to.exists());
    warm(&bed.open(), &When::Checkpoint(2), &to).unwrap();
}

#[test]
fn pages_that_came_in_parts_of_sectors_are_put_together() {
    let mut bed = Bed::with(8, &[64 << 10], |_| options());
    bed.open_session();
    let mut ram = Ram::made_up(&[("pc.ram", 8 * PAGE), ("rom", PAGE)]);
    ram.configure(&mut bed);
    let volume = STATE_VOLUME + 1;
    for (at, len) in [(512, 512), (3 * PAGE - 512, 1024), (5 * PAGE + 1024, PAGE), (7 * PAGE, 512)]
    {
        let mut bytes = vec![0; len];
        bed.dice.fill(&mut bytes);
        ram.bytes[0][at..at + len].copy_from_slice(&bytes);
        bed.journal().append_memory(volume, at as u64, &bytes).unwrap();
    }
    let instant = bed.write();
    let same = ram.clone();
    ram.checkpoint(&bed, Some(&same), 1, instant);
    let out = tempfile::tempdir().unwrap();
    let report = warm(&bed.open(), &When::Latest, out.path()).unwrap();
    assert!(Ram::read(report.memory.as_ref().unwrap()).bytes == ram.bytes);
}

#[test]
fn of_two_guests_the_one_without_memory_starts_cold() {
    let mut bed = Bed::new(9, &[64 << 10]);
    let mut other = guest("db");
    other.command_line = vec!["qemu-system-x86_64".into(), "-hda".into(), "/images/d0.img".into()];
    bed.config.guests.push(other);
    bed.config.volumes.push(crate::bed::volume(7, "db", "d0", 4096));
    let ram = Ram::made_up(&[("pc.ram", 2 * PAGE)]);
    ram.configure(&mut bed);
    bed.open_session();
    let session = afterimage_journal::meta::Session {
        id: 90,
        guest: "db".into(),
        event: afterimage_journal::meta::SessionEvent::Open,
        reason: String::new(),
        upto: None,
        full: true,
        images: vec![],
        maps: vec![],
    };
    let instant = bed.journal().append_meta(&Meta::Session(session)).unwrap();
    ram.checkpoint(&bed, None, 1, instant);
    let out = tempfile::tempdir().unwrap();
    let report = warm(&bed.open(), &When::Latest, &out.path().join("all")).unwrap();
    assert_eq!(report.memories.len(), 1);
    assert_eq!(report.memories[0].guest, GUEST);
    assert!(report.warnings.iter().any(|w| w.contains("db: ") && w.contains("cold")), "{report:?}");
    let script = std::fs::read_to_string(out.path().join("all/db.start.sh")).unwrap();
    assert!(!script.contains("incoming"), "{script}");
    let alone = open(&bed.state(), "db").unwrap();
    let error = alone.resolve_warm(&When::Latest).unwrap_err();
    assert!(error.to_string().contains("has no memory of db"), "{error}");
    assert_eq!(open(&bed.state(), GUEST).unwrap().resolve_warm(&When::Latest).unwrap().id, 1);
}

#[test]
fn a_checkpoint_that_says_what_cannot_be_is_refused_and_not_believed() {
    let mut bed = Bed::new(10, &[64 << 10]);
    bed.open_session();
    let ram = Ram::made_up(&[("pc.ram", 4 * PAGE)]);
    ram.configure(&mut bed);
    let instant = bed.write();
    ram.append(&bed, None);
    let wall_ns = bed.open().history.point(instant).wall_ns;
    let mut id = 0;
    let mut tell = |change: &dyn Fn(&mut afterimage_journal::meta::GuestMemory)| {
        id += 1;
        let mut memory = ram.described();
        change(&mut memory);
        let memory = Some(Memory { instant, wall_ns, guests: vec![memory] });
        let mark = Checkpoint { id, kind: CheckpointKind::Crash, tag: None, memory };
        bed.journal().append_meta(&Meta::Mark(mark)).unwrap();
        let out = tempfile::tempdir().unwrap();
        let to = out.path().join("out");
        let recovery = bed.open();
        // What the journal can tell isn't even listed.
        let listed = recovery.history.checkpoints.iter().find(|c| c.checkpoint.id == id);
        let Some(point) = listed.and_then(|c| recovery.memory_of(c)) else { return };
        let options = RestoreOptions { to: to.clone(), disks: vec![], format: Format::Raw };
        let plan = plan_warm(&recovery, &point, &options, &Roomy);
        let result = plan.and_then(|plan| restore_warm(&recovery, &plan, &mut |_| {}));
        let error = result.unwrap_err();
        assert!(matches!(error, Error::MemoryDamaged { .. }), "{error}");
        assert!(!to.exists() || names(&to).is_empty());
    };
    tell(&|m| m.blocks[0].bytes *= 2);
    tell(&|m| m.blocks[0].bytes += 512);
    tell(&|m| m.blocks[0].volume = 77);
    tell(&|m| m.state = 78);
    tell(&|m| m.head_bytes = u64::MAX);
    tell(&|m| m.tail_bytes = 65 << 20);
    tell(&|m| m.head_bytes -= 1);
    tell(&|m| m.tail_bytes -= 1);
    tell(&|m| m.blocks.clear());
    tell(&|m| m.blocks[0].id = "x".repeat(300));
}
