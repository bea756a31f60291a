//! io_uring: several writes and a sync in flight, none of which keeps the flusher's thread.
//!
//! What always holds: what was queued stays in `flying`, with its memory and its file, until its
//! completion was seen. A submission that failed leaves entries in the kernel's queue, which a later
//! one takes along: so nothing is ever taken out of `flying` for a failed submission, and if the
//! kernel never reports something, its memory is leaked rather than freed.

use super::super::unit::OpenUnit;
use super::device::{Device, Done, Write};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of the submission queue: more than the flusher ever has in flight.
const ENTRIES: u32 = 128;
/// Longest wait for the end of what is in flight when the journal is let go.
const DRAIN: Duration = Duration::from_secs(60);
/// Tries of an operation that the kernel asks to begin again.
const TRIES_MAX: u32 = 1000;

enum What {
    Write { write: Write, done_bytes: usize },
    Sync(Arc<OpenUnit>),
}

struct Flying {
    what: What,
    tries: u32,
}

/// A ring of the kernel's.
pub(super) struct Uring {
    ring: IoUring,
    flying: BTreeMap<u64, Flying>,
    /// What could not be begun.
    refused: Vec<Done>,
    /// The submission queue has entries that the kernel has not taken.
    is_behind: bool,
}

impl Uring {
    /// Sets one up.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(ENTRIES)?;
        Ok(Self { ring, flying: BTreeMap::new(), refused: Vec::new(), is_behind: false })
    }

    fn entry(token: u64, flying: &Flying) -> io::Result<squeue::Entry> {
        let unit = match &flying.what {
            What::Write { write, .. } => &write.unit,
            What::Sync(unit) => unit,
        };
        let file = unit.data.as_file().ok_or(io::ErrorKind::Unsupported)?;
        let fd = Fd(file.as_raw_fd());
        let entry = match &flying.what {
            What::Write { write, done_bytes } => {
                let left = write.span.bytes() - done_bytes;
                let at = write.at + *done_bytes as u64;
                let bytes = u32::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
                opcode::Write::new(fd, write.span.address().wrapping_add(*done_bytes), bytes)
                    .offset(at)
                    .build()
            }
            What::Sync(_) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        };
        Ok(entry.user_data(token))
    }

    fn begin(&mut self, token: u64, flying: Flying) {
        let queued = Self::entry(token, &flying).and_then(|entry| {
            // SAFETY: the entry's memory and descriptor live in `flying` until its completion.
            unsafe { self.ring.submission().push(&entry) }
                .map_err(|_| io::Error::other("the submission queue is full"))
        });
        match queued {
            Ok(()) => {
                self.flying.insert(token, flying);
                self.submit();
            }
            Err(error) => self.refused.push(Done { token, result: Err(error) }),
        }
    }

    /// A refusal is not the end: the entries stay queued, and the next wait submits them.
    fn submit(&mut self) {
        self.is_behind = self.ring.submit().is_err();
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let ended: Vec<(u64, i32)> =
            self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (token, result) in ended {
            let Some(mut flying) = self.flying.remove(&token) else { continue };
            match verdict(&mut flying, result) {
                Some(result) => done.push(Done { token, result }),
                None => self.begin(token, flying),
            }
        }
        done.append(&mut self.refused);
    }
}

/// How it ended; `None`: the rest has to be done.
fn verdict(flying: &mut Flying, result: i32) -> Option<io::Result<()>> {
    let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
    flying.tries += 1;
    match (error, &mut flying.what) {
        (Some(e), _) if is_again(&e) && flying.tries < TRIES_MAX => None,
        (Some(e), _) => Some(Err(e)),
        (None, What::Sync(_)) => Some(Ok(())),
        (None, What::Write { write, done_bytes }) => {
            *done_bytes += result as usize;
            match result {
                0 => Some(Err(io::ErrorKind::WriteZero.into())),
                _ if *done_bytes >= write.span.bytes() => Some(Ok(())),
                _ => None,
            }
        }
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

impl Device for Uring {
    fn write(&mut self, token: u64, write: Write) {
        self.begin(token, Flying { what: What::Write { write, done_bytes: 0 }, tries: 0 });
    }

    fn sync(&mut self, token: u64, unit: Arc<OpenUnit>) {
        self.begin(token, Flying { what: What::Sync(unit), tries: 0 });
    }

    fn wait(&mut self, limit: Duration, done: &mut Vec<Done>) {
        let before = done.len();
        self.reap(done);
        if done.len() > before || self.flying.is_empty() {
            return;
        }
        let limit = Timespec::from(limit);
        let args = SubmitArgs::new().timespec(&limit);
        // Too late, interrupted, or refused for now: all of them are met by coming again.
        if self.ring.submitter().submit_with_args(1, &args).is_err() && self.is_behind {
            self.submit();
        }
        self.reap(done);
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN;
        while !self.flying.is_empty() && Instant::now() < deadline {
            // Whatever their verdicts: nobody asks any more.
            for flying in self.flying.values_mut() {
                flying.tries = TRIES_MAX;
            }
            self.wait(Duration::from_millis(100), &mut Vec::new());
        }
        std::mem::forget(std::mem::take(&mut self.flying));
    }
}
