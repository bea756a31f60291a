//! Dirty bitmaps on a disk's own node: QEMU's part of the changed-block map.
//!
//! One records under the mirror without being in its way. Rotation changes the recording one in a
//! single transaction, over all disks at once: every write is in the old, the new, or both. The
//! new ones come before the old ones stop: disks in iothreads go on writing between two actions.
//! On raw images they end with QEMU; on qcow2 a persistent one survives an orderly end, and is
//! `inconsistent` (to be removed, never read) after any other.

use serde_json::{Value, json};

use super::Qemu;
use crate::{Error, Result};

/// Bytes that one bit stands for, unless told otherwise.
pub const GRANULARITY_BYTES: u32 = 65_536;

/// A named dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// It notes new writes.
    pub recording: bool,
    /// It is kept in the image when QEMU ends.
    pub persistent: bool,
    /// It was not closed cleanly: it holds nothing and can only be removed.
    pub inconsistent: bool,
    /// A job or an export uses it.
    pub busy: bool,
    /// Bytes that one bit stands for.
    pub granularity_bytes: u64,
    /// Bytes that are marked.
    pub dirty_bytes: u64,
}

impl Bitmap {
    /// The named bitmaps in QEMU's description of a node, by name. Jobs have nameless ones; those
    /// are not for us.
    pub(crate) fn read_all(node: &Value) -> Vec<Bitmap> {
        let all = node["dirty-bitmaps"].as_array().map(Vec::as_slice).unwrap_or_default();
        let read = |b: &Value| {
            let flag = |k: &str| b[k].as_bool().unwrap_or(false);
            Some(Bitmap {
                name: b["name"].as_str()?.to_owned(),
                recording: flag("recording"),
                persistent: flag("persistent"),
                inconsistent: flag("inconsistent"),
                busy: flag("busy"),
                granularity_bytes: b["granularity"].as_u64()?,
                dirty_bytes: b["count"].as_u64()?,
            })
        };
        let mut found: Vec<Bitmap> = all.iter().filter_map(read).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }
}

/// A bitmap to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBitmap {
    /// The disk's own node.
    pub node: String,
    /// The bitmap's name.
    pub name: String,
    /// Keep it in the image: only where [`super::Disk::keeps_bitmaps`].
    pub persistent: bool,
    /// Bytes that one bit stands for: a power of two of at least 512.
    pub granularity_bytes: u32,
}

impl NewBitmap {
    fn arguments(&self) -> Value {
        json!({
            "node": self.node,
            "name": self.name,
            "granularity": self.granularity_bytes,
            "persistent": self.persistent,
        })
    }
}

/// The change from one recording bitmap to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The bitmap that stops recording; it stays, to be read.
    pub old: String,
    /// The one that records from now on, on the same node.
    pub new: NewBitmap,
}

impl Qemu {
    /// Makes a bitmap that records from now on.
    pub async fn add_bitmap(&self, bitmap: &NewBitmap) -> Result<()> {
        self.run("block-dirty-bitmap-add", bitmap.arguments()).await.map(drop)
    }

    /// Makes bitmaps on several disks at one instant: all or none.
    pub async fn add_bitmaps(&self, bitmaps: &[NewBitmap]) -> Result<()> {
        let add = |b: &NewBitmap| action("block-dirty-bitmap-add", b.arguments());
        self.transaction(bitmaps.iter().map(add).collect()).await
    }

    /// Changes the recording bitmaps at one instant: all or none.
    ///
    /// Drains like [`Qemu::drain`], with the same warning.
    pub async fn rotate_bitmaps(&self, rotations: &[Rotation]) -> Result<()> {
        let add = |r: &Rotation| action("block-dirty-bitmap-add", r.new.arguments());
        let stop = |r: &Rotation| {
            let old = json!({ "node": r.new.node, "name": r.old });
            action("block-dirty-bitmap-disable", old)
        };
        let (add, stop) = (rotations.iter().map(add), rotations.iter().map(stop));
        self.transaction(add.chain(stop).collect()).await
    }

    /// Adds what `sources` hold to `target`, all on `node`.
    pub async fn merge_bitmaps(&self, node: &str, target: &str, sources: &[&str]) -> Result<()> {
        let arguments = json!({ "node": node, "target": target, "bitmaps": sources });
        self.run("block-dirty-bitmap-merge", arguments).await.map(drop)
    }

    /// Removes a bitmap; done as well when it isn't there.
    pub async fn remove_bitmap(&self, node: &str, name: &str) -> Result<()> {
        let arguments = json!({ "node": node, "name": name });
        match self.run("block-dirty-bitmap-remove", arguments).await {
            Err(e) if e.refused_with("not found") => Ok(()),
            other => other.map(drop),
        }
    }

    /// The named bitmaps of `node`.
    pub async fn bitmaps(&self, node: &str) -> Result<Vec<Bitmap>> {
        let nodes = self.run_list("query-named-block-nodes", json!({ "flat": true })).await?;
        let found = nodes.iter().find(|n| n["node-name"] == node);
        found.map(Bitmap::read_all).ok_or_else(|| Error::NoSuchDisk {
            selector: node.to_owned(),
            have: "no node of that name".to_owned(),
        })
    }

    async fn transaction(&self, actions: Vec<Value>) -> Result<()> {
        self.run("transaction", json!({ "actions": actions })).await.map(drop)
    }
}

fn action(kind: &str, data: Value) -> Value {
    json!({ "type": kind, "data": data })
}
