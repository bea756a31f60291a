//! Logging that cannot hang the guard.
//!
//! Writing a log line may block: a full pipe, a hung journald, a log file on a dead disk. So the
//! guard's loop only hands its lines to a thread, without waiting; when the thread is stuck,
//! lines are dropped and counted.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tracing::Level;

/// Lines that wait for the log at most.
const QUEUE_LINES_MAX: usize = 64;
/// How long the end of the guard waits for the last lines.
const LAST_LINES_LIMIT: Duration = Duration::from_millis(200);

pub(crate) struct Report {
    lines: Option<SyncSender<(Level, String)>>,
    written: Receiver<()>,
    dropped_count: u64,
}

impl Report {
    pub(crate) fn start() -> std::io::Result<Report> {
        let (lines, queue) = sync_channel::<(Level, String)>(QUEUE_LINES_MAX);
        let (done, written) = sync_channel(1);
        std::thread::Builder::new().name("guard-log".into()).spawn(move || {
            for (level, line) in queue {
                match level {
                    Level::ERROR => tracing::error!("{line}"),
                    Level::WARN => tracing::warn!("{line}"),
                    _ => tracing::info!("{line}"),
                }
            }
            let _ = done.send(());
        })?;
        Ok(Report { lines: Some(lines), written, dropped_count: 0 })
    }

    pub(crate) fn info(&mut self, line: String) {
        self.line(Level::INFO, line);
    }

    pub(crate) fn warn(&mut self, line: String) {
        self.line(Level::WARN, line);
    }

    pub(crate) fn error(&mut self, line: String) {
        self.line(Level::ERROR, line);
    }

    fn line(&mut self, level: Level, mut line: String) {
        let Some(lines) = &self.lines else { return };
        if self.dropped_count > 0 {
            line.push_str(&format!(" ({} lines before this one were lost)", self.dropped_count));
        }
        match lines.try_send((level, line)) {
            Ok(()) => self.dropped_count = 0,
            Err(_) => self.dropped_count += 1,
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.lines = None;
        let _ = self.written.recv_timeout(LAST_LINES_LIMIT);
    }
}
