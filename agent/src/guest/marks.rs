//! Checkpoints that a person asked for, with the guest's file systems frozen if wanted.
//!
//! What always holds: before a guest is frozen, a durable intent says so; it goes only after the
//! guest was thawed. Whoever dies in between, the guard thaws (I-10).

use super::task::Context;
use crate::api::types::time;
use crate::api::{ApiError, MarkReply, MarkRequest};
use crate::intent::{self, Intent};
use crate::settings::GuestSettings;
use afterimage_guard::{SlotGuard, SlotKind, Ticket, Worker, now_ns};
use afterimage_journal::Seq;
use afterimage_journal::meta::CheckpointKind;
use afterimage_qmp::guest_agent::{AgentChannel, GuestAgent};
use afterimage_qmp::libvirt::Target;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a guest may take to answer that it has thawed before the guard has it thawed.
const THAW_WAIT_NS: u64 = 4_000_000_000;

/// How long the journal's disk may take to make records durable.
pub(super) const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// Makes a checkpoint. It counts only when its position was proved level and is durable
/// ([`confirm`]).
pub(super) async fn make(context: &Context, request: MarkRequest) -> Result<MarkReply, ApiError> {
    let tag = Some(request.tag).filter(|t| !t.is_empty());
    let (marked, kind) = if request.quiesce {
        (quiesced(context, tag).await?, "application")
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
        group.journal()?.sync()
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
    slot: Option<(SlotGuard, Ticket)>,
}

impl Frozen {
    /// Freezes a guest. On an error it has been thawed again, or its intent stays.
    pub(crate) async fn freeze(
        state: &Path,
        settings: &GuestSettings,
        worker: Option<&Worker>,
    ) -> Result<Self, ApiError> {
        let channel = channel(settings)?;
        let agent = GuestAgent::new(channel.clone());
        agent.ping().await.map_err(|e| silent(&e))?;
        let (state, name) = (state.to_owned(), settings.name.clone());
        let write = move || intent::write(&state, &name, &Intent::Thaw(channel));
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
        let this = Self { agent, standing, slot };
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

    /// Thaws it.
    ///
    /// # Errors
    /// It may be frozen still; the intent stays.
    pub(crate) async fn thaw(self) -> Result<(), afterimage_qmp::Error> {
        let thawed = self.agent.thaw().await;
        if let Some((slot, ticket)) = self.slot {
            slot.replied(ticket);
        }
        thawed?;
        if let Err(error) = self.standing.done() {
            tracing::warn!(%error, "the intent stays: the guest will be thawed once more");
        }
        Ok(())
    }
}

/// What to say of a guest that could not be thawed behind its checkpoint.
pub(crate) fn unthawed(error: &afterimage_qmp::Error) -> ApiError {
    ApiError::not_reachable(format!(
        "the checkpoint was made, but the guest could not be thawed: {error}; \
         thaw it inside the guest (`fsfreeze -u`), or restart the agent to try again"
    ))
}

async fn quiesced(
    context: &Context,
    tag: Option<String>,
) -> Result<crate::group::Marked, ApiError> {
    let (state, settings) = (&context.state, &context.settings);
    let frozen = Frozen::freeze(state, settings, context.worker.as_ref()).await?;
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
