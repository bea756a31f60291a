//! Plain writes by the flusher's own thread; syncs by another, so that writing goes on meanwhile.
//! Needs nothing of a file but what every `Storage` has.

use super::super::unit::OpenUnit;
use super::device::{Device, Done, Write};
use crate::planted;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Writes one after the other.
pub(super) struct Plain {
    done: Vec<Done>,
    syncer: Option<Syncer>,
}

/// The thread that syncs. Its queues hold at most one entry for each unit that is open.
struct Syncer {
    work: Option<Sender<(u64, Arc<OpenUnit>)>>,
    done: Receiver<Done>,
    flying: usize,
    thread: Option<JoinHandle<()>>,
}

impl Plain {
    /// With a thread of its own for syncs; without one when none can be had, or `inline`.
    pub(super) fn new(inline: bool) -> Self {
        let syncer = if inline { None } else { Syncer::start().ok() };
        Self { done: Vec::new(), syncer }
    }
}

impl Syncer {
    fn start() -> std::io::Result<Self> {
        let (work, wanted) = channel::<(u64, Arc<OpenUnit>)>();
        let (report, done) = channel();
        let thread = std::thread::Builder::new().name("journal-sync".into()).spawn(move || {
            for (token, unit) in wanted {
                if report.send(Done { token, result: unit.data.sync_data() }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { work: Some(work), done, flying: 0, thread: Some(thread) })
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Device for Plain {
    fn write(&mut self, token: u64, write: Write) {
        let Write { unit, at, span } = write;
        let result = span.each_piece(|offset, piece| unit.data.write_all_at(piece, at + offset));
        self.done.push(Done { token, result });
    }

    fn sync(&mut self, token: u64, unit: Arc<OpenUnit>) {
        let left = match &mut self.syncer {
            Some(Syncer { work: Some(work), flying, .. }) => {
                *flying += 1;
                work.send((token, unit)).err().map(|unsent| {
                    *flying -= 1;
                    unsent.0
                })
            }
            _ => Some((token, unit)),
        };
        if planted::is("acknowledge-before-sync") {
            let token = left.map_or(token, |(token, _)| token);
            return self.done.push(Done { token, result: Ok(()) });
        }
        if let Some((token, unit)) = left {
            let result = match unit.data.sync_data() {
                Err(_) if planted::is("retry-fsync") => unit.data.sync_data(),
                result => result,
            };
            self.done.push(Done { token, result });
        }
    }

    fn wait(&mut self, limit: Duration, done: &mut Vec<Done>) {
        if let Some(syncer) = self.syncer.as_mut().filter(|s| s.flying > 0) {
            let limit = if self.done.is_empty() { limit } else { Duration::ZERO };
            let first = syncer.done.recv_timeout(limit).ok();
            let before = done.len();
            done.extend(first);
            done.extend(syncer.done.try_iter());
            syncer.flying -= done.len() - before;
        }
        done.append(&mut self.done);
    }
}
