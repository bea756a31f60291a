//! A unit's file as a reader sees it beside the writer: with what is in the ring only.

use crate::ring::Overlay;
use crate::storage::StoredFile;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

/// See the module. It can be read and synced, not written.
#[derive(Debug)]
pub(super) struct Overlaid {
    pub(super) file: Arc<dyn StoredFile>,
    pub(super) ring: Overlay,
    /// Number of the unit.
    pub(super) number: u64,
}

fn read_only<T>() -> Result<T> {
    Err(Error::from(ErrorKind::PermissionDenied))
}

impl StoredFile for Overlaid {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize> {
        let left = self.file.bytes()?.saturating_sub(at);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.ring.read(&*self.file, self.number, at, &mut buffer[..len])?;
        Ok(len)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> Result<()> {
        read_only()
    }

    fn sync_data(&self) -> Result<()> {
        self.file.sync_data()
    }

    fn bytes(&self) -> Result<u64> {
        self.file.bytes()
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.file.allocated_bytes()
    }

    fn allocate(&self, _: u64, _: u64) -> Result<()> {
        read_only()
    }

    fn set_bytes(&self, _: u64) -> Result<()> {
        read_only()
    }

    fn punch(&self, _: u64, _: u64) {}

    fn as_file(&self) -> Option<&File> {
        None
    }
}
