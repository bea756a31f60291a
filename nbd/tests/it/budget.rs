//! What a request may cost: system calls and allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use afterimage_nbd::proto::Mode;
use afterimage_nbd::proto::flags::*;
use afterimage_nbd::proto::option::OptionHeader;
use afterimage_nbd::{
    Errno, Export, MemoryExport, Payload, StatusSink, Transport, WriteFlags, ZeroFlags,
};

use crate::fixture::{Fixture, Raw};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Counts the calls on a stream.
struct Counted {
    stream: UnixStream,
    receives: Arc<AtomicU64>,
    sends: Arc<AtomicU64>,
}

impl Transport for Counted {
    fn receive(&self, into: &mut [IoSliceMut<'_>], wait: bool) -> io::Result<usize> {
        self.receives.fetch_add(1, Ordering::Relaxed);
        self.stream.receive(into, wait)
    }
    fn send(&self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.sends.fetch_add(1, Ordering::Relaxed);
        self.stream.send(from)
    }
    fn limit_receive(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.limit_receive(limit)
    }
    fn limit_send(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.limit_send(limit)
    }
    fn end_receive(&self) {
        self.stream.end_receive();
    }
    fn end(&self) {
        self.stream.end();
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }
}

struct Counts {
    receives: Arc<AtomicU64>,
    sends: Arc<AtomicU64>,
}

impl Counts {
    fn now(&self) -> (u64, u64) {
        (self.receives.load(Ordering::Relaxed), self.sends.load(Ordering::Relaxed))
    }
}

fn counted_pair() -> (UnixStream, Counted, Counts) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let counts = Counts { receives: Arc::default(), sends: Arc::default() };
    let (receives, sends) = (counts.receives.clone(), counts.sends.clone());
    (ours, Counted { stream: theirs, receives, sends }, counts)
}

#[test]
fn a_request_at_depth_one_costs_one_receive_and_one_send() {
    let (fixture, _) = Fixture::memory(1 << 20);
    let (ours, theirs, counts) = counted_pair();
    fixture.server.adopt(theirs).unwrap();
    let mut raw = Raw::over(ours).greet().go(Mode::Simple);
    let once = |raw: &mut Raw| {
        let mut write = raw.header(CMD_WRITE, 0, 4096, 4096);
        write.extend([5; 4096]);
        raw.send(&write);
        assert_eq!(raw.error(), 0);
        raw.request(CMD_READ, 0, 4096, 4096);
        assert_eq!(raw.error(), 0);
        assert_eq!(raw.take(4096), [5; 4096]);
    };
    once(&mut raw);
    let (receives, sends) = counts.now();
    for _ in 0..500 {
        once(&mut raw);
    }
    let after = counts.now();
    // Either time, the receive that waits for the next request may or may not have begun.
    assert!((999..=1001).contains(&(after.0 - receives)), "{} receives", after.0 - receives);
    assert_eq!(after.1 - sends, 1000);
}

#[test]
fn a_batch_that_is_there_costs_a_handful_of_calls() {
    let (fixture, memory) = Fixture::memory(1 << 20);
    let (ours, theirs, counts) = counted_pair();
    let mut raw = Raw::over(ours);
    // Everything is sent before the server looks: flags, EXPORT_NAME, 16 writes, goodbye.
    let mut all = 3_u32.to_be_bytes().to_vec();
    all.extend(OptionHeader { option: OPT_EXPORT_NAME, length: 0 }.encode());
    for index in 0..16_u8 {
        all.extend(raw.header(CMD_WRITE, 0, u64::from(index) * 4096, 4096));
        all.extend([index; 4096]);
    }
    all.extend(raw.header(CMD_DISC, 0, 0, 0));
    raw.stream.write_all(&all).unwrap();
    fixture.server.adopt(theirs).unwrap();
    raw.take(18 + 10);
    for _ in 0..16 {
        assert_eq!(raw.error(), 0);
    }
    fixture.reason();
    let (receives, sends) = counts.now();
    assert!(receives <= 3, "{receives} receives for a batch of 16");
    assert!(sends <= 3, "{sends} sends for a batch of 16");
    assert_eq!(memory.snapshot()[15 * 4096..16 * 4096], [15; 4096]);
}

#[test]
fn large_pipelined_payloads_are_received_in_place() {
    /// Counts the bytes that were buffered when a payload began.
    struct Buffered {
        memory: MemoryExport,
        copied: AtomicU64,
    }
    impl Export for Buffered {
        fn bytes(&self) -> u64 {
            self.memory.bytes()
        }
        fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
            self.memory.read(at, buf)
        }
        fn write(&self, at: u64, payload: &mut Payload<'_>, f: WriteFlags) -> Result<(), Errno> {
            if payload.is_here() {
                self.copied.fetch_add(1, Ordering::Relaxed);
            }
            self.memory.write(at, payload, f)
        }
        fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> Result<(), Errno> {
            Ok(())
        }
        fn trim(&self, _: u64, _: u64, _: WriteFlags) -> Result<(), Errno> {
            Ok(())
        }
        fn flush(&self) -> Result<(), Errno> {
            Ok(())
        }
    }
    let fixture = Fixture::new(MemoryExport::new(0));
    let memory = MemoryExport::new(8 << 20);
    let export = Arc::new(Buffered { memory, copied: AtomicU64::new(0) });
    fixture.exports.insert("", export.clone());
    let data = crate::fixture::pattern(3, 128 << 10);
    let writes = (0..64).map(|index| (index * (128 << 10), &data[..]));
    let mut client = fixture.client();
    client.write_many(writes, 16, false).unwrap();
    let mut back = vec![0; 8 << 20];
    client.read(0, &mut back).unwrap();
    assert!(back.chunks(128 << 10).all(|chunk| chunk == data));
    // The first may come whole with its header; from then on only the first bytes do.
    assert!(export.copied.load(Ordering::Relaxed) <= 1);
}

/// Notes how often the connection's thread has allocated when each command comes in.
struct Noting {
    memory: MemoryExport,
    at_first: AtomicU64,
    at_last: AtomicU64,
    calls: AtomicU64,
}

impl Noting {
    fn note(&self) {
        let count = ALLOCATIONS.with(Cell::get);
        // The first rounds may size the buffers.
        if self.calls.fetch_add(1, Ordering::Relaxed) == 100 {
            self.at_first.store(count, Ordering::Relaxed);
        }
        self.at_last.store(count, Ordering::Relaxed);
    }
}

impl Export for Noting {
    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.note();
        self.memory.read(at, buf)
    }
    fn write(&self, at: u64, payload: &mut Payload<'_>, flags: WriteFlags) -> Result<(), Errno> {
        self.note();
        self.memory.write(at, payload, flags)
    }
    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.memory.write_zeroes(at, len, flags)
    }
    fn trim(&self, at: u64, len: u64, flags: WriteFlags) -> Result<(), Errno> {
        self.memory.trim(at, len, flags)
    }
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
    fn block_status(
        &self,
        context: &str,
        at: u64,
        len: u64,
        sink: &mut StatusSink<'_>,
    ) -> Result<(), Errno> {
        self.note();
        self.memory.block_status(context, at, len, sink)
    }
}

#[test]
fn requests_allocate_nothing_in_steady_state() {
    let fixture = Fixture::new(MemoryExport::new(0));
    let export = Arc::new(Noting {
        memory: MemoryExport::new(4 << 20),
        at_first: AtomicU64::new(0),
        at_last: AtomicU64::new(0),
        calls: AtomicU64::new(0),
    });
    fixture.exports.insert("", export.clone());
    let options = afterimage_nbd::ClientOptions {
        contexts: vec!["base:allocation".into()],
        ..Default::default()
    };
    let mut client = afterimage_nbd::Client::connect(&fixture.socket(), &options).unwrap();
    let data = vec![1; 512 << 10];
    for round in 0..200_u64 {
        client.write(round * 512, &data[..4096], round % 7 == 0).unwrap();
        client.write(round * 4096, &data, false).unwrap();
        client.read(round * 512, &mut vec![0; 300_000]).unwrap();
        client.block_status("base:allocation", 0, 4 << 20).unwrap();
        client.write_zeroes(round * 4096, 4096, ZeroFlags::default()).unwrap();
        client.trim(round * 8192, 4096).unwrap();
        client.flush().unwrap();
    }
    assert!(export.calls.load(Ordering::Relaxed) >= 800);
    let (first, last) =
        (export.at_first.load(Ordering::Relaxed), export.at_last.load(Ordering::Relaxed));
    assert!(first > 0, "the allocator is counted");
    assert_eq!(last - first, 0, "allocations in 700 requests");
}
