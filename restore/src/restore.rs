//! A restore from end to end: decide, write, make whole, name.

use crate::apply::apply;
use crate::error::{Error, Result};
use crate::open::Recovery;
use crate::plan::{Format, Plan, Selection, plan};
use crate::start::{self, RestoredDisk};
use crate::target::{Draft, Qcow2, Raw, Target, publish};
use crate::time::rfc3339;
use afterimage_journal::Seq;
use afterimage_journal::history::Point;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The directory; made if it isn't there.
    pub to: PathBuf,
    /// Node, disk identity, device or image file of each wanted disk; empty: all.
    pub disks: Vec<String>,
    /// The images' format.
    pub format: Format,
}

/// How far a restore or a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// A restored disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// QEMU's node name.
    pub node: String,
    /// The image, absolute.
    pub path: PathBuf,
}

/// What a restore did: the output of `restore --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The position.
    pub seq: Seq,
    /// Its time, RFC 3339 in UTC.
    pub time: String,
    /// The images.
    pub disks: Vec<DiskReport>,
    /// The memory image of a warm restore.
    pub memory: Option<PathBuf>,
    /// Bytes written to the images; zeroes are left as holes and don't count.
    pub bytes_written: u64,
    /// Duration.
    pub seconds: f64,
    /// Disks of the group that had not been synced at that position, and so are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
}

/// Restores a recovery point to images in a directory, with what is needed to start the copies.
///
/// # Errors
/// The point isn't restorable or needs a damaged record ([`crate::Kind::NotRestorable`]), a disk
/// isn't known, a target exists, or the target can't be written. Nothing half-made keeps its
/// final name.
pub fn restore(
    recovery: &Recovery,
    point: Point,
    options: &RestoreOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let started = Instant::now();
    recovery.history.check_key()?;
    let history = &recovery.history;
    let guest = recovery.guest.as_deref();
    let selection = Selection { guest, disks: &options.disks };
    let plan = plan(history, point, selection, options.format)?;
    let dir = prepare(&options.to)?;
    let mut drafts = Vec::new();
    for volume in &plan.volumes {
        drafts.push(Draft::create(&dir.join(&volume.file_name), 0o600)?);
    }
    // Texts come first: a name that is taken must be found before the long part.
    drafts.extend(write_texts(recovery, &plan, options.format, &dir)?);
    let mut targets = open_targets(&plan, options.format, &drafts)?;
    let path = |volume: usize| drafts[volume].partial.clone();
    apply(history, &plan, &mut targets, progress)
        .map_err(|fault| fault.into_error(history, guest, &plan, path))?;
    for (target, draft) in targets.iter_mut().zip(&drafts) {
        target.finish().map_err(|e| Error::target("complete", &draft.partial, e))?;
    }
    let bytes_written = targets.iter().map(|t| t.written_bytes()).sum();
    drop(targets);
    publish(&dir, &mut drafts)?;
    let disk = |(v, draft): (&crate::plan::VolumePlan, &Draft)| DiskReport {
        node: v.volume.node.clone(),
        path: draft.path.clone(),
    };
    Ok(Report {
        seq: point.seq,
        time: rfc3339(point.wall_ns),
        disks: plan.volumes.iter().zip(&drafts).map(disk).collect(),
        memory: None,
        bytes_written,
        seconds: started.elapsed().as_secs_f64(),
        skipped: plan.skipped,
    })
}

/// The target directory, absolute: scripts written there are started from anywhere.
fn prepare(to: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(to).map_err(|e| Error::target("find directory", to, e))?;
    if dir.exists() && !dir.is_dir() {
        return Err(Error::Usage(format!(
            "{} is a file: give a directory to restore to",
            dir.display()
        )));
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|e| Error::target("create directory", &dir, e))?;
    Ok(dir)
}

fn open_targets(plan: &Plan, format: Format, drafts: &[Draft]) -> Result<Vec<Box<dyn Target>>> {
    let mut targets: Vec<Box<dyn Target>> = Vec::new();
    for (volume, draft) in plan.volumes.iter().zip(drafts) {
        let failed = |e| Error::target("size", &draft.partial, e);
        let file = draft.file.try_clone().map_err(failed)?;
        let bytes = volume.volume.bytes;
        targets.push(match format {
            Format::Raw => Box::new(Raw::new(file, bytes).map_err(failed)?),
            Format::Qcow2 => Box::new(Qcow2::new(file, bytes)),
        });
    }
    Ok(targets)
}

fn write_texts(recovery: &Recovery, plan: &Plan, format: Format, dir: &Path) -> Result<Vec<Draft>> {
    let Some(config) = recovery.history.config_at(plan.point.seq) else { return Ok(Vec::new()) };
    let mut drafts = Vec::new();
    for guest in &config.guests {
        let restored = |id| plan.volumes.iter().find(|v| v.volume.id == id);
        let disks: Vec<RestoredDisk> = config
            .disks()
            .filter(|v| v.active && v.guest == guest.name)
            .map(|volume| RestoredDisk {
                volume,
                image: restored(volume.id).map(|v| dir.join(&v.file_name)),
            })
            .collect();
        if disks.iter().all(|d| d.image.is_none()) {
            continue;
        }
        for text in start::texts(guest, &disks, format, plan.point) {
            let mut draft = Draft::create(&dir.join(&text.file_name), text.mode)?;
            draft
                .file
                .write_all(text.content.as_bytes())
                .and_then(|()| draft.file.sync_all())
                .map_err(|e| Error::target("write", &draft.partial, e))?;
            drafts.push(draft);
        }
    }
    Ok(drafts)
}
