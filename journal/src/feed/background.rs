//! The files that a sink lacks, one after another, behind what is fresh.
//!
//! What always holds: one file at a time; what can't be read is left out by name, and is missing at both
//! ends; a file that goes away while it is sent ends the connection's plan.

use super::plan::Want;
use super::source::gone;
use super::whole::Whole;
use super::{Feed, LOOK_EVERY};
use crate::error::{Error, Result};
use crate::pool::FileName;
use crate::wire::{Extent, Held, Op};

impl Feed {
    /// The next op of the files that the sink lacks; it never waits. `None`: there is nothing left for now.
    ///
    /// # Errors
    /// The journal's files can't be read, or were merged meanwhile: begin anew.
    pub fn background(&mut self) -> Result<Option<Op>> {
        loop {
            if let Some(whole) = self.current.take() {
                return self.next_piece(whole).map(Some);
            }
            if !self.release.is_empty() {
                let names = std::mem::take(&mut self.release);
                self.sink.files.retain(|h| !names.contains(&h.name));
                return Ok(Some(Op::Release(names)));
            }
            if let Some((want, bytes)) = self.wants.pop_front() {
                self.wants_bytes -= bytes;
                self.open_want(want)?;
                continue;
            }
            // A mirror follows what is merged here.
            let is_due = self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
            if !self.mirror || !is_due {
                return Ok(None);
            }
            self.seen = self.source.finals.now();
            self.note_fresh();
            self.plan()?;
            if self.wants.is_empty() && self.release.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The unit at the log's end is the sink's, too, as far as it was sent.
    fn note_fresh(&mut self) {
        let name = FileName::Unit(self.at.0);
        self.sink.files.retain(|h| h.name != name);
        if let Some(unit) = self.unit.as_ref().filter(|_| self.begun) {
            let (salt, epoch) = (unit.header.salt, unit.header.epoch);
            let extent = Extent::Open(self.at.1);
            self.sink.files.push(Held { name, salt, extent, epoch, lowest: 0 });
        }
    }

    fn open_want(&mut self, want: Want) -> Result<()> {
        // The log's end will come to it.
        if want.source().numbers().1 >= self.at.0 {
            return Ok(());
        }
        let name = want.source();
        let found = self.source.find(name)?.ok_or_else(|| gone(name))?;
        self.source.hold();
        let opened = match want {
            Want::Whole(_, at) => {
                let tried = self.tried.keys().any(|(tried, _)| *tried == name);
                self.source.whole(&found, at, tried)
            }
            Want::Delta { name, above, .. } => self.source.delta(&found, name, above),
        };
        match opened {
            Ok(whole) => self.current = Some(whole),
            Err(error @ (Error::Damaged { .. } | Error::Unusable { .. })) => {
                // The same is missing here: it is shown as damage at both ends.
                tracing::error!(unit = %name, %error, "it is damaged, and left out at the site");
                self.source.let_go(false);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn next_piece(&mut self, mut whole: Whole) -> Result<Op> {
        self.source.let_go(true);
        let (op, is_last) = match whole.next() {
            Ok(next) => next,
            Err(e) => {
                whole.discard(self.source.storage());
                return Err(e);
            }
        };
        if is_last {
            let (name, salt) = (whole.name(), whole.salt());
            *self.tried.entry((name, salt)).or_default() += 1;
            self.sink_has(name, salt);
            whole.discard(self.source.storage());
            self.source.let_go(false);
            // It is acknowledged with the next `Sync`.
            self.is_due = true;
            if self.mirror {
                self.note_fresh();
                self.plan()?;
            }
        } else {
            self.current = Some(whole);
        }
        Ok(op)
    }
}
