//! The task that owns a guest: reaching it, attaching, syncing, watching, and letting go.

use super::Command;
use super::attach;
use super::face::Face;
use super::life::Life;
use crate::api::{ApiError, GuestState};
use crate::group::Group;
use crate::settings::GuestSettings;
use afterimage_guard::Worker;
use afterimage_qmp::Qemu;
use afterimage_qmp::libvirt::{Libvirt, Target};
use afterimage_qmp::qemu::ServerHealth;
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Pauses between tries to reach a guest: the first and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// How long taking our things out of a QEMU that is not attached to may take.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(5);

/// Why a guest that a person let go of is not protected.
pub const DETACHED: &str = "detached by the operator";

pub(super) type Waiting = oneshot::Sender<Result<(), ApiError>>;

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
pub(super) enum Let {
    /// Attach again after a pause.
    Again(String),
    /// The guest has ended; wait for it to come back.
    Ended(String),
    /// A person asked for it.
    Detached,
    /// The task ends.
    End,
}

pub(super) struct Task {
    pub(super) context: Context,
    pub(super) inbox: mpsc::Receiver<Command>,
    /// Who waits for the outcome of an attach.
    pub(super) waiting: Vec<Waiting>,
    pub(super) retry: Duration,
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
            task.context.face.show(GuestState::Detached, Some(DETACHED.into()));
            task.answer(Ok(()));
            let Some(command) = task.inbox.recv().await else { return };
            if task.idle(command).await.is_break() {
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
    pub(super) fn answer(&mut self, outcome: Result<(), ApiError>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(outcome.clone());
        }
    }

    /// A command while nothing is attached.
    async fn idle(&mut self, command: Command) -> std::ops::ControlFlow<()> {
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
            Command::Confirm(_, reply) => {
                let name = &self.context.settings.name;
                drop(reply.send(Err(ApiError::other(format!("{name} is not protected")))));
            }
            Command::Unprotect(reply) => {
                let _ = reply.send(self.clean_up().await);
                return std::ops::ControlFlow::Break(());
            }
            Command::Stop(reply) => {
                let _ = reply.send(Ok(()));
                return std::ops::ControlFlow::Break(());
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    pub(super) fn save_detached(&mut self, detached: bool) -> Result<(), ApiError> {
        let settings = self.context.settings.clone();
        self.context.settings.detached = detached;
        self.change_settings(settings)
    }

    /// Takes new settings over, but for the one that is this task's own.
    pub(super) fn change_settings(&mut self, settings: GuestSettings) -> Result<(), ApiError> {
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
                    self.idle(command).await?;
                    if at_once {
                        return std::ops::ControlFlow::Continue(());
                    }
                }
            }
        }
    }

    /// Takes what is left of ours out of a QEMU that is not attached to. One that is gone took
    /// it along, but for what it keeps in a qcow2.
    async fn clean_up(&self) -> Result<(), ApiError> {
        let cleaning = async {
            let (qemu, _) = self.connect().await?;
            let removed = qemu.remove_leftovers(ServerHealth::Dead, |_| false).await?;
            match removed.failed.first() {
                Some((name, error)) => anyhow::bail!("{name}: {error}"),
                None => Ok(()),
            }
        };
        let left = match tokio::time::timeout(CLEAN_UP_LIMIT, cleaning).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if absent_state(&error) == GuestState::Detached => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "QEMU does not answer".into(),
        };
        Err(ApiError::other(format!(
            "no longer protected, but changed-block maps named ai-* may be left in QEMU ({left}): \
             they go when it ends, or from a qcow2 with `qemu-img bitmap --remove`"
        )))
    }

    async fn reach(&self) -> Result<(Qemu, Option<String>)> {
        let group = Arc::clone(&self.context.group);
        tokio::task::spawn_blocking(move || group.ensure_open())
            .await?
            .with_context(|| format!("open the journal of {}", self.context.group.name()))?;
        self.connect().await
    }

    async fn connect(&self) -> Result<(Qemu, Option<String>)> {
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
