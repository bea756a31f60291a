//! A restore from end to end: decide, write, make whole, name.

use crate::apply::apply;
use crate::batch::Order;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::open::Recovery;
use crate::plan::{Format, Plan, Selection, VolumePlan, plan};
use crate::start;
use crate::target::{Draft, Qcow2, Raw, Target, publish};
use crate::time::rfc3339;
use crate::warm::{GuestPlan, StreamFile, StreamJob, WarmPlan, WarmPoint};
use afterimage_journal::Seq;
use afterimage_journal::history::Point;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

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
    /// The memory of a warm restore: the first guest's, when there are several.
    pub memory: Option<PathBuf>,
    /// Bytes written to the images; zeroes are left as holes and don't count.
    pub bytes_written: u64,
    /// Duration.
    pub seconds: f64,
    /// Disks of the group that had not been synced at that position, and so are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
    /// The memory of each guest of a warm restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memories: Vec<MemoryReport>,
    /// What may keep a copy from being resumed, or is another way than it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The memory of a guest, restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// The guest.
    pub guest: String,
    /// The migration stream, absolute.
    pub path: PathBuf,
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
    let guest = recovery.guest.as_deref();
    let selection = Selection { guest, disks: &options.disks };
    let plan = plan(&recovery.history, point, selection, options.format)?;
    let folder = prepare(&options.to)?;
    Work { recovery, plan: &plan, guests: &[], warm: None, format: options.format, folder }
        .run(started, progress)
}

/// Does what a plan of a warm restore says: the disks at the checkpoint's instant, each guest's
/// memory as a stream, and a script that resumes it.
///
/// # Errors
/// As [`restore`]; [`Error::MemoryDamaged`].
pub fn restore_warm(
    recovery: &Recovery,
    plan: &WarmPlan,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let started = Instant::now();
    recovery.history.check_key()?;
    let folder = prepare(&plan.dir)?;
    let format = plan.options.format;
    let warm = Some(&plan.point);
    let work = Work { recovery, plan: &plan.disks, guests: &plan.guests, warm, format, folder };
    let mut report = work.run(started, progress)?;
    report.warnings.splice(0..0, plan.warnings.iter().cloned());
    Ok(report)
}

/// A restore under way.
struct Work<'a> {
    recovery: &'a Recovery,
    plan: &'a Plan,
    /// The guests whose memory is written, too.
    guests: &'a [GuestPlan],
    /// Their checkpoint.
    warm: Option<&'a WarmPoint>,
    format: Format,
    folder: Arc<Folder>,
}

impl Work<'_> {
    fn run(&self, started: Instant, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
        let (plan, folder) = (self.plan, &self.folder);
        let mut drafts = Vec::new();
        for volume in &plan.volumes {
            drafts.push(Draft::create(folder, &volume.file_name, 0o600)?);
        }
        let mut streams = Vec::new();
        for guest in self.guests {
            streams.push(Draft::create(folder, &guest.file_name, 0o600)?);
        }
        // Texts come first: a name that is taken must be found before the long part.
        let (texts, mut warnings) = self.write_texts()?;
        warnings.extend(self.shared());
        let ram_bytes: u64 = self.guests.iter().map(|g| g.ram.bytes()).sum();
        let total_bytes = plan.bytes() + ram_bytes;
        let mut before_bytes = 0;
        let mut step = |p: Progress, before_bytes: u64| {
            progress(Progress { done_bytes: before_bytes + p.done_bytes, total_bytes });
        };
        let mut bytes_written = self.write_disks(&drafts, &mut |p| step(p, 0))?;
        before_bytes += plan.bytes();
        for (guest, draft) in self.guests.iter().zip(&streams) {
            bytes_written += self.write_memory(guest, draft, &mut |p| step(p, before_bytes))?;
            before_bytes += guest.ram.bytes();
        }
        let memories = self.guests.iter().zip(&streams).map(|(guest, draft)| MemoryReport {
            guest: guest.memory.guest.clone(),
            path: draft.path.clone(),
        });
        let memories: Vec<MemoryReport> = memories.collect();
        let disk = |(v, draft): (&VolumePlan, &Draft)| DiskReport {
            node: v.volume.node.clone(),
            path: draft.path.clone(),
        };
        let disks = plan.volumes.iter().zip(&drafts).map(disk).collect();
        drafts.extend(streams);
        drafts.extend(texts);
        publish(folder, &mut drafts)?;
        Ok(Report {
            seq: plan.point.seq,
            time: rfc3339(plan.point.wall_ns),
            disks,
            memory: memories.first().map(|m| m.path.clone()),
            bytes_written,
            seconds: started.elapsed().as_secs_f64(),
            skipped: plan.skipped.clone(),
            memories,
            warnings,
        })
    }

    /// What to know of a directory in which another user may replace what is restored.
    fn shared(&self) -> Option<String> {
        let writer = self.folder.writer().ok()??;
        Some(format!(
            "{} can be changed by {writer}, who may replace images and scripts there before you use them: \
             restore to a directory that only you can write to",
            self.folder.path().display()
        ))
    }

    /// Writes the images; returns the bytes of data in them.
    fn write_disks(&self, drafts: &[Draft], progress: &mut dyn FnMut(Progress)) -> Result<u64> {
        let history = &self.recovery.history;
        let guest = self.recovery.guest.as_deref();
        let mut targets = open_targets(self.plan, self.format, drafts)?;
        let path = |volume: usize| drafts[volume].partial.clone();
        apply(history, (self.plan, Order::of(history)), &mut targets, progress)
            .map_err(|fault| fault.into_error(history, guest, self.plan, path))?;
        for (target, draft) in targets.iter_mut().zip(drafts) {
            target.finish().map_err(|e| Error::target("complete", &draft.partial, e))?;
        }
        Ok(targets.iter().map(|t| t.written_bytes()).sum())
    }

    /// Writes a guest's stream; returns the bytes of pages in it.
    fn write_memory(
        &self,
        guest: &GuestPlan,
        draft: &Draft,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64> {
        let Some(point) = self.warm else { return Ok(0) };
        let failed = |e| Error::target("write", &draft.partial, e);
        let file = draft.file.try_clone().map_err(failed)?;
        let begun = StreamFile::new(draft.file.try_clone().map_err(failed)?);
        let job = StreamJob { recovery: self.recovery, point, guest };
        let (file, bytes) = job.write(file, Some(begun), &draft.partial, progress)?;
        // Newer than all that the disks hold now, older than what the copy writes to them: so the
        // script knows whether the two are of one moment.
        file.set_modified(SystemTime::now()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(bytes)
    }

    fn write_texts(&self) -> Result<(Vec<Draft>, Vec<String>)> {
        let Some(config) = self.recovery.history.config_at(self.plan.point.seq) else {
            return Ok((Vec::new(), Vec::new()));
        };
        let (mut drafts, mut warnings) = (Vec::new(), Vec::new());
        let dir = self.folder.path();
        for guest in &config.guests {
            let disks = start::disks(config, &guest.name, self.plan, dir);
            if disks.iter().all(|d| d.image.is_none()) {
                continue;
            }
            let resumed = self.guests.iter().find(|g| g.memory.guest == guest.name);
            let texts = match resumed {
                Some(plan) => {
                    start::warm_texts(guest, &disks, self.format, self.plan.point, plan, dir)
                }
                None => {
                    let (texts, said) =
                        start::texts(guest, &disks, self.format, self.plan.point, dir);
                    warnings.extend(said.into_iter().map(|w| format!("{}: {w}", guest.name)));
                    texts
                }
            };
            for text in texts {
                let mut draft = Draft::create(&self.folder, &text.file_name, text.mode)?;
                draft
                    .file
                    .write_all(text.content.as_bytes())
                    .and_then(|()| draft.file.sync_all())
                    .map_err(|e| Error::target("write", &draft.partial, e))?;
                drafts.push(draft);
            }
        }
        Ok((drafts, warnings))
    }
}

/// The target directory, absolute: scripts written there are started from anywhere.
fn prepare(to: &Path) -> Result<Arc<Folder>> {
    let dir = std::path::absolute(to).map_err(|e| Error::target("find directory", to, e))?;
    // Without a slash at its end, behind which links are followed.
    let dir: PathBuf = dir.components().collect();
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
    let folder = Folder::open(&dir).map_err(|e| Error::target("open directory", &dir, e))?;
    Ok(Arc::new(folder))
}

fn open_targets(plan: &Plan, format: Format, drafts: &[Draft]) -> Result<Vec<Box<dyn Target>>> {
    let mut targets: Vec<Box<dyn Target>> = Vec::new();
    for (volume, draft) in plan.volumes.iter().zip(drafts) {
        let failed = |e| Error::target("size", &draft.partial, e);
        let file = draft.file.try_clone().map_err(failed)?;
        let bytes = volume.volume.bytes;
        targets.push(match format {
            Format::Raw => Box::new(Raw::new(file, bytes).map_err(failed)?),
            Format::Qcow2 => Box::new(Qcow2::new(file, bytes).map_err(failed)?),
        });
    }
    Ok(targets)
}
