//! The mark at a disk's end: it shows that the disk was shrunk while nobody watched.
//!
//! QEMU cuts its dirty bitmaps with the disk, and marks nothing when it grows: a map that was recording
//! all the time tells nothing of an end that was cut off and came back. So a bitmap that records nothing,
//! and in which only the disk's last bytes are marked, lies on each disk. A disk that was shorter in
//! between has lost the mark.

use serde_json::{Value, json};

use super::{Bitmap, Disk, Names, Qemu};
use crate::{Error, Result};

/// The finest that a bitmap can be, in bytes.
const FINEST_BYTES: u64 = 512;
/// Bits of a mark, at most: 8 MiB of QEMU's memory. So a cut is seen to 512 bytes up to 32 GiB, to 64 KiB
/// at 4 TiB.
const BITS_MAX: u64 = 1 << 26;

/// How fine the mark of a disk of this size is, in bytes.
fn granularity_bytes(bytes: u64) -> u64 {
    let wanted = bytes.div_ceil(BITS_MAX).max(FINEST_BYTES);
    wanted.checked_next_power_of_two().unwrap_or(1 << 31).min(1 << 31)
}

impl Disk {
    /// Whether the disk has had its size, or a larger one, ever since its end was marked.
    pub fn has_end_mark(&self, names: &Names) -> bool {
        let mark = names.end_mark();
        let mut marks = self.bitmaps.iter().filter(|b| b.name == mark);
        marks.any(|b| !b.inconsistent && !b.recording && b.dirty_bytes > 0)
    }
}

impl Qemu {
    /// Marks a disk's end, in the place of the mark that it had when `disk` was read.
    pub async fn mark_end(&self, disk: &Disk, names: &Names) -> Result<()> {
        let (mark, helper) = (names.end_mark(), names.end_helper());
        if disk.bitmaps.iter().any(|b| b.name == mark) {
            self.remove_bitmap(&disk.node, &mark).await?;
        }
        let granularity = granularity_bytes(disk.bytes);
        let node = json!({ "driver": "null-co", "node-name": helper, "size": disk.bytes });
        self.run("blockdev-add", node).await?;
        let marked = self.copy_mark(disk, &helper, &mark, granularity).await;
        let removed = self.run("blockdev-del", json!({ "node-name": helper })).await;
        marked.and(removed.map(drop))
    }

    /// Only writes mark a bitmap: one to a node that keeps nothing, whose bitmap is copied.
    async fn copy_mark(
        &self,
        disk: &Disk,
        helper: &str,
        mark: &str,
        granularity: u64,
    ) -> Result<()> {
        let add = |node: &str, persistent: bool, disabled: bool| {
            json!({
                "node": node, "name": mark, "granularity": granularity,
                "persistent": persistent, "disabled": disabled,
            })
        };
        self.run("block-dirty-bitmap-add", add(helper, false, false)).await?;
        let at = disk.bytes.saturating_sub(FINEST_BYTES);
        let line = format!("qemu-io {helper} \"write -q -z {at} {FINEST_BYTES}\"");
        self.run("human-monitor-command", json!({ "command-line": line })).await?;
        self.run("block-dirty-bitmap-add", add(&disk.node, disk.keeps_bitmaps(), true)).await?;
        let from = json!([{ "node": helper, "name": mark }]);
        let merge = json!({ "node": disk.node, "target": mark, "bitmaps": from });
        self.run("block-dirty-bitmap-merge", merge).await?;
        // What the monitor for people says of an error is no error here: so it is looked at.
        let nodes = self.run_list("query-named-block-nodes", json!({ "flat": true })).await?;
        let node: Option<&Value> = nodes.iter().find(|n| n["node-name"] == disk.node.as_str());
        let marks = node.map(Bitmap::read_all).unwrap_or_default();
        match marks.iter().any(|b| b.name == mark && b.dirty_bytes > 0) {
            true => Ok(()),
            false => {
                Err(Error::shape("qemu-io", "the write that marks a disk's end marked nothing"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::granularity_bytes;

    #[test]
    fn mark_is_as_fine_as_its_memory_allows() {
        assert_eq!(granularity_bytes(0), 512);
        assert_eq!(granularity_bytes(32 << 30), 512);
        assert_eq!(granularity_bytes((32 << 30) + 1), 1024);
        assert_eq!(granularity_bytes(4 << 40), 64 << 10);
        assert_eq!(granularity_bytes(u64::MAX), 1 << 31);
    }
}
