//! One guest: its task, and what others see of it.
//!
//! ```text
//!            monitor answers        attached            level, proved
//! reaching ─────────────────► attaching ───► syncing ─────────────────► protected
//!    ▲  ▲                                      │   ▲ job-resume, bitmap,    │
//!    │  └── guest ended, monitor lost ─────────┴───┴─ compare, initial ─────┤
//!    │                                                                      │
//!    └── detached (by a person) ◄───────────────────────────────────────────┘
//! ```
//!
//! The task owns the state and makes every change of it; others send it commands and read the
//! [`Face`] that it shows.

mod attach;
mod chain;
mod choice;
mod devices;
mod disks;
mod ending;
mod face;
mod identity;
mod leave;
mod lend;
mod life;
mod maps;
pub(crate) mod marks;
mod owned;
mod plan;
mod pull;
mod removal;
mod rotation;
pub(crate) mod sockets;
mod sync;
mod task;

pub use face::{DiskFace, Face, Progress, Shown};
pub use identity::Claims;
pub(crate) use lend::Lease;
pub use task::{Context, DETACHED};

use crate::api::{ApiError, MarkReply, MarkRequest};
use crate::settings::GuestSettings;
use afterimage_journal::Seq;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for a guest's task.
const COMMANDS_MAX: usize = 16;
/// How long a command may wait for the task: an attach probes several disks, and a `virsh` may take a
/// second for each of many questions. Shorter than a caller waits.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(110);

/// What a guest's task is asked for.
pub(crate) enum Command {
    /// Let go of the guest.
    Detach(oneshot::Sender<Result<(), ApiError>>),
    /// Take hold of it again.
    Attach(oneshot::Sender<Result<(), ApiError>>),
    /// Make a checkpoint.
    Mark(MarkRequest, oneshot::Sender<Result<MarkReply, ApiError>>),
    /// Prove that the guest was level at a position.
    Confirm(Seq, oneshot::Sender<Result<(), ApiError>>),
    /// Lend the guest to whoever takes its memory.
    Lend(oneshot::Sender<Result<Lease, ApiError>>),
    /// New settings.
    Set(Box<GuestSettings>, oneshot::Sender<Result<(), ApiError>>),
    /// Make the settings durable.
    Save(oneshot::Sender<Result<(), ApiError>>),
    /// Let go for good; nothing of ours stays in QEMU, and the settings go first.
    Unprotect(oneshot::Sender<Result<(), ApiError>>),
    /// The agent ends: close the session, leave QEMU's maps in place.
    Stop(oneshot::Sender<Result<(), ApiError>>),
}

/// A guest, as the engine holds it; clones are handles of the same one.
#[derive(Clone)]
pub struct Guest {
    /// What it shows.
    pub face: Arc<Face>,
    commands: mpsc::Sender<Command>,
}

impl Guest {
    /// Starts a guest's task. The sender gets the outcome of its first attach.
    #[must_use]
    pub fn start(context: Context) -> (Self, oneshot::Receiver<Result<(), ApiError>>) {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (first, outcome) = oneshot::channel();
        let face = Arc::clone(&context.face);
        tokio::spawn(task::run(context, inbox, first));
        (Self { face, commands }, outcome)
    }

    fn gone(&self) -> ApiError {
        let name = self.face.name();
        ApiError::other(format!("{name} was let go of before it answered: see `afterimage status`"))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ApiError>>) -> Command,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| self.gone())?;
        self.answer(answer).await
    }

    /// Waits for the answer to a command.
    pub(crate) async fn answer<T>(
        &self,
        answer: oneshot::Receiver<Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        match tokio::time::timeout(COMMAND_LIMIT, answer).await {
            Ok(answer) => answer.map_err(|_| self.gone())?,
            Err(_) => Err(ApiError::not_reachable(format!(
                "{} has not got to the end of it within {COMMAND_LIMIT:?}, and goes on: \
                 see `afterimage status`",
                self.face.name()
            ))),
        }
    }

    /// Lets go of the guest.
    ///
    /// # Errors
    /// QEMU refused.
    pub async fn detach(&self) -> Result<(), ApiError> {
        self.ask(Command::Detach).await
    }

    /// Takes hold of it again; returns once attached.
    ///
    /// # Errors
    /// It can't be reached, or attached to.
    pub async fn attach(&self) -> Result<(), ApiError> {
        self.ask(Command::Attach).await
    }

    /// Makes a durable checkpoint.
    ///
    /// # Errors
    /// The guest isn't level, or can't be frozen.
    pub async fn mark(&self, request: MarkRequest) -> Result<MarkReply, ApiError> {
        self.ask(|reply| Command::Mark(request, reply)).await
    }

    /// Proves that the guest was level at a checkpoint that another guest of its group made.
    ///
    /// # Errors
    /// It wasn't, or can't say.
    pub async fn confirm(&self, position: Seq) -> Result<(), ApiError> {
        self.ask(|reply| Command::Confirm(position, reply)).await
    }

    /// Lends the guest for a checkpoint of its memory.
    ///
    /// # Errors
    /// It isn't protected, or lent already.
    pub(crate) async fn lend(&self) -> Result<Lease, ApiError> {
        self.ask(Command::Lend).await
    }

    /// Queues a change of settings, which becomes durable when it is answered; whether the guest is
    /// detached stays as it is. Doesn't wait: whoever calls holds what orders the changes.
    ///
    /// # Errors
    /// Too many commands wait, or the task has ended.
    pub(crate) fn queue_settings(
        &self,
        settings: GuestSettings,
    ) -> Result<oneshot::Receiver<Result<(), ApiError>>, ApiError> {
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(Command::Set(Box::new(settings), reply)) {
            Ok(()) => Ok(answer),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.gone()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(ApiError::not_reachable(format!(
                "{COMMANDS_MAX} commands for {} wait already: see `afterimage status`",
                self.face.name()
            ))),
        }
    }

    /// Makes the settings durable.
    ///
    /// # Errors
    /// They can't be written, or the guest is no longer protected.
    pub(crate) async fn save(&self) -> Result<(), ApiError> {
        self.ask(Command::Save).await
    }

    /// Lets go for good.
    ///
    /// # Errors
    /// QEMU refused.
    pub async fn unprotect(&self) -> Result<(), ApiError> {
        self.ask(Command::Unprotect).await
    }

    /// Ends the task because the agent ends.
    ///
    /// # Errors
    /// The task has ended already.
    pub async fn stop(&self) -> Result<(), ApiError> {
        self.ask(Command::Stop).await
    }
}
