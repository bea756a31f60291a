//! Reading sealed units again in the background, to find rot before somebody needs what it hit.
//!
//! What always holds: it changes nothing; a finding names unit, byte and record. A budget of bytes
//! bounds each step, but that one record is read whole. A file that was given up meanwhile, and may be
//! another unit by now, is never found damaged; nor is one that the host can't read.

use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::format::cipher::{Cipher, Origin};
use crate::format::record::Record;
use crate::format::unit_header::UnitHeader;
use crate::keeper::ScrubProgress;
use crate::key;
use crate::layout::Identity;
use crate::planted;
use crate::pool::{FileName, Found};
use crate::storage::{Storage, StoredFile};
use crate::unit::{ScanEnd, read_data, read_header, read_payload, read_unit};
use std::path::PathBuf;
use std::sync::Arc;

/// What a step found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// What lies in a unit is not what was written.
    Damage(String),
    /// The host could not read it, which says nothing of what it holds.
    Unread(String),
}

/// How far it is.
#[derive(Default)]
pub struct Scrub {
    /// The last unit number that was read whole in this pass.
    done: u64,
    units_done: u64,
    passes: u64,
    reading: Option<Reading>,
    payload: Vec<u8>,
}

/// A unit in the middle of being read.
struct Reading {
    name: FileName,
    path: PathBuf,
    file: Arc<dyn StoredFile>,
    header: UnitHeader,
    /// Of its journal, without the key.
    cipher: Cipher,
    records: std::vec::IntoIter<(u64, Record)>,
}

impl Reading {
    /// Reads a record. Of one that is encrypted the checksum is enough: it needs no key, and shows rot.
    fn check(&self, at: u64, record: &Record, payload: &mut Vec<u8>) -> Result<()> {
        let (file, path) = (self.file.as_ref(), &self.path);
        if record.encrypted {
            payload.resize(record.payload_bytes as usize, 0);
            return read_payload(file, path, at, record, payload);
        }
        payload.resize(record.data_bytes() as usize, 0);
        let origin = Origin { cipher: &self.cipher, unit: &self.header, at };
        read_data(file, path, &origin, record, payload)
    }

    /// Whether its name still leads to the unit that is read here.
    fn is_there(&self, storage: &dyn Storage, identity: &Identity) -> bool {
        let found = Found { name: self.name, path: self.path.clone() };
        is_there(storage, &found, identity.group.into_bytes(), &self.header)
    }
}

impl Finding {
    fn of(error: &Error) -> Self {
        match error.is_host() {
            true => Self::Unread(error.to_string()),
            false => Self::Damage(error.to_string()),
        }
    }
}

/// Whether a unit's file is still under its name. One that is given up loses its name before anything is
/// written to it, so that what was read before this answer was of the unit. A damaged header is there.
fn is_there(storage: &dyn Storage, found: &Found, group: [u8; 16], header: &UnitHeader) -> bool {
    if planted::is("scrub-a-recycled-unit") {
        return true;
    }
    match read_header(storage, found, group) {
        Ok((_, now)) => now == *header,
        Err(Error::Io { source, .. }) => source.kind() != std::io::ErrorKind::NotFound,
        Err(_) => true,
    }
}

impl Scrub {
    /// Reads on; what it found, if anything. Each record that is damaged or can't be read is one finding.
    pub fn step(
        &mut self,
        storage: &Arc<dyn Storage>,
        identity: &Identity,
        catalogue: &Catalogue,
        budget_bytes: u64,
    ) -> Option<Finding> {
        let mut left = budget_bytes;
        while left > 0 {
            let Some(reading) = &mut self.reading else {
                match self.begin(storage, identity, catalogue) {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(e) => return Some(Finding::of(&e)),
                }
            };
            let Some((at, record)) = reading.records.next() else {
                self.end();
                continue;
            };
            let read = reading.check(at, &record, &mut self.payload);
            left = left.saturating_sub(u64::from(record.payload_bytes).max(1));
            match read {
                Ok(()) => {}
                // Merged and given up meanwhile: there is nothing to find.
                Err(_) if !reading.is_there(&**storage, identity) => self.end(),
                Err(e) => return Some(Finding::of(&e)),
            }
        }
        None
    }

    /// How far it is, for status.
    #[must_use]
    pub fn progress(&self, catalogue: &Catalogue) -> ScrubProgress {
        let units = catalogue.units().len() as u64;
        ScrubProgress { units_done: self.units_done.min(units), units, passes: self.passes }
    }

    /// Opens the next unit; `false`: a pass is over, or there is none.
    fn begin(
        &mut self,
        storage: &Arc<dyn Storage>,
        identity: &Identity,
        catalogue: &Catalogue,
    ) -> Result<bool> {
        let next = catalogue.units().iter().find(|u| u.name.numbers().1 > self.done);
        let Some(unit) = next else {
            self.passes += u64::from(self.units_done > 0);
            (self.done, self.units_done) = (0, 0);
            return Ok(false);
        };
        let (storage, found) = (&**storage, unit.found());
        let group = identity.group.into_bytes();
        let read = read_unit(storage, &found, group, None);
        if read.as_ref().is_err_and(Error::is_exhausted) {
            // It is read at the next step.
            return Ok(false);
        }
        self.done = unit.name.numbers().1;
        self.units_done += 1;
        let is_whole = read.as_ref().is_ok_and(|contents| contents.end == ScanEnd::Sealed);
        if !is_whole && !is_there(storage, &found, group, &unit.header) {
            return Ok(true);
        }
        let contents = read?;
        if contents.end != ScanEnd::Sealed {
            let why = "its index is damaged".to_owned();
            return Err(Error::Unusable { path: contents.path, why });
        }
        let records = contents.records.into_iter();
        let (name, path) = (unit.name, contents.path);
        let cipher = key::cipher(&path, identity, None)?;
        let (file, header) = (contents.file, contents.header);
        self.reading = Some(Reading { name, path, file, header, cipher, records });
        Ok(true)
    }

    fn end(&mut self) {
        let Some(reading) = self.reading.take() else { return };
        tracing::trace!(unit = %reading.name, "scrubbed");
        if let Some(file) = reading.file.as_file() {
            // Read once, of no use in the page cache; advice only.
            let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}
