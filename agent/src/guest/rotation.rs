//! Changing the recording maps, so that after an outage little is copied that is known already.
//!
//! What always holds: there is always a map that records; an old one goes only when all that it
//! can hold is durable in the journal.

use super::life::Life;
use afterimage_journal::{Journal, Seq};
use afterimage_qmp::qemu::{GRANULARITY_BYTES, NewBitmap, Rotation};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Age at which the recording bitmap is changed for a fresh one.
const ROTATE_EVERY: Duration = Duration::from_secs(30);

impl Life {
    /// Changes the recording maps now and then, and drops the old ones once all that they can
    /// hold is durable: so that after an outage little is copied that is known already.
    pub(super) async fn rotate(&mut self, journal: &Journal, head: Seq) {
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
            rotations.push(Rotation {
                old: disk.recording.clone(),
                new: NewBitmap {
                    node: disk.disk.node.clone(),
                    name: disk.names.bitmap(disk.generation + 1),
                    persistent: disk.disk.keeps_bitmaps(),
                    granularity_bytes: GRANULARITY_BYTES,
                },
            });
            old.push((disk.disk.node.clone(), disk.recording.clone()));
        }
        match qemu.rotate_bitmaps(&rotations).await {
            Ok(()) => {
                for disk in &mut self.attached.disks {
                    disk.generation += 1;
                    disk.recording = disk.names.bitmap(disk.generation);
                }
                self.rotated_head = head;
                // The transaction drained: what the old maps hold lies below the head now.
                self.retired = Some((journal.head(), old));
            }
            Err(error) => {
                tracing::warn!(%error, "the changed-block maps were not rotated");
                self.spent = old.split_off(rotations.len().min(old.len()));
            }
        }
    }
}
