//! The task that owns a guest: reaching it, attaching, syncing, watching, and letting go.

use super::attach::{self, Attached, Plan};
use super::face::{DiskFace, Face, Progress};
use super::sync::{Level, Sync};
use super::{Command, marks};
use crate::api::{ApiError, GuestState};
use crate::capture::CaptureEvent;
use crate::group::Group;
use crate::settings::GuestSettings;
use afterimage_guard::Worker;
use afterimage_journal::meta::{CopyCause, ImageIdentity, Volume};
use afterimage_journal::{Journal, Seq};
use afterimage_qmp::libvirt::{Libvirt, Target};
use afterimage_qmp::qemu::{GRANULARITY_BYTES, NewBitmap, Rotation, RunState, ServerHealth};
use afterimage_qmp::{Events, Qemu, QemuEvent};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How often a level guest is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Pauses between tries to reach a guest: the first and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);
/// How long after a lost mirror we wait to learn whether QEMU itself is ending.
const FATE_LIMIT: Duration = Duration::from_secs(2);
/// Age at which the recording bitmap is changed for a fresh one.
const ROTATE_EVERY: Duration = Duration::from_secs(30);
/// Looks in a row at which a mirror may be neither level nor paused.
const UNLEVEL_LOOKS_MAX: u32 = 5;

type Waiting = oneshot::Sender<Result<(), ApiError>>;

/// What a guest's task works with.
pub struct Context {
    /// The state directory.
    pub state: PathBuf,
    /// The guest's settings.
    pub settings: GuestSettings,
    /// Its group.
    pub group: Arc<Group>,
    /// The tie to the guard, where there is one.
    pub worker: Option<Worker>,
    /// What it shows.
    pub face: Arc<Face>,
}

/// Why an attached guest was let go of.
enum Let {
    /// Attach again after a pause.
    Again(String),
    /// The guest has ended; wait for it to come back.
    Ended(String),
    /// A person asked for it.
    Detached,
    /// The task ends.
    End,
}

struct Task {
    context: Context,
    inbox: mpsc::Receiver<Command>,
    /// Who waits for the outcome of an attach.
    waiting: Vec<Waiting>,
    retry: Duration,
}

/// Runs a guest's task until it is told to end or nobody holds its handle.
pub(super) async fn run(
    context: Context,
    inbox: mpsc::Receiver<Command>,
    first: oneshot::Sender<Result<(), ApiError>>,
) {
    let mut task = Task { context, inbox, waiting: vec![first], retry: RETRY_MIN };
    loop {
        if task.context.settings.detached {
            task.context.face.show(GuestState::Detached, Some("detached by the operator".into()));
            task.answer(Ok(()));
            let Some(command) = task.inbox.recv().await else { return };
            if task.idle(command).is_break() {
                return;
            }
            continue;
        }
        let begun = Instant::now();
        let outcome = match task.reach().await {
            Ok((qemu, xml)) => task.attached_life(qemu, xml).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(Let::End) => return,
            Ok(Let::Detached) => continue,
            Ok(Let::Again(reason)) => task.context.face.show(GuestState::Gap, Some(reason)),
            Ok(Let::Ended(reason)) => task.context.face.show(GuestState::Detached, Some(reason)),
            Err(error) => {
                let reason = format!("{error:#}");
                task.context.face.show(absent_state(&error), Some(reason.clone()));
                task.answer(Err(api_error(&error, reason)));
            }
        }
        if begun.elapsed() > RETRY_MAX {
            task.retry = RETRY_MIN;
        }
        if task.pause().await.is_break() {
            return;
        }
    }
}

/// A guest whose monitor isn't there is not running; anything else is a gap.
fn absent_state(error: &anyhow::Error) -> GuestState {
    match error.downcast_ref::<afterimage_qmp::Error>().map(afterimage_qmp::Error::kind) {
        Some(afterimage_qmp::error::Kind::Gone) => GuestState::Detached,
        _ => GuestState::Gap,
    }
}

fn api_error(error: &anyhow::Error, text: String) -> ApiError {
    use afterimage_qmp::error::Kind;
    if let Some(error) = error.downcast_ref::<afterimage_qmp::Error>() {
        return match error.kind() {
            Kind::Gone | Kind::Retry => ApiError::not_reachable(text),
            Kind::FixInput | Kind::Unsupported => ApiError::usage(text),
            Kind::Refused | Kind::Protocol => ApiError::other(text),
        };
    }
    ApiError::other(text)
}

impl Task {
    fn answer(&mut self, outcome: Result<(), ApiError>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(outcome.clone());
        }
    }

    /// A command while nothing is attached.
    fn idle(&mut self, command: Command) -> std::ops::ControlFlow<()> {
        match command {
            Command::Detach(reply) => {
                let _ = reply.send(self.save_detached(true));
            }
            Command::Attach(reply) => {
                match self.save_detached(false) {
                    Ok(()) => self.waiting.push(reply),
                    Err(e) => drop(reply.send(Err(e))),
                }
                self.retry = RETRY_MIN;
            }
            Command::Mark(_, reply) => {
                let _ = reply.send(Err(ApiError::other(format!(
                    "{} is not protected at this moment: a checkpoint now could not be restored; \
                     see `afterimage status`",
                    self.context.settings.name
                ))));
            }
            Command::Set(settings, reply) => {
                let _ = reply.send(self.change_settings(*settings));
            }
            Command::Unprotect(reply) | Command::Stop(reply) => {
                let _ = reply.send(Ok(()));
                return std::ops::ControlFlow::Break(());
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn save_detached(&mut self, detached: bool) -> Result<(), ApiError> {
        let settings = self.context.settings.clone();
        self.context.settings.detached = detached;
        self.change_settings(settings)
    }

    /// Takes new settings over, but for the one that is this task's own.
    fn change_settings(&mut self, settings: GuestSettings) -> Result<(), ApiError> {
        let detached = self.context.settings.detached;
        self.context.settings = GuestSettings { detached, ..settings };
        self.context
            .settings
            .save(&self.context.state)
            .map_err(|e| ApiError::other(format!("it may not outlast a restart: {e}")))
    }

    /// Waits before the next try, and serves commands meanwhile.
    async fn pause(&mut self) -> std::ops::ControlFlow<()> {
        let until = tokio::time::Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return std::ops::ControlFlow::Continue(()),
                command = self.inbox.recv() => {
                    let Some(command) = command else { return std::ops::ControlFlow::Break(()) };
                    let at_once = matches!(command, Command::Attach(_) | Command::Detach(_));
                    self.idle(command)?;
                    if at_once {
                        return std::ops::ControlFlow::Continue(());
                    }
                }
            }
        }
    }

    async fn reach(&self) -> Result<(Qemu, Option<String>)> {
        let group = Arc::clone(&self.context.group);
        tokio::task::spawn_blocking(move || group.ensure_open())
            .await?
            .with_context(|| format!("open the journal of {}", self.context.group.name()))?;
        let settings = &self.context.settings;
        match (&settings.qmp, &settings.libvirt) {
            (Some(path), _) => Ok((Qemu::connect(path).await?, None)),
            (None, Some(domain)) => {
                let libvirt = Libvirt::open(Target::new(domain)).await?;
                let xml = libvirt.dump_xml().await?;
                Ok((Qemu::open(Arc::new(libvirt)).await?, Some(xml)))
            }
            (None, None) => anyhow::bail!("neither a QMP socket nor a libvirt domain is known"),
        }
    }

    async fn attached_life(&mut self, qemu: Qemu, xml: Option<String>) -> Result<Let> {
        let events = qemu.events();
        let (sender, captures) = mpsc::unbounded_channel();
        let attached = attach::attach(&self.context, qemu, xml, &sender).await?;
        self.retry = RETRY_MIN;
        let mut life = Life::begin(self, attached, events, captures);
        let outcome = life.watch(self).await;
        Ok(life.end(self, outcome).await)
    }
}

/// One stretch of being attached.
struct Life {
    attached: Attached,
    events: Events,
    captures: mpsc::UnboundedReceiver<CaptureEvent>,
    syncing: Option<JoinHandle<Result<Level>>>,
    progress: Arc<Progress>,
    spent: Vec<(String, String)>,
    rotated: Instant,
    rotated_head: Seq,
    retired: Option<(Seq, Vec<(String, String)>)>,
    unlevel_looks: u32,
    shutdown: Option<String>,
    disorderly: bool,
    counted: (u64, u64, Instant),
}

/// What the watching ended with.
enum Ending {
    Lost(String),
    MonitorLost(String),
    Detach(Waiting),
    Unprotect(Waiting),
    Stop(Waiting),
    Abandoned,
}

impl Life {
    fn begin(
        task: &mut Task,
        attached: Attached,
        events: Events,
        captures: mpsc::UnboundedReceiver<CaptureEvent>,
    ) -> Self {
        let disks = Sync::disks_of(&attached);
        let cause = Sync::cause(&disks);
        let progress = Progress::new(cause, 0);
        let sync = Sync {
            qemu: attached.qemu.clone(),
            group: Arc::clone(&task.context.group),
            disks,
            pull_socket: attached.dir.join("pull.sock"),
            rate_bytes_per_s: task.context.settings.rate_bytes_per_s,
            progress: Arc::clone(&progress),
        };
        let state = match cause {
            CopyCause::Initial => GuestState::InitialSync,
            _ => GuestState::Resync,
        };
        {
            let mut shown = task.context.face.shown();
            shown.disks = attached.disks.iter().map(disk_face).collect();
            shown.copy = Some(Arc::clone(&progress));
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
            counted: (0, 0, Instant::now()),
        }
    }

    async fn watch(&mut self, task: &mut Task) -> Ending {
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

    async fn command(&mut self, task: &mut Task, command: Command) -> Option<Ending> {
        match command {
            Command::Detach(reply) => return Some(Ending::Detach(reply)),
            Command::Unprotect(reply) => return Some(Ending::Unprotect(reply)),
            Command::Stop(reply) => return Some(Ending::Stop(reply)),
            Command::Attach(reply) => drop(reply.send(Ok(()))),
            Command::Set(settings, reply) => {
                let _ = reply.send(task.change_settings(*settings));
            }
            Command::Mark(request, reply) => {
                drop(reply.send(marks::mark(&task.context, request).await));
            }
        }
        None
    }

    async fn event(&mut self, task: &mut Task, event: QemuEvent) -> Option<Ending> {
        match event {
            QemuEvent::Eof { reason } => return Some(Ending::MonitorLost(reason)),
            QemuEvent::Shutdown { reason, .. } => self.shutdown = Some(reason),
            QemuEvent::BlockJobError { job, .. }
            | QemuEvent::BlockJobCompleted { job, .. }
            | QemuEvent::BlockJobCancelled { job }
                if self.is_ours(&job) && self.syncing.is_none() =>
            {
                return self.look(task, "a mirror ended or paused").await;
            }
            QemuEvent::Overflow { .. } => return self.look(task, "events were lost").await,
            _ => {}
        }
        None
    }

    fn is_ours(&self, job: &str) -> bool {
        self.attached.disks.iter().any(|d| d.attachment.job == job)
    }

    async fn captured(&mut self, task: &mut Task, event: CaptureEvent) -> Option<Ending> {
        let CaptureEvent::Closed { volume, orderly, reason } = event else { return None };
        self.disorderly |= !orderly;
        let disk = self.attached.disks.iter().find(|d| d.volume.id == volume)?;
        if disk.counters.connected.load(Ordering::Acquire) > 0 {
            return None;
        }
        let why = format!("the mirror of disk {} lost its connection ({reason})", disk.disk.node);
        if self.syncing.is_some() {
            return Some(Ending::Lost(why));
        }
        self.look(task, &why).await
    }

    /// Looks whether every mirror is level; a loss if not.
    async fn look(&mut self, task: &Task, why: &str) -> Option<Ending> {
        if let Some(stopped) = task.context.group.stopped() {
            return Some(Ending::Lost(stopped));
        }
        match self.attached.qemu.jobs().await {
            Ok(jobs) => {
                for disk in &self.attached.disks {
                    let job = jobs.iter().find(|j| j.job == disk.attachment.job);
                    let connected = disk.counters.connected.load(Ordering::Acquire) > 0;
                    match job {
                        None => {
                            return Some(Ending::Lost(format!(
                                "the mirror of disk {} was ended from outside",
                                disk.disk.node
                            )));
                        }
                        Some(job) if job.paused || !connected => {
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
            Err(e) if matches!(e.kind(), afterimage_qmp::error::Kind::Gone) => {
                Some(Ending::MonitorLost(e.to_string()))
            }
            Err(e) => {
                tracing::warn!(error = %e, "QEMU's monitor did not answer");
                self.unlevel_looks += 1;
                (self.unlevel_looks > UNLEVEL_LOOKS_MAX)
                    .then(|| Ending::Lost(format!("QEMU's monitor does not answer: {e}")))
            }
        }
    }

    async fn synced(&mut self, task: &mut Task, synced: Result<Level>) -> Option<Ending> {
        let level = match synced {
            Ok(level) => level,
            Err(error) => return Some(Ending::Lost(format!("the sync failed: {error:#}"))),
        };
        let (group, name) = (Arc::clone(&task.context.group), task.context.settings.name.clone());
        let opened =
            tokio::task::spawn_blocking(move || group.open_session(&name, level.full)).await;
        let session = match opened {
            Ok(Ok(session)) => session,
            Ok(Err(e)) => return Some(Ending::Lost(e.to_string())),
            Err(e) => return Some(Ending::Lost(e.to_string())),
        };
        self.attached.session.store(session.id, Ordering::Relaxed);
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
        None
    }

    async fn tick(&mut self, task: &mut Task) -> Option<Ending> {
        self.count(task);
        if let Some(stopped) = task.context.group.stopped() {
            return Some(Ending::Lost(stopped));
        }
        if self.syncing.is_some() {
            return None;
        }
        let Ok(journal) = task.context.group.journal() else { return None };
        let position = journal.head();
        if let Some(ending) = self.look(task, "a mirror is not level").await {
            return Some(ending);
        }
        if self.unlevel_looks > 0 {
            return None;
        }
        match self.attached.qemu.run_state().await {
            Ok(RunState::PostMigrate) => {
                return Some(Ending::Lost(
                    "the guest was live-migrated away: protect it where it runs now".into(),
                ));
            }
            Ok(_) => {}
            Err(e) => tracing::warn!(error = %e, "QEMU did not say how the guest is"),
        }
        let settings = &task.context.settings;
        let noted = task
            .context
            .group
            .confirm(&settings.name, position)
            .and_then(|()| task.context.group.checkpoint_if_due(settings.checkpoint_every_ms));
        if let Err(e) = noted {
            return Some(Ending::Lost(e.to_string()));
        }
        self.rotate(&journal, position).await;
        None
    }

    fn count(&mut self, task: &Task) {
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

    /// Changes the recording maps now and then, and drops the old ones once all that they can
    /// hold is durable: so that after an outage little is copied that is known already.
    async fn rotate(&mut self, journal: &Journal, head: Seq) {
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

    /// Lets go, in the way that the ending asks for.
    async fn end(mut self, task: &mut Task, ending: Ending) -> Let {
        self.progress.cancel.store(true, Ordering::Relaxed);
        let name = task.context.settings.name.clone();
        let group = Arc::clone(&task.context.group);
        let session = group.session(&name);
        let confirmed = session.map(|s| s.confirmed);
        let close = |reason: &str, upto: Option<Seq>| group.close_session(&name, reason, upto);
        let outcome = match ending {
            Ending::Lost(reason) | Ending::MonitorLost(reason) => {
                close(&reason, confirmed);
                self.attached.session.store(0, Ordering::Relaxed);
                match self.fate(&reason).await {
                    Some(ended) => {
                        if let Some(session) = session {
                            let images = self.images();
                            group.amend_close(&name, session.id, &ended, None, images);
                        }
                        Let::Ended(ended)
                    }
                    None => Let::Again(reason),
                }
            }
            Ending::Detach(reply) => {
                close("detached by the operator", None);
                let detached = self.detach(false).await;
                let saved = task.save_detached(true);
                let _ = reply.send(detached.and(saved));
                Let::Detached
            }
            Ending::Unprotect(reply) => {
                close("no longer protected", None);
                let _ = reply.send(self.detach(true).await);
                Let::End
            }
            Ending::Stop(reply) => {
                close("the agent was stopped", None);
                self.stop_captures().await;
                let _ = reply.send(Ok(()));
                Let::End
            }
            Ending::Abandoned => {
                close("the agent let go", None);
                if let Err(error) = self.detach(true).await {
                    tracing::warn!(%error, "left behind in QEMU");
                }
                Let::End
            }
        };
        self.stop_captures().await;
        if let Some(syncing) = self.syncing.take() {
            syncing.abort();
        }
        let mut shown = task.context.face.shown();
        shown.copy = None;
        (shown.bytes_per_s, shown.writes_per_s) = (0, 0);
        for disk in &self.attached.disks {
            let us = disk.counters.answer_us_max.load(Ordering::Relaxed);
            shown.answer_us_max = shown.answer_us_max.max(us);
        }
        outcome
    }

    async fn stop_captures(&mut self) {
        let mut captures: Vec<_> =
            self.attached.disks.iter_mut().filter_map(|d| d.capture.take()).collect();
        let stopped = tokio::task::spawn_blocking(move || {
            captures.drain(..).for_each(crate::capture::Capture::stop);
        });
        // A connection's thread that hangs is the guard's business, not ours to wait for.
        if tokio::time::timeout(FATE_LIMIT, stopped).await.is_err() {
            tracing::error!("a capture thread does not end");
        }
    }

    /// Whether QEMU itself has ended, and how.
    async fn fate(&mut self, reason: &str) -> Option<String> {
        let deadline = tokio::time::Instant::now() + FATE_LIMIT;
        let gone = loop {
            if self.attached.process.as_ref().is_some_and(|p| !p.lives()) {
                break true;
            }
            tokio::select! {
                event = self.events.next_meaning() => match event {
                    QemuEvent::Shutdown { reason, .. } => self.shutdown = Some(reason),
                    QemuEvent::Eof { .. } => {
                        let Some(process) = &self.attached.process else { break true };
                        if !process.lives() {
                            break true;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        if tokio::time::Instant::now() > deadline {
                            break false;
                        }
                    }
                    _ => {}
                },
                Some(event) = self.captures.recv() => {
                    if let CaptureEvent::Closed { orderly, .. } = event {
                        self.disorderly |= !orderly;
                    }
                }
                () = tokio::time::sleep_until(deadline) => break false,
            }
            // A mirror that we lost while QEMU lives on is resumed at once: the guest's changes
            // pile up meanwhile.
            if self.shutdown.is_none() && self.qemu_answers().await {
                break false;
            }
        };
        if !gone {
            return None;
        }
        while let Ok(event) = self.captures.try_recv() {
            if let CaptureEvent::Closed { orderly, .. } = event {
                self.disorderly |= !orderly;
            }
        }
        Some(match &self.shutdown {
            Some(how) => format!("the guest was shut down ({how})"),
            None => format!("QEMU ended ({reason})"),
        })
    }

    async fn qemu_answers(&self) -> bool {
        let asked = self.attached.qemu.run_state();
        matches!(tokio::time::timeout(Duration::from_millis(500), asked).await, Ok(Ok(_)))
    }

    /// The images as they lie now, if the guest ended in an orderly way and everything that it
    /// wrote is in the journal.
    fn images(&self) -> Vec<ImageIdentity> {
        if self.shutdown.is_none() || self.disorderly {
            return Vec::new();
        }
        self.attached.disks.iter().filter_map(|d| image_identity(&d.volume)).collect()
    }

    async fn detach(&mut self, for_good: bool) -> Result<(), ApiError> {
        self.progress.cancel.store(true, Ordering::Relaxed);
        if let Some(syncing) = self.syncing.take() {
            syncing.abort();
            let _ = syncing.await;
        }
        let qemu = self.attached.qemu.clone();
        let mut outcome = Ok(());
        for disk in &self.attached.disks {
            let ended = qemu.detach(&disk.attachment, ServerHealth::Serving).await;
            if let Err(e) = ended {
                outcome = Err(ApiError::other(format!("detach disk {}: {e}", disk.disk.node)));
            }
        }
        if for_good {
            let removed = qemu.remove_leftovers(ServerHealth::Serving, |_| false).await;
            if let Err(e) = removed {
                outcome = Err(ApiError::other(format!("clean up in QEMU: {e}")));
            }
        }
        outcome
    }
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

/// The image of a volume as it lies now; `None` when it is no plain file here.
pub(super) fn image_identity(volume: &Volume) -> Option<ImageIdentity> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(&volume.source).ok().filter(std::fs::Metadata::is_file)?;
    let ns = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
    Some(ImageIdentity {
        volume: volume.id,
        path: volume.source.clone(),
        file: (meta.dev(), meta.ino()),
        bytes: meta.len(),
        mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
        ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
    })
}
