//! The task that owns a guest: reaching it, attaching, syncing, watching, and letting go.
//!
//! What always holds: a fault of ours in it (a panic) ends the session where it was last proved,
//! is shown, and the guest is attached to anew; the task itself only ends when it is told to.

use super::Command;
use super::attach;
use super::face::Face;
use super::identity::{Claims, recognize};
use super::lend;
use super::life::Life;
use super::maps::is_any_map;
use super::owned::Owned;
use super::removal;
use crate::api::{ApiError, GuestState};
use crate::group::Group;
use crate::settings::GuestSettings;
use afterimage_guard::Worker;
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
use afterimage_qmp::libvirt::{Libvirt, Target};
use anyhow::{Context as _, Result};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Pauses between tries to reach a guest: the first and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

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
    /// Which QEMU processes guests of the agent are attached to.
    pub claims: Arc<Claims>,
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
    /// How the guest ended, until something is there again: that its monitor is gone says less.
    pub(super) ended: Option<String>,
    /// Its settings were removed: nothing may write them again.
    pub(super) unprotected: bool,
}

/// Runs a guest's task until it is told to end or nobody holds its handle.
pub(super) async fn run(
    context: Context,
    inbox: mpsc::Receiver<Command>,
    first: oneshot::Sender<Result<(), ApiError>>,
) {
    let mut task = Task::new(context, inbox, first);
    supervise(&mut task, |task, again| Box::pin(live(task, again))).await;
}

type Living<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Runs the task's work until it returns, and again after each panic in it.
async fn supervise(task: &mut Task, work: for<'a> fn(&'a mut Task, bool) -> Living<'a>) {
    let mut again = false;
    loop {
        let mut living = work(task, again);
        let ended =
            poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| living.as_mut().poll(cx))) {
                Ok(poll) => poll.map(Ok),
                Err(panic) => Poll::Ready(Err(panic)),
            });
        let Err(panic) = ended.await else { return };
        drop(living);
        let words = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
        task.fell(&words.unwrap_or_else(|| "no reason given".into()));
        again = true;
    }
}

/// The task's work; `again` after a fault in it.
async fn live(task: &mut Task, mut again: bool) {
    loop {
        if task.unprotected || (std::mem::take(&mut again) && task.pause().await.is_break()) {
            return;
        }
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
            Ok(Let::Ended(reason)) => {
                task.ended = Some(reason.clone());
                task.context.face.show(GuestState::Detached, Some(reason));
            }
            Err(error) => {
                let reason = format!("{error:#}");
                let state = absent_state(&error);
                let ended = task.ended.take().filter(|_| state == GuestState::Detached);
                task.context.face.show(state, ended.clone().or_else(|| Some(reason.clone())));
                task.ended = ended;
                task.answer(Err(api_error(&error, reason)));
            }
        }
        if begun.elapsed() > RETRY_MAX {
            task.retry = RETRY_MIN;
        }
        again = true;
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
    if let Some(error) = error.downcast_ref::<ApiError>() {
        return error.clone();
    }
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
    fn new(context: Context, inbox: mpsc::Receiver<Command>, first: Waiting) -> Self {
        Self {
            context,
            inbox,
            waiting: vec![first],
            retry: RETRY_MIN,
            ended: None,
            unprotected: false,
        }
    }

    pub(super) fn answer(&mut self, outcome: Result<(), ApiError>) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(outcome.clone());
        }
    }

    /// Takes up after a fault of ours: what it left half done counts for nothing.
    fn fell(&mut self, words: &str) {
        let reason = format!("a fault in the agent ({words}): see its log, and report it");
        tracing::error!(guest = self.context.settings.name, %reason, "attaching anew");
        let (group, name) = (&self.context.group, &self.context.settings.name);
        let confirmed = group.session(name).map(|s| s.confirmed);
        group.close_session(name, &reason, confirmed);
        self.context.face.show(GuestState::Gap, Some(reason.clone()));
        let mut shown = self.context.face.shown();
        (shown.copy, shown.gate) = (None, None);
        drop(shown);
        self.answer(Err(ApiError::other(reason)));
    }

    /// A command while nothing is attached.
    async fn idle(&mut self, command: Command) -> std::ops::ControlFlow<()> {
        match command {
            Command::Detach(reply) => {
                let saved = self.save_detached(true);
                self.context.face.show(GuestState::Detached, Some(DETACHED.into()));
                // In a gap our mirrors are in QEMU still: snapshots and resizes would stay refused.
                let removed = match planted::is("detach-leaves-the-mirror") {
                    true => Ok(()),
                    false => self.clean_up(is_any_map).await,
                };
                let left = removed.map_err(|why| {
                    ApiError::other(format!(
                        "detached, but mirrors named ai-* may be left in QEMU ({why}): \
                         detach again once it answers"
                    ))
                });
                let _ = reply.send(saved.and(left));
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
            Command::Lend(reply) => {
                let name = &self.context.settings.name;
                drop(reply.send(Err(lend::unprotected(name))));
            }
            Command::Set(settings, reply) => {
                let _ = reply.send(self.change_settings(*settings));
            }
            Command::Confirm(_, reply) => {
                let name = &self.context.settings.name;
                drop(reply.send(Err(ApiError::other(format!("{name} is not protected")))));
            }
            Command::Save(reply) => drop(reply.send(self.save())),
            Command::Unprotect(reply) => {
                if let Err(error) = self.remove_settings() {
                    let _ = reply.send(Err(error));
                    return std::ops::ControlFlow::Continue(());
                }
                let removed = self.clean_up(|_| false).await.map_err(|why| {
                    ApiError::other(format!(
                        "no longer protected, but mirrors or changed-block maps named ai-* may be left in \
                         QEMU ({why}): they go when it ends, maps from a qcow2 with `qemu-img bitmap --remove`"
                    ))
                });
                let _ = reply.send(removed);
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

    /// Takes new settings over, but for those that are this task's own.
    pub(super) fn change_settings(&mut self, settings: GuestSettings) -> Result<(), ApiError> {
        let own = &self.context.settings;
        self.context.settings = GuestSettings {
            detached: own.detached,
            vm: own.vm.clone(),
            accept_vm: own.accept_vm || settings.accept_vm,
            ..settings
        };
        self.save()
    }

    /// Makes the settings durable. Only this task writes and removes them, in the order of its commands.
    pub(super) fn save(&self) -> Result<(), ApiError> {
        let name = &self.context.settings.name;
        if self.unprotected {
            return Err(ApiError::other(format!("{name} is no longer protected")));
        }
        let saved = self.context.settings.save(&self.context.state);
        saved.map_err(|e| ApiError::other(format!("applied, but not saved: {e}")))
    }

    /// Removes the settings, for good.
    pub(super) fn remove_settings(&mut self) -> Result<(), ApiError> {
        if planted::is("settings-removed-beside-the-queue") {
            return Ok(());
        }
        let name = &self.context.settings.name;
        GuestSettings::remove(&self.context.state, name)
            .map_err(|e| ApiError::other(format!("{name} stays protected: {e}")))?;
        self.unprotected = true;
        Ok(())
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

    /// Takes what is left of ours out of a QEMU that is not attached to, but for what `kept` names. One
    /// that is gone took it along, but for what it keeps in a qcow2. The error says why.
    async fn clean_up(&self, kept: fn(&str) -> bool) -> Result<(), String> {
        let cleaning = async {
            let (qemu, _) = self.connect().await?;
            // Of another VM nothing is the guest's.
            if recognize(&self.context.settings, &qemu.identity().await?).is_err() {
                return Ok(());
            }
            let process = qemu.process()?;
            let owned = Owned::by_journal_and_sockets(&self.context, &qemu).await?;
            let kept = |name: &str| kept(name) || !owned.has(name);
            removal::remove(&qemu, &self.context, process.as_ref(), kept).await
        };
        match tokio::time::timeout(removal::REMOVE_LIMIT, cleaning).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if absent_state(&error) == GuestState::Detached => Ok(()),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err("QEMU does not answer".into()),
        }
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
        let _claim = self.admit(&qemu).await?;
        let events = qemu.events();
        lend::settle(&self.context.state, &self.context.settings.name, &qemu).await;
        let (sender, captures) = mpsc::unbounded_channel();
        let attached = attach::attach(&self.context, qemu, xml, &sender).await?;
        (self.retry, self.ended) = (RETRY_MIN, None);
        let mut life = Life::begin(self, attached, events, captures);
        let outcome = life.watch(self).await;
        Ok(life.end(self, outcome).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_journal::Options;

    #[tokio::test]
    async fn a_fault_in_a_guests_task_ends_its_session_and_the_task_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let group = Arc::new(Group::open(dir.path(), "vm", Options::default(), None).unwrap());
        let settings = r#"{"name":"vm","group":"vm","window_s":1,"checkpoint_every_ms":1000}"#;
        let context = Context {
            state: dir.path().to_owned(),
            settings: serde_json::from_str(settings).unwrap(),
            group: Arc::clone(&group),
            worker: None,
            face: Face::new("vm"),
            claims: Arc::default(),
        };
        let (_commands, inbox) = mpsc::channel(1);
        let (first, outcome) = oneshot::channel();
        let mut task = Task::new(context, inbox, first);
        supervise(&mut task, |task, again| Box::pin(broken(task, again))).await;
        assert!(outcome.await.unwrap().unwrap_err().message.contains("broken"));
        let standing = group.standing("vm");
        assert_eq!(standing.session, None);
        assert!(standing.intervals[0].to_ns.is_some() && standing.intervals.len() == 1);
        group.close().unwrap();
    }

    async fn broken(task: &mut Task, again: bool) {
        let (face, group) = (Arc::clone(&task.context.face), Arc::clone(&task.context.group));
        if again {
            assert_eq!(face.shown().state, GuestState::Gap);
            assert!(face.shown().reason.as_ref().unwrap().contains("broken"));
            return;
        }
        group.open_session_within(Duration::from_secs(60), "vm", true).await.unwrap();
        face.show(GuestState::Protected, None);
        panic!("broken");
    }
}
