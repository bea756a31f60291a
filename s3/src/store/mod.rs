//! Objects under keys: all that is asked of a bucket, so that tests can bring one that is late, forgets
//! replies, or breaks off.
//!
//! What always holds:
//! * nothing else in this crate speaks to a server;
//! * a store tells what it *knows*: an outcome that it doesn't know is [`StoreError::Unclear`], and the
//!   request may have taken effect, or may still;
//! * a store repeats nothing by itself: that is [`Patient`]'s, which knows what may be repeated.

mod bucket;
mod patient;

pub use bucket::Bucket;
pub use patient::{Created, Patience, Patient, Stats, StatsNow};

use std::fmt::Debug;
use std::ops::Range;
use std::time::SystemTime;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no object of this key.
    #[error("there is no object {0}")]
    NotFound(String),
    /// A conditional write found an object of its key.
    #[error("there is an object {0} already")]
    Exists(String),
    /// No answer, or one that says that the server failed: it may have taken effect.
    #[error("{0}")]
    Unclear(String),
    /// The server doesn't want to: credentials, rights, no such bucket. It won't later either.
    #[error("{0}")]
    Refused(String),
    /// The server has no room.
    #[error("{0}")]
    Full(String),
    /// The server can't do this.
    #[error("{0}")]
    Unsupported(String),
}

/// A key that a listing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Keys, ascending; at most a page of them.
    pub keys: Vec<String>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// Objects under keys. Calls block, each for a bounded time.
pub trait Store: Send + Sync + Debug {
    /// An object's bytes, or a range of them, which lies within it.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError>;

    /// Whether there is an object of this key.
    ///
    /// # Errors
    /// See [`StoreError`]; one that isn't there is no error.
    fn has(&self, key: &str) -> Result<bool, StoreError>;

    /// Writes an object whose key is used for these bytes alone; it can't be deleted before `until`.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn put(&self, key: &str, bytes: &[u8], until: Option<SystemTime>) -> Result<(), StoreError>;

    /// Writes an object only if there is none of this key.
    ///
    /// # Errors
    /// [`StoreError::Exists`]; or as for all.
    fn create(&self, key: &str, bytes: &[u8], until: Option<SystemTime>) -> Result<(), StoreError>;

    /// Deletes an object; one that isn't there is deleted.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Keys that begin with `prefix`, behind the key `after`, a page of them. With `delimiter` what goes
    /// on behind a slash is told once, up to the slash.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn list(&self, prefix: &str, after: &str, delimiter: bool) -> Result<Listed, StoreError>;

    /// Whether objects can be kept from deletion (object lock).
    ///
    /// # Errors
    /// See [`StoreError`].
    fn can_lock(&self) -> Result<bool, StoreError>;
}
