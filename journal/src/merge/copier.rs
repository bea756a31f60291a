//! A record, or a part of one, as it goes into a merged unit: decrypted, for the merged unit has a key of
//! its own.
//!
//! What always holds: its original passed its checksum, and opened if it was encrypted (I-12); a whole one
//! stays compressed as it was. A part of a compressed one is compressed again where that pays: what is
//! written twice comes out the same.

use super::content::{Kept, Source};
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::cipher::{Cipher, Origin};
use crate::format::payload::{self, PLAIN, Packer};
use crate::format::record::Record;
use crate::planted;
use crate::unit::{self, read_payload};

/// See the module.
pub(super) struct Copier<'c> {
    sources: &'c [Source],
    cipher: &'c Cipher,
    /// The payload that was read last, decrypted, and whose it is: the next part may be of it.
    stored: Vec<u8>,
    of: Option<(usize, u64)>,
    /// Memory to decrypt into.
    decrypted: Vec<u8>,
    /// It unpacked, if it was compressed.
    unpacked: Vec<u8>,
    packer: Packer,
}

impl<'c> Copier<'c> {
    /// One that copies from these.
    pub fn new(sources: &'c [Source], cipher: &'c Cipher) -> Result<Self> {
        let packer = Packer::new().map_err(|e| Error::Invalid(format!("compress: {e}")))?;
        let (stored, decrypted, unpacked) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { sources, cipher, stored, of: None, decrypted, unpacked, packer })
    }

    /// The record that is left, and its payload, not encrypted.
    pub fn copy(&mut self, item: &Kept) -> Result<(Record, &[u8])> {
        let original = &item.record;
        let mut record = *original;
        record.addr += item.skip;
        record.len = item.len;
        // Its unit's own time was another; what is known of it is the wall time.
        record.mono_ms = 0;
        record.encrypted = false;
        if original.payload_bytes == 0 {
            return Ok((record, &[]));
        }
        let source = source(self.sources, item)?;
        let (at, seq) = (item.at, original.seq);
        let broken = |why| Error::Damaged { unit: source.path.clone(), at, seq, why };
        if self.of != Some((item.source, item.at)) {
            self.of = None;
            read_kept(self.sources, item, &mut self.stored)?;
            let origin = Origin { cipher: self.cipher, unit: &source.header, at };
            payload::decrypt(&origin, original, &mut self.stored, &mut self.decrypted)
                .map_err(broken)?;
            self.of = Some((item.source, item.at));
        }
        let stored = &self.stored;
        if item.is_whole() {
            if original.encrypted {
                record.payload_bytes = stored.len() as u32;
                record.payload_crc = checksum::crc32c(stored);
            }
            // Else the checksum was just proved: it is not made anew.
            return Ok((record, stored));
        }
        let data = payload::expand(original, stored, &mut self.unpacked).map_err(broken)?;
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

fn source<'s>(sources: &'s [Source], item: &Kept) -> Result<&'s Source> {
    let found = sources.get(item.source);
    found.ok_or_else(|| Error::Invalid(format!("record {} lies in no unit", item.record.seq)))
}

/// Reads and checks the whole original payload as it is stored.
pub(super) fn read_kept(sources: &[Source], item: &Kept, payload: &mut Vec<u8>) -> Result<()> {
    let source = source(sources, item)?;
    let bytes = item.record.payload_bytes;
    if u64::from(bytes) > unit::UNIT_BYTES_MAX / 8 {
        return Err(Error::TooLarge { bytes: bytes.into(), limit_bytes: unit::UNIT_BYTES_MAX / 8 });
    }
    payload.resize(bytes as usize, 0);
    read_payload(source.file.as_ref(), &source.path, item.at, &item.record, payload)
}
