//! What a reader holds is bounded, whatever it is fed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;

use afterimage_migration::{Block, Limits, Reader, Sink};

use crate::made::Made;

struct Counting;

thread_local! {
    static HELD_BYTES: Cell<i64> = const { Cell::new(0) };
    static MOST_BYTES: Cell<i64> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn note(bytes: i64) {
    let _ = HELD_BYTES.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST_BYTES.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as i64);
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-(layout.size() as i64));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Forgets everything.
struct Nothing;

impl Sink for Nothing {
    type Error = Infallible;

    fn blocks(&mut self, _: &[Block]) -> Result<(), Infallible> {
        Ok(())
    }

    fn page(&mut self, _: usize, _: u64, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn zero(&mut self, _: usize, _: u64) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The most that a reader held while it was fed `begin`, then `more` as often as it takes it, up
/// to a total of 16 MiB.
fn most_bytes(begin: &Made, more: &[u8], piece: usize) -> i64 {
    let limits = Limits { tail_bytes_max: 1 << 20, ..Limits::default() };
    let before = HELD_BYTES.get();
    MOST_BYTES.set(before);
    let mut reader = Reader::new(limits);
    let all =
        begin.bytes.chunks(piece).chain(std::iter::repeat_with(|| more.chunks(piece)).flatten());
    let mut fed = 0;
    for piece in all {
        fed += piece.len();
        if fed > 16 << 20 || reader.feed(piece, &mut Nothing).is_err() {
            break;
        }
    }
    MOST_BYTES.get() - before
}

#[test]
fn hostile_streams_are_held_within_the_limits() {
    let head = Made::begin().configuration("pc");
    let uuid = Made { bytes: vec![], footers: true }.subsection("configuration/uuid").raw(&[0; 16]);
    let list = head.clone().start("ram", 0, 4).word(!4095 | 4);
    let huge = Made::begin().raw(&[7]).number(u32::MAX);
    let pages = Made::listed().section(2);
    let page = Made { bytes: vec![], footers: true }.page("a", 1, 7);
    let cases = [
        ("a head without end", head, uuid.bytes, 256 << 10),
        ("a name of 4 GiB", huge, vec![b'x'; 4096], 16 << 10),
        ("a list without end", list, vec![], 16 << 10),
        ("pages without end", pages, page.bytes, 24 << 10),
        ("a tail without end", Made::filled(), vec![4; 4096], (2 << 20) + (64 << 10)),
    ];
    for (name, begin, more, limit) in cases {
        for piece in [13, 1 << 20] {
            let more = if more.is_empty() { vec![0] } else { more.clone() };
            let most = most_bytes(&begin, &more, piece);
            assert!(most < limit, "{name}, in pieces of {piece}: {most} bytes were held");
        }
    }
    // Blocks of every name that there is, up to the limit of their count.
    let many = (0..2000).fold(Made::begin().start("ram", 0, 4).word(!4095 | 4), |made, n| {
        made.name(&format!("{n:0>255}")).word(4096)
    });
    assert!(most_bytes(&many, &[0], 4096) < 1 << 20);
}

#[test]
fn a_page_costs_no_allocation() {
    let pages = Made::listed().section(2);
    let page = Made { bytes: vec![], footers: true }.page("a", 0, 7).zero("", 1).page("b", 0, 1);
    for piece in [100, 5000, 1 << 20] {
        let mut reader = Reader::new(Limits::default());
        reader.feed(&pages.bytes, &mut Nothing).unwrap();
        let many = page.bytes.repeat(20);
        let feed = |reader: &mut Reader| {
            many.chunks(piece).for_each(|piece| reader.feed(piece, &mut Nothing).unwrap());
        };
        // The first ones size the buffer for what a piece cuts.
        feed(&mut reader);
        let before = ALLOCATIONS.get();
        feed(&mut reader);
        assert_eq!(ALLOCATIONS.get() - before, 0, "pieces of {piece}");
    }
}
