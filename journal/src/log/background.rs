//! The threads of an open journal, and its end.
//!
//! Locks: `flusher` is held by one thread throughout; `tail` and `sync_ended` are taken for a moment,
//! never one inside the other but `tail` before nothing else.

use super::append::Draft;
use super::tail::Ending;
use super::{Inner, Stop, lock};
use crate::error::{Error, Result};
use crate::format::record::Kind;
use crate::planted;
use crate::pool::FileName;
use crate::pool::table::{self, Change};
use std::sync::Arc;
use std::sync::atomic::Ordering;

type Work = fn(&Inner);

/// Starts the threads.
pub(super) fn start(inner: &Arc<Inner>) -> std::io::Result<()> {
    let works: [(&str, Work); 3] = [
        ("preparer", Inner::prepare_loop),
        ("sealer", Inner::seal_loop),
        ("flusher", Inner::flush_loop),
    ];
    if inner.options.inline {
        return Ok(());
    }
    for (name, work) in works {
        let inner_of_thread = Arc::clone(inner);
        let spawned = std::thread::Builder::new()
            .name(format!("journal-{name}"))
            .spawn(move || work(&inner_of_thread));
        match spawned {
            Ok(handle) => lock(&inner.threads).push(handle),
            Err(e) => {
                inner.abandon();
                return Err(e);
            }
        }
    }
    Ok(())
}

impl Inner {
    /// Ends the threads without syncing: what is committed goes to the files, and survives in the
    /// page cache.
    pub(super) fn abandon(&self) {
        let is_first = {
            let mut tail = lock(&self.tail);
            let is_first = tail.stopped.is_none();
            if is_first {
                let why = "it was let go".into();
                tail.stopped = Some(Stop { why, ending: Ending::LetGo });
            }
            is_first
        };
        self.wake_all();
        if is_first && self.options.inline {
            self.flush_inline();
        }
        self.join();
    }

    fn join(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    /// See [`super::Journal::close`].
    pub(super) fn close(&self) -> Result<()> {
        let closed = self.close_all();
        self.finals.end();
        closed
    }

    fn close_all(&self) -> Result<()> {
        let closed = self.write_close();
        if closed.is_err() {
            self.abandon();
            return closed;
        }
        if self.options.inline {
            self.flush_inline();
        }
        self.join();
        self.check_end()?;
        let (open, next) = {
            let mut tail = lock(&self.tail);
            let mut open = std::mem::take(&mut tail.full);
            tail.unit.end.store(tail.placed(), Ordering::Relaxed);
            open.push(Arc::clone(&tail.unit));
            (open, std::mem::take(&mut tail.next))
        };
        for unit in open {
            if let Err(e) = unit.seal() {
                self.leave_distrust(&e.to_string());
                return Err(e);
            }
            self.tell_sealed(unit.header.number);
        }
        // First of all: a file that the unit table names and that is not there is missed.
        let gone: Vec<Change> =
            next.iter().map(|u| Change::Gone(FileName::Unit(u.header.number))).collect();
        if !gone.is_empty() {
            table::append(&*self.options.storage, &self.dir, &gone)?;
        }
        // Newest first: killed in between, no number is missing below another.
        for unit in next.into_iter().rev() {
            let (storage, path) = (&self.options.storage, &unit.path);
            storage.remove(path).map_err(|e| Error::io("remove unused unit", path, e))?;
            let dir = path.parent().unwrap_or(&self.dir);
            storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
        }
        // Everything is in the units' files: a closed journal needs no ring, nor a copy of it. One
        // that stays does no harm.
        let _ = self.options.storage.remove(&self.dir.join(crate::ring::NAME));
        Ok(())
    }

    /// Whether everything was written and sealed that the threads had in hand when they ended. A seal that
    /// failed is not tried again: a sync that succeeds after one that failed proves nothing.
    fn check_end(&self) -> Result<()> {
        let distrusted = lock(&self.sync_ended).distrusted.clone();
        let distrusted = distrusted.filter(|_| !planted::is("lost-seal-at-close"));
        let why = distrusted.or_else(|| lock(&self.flusher).failed().map(str::to_owned));
        let last_seq = self.head.load(Ordering::Acquire);
        why.map_or(Ok(()), |why| Err(Error::Stopped { last_seq, why, space: false }))
    }

    /// Appends the last record and ends the taking of more, in one step.
    fn write_close(&self) -> Result<()> {
        self.sync_upto(self.head.load(Ordering::Acquire))?;
        let mut tail = self.tail_with_room(0)?;
        self.append_under(&mut tail, &Draft::of(Kind::Close));
        tail.stopped = Some(Stop { why: "it was closed".into(), ending: Ending::Closed });
        drop(tail);
        self.wake_all();
        Ok(())
    }
}
