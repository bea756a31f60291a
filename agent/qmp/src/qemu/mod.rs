//! Typed operations on a running QEMU, as mirror capture needs them.
//!
//! [`Qemu`] keeps no state of the guest: each call asks. Whoever owns the guest decides the
//! order of the calls; see [`mirror`] for what must never be done while a server hangs.

pub mod bitmap;
pub mod disk;
mod end_mark;
pub mod export;
mod graph;
pub mod identity;
pub mod layers;
pub mod leftovers;
pub mod mirror;
pub mod names;
pub mod path;
pub mod process;
pub mod snapshot;
pub mod undo;

use std::{fmt, path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};

pub use bitmap::{Bitmap, GRANULARITY_BYTES, NewBitmap, Rotation};
pub use disk::{Disk, DiskIdentity, Disks, Skipped};
pub use export::{Export, ExportSpec, NbdServer};
pub use identity::VmIdentity;
pub use layers::{Below, Layer, Layers};
pub use leftovers::{LeftMirror, Removed};
pub use mirror::{Attachment, IoStatus, JobState, MirrorSpec, RESUME_LIMIT};
pub use names::{Names, OURS};
pub use path::DevicePath;
pub use process::{Process, ProcessId};
pub use snapshot::{Migration, MigrationPhase, MigrationSettings, SnapshotMode};
pub use undo::{MonitorChannel, UndoSnapshot, now_ns, undo_snapshot_blocking};

use crate::{Client, Error, Events, Monitor, Result};

/// The oldest QEMU that will do: it is the first to report `actively-synced`.
pub const VERSION_MIN: Version = Version { major: 8, minor: 2, micro: 0 };

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Micro number.
    pub micro: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// What the guest's processors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// They run.
    Running,
    /// Never started yet (`-S`): no guest write has happened in this life of QEMU.
    Prelaunch,
    /// Waiting for, or receiving, an incoming migration.
    InMigrate,
    /// Stopped, may go on (`paused`, `suspended`, `debug`, `save-vm`, `restore-vm`, ...).
    Paused,
    /// The guest has ended and QEMU stays (`-no-shutdown`), or the guest panicked.
    Shutdown,
    /// It was live-migrated away: its disks belong to another host now.
    PostMigrate,
    /// Stopped by an error of a disk or of KVM.
    Error,
}

impl RunState {
    /// Reads QEMU's `RunState`; what is new to us counts as paused.
    fn from_qemu(name: &str) -> RunState {
        match name {
            "running" | "colo" => RunState::Running,
            "prelaunch" | "preconfig" => RunState::Prelaunch,
            "inmigrate" => RunState::InMigrate,
            "shutdown" | "guest-panicked" => RunState::Shutdown,
            "postmigrate" | "finish-migrate" => RunState::PostMigrate,
            "io-error" | "internal-error" => RunState::Error,
            _ => RunState::Paused,
        }
    }
}

/// Typed operations on one running QEMU. Clones share its monitor.
#[derive(Clone)]
pub struct Qemu {
    monitor: Arc<dyn Monitor>,
    version: Version,
}

impl fmt::Debug for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qemu {} at {}", self.version, self.monitor.describe())
    }
}

impl Qemu {
    /// Uses `monitor`, unless its QEMU is older than [`VERSION_MIN`].
    pub async fn open(monitor: Arc<dyn Monitor>) -> Result<Qemu> {
        let answer = monitor.execute("query-version", Value::Null).await?;
        let number = |k: &str| {
            let n = answer["qemu"][k].as_u64();
            n.ok_or_else(|| Error::shape("query-version", format!("no number `{k}`")))
        };
        let version =
            Version { major: number("major")?, minor: number("minor")?, micro: number("micro")? };
        if version < VERSION_MIN {
            return Err(Error::TooOld { found: version.to_string(), needed: "8.2" });
        }
        Ok(Qemu { monitor, version })
    }

    /// Connects to the QMP socket at `path`.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Qemu> {
        Qemu::open(Arc::new(Client::connect(path).await?)).await
    }

    /// The monitor underneath.
    pub fn monitor(&self) -> &Arc<dyn Monitor> {
        &self.monitor
    }

    /// The version that runs.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The events from now on.
    pub fn events(&self) -> Events {
        self.monitor.events()
    }

    /// What the guest's processors do.
    pub async fn run_state(&self) -> Result<RunState> {
        let answer = self.run("query-status", Value::Null).await?;
        let status = answer["status"].as_str();
        let status = status.ok_or_else(|| Error::shape("query-status", "no `status`"))?;
        Ok(RunState::from_qemu(status))
    }

    /// The guest's UUID, all zeros when none was given to it.
    pub async fn uuid(&self) -> Result<String> {
        let answer = self.run("query-uuid", Value::Null).await?;
        let uuid = answer["UUID"].as_str();
        Ok(uuid.ok_or_else(|| Error::shape("query-uuid", "no `UUID`"))?.to_owned())
    }

    /// The guest's name (`-name`), where it has one.
    pub async fn name(&self) -> Result<Option<String>> {
        let answer = self.run("query-name", Value::Null).await?;
        Ok(answer["name"].as_str().map(str::to_owned))
    }

    /// Stops the guest's processors. QEMU drains all disks for it: never while a server hangs.
    pub async fn stop(&self) -> Result<()> {
        self.run("stop", Value::Null).await.map(drop)
    }

    /// Lets the guest's processors run.
    pub async fn cont(&self) -> Result<()> {
        self.run("cont", Value::Null).await.map(drop)
    }

    /// Waits until every guest write that is under way has been answered, by the source and by
    /// the mirror's target.
    ///
    /// A `transaction` does that: QEMU drains all disks before it looks at the actions. They
    /// stand for a QEMU that would drain only the nodes which they name: a bitmap that comes and
    /// goes on each mirrored disk. Never while a server hangs: QEMU's main loop, its monitor and
    /// the guest would hang too, and only the server's death ends it.
    pub async fn drain(&self) -> Result<()> {
        let passing = format!("{}drain", names::OURS);
        let graph = self.graph().await?;
        let actions: Vec<Value> = graph
            .mirrored()
            .flat_map(|node| {
                let bitmap = json!({ "node": node, "name": passing });
                ["block-dirty-bitmap-add", "block-dirty-bitmap-remove"]
                    .map(|kind| json!({ "type": kind, "data": bitmap }))
            })
            .collect();
        self.run("transaction", json!({ "actions": actions })).await.map(drop)
    }

    pub(crate) async fn run(&self, command: &str, arguments: Value) -> Result<Value> {
        self.monitor.execute(command, arguments).await
    }

    pub(crate) async fn run_list(&self, command: &str, arguments: Value) -> Result<Vec<Value>> {
        match self.run(command, arguments).await? {
            Value::Array(list) => Ok(list),
            _ => Err(Error::shape(command, "no list")),
        }
    }
}

/// Pauses between looks at QEMU's state: short at first, since most things take a few
/// milliseconds, then longer, since QEMU answers in its main loop.
#[derive(Debug)]
pub(crate) struct Backoff {
    next_ms: u64,
    last_ms: u64,
}

impl Backoff {
    pub(crate) fn new(first_ms: u64, last_ms: u64) -> Self {
        Backoff { next_ms: first_ms, last_ms }
    }

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.next_ms)).await;
        self.next_ms = (self.next_ms * 2).min(self.last_ms);
    }
}
