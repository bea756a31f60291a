//! Checkpoints that a person asked for, with the guest's file systems frozen if wanted.
//!
//! What always holds: before a guest is frozen, a durable intent says so; it goes only after the
//! guest was thawed. Whoever dies in between, the guard thaws (I-10).

use super::life::Life;
use super::task::{Context, Task};
use crate::api::types::time;
use crate::api::{ApiError, MarkReply, MarkRequest};
use crate::intent::{self, Intent};
use crate::settings::GuestSettings;
use afterimage_guard::{SlotGuard, SlotKind, Ticket, Worker, now_ns};
use afterimage_journal::Seq;
use afterimage_journal::meta::CheckpointKind;
use afterimage_planted as planted;
use afterimage_qmp::guest_agent::{AgentChannel, GuestAgent};
use afterimage_qmp::libvirt::Target;
use afterimage_qmp::qemu::ProcessId;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long we may not move while a guest is frozen, before the guard takes us for hung and has it thawed.
const THAW_WAIT_NS: u64 = 4_000_000_000;
/// How often the guard is told that we still wait for the guest's agent.
const STILL_HERE_EVERY: Duration = Duration::from_millis(500);
/// Pauses between tries to thaw a guest whose agent did not answer: the first and the longest.
const THAW_AGAIN_MIN: Duration = Duration::from_secs(1);
const THAW_AGAIN_MAX: Duration = Duration::from_secs(30);

/// How long the journal's disk may take to make records durable.
pub(super) const SYNC_LIMIT: Duration = Duration::from_secs(10);

impl Life {
    /// As [`make`], of this guest.
    pub(super) async fn mark(
        &mut self,
        task: &Task,
        request: MarkRequest,
    ) -> Result<MarkReply, ApiError> {
        make(&task.context, self.attached.process_id(), request).await
    }
}

/// Makes a checkpoint. It counts only when its position was proved level and is durable
/// ([`confirm`]).
async fn make(
    context: &Context,
    process: Option<ProcessId>,
    request: MarkRequest,
) -> Result<MarkReply, ApiError> {
    let tag = Some(request.tag).filter(|t| !t.is_empty());
    let (marked, kind) = if request.quiesce {
        (quiesced(context, process, tag).await?, "application")
    } else {
        let marked = tokio::task::block_in_place(|| context.group.mark(CheckpointKind::Crash, tag));
        (marked.map_err(|e| ApiError::other(e.to_string()))?, "crash")
    };
    let time = time(marked.wall_ns);
    Ok(MarkReply { id: marked.id, seq: marked.seq, time, kind: kind.into(), memory: false })
}

/// Makes the regular checkpoint if it is due. It is listed only once a look behind it has confirmed it, so
/// that the caller looks next.
pub(super) fn regular(context: &Context) -> afterimage_journal::Result<()> {
    let every_ms = context.settings.checkpoint_every_ms;
    // A record may wait for a unit: not on a thread that others need.
    tokio::task::block_in_place(|| context.group.checkpoint_if_due(every_ms))
}

/// Notes that the guest was level at a position, durably.
pub(super) async fn confirm(context: &Context, position: Seq) -> Result<(), ApiError> {
    let (group, name) = (Arc::clone(&context.group), context.settings.name.clone());
    let noted = tokio::task::spawn_blocking(move || {
        group.confirm(&name, position)?;
        let journal = group.journal()?;
        journal.sync()?;
        // Nobody could restore it from a journal that is not there any more.
        journal.look_at_home()
    });
    match tokio::time::timeout(SYNC_LIMIT, noted).await {
        Ok(Ok(Ok(_))) => Ok(()),
        Ok(Ok(Err(e))) => Err(ApiError::other(format!("the checkpoint is not durable: {e}"))),
        Ok(Err(e)) => Err(ApiError::other(e.to_string())),
        Err(_) => Err(ApiError::other(format!(
            "the checkpoint is not durable: the journal's disk did not answer in {SYNC_LIMIT:?}"
        ))),
    }
}

fn channel(settings: &GuestSettings) -> Result<AgentChannel, ApiError> {
    match (&settings.guest_agent, &settings.libvirt) {
        (Some(path), _) => Ok(AgentChannel::Socket(path.clone())),
        (None, Some(domain)) => Ok(AgentChannel::Libvirt(Target::new(domain))),
        (None, None) => Err(ApiError::usage(format!(
            "no guest agent is known for {}: give its socket with \
             `afterimage set {} --guest-agent PATH`, or mark without --quiesce",
            settings.name, settings.name
        ))),
    }
}

fn silent(error: &afterimage_qmp::Error) -> ApiError {
    ApiError::not_reachable(format!("{error}; or mark without --quiesce"))
}

/// A guest whose file systems are frozen. Dropped without [`Frozen::thaw`], it stays frozen until what
/// is left undone is looked for: at the next start.
pub(crate) struct Frozen {
    agent: GuestAgent,
    standing: intent::Standing,
    process: Option<ProcessId>,
    slot: Option<(SlotGuard, Ticket)>,
}

impl Frozen {
    /// Freezes a guest. On an error it has been thawed again, or its intent stays.
    pub(crate) async fn freeze(
        state: &Path,
        settings: &GuestSettings,
        process: Option<ProcessId>,
        worker: Option<&Worker>,
    ) -> Result<Self, ApiError> {
        let channel = channel(settings)?;
        let agent = GuestAgent::new(channel.clone());
        agent.ping().await.map_err(|e| silent(&e))?;
        if intent::owes_thaw(state, &settings.name) {
            // Of an earlier checkpoint. What thaws it late must not thaw it in the midst of this one.
            agent.thaw().await.map_err(|e| {
                ApiError::not_reachable(format!("an earlier checkpoint left it frozen: {e}"))
            })?;
            intent::forget_thaw(state, &settings.name);
        }
        let (state, name) = (state.to_owned(), settings.name.clone());
        let write = move || intent::write(&state, &name, &Intent::Thaw(channel), process);
        let standing = tokio::task::spawn_blocking(write)
            .await
            .map_err(|e| ApiError::other(e.to_string()))?
            .map_err(|e| ApiError::other(format!("the guest was not frozen: {e}")))?;
        let frozen = agent.freeze().await;
        // A worker that hangs from here on is killed by the guard, which then thaws the guest.
        let slot = worker.map(|w| w.slot_without_socket(SlotKind::Freeze)).map(|slot| {
            slot.hold(now_ns() + THAW_WAIT_NS);
            let ticket = slot.received(now_ns());
            (slot, ticket)
        });
        let this = Self { agent, standing, process, slot };
        match frozen {
            Ok(_) => Ok(this),
            Err(error) => {
                if let Err(error) = this.thaw().await {
                    tracing::error!(%error, "the guest could not be thawed");
                }
                Err(silent(&error))
            }
        }
    }

    /// Thaws it. Where its agent does not answer, that is tried again for as long as its QEMU lives.
    ///
    /// # Errors
    /// It may be frozen still; the intent stays.
    pub(crate) async fn thaw(self) -> Result<(), afterimage_qmp::Error> {
        let Self { agent, standing, process, slot } = self;
        match while_seen(slot, agent.thaw()).await {
            Ok(_) => {
                standing.thawed();
                Ok(())
            }
            Err(error) => {
                tokio::spawn(thaw_again(agent, standing, process));
                Err(error)
            }
        }
    }
}

/// Waits for the guest's agent, and has the guard see that it is not us who stands still.
async fn while_seen<T>(slot: Option<(SlotGuard, Ticket)>, work: impl Future<Output = T>) -> T {
    let Some((slot, mut ticket)) = slot else { return work.await };
    let mut work = std::pin::pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(STILL_HERE_EVERY, &mut work).await {
            slot.replied(ticket);
            return done;
        }
        if planted::is("a-silent-agent-is-our-hang") {
            continue;
        }
        slot.replied(ticket);
        slot.hold(now_ns() + THAW_WAIT_NS);
        ticket = slot.received(now_ns());
    }
}

/// Thaws a guest whose agent did not answer at first. Ends with its QEMU, or when another has done it.
async fn thaw_again(agent: GuestAgent, standing: intent::Standing, process: Option<ProcessId>) {
    let mut pause = THAW_AGAIN_MIN;
    while standing.stands() && process.is_none_or(|p| p.lives()) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(THAW_AGAIN_MAX);
        if standing.stands() && agent.thaw().await.is_ok() {
            tracing::warn!(agent = %agent.channel(), "the guest has thawed at last");
            break;
        }
    }
    standing.thawed();
}

/// What to say of a guest that could not be thawed behind its checkpoint.
pub(crate) fn unthawed(error: &afterimage_qmp::Error) -> ApiError {
    ApiError::not_reachable(format!(
        "the checkpoint was made, but the guest could not be thawed: {error}; \
         this is tried again until it answers; or thaw it inside the guest (`fsfreeze -u`)"
    ))
}

async fn quiesced(
    context: &Context,
    process: Option<ProcessId>,
    tag: Option<String>,
) -> Result<crate::group::Marked, ApiError> {
    let (state, settings) = (&context.state, &context.settings);
    let frozen = Frozen::freeze(state, settings, process, context.worker.as_ref()).await?;
    let marked =
        tokio::task::block_in_place(|| context.group.mark(CheckpointKind::Application, tag))
            .map_err(|e| ApiError::other(e.to_string()));
    match frozen.thaw().await {
        Ok(()) => marked,
        Err(error) if marked.is_ok() => Err(unthawed(&error)),
        Err(error) => {
            tracing::error!(%error, "the guest could not be thawed");
            marked
        }
    }
}
