//! Taking in one guest's stream, as fast as QEMU sends it.
//!
//! One thread of QEMU's scans, sends and unprotects the guest's pages: while it waits for its
//! socket, so do virtual CPUs that write to a page that it has not sent. So the thread that reads
//! waits for nobody else: it parses, compares and copies what changed to the spool's buffers, and
//! the spool's own thread writes them. Comparing costs a hash a page, 2 GB/s, several times what a
//! background snapshot brings; on two cores a thread of its own for it made the intake slower, not
//! faster (docs/benchmarks.md, "Guest memory").
//!
//! What always holds: it waits no longer than `stall_limit` for anything without giving up, and
//! shuts the socket when it does, so that QEMU is let go; no page costs an allocation.

use super::pages::{Changed, Sorter};
use super::spool::{Patience, SpoolAt};
use super::table::Table;
use super::{Block, Error, PAGE_BYTES, Result, STATE_BYTES_MAX};
use afterimage_journal::VolumeId;
use afterimage_migration::{Limits, Reader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are read at a time: more than QEMU sends at a time, and still in a core's cache when
/// they are hashed.
const READ_BYTES: usize = 256 << 10;
/// How often a thread that waits looks whether it is to end.
pub(super) const TICK: Duration = Duration::from_millis(50);

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

/// What the caller is told at once, from the thread that reads: it must not wait there.
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
    is_cancelled: Arc<AtomicBool>,
    socket: Mutex<Option<UnixStream>>,
}

impl Intake {
    /// Begins. `hear` is called from another thread.
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
            is_cancelled: Arc::new(AtomicBool::new(false)),
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
        spawn("memory-intake", run)?;
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

    /// Waits for the end. The table is given back as it was, unless the thread fell with it.
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

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.map(drop).map_err(|e| Error::Thread(format!("can't be started: {e}")))
}

impl Shared {
    fn run(
        &self,
        source: Source,
        options: Options,
        first_page: impl FnOnce(),
    ) -> (Result<Taken>, Option<Table>) {
        let Options { table, volumes, spool, stall_limit } = options;
        let is_cancelled = Arc::clone(&self.is_cancelled);
        let patience = Patience { stall_limit, is_cancelled };
        let mut sorter = Sorter::new(table, volumes, spool, patience, first_page);
        let taken = self.take(source, stall_limit, &mut sorter);
        if taken.is_err() {
            self.shut();
        }
        let taken = if self.is_cancelled() { Err(Error::Cancelled) } else { taken };
        (taken, Some(sorter.into_table()))
    }

    fn take<F: FnOnce()>(
        &self,
        source: Source,
        stall_limit: Duration,
        sorter: &mut Sorter<F>,
    ) -> Result<Taken> {
        let mut socket = self.connected(source, stall_limit)?;
        let tail_bytes_max = STATE_BYTES_MAX as usize;
        let mut reader = Reader::new(Limits { tail_bytes_max, ..Limits::default() });
        let mut buffer = vec![0; READ_BYTES];
        let mut last = Instant::now();
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => {
                    self.progress.came(bytes);
                    let fed = reader.feed(&buffer[..bytes], sorter);
                    sorter.publish(&self.progress);
                    fed.map_err(Error::of_stream)?;
                    last = Instant::now();
                }
                Err(e) if is_passing(&e) => self.wait_for_bytes(&socket, last, stall_limit)?,
                Err(error) => return Err(Error::Socket { doing: "read", error }),
            }
            if self.is_cancelled() {
                return Err(Error::Cancelled);
            }
        }
        let parts = reader.finish().map_err(Error::of_end)?;
        let changed = sorter.finish()?;
        Ok(Taken { blocks: parts.blocks, head: parts.head, tail: parts.tail, changed })
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
                    self.wait_for_bytes(&listener, began, stall_limit)?;
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
    fn wait_for_bytes(&self, from: &impl AsFd, began: Instant, limit: Duration) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if began.elapsed() >= limit {
            return Err(Error::Stalled { what: "QEMU sent nothing", limit });
        }
        let wait = TICK.min(limit);
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(Error::Socket { doing: "wait for", error: e.into() }),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

const _: () = assert!(PAGE_BYTES == afterimage_migration::PAGE_BYTES);
