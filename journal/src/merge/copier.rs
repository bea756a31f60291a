//! A record, or a part of one, as it goes into a merged unit.
//!
//! What always holds: its original passed its checksum (I-12); a whole one is stored as it was. A part of a
//! compressed one is compressed again where that pays: what is written twice comes out the same.

use super::content::{Kept, Source};
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::payload::{self, PLAIN, Packer};
use crate::format::record::Record;
use crate::planted;
use crate::unit::{self, read_payload};

/// See the module.
pub(super) struct Copier<'c> {
    sources: &'c [Source],
    /// The payload that was read last, as it is stored, and whose it is: the next part may be of it.
    stored: Vec<u8>,
    of: Option<(usize, u64)>,
    /// It unpacked, if it was compressed.
    unpacked: Vec<u8>,
    packer: Packer,
}

impl<'c> Copier<'c> {
    /// One that copies from these.
    pub fn new(sources: &'c [Source]) -> Result<Self> {
        let packer = Packer::new().map_err(|e| Error::Invalid(format!("compress: {e}")))?;
        Ok(Self { sources, stored: Vec::new(), of: None, unpacked: Vec::new(), packer })
    }

    /// The record that is left, and its payload as it is to be stored.
    pub fn copy(&mut self, item: &Kept) -> Result<(Record, &[u8])> {
        let original = &item.record;
        if original.payload_bytes > 0 && self.of != Some((item.source, item.at)) {
            self.of = None;
            read_kept(self.sources, item, &mut self.stored)?;
            self.of = Some((item.source, item.at));
        }
        let mut record = *original;
        record.addr += item.skip;
        record.len = item.len;
        // Its unit's own time was another; what is known of it is the wall time.
        record.mono_ms = 0;
        if original.payload_bytes == 0 || item.is_whole() {
            // The checksum was just proved: it is not made anew.
            let payload = if original.payload_bytes == 0 { &[][..] } else { &self.stored };
            return Ok((record, payload));
        }
        let broken = |why: &str| Error::Invalid(format!("record {}: {why}", original.seq));
        let data = payload::unpack(original, &self.stored, &mut self.unpacked).map_err(broken)?;
        let is_lost = original.compression != PLAIN && planted::is("packed-part-from-its-start");
        let from = if is_lost { 0 } else { item.skip as usize };
        let part = data.get(from..from + item.len as usize);
        let part = part.ok_or_else(|| broken("it is shorter than what it covers"))?;
        let (compression, payload) = match original.compression {
            PLAIN => (PLAIN, part),
            _ => self.packer.pack(part),
        };
        record.compression = compression;
        record.payload_bytes = payload.len() as u32;
        record.payload_crc = checksum::crc32c(payload);
        Ok((record, payload))
    }
}

/// Reads and checks the whole original payload as it is stored.
pub(super) fn read_kept(sources: &[Source], item: &Kept, payload: &mut Vec<u8>) -> Result<()> {
    let source = sources
        .get(item.source)
        .ok_or_else(|| Error::Invalid(format!("record {} lies in no unit", item.record.seq)))?;
    let bytes = item.record.payload_bytes;
    if u64::from(bytes) > unit::UNIT_BYTES_MAX / 8 {
        return Err(Error::TooLarge { bytes: bytes.into(), limit_bytes: unit::UNIT_BYTES_MAX / 8 });
    }
    payload.resize(bytes as usize, 0);
    read_payload(source.file.as_ref(), &source.path, item.at, &item.record, payload)
}
