//! Checkpoints that a person asked for, with the guest's file systems frozen if wanted.
//!
//! What always holds: before a guest is frozen, a durable intent says so; it goes only after the
//! guest was thawed. Whoever dies in between, the guard thaws (I-10).

use super::task::Context;
use crate::api::types::time;
use crate::api::{ApiError, MarkReply, MarkRequest};
use crate::intent::{self, Intent};
use afterimage_guard::{SlotKind, now_ns};
use afterimage_journal::Seq;
use afterimage_journal::meta::CheckpointKind;
use afterimage_qmp::guest_agent::{AgentChannel, GuestAgent};
use afterimage_qmp::libvirt::Target;
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
    let time = time(context.group.wall_ns());
    Ok(MarkReply { id: marked.id, seq: marked.seq, time, kind: kind.into() })
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

fn channel(context: &Context) -> Result<AgentChannel, ApiError> {
    let settings = &context.settings;
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

async fn quiesced(
    context: &Context,
    tag: Option<String>,
) -> Result<crate::group::Marked, ApiError> {
    let channel = channel(context)?;
    let agent = GuestAgent::new(channel.clone());
    let silent = |e: afterimage_qmp::Error| {
        ApiError::not_reachable(format!("{e}; or mark without --quiesce"))
    };
    agent.ping().await.map_err(silent)?;
    let (state, name) = (context.state.clone(), context.settings.name.clone());
    let standing =
        tokio::task::spawn_blocking(move || intent::write(&state, &name, &Intent::Thaw(channel)))
            .await
            .map_err(|e| ApiError::other(e.to_string()))?
            .map_err(|e| ApiError::other(format!("the guest was not frozen: {e}")))?;
    let frozen = agent.freeze().await;
    // A worker that hangs from here on is killed by the guard, which then thaws the guest.
    let slot = context.worker.as_ref().map(|w| w.slot_without_socket(SlotKind::Freeze));
    let ticket = slot.as_ref().map(|s| {
        s.hold(now_ns() + THAW_WAIT_NS);
        s.received(now_ns())
    });
    let marked = match frozen {
        Ok(_) => {
            tokio::task::block_in_place(|| context.group.mark(CheckpointKind::Application, tag))
                .map_err(|e| ApiError::other(e.to_string()))
        }
        Err(e) => Err(silent(e)),
    };
    let thawed = agent.thaw().await;
    if let (Some(slot), Some(ticket)) = (&slot, ticket) {
        slot.replied(ticket);
    }
    match thawed {
        Ok(_) => {
            if let Err(error) = standing.done() {
                tracing::warn!(%error, "the intent stays: the guest will be thawed once more");
            }
        }
        Err(error) if marked.is_ok() => {
            return Err(ApiError::not_reachable(format!(
                "the checkpoint was made, but the guest could not be thawed: {error}; \
                 thaw it inside the guest (`fsfreeze -u`), or restart the agent to try again"
            )));
        }
        Err(error) => tracing::error!(%error, "the guest could not be thawed"),
    }
    marked
}
