//! From attached to level: resumed mirrors, pulled blocks, and the proof at the end.
//!
//! A gap or a copy ends at the head after every mirror says that it is level, then a drain, then
//! a second look (I-4): the bit of a block in flight is already clear at the first.

use super::attach::Attached;
use super::face::Progress;
use super::plan::{FullCopy, Plan};
use super::pull::{self, Job};
use crate::capture::{Gate, TapCounters};
use crate::group::Group;
use afterimage_journal::meta::{CopyCause, Volume};
use afterimage_qmp::Qemu;
use afterimage_qmp::qemu::{ExportSpec, Names, RESUME_LIMIT};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a resumed mirror that is idle may take to connect before it is poked.
const CONNECT_LIMIT: Duration = Duration::from_millis(300);
/// Looks at the mirrors before giving up: writes in flight make one look fail now and then.
const LOOKS_MAX: u32 = 200;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One disk's part.
pub struct SyncDisk {
    volume: Volume,
    names: Names,
    job: String,
    target: String,
    node: String,
    plan: Plan,
    counters: Arc<TapCounters>,
}

/// What is needed to bring a guest's disks level, apart from its task.
pub struct Sync {
    /// Its QEMU.
    pub qemu: Qemu,
    /// Its group.
    pub group: Arc<Group>,
    /// Its disks.
    pub disks: Vec<SyncDisk>,
    /// QEMU's NBD server for pulling.
    pub pull_socket: PathBuf,
    /// Progress and cancelling.
    pub progress: Arc<Progress>,
    /// Armed before the proof: what is lost from then on is noticed.
    pub gate: Arc<Gate>,
}

/// How the sync ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Every block of every disk was copied or compared.
    pub full: bool,
    /// Maps that were pulled or are not needed, by node: to be removed once the session is durable.
    pub spent: Vec<(String, String)>,
}

impl Sync {
    /// The disks' part of it.
    #[must_use]
    pub fn disks_of(attached: &Attached) -> Vec<SyncDisk> {
        let one = |d: &super::attach::AttachedDisk| SyncDisk {
            volume: d.volume.clone(),
            names: d.names.clone(),
            job: d.attachment.job.clone(),
            target: d.attachment.target.clone(),
            node: d.disk.node.clone(),
            plan: d.plan.clone(),
            counters: Arc::clone(&d.counters),
        };
        attached.disks.iter().map(one).collect()
    }

    /// Why most of it is copied, for status.
    #[must_use]
    pub fn cause(disks: &[SyncDisk]) -> CopyCause {
        let any = |full: fn(&FullCopy) -> bool| {
            disks.iter().any(|d| d.plan.full.as_ref().is_some_and(full))
        };
        if any(|f| matches!(f, FullCopy::Initial { .. })) {
            CopyCause::Initial
        } else if any(|f| matches!(f, FullCopy::Compare | FullCopy::Whole)) {
            CopyCause::Compare
        } else {
            CopyCause::Bitmap
        }
    }

    /// Brings all disks level.
    ///
    /// # Errors
    /// QEMU or the journal failed, or it was cancelled: attach again.
    pub async fn run(self) -> Result<Level> {
        for disk in self.disks.iter().filter(|d| d.plan.resume) {
            self.resume(disk).await?;
        }
        if self.disks.iter().any(|d| d.plan.full.is_some() || !d.plan.bitmaps.is_empty()) {
            self.copy_all().await?;
        }
        self.gate.arm();
        self.prove().await?;
        Ok(Level {
            full: self.disks.iter().all(|d| d.plan.full.is_some()),
            spent: self
                .disks
                .iter()
                .flat_map(|d| {
                    let maps = d.plan.bitmaps.iter().chain(&d.plan.covered);
                    maps.map(|map| (d.node.clone(), map.clone()))
                })
                .collect(),
        })
    }

    async fn resume(&self, disk: &SyncDisk) -> Result<()> {
        self.qemu
            .resume(&disk.job, RESUME_LIMIT, |_| {})
            .await
            .with_context(|| format!("resume the mirror of disk {}", disk.node))?;
        let connected = || disk.counters.connected.load(Ordering::Acquire) > 0;
        for _ in 0..3 {
            let deadline = tokio::time::Instant::now() + CONNECT_LIMIT;
            while !connected() && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if connected() {
                return Ok(());
            }
            // An idle mirror doesn't notice that its server was replaced: a flush of its target
            // does no harm and makes it connect.
            let poke = serde_json::json!({
                "command-line": format!("qemu-io {} \"flush\"", disk.target),
            });
            self.qemu.monitor().execute("human-monitor-command", poke).await?;
            self.qemu.resume(&disk.job, RESUME_LIMIT, |_| {}).await?;
        }
        bail!("the mirror of disk {} does not connect to us again", disk.node)
    }

    async fn copy_all(&self) -> Result<()> {
        let server = self.qemu.start_nbd_server(&self.pull_socket).await?;
        let mut result = Ok(());
        for (i, disk) in self.disks.iter().enumerate() {
            let id = disk.names.export(i as u64);
            result = self.copy_disk(disk, &server.socket, &id).await;
            if let Err(error) = self.qemu.remove_export(&id).await {
                tracing::warn!(export = id, %error, "left behind in QEMU");
            }
            if result.is_err() {
                break;
            }
        }
        if let Err(error) = self.qemu.stop_nbd_server(&server).await {
            tracing::warn!(%error, "QEMU's NBD server was left running");
        }
        result
    }

    async fn copy_disk(&self, disk: &SyncDisk, socket: &std::path::Path, id: &str) -> Result<()> {
        let whole = disk.plan.full == Some(FullCopy::Whole);
        let compare = whole || disk.plan.full == Some(FullCopy::Compare);
        let mut causes = Vec::new();
        if !disk.plan.bitmaps.is_empty() && !compare {
            causes.push((CopyCause::Bitmap, 0));
        }
        match disk.plan.full {
            Some(FullCopy::Initial { from }) => causes.push((CopyCause::Initial, from)),
            Some(FullCopy::Compare | FullCopy::Whole) => causes.push((CopyCause::Compare, 0)),
            None => {}
        }
        if causes.is_empty() {
            return Ok(());
        }
        self.qemu
            .add_export(&ExportSpec {
                id: id.to_owned(),
                node: disk.node.clone(),
                name: id.to_owned(),
                bitmaps: disk.plan.bitmaps.clone(),
            })
            .await?;
        for (cause, from) in causes {
            let bitmaps = match cause {
                CopyCause::Bitmap => disk.plan.bitmaps.clone(),
                _ => Vec::new(),
            };
            let job = Job {
                group: Arc::clone(&self.group),
                volume: disk.volume.clone(),
                cause,
                whole,
                from,
                socket: socket.to_owned(),
                export: id.to_owned(),
                bitmaps,
                progress: Arc::clone(&self.progress),
            };
            tokio::task::spawn_blocking(move || pull::run(&job)).await??;
        }
        Ok(())
    }

    /// Level, drained, and level still.
    async fn prove(&self) -> Result<()> {
        for _ in 0..LOOKS_MAX {
            if self.progress.cancel.load(Ordering::Relaxed) {
                bail!("the sync was ended");
            }
            if self.is_level().await? {
                self.qemu.drain().await?;
                if self.is_level().await? {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("the mirrors did not get level: is the guest writing faster than we can take?")
    }

    async fn is_level(&self) -> Result<bool> {
        let jobs = self.qemu.jobs().await?;
        for disk in &self.disks {
            let Some(job) = jobs.iter().find(|j| j.job == disk.job) else {
                bail!("the mirror of disk {} is gone", disk.node);
            };
            if job.paused {
                bail!("the mirror of disk {} paused: {:?}", disk.node, job.io_status);
            }
            if !job.is_level() || disk.counters.connected.load(Ordering::Acquire) == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
