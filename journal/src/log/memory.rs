//! Appending guest memory: pages that a checkpoint found changed.
//!
//! What always holds: it comes second. A page waits where a captured write would have to.

use super::{Draft, Journal};
use crate::error::Result;
use crate::format::record::Kind;
use crate::{Seq, VolumeId};

impl Journal {
    /// Appends pages of a RAM volume, or bytes of a device state, at a byte address.
    ///
    /// # Errors
    /// As [`Journal::reserve`].
    pub fn append_memory(&self, volume: VolumeId, addr: u64, bytes: &[u8]) -> Result<Seq> {
        let len = bytes.len() as u32;
        self.append(&Draft { kind: Kind::Write, flags: 0, volume, addr, len, scope: 0 }, bytes)
    }

    /// Appends that a range of a RAM volume reads as zeroes.
    ///
    /// # Errors
    /// As [`Journal::reserve`].
    pub fn append_memory_zero(&self, volume: VolumeId, addr: u64, len: u32) -> Result<Seq> {
        self.append(&Draft { kind: Kind::Zero, flags: 0, volume, addr, len, scope: 0 }, &[])
    }
}
