//! Whether the guest's disks are still those that are mirrored, and all that they write still passes
//! our mirrors.
//!
//! What always holds: a position counts as confirmed only when a look behind it found each disk's device
//! there, with our filter in the path of its writes, and no disk beside it that is to be protected and is
//! not. A job of ours that exists proves none of that.

use super::life::{Ending, Life, UNLEVEL_LOOKS_MAX};
use super::task::Task;
use afterimage_planted as planted;
use afterimage_qmp::qemu::DevicePath;

impl Life {
    /// Looks at the guest's disks. A look that gets no answer counts like a mirror that is not level.
    pub(super) async fn look_at_disks(&mut self, task: &Task) -> Option<Ending> {
        if planted::is("disks-are-not-looked-at") {
            return None;
        }
        let devices = match self.attached.qemu.device_paths().await {
            Ok(devices) => devices,
            Err(error) => return self.unanswered(&error),
        };
        for attached in &self.attached.disks {
            let (disk, filter) = (&attached.disk, &attached.attachment.filter);
            let Some(device) = devices.iter().find(|d| d.is_of(disk)) else {
                return Some(Ending::Changed(taken(&disk.node)));
            };
            if !device.passes(filter) {
                return Some(Ending::Changed(bypassed(device, &disk.node)));
            }
        }
        if !task.context.settings.disks.is_empty() {
            return None;
        }
        self.look_at_others(devices).await
    }

    /// Judges devices that are none of ours, when they are other ones than before.
    async fn look_at_others(&mut self, mut devices: Vec<DevicePath>) -> Option<Ending> {
        devices.retain(|d| !self.attached.disks.iter().any(|a| d.is_of(&a.disk)));
        devices.sort_unstable();
        if self.others.as_ref() == Some(&devices) {
            return None;
        }
        let disks = match self.attached.qemu.disks().await {
            Ok(disks) => disks.disks,
            Err(error) => return self.unanswered(&error),
        };
        let known = |disk| self.attached.disks.iter().any(|a| a.disk.identity == disk);
        let added = disks.into_iter().find(|d| !d.read_only && !known(d.identity.clone()));
        if let Some(disk) = added {
            return Some(Ending::Changed(format!("disk {} was added to the guest", disk.node)));
        }
        self.others = Some(devices);
        None
    }

    /// A look that got no answer proves nothing; some of them in a row are a loss.
    pub(super) fn unanswered(&mut self, error: &afterimage_qmp::Error) -> Option<Ending> {
        if matches!(error.kind(), afterimage_qmp::error::Kind::Gone) {
            return Some(Ending::MonitorLost(error.to_string()));
        }
        tracing::warn!(%error, "QEMU's monitor did not answer");
        self.unlevel_looks += 1;
        (self.unlevel_looks > UNLEVEL_LOOKS_MAX)
            .then(|| Ending::Lost(format!("QEMU's monitor does not answer: {error}")))
    }

    /// The disk whose device is at a path of QEMU's, or below it.
    pub(super) fn disk_at(&self, path: &str) -> Option<String> {
        let below = |qdev: &String| {
            qdev.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_it = |d: &&super::attach::AttachedDisk| d.disk.qdev.as_ref().is_some_and(below);
        self.attached.disks.iter().find(is_it).map(|d| d.disk.node.clone())
    }
}

/// The reason of a gap that begins when a disk is unplugged.
pub(super) fn taken(node: &str) -> String {
    format!("disk {node} was taken from the guest")
}

fn bypassed(device: &DevicePath, node: &str) -> String {
    match device.nodes.first() {
        Some(top) => {
            format!("the guest writes to node {top}, past the mirror of disk {node}")
        }
        None => format!("disk {node} has no medium"),
    }
}
