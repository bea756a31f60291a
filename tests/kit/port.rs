//! The host's end of the guest's line protocol (`tests/guest/program/src/port.rs`).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A connection to the guest's port. A thread takes every line off the socket as it comes, so that
/// the guest never waits for a test that is busy elsewhere.
pub struct GuestPort {
    socket: UnixStream,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl GuestPort {
    /// Takes over `socket`, which is connected to the port.
    pub fn new(socket: UnixStream) -> Self {
        let (sender, lines) = channel();
        let reader = BufReader::new(socket.try_clone().expect("clone the port's socket"));
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { socket, lines, seen: Vec::new() }
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) -> std::io::Result<()> {
        self.socket.write_all(format!("{line}\n").as_bytes())
    }

    /// The next line that contains `pattern`; lines before it are passed over, but kept in
    /// [`GuestPort::seen`]. An error that the guest reports (`.. error ..`, `fatal ..`) ends the
    /// wait unless it is what is waited for.
    pub fn wait_line(&mut self, pattern: &str, limit: Duration) -> Result<String, String> {
        let end = Instant::now() + limit;
        loop {
            let line = match self.lines.recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("no line with {pattern:?} within {limit:?}"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("the port closed before a line with {pattern:?}"));
                }
            };
            self.seen.push(line.clone());
            if line.contains(pattern) {
                return Ok(line);
            }
            if line.contains(" error ") || line.starts_with("fatal") {
                return Err(format!("the guest reported {line:?} while {pattern:?} was awaited"));
            }
        }
    }

    /// Every line that was taken by [`GuestPort::wait_line`] so far, oldest first.
    pub fn seen(&self) -> &[String] {
        &self.seen
    }
}

/// The value of `key=` in one of the guest's lines.
pub fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}
