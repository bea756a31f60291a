//! What taking memory in must not cost: an allocation for a page. A program of its own, because all
//! of its threads are counted.

#[path = "memory/kit.rs"]
#[allow(dead_code)]
mod kit;

use kit::{Bed, Memory, Rng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static HELD_BYTES: AtomicU64 = AtomicU64::new(0);
static HELD_BYTES_MAX: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, which counts how often it was asked, and what is held.
struct Counting;

impl Counting {
    fn took(bytes: usize) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        let held = HELD_BYTES.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        HELD_BYTES_MAX.fetch_max(held, Ordering::Relaxed);
    }
}

// SAFETY: all of it is the system allocator's; counting touches only atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::took(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD_BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        HELD_BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        Self::took(bytes);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of taking a stream in, and the most bytes that were held above what was before. The
/// ring is turned over: what it holds at most is the same for both.
fn taken(pages: usize) -> (u64, u64) {
    let memory = Memory::new(&mut Rng(3), &[pages]);
    let mut bed = Bed::new(&memory.listed());
    let stream = memory.stream(None);
    drop(memory);
    let (before, held) = (ALLOCATIONS.load(Ordering::Relaxed), HELD_BYTES.load(Ordering::Relaxed));
    HELD_BYTES_MAX.store(held, Ordering::Relaxed);
    let taken = bed.take(stream).unwrap();
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    let most = HELD_BYTES_MAX.load(Ordering::Relaxed) - held;
    drop(taken);
    (after - before, most)
}

#[test]
fn no_page_costs_an_allocation_and_memory_is_bounded_whatever_is_spooled() {
    let (few, few_bytes) = taken(10_000);
    let (many, many_bytes) = taken(40_000);
    // 30,000 pages more: some of them cut by a buffer's end, none paid for.
    assert!(many < few + 300, "allocations: {few} for 10000 pages, {many} for 40000");
    // The ring and the spool's buffer, 4 bytes a page, and some for the journal's threads.
    let limit = (33 << 20) + 4 * 40_000 + (2 << 20);
    assert!(many_bytes < limit, "{few_bytes} bytes, then {many_bytes}: more than {limit}");
}
