//! What an earlier agent left in QEMU: found by our prefix, removed unless it is wanted.
//!
//! Exports go first since they hold bitmaps, then jobs since they hold nodes, then nodes and
//! bitmaps. One that can't be removed doesn't keep the others.

use serde_json::json;

use super::{Bitmap, Qemu, ServerHealth, names::OURS};
use crate::{Error, Result};

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
    /// Removes all that is named like ours except what `wanted` says yes to.
    ///
    /// `health` is that of the servers behind the jobs to be removed: while one may hang,
    /// nothing is touched and [`Error::ServerHangs`] comes back.
    pub async fn remove_leftovers(
        &self,
        health: ServerHealth,
        wanted: impl Fn(&str) -> bool + Send,
    ) -> Result<Removed> {
        let goes = |name: &str| name.starts_with(OURS) && !wanted(name);
        let mut removed = Removed::default();
        for export in self.exports().await?.iter().filter(|e| goes(&e.id)) {
            removed.note(&export.id, self.remove_export(&export.id).await);
        }
        for job in self.jobs().await?.iter().filter(|j| goes(&j.job)) {
            if health == ServerHealth::Hung {
                let target = job.job.clone();
                return Err(Error::ServerHangs { action: "removing a mirror", target });
            }
            removed.note(&job.job, self.end_job(&job.job, health).await);
        }
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
