//! Taking hold of a running guest's disks: what is there already, what has to be copied, and the
//! mirrors.
//!
//! What is found in QEMU and in the journal goes into [`decide`], and for each disk a [`Plan`]
//! comes out.

use super::chain;
use super::choice;
use super::disks::{forget_others, volume_of};
use super::maps::{Maps, Seen, fresh, is_map, merged};
use super::owned::{Owned, held};
use super::plan::{Found, FullCopy, Plan, decide};
use super::removal;
use super::sockets::{PULL_DIR, check_path, give_to, probe, run_dir, socket_name};
use super::task::Context;
use crate::capture::{Capture, CaptureEvent, Tap, TapCounters, TapShared};
use crate::group::LastSession;
use afterimage_journal::layout;
use afterimage_journal::meta::{CopyCause, Guest, Volume};
use afterimage_journal::storage::read_plain;
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
use afterimage_qmp::qemu::{
    Attachment, Disk, MirrorSpec, Names, Process, ProcessId, Rotation, RunState,
};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Notes which QEMU process was attached to.
pub(super) const PROCESS_FILE: &str = "qemu-process";
/// Largest such note, in bytes.
const PROCESS_BYTES_MAX: u64 = 256;
/// Its disks belong to another QEMU now.
pub(super) const MIGRATED_AWAY: &str =
    "the guest was live-migrated away: protect it where it runs now";

/// The guard's number for the next attached guest; 0 is nobody.
static NEXT_TAG: AtomicU64 = AtomicU64::new(1);

/// A disk with its mirror.
pub struct AttachedDisk {
    /// Its volume.
    pub volume: Volume,
    /// The disk as QEMU described it.
    pub disk: Disk,
    /// Our names for it.
    pub names: Names,
    /// Its mirror.
    pub attachment: Attachment,
    /// Our server.
    pub capture: Option<Capture>,
    /// What its tap counts.
    pub counters: Arc<TapCounters>,
    /// What is to be done.
    pub plan: Plan,
    /// The map that records now.
    pub recording: String,
    /// It was made at this attach.
    pub is_map_fresh: bool,
    /// The disk's end is marked, or was tried to be.
    pub is_end_marked: bool,
}

/// A guest with its mirrors.
pub struct Attached {
    /// Its QEMU.
    pub qemu: Qemu,
    /// The process, where it can be told.
    pub process: Option<Process>,
    /// Its disks.
    pub disks: Vec<AttachedDisk>,
    /// Shared by all its taps.
    pub shared: TapShared,
    /// Where its sockets lie.
    pub dir: PathBuf,
    /// Its number for the guard.
    tag: u64,
    /// This very QEMU process was the one at the attach before, by an earlier agent too.
    same_process: bool,
}

impl Attached {
    /// Which process its QEMU is, where that can be told.
    pub(super) fn process_id(&self) -> Option<ProcessId> {
        self.process.as_ref().map(Process::id)
    }

    /// The socket that QEMU serves its disks on while they are copied.
    pub(super) fn pull_socket(&self) -> PathBuf {
        self.dir.join(PULL_DIR).join("pull.sock")
    }

    /// Ends our servers: QEMU's mirrors pause and keep their maps. Blocking.
    pub fn stop_captures(&mut self) {
        for disk in &mut self.disks {
            if let Some(capture) = disk.capture.take() {
                capture.stop();
            }
        }
    }
}

/// Attaches to all disks of a guest.
///
/// # Errors
/// The guest has no such disks, something else holds one, or QEMU refused. Our servers are gone
/// then; mirrors that were made are paused, and taken up or removed by the next try.
pub async fn attach(
    context: &Context,
    qemu: Qemu,
    libvirt_xml: Option<String>,
    events: &mpsc::UnboundedSender<CaptureEvent>,
) -> Result<Attached> {
    let process = qemu.process()?;
    let guest = Guest {
        name: context.settings.name.clone(),
        command_line: process.as_ref().map(|p| p.command_line.clone()).unwrap_or_default(),
        libvirt_xml,
        qemu_version: qemu.version().to_string(),
    };
    let disks = choice::chosen(context, &qemu).await?;
    let disks = choice::freed(context, &qemu, process.as_ref(), disks).await?;
    let dir = run_dir(context, process.as_ref())?;
    let mut attached = Attached {
        qemu,
        process,
        disks: Vec::new(),
        shared: TapShared::default(),
        dir,
        tag: NEXT_TAG.fetch_add(1, Ordering::Relaxed),
        same_process: false,
    };
    attached.same_process = was_here(&attached);
    let begun = begin(context, &mut attached, &guest, disks, events).await;
    if let Err(error) = begun {
        attached.stop_captures();
        return Err(error);
    }
    Ok(attached)
}

async fn begin(
    context: &Context,
    attached: &mut Attached,
    guest: &Guest,
    disks: Vec<Disk>,
    events: &mpsc::UnboundedSender<CaptureEvent>,
) -> Result<()> {
    let qemu = attached.qemu.clone();
    let prelaunch = match qemu.run_state().await? {
        RunState::PostMigrate => bail!(MIGRATED_AWAY),
        RunState::InMigrate => bail!("the guest has not arrived here yet: it is being migrated"),
        state => state == RunState::Prelaunch,
    };
    let jobs = qemu.jobs().await?;
    let owned = Owned::by_journal_and_sockets(context, &qemu).await?;
    let layers = qemu.layers().await?;
    let mut found = Vec::new();
    for disk in disks {
        let wanted = volume_of(context, &disk);
        let before = context.group.config();
        let mut before = before.disks();
        let before = before.find(|v| v.guest == wanted.guest && v.disk == wanted.disk);
        let resized = before.is_some_and(|v| v.bytes != disk.bytes || v.format != disk.driver);
        if let Some(before) = before.filter(|_| resized) {
            context.group.owe(before.id, CopyCause::Compare)?;
        }
        let volume = context.group.volume_of(guest, &wanted)?;
        let below = chain::identity(&layers.below(&disk.node));
        let names = removal::names_of(&volume)?.above(&below);
        let job = jobs.iter().any(|j| j.job == names.job() && j.status != "concluded");
        let other = disk.job.as_ref().filter(|j| **j != names.job());
        if let Some(other) = other.filter(|j| !owned.has(j)) {
            bail!(held(other, &disk.node));
        }
        let untouched = prelaunch && is_untouched(context, &volume, &names);
        found.push((disk, volume, names, job, resized, untouched));
    }
    forget_others(context, &found.iter().map(|f| f.1.id).collect::<Vec<_>>())?;
    let mirrors = found.iter().map(|f| (&f.2, f.3)).collect::<Vec<_>>();
    clean(context, attached, &owned, &mirrors).await?;
    let last = context.group.take_last_session(&guest.name);
    amend_if_job_vanished(
        context,
        last.filter(|_| attached.same_process),
        found.iter().all(|f| f.3),
    );
    for (disk, volume, names, job, resized, untouched) in found {
        let noted = context.group.noted_map(volume.id);
        let seen = Seen { same_process: attached.same_process, job };
        let mapped = Maps::of(&disk, &names, noted.as_deref(), seen).trusted.is_some();
        let plan = decide(&Found {
            job,
            mapped,
            journal: context.group.volume_state(volume.id),
            untouched,
            resized,
            damaged: context.group.is_damaged(&guest.name),
        });
        let one = take(context, attached, disk, volume, names, plan, events).await?;
        attached.disks.push(one);
    }
    renew_maps(context, attached).await?;
    remember(attached);
    if prelaunch && qemu.run_state().await? != RunState::Prelaunch {
        // It was started in between: what it wrote first may have been missed.
        for disk in attached.disks.iter_mut().filter(|d| d.plan == Plan::default()) {
            context.group.owe(disk.volume.id, CopyCause::Compare)?;
            disk.plan.full = Some(FullCopy::Compare);
        }
    }
    Ok(())
}

/// The mirror and the maps of one disk.
async fn take(
    context: &Context,
    attached: &Attached,
    disk: Disk,
    volume: Volume,
    names: Names,
    mut plan: Plan,
    events: &mpsc::UnboundedSender<CaptureEvent>,
) -> Result<AttachedDisk> {
    let qemu = &attached.qemu;
    let counters = Arc::new(TapCounters::default());
    let capture = listen(context, attached, &volume, &names, &counters, events)?;
    let Settled { maps, recording } =
        settle_maps(context, attached, &disk, &names, &volume, &plan).await?;
    let mut this = AttachedDisk {
        attachment: Attachment::of(&disk.node, &names),
        volume,
        names: names.clone(),
        capture: None,
        counters,
        plan: Plan::default(),
        recording,
        is_map_fresh: true,
        is_end_marked: false,
        disk: disk.clone(),
    };
    if !plan.resume {
        probe(&capture.socket).await?;
        this.attachment = qemu
            .attach(&MirrorSpec {
                node: disk.node.clone(),
                socket: capture.socket.clone(),
                export: String::new(),
                names: names.clone(),
            })
            .await
            .with_context(|| format!("attach to disk {}", disk.node))?;
    }
    this.capture = Some(capture);
    this.is_map_fresh = maps.trusted.is_none();
    if !this.is_map_fresh {
        plan.bitmaps = merged(qemu, &this.disk.node, maps.retired).await;
    }
    // One that grew keeps the mark at its old end.
    this.is_end_marked = !this.is_map_fresh && plan.full.is_none() && disk.has_end_mark(&names);
    this.plan = plan;
    Ok(this)
}

/// Changes the maps that were recording for fresh ones, which the journal notes. A copy of the journal
/// that was made before, and is put back later, then never finds in QEMU the map that it noted last:
/// that its mirror has sent what such a copy lacks is found by that alone. A session opens only behind
/// this, and makes it durable.
async fn renew_maps(context: &Context, attached: &mut Attached) -> Result<()> {
    let (group, guest) = (&context.group, &context.settings.name);
    let lost = group.records_lost(guest);
    let renewed = |d: &&mut AttachedDisk| {
        !(d.is_map_fresh || d.plan.resume && planted::is("keep-maps-at-resume"))
    };
    let mut rotations = Vec::new();
    let mut noted = Vec::new();
    for disk in attached.disks.iter_mut().filter(renewed) {
        let new = fresh(&disk.disk, &disk.names);
        let name = new.name.clone();
        let old = std::mem::replace(&mut disk.recording, name.clone());
        let owed = group.volume_state(disk.volume.id).owes_maps;
        let pulled = !disk.plan.resume || owed || lost;
        let maps = if pulled { &mut disk.plan.bitmaps } else { &mut disk.plan.covered };
        maps.push(old.clone());
        rotations.push(Rotation { old, new });
        noted.push((disk.volume.id, name));
    }
    if rotations.is_empty() {
        return Ok(());
    }
    attached.qemu.rotate_bitmaps(&rotations).await.context("change the changed-block maps")?;
    Ok(group.note_maps(guest, noted)?)
}

/// A disk's maps before its mirror is made, and the one that records.
struct Settled {
    maps: Maps,
    recording: String,
}

/// Sees to it that a map records, and that the journal knows what this disk still owes before
/// anything is changed that told so.
async fn settle_maps(
    context: &Context,
    attached: &Attached,
    disk: &Disk,
    names: &Names,
    volume: &Volume,
    plan: &Plan,
) -> Result<Settled> {
    let (group, guest) = (&context.group, &context.settings.name);
    let qemu = &attached.qemu;
    let seen = Seen { same_process: attached.same_process, job: plan.resume };
    let maps = Maps::of(disk, names, group.noted_map(volume.id).as_deref(), seen);
    let compares = matches!(plan.full, Some(FullCopy::Compare | FullCopy::Whole));
    let unmapped_resume = plan.resume && maps.trusted.is_none();
    if compares || unmapped_resume {
        group.owe(volume.id, CopyCause::Compare)?;
    } else if maps.trusted.is_some() && (!plan.resume || group.records_lost(guest)) {
        group.owe(volume.id, CopyCause::Bitmap)?;
    }
    if let Some(recording) = maps.trusted.clone() {
        return Ok(Settled { maps, recording });
    }
    for name in &maps.all {
        qemu.remove_bitmap(&disk.node, name).await?;
    }
    let map = fresh(disk, names);
    qemu.add_bitmap(&map).await?;
    group.note_maps(guest, vec![(volume.id, map.name.clone())])?;
    Ok(Settled { maps, recording: map.name })
}

fn listen(
    context: &Context,
    attached: &Attached,
    volume: &Volume,
    names: &Names,
    counters: &Arc<TapCounters>,
    events: &mpsc::UnboundedSender<CaptureEvent>,
) -> Result<Capture> {
    let socket = attached.dir.join(socket_name(&names.job()));
    check_path(&socket)?;
    let tap = Arc::new(Tap::new(
        context.group.journal()?,
        volume.id,
        volume.bytes,
        Arc::clone(counters),
        attached.shared.clone(),
    ));
    let guest = (attached.tag, attached.process.as_ref().map(|p| p.pid));
    let capture = Capture::start(&socket, tap, context.worker.clone(), guest, events.clone())?;
    give_to(&socket, attached.process.as_ref())?;
    Ok(capture)
}

/// Removes what an earlier agent left in QEMU, but for live mirrors and maps of these disks.
async fn clean(
    context: &Context,
    attached: &Attached,
    owned: &Owned,
    disks: &[(&Names, bool)],
) -> Result<()> {
    let wanted = |name: &str| {
        disks.iter().any(|(names, job)| {
            let mirror = [names.job(), names.target(), names.filter()];
            (*job && mirror.iter().any(|n| n == name))
                || is_map(names, name)
                || names.end_mark() == name
        })
    };
    let wanted = |name: &str| wanted(name) || !owned.has(name);
    let process = attached.process.as_ref();
    let removed = removal::remove(&attached.qemu, context, process, wanted).await;
    if let Err(error) = removed {
        tracing::warn!(error = format!("{error:#}"), "left behind in QEMU");
    }
    Ok(())
}

/// A mirror that vanished while we were away was not ended by our death: writes may have gone
/// past it before that. Only what was looked at counts then.
fn amend_if_job_vanished(context: &Context, last: Option<LastSession>, jobs_there: bool) {
    let Some(last) = last.filter(|l| !l.closed && !jobs_there) else { return };
    if last.confirmed < last.to {
        context.group.amend_close(
            &context.settings.name,
            last.id,
            "the mirror was ended from outside while the agent was not running",
            Some(last.confirmed),
            Vec::new(),
        );
    }
}

/// Whether this very QEMU process was the one at the attach before, by an earlier agent too.
fn was_here(attached: &Attached) -> bool {
    // What can't be read is another one: then nothing of what it did since is believed.
    let known = read_plain(&attached.dir.join(PROCESS_FILE), PROCESS_BYTES_MAX).unwrap_or_default();
    process_line(attached).is_some_and(|line| line.into_bytes() == known)
}

fn remember(attached: &Attached) {
    let line = process_line(attached).unwrap_or_default();
    // Never written through what lies there: it is replaced.
    let path = attached.dir.join(PROCESS_FILE);
    if let Err(error) = layout::replace_file(&path, line.as_bytes()) {
        tracing::warn!(%error, "can't note which QEMU this is");
    }
}

fn process_line(attached: &Attached) -> Option<String> {
    attached.process.as_ref().map(|p| format!("{} {}\n", p.pid, p.start_ticks))
}

fn is_untouched(context: &Context, volume: &Volume, names: &Names) -> bool {
    if names.below() == chain::UNKNOWN {
        return false;
    }
    let images = context.group.images(&context.settings.name);
    images
        .iter()
        .find(|i| i.volume == volume.id)
        .is_some_and(|known| super::leave::image_identity(volume, names).as_ref() == Some(known))
}
