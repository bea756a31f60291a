//! The log's end as it comes: units begin, grow and are sealed.

use super::incoming::Incoming;
use super::{INCOMING_MAX, NUMBER_MAX, Replica, Taken, sink_error};
use crate::catalogue::epoch_start;
use crate::format::unit_header::{FLAG_MERGED, UnitHeader};
use crate::pool::{FileName, Found, Slot};
use crate::unit;
use crate::wire::{OP_BYTES_MAX, SinkError};

impl Replica {
    pub(super) fn begin(&mut self, header: &UnitHeader) -> Taken<()> {
        let identity = self.identity_of_sender()?;
        let number = header.number;
        let fits = header.group == identity.group.into_bytes()
            && header.unit_bytes == identity.unit_bytes
            && header.flags & FLAG_MERGED == 0
            && (1..=NUMBER_MAX).contains(&number)
            && header.after_seq.max(header.prev_last_seq) <= NUMBER_MAX;
        if !fits || header.epoch > self.sender_epoch() {
            return Err(SinkError::Broken(format!("unit {number} is none of this journal")));
        }
        if self.held.covers(number) {
            return Ok(());
        }
        match self.incoming.get(&number) {
            Some(unit) if unit.header == *header => return Ok(()),
            Some(unit) if !unit.records.is_empty() => {
                return Err(SinkError::Refused(format!(
                    "unit {number} is here with records that the source doesn't have: the site \
                     holds another branch of the journal, which is kept"
                )));
            }
            _ => self.check_begin(header)?,
        }
        let slot = match self.incoming.get(&number) {
            // Nothing was ever in it: the source made it anew.
            Some(unit) => {
                let dir = unit.found.path.parent().unwrap_or(&self.dir).to_owned();
                Slot { dir, spare: None }
            }
            None if self.incoming.len() >= INCOMING_MAX => {
                return Err(SinkError::Broken("too many units are not sealed".into()));
            }
            None => {
                let allocator = &self.options.allocator;
                allocator.allocate(&self.dir, header.unit_bytes).map_err(sink_error)?
            }
        };
        let is_encrypted = identity.encryption.is_some();
        let path = unit::create(&self.storage, &self.dir, &slot, header).map_err(sink_error)?;
        let found = Found { name: FileName::Unit(number), path };
        let opened = Incoming::open(&*self.storage, &found, *header, is_encrypted);
        self.incoming.insert(number, opened.map_err(sink_error)?);
        self.held.epoch = self.held.epoch.max(header.epoch);
        self.sure.count(FileName::Unit(number), header.epoch);
        self.sure.begin(epoch_start(header));
        Ok(())
    }

    pub(super) fn bytes(&mut self, unit: u64, at: u64, bytes: &[u8]) -> Taken<()> {
        self.identity_of_sender()?;
        if self.held.covers(unit) {
            return Ok(());
        }
        if bytes.len() > OP_BYTES_MAX {
            return Err(SinkError::Broken(format!("{} bytes in one piece", bytes.len())));
        }
        let incoming = self.incoming.get_mut(&unit);
        let incoming =
            incoming.ok_or_else(|| SinkError::Broken(format!("unit {unit} did not begin")))?;
        incoming.take(at, bytes)
    }

    pub(super) fn seal(&mut self, number: u64, end: u64, index_crc: u32) -> Taken<()> {
        self.identity_of_sender()?;
        if self.held.covers(number) {
            return Ok(());
        }
        let broken = |why: &str| SinkError::Broken(format!("unit {number}: {why}"));
        let unit = self.incoming.get(&number).ok_or_else(|| broken("it did not begin"))?;
        if unit.end != end {
            return Err(broken("its end is not where the source has it"));
        }
        if unit.index_crc() != index_crc {
            return Err(broken("its records are not those that the source has"));
        }
        self.seal_here(number)
    }

    /// Seals a unit with what is in it.
    pub(super) fn seal_here(&mut self, number: u64) -> Taken<()> {
        let Some(unit) = self.incoming.get(&number) else { return Ok(()) };
        let highest = unit.records.last().map_or(0, |(_, r)| r.seq);
        let sealed = unit.seal();
        if sealed.is_err() {
            self.doubt();
        }
        sealed.map_err(sink_error)?;
        self.highest = self.highest.max(highest);
        self.incoming.remove(&number);
        self.counts(FileName::Unit(number));
        Ok(())
    }
}
