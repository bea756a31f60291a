//! Copying a unit's file to another member: a draft that is read back, synced, and then gets its name.

use super::live::{Pool, lock};
use crate::error::{Error, Result};
use crate::storage::{Access, StoredFile};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// How the name of a draft of a move ends.
pub(super) const DRAFT: &str = ".moved.tmp";
/// What is copied at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Zeroes of this length stay holes.
const HOLE_BYTES: usize = 64 << 10;

impl Pool {
    /// Copies a file into a directory, reads it back, and gives it its name.
    pub(super) fn copy(
        &self,
        file: &Arc<dyn StoredFile>,
        from: &Path,
        to: &Path,
        name: &str,
    ) -> Result<()> {
        let draft = to.join(format!("{name}{DRAFT}"));
        let written = self
            .storage
            .open(&draft, Access::Replace)
            .map_err(|e| Error::io("create", &draft, e))?;
        let bytes = file.bytes().map_err(|e| Error::io("look at", from, e))?;
        written.set_bytes(bytes).map_err(|e| Error::io("create", &draft, e))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < bytes {
            let got = file.read_at(&mut chunk, at).map_err(|e| Error::io("read", from, e))?;
            if got == 0 {
                return Err(Error::io("read", from, io::ErrorKind::UnexpectedEof));
            }
            for (i, piece) in chunk[..got].chunks(HOLE_BYTES).enumerate() {
                if piece.iter().any(|b| *b != 0) {
                    written
                        .write_all_at(piece, at + (i * HOLE_BYTES) as u64)
                        .map_err(|e| Error::io("write", &draft, e))?;
                }
            }
            at += got as u64;
        }
        written.sync_data().map_err(|e| Error::io("sync", &draft, e))?;
        self.check_same(file, from, &draft)?;
        let _one = lock(&self.renaming);
        if !self.storage.exists(from) {
            return Err(Error::io("find", from, io::ErrorKind::NotFound));
        }
        let path = to.join(name);
        self.storage.rename(&draft, &path).map_err(|e| Error::io("rename to", &path, e))?;
        self.storage.sync_dir(to).map_err(|e| Error::io("sync directory", to, e))
    }

    /// Reads both and compares.
    fn check_same(&self, file: &Arc<dyn StoredFile>, from: &Path, to: &Path) -> Result<()> {
        if self.is_same(file, from, to)? {
            return Ok(());
        }
        let why = format!("it is not the same as {}, which stays", from.display());
        Err(Error::Unusable { path: to.to_owned(), why })
    }

    /// Whether two files have the same bytes.
    pub(super) fn is_same(
        &self,
        file: &Arc<dyn StoredFile>,
        from: &Path,
        to: &Path,
    ) -> Result<bool> {
        let other = self.storage.open(to, Access::Read).map_err(|e| Error::io("open", to, e))?;
        let (mut a, mut b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut at = 0;
        loop {
            let got = file.read_at(&mut a, at).map_err(|e| Error::io("read", from, e))?;
            let got_b = other.read_at(&mut b, at).map_err(|e| Error::io("read", to, e))?;
            if a[..got] != b[..got_b] {
                return Ok(false);
            }
            if got == 0 {
                return Ok(true);
            }
            at += got as u64;
        }
    }
}
