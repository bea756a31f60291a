//! Restores from behind a network go through the units in their order: what they make is the same.

use crate::bed::{Bed, Dice, GROUP, SECTOR, restore_at};
use crate::points::{qemu_img, text};
use afterimage_journal::storage::{Access, Lock, LockKind, RealStorage, Room, Storage, StoredFile};
use afterimage_restore::{
    BATCH_PIECES_MAX, Batches, Format, LOG_BATCH_BYTES_MAX, Order, Recovery, Selection, open_in,
    plan,
};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Files that say that they lie behind a network.
#[derive(Debug)]
struct Far;

impl Storage for Far {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        RealStorage.open(path, access)
    }
    fn is_far(&self) -> bool {
        true
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealStorage.list(dir)
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.make_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealStorage.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealStorage.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealStorage.sync_dir(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        RealStorage.exists(path)
    }
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock> {
        RealStorage.lock(path, kind)
    }
    fn room(&self, path: &Path) -> io::Result<Room> {
        RealStorage.room(path)
    }
    fn mount_id(&self, path: &Path) -> u64 {
        RealStorage.mount_id(path)
    }
}

fn open_far(bed: &Bed) -> Recovery {
    let far: Arc<dyn Storage> = Arc::new(Far);
    open_in(&far, &bed.state(), GROUP).unwrap()
}

#[test]
fn every_noted_point_restores_in_both_formats_to_what_the_disks_held() {
    for seed in 21..=24 {
        let bed = Bed::eventful(seed);
        let recovery = open_far(&bed);
        let out = tempfile::tempdir().unwrap();
        for (seq, disks) in &bed.known {
            let raw = restore_at(&recovery, *seq, out.path(), Format::Raw).unwrap();
            let qcow2 = restore_at(&recovery, *seq, out.path(), Format::Qcow2).unwrap();
            assert_eq!(raw.bytes_written, qcow2.bytes_written);
            for ((raw, qcow2), expected) in raw.disks.iter().zip(&qcow2.disks).zip(disks) {
                let found = std::fs::read(&raw.path).unwrap();
                assert!(found == *expected, "seed {seed}, seq {seq}, {}", raw.node);
                let (raw, qcow2) = (text(&raw.path), text(&qcow2.path));
                qemu_img(&["check", "-q", "-f", "qcow2", qcow2]);
                qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", raw, qcow2]);
            }
        }
    }
}

/// Two disks, more pieces than a batch may have, and more bytes than fit into its memory.
#[test]
fn batches_come_in_the_order_of_numbers_and_keep_their_bounds() {
    let mut bed = Bed::new(25, &[48 << 20, LOG_BATCH_BYTES_MAX + (9 << 20)]);
    bed.open_session();
    let mut last = 0;
    for at in (3 * SECTOR..LOG_BATCH_BYTES_MAX + (8 << 20)).step_by(100 * SECTOR) {
        last = bed.write_at(1, at, &[7; 100 * SECTOR]);
    }
    let mut dice = Dice::new(26);
    for i in 0..BATCH_PIECES_MAX + 5000 {
        let (disk, sector) = ((i % 16 == 0) as usize, dice.below(40_000) as usize * 2);
        last = bed.write_at(disk, sector * SECTOR, &[1 + (i % 251) as u8; SECTOR]);
    }
    let recovery = open_far(&bed);
    let history = &recovery.history;
    let plan = plan(history, history.point(last), Selection::default(), Format::Raw).unwrap();
    let (mut newest, mut done_bytes, mut count) = (0, 0, 0);
    for batch in Batches::new(history, &plan, Order::of(history)) {
        let batch = batch.unwrap();
        assert!(batch.memory_bytes <= LOG_BATCH_BYTES_MAX);
        assert!(batch.writes.len() <= BATCH_PIECES_MAX);
        let numbers = || batch.reads.iter().map(|r| r.entry.record.seq);
        assert!(numbers().min().unwrap() >= newest, "no unit is begun again");
        (newest, count) = (numbers().max().unwrap(), count + 1);
        assert!(batch.done_bytes > done_bytes && batch.done_bytes <= plan.bytes());
        done_bytes = batch.done_bytes;
    }
    assert!(count > 2 && done_bytes == plan.bytes(), "{count} batches, {done_bytes} bytes");
    let out = tempfile::tempdir().unwrap();
    let report = restore_at(&recovery, last, out.path(), Format::Raw).unwrap();
    for (disk, expected) in report.disks.iter().zip(&bed.disks) {
        assert!(std::fs::read(&disk.path).unwrap() == *expected, "{}", disk.node);
    }
}
