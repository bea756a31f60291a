//! What a guest's part of a checkpoint owes: the note of it on disk, and the undoing.
//!
//! What always holds: the note says what may be ours before it can be; what undoes it asks QEMU's events
//! whose a stop of the guest was, and lets no guest run that somebody else paused.

use super::instant::Order;
use super::still::MEDDLED;
use super::taking::{END_LIMIT, Taking};
use super::{Failure, Outcome};
use crate::intent::{self, Intent};
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
use afterimage_qmp::qemu::{MonitorChannel, RunState, SnapshotMode, UndoSnapshot, now_ns};
use std::path::PathBuf;

impl Taking {
    /// Notes that the guest may come to a stand for us from now on, in an order.
    pub(super) async fn may_stand(&mut self, order: Order) -> Outcome<()> {
        let mode = self.mode;
        self.note(|undo| (undo.resume, undo.begun_ns) = (Some(mode), Some(now_ns()))).await?;
        self.may_stand = Some(order);
        Ok(())
    }

    /// Notes that QEMU is told to send the memory now.
    pub(super) async fn is_sending(&mut self) -> Outcome<()> {
        self.note(|undo| undo.migrate_ns = Some(now_ns())).await
    }

    /// Notes that the guest stood still at a moment.
    pub(super) async fn stood(&mut self, at_ns: u64) -> Outcome<()> {
        self.note(|undo| undo.stopped_ns = Some(at_ns)).await
    }

    /// Notes that the guest is not to be let run by us any more: it runs, or stands for somebody else.
    pub(super) async fn is_let_go(&mut self) -> Outcome<()> {
        self.may_stand = None;
        self.note(|undo| undo.resume = None).await
    }

    /// Changes the note. Not durable: no power cut leaves a QEMU behind.
    pub(super) async fn note(&mut self, change: impl FnOnce(&mut UndoSnapshot)) -> Outcome<()> {
        let Some((undo, standing)) = &mut self.owed else { return Ok(()) };
        change(undo);
        let write = standing.rewrite(Intent::Resume(undo.clone()));
        tokio::task::spawn_blocking(write).await.map_err(Failure::other)??;
        Ok(())
    }

    pub(super) async fn undo(&mut self) -> Result<(), afterimage_qmp::Error> {
        let Some((mut undo, _)) = self.owed.as_ref().map(|(u, s)| (u.clone(), s)) else {
            return Ok(());
        };
        if !self.is_set {
            // A migration that goes on now is somebody else's, and so are the settings.
            self.settled();
            return Ok(());
        }
        if let Some(order) = self.may_stand {
            // What it does to the guest it has done once it has ended.
            let ending = self.lease.qemu.end_migration(&undo);
            if let Ok(ended) = tokio::time::timeout(END_LIMIT, ending).await {
                ended?;
            }
            undo.resume = self.stands_for_us(order).await?.then_some(self.mode);
            undo.stopped_ns = Some(now_ns());
            if undo.resume.is_none() && self.is_let_go().await.is_err() {
                tracing::warn!(guest = self.name(), "the intent can't be rewritten");
            }
        }
        self.lease.qemu.end_snapshot(&undo, END_LIMIT).await?;
        self.settled();
        Ok(())
    }

    /// Takes in what the monitor has said so far.
    fn hear(&mut self) {
        let Some(events) = &mut self.events else { return };
        while let Some(event) = events.said() {
            self.words.hear(&event);
        }
    }

    /// Whether events may come after answers that were given later.
    pub(super) fn may_be_late(&self) -> bool {
        !matches!(self.lease.monitor, MonitorChannel::Socket(_))
    }

    /// Whether the guest stands still, and for us.
    pub(super) async fn stands_for_us(
        &mut self,
        order: Order,
    ) -> Result<bool, afterimage_qmp::Error> {
        let state = self.lease.qemu.run_state().await?;
        // What QEMU said before that answer is here.
        self.hear();
        let sent = match state {
            RunState::Paused => false,
            RunState::PostMigrate => self.mode == SnapshotMode::Stop,
            _ => return Ok(false),
        };
        let pages = self.has_pages();
        Ok(self.words.stands_for_us(order, (sent, pages), self.may_be_late()))
    }

    /// Refuses a guest that somebody stopped or let run since the checkpoint began.
    pub(super) fn check_untouched(&mut self) -> Outcome<()> {
        self.hear();
        match self.words.is_silent() {
            true => Ok(()),
            false => Err(self.meddled()),
        }
    }

    /// Proves that the stop of the migration, which has sent a page since, was the only one: what came
    /// before that page is here behind an answer.
    pub(super) async fn check_only_stop(&mut self) -> Outcome<()> {
        self.lease.qemu.run_state().await?;
        self.hear();
        let whose = self.words.of_migration();
        whose.map(drop).map_err(|why| Failure::Unfit(why.into()))
    }

    /// Proves that the guest stands still since our `stop`: nobody stopped it before, or let it run since,
    /// and no write of its came behind `writes`.
    pub(super) async fn check_still(&mut self, writes: Option<u64>) -> Outcome<()> {
        let state = self.lease.qemu.run_state().await?;
        self.hear();
        if planted::is("any-stand-of-memory-counts") {
            return Ok(());
        }
        let is_sent = state == RunState::PostMigrate && self.mode == SnapshotMode::Stop;
        let stands = state == RunState::Paused || is_sent;
        let once = self.words.is_stopped_once(self.may_be_late());
        let wrote = writes.is_some_and(|writes| writes != self.lease.writes());
        match stands && once.is_ok() && !wrote {
            true => Ok(()),
            false => Err(self.meddled()),
        }
    }

    fn meddled(&self) -> Failure {
        Failure::other(format!("{}: {MEDDLED}: no checkpoint was made; try again", self.name()))
    }

    pub(super) fn settled(&mut self) {
        let done = self.owed.take().map(|(_, standing)| standing.done());
        if let Some(Err(error)) = done {
            tracing::warn!(%error, "the intent stays: the snapshot will be undone once more");
        }
    }
}

/// Undoes what an earlier snapshot left: its note holds the settings as they were before that one.
pub(super) async fn settle_left(qemu: Qemu, state: PathBuf, guest: String) -> Outcome<()> {
    let left = intent::left_of_snapshot(&state, &guest).map_err(Failure::other)?;
    let Some(left) = left else { return Ok(()) };
    qemu.end_snapshot(&left, END_LIMIT).await?;
    intent::forget_snapshot(&state, &guest);
    Ok(())
}
