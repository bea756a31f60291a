//! Memory beside disks: what restores, exports and checks disks leaves it alone; and compressed records,
//! wherever they are read.

use crate::bed::{Bed, GUEST, entries, flip, names, restore_at, volume};
use crate::ram;
use afterimage_journal::format::payload::ZSTD;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, CopyCause, GuestMemory, Memory, Meta, RamBlock, Volume, VolumeKind,
};
use afterimage_journal::{History, Seq, View};
use afterimage_nbd::{Client, ClientOptions};
use afterimage_restore::{ExportOptions, Format, When, export, verify, verify_at};
use std::path::Path;

const RAM: u16 = 11;
const STATE: u16 = 12;
const RAM_BYTES: u64 = 256 << 10;

/// A guest with two disks whose memory is journaled, too.
fn bed() -> Bed {
    let mut bed = Bed::new(5, &[64 << 10, 128 << 10]);
    let memory = |id, kind, name: &str, bytes| {
        let like = volume(id, GUEST, name, bytes);
        // Named as a disk is: a name alone chooses none of them.
        Volume { kind, disk: name.into(), format: "ram".into(), source: String::new(), ..like }
    };
    bed.config.volumes.push(memory(RAM, VolumeKind::Ram, "pc.ram", RAM_BYTES));
    bed.config.volumes.push(memory(STATE, VolumeKind::DeviceState, "device-state", 64 << 20));
    bed.journal().set_config(&bed.config).unwrap();
    bed.sync(CopyCause::Initial);
    bed.run(30);
    bed
}

/// Commits a checkpoint whose memory is full of a byte; its instant and its page records.
fn checkpoint(bed: &mut Bed, id: u64, byte: u8) -> (Seq, Vec<Seq>) {
    let instant = bed.write();
    bed.note(instant);
    let mut appender = bed.journal().memory_appender().unwrap();
    let chunk = vec![byte; 64 << 10];
    let addresses = (0..RAM_BYTES).step_by(chunk.len());
    let mut pages = Vec::new();
    for at in addresses {
        pages.push(appender.append(RAM, at, &chunk).unwrap());
        bed.write();
    }
    let (head, tail) = (ram::head(), ram::tail("running"));
    bed.journal().append_memory(STATE, 0, &[&head[..], &tail].concat()).unwrap();
    let guest = GuestMemory {
        guest: GUEST.into(),
        blocks: vec![RamBlock { volume: RAM, id: "pc.ram".into(), bytes: RAM_BYTES }],
        state: STATE,
        head_bytes: head.len() as u64,
        tail_bytes: tail.len() as u64,
        pause_us: 9,
    };
    let memory = Some(Memory { instant, wall_ns: 1, guests: vec![guest] });
    let mark = Checkpoint { id, kind: CheckpointKind::Crash, tag: None, memory };
    bed.journal().append_meta(&Meta::Mark(mark)).unwrap();
    (instant, pages)
}

#[test]
fn disks_are_restored_exported_and_checked_without_the_memory_beside_them() {
    let mut bed = bed();
    let (instant, _) = checkpoint(&mut bed, 1, 7);
    bed.stop_agent();
    let recovery = bed.open();
    let disks = &bed.known.last().unwrap().1;
    let to = tempfile::tempdir().unwrap();
    let report = restore_at(&recovery, instant, to.path(), Format::Raw).unwrap();
    assert_eq!(report.disks.len(), 2);
    let dir = to.path().join(format!("{instant}-raw"));
    let images = names(&dir).into_iter().filter(|n| n.ends_with(".raw")).collect::<Vec<_>>();
    assert_eq!(images.len(), 2, "{images:?}");
    for (image, disk) in images.iter().zip(disks) {
        assert!(std::fs::read(dir.join(image)).unwrap() == *disk, "{image}");
    }
    let point = recovery.resolve(&When::Checkpoint(1)).unwrap();
    assert_eq!(point.seq, instant);
    let report = verify_at(&recovery, point, &mut |_| {}).unwrap();
    assert!(report.is_equal() && report.disks.len() == 2 && report.memory.len() == 2, "{report:?}");
    let socket = to.path().join("s");
    let options = ExportOptions { socket, disks: vec![], writable: false, scratch: None };
    let exporting = export(bed.open(), point, &options).unwrap();
    assert_eq!(exporting.report.exports.len(), 2);
}

#[test]
fn a_damaged_page_takes_the_memory_of_the_checkpoints_that_need_it_and_no_disk() {
    let mut bed = bed();
    checkpoint(&mut bed, 1, 1);
    let (_, pages) = checkpoint(&mut bed, 2, 2);
    bed.write();
    let (last, _) = checkpoint(&mut bed, 3, 3);
    bed.stop_agent();
    let recovery = bed.open();
    assert!(verify(&recovery, &mut |_| {}).unwrap().is_sound());
    let entry = recovery.history.entry(pages[1]).unwrap().unwrap();
    flip(&recovery.history.units[entry.unit as usize].path, entry.at + 64 + 3);
    let recovery = bed.open();
    let report = verify(&recovery, &mut |_| {}).unwrap();
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    let damage = &report.damage[0];
    assert_eq!((damage.seq, &damage.memory[..]), (Some(pages[1]), &[2][..]));
    assert!(damage.refused.is_none() && report.refused.is_empty());
    let point = recovery.resolve(&When::Seq(last)).unwrap();
    assert!(verify_at(&recovery, point, &mut |_| {}).unwrap().is_equal());
}

/// Reads a volume in odd pieces.
fn exported(bed: &Bed, seq: Seq, dir: &Path) -> Vec<u8> {
    let recovery = bed.open();
    let point = recovery.resolve(&When::Seq(seq)).unwrap();
    let socket = dir.join("s");
    let options =
        ExportOptions { socket: socket.clone(), disks: vec![], writable: false, scratch: None };
    let _exporting = export(recovery, point, &options).unwrap();
    let options = ClientOptions { export: "d0".into(), ..ClientOptions::default() };
    let mut client = Client::connect(&socket, &options).unwrap();
    let mut bytes = vec![0xee; client.bytes() as usize];
    for (index, part) in bytes.chunks_mut(7 * 512).enumerate() {
        client.read(index as u64 * 7 * 512, part).unwrap();
    }
    bytes
}

#[test]
fn compressed_records_are_read_by_restore_export_and_replay() {
    // Nothing forbids them on a disk: so every reader of disks meets them.
    let mut bed = Bed::new(9, &[128 << 10]);
    bed.sync(CopyCause::Initial);
    let text: Vec<u8> = (0..48 << 10).map(|i| b"unplugged "[i % 10]).collect();
    for at in [0, 10 << 10, 70 << 10] {
        bed.disks[0][at..at + text.len()].copy_from_slice(&text);
        bed.journal().append_memory(1, at as u64, &text).unwrap();
    }
    let seq = bed.write_at(0, 20 << 10, &[9; 1024]);
    bed.note(seq);
    bed.stop_agent();
    let recovery = bed.open();
    let packed = entries(&recovery.history).iter().filter(|e| e.record.compression == ZSTD).count();
    assert_eq!(packed, 3);
    let to = tempfile::tempdir().unwrap();
    restore_at(&recovery, seq, to.path(), Format::Raw).unwrap();
    let dir = to.path().join(format!("{seq}-raw"));
    let image = names(&dir).into_iter().find(|n| n.ends_with(".raw")).unwrap();
    assert!(std::fs::read(dir.join(image)).unwrap() == bed.disks[0]);
    assert!(exported(&bed, seq, to.path()) == bed.disks[0]);
    let point = recovery.resolve(&When::Seq(seq)).unwrap();
    assert!(verify_at(&recovery, point, &mut |_| {}).unwrap().is_equal());
    assert!(verify(&recovery, &mut |_| {}).unwrap().is_sound());
    let history = History::load(&bed.journal_dir()).unwrap();
    let mut read = vec![0; bed.disks[0].len()];
    View::at(&history, 1, seq).unwrap().read(0, &mut read).unwrap();
    assert!(read == bed.disks[0]);
}
