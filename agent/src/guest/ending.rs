//! What QEMU's events tell of how a guest and its mirrors end, and in which order.
//!
//! What always holds: a guest that has ended counts as ended only until anything says that it may run again.

use super::life::Life;
use afterimage_planted as planted;
use afterimage_qmp::QemuEvent;
use afterimage_qmp::qemu::RunState;
use std::time::{Duration, Instant};

/// How long marking may keep a task from its next look: over libvirt each command may take half a second.
const MARKING_LIMIT: Duration = Duration::from_millis(200);

impl Life {
    /// Marks the ends of disks that have no mark yet: no disk changes its size under a mirror, so any moment
    /// before its end will do. All of them, or those that there is time for.
    pub(super) async fn mark_ends(&mut self, all: bool) {
        let begun = Instant::now();
        let qemu = &self.attached.qemu;
        for disk in self.attached.disks.iter_mut().filter(|d| !d.is_end_marked) {
            if !all && begun.elapsed() > MARKING_LIMIT {
                return;
            }
            disk.is_end_marked = true;
            if let Err(error) = qemu.mark_end(&disk.disk, &disk.names).await {
                let node = &disk.disk.node;
                tracing::warn!(disk = node, %error, "no mark at its end: it may be compared at the next attach");
            }
        }
    }

    /// Notes what tells how guest and mirrors end, and in which order. True for an event of one
    /// of our mirrors.
    pub(super) fn note_end(&mut self, event: QemuEvent) -> bool {
        match event {
            QemuEvent::Shutdown { reason, .. } => self.shutdown = Some(reason),
            // With `-no-shutdown` a guest that has ended may begin anew. What a lost event said is not known.
            QemuEvent::Resume | QemuEvent::Reset { .. } | QemuEvent::Overflow { .. }
                if !planted::is("a-shutdown-is-for-ever") =>
            {
                self.shutdown = None;
            }
            QemuEvent::BlockJobCompleted { job, .. } | QemuEvent::BlockJobCancelled { job } => {
                let ours = self.disk_of(&job);
                // QEMU ends its jobs as well when it quits, but says first that the guest has
                // been shut down.
                if ours.is_some() && self.shutdown.is_none() {
                    self.ended_early = true;
                    self.cancelled = ours.clone();
                }
                return ours.is_some();
            }
            QemuEvent::BlockJobError { job, .. } => return self.disk_of(&job).is_some(),
            _ => {}
        }
        false
    }

    /// Whether the guest has ended, and QEMU, if it still answers, runs no other one.
    pub(super) async fn is_going_down(&self) -> bool {
        let going = self.shutdown.is_some();
        going && !matches!(self.attached.qemu.run_state().await, Ok(s) if s != RunState::Shutdown)
    }

    /// The disk that one of our mirrors is of.
    pub(super) fn disk_of(&self, job: &str) -> Option<String> {
        let ours = self.attached.disks.iter().find(|d| d.attachment.job == job);
        ours.map(|d| d.disk.node.clone())
    }
}
