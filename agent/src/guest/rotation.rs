//! Changing the recording maps, so that after an outage little is copied that is known already.
//!
//! What always holds: there is always a map that records; an old one goes only when all that it
//! can hold is durable in the journal.

use super::life::Life;
use super::maps::fresh;
use crate::group::Group;
use afterimage_journal::{Journal, Seq};
use afterimage_qmp::qemu::Rotation;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Age at which the recording bitmap is changed for a fresh one.
const ROTATE_EVERY: Duration = Duration::from_secs(30);

impl Life {
    /// Changes the recording maps now and then, and drops the old ones once all that they can
    /// hold is durable: so that after an outage little is copied that is known already.
    pub(super) async fn rotate(
        &mut self,
        group: &Group,
        guest: &str,
        journal: &Journal,
        head: Seq,
    ) {
        let durable = journal.durable();
        let qemu = &self.attached.qemu;
        if let Some((_, maps)) = self.retired.take_if(|(until, _)| *until <= durable) {
            for (node, map) in maps {
                if let Err(error) = qemu.remove_bitmap(&node, &map).await {
                    tracing::warn!(map, %error, "left behind in QEMU");
                }
            }
        }
        let quiet =
            self.attached.disks.iter().all(|d| d.counters.writes.load(Ordering::Relaxed) == 0);
        if self.retired.is_some() || self.rotated.elapsed() < ROTATE_EVERY || quiet {
            return;
        }
        self.rotated = Instant::now();
        if head <= self.rotated_head {
            return;
        }
        let mut rotations = Vec::new();
        let mut old = std::mem::take(&mut self.spent);
        for disk in &self.attached.disks {
            let new = fresh(&disk.disk, &disk.names);
            rotations.push(Rotation { old: disk.recording.clone(), new });
            old.push((disk.disk.node.clone(), disk.recording.clone()));
        }
        match qemu.rotate_bitmaps(&rotations).await {
            Ok(()) => {
                let mut noted = Vec::new();
                for (disk, rotation) in self.attached.disks.iter_mut().zip(rotations) {
                    disk.recording = rotation.new.name;
                    noted.push((disk.volume.id, disk.recording.clone()));
                }
                // Not noted, the new maps are not trusted, and everything is compared.
                if let Err(error) = group.note_maps(guest, noted) {
                    tracing::warn!(%error, "the new changed-block maps are not noted");
                }
                self.rotated_head = head;
                // The transaction drained: what the old maps hold lies below the head now.
                self.retired = Some((journal.head(), old));
            }
            Err(error) => {
                tracing::warn!(%error, "the changed-block maps were not rotated");
                old.truncate(old.len().saturating_sub(rotations.len()));
                self.spent = old;
            }
        }
    }
}
