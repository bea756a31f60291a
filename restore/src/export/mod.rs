//! Export: any moment over NBD, at once, straight from the journal; with or without an agent.
//!
//! ```text
//! client ─ NBD ─► WritableExport ─► PointExport ─► VolumeAt ─► journal (pinned)
//!                  │ written map      │
//!                  └► scratch file    └► payload cache, shared by all volumes
//! reader ─ socket ─► memory ─► the stream of a warm restore, made while it is sent
//! QEMU ── socket ◄─► live ───► device state, then pages as they are asked for
//! ```
//!
//! What always holds: the journal is pinned as long as an export lives, and never written (I-7);
//! a client gets the bytes of the point or an error (I-12); nothing is read before a client asks
//! but what finding the point needs; memory is bounded by the cache, the connections' buffers and
//! two bits a block written (I-11).

mod cache;
mod live;
mod memory;
mod names;
mod point;
mod scratch;
mod volume;
mod warm;
mod writable;
mod written;

use crate::error::{Error, Result};
use crate::open::Recovery;
use crate::plan::{self, Selection};
use crate::time::rfc3339;
use afterimage_journal::Seq;
use afterimage_journal::history::Point;
use afterimage_journal::meta::Volume;
pub use afterimage_nbd::SOCKET_PATH_BYTES_MAX;
use afterimage_nbd::{Export, Exports, Limits, ListenError, NoObserver, Server, ServerHandle};
use cache::{CACHE_BYTES_MAX, PayloadCache};
use point::PointExport;
use scratch::Scratch;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use volume::VolumeAt;
pub use warm::{WarmExport, export_warm};
use writable::WritableExport;

/// How long the end of an export waits for requests that are being answered.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// What to export, and where.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// The Unix socket to listen on; a stale one is replaced.
    pub socket: PathBuf,
    /// Node, disk identity, device or image file of each wanted disk; empty: all.
    pub disks: Vec<String>,
    /// Take writes, into a layer that is thrown away.
    pub writable: bool,
    /// Directory for that layer; `None`: `TMPDIR`, else `/var/tmp`.
    pub scratch: Option<PathBuf>,
}

/// Set when a layer is first written to.
type Touched = Arc<AtomicBool>;

/// A disk that is exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDisk {
    /// The export's name. A single disk also has the name "", and disks of a group GUEST/NODE.
    pub name: String,
    /// QEMU's node name at that moment.
    pub node: String,
    /// The guest.
    pub guest: String,
    /// Its size.
    pub bytes: u64,
}

/// What is exported: the output of `export --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportReport {
    /// The socket.
    pub socket: PathBuf,
    /// The disks.
    pub exports: Vec<ExportedDisk>,
    /// The position.
    pub seq: Seq,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
    /// Whether clients may write.
    pub writable: bool,
    /// Where the scratch layer lies.
    pub scratch: Option<PathBuf>,
    /// Bytes free there at the beginning.
    pub scratch_free_bytes: Option<u64>,
    /// Disks of the group that had not been synced at that position, and so are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
    /// The memory of guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memories: Vec<ExportedMemory>,
    /// What may keep a copy from being resumed, or is another way than it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A guest's memory that is exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedMemory {
    /// The guest.
    pub guest: String,
    /// The socket: who connects gets the stream.
    pub socket: PathBuf,
    /// The socket for a QEMU that runs the guest meanwhile (`postcopy-ram`); `None`: it can't here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_socket: Option<PathBuf>,
    /// The script that resumes a copy from it, when its disks take writes.
    pub script: Option<PathBuf>,
}

/// Exports that are being served, until this is dropped. It holds the journal's pin.
pub struct Exporting {
    server: ServerHandle,
    /// The memory of guests, and files that go with it.
    memory: Vec<warm::Served>,
    /// What is served.
    pub report: ExportReport,
}

impl Exporting {
    /// Clients that are connected now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// Removes the sockets, answers what has arrived (for a second at most), and ends.
    pub fn end(self) {
        drop(self.memory);
        self.server.shutdown();
    }
}

/// Serves the disks of a recovery point over NBD.
///
/// # Errors
/// The point isn't restorable, a disk isn't known, the socket can't be made or is somebody's, or
/// the scratch directory can't be used.
pub fn export(recovery: Recovery, point: Point, options: &ExportOptions) -> Result<Exporting> {
    serve(&Arc::new(recovery), point, options).map(|(exporting, _)| exporting)
}

/// Serves disks; with them the marks that their layers set with their first writes.
fn serve(
    recovery: &Arc<Recovery>,
    point: Point,
    options: &ExportOptions,
) -> Result<(Exporting, Vec<Touched>)> {
    recovery.history.check_key()?;
    check_socket(&options.socket)?;
    let history = &recovery.history;
    let guest = recovery.guest.as_deref();
    let selection = Selection { guest, disks: &options.disks };
    let (chosen, skipped) = plan::choose(history, point.seq, selection)?;
    let scratch = match (options.writable, &options.scratch) {
        (false, _) => None,
        (true, Some(dir)) => Some(dir.clone()),
        (true, None) => Some(scratch::default_dir()),
    };
    let free = scratch.as_deref().map(|dir| scratch::check_dir(dir, &history.dir)).transpose()?;
    let cache = Arc::new(PayloadCache::new(CACHE_BYTES_MAX));
    let mut opened: Vec<Arc<dyn Export>> = Vec::new();
    let mut touched = Vec::new();
    for volume in &chosen {
        let (export, mark) = open(recovery, volume, point, &cache, scratch.as_deref())?;
        opened.push(export);
        touched.extend(mark);
    }
    let exports = Exports::default();
    for (name, index) in names::all(&chosen) {
        exports.insert(&name, Arc::clone(&opened[index]));
    }
    let report = ExportReport {
        socket: options.socket.clone(),
        exports: reported(&chosen, &opened),
        seq: point.seq,
        time: rfc3339(point.wall_ns),
        writable: options.writable,
        scratch,
        scratch_free_bytes: free,
        skipped,
        memories: Vec::new(),
        warnings: Vec::new(),
    };
    let limits = Limits { drain_max: DRAIN_MAX, ..Limits::default() };
    let server = Server::listen(&options.socket, Arc::new(exports), limits, Arc::new(NoObserver))
        .map_err(|e| not_listening(&options.socket, e))?;
    Ok((Exporting { server, memory: Vec::new(), report }, touched))
}

fn reported(chosen: &[&Volume], opened: &[Arc<dyn Export>]) -> Vec<ExportedDisk> {
    let names = names::primary(chosen);
    let disks = chosen.iter().zip(opened).zip(names);
    disks
        .map(|((volume, export), name)| ExportedDisk {
            name,
            node: volume.node.clone(),
            guest: volume.guest.clone(),
            bytes: export.bytes(),
        })
        .collect()
}

fn open(
    recovery: &Arc<Recovery>,
    volume: &Volume,
    point: Point,
    cache: &Arc<PayloadCache>,
    scratch: Option<&Path>,
) -> Result<(Arc<dyn Export>, Option<Touched>)> {
    let shown = format!("{} at seq:{}", plan::shown(volume), point.seq);
    let at_point = VolumeAt::new(Arc::clone(recovery), volume, point.seq)?;
    let bytes = at_point.bytes();
    let export = PointExport::new(at_point, Arc::clone(cache), shown);
    let Some(dir) = scratch else { return Ok((Arc::new(export), None)) };
    let scratch = Scratch::new(dir, bytes, &recovery.history.dir)?;
    let export = WritableExport::new(Arc::new(export), scratch);
    let touched = export.touched();
    Ok((Arc::new(export), Some(touched)))
}

/// What can be said against a socket's path before anything is read.
fn check_socket(socket: &Path) -> Result<()> {
    let shown = socket.display();
    let bytes = socket.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(Error::Usage(format!(
            "the socket's path is {bytes} bytes long, and {SOCKET_PATH_BYTES_MAX} is the longest \
             that works: choose a shorter one than {shown}"
        )));
    }
    let parent = match socket.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => return Err(Error::Usage(format!("{shown} can't be a socket: it is a directory"))),
    };
    if !parent.is_dir() {
        return Err(Error::Usage(format!(
            "there is no directory {} for the socket: make it, or choose another --socket",
            parent.display()
        )));
    }
    Ok(())
}

fn not_listening(socket: &Path, error: ListenError) -> Error {
    match error {
        ListenError::Io { source, .. } => Error::export("listen on", socket, source),
        taken => Error::Usage(taken.to_string()),
    }
}
