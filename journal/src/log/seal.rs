//! Full units get their index and footer, by a thread that keeps nobody else waiting.
//!
//! What always holds: a unit is sealed when all of it is in its file and nobody writes to it any
//! more; its data is durable before its index, its index before its footer.

use super::unit::OpenUnit;
use super::{Inner, lock};
use crate::error::Result;
use crate::{planted, unit};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl OpenUnit {
    /// Writes its index and footer, durably; it is full and in its file. One that can't be sealed still has
    /// its records: no footer may ever say that there are none.
    pub(super) fn seal(&self) -> Result<()> {
        let mut records = std::mem::take(&mut *lock(&self.records));
        records.sort_unstable_by_key(|(at, _)| *at);
        let tail = self.offset(self.end.load(Ordering::Relaxed));
        let sealed = unit::seal(&*self.file, &self.path, &self.header, &records, tail);
        if sealed.is_err() && !planted::is("lost-seal-at-close") {
            *lock(&self.records) = records;
        }
        sealed
    }
}

impl Inner {
    /// The sealer's thread.
    pub(super) fn seal_loop(&self) {
        while let Some(unit) = self.wait_for_written() {
            self.seal(&unit);
        }
    }

    /// Seals all that can be; where there is no thread for it.
    pub(super) fn seal_ready(&self) {
        loop {
            let first = lock(&self.tail).full.first().cloned();
            match first {
                Some(unit) if unit.is_written.load(Ordering::Relaxed) => self.seal(&unit),
                _ => return,
            }
            if lock(&self.tail).stopped.is_some() {
                return;
            }
        }
    }

    fn seal(&self, unit: &OpenUnit) {
        match unit.seal() {
            Ok(()) => {
                let mut tail = lock(&self.tail);
                tail.full.retain(|u| u.header.number != unit.header.number);
                self.room.notify_all();
                drop(tail);
                self.tell_sealed(unit.header.number);
            }
            Err(e) => self.stop_for(&e),
        }
    }

    pub(super) fn tell_sealed(&self, number: u64) {
        self.finals.sealed(number);
        if let Some(hear) = self.on_sealed.get() {
            hear(number);
        }
    }

    fn wait_for_written(&self) -> Option<Arc<OpenUnit>> {
        let mut tail = lock(&self.tail);
        while tail.stopped.is_none() {
            let written = tail.full.iter().find(|u| u.is_written.load(Ordering::Relaxed));
            if let Some(unit) = written {
                return Some(Arc::clone(unit));
            }
            tail = self.sealer_wake.wait(tail).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}
