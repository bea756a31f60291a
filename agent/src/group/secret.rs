//! The key of a group's journal: its file's path, and what was read of it, once.
//!
//! What always holds: the key is in memory only, and never shown; only its file's path is remembered, in
//! the guests' settings.

use super::Group;
use afterimage_journal::{Error, Key, Options, Result, key};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Secret {
    file: Option<PathBuf>,
    key: OnceLock<Key>,
}

impl Secret {
    /// Of a journal that is encrypted with what this file holds; `None`: of one that isn't.
    pub(super) fn of(file: Option<&Path>) -> Self {
        Self { file: file.map(Path::to_owned), key: OnceLock::new() }
    }

    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The key, read at the first time.
    ///
    /// # Errors
    /// The file can't be read, or is none that a key may lie in.
    pub(super) fn key(&self) -> Result<Option<Key>> {
        let Some(file) = &self.file else { return Ok(None) };
        if let Some(key) = self.key.get() {
            return Ok(Some(key.clone()));
        }
        let read = key::read(file)?;
        Ok(Some(self.key.get_or_init(|| read).clone()))
    }

    /// These options with the key.
    ///
    /// # Errors
    /// As [`Secret::key`].
    pub(super) fn options(&self, options: &Options) -> Result<Options> {
        Ok(Options { key: self.key()?, ..options.clone() })
    }

    /// Whether a file holds the very key that the group's journal has.
    ///
    /// # Errors
    /// It doesn't, or can't be read.
    pub(super) fn check(&self, file: &Path) -> Result<()> {
        let other = key::read(file)?;
        match self.key()? {
            Some(key) if key.check() == other.check() => Ok(()),
            Some(_) => {
                let why = "the group's journal was encrypted with another one: leave out --encrypt";
                Err(Error::Unusable { path: file.to_owned(), why: why.into() })
            }
            None => {
                let why = "the group's journal is not encrypted, and can't be from now on: protect \
                           the guest in a new group";
                Err(Error::Unusable { path: file.to_owned(), why: why.into() })
            }
        }
    }
}

impl Group {
    /// The file with the journal's key; `None`: the journal is not encrypted.
    #[must_use]
    pub fn key_file(&self) -> Option<&Path> {
        self.secret.file()
    }

    /// Whether a file holds the very key that the journal is encrypted with.
    ///
    /// # Errors
    /// It doesn't, or can't be read.
    pub fn check_key_file(&self, file: &Path) -> Result<()> {
        self.secret.check(file)
    }
}
