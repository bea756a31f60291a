//! Undoing a snapshot, by the process that began it or by whoever finds a note of it after that one's death.
//!
//! What always holds: it ends within its limit; a QEMU that is gone needs no undoing; what somebody else
//! did to the guest since is left alone: another QEMU at the same monitor, a migration that began at
//! another time, a pause of a guest that has run since it was stopped for the snapshot, settings that are
//! not the snapshot's any more.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use afterimage_planted as planted;

use super::{MigrationSettings, ProcessId, Qemu, SnapshotMode};
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

/// How long QEMU may take to begin the migration once it was told to.
const BEGIN_NS_MAX: u64 = 5_000_000_000;
/// How long a migration may be set up: QEMU touches all of the guest's memory.
const SETUP_NS_MAX: u64 = 60_000_000_000;
/// How long after the first command the guest may come to a stand for the snapshot.
const STOP_NS_MAX: u64 = SETUP_NS_MAX;
/// How long after its stop a request of the guest's may be counted as finished.
const DRAIN_NS_MAX: u64 = 500_000_000;
/// How long a guest may stand still in [`SnapshotMode::Stop`], with what its undoing may take.
const STAND_NS_MAX: u64 = 70_000_000_000;
/// QEMU's stamps of a migration are whole milliseconds.
const STAMP_NS: u64 = 100_000_000;

/// Nanoseconds of CLOCK_MONOTONIC: what a note's times are of. One process sees one boot of the host.
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// What a snapshot that was begun has to be undone with. Notes of older versions end with `resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoSnapshot {
    /// The guest's monitor.
    pub monitor: MonitorChannel,
    /// The settings to be put back.
    pub was: MigrationSettings,
    /// The guest may stand still for a snapshot of this mode: it is to run again.
    pub resume: Option<SnapshotMode>,
    /// The mode that the settings were changed for; none in a note of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<SnapshotMode>,
    /// The process, where it can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// When the first command was sent that stops the guest, on the clock of [`now_ns`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_ns: Option<u64>,
    /// When the guest was known to stand still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_ns: Option<u64>,
    /// When QEMU was told to send the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrate_ns: Option<u64>,
}

impl UndoSnapshot {
    /// Whether an older version wrote it, which noted neither process nor times.
    pub fn is_bare(&self) -> bool {
        self.mode.is_none()
    }

    /// Whether the snapshot was of another process than `now`, the one behind the monitor. Where the
    /// monitor can't tell, of one that is gone.
    pub fn is_of_another(&self, now: Option<ProcessId>) -> bool {
        match (self.process, now) {
            (Some(noted), Some(now)) => noted != now,
            (Some(noted), None) => !noted.lives(),
            (None, _) => false,
        }
    }

    /// Whether a migration that has been going on for `total_ms` is the snapshot's. `None` can't be told
    /// (yet): one whose reader is gone ends by itself.
    pub(super) fn owns_migration(&self, total_ms: Option<u64>, now_ns: u64) -> Option<bool> {
        if self.is_bare() || planted::is("a-stale-intent-owns-any-migration") {
            return (!self.is_bare()).then_some(true);
        }
        let Some(told_ns) = self.migrate_ns else { return Some(false) };
        let Some(total_ms) = total_ms else {
            return (now_ns.saturating_sub(told_ns) <= SETUP_NS_MAX).then_some(true);
        };
        let began_ns = now_ns.saturating_sub(total_ms.saturating_mul(1_000_000));
        let earliest_ns = told_ns.saturating_sub(STAMP_NS);
        Some((earliest_ns..=told_ns.saturating_add(BEGIN_NS_MAX)).contains(&began_ns))
    }

    /// Whether a paused guest stands still for the snapshot. One that used its disks later has run since,
    /// and was paused by somebody else.
    pub(super) fn owns_pause(&self, last_io_ns: Option<u64>) -> bool {
        if self.is_bare() || planted::is("a-stale-intent-owns-any-pause") {
            return true;
        }
        let stopped_ns = self.stopped_ns.map(|at| at.saturating_add(DRAIN_NS_MAX));
        let by_ns = stopped_ns.or(self.begun_ns.map(|at| at.saturating_add(STOP_NS_MAX)));
        by_ns.is_some_and(|by_ns| last_io_ns.is_none_or(|last_ns| last_ns <= by_ns))
    }

    /// Whether a guest that was migrated to the end was that for the snapshot: one that went to another
    /// host looks the same, and must never run here again.
    pub(super) fn owns_departure(&self, now_ns: u64) -> bool {
        self.is_bare() || self.begun_ns.is_some_and(|at| now_ns.saturating_sub(at) <= STAND_NS_MAX)
    }

    /// What the settings are to be: as they were, but for those that somebody changed since.
    pub(super) fn settings_to_restore(&self, now: &MigrationSettings) -> MigrationSettings {
        let mut to = self.was.clone();
        if let Some(mode) = self.mode.or(self.resume) {
            let ours = self.was.for_snapshot(mode);
            to.capabilities
                .retain(|name, _| now.capabilities.get(name) == ours.capabilities.get(name));
            to.parameters.retain(|name, _| {
                !ours.parameters.contains_key(name)
                    || now.parameters.get(name) == ours.parameters.get(name)
            });
        }
        to
    }
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
        qemu.end_snapshot(self, limit).await
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

#[cfg(test)]
#[path = "undo_tests.rs"]
mod tests;
