//! Plans come in batches: bounded, each byte once, and what they make is the disk.

use crate::bed::{Bed, SECTOR, entries, restore_at};
use crate::points::{qemu_img, text};
use afterimage_restore::{
    BATCH_BYTES_MAX, BATCH_PIECES_MAX, Batch, Batches, Extent, Format, Order, Read, Selection,
    Write, plan,
};

#[test]
fn a_batch_reads_in_the_order_of_the_journal_and_all_of_them_each_byte_once() {
    let bed = Bed::eventful(8);
    let recovery = bed.open();
    let history = &recovery.history;
    let (seq, _) = bed.known.last().unwrap();
    let plan = plan(history, history.point(*seq), Selection::default(), Format::Raw).unwrap();
    let batches: Vec<_> =
        Batches::new(history, &plan, Order::Address).collect::<Result<_, _>>().unwrap();
    let mut reads = 0;
    for batch in &batches {
        let places: Vec<_> = batch.reads.iter().map(|r| (r.entry.unit, r.entry.at)).collect();
        assert!(places.is_sorted() && places.windows(2).all(|p| p[0] != p[1]));
        reads += places.len();
    }
    let written = |b: &Batch| {
        let of_read = |r: &Read| {
            let place = |w: &Write| ((r.volume, w.addr), w.addr + u64::from(w.len), w.to);
            b.writes[r.writes.clone()].iter().map(place).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = b.reads.iter().flat_map(of_read).collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|w| (w[0].0.0, w[0].1) <= w[1].0 && w[0].2 < w[1].2));
        // Each extent is covered, and lies in memory as in the volume.
        let mut covered: Vec<((usize, u64), u64, usize)> = vec![];
        for (at, end, to) in all {
            match covered.last_mut() {
                Some(last) if (last.0.0, last.1) == at => last.1 = end,
                _ => covered.push((at, end, to)),
            }
        }
        let extent = |e: &Extent| ((e.volume, e.start), e.end, e.from);
        let extents: Vec<_> = b.extents.iter().map(extent).collect();
        assert_eq!(covered, extents);
        assert!(extents.iter().all(|((_, start), _, from)| start % 4096 == *from as u64 % 4096));
    };
    batches.iter().for_each(written);
    assert_eq!(batches.last().unwrap().done_bytes, plan.bytes());
    assert!(reads < entries(history).len());
}

#[test]
fn batches_keep_their_bounds_however_many_pieces_there_are() {
    let mut bed = Bed::new(17, &[72 << 20]);
    bed.open_session();
    // Each piece stands alone, so that it takes the most memory that it can.
    let mut last = 0;
    for sector in 0..(BATCH_PIECES_MAX + 5000) {
        let byte = 1 + (sector % 251) as u8;
        last = bed.write_at(0, sector * 2 * SECTOR, &[byte; SECTOR]);
    }
    let recovery = bed.open();
    let history = &recovery.history;
    let plan = plan(history, history.point(last), Selection::default(), Format::Raw).unwrap();
    let mut at = 0;
    let mut count = 0;
    for batch in Batches::new(history, &plan, Order::Address) {
        let batch = batch.unwrap();
        assert!(batch.memory_bytes <= BATCH_BYTES_MAX && batch.writes.len() <= BATCH_PIECES_MAX);
        assert!(batch.done_bytes > at);
        (at, count) = (batch.done_bytes, count + 1);
    }
    assert!(at == 72 << 20 && count > 1, "{count} batches up to {at}");
    let out = tempfile::tempdir().unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let report = restore_at(&recovery, last, out.path(), format).unwrap();
        let raw = out.path().join("converted");
        let restored = match format {
            Format::Raw => &report.disks[0].path,
            Format::Qcow2 => {
                let (from, to) = (text(&report.disks[0].path), text(&raw));
                qemu_img(&["convert", "-f", "qcow2", "-O", "raw", from, to]);
                &raw
            }
        };
        assert!(std::fs::read(restored).unwrap() == bed.disks[0], "{format:?}");
    }
}

#[test]
fn a_volume_that_no_batch_holds_is_cut_where_images_are_allocated() {
    let mut bed = Bed::new(18, &[(BATCH_BYTES_MAX + (3 << 20)) + 512]);
    bed.open_session();
    let mut last = 0;
    let mut bytes = vec![0; 100_000 / SECTOR * SECTOR];
    for at in (SECTOR..bed.disks[0].len()).step_by(bytes.len()) {
        bed.dice.fill(&mut bytes[..64]);
        bytes[64..].fill((at >> 9) as u8 | 1);
        let len = bytes.len().min(bed.disks[0].len() - at);
        last = bed.write_at(0, at, &bytes[..len]);
    }
    let recovery = bed.open();
    let history = &recovery.history;
    let plan = plan(history, history.point(last), Selection::default(), Format::Raw).unwrap();
    let batches: Vec<_> =
        Batches::new(history, &plan, Order::Address).collect::<Result<_, _>>().unwrap();
    assert_eq!(batches.len(), 2);
    let cut = batches[0].extents.last().unwrap().end;
    assert!(cut.is_multiple_of(64 << 10) && cut > BATCH_BYTES_MAX as u64 - (128 << 10), "{cut}");
    let out = tempfile::tempdir().unwrap();
    let report = restore_at(&recovery, last, out.path(), Format::Raw).unwrap();
    assert!(std::fs::read(&report.disks[0].path).unwrap() == bed.disks[0]);
}
