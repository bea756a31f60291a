//! What could not be read while a journal was loaded, and why: torn, damaged, or kept from us by the host.
//!
//! What always holds: an error of the host is never taken for a torn tail or for damage. Where no file can be
//! read at all, loading fails; where a device fails to read one, what it holds is named as unread.

use super::Damage;
use super::load::Tail;
use crate::Seq;
use crate::error::{Error, Result};
use crate::planted;
use crate::unit::ScanEnd;

/// Whether an error says nothing of what the files hold.
pub(super) fn is_unread(error: &Error) -> bool {
    error.is_host() && !planted::is("host-errors-are-damage")
}

impl Tail<'_> {
    /// Units can't be used.
    ///
    /// # Errors
    /// The host keeps from reading any file.
    pub(super) fn unreadable(&mut self, count: u64, error: Error) -> Result<()> {
        let unread = is_unread(&error);
        if unread && error.is_starved() {
            return Err(error);
        }
        self.lose_units(count, error.to_string());
        if let Some(damage) = self.history.damage.last_mut() {
            damage.unread = unread;
        }
        Ok(())
    }

    /// After power loss a header may be there without its data: such a record above the
    /// watermark, and everything behind it, is a torn tail. Sealed units were synced before their
    /// footer.
    ///
    /// # Errors
    /// The host keeps from reading any file.
    pub(super) fn drop_torn_payloads(&mut self) -> Result<()> {
        if planted::is("keep-torn-payloads") {
            return Ok(());
        }
        let watermark = self.history.watermark;
        let first = self.entries.partition_point(|e| e.record.seq <= watermark);
        for i in first..self.entries.len() {
            let entry = &self.entries[i];
            let is_sealed = self.history.units[entry.unit as usize].end == ScanEnd::Sealed;
            if is_sealed || entry.record.payload_bytes == 0 {
                continue;
            }
            let seq = entry.record.seq;
            match self.payload(entry) {
                Ok(_) => {}
                Err(e) if is_unread(&e) => self.unread(seq, e)?,
                Err(_) => {
                    self.history.torn = true;
                    self.entries.truncate(i);
                    self.find_head();
                    self.history.closed = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The host can't read a record.
    fn unread(&mut self, seq: Seq, error: Error) -> Result<()> {
        if error.is_starved() {
            return Err(error);
        }
        let what = error.to_string();
        self.history.damage.push(Damage { unread: true, ..Damage::of(seq, seq, what) });
        Ok(())
    }
}
