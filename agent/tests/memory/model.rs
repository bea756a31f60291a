//! What the journal says of memory is what the guest had; nothing more than what changed is stored.

use crate::kit::{Bed, Memory, Rng, STATE, refused};
use afterimage_agent::memory::{Error, PAGE_BYTES, Table};
use afterimage_journal::format::record::Kind;
use std::sync::atomic::AtomicBool;

/// Odd sizes; the last has more than a record of zeroes and of data.
const SIZES_PAGES: [usize; 3] = [1, 37, 900];

fn bed(seed: u64) -> (Rng, Memory, Bed) {
    let mut rng = Rng(seed);
    let memory = Memory::new(&mut rng, &SIZES_PAGES);
    let bed = Bed::new(&memory.listed());
    (rng, memory, bed)
}

/// Changes pages at random: to data, to zeroes, and some to what they were.
fn change(rng: &mut Rng, memory: &mut Memory, pages: usize) {
    for _ in 0..pages {
        let block = rng.below(SIZES_PAGES.len());
        let page = rng.below(SIZES_PAGES[block]);
        let bytes = memory.page(block, page);
        match rng.below(4) {
            0 => bytes.fill(0),
            1 => bytes[rng.below(PAGE_BYTES)] ^= 1,
            2 => {}
            _ => rng.fill(bytes),
        }
    }
}

#[test]
fn checkpoints_read_as_the_guest_was_and_store_exactly_what_changed() {
    let (mut rng, mut memory, mut bed) = bed(0x1234_5678_9abc_def1);
    let mut empty = memory.clone();
    empty.blocks.iter_mut().for_each(|(_, bytes)| bytes.fill(0));
    let mut before = empty;
    let mut points = Vec::new();
    for round in 0..8 {
        let from = bed.journal.head();
        let stream = memory.stream((round % 2 == 1).then_some(&mut rng));
        let (stored, seq) = bed.checkpoint(stream);
        assert_eq!(stored.pages + stored.zero_pages, memory.differing(&before), "round {round}");
        let records = bed.records(from);
        let bytes = records.iter().filter(|e| e.record.volume != STATE).map(|e| e.record.len);
        let pages = bytes.sum::<u32>() as usize / PAGE_BYTES;
        assert_eq!(pages as u64, stored.pages + stored.zero_pages, "in records, round {round}");
        assert!(records.iter().all(|e| e.record.kind == Kind::Zero || e.record.len <= 64 << 10));
        let places: Vec<_> = records.iter().map(|e| (e.record.volume, e.record.addr)).collect();
        let ram = places.iter().filter(|(volume, _)| *volume != STATE);
        assert!(ram.is_sorted(), "by volume and address, round {round}");
        points.push((seq, memory.clone()));
        before = memory.clone();
        change(&mut rng, &mut memory, 60);
        // A page of the device state, and its length.
        memory.device[rng.below(40_000)] ^= 1;
        memory.device.truncate(50_000 - 100 * round);
    }
    // Each of them, behind all the others.
    for (seq, memory) in &points {
        bed.assert_holds(*seq, memory);
    }
}

#[test]
fn a_few_changed_bytes_cost_a_page_and_nothing_changed_costs_nothing() {
    let (_, mut memory, mut bed) = bed(77);
    bed.checkpoint(memory.stream(None));
    let (stored, _) = bed.checkpoint(memory.stream(None));
    assert_eq!(stored, Default::default(), "nothing changed");
    memory.page(2, 500)[4095] ^= 0x80;
    memory.device[20_000] ^= 1;
    let (stored, seq) = bed.checkpoint(memory.stream(None));
    assert_eq!((stored.pages, stored.zero_pages, stored.state_pages), (1, 0, 1));
    assert_eq!(stored.records, 2);
    bed.assert_holds(seq, &memory);
}

#[test]
fn a_checkpoint_that_was_cut_off_spoils_neither_the_next_one_nor_the_one_before() {
    let (mut rng, mut memory, mut bed) = bed(4242);
    let first = memory.clone();
    let (_, first_seq) = bed.checkpoint(memory.stream(None));
    change(&mut rng, &mut memory, 300);
    let cut = memory.clone();
    // Cut off before its first record; then by another thread, somewhere.
    let taken = bed.take(memory.stream(None)).unwrap();
    let at_once = bed.store_until(&taken, &AtomicBool::new(true));
    assert!(matches!(refused(at_once), Error::Cancelled));
    let taken = bed.take(memory.stream(None)).unwrap();
    let cancel = AtomicBool::new(false);
    let (journal, from) = (bed.journal.clone(), bed.journal.head());
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while journal.head() < from + 3 {
                std::hint::spin_loop();
            }
            cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        bed.store_until(&taken, &cancel)
    });
    if result.is_ok() {
        // It was quicker: then it is a whole one that nothing names, which must do no harm either.
        bed.assert_holds(bed.journal.head(), &cut);
    } else {
        assert!(matches!(refused(result), Error::Cancelled));
        assert!(bed.journal.head() >= from + 3, "some of it is in the journal");
    }
    drop(taken);
    // The same again: what is missing of it is stored, and nothing is taken for stored that isn't.
    let (_, seq) = bed.checkpoint(memory.stream(None));
    bed.assert_holds(seq, &cut);
    // What the cut one changed is changed back here and there, and elsewhere.
    memory = first.clone();
    change(&mut rng, &mut memory, 100);
    let (_, seq) = bed.checkpoint(memory.stream(Some(&mut rng)));
    bed.assert_holds(seq, &memory);
    bed.assert_holds(first_seq, &first);
    // And the table still tells all of it.
    let (stored, _) = bed.checkpoint(memory.stream(None));
    assert_eq!(stored, Default::default());
}

#[test]
fn after_a_restart_the_table_is_built_from_the_journal_and_nothing_is_stored_twice() {
    let (mut rng, mut memory, mut bed) = bed(99);
    bed.checkpoint(memory.stream(None));
    change(&mut rng, &mut memory, 50);
    bed.checkpoint(memory.stream(None));
    let stale = bed.table.take().unwrap();
    let mut bed = bed.reopen();
    assert!(!stale.serves(&bed.journal), "a table of another opening");
    bed.rebuild();
    let (stored, _) = bed.checkpoint(memory.stream(Some(&mut rng)));
    assert_eq!(stored, Default::default());
    memory.page(2, 3).fill(0);
    memory.page(2, 4).fill(7);
    let (stored, seq) = bed.checkpoint(memory.stream(None));
    assert!(stored.pages == 1 && stored.zero_pages <= 1, "{stored:?}");
    bed.assert_holds(seq, &memory);
}

#[test]
fn a_page_that_comes_again_counts_as_it_came_last() {
    let (mut rng, mut memory, mut bed) = bed(5);
    bed.checkpoint(memory.stream(None));
    let old = memory.clone();
    let (mut data, mut other) = (vec![0; PAGE_BYTES], vec![0; PAGE_BYTES]);
    rng.fill(&mut data);
    rng.fill(&mut other);
    let zeroes = vec![0; PAGE_BYTES];
    let unchanged = old.blocks[2].1[13 * PAGE_BYTES..14 * PAGE_BYTES].to_vec();
    // Data then other data; data then zeroes; zeroes then data; data then what it was.
    let again: [(usize, &[u8], &[u8]); 4] =
        [(10, &data, &other), (11, &data, &zeroes), (12, &zeroes, &other), (13, &data, &unchanged)];
    let mut pages: Vec<(usize, usize, &[u8])> = Vec::new();
    for (index, (_, bytes)) in old.blocks.iter().enumerate() {
        pages.extend(bytes.chunks(PAGE_BYTES).enumerate().map(|(i, p)| (index, i * PAGE_BYTES, p)));
    }
    pages.extend(again.iter().map(|(page, first, _)| (2, page * PAGE_BYTES, *first)));
    pages.extend(again.iter().map(|(page, _, last)| (2, page * PAGE_BYTES, *last)));
    let stream = old.stream_of(pages.into_iter());
    for (page, _, last) in again {
        memory.page(2, page).copy_from_slice(last);
    }
    let (stored, seq) = bed.checkpoint(stream);
    assert_eq!(stored.pages + stored.zero_pages, memory.differing(&old));
    bed.assert_holds(seq, &memory);
}

#[test]
fn a_block_without_a_volume_is_compared_with_zeroes_and_a_resized_one_is_stored_whole() {
    let (_, memory, mut bed) = bed(321);
    // No volume was known when the stream came: they are made behind it.
    bed.table = Some(Table::new(&bed.journal).unwrap());
    let ram = std::mem::take(&mut bed.ram);
    let taken = bed.take(memory.stream(None)).unwrap();
    bed.ram = ram;
    let table = bed.table.as_mut().unwrap();
    table.add(STATE, 64 << 20).unwrap();
    for block in &bed.ram {
        table.add(block.volume, block.bytes).unwrap();
    }
    bed.store(&taken).unwrap();
    bed.assert_holds(bed.journal.head(), &memory);
    // Stored a second time, by the same stream: its comparison is out of date.
    assert!(matches!(refused(bed.store(&taken)), Error::StaleTable(_)));
    drop(taken);
    let block = bed.ram[1].clone();
    bed.table.as_mut().unwrap().resize(block.volume, block.bytes).unwrap();
    assert_eq!(bed.table.as_ref().unwrap().unknown_pages(), 37);
    let (stored, seq) = bed.checkpoint(memory.stream(None));
    assert_eq!(stored.pages + stored.zero_pages, 37, "{stored:?}");
    bed.assert_holds(seq, &memory);
}
