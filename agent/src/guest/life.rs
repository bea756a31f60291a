//! An attached guest: what is watched, and what is done about what is seen.
//!
//! What always holds: a look that finds any mirror not level, not connected or gone ends the
//! stretch; positions count as confirmed only when a look behind them found all level.

use super::attach::{self, Attached};
use super::devices::taken;
use super::face::{DiskFace, Progress};
use super::lend::Lent;
use super::plan::Plan;
use super::sync::{Level, Sync};
use super::task::{Task, Waiting};
use super::{Command, marks};
use crate::api::{ApiError, GuestState};
use crate::capture::CaptureEvent;
use crate::settings::GuestSettings;
use afterimage_journal::Seq;
use afterimage_journal::meta::CopyCause;
use afterimage_qmp::qemu::{DevicePath, RunState};
use afterimage_qmp::{Events, QemuEvent};
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How often a level guest is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Looks in a row at which a mirror may be neither level nor paused.
pub(super) const UNLEVEL_LOOKS_MAX: u32 = 5;

/// One stretch of being attached.
pub(super) struct Life {
    pub(super) attached: Attached,
    pub(super) events: Events,
    pub(super) captures: mpsc::UnboundedReceiver<CaptureEvent>,
    pub(super) syncing: Option<JoinHandle<Result<Level>>>,
    pub(super) progress: Arc<Progress>,
    pub(super) spent: Vec<(String, String)>,
    pub(super) rotated: Instant,
    pub(super) rotated_head: Seq,
    pub(super) retired: Option<(Seq, Vec<(String, String)>)>,
    pub(super) unlevel_looks: u32,
    pub(super) shutdown: Option<String>,
    pub(super) disorderly: bool,
    /// A mirror ended before the guest did: writes may have gone past it.
    pub(super) ended_early: bool,
    /// The disk whose mirror somebody else ended.
    pub(super) cancelled: Option<String>,
    pub(super) counted: (u64, u64, Instant),
    /// The devices that are none of ours, as they were when they were last judged.
    pub(super) others: Option<Vec<DevicePath>>,
    /// Somebody takes its memory.
    pub(super) lent: Option<Lent>,
}

/// What the watching ended with.
pub(super) enum Ending {
    Lost(String),
    /// The guest's disks are not those that are mirrored, or not through the mirrors.
    Changed(String),
    /// The journal takes no records: up to its end all is there.
    Stopped(String),
    MonitorLost(String),
    Detach(Waiting),
    Unprotect(Waiting),
    Stop(Waiting),
    Abandoned,
}

impl Ending {
    /// Nothing went wrong: somebody asked for it.
    pub(super) fn is_wanted(&self) -> bool {
        !matches!(self, Self::Lost(_) | Self::Changed(_) | Self::Stopped(_) | Self::MonitorLost(_))
    }
}

impl Life {
    pub(super) fn begin(
        task: &mut Task,
        attached: Attached,
        events: Events,
        captures: mpsc::UnboundedReceiver<CaptureEvent>,
    ) -> Self {
        let disks = Sync::disks_of(&attached);
        let cause = Sync::cause(&disks);
        let rate = task.context.settings.rate_bytes_per_s.unwrap_or(0);
        let progress = Progress::new(cause, rate);
        let sync = Sync {
            qemu: attached.qemu.clone(),
            group: Arc::clone(&task.context.group),
            disks,
            pull_socket: attached.pull_socket(),
            progress: Arc::clone(&progress),
            gate: Arc::clone(&attached.shared.gate),
        };
        let state = match cause {
            CopyCause::Initial => GuestState::InitialSync,
            _ => GuestState::Resync,
        };
        {
            let mut shown = task.context.face.shown();
            shown.disks = attached.disks.iter().map(disk_face).collect();
            shown.copy = Some(Arc::clone(&progress));
            shown.gate = Some(Arc::clone(&attached.shared.gate));
        }
        task.context.face.show(state, None);
        task.answer(Ok(()));
        for disk in attached.disks.iter().filter(|d| d.plan != Plan::default()) {
            tracing::info!(disk = disk.disk.node, plan = ?disk.plan, "attached");
        }
        Self {
            attached,
            events,
            captures,
            syncing: Some(tokio::spawn(sync.run())),
            progress,
            spent: Vec::new(),
            rotated: Instant::now(),
            rotated_head: 0,
            retired: None,
            unlevel_looks: 0,
            shutdown: None,
            disorderly: false,
            ended_early: false,
            cancelled: None,
            counted: (0, 0, Instant::now()),
            others: None,
            lent: None,
        }
    }

    pub(super) async fn watch(&mut self, task: &mut Task) -> Ending {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ending = tokio::select! {
                command = task.inbox.recv() => match command {
                    Some(command) => self.command(task, command).await,
                    None => Some(Ending::Abandoned),
                },
                event = self.events.next_meaning() => self.event(task, event).await,
                Some(event) = self.captures.recv() => self.captured(task, event).await,
                synced = join(&mut self.syncing), if self.syncing.is_some() => {
                    self.syncing = None;
                    self.synced(task, synced).await
                }
                _ = ticks.tick() => self.tick(task).await,
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    pub(super) async fn command(&mut self, task: &mut Task, command: Command) -> Option<Ending> {
        match command {
            Command::Detach(reply) => return Some(Ending::Detach(reply)),
            Command::Unprotect(reply) => match task.remove_settings() {
                Ok(()) => return Some(Ending::Unprotect(reply)),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Save(reply) => drop(reply.send(task.save())),
            Command::Stop(reply) => return Some(Ending::Stop(reply)),
            Command::Attach(reply) => drop(reply.send(Ok(()))),
            Command::Set(settings, reply) => {
                let rate = settings.rate_bytes_per_s.unwrap_or(0);
                self.progress.rate_bytes_per_s.store(rate, Ordering::Relaxed);
                // Where it is attached to a VM, that is the guest already.
                let moved = settings.monitor() != task.context.settings.monitor();
                let settings =
                    GuestSettings { accept_vm: settings.accept_vm && moved, ..*settings };
                let monitor = settings.monitor();
                drop(reply.send(task.change_settings(settings)));
                if moved {
                    return Some(Ending::Changed(format!("its monitor is at {monitor} now")));
                }
            }
            Command::Lend(reply) => drop(reply.send(self.lend(task))),
            Command::Mark(request, reply) => match self.mark(task, request).await {
                Ok(made) => {
                    let (proved, ending) = self.prove(task, made.seq).await;
                    drop(reply.send(proved.map(|()| made)));
                    return ending;
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Confirm(position, reply) => {
                let (proved, ending) = self.prove(task, position).await;
                drop(reply.send(proved));
                return ending;
            }
        }
        None
    }

    /// Proves, durably, that the guest was level at a position that was just recorded.
    async fn prove(
        &mut self,
        task: &Task,
        position: Seq,
    ) -> (Result<(), ApiError>, Option<Ending>) {
        let lost = "a mirror was lost at the checkpoint";
        let mut ending = self.look(task, lost).await;
        if ending.is_none() && self.unlevel_looks == 0 {
            ending = self.look_at_disks(task).await;
        }
        if ending.is_some() || self.unlevel_looks > 0 {
            return (Err(ApiError::other(format!("{lost}: it is not restorable"))), ending);
        }
        (marks::confirm(&task.context, position).await, None)
    }

    pub(super) async fn event(&mut self, task: &mut Task, event: QemuEvent) -> Option<Ending> {
        match event {
            QemuEvent::Eof { reason } => return Some(Ending::MonitorLost(reason)),
            QemuEvent::Overflow { .. } if self.syncing.is_none() => {
                self.note_end(event);
                return self.look(task, "events were lost").await;
            }
            QemuEvent::DeviceDeleted { path, .. } => {
                // Whoever unplugs a disk takes its node next: our mirror must not be in the way.
                if let Some(disk) = self.disk_at(&path) {
                    return Some(Ending::Changed(taken(&disk)));
                }
            }
            event => {
                if self.note_end(event) && self.syncing.is_none() {
                    return self.look(task, "a mirror ended or paused").await;
                }
            }
        }
        None
    }

    pub(super) async fn captured(
        &mut self,
        task: &mut Task,
        event: CaptureEvent,
    ) -> Option<Ending> {
        let (volume, reason) = match event {
            CaptureEvent::Closed { volume, orderly, reason } => {
                self.disorderly |= !orderly;
                (volume, reason)
            }
            CaptureEvent::Connected(volume) => (volume, "it connected anew".into()),
        };
        let disk = self.attached.disks.iter().find(|d| d.volume.id == volume)?;
        let why = format!("the mirror of disk {} lost its connection ({reason})", disk.disk.node);
        if self.attached.shared.gate.is_shut() {
            return Some(Ending::Lost(why));
        }
        if disk.counters.connected.load(Ordering::Acquire) > 0 {
            return None;
        }
        if self.syncing.is_some() {
            return Some(Ending::Lost(why));
        }
        self.look(task, &why).await
    }

    /// Looks whether every mirror is level; a loss if not.
    pub(super) async fn look(&mut self, task: &Task, why: &str) -> Option<Ending> {
        if let Some(stopped) = task.context.group.stopped() {
            return Some(Ending::Stopped(stopped));
        }
        if self.attached.shared.gate.is_shut() {
            return Some(Ending::Lost(why.to_owned()));
        }
        match self.attached.qemu.jobs().await {
            Ok(jobs) => {
                for disk in &self.attached.disks {
                    let job = jobs.iter().find(|j| j.job == disk.attachment.job);
                    let connected = disk.counters.connected.load(Ordering::Acquire) > 0;
                    match job {
                        None => {
                            self.ended_early |= connected && !self.is_going_down().await;
                            self.cancelled = Some(disk.disk.node.clone());
                            return Some(Ending::Lost(cancelled(&disk.disk.node)));
                        }
                        Some(job) if job.paused || !connected => {
                            self.ended_early |= connected && !self.is_going_down().await;
                            return Some(Ending::Lost(why.to_owned()));
                        }
                        Some(job) if !job.is_level() => {
                            self.unlevel_looks += 1;
                            if self.unlevel_looks > UNLEVEL_LOOKS_MAX {
                                return Some(Ending::Lost(why.to_owned()));
                            }
                            return None;
                        }
                        Some(_) => {}
                    }
                }
                self.unlevel_looks = 0;
                None
            }
            Err(e) => self.unanswered(&e),
        }
    }

    pub(super) async fn synced(
        &mut self,
        task: &mut Task,
        synced: Result<Level>,
    ) -> Option<Ending> {
        let level = match synced {
            Ok(level) => level,
            Err(error) => return Some(Ending::Lost(format!("the sync failed: {error:#}"))),
        };
        // Disks may have come or changed while others were copied.
        if let Some(ending) = self.look_at_disks(task).await {
            return Some(ending);
        }
        if self.unlevel_looks > 0 {
            return Some(Ending::Lost("QEMU did not say which disks there are".into()));
        }
        let (group, name) = (Arc::clone(&task.context.group), task.context.settings.name.clone());
        let opened = group.open_session_within(marks::SYNC_LIMIT, &name, level.full).await;
        let session = match opened {
            Ok(session) => session,
            Err(reason) => return Some(Ending::Lost(reason)),
        };
        // The gate was armed before the proof: if it is open still, the session's first position
        // is level too.
        if let Some(ending) = self.look(task, "a mirror was lost before it was level").await {
            let (group, name) = (&task.context.group, &task.context.settings.name);
            group.close_session(name, "never proved", Some(session.from.saturating_sub(1)));
            return Some(ending);
        }
        self.attached.shared.session.store(session.id, Ordering::Relaxed);
        task.context.face.shown().copy = None;
        task.context.face.show(GuestState::Protected, None);
        for (node, map) in &level.spent {
            if let Err(error) = self.attached.qemu.remove_bitmap(node, map).await {
                tracing::warn!(map, %error, "left behind in QEMU");
                self.spent.push((node.clone(), map.clone()));
            }
        }
        self.rotated = Instant::now();
        self.rotated_head = session.from;
        self.mark_ends(false).await;
        None
    }

    pub(super) async fn tick(&mut self, task: &mut Task) -> Option<Ending> {
        self.count(task);
        if let Some(stopped) = task.context.group.stopped() {
            return Some(Ending::Stopped(stopped));
        }
        if self.syncing.is_some() {
            return None;
        }
        let Ok(journal) = task.context.group.journal() else { return None };
        if let Err(e) = marks::regular(&task.context) {
            return Some(Ending::Lost(e.to_string()));
        }
        let position = task.context.group.newest(&journal);
        if let Some(ending) = self.look(task, "a mirror is not level").await {
            return Some(ending);
        }
        if let Some(ending) = self.look_at_disks(task).await {
            return Some(ending);
        }
        if self.unlevel_looks > 0 {
            return None;
        }
        match self.attached.qemu.run_state().await {
            // One whose memory is read while it stands still looks like that, too.
            Ok(RunState::PostMigrate) if !self.is_lent() => {
                return Some(Ending::Lost(attach::MIGRATED_AWAY.into()));
            }
            Ok(_) => {}
            Err(e) => tracing::warn!(error = %e, "QEMU did not say how the guest is"),
        }
        let settings = &task.context.settings;
        let group = &task.context.group;
        if let Some(lost) = tokio::task::block_in_place(|| group.units_lost(&settings.name)) {
            return Some(Ending::Lost(lost));
        }
        // A record may wait for a unit: not on a thread that others need.
        let noted = tokio::task::block_in_place(|| group.confirm(&settings.name, position));
        if let Err(e) = noted {
            return Some(Ending::Lost(e.to_string()));
        }
        self.rotate(&task.context.group, &task.context.settings.name, &journal, position).await;
        self.mark_ends(false).await;
        None
    }

    pub(super) fn count(&mut self, task: &Task) {
        let sum = |f: fn(&crate::capture::TapCounters) -> u64| {
            self.attached.disks.iter().map(|d| f(&d.counters)).sum::<u64>()
        };
        let now = (
            sum(|c| c.bytes.load(Ordering::Relaxed)),
            sum(|c| c.writes.load(Ordering::Relaxed)),
            Instant::now(),
        );
        let ms = now.2.duration_since(self.counted.2).as_millis() as u64;
        if ms >= 500 {
            let mut shown = task.context.face.shown();
            let rate = |new: u64, old: u64, was: u64| (was + (new - old) * 1000 / ms) / 2;
            shown.bytes_per_s = rate(now.0, self.counted.0, shown.bytes_per_s);
            shown.writes_per_s = rate(now.1, self.counted.1, shown.writes_per_s);
            self.counted = now;
        }
    }
}

/// The reason of a gap that begins with the end of a mirror that neither we nor QEMU ended.
pub(super) fn cancelled(node: &str) -> String {
    format!("the mirror of disk {node} was ended from outside")
}

async fn join(handle: &mut Option<JoinHandle<Result<Level>>>) -> Result<Level> {
    match handle {
        Some(handle) => handle.await?,
        None => std::future::pending().await,
    }
}

fn disk_face(disk: &attach::AttachedDisk) -> DiskFace {
    DiskFace {
        volume: disk.volume.id,
        id: disk.volume.disk.clone(),
        node: disk.disk.node.clone(),
        bytes: disk.volume.bytes,
        counters: Arc::clone(&disk.counters),
    }
}
