//! What an earlier agent left in QEMU: found by our prefix, removed unless it is wanted.
//!
//! Exports go first since they hold bitmaps, then jobs since they hold nodes, then nodes and
//! bitmaps. One that can't be removed doesn't keep the others. A mirror whose server is gone ends only
//! after somebody serves its socket again ([`Qemu::left_mirrors`] tells which).

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::{Attachment, Bitmap, Names, Qemu, names::OURS};
use crate::{Error, Result};

/// A mirror of ours that is in QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftMirror {
    /// Its names; of its disk's node nothing is known.
    pub attachment: Attachment,
    /// The token that its names were made from.
    pub token: String,
    /// The socket that it writes to, where QEMU tells.
    pub socket: Option<PathBuf>,
    /// The size that its server has to have, in bytes.
    pub bytes: u64,
}

impl LeftMirror {
    fn read(job: &str, nodes: &[Value]) -> Option<LeftMirror> {
        let token = job.strip_prefix(OURS)?.strip_suffix("-job")?;
        let attachment = Attachment::of("", &Names::new(token).ok()?);
        let node = nodes.iter().find(|n| n["node-name"] == attachment.target.as_str());
        let bytes = node.and_then(|n| n["image"]["virtual-size"].as_u64()).unwrap_or(0);
        let file = node.and_then(|n| n["file"].as_str()).unwrap_or_default();
        // `nbd+unix://?socket=PATH`, as it is.
        let socket = file.split_once("?socket=").map(|(_, path)| PathBuf::from(path));
        Some(LeftMirror { attachment, token: token.to_owned(), socket, bytes })
    }
}

/// What [`Qemu::remove_leftovers`] did.
#[derive(Debug, Default)]
pub struct Removed {
    /// Exports, jobs, nodes and bitmaps that are gone now, by name.
    pub names: Vec<String>,
    /// Those that would not go, and why.
    pub failed: Vec<(String, Error)>,
}

impl Removed {
    fn note(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.names.push(name.to_owned()),
            Err(e) => self.failed.push((name.to_owned(), e)),
        }
    }
}

impl Qemu {
    /// The mirrors of ours that `wanted` doesn't say yes to.
    pub async fn left_mirrors(
        &self,
        wanted: impl Fn(&str) -> bool + Send,
    ) -> Result<Vec<LeftMirror>> {
        let mut jobs = self.jobs().await?;
        jobs.retain(|j| j.job.starts_with(OURS) && !wanted(&j.job));
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let nodes = self.run_list("query-named-block-nodes", json!({ "flat": true })).await?;
        Ok(jobs.iter().filter_map(|j| LeftMirror::read(&j.job, &nodes)).collect())
    }

    /// Removes all that is named like ours except what `wanted` says yes to.
    ///
    /// The servers of the mirrors to be removed must take writes: one that is not ended within `limit`
    /// stays, with its node.
    pub async fn remove_leftovers(
        &self,
        limit: Duration,
        wanted: impl Fn(&str) -> bool + Send + Sync,
    ) -> Result<Removed> {
        let goes = |name: &str| name.starts_with(OURS) && !wanted(name);
        let mut removed = Removed::default();
        for export in self.exports().await?.iter().filter(|e| goes(&e.id)) {
            removed.note(&export.id, self.remove_export(&export.id).await);
        }
        let mirrors = self.left_mirrors(|name| wanted(name)).await?;
        let all: Vec<_> = mirrors.iter().map(|m| &m.attachment).collect();
        let ended = self.end_mirrors(&all, limit, |_| {}).await;
        let left = match &ended {
            Ok(()) => Vec::new(),
            Err(_) => self.left_mirrors(|name| wanted(name)).await?,
        };
        for attachment in all {
            let stays = left.iter().any(|m| m.attachment == *attachment);
            let outcome = ended.clone().or_else(|e| if stays { Err(e) } else { Ok(()) });
            if ended.is_ok() {
                removed.names.push(attachment.target.clone());
            }
            removed.note(&attachment.job, outcome);
        }
        let goes = |name: &str| goes(name) && !left.iter().any(|m| m.attachment.target == name);
        let nodes = self.run_list("query-named-block-nodes", json!({ "flat": true })).await?;
        for node in &nodes {
            let Some(name) = node["node-name"].as_str() else { continue };
            // A filter of ours is its job's, and goes with it.
            if goes(name) && node["drv"] != "mirror_top" {
                removed.note(name, self.delete_node(name).await);
                continue;
            }
            for bitmap in Bitmap::read_all(node).iter().filter(|b| goes(&b.name)) {
                removed.note(&bitmap.name, self.remove_bitmap(name, &bitmap.name).await);
            }
        }
        Ok(removed)
    }

    /// The names of all that is named like ours, for showing and for tests.
    pub async fn ours(&self) -> Result<Vec<String>> {
        let nodes = self.run_list("query-named-block-nodes", json!({ "flat": true })).await?;
        let mut names: Vec<String> = Vec::new();
        names.extend(self.exports().await?.into_iter().map(|e| e.id));
        names.extend(self.jobs().await?.into_iter().map(|j| j.job));
        names.extend(nodes.iter().filter_map(|n| n["node-name"].as_str().map(str::to_owned)));
        names.extend(nodes.iter().flat_map(Bitmap::read_all).map(|b| b.name));
        names.retain(|name| name.starts_with(OURS));
        Ok(names)
    }
}
