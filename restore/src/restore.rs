//! A restore from end to end: decide, write, make whole, name.

use crate::error::{Error, Result};
use crate::open::Recovery;
use crate::plan::Format;
use afterimage_journal::Seq;
use afterimage_journal::history::Point;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The directory; made if it isn't there.
    pub to: PathBuf,
    /// Node, disk identity, device or image file of each wanted disk; empty: all.
    pub disks: Vec<String>,
    /// The images' format.
    pub format: Format,
}

/// How far a restore or a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// A restored disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// QEMU's node name.
    pub node: String,
    /// The image.
    pub path: PathBuf,
}

/// What a restore did: the output of `restore --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The position.
    pub seq: Seq,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
    /// The images.
    pub disks: Vec<DiskReport>,
    /// The memory image of a warm restore.
    pub memory: Option<PathBuf>,
    /// Bytes written to the images; zeroes are left as holes and don't count.
    pub bytes_written: u64,
    /// Duration.
    pub seconds: f64,
    /// Disks of the group that had not been synced at that position, and so are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
}

/// Restores a recovery point to images in a directory, with what is needed to start the copies.
///
/// # Errors
/// The point isn't restorable or needs a damaged record ([`crate::Kind::NotRestorable`]), a disk
/// isn't known, a target exists, or the target can't be written. Nothing half-made keeps its
/// final name.
pub fn restore(
    recovery: &Recovery,
    point: Point,
    options: &RestoreOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let _ = (recovery, point, options, progress);
    Err(Error::Usage("being written".into()))
}
