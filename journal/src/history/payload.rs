//! Reading what records hold: whole payloads, each checked before any of it is handed out (I-12).

use super::{Entry, History};
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::cipher::{Cipher, Key, Origin};
use crate::format::payload;
use crate::format::record::Kind;
use crate::key;
use crate::unit;
use std::sync::Arc;

/// Payloads that are kept for readers of small parts.
pub(super) const PAYLOADS_MAX: usize = 32;
/// Most bytes of payloads that are kept.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 << 20;

impl History {
    /// Takes the key of an encrypted journal: from then on its data can be read.
    ///
    /// # Errors
    /// The key is not this journal's, or the journal is not encrypted.
    pub fn unlock(&mut self, key: Option<&Key>) -> Result<()> {
        self.cipher = key::cipher(&self.dir, &self.identity, key)?;
        Ok(())
    }

    /// Whether data can be read: that the journal is not encrypted, or its key was given.
    ///
    /// # Errors
    /// [`Error::KeyMissing`].
    pub fn check_key(&self) -> Result<()> {
        match &self.cipher {
            Cipher::Locked => Err(Error::KeyMissing { journal: self.dir.clone() }),
            Cipher::Plain | Cipher::Open(_) => Ok(()),
        }
    }

    fn origin(&self, entry: &Entry) -> Result<Origin<'_>> {
        let unit = &self.unit(entry.unit)?.header;
        Ok(Origin { cipher: &self.cipher, unit, at: entry.at })
    }

    /// A record's payload as it was captured: what was read as it is stored, if that is the same, or that
    /// unpacked and decrypted into `room`. The caller has seen to its checksum.
    ///
    /// # Errors
    /// What is wrong with what is stored.
    pub fn unpack<'b>(
        &self,
        entry: &Entry,
        stored: &'b [u8],
        room: &'b mut Vec<u8>,
    ) -> std::result::Result<&'b [u8], &'static str> {
        let origin = self.origin(entry).map_err(|_| "its unit is not there")?;
        payload::unpack(&origin, &entry.record, stored, room)
    }

    /// Reads and checks a record's whole payload as it was captured.
    ///
    /// # Errors
    /// It can't be read, its checksum doesn't match, or it can't be unpacked or decrypted;
    /// [`Error::KeyMissing`].
    pub fn read_payload(&self, entry: &Entry, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(entry.record.data_bytes() as usize, 0);
        self.read_payload_into(entry, buffer)
    }

    /// As [`History::read_payload`], into memory of just its size: what the record's `data_bytes` says.
    ///
    /// # Errors
    /// As there.
    pub fn read_payload_into(&self, entry: &Entry, buffer: &mut [u8]) -> Result<()> {
        self.check_key()?;
        let file = self.file(entry.unit)?;
        let origin = self.origin(entry)?;
        let path = &self.unit(entry.unit)?.path;
        unit::read_data(&*file, path, &origin, &entry.record, buffer)
    }

    /// Reads and checks a record's whole payload, unless that was done lately.
    fn payload(&self, entry: &Entry) -> Result<Arc<Vec<u8>>> {
        let key = (entry.unit, entry.at);
        if let Some(known) = self.payloads.get(&key) {
            return Ok(known);
        }
        let mut bytes = Vec::new();
        self.read_payload(entry, &mut bytes)?;
        let bytes = Arc::new(bytes);
        self.payloads.put(key, Arc::clone(&bytes), bytes.len());
        Ok(bytes)
    }

    /// Fills `buffer` with what record `seq` holds of its volume from the byte address `addr` on.
    ///
    /// # Errors
    /// The record doesn't hold all of that, or is damaged.
    pub fn read_piece(&self, seq: Seq, addr: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = addr + done as u64;
            let entry = self.locate(seq, at)?;
            let skip = at - entry.record.addr;
            let len = (buffer.len() - done).min((u64::from(entry.record.len) - skip) as usize);
            let part = &mut buffer[done..done + len];
            if entry.record.kind == Kind::Write {
                let payload = self.payload(&entry)?;
                let from = skip as usize;
                let bytes = payload.get(from..from + len).ok_or_else(|| {
                    Error::Invalid(format!("record {seq} is shorter than what it covers"))
                })?;
                part.copy_from_slice(bytes);
            } else {
                part.fill(0);
            }
            done += len;
        }
        Ok(())
    }
}
