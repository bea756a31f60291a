//! Undoing another process's snapshot: for whoever finds a note of it after that one's death.
//!
//! What always holds: it ends within its limit, and a QEMU that is gone needs no undoing.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{MigrationSettings, Qemu, SnapshotMode};
use crate::{
    Error, Result,
    error::Kind,
    libvirt::{Libvirt, Target},
};

/// How a guest's monitor is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MonitorChannel {
    /// A QMP socket.
    Socket(PathBuf),
    /// Through libvirt.
    Libvirt(Target),
}

/// What a snapshot that was begun has to be undone with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoSnapshot {
    /// The guest's monitor.
    pub monitor: MonitorChannel,
    /// The settings to be put back.
    pub was: MigrationSettings,
    /// The guest may have been stopped for a snapshot of this mode: it is to run again.
    pub resume: Option<SnapshotMode>,
}

/// Pause before a monitor that broke off is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl UndoSnapshot {
    /// Until it is done, however often the monitor breaks off: QEMU 10.0 resets a connection that comes while
    /// it takes leave of the one before (some in a hundred on a busy host), and lives on. One that is
    /// gone refuses the next.
    async fn run(&self, limit: Duration) -> Result<()> {
        loop {
            match self.try_run(limit).await {
                Err(Error::Closed { .. }) => tokio::time::sleep(RETRY_PAUSE).await,
                ended => return ended,
            }
        }
    }

    async fn try_run(&self, limit: Duration) -> Result<()> {
        let qemu = match &self.monitor {
            MonitorChannel::Socket(path) => Qemu::connect(path).await?,
            MonitorChannel::Libvirt(target) => {
                Qemu::open(Arc::new(Libvirt::open(target.clone()).await?)).await?
            }
        };
        qemu.end_snapshot(&self.was, self.resume, limit).await
    }
}

/// Cancels the snapshot, puts the settings back and lets the guest run, within `limit`. Blocks the
/// calling thread; needs no runtime, and may be called from a thread of one.
pub fn undo_snapshot_blocking(undo: &UndoSnapshot, limit: Duration) -> Result<()> {
    let undo = undo.clone();
    let failed = |reason: String| Error::Closed { reason };
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| failed(format!("start a runtime: {e}")))?;
        let done = runtime.block_on(async { tokio::time::timeout(limit, undo.run(limit)).await });
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        done.unwrap_or(Err(Error::Timeout { command: "undoing a snapshot".into(), limit_ms }))
    };
    let thread = std::thread::Builder::new().name("undo".into()).spawn(work);
    let thread = thread.map_err(|e| failed(format!("start a thread: {e}")))?;
    match thread.join().unwrap_or_else(|_| Err(failed("its thread fell".to_owned()))) {
        // It took what was to be undone along.
        Err(e) if e.kind() == Kind::Gone && !matches!(e, Error::Closed { .. }) => Ok(()),
        other => other,
    }
}
