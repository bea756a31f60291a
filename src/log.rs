//! The program's own log, on standard error.
//!
//! What always holds: whoever logs neither waits for the log nor fails with it. A full disk, a
//! closed pipe, a journald that hangs: the daemon's threads, which guests wait for, hand their
//! lines to a thread that only writes; what can't be written is lost, and the next line that can
//! says how much. A panic is logged like anything else.

use afterimage_journal::text::escaped;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// What may wait to be written, in bytes.
const QUEUE_BYTES_MAX: usize = 256 << 10;
/// How long the end of the program waits for the last lines.
const LAST_LINES_LIMIT: Duration = Duration::from_millis(300);

/// Starts the log: all from `info` for the daemon, only trouble for a command. The lines that
/// still wait are written when the result is dropped.
pub fn start(is_daemon: bool) -> Option<Rest> {
    let default = if is_daemon { "info" } else { "error" };
    let filter =
        EnvFilter::try_from_env("AFTERIMAGE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        // What is our own on a line would not be told from what came from elsewhere.
        .with_ansi(false)
        // It would complain on standard error, and panic where it can't.
        .log_internal_errors(false);
    if !is_daemon {
        log.with_writer(|| Shown(io::stderr())).init();
        return None;
    }
    let lines = Lines::new(io::stderr());
    log.with_writer(lines.clone()).init();
    std::panic::set_hook(Box::new(log_panic));
    Some(Rest(lines))
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    tracing::error!("thread {thread}: {info}");
    if backtrace.status() == BacktraceStatus::Captured {
        for line in backtrace.to_string().lines() {
            tracing::error!("  {line}");
        }
    }
}

/// One event's text as it is shown: on one line, whatever is in it.
fn shown(event: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(event);
    match text.strip_suffix('\n') {
        Some(line) => (escaped(line).into_owned() + "\n").into_bytes(),
        None => escaped(&text).into_owned().into_bytes(),
    }
}

/// Where events are written at once.
struct Shown<W: Write>(W);

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.write_all(&shown(text)).map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Lines on their way to a place that may be slow, or fail.
#[derive(Clone)]
struct Lines(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    idle: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were lost since one was last written.
    lost: u64,
    is_writing: bool,
    /// The place, until the thread that writes to it has started: with the first line.
    place: Option<Box<dyn Write + Send>>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all_to(&self, mut place: Box<dyn Write + Send>) {
        let mut waiting = self.lock();
        loop {
            let Some(line) = waiting.lines.pop_front() else {
                waiting.is_writing = false;
                self.idle.notify_all();
                waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.bytes -= line.len();
            waiting.is_writing = true;
            let lost = waiting.lost;
            drop(waiting);
            let mut text = Vec::new();
            if lost > 0 {
                text = format!("({lost} lines of this log were lost)\n").into_bytes();
            }
            text.extend(&line);
            let written = place.write_all(&text).and_then(|()| place.flush());
            waiting = self.lock();
            match written {
                Ok(()) => waiting.lost -= lost,
                Err(_) => waiting.lost += 1,
            }
        }
    }
}

impl Lines {
    fn new(place: impl Write + Send + 'static) -> Self {
        let waiting = Waiting { place: Some(Box::new(place)), ..Waiting::default() };
        Self(Arc::new(Queue { waiting: Mutex::new(waiting), ..Queue::default() }))
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.bytes + line.len() > QUEUE_BYTES_MAX {
            waiting.lost += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        if let Some(place) = waiting.place.take() {
            let queue = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("log".into());
            // Without a thread there is no log, and everything else goes on.
            drop(thread.spawn(move || queue.write_all_to(place)));
        }
        drop(waiting);
        self.0.wake.notify_one();
    }

    /// Waits until all is written, for a limited time.
    fn drain(&self, limit: Duration) {
        let waiting = self.0.lock();
        let busy = |w: &mut Waiting| w.is_writing || !w.lines.is_empty();
        drop(self.0.idle.wait_timeout_while(waiting, limit, busy));
    }
}

impl Write for Lines {
    /// Takes one event's text.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.push(&shown(text));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The lines that still wait at the program's end: dropping this waits until they are written.
pub struct Rest(Lines);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.drain(LAST_LINES_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Each write waits for its outcome.
    struct Place {
        outcomes: Receiver<bool>,
        seen: Sender<String>,
    }

    impl Write for Place {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            match self.outcomes.recv() {
                Ok(true) => {
                    self.seen.send(String::from_utf8_lossy(text).into_owned()).unwrap();
                    Ok(text.len())
                }
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_hangs_or_fails_keeps_nobody_waiting_and_what_was_lost_is_counted() {
        let (outcome, outcomes) = channel();
        let (seen, written) = channel();
        let mut lines = Lines::new(Place { outcomes, seen });
        // Nobody writes: the queue fills, and the rest is lost.
        lines.write_all(b"first\n").unwrap();
        let line = vec![b'x'; QUEUE_BYTES_MAX / 4];
        for _ in 0..10 {
            lines.write_all(&line).unwrap();
        }
        let lost = lines.0.lock().lost;
        assert!((6..10).contains(&lost), "{lost} of ten lines that are a quarter of the queue");
        // The disk is full for one line, then it goes on.
        outcome.send(false).unwrap();
        for _ in 0..10 - lost {
            outcome.send(true).unwrap();
        }
        let next = written.recv().unwrap();
        assert!(next.starts_with(&format!("({} lines of this log were lost)\n", lost + 1)));
        assert_eq!(written.iter().take(9 - lost as usize).last().unwrap().len(), line.len());
        lines.drain(Duration::from_secs(60));
        assert!(lines.0.lock().lines.is_empty() && lines.0.lock().bytes == 0);
    }
}
