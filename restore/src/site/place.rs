//! Whether the state directory is still the one that the daemon was started on: its file system may be
//! unmounted, or something mounted over it. Nothing is made in its place.

use afterimage_journal::{Error, Result, layout};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The state directory and its pool, each by device and inode.
#[derive(Debug)]
pub(super) struct StatePlace(Vec<(PathBuf, (u64, u64))>);

fn place(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

impl StatePlace {
    /// As it is now.
    ///
    /// # Errors
    /// It can't be looked at.
    pub(super) fn of(state: &Path) -> Result<Self> {
        let paths = [state.to_owned(), layout::pool_dir(state)];
        let places = paths.into_iter().map(|path| match place(&path) {
            Ok(place) => Ok((path, place)),
            Err(e) => Err(Error::io("look at", &path, e)),
        });
        places.collect::<Result<_>>().map(Self)
    }

    /// Whether it is the same.
    ///
    /// # Errors
    /// It isn't: for an operator.
    pub(super) fn check(&self) -> Result<()> {
        for (path, known) in &self.0 {
            if place(path).ok() != Some(*known) {
                let why = "it is not the directory that the daemon was started on: was its file system \
                           unmounted, or something mounted over it? Put it back, or restart the daemon";
                return Err(Error::io("use", path, io::Error::other(why)));
            }
        }
        Ok(())
    }
}
