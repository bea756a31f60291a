//! One checkpoint of a whole group's memory: who is asked for what, in which order.
//!
//! ```text
//!        lend        settings, intent      the instant P        streams whole       pages, device state
//! idle ───────► lent ───────────► ready ──────────────► reading ───────────► storing ──────► mark, sync
//!   ▲            │                  │                      │                    │                │
//!   └────────────┴── anything fails, or a guest is called back: ────────────────┴────────────────┘
//!                    streams shut, snapshots cancelled, guests let run, settings put back
//! ```
//!
//! The instant is one for all guests and all their disks ([`instant`]). [`taking`] is one guest's part,
//! [`owed`] what it undoes, [`still`] says whose a stop was, [`commit`] what becomes records.
//!
//! What always holds: nothing is in the journal that anybody could take for a checkpoint before its one
//! mark, which comes last (I-6); whatever ends it, and wherever, every guest runs and every QEMU has
//! its settings back, or an intent says on disk what is owed (I-10); one at a time in a group; the
//! guests' own tasks never wait for it, but for the time of letting go of a guest.

mod commit;
mod instant;
mod owed;
mod still;
mod taking;

use super::Table;
use crate::api::types::time;
use crate::api::{ApiError, MarkReply, MemoryCheckpoint, MemoryState, MemoryStatus};
use crate::group::Group;
use crate::guest::marks::{Frozen, unthawed};
use crate::guest::{Guest, Lease};
use crate::settings::{GuestSettings, MemoryMode};
use afterimage_journal::meta::CheckpointKind;
use instant::Order;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Moment};
use taking::Taking;

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// A person's label.
    pub(crate) tag: Option<String>,
    /// The guest whose file systems are to be frozen at the instant.
    pub(crate) quiesce: Option<String>,
}

/// Why there is no checkpoint.
#[derive(Debug)]
enum Failure {
    /// The instant can't be found in the stream of writes: the explicit order may do.
    Unfit(String),
    /// Anything else, ready to be shown.
    Plain(ApiError),
}

impl Failure {
    fn other(why: impl std::fmt::Display) -> Self {
        Self::Plain(ApiError::other(why.to_string()))
    }
}

impl From<afterimage_qmp::Error> for Failure {
    fn from(error: afterimage_qmp::Error) -> Self {
        use afterimage_qmp::error::Kind;
        let text = error.to_string();
        Self::Plain(match error.kind() {
            Kind::Gone | Kind::Retry => ApiError::not_reachable(text),
            _ => ApiError::other(text),
        })
    }
}

impl From<super::Error> for Failure {
    fn from(error: super::Error) -> Self {
        Self::other(error)
    }
}

impl From<afterimage_journal::Error> for Failure {
    fn from(error: afterimage_journal::Error) -> Self {
        Self::other(error)
    }
}

type Outcome<T> = std::result::Result<T, Failure>;

/// Takes a group's checkpoints of memory, and remembers between two of them what the journal holds.
pub struct Conductor {
    group: Arc<Group>,
    state: PathBuf,
    hold_limit: Duration,
    busy: tokio::sync::Mutex<()>,
    tables: Mutex<BTreeMap<String, Table>>,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    state: MemoryState,
    last: Option<MemoryCheckpoint>,
    error: Option<String>,
    begun: Option<Moment>,
}

/// What an attempt has begun, and what is to be undone or kept of it however it ends.
#[derive(Default)]
struct Begun {
    takings: Vec<Taking>,
    frozen: Option<Frozen>,
    /// The checkpoint was made, but a guest was not thawed.
    unthawed: Option<ApiError>,
}

/// Sets its flag when whoever waited for the work is gone.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whatever it ends with, a panic too, the next one may be taken.
struct IdleOnDrop<'a>(&'a Conductor);

impl Drop for IdleOnDrop<'_> {
    fn drop(&mut self) {
        self.0.show(MemoryState::Idle);
    }
}

impl Conductor {
    /// The conductor of a group whose state directory this is; no reply of ours is held for longer than
    /// `hold_limit`.
    #[must_use]
    pub fn new(group: Arc<Group>, state: &Path, hold_limit: Duration) -> Arc<Self> {
        Arc::new(Self {
            group,
            state: state.to_owned(),
            hold_limit,
            busy: tokio::sync::Mutex::default(),
            tables: Mutex::default(),
            shown: Mutex::default(),
        })
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<String, Table>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: MemoryState) {
        self.shown().state = state;
    }

    /// What `status` says of a guest's memory; `None`: nobody ever asked for it.
    #[must_use]
    pub fn status(&self, settings: &GuestSettings) -> Option<MemoryStatus> {
        let shown = self.shown();
        let asked = settings.memory_every_ms.is_some() || shown.begun.is_some();
        asked.then(|| MemoryStatus {
            state: shown.state,
            every_ms: settings.memory_every_ms,
            mode: settings.memory_mode,
            last: shown.last.clone(),
            error: shown.error.clone(),
        })
    }

    /// Whether the next regular one is to be taken, `every_ms` after the beginning of the last.
    #[must_use]
    pub(crate) fn is_due(&self, every_ms: u64) -> bool {
        let shown = self.shown();
        let elapsed = shown.begun.map(|begun| begun.elapsed().as_millis());
        shown.state == MemoryState::Idle && elapsed.is_none_or(|ms| ms >= u128::from(every_ms))
    }

    /// Says why the regular one is not taken though it is due.
    pub(crate) fn waits_for(&self, guest: &str) {
        let why = format!("it waits for {guest}, which is not protected at this moment");
        self.shown().error = Some(why);
    }

    /// Forgets what the journal holds of a guest's memory: it left the group.
    pub(crate) fn forget(&self, guest: &str) {
        self.tables().remove(guest);
    }

    /// Takes one of all of the group's guests. To be called in a task that nobody drops.
    pub(crate) async fn take(
        &self,
        guests: &[Guest],
        wanted: &Wanted,
    ) -> Result<MarkReply, ApiError> {
        let Ok(_busy) = self.busy.try_lock() else {
            return Err(ApiError::other(format!(
                "a checkpoint of the memory of {} is being taken already: try again when it is done",
                self.group.name()
            )));
        };
        let begun = Moment::now();
        {
            let mut shown = self.shown();
            (shown.begun, shown.state) = (Some(begun), MemoryState::Snapshot);
        }
        let idle = IdleOnDrop(self);
        let made = self.try_both(guests, wanted).await;
        drop(idle);
        let mut shown = self.shown();
        match made {
            Ok((mut made, reply, unthawed)) => {
                made.took_ms = begun.elapsed().as_millis() as u64;
                tracing::info!(group = self.group.name(), ?made, "a checkpoint of memory");
                (shown.last, shown.error) = (Some(made), None);
                unthawed.map_or(Ok(reply), Err)
            }
            Err(Failure::Plain(error)) => {
                tracing::warn!(group = self.group.name(), %error, "no checkpoint of memory");
                shown.error = Some(error.message.clone());
                Err(error)
            }
            Err(Failure::Unfit(why)) => {
                tracing::warn!(group = self.group.name(), why, "no checkpoint of memory");
                let error = ApiError::other(format!("no instant of all disks and memory: {why}"));
                shown.error = Some(error.message.clone());
                Err(error)
            }
        }
    }

    async fn try_both(
        &self,
        guests: &[Guest],
        wanted: &Wanted,
    ) -> Outcome<(MemoryCheckpoint, MarkReply, Option<ApiError>)> {
        let leases = lend(guests).await?;
        let any = |mode| leases.iter().any(|l| l.settings.memory_mode == mode);
        let order = if any(MemoryMode::Stop) { Order::Explicit } else { Order::InBand };
        let may_stop = !any(MemoryMode::Background);
        match self.attempt(guests, leases, order, wanted).await {
            Err(Failure::Unfit(why)) if order == Order::InBand && may_stop => {
                tracing::info!(why, "the instant is taken with the guests stopped by command");
                self.show(MemoryState::Snapshot);
                self.attempt(guests, lend(guests).await?, Order::Explicit, wanted).await
            }
            other => other,
        }
    }

    async fn attempt(
        &self,
        guests: &[Guest],
        leases: Vec<Lease>,
        order: Order,
        wanted: &Wanted,
    ) -> Outcome<(MemoryCheckpoint, MarkReply, Option<ApiError>)> {
        let mut begun = Begun::default();
        let recalls: Vec<_> =
            leases.iter().map(|l| (l.settings.name.clone(), l.recall())).collect();
        let outcome = tokio::select! {
            biased;
            why = any_recalled(recalls) => Err(Failure::other(why)),
            outcome = self.run(&mut begun, guests, leases, order, wanted) => outcome,
        };
        if let Some(frozen) = begun.frozen.take()
            && let Err(error) = frozen.thaw().await
        {
            tracing::error!(%error, "the guest could not be thawed");
        }
        // All at once: each may have to wait for its own QEMU.
        let ends: Vec<_> = begun.takings.drain(..).map(|t| tokio::spawn(t.end())).collect();
        for end in ends {
            if let Ok(Some((guest, table))) = end.await {
                self.tables().insert(guest, table);
            }
        }
        outcome.map(|(made, reply)| (made, reply, begun.unthawed.take()))
    }

    async fn run(
        &self,
        begun: &mut Begun,
        guests: &[Guest],
        leases: Vec<Lease>,
        order: Order,
        wanted: &Wanted,
    ) -> Outcome<(MemoryCheckpoint, MarkReply)> {
        self.group.check_memory_room()?;
        let frozen_one = leases.iter().find(|l| Some(&l.settings.name) == wanted.quiesce.as_ref());
        let freeze = frozen_one.map(|l| {
            let process = l.process.as_ref().map(|p| p.id());
            (l.state.clone(), l.settings.clone(), process, l.worker.clone())
        });
        for lease in leases {
            let table = self.table(&lease.settings.name).await?;
            begun.takings.push(Taking::new(lease, table));
        }
        for taking in &mut begun.takings {
            taking.prepare(&self.group, &self.state.join("spool")).await?;
        }
        let mut kind = CheckpointKind::Crash;
        if let Some((state, settings, process, worker)) = freeze {
            let frozen = Frozen::freeze(&state, &settings, process, worker.as_ref()).await;
            begun.frozen = Some(frozen.map_err(Failure::Plain)?);
            kind = CheckpointKind::Application;
        }
        for taking in &mut begun.takings {
            taking.set_up().await?;
        }
        let instant = order.take(&mut begun.takings, &self.group, self.hold_limit).await?;
        if let Some(frozen) = begun.frozen.take() {
            begun.unthawed = frozen.thaw().await.err().map(|e| unthawed(&e));
        }
        for taking in &mut begun.takings {
            taking.read_whole().await?;
        }
        // Level at the instant: proved by a look behind it, as for every checkpoint.
        for guest in guests {
            guest.confirm(instant.seq).await.map_err(Failure::Plain)?;
        }
        self.show(MemoryState::Storing);
        let pause_us = begun.takings.iter().map(|t| t.pause_us).max().unwrap_or(0);
        let mark = commit::Mark { kind, tag: wanted.tag.clone(), instant };
        let (marked, stored) = commit::commit(&self.group, mark, &mut begun.takings).await?;
        let time = time(instant.wall_ns);
        let name = if kind == CheckpointKind::Crash { "crash" } else { "application" };
        let made = MemoryCheckpoint {
            id: marked.id,
            seq: marked.seq,
            time,
            pause_us,
            changed_bytes: stored.bytes,
            took_ms: 0,
            order: order.name(&begun.takings).into(),
        };
        let kind = name.to_owned();
        Ok((made, MarkReply { id: marked.id, seq: marked.seq, time, kind, memory: true }))
    }

    /// What the journal holds of a guest's memory: known from the last checkpoint, or read anew.
    async fn table(&self, guest: &str) -> Outcome<Table> {
        let journal = self.group.journal()?;
        let known = self.tables().remove(guest);
        if let Some(table) = known.filter(|t| t.serves(&journal)) {
            return Ok(table);
        }
        let volumes: Vec<_> = self.group.memory_volumes(guest).iter().map(|v| v.id).collect();
        let stop = StopOnDrop(Arc::default());
        let flag = Arc::clone(&stop.0);
        let built = tokio::task::spawn_blocking(move || Table::build(&journal, &volumes, &flag));
        let built = built.await.map_err(Failure::other)?;
        drop(stop);
        Ok(built?)
    }
}

async fn lend(guests: &[Guest]) -> Outcome<Vec<Lease>> {
    let mut leases = Vec::new();
    for guest in guests {
        leases.push(guest.lend().await.map_err(Failure::Plain)?);
    }
    Ok(leases)
}

type Recall = tokio::sync::watch::Receiver<Option<String>>;

/// Waits until one of the guests is called back, and says which and why.
async fn any_recalled(recalls: Vec<(String, Recall)>) -> String {
    let mut all = tokio::task::JoinSet::new();
    for (name, mut recall) in recalls {
        all.spawn(async move {
            let why = Lease::recalled(&mut recall).await;
            format!("the checkpoint of memory was given up: {name}: {why}")
        });
    }
    match all.join_next().await {
        Some(Ok(why)) => why,
        _ => std::future::pending().await,
    }
}
