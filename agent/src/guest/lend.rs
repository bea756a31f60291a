//! A guest that is lent to whoever takes its memory: what that needs of it, and how it is called
//! back.
//!
//! The guest's task goes on watching; it only may not take a stopped guest for one that has left.
//! What always holds: one borrower at a time; who lets go of a guest calls it back first, and waits
//! until QEMU is as it was, for a limited time.

use super::life::Life;
use super::task::{Context, Task};
use crate::api::ApiError;
use crate::capture::{Latch, TapCounters};
use crate::intent;
use crate::settings::GuestSettings;
use afterimage_guard::Worker;
use afterimage_journal::VolumeId;
use afterimage_qmp::Qemu;
use afterimage_qmp::libvirt::Target;
use afterimage_qmp::qemu::{MonitorChannel, Process};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a borrower may take to give a guest back.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(8);
/// How long undoing what an earlier agent left may take at an attach.
const UNDO_LIMIT: Duration = Duration::from_secs(3);

/// A protected guest, lent for one checkpoint of its memory.
pub(crate) struct Lease {
    /// Its settings.
    pub(crate) settings: GuestSettings,
    /// Its QEMU.
    pub(crate) qemu: Qemu,
    /// The process, where it can be told.
    pub(crate) process: Option<Process>,
    /// How others reach its monitor.
    pub(crate) monitor: MonitorChannel,
    /// What its taps share.
    pub(crate) latch: Arc<Latch>,
    /// The volumes of its disks.
    pub(crate) disks: Vec<VolumeId>,
    /// What their taps count.
    counters: Vec<Arc<TapCounters>>,
    /// Its session.
    pub(crate) session: u32,
    /// Where its sockets lie.
    pub(crate) dir: PathBuf,
    /// The state directory.
    pub(crate) state: PathBuf,
    /// The tie to the guard.
    pub(crate) worker: Option<Worker>,
    recall: watch::Receiver<Option<String>>,
    /// Dropped with this: it is given back.
    _given_back: oneshot::Sender<()>,
}

impl Lease {
    /// Waits until the guest's task wants it back, and says why.
    pub(crate) async fn recalled(recall: &mut watch::Receiver<Option<String>>) -> String {
        match recall.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the agent let go of the guest".into(),
        }
    }

    /// Writes of the guest that were captured since it was attached to.
    pub(crate) fn writes(&self) -> u64 {
        self.counters.iter().map(|c| c.writes.load(Ordering::Relaxed)).sum()
    }

    /// What [`Lease::recalled`] waits on.
    pub(crate) fn recall(&self) -> watch::Receiver<Option<String>> {
        self.recall.clone()
    }
}

/// The guest's side of it.
pub(super) struct Lent {
    recall: watch::Sender<Option<String>>,
    back: oneshot::Receiver<()>,
}

impl Lent {
    fn is_out(&mut self) -> bool {
        matches!(self.back.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

impl Life {
    /// Lends the guest, if it is protected.
    pub(super) fn lend(&mut self, task: &Task) -> Result<Lease, ApiError> {
        let context = &task.context;
        let name = &context.settings.name;
        if self.is_lent() {
            return Err(ApiError::other(format!("the memory of {name} is being taken already")));
        }
        let session = context.group.session(name).filter(|_| self.syncing.is_none());
        let shut = self.attached.shared.gate.is_shut();
        let Some(session) = session.filter(|_| !shut) else { return Err(unprotected(name)) };
        let (recall, called) = watch::channel(None);
        let (given_back, back) = oneshot::channel();
        self.lent = Some(Lent { recall, back });
        Ok(Lease {
            settings: context.settings.clone(),
            qemu: self.attached.qemu.clone(),
            process: self.attached.process.clone(),
            monitor: channel(context)?,
            latch: Arc::clone(&self.attached.shared.latch),
            disks: self.attached.disks.iter().map(|d| d.volume.id).collect(),
            counters: self.attached.disks.iter().map(|d| Arc::clone(&d.counters)).collect(),
            session: session.id,
            dir: self.attached.dir.clone(),
            state: context.state.clone(),
            worker: context.worker.clone(),
            recall: called,
            _given_back: given_back,
        })
    }

    /// Whether somebody takes its memory at this moment.
    pub(super) fn is_lent(&mut self) -> bool {
        self.lent.as_mut().is_some_and(Lent::is_out)
    }

    /// Calls the guest back.
    pub(super) fn recall(&mut self, why: &str) {
        if let Some(lent) = &self.lent {
            lent.recall.send_replace(Some(why.to_owned()));
        }
    }

    /// Waits until it is back.
    pub(super) async fn given_back(&mut self) {
        let Some(lent) = self.lent.take() else { return };
        if tokio::time::timeout(GIVE_BACK_LIMIT, lent.back).await.is_err() {
            tracing::error!("a checkpoint of memory does not end");
        }
    }
}

/// Why the memory of a guest can't be taken now.
pub(super) fn unprotected(name: &str) -> ApiError {
    ApiError::other(format!(
        "{name} is not protected at this moment: its memory is taken together with its disks; \
         see `afterimage status`"
    ))
}

fn channel(context: &Context) -> Result<MonitorChannel, ApiError> {
    match (&context.settings.qmp, &context.settings.libvirt) {
        (Some(path), _) => Ok(MonitorChannel::Socket(path.clone())),
        (None, Some(domain)) => Ok(MonitorChannel::Libvirt(Target::new(domain))),
        (None, None) => Err(ApiError::usage("neither a QMP socket nor a libvirt domain is known")),
    }
}

/// Undoes a snapshot of the guest's memory that an earlier agent, or an earlier try, left behind.
pub(super) async fn settle(state: &Path, guest: &str, qemu: &Qemu) {
    let undo = match intent::left_of_snapshot(state, guest) {
        Ok(Some(undo)) => undo,
        Ok(None) => return,
        Err(error) => {
            tracing::error!(guest, %error, "a snapshot of its memory may not be undone");
            return;
        }
    };
    match qemu.end_snapshot(&undo, UNDO_LIMIT).await {
        Ok(()) => intent::forget_snapshot(state, guest),
        Err(error) => tracing::error!(guest, %error, "a snapshot of its memory is not undone"),
    }
}
