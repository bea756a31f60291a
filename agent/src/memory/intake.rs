//! Taking in one guest's stream, as fast as QEMU sends it.
//!
//! One thread of QEMU's scans, sends and unprotects the guest's pages: while it waits for its
//! socket, so do virtual CPUs that write to a page that it has not sent. So the *reader* thread does
//! nothing but read. It hands what came to the *worker* thread, which parses, compares and spools,
//! by a ring of [`BUFFER_COUNT_MAX`] buffers that are used again: hashing is slower than a stopped
//! guest's stream, and a spool's disk may stand still for a moment.
//!
//! ```text
//!  reader: poll ─ read ─ read .. ──full──► worker: parse, compare, spool ─► outcome
//!              ▲                                      │
//!              └───────────── used again ◄────────────┘
//! ```
//!
//! What always holds: no thread waits longer than `stall_limit` for anything without giving up, and
//! who gives up shuts the socket first, so that QEMU is let go; neither thread allocates for a page.

use super::pages::{Changed, Sorter};
use super::spool::SpoolAt;
use super::table::Table;
use super::{Block, Error, PAGE_BYTES, Result, STATE_BYTES_MAX};
use afterimage_journal::VolumeId;
use afterimage_migration::{Limits, Reader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a buffer between the two threads.
const BUFFER_BYTES: usize = 1 << 20;
/// Buffers: what the worker may be behind.
const BUFFER_COUNT_MAX: usize = 32;
/// How often a thread that waits looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);
/// How long bytes that came are held back while the worker has others.
const GATHER: Duration = Duration::from_millis(1);

/// Where the stream comes from.
#[derive(Debug)]
pub enum Source {
    /// QEMU is yet to connect: the first connection counts, and nobody else is let in.
    Listener(UnixListener),
    /// A connection.
    Connected(UnixStream),
}

/// How a guest's stream is taken.
pub struct Options {
    /// What the journal holds of its memory.
    pub table: Table,
    /// QEMU's name of each RAM block that has a volume already, and the volume.
    pub volumes: Vec<(String, VolumeId)>,
    /// Where changed pages wait.
    pub spool: SpoolAt,
    /// How long QEMU may be silent, before its first byte and between any two, and how long the
    /// spool may take nothing.
    pub stall_limit: Duration,
}

/// What the caller is told at once, from one of the two threads: it must not wait there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The first page came: QEMU tracks writes from before this on.
    FirstPage,
    /// All is done, well or badly: [`Intake::wait`] waits no more.
    Ended,
}

/// How far it is; any thread may look.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    /// Milliseconds from `begun` to the last byte.
    last_ms: AtomicU64,
    /// Bytes read from QEMU.
    pub read_bytes: AtomicU64,
    /// Bytes of RAM that the stream is about: 0 until the list of blocks came.
    pub total_bytes: AtomicU64,
    /// Pages that came, each time that one did.
    pub pages: AtomicU64,
    /// Those that the journal doesn't have and that are not zero.
    pub changed_pages: AtomicU64,
    /// Those that are zero.
    pub zero_pages: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            begun: Instant::now(),
            last_ms: zero(),
            read_bytes: zero(),
            total_bytes: zero(),
            pages: zero(),
            changed_pages: zero(),
            zero_pages: zero(),
        }
    }

    /// How long nothing has come.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(last)
    }

    fn came(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }
}

/// A stream that was taken whole. Dropped, its spool is gone.
pub struct Taken {
    /// The RAM blocks, in the stream's order.
    pub blocks: Vec<Block>,
    /// What comes before the list of blocks.
    pub head: Vec<u8>,
    /// What comes behind the last section of RAM.
    pub tail: Vec<u8>,
    /// The pages that the journal doesn't have.
    pub changed: Changed,
}

impl Taken {
    /// Bytes of head and tail.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64
    }
}

/// A stream that is being taken.
pub struct Intake {
    shared: Arc<Shared>,
    outcome: Receiver<(Result<Taken>, Option<Table>)>,
}

struct Shared {
    progress: Arc<Progress>,
    is_cancelled: AtomicBool,
    /// The reader gave up: what the worker still has is for nothing.
    is_given_up: AtomicBool,
    /// Buffers that the worker has.
    queued: AtomicUsize,
    socket: Mutex<Option<UnixStream>>,
}

/// What the worker ends with.
type Outcome = (Result<Taken>, Table);

struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
}

impl Intake {
    /// Begins. `hear` is called from other threads.
    ///
    /// # Errors
    /// A thread can't be started: the table is lost then.
    pub fn start(
        source: Source,
        options: Options,
        hear: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            progress: Arc::new(Progress::new()),
            is_cancelled: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            socket: Mutex::new(None),
        });
        let (tell, outcome) = sync_channel(1);
        let hear = Arc::new(hear);
        let told = Ended(Arc::clone(&hear));
        let ours = Arc::clone(&shared);
        let run = move || {
            let _told = told;
            let _ = tell.send(ours.run(source, options, move || hear(Event::FirstPage)));
        };
        spawn("memory-read", run)?;
        Ok(Self { shared, outcome })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.shared.progress
    }

    /// Ends it: QEMU is let go at once, by an error of its socket.
    pub fn cancel(&self) {
        self.shared.is_cancelled.store(true, Ordering::Release);
        self.shared.shut();
    }

    /// Waits for the end. The table is given back as it was, unless a thread hangs or fell with it.
    #[must_use]
    pub fn wait(self) -> (Result<Taken>, Option<Table>) {
        let fell = || (Err(Error::Thread("fell: report this".into())), None);
        self.outcome.recv().unwrap_or_else(|_| fell())
    }
}

/// Says that all is done, however it came to its end.
struct Ended<F: Fn(Event)>(Arc<F>);

impl<F: Fn(Event)> Drop for Ended<F> {
    fn drop(&mut self) {
        (self.0)(Event::Ended);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.map(drop).map_err(|e| Error::Thread(format!("can't be started: {e}")))
}

impl Shared {
    fn run(
        self: &Arc<Self>,
        source: Source,
        options: Options,
        first_page: impl FnOnce() + Send + 'static,
    ) -> (Result<Taken>, Option<Table>) {
        let stall_limit = options.stall_limit;
        let socket = match self.connected(source, stall_limit) {
            Ok(socket) => socket,
            Err(error) => return (Err(error), Some(options.table)),
        };
        let (give, full) = sync_channel::<Buffer>(BUFFER_COUNT_MAX);
        let (give_back, empty) = sync_channel::<Buffer>(BUFFER_COUNT_MAX);
        let (tell, outcome) = sync_channel(1);
        let ours = Arc::clone(self);
        let work = move || {
            let _ = tell.send(ours.work(options, &full, &give_back, first_page));
        };
        if let Err(error) = spawn("memory-sort", work) {
            return (Err(error), None);
        }
        let read = self.read_all(&socket, &give, &empty, stall_limit);
        if !matches!(read, Ok(true)) {
            self.is_given_up.store(true, Ordering::Release);
            self.shut();
        }
        drop(give);
        let (taken, table) = self.worked(&outcome, stall_limit);
        if self.is_cancelled() {
            return (Err(Error::Cancelled), table);
        }
        // Whether the worker ended first (`false`) or not, its error is told.
        (read.and(taken), table)
    }

    /// What the worker says in the end: waits as long as it gets on with what it has.
    fn worked(
        &self,
        outcome: &Receiver<Outcome>,
        limit: Duration,
    ) -> (Result<Taken>, Option<Table>) {
        let (mut left, mut began) = (self.queued.load(Ordering::Acquire), Instant::now());
        loop {
            match outcome.recv_timeout(TICK) {
                Ok((taken, table)) => return (taken, Some(table)),
                Err(RecvTimeoutError::Disconnected) => {
                    return (Err(Error::Thread("fell: report this".into())), None);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = self.queued.load(Ordering::Acquire);
            if now != left {
                (left, began) = (now, Instant::now());
            }
            if began.elapsed() >= limit {
                return (Err(Error::Stalled { what: "the spool took nothing", limit }), None);
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    fn shut(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// The connection, for [`Shared::shut`] too; the listener is closed.
    fn connected(&self, source: Source, stall_limit: Duration) -> Result<UnixStream> {
        let socket = match source {
            Source::Connected(socket) => socket,
            Source::Listener(listener) => {
                let failed = |error| Error::Socket { doing: "wait for", error };
                listener.set_nonblocking(true).map_err(failed)?;
                let began = Instant::now();
                loop {
                    self.wait_for_bytes(&listener, TICK, began, stall_limit)?;
                    match listener.accept() {
                        Ok((socket, _)) => break socket,
                        Err(e) if is_passing(&e) => {}
                        Err(e) => return Err(failed(e)),
                    }
                }
            }
        };
        let failed = |error| Error::Socket { doing: "prepare the socket of", error };
        socket.set_nonblocking(true).map_err(failed)?;
        let second = socket.try_clone().map_err(failed)?;
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(second);
        Ok(socket)
    }

    /// Waits a little, and no longer than until the limit.
    fn wait_for_bytes(
        &self,
        from: &impl AsFd,
        wait: Duration,
        began: Instant,
        limit: Duration,
    ) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if began.elapsed() >= limit {
            return Err(Error::Stalled { what: "QEMU sent nothing", limit });
        }
        let wait = wait.min(limit);
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(Error::Socket { doing: "wait for", error: e.into() }),
        }
    }

    /// Reads to the end of the stream: `true`. `false` when the worker ended before.
    fn read_all(
        &self,
        mut socket: &UnixStream,
        give: &SyncSender<Buffer>,
        empty: &Receiver<Buffer>,
        stall_limit: Duration,
    ) -> Result<bool> {
        let mut made = 0;
        let Some(mut buffer) = self.next_buffer(empty, &mut made, stall_limit)? else {
            return Ok(false);
        };
        let mut last = Instant::now();
        loop {
            let is_due = match socket.read(&mut buffer.bytes[buffer.len..]) {
                Ok(0) => return Ok(buffer.len == 0 || self.hand(give, buffer)),
                Ok(bytes) => {
                    last = Instant::now();
                    self.progress.came(bytes);
                    buffer.len += bytes;
                    buffer.len == buffer.bytes.len()
                }
                Err(e) if is_passing(&e) => {
                    // A worker that has enough is not given little pieces: they would use up the
                    // buffers.
                    let is_idle = self.queued.load(Ordering::Acquire) == 0;
                    if buffer.len == 0 || !is_idle {
                        let wait = if buffer.len > 0 { GATHER } else { TICK };
                        self.wait_for_bytes(socket, wait, last, stall_limit)?;
                    }
                    buffer.len > 0 && is_idle
                }
                Err(error) => return Err(Error::Socket { doing: "read", error }),
            };
            if is_due {
                if !self.hand(give, buffer) {
                    return Ok(false);
                }
                match self.next_buffer(empty, &mut made, stall_limit)? {
                    Some(next) => buffer = next,
                    None => return Ok(false),
                }
            }
        }
    }

    fn hand(&self, give: &SyncSender<Buffer>, buffer: Buffer) -> bool {
        self.queued.fetch_add(1, Ordering::AcqRel);
        give.send(buffer).is_ok()
    }

    /// A used buffer, or a new one while there are less than the limit; `None`: the worker ended.
    fn next_buffer(
        &self,
        empty: &Receiver<Buffer>,
        made: &mut usize,
        stall_limit: Duration,
    ) -> Result<Option<Buffer>> {
        if let Ok(buffer) = empty.try_recv() {
            return Ok(Some(buffer));
        }
        if *made < BUFFER_COUNT_MAX {
            *made += 1;
            let bytes = vec![0; BUFFER_BYTES].into_boxed_slice();
            return Ok(Some(Buffer { bytes, len: 0 }));
        }
        let began = Instant::now();
        loop {
            match empty.recv_timeout(TICK) {
                Ok(buffer) => return Ok(Some(buffer)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.is_cancelled() => {
                    return Err(Error::Cancelled);
                }
                Err(RecvTimeoutError::Timeout) if began.elapsed() >= stall_limit => {
                    let what = "the spool took nothing";
                    return Err(Error::Stalled { what, limit: stall_limit });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn work(
        &self,
        options: Options,
        full: &Receiver<Buffer>,
        give_back: &SyncSender<Buffer>,
        first_page: impl FnOnce() + Send,
    ) -> Outcome {
        let Options { table, volumes, spool, stall_limit: _ } = options;
        let mut sorter = Sorter::new(table, volumes, spool, first_page);
        let taken = self.sort(&mut sorter, full, give_back);
        (taken, sorter.into_table())
    }

    fn sort<F: FnOnce()>(
        &self,
        sorter: &mut Sorter<F>,
        full: &Receiver<Buffer>,
        give_back: &SyncSender<Buffer>,
    ) -> Result<Taken> {
        let limits = Limits { tail_bytes_max: STATE_BYTES_MAX as usize, ..Limits::default() };
        let mut reader = Reader::new(limits);
        while let Ok(mut buffer) = full.recv() {
            if self.is_given_up.load(Ordering::Acquire) || self.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let fed = reader.feed(&buffer.bytes[..buffer.len], sorter);
            sorter.publish(&self.progress);
            fed.map_err(Error::of_stream)?;
            buffer.len = 0;
            // The reader may have ended.
            let _ = give_back.send(buffer);
            self.queued.fetch_sub(1, Ordering::AcqRel);
        }
        if self.is_given_up.load(Ordering::Acquire) {
            return Err(Error::Cancelled);
        }
        let parts = reader.finish().map_err(Error::of_end)?;
        let changed = sorter.finish()?;
        Ok(Taken { blocks: parts.blocks, head: parts.head, tail: parts.tail, changed })
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

const _: () = assert!(PAGE_BYTES == afterimage_migration::PAGE_BYTES);
