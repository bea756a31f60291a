//! The thread of one group and one site.
//!
//! What always holds: it only reads the journal and keeps nobody of it waiting (I-10); it ends within
//! what the sink may take for one call, and whoever ends it waits for a bounded time only; whatever it
//! meets, it goes on until it is told to end.

use super::board::Board;
use super::link::{Link, Step};
use super::source::Source;
use super::target::Target;
use afterimage_journal::wire::Hello;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often it is looked for a journal where there is none.
const JOURNAL_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a bug.
const BUG_PAUSE: Duration = Duration::from_secs(10);
/// Longest that somebody waits for its end, once it was told to end.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Gives the journal that is open now, as a source; `None`: none is.
pub(super) type Opened = Box<dyn FnMut() -> Option<(Hello, Box<dyn Source>)> + Send>;

/// What its thread is told.
#[derive(Debug, Default)]
struct Told {
    /// To end at once.
    end: AtomicBool,
    /// To end when all is sent.
    finish: AtomicBool,
    rate_bytes_per_s: AtomicU64,
    /// The thread has ended.
    ended: Mutex<bool>,
    wake: Condvar,
}

impl Told {
    fn ends(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    /// Pauses, and no longer once it is to end.
    fn pause(&self, limit: Duration) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.ends() {
            drop(self.wake.wait_timeout(ended, limit));
        }
    }

    fn wait_ended(&self, limit: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(ended, limit, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wake(&self) {
        drop(self.ended.lock());
        self.wake.notify_all();
    }
}

/// A running shipper; dropped, it is told to end and not waited for.
#[derive(Debug)]
pub(super) struct Shipper {
    told: Arc<Told>,
    pub(super) board: Arc<Board>,
    _thread: JoinHandle<()>,
}

impl Shipper {
    /// Starts one.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(target: Target, opened: Opened) -> std::io::Result<Self> {
        let board = Arc::new(Board::new(target.name()));
        let told = Arc::new(Told::default());
        let (heard, shown) = (Arc::clone(&told), Arc::clone(&board));
        let thread = std::thread::Builder::new().name("ship".into()).spawn(move || {
            run(&target, opened, &heard, &shown);
            *heard.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
            heard.wake();
        })?;
        Ok(Self { told, board, _thread: thread })
    }

    /// The background's rate from now on, in bytes a second; 0: no limit.
    pub(super) fn set_rate(&self, bytes_per_s: u64) {
        self.told.rate_bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Has it end once all of the journal's end is at the site, or after this time.
    pub(super) fn finish(&self) {
        self.told.finish.store(true, Ordering::Relaxed);
        self.told.wake();
    }

    /// Ends it after at most this time; whether it has ended.
    pub(super) fn end(&self, grace: Duration) -> bool {
        if self.told.wait_ended(grace) {
            return true;
        }
        self.told.end.store(true, Ordering::Relaxed);
        self.told.wake();
        self.told.wait_ended(END_LIMIT)
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.told.end.store(true, Ordering::Relaxed);
        self.told.wake();
    }
}

fn run(target: &Target, mut opened: Opened, told: &Told, board: &Arc<Board>) {
    while !told.ends() {
        let work = || ship(target, &mut opened, told, board);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            Ok(()) => return,
            Err(_) => {
                tracing::error!(
                    site = target.name(),
                    "shipping was ended by a bug; it begins anew"
                );
                told.pause(BUG_PAUSE);
            }
        }
    }
}

/// Ships until it is told to end.
fn ship(target: &Target, opened: &mut Opened, told: &Told, board: &Arc<Board>) {
    let mut link = Link::new(target.sink(), Arc::clone(board), target.sync_every(), seed());
    while !told.ends() {
        match opened() {
            Some((hello, mut source)) => {
                ship_one(&mut link, &hello, source.as_mut(), told);
                link.close();
            }
            None if told.finish.load(Ordering::Relaxed) => return,
            None => told.pause(JOURNAL_PAUSE),
        }
        if told.finish.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Ships one opening of the journal, until it is over.
fn ship_one(link: &mut Link, hello: &Hello, source: &mut dyn Source, told: &Told) {
    while !told.ends() && !source.is_over() {
        link.set_rate(told.rate_bytes_per_s.load(Ordering::Relaxed));
        match link.step(hello, source, Instant::now(), wall_ns()) {
            Step::Again => {}
            Step::Wait(_) if told.finish.load(Ordering::Relaxed) && link.is_level(source) => return,
            // One that can't be reached has nobody wait for it.
            Step::Wait(_) if told.finish.load(Ordering::Relaxed) && !link.is_open() => return,
            Step::Wait(limit) if link.is_open() => link.wait(source, limit),
            // A pause before the next try.
            Step::Wait(limit) => told.pause(limit),
        }
    }
}

fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
