//! The instant: a position at which all guests of the group stood still.
//!
//! *In-band*: each guest's migration stops it, which sends one FLUSH to each of its mirrors. The first
//! one's number is the guest's position, and its reply is held until all guests have come so far
//! (`capture::instant`). Costs the guest some milliseconds.
//!
//! *Explicit*: each guest is stopped by command, the head is the position, and it runs again at its
//! first page (pages come once QEMU tracks writes), or when all of its memory was read. For guests
//! that no FLUSH comes from, that can't be held together, or that are to be stopped.
//!
//! What always holds: every guest was still while the position was taken, proved by what was held, or
//! by QEMU's own word for a guest that we stopped; and nobody let it run, or stopped it too, until the
//! state of its memory and devices was fixed ([`super::still`]). Otherwise there is no checkpoint, and the
//! guest stays as whoever it was wants it.

use super::taking::Taking;
use super::{Failure, Outcome};
use crate::group::Group;
use afterimage_guard::{SlotKind, now_ns};
use afterimage_journal::Seq;
use afterimage_qmp::qemu::SnapshotMode;
use std::time::{Duration, Instant as Moment};
use tokio::task::JoinSet;

/// How long the guests may take to stop after QEMU was told: it touches all of their memory first.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long guests may be stopped by command until their first page comes.
const FIRST_PAGE_LIMIT: Duration = Duration::from_secs(2);
/// How long guests may stand still in stop mode, until all of their memory is read.
const STOPPED_LIMIT: Duration = Duration::from_secs(60);

/// In which order guests are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// See the module.
    InBand,
    /// See the module.
    Explicit,
}

/// The instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instant {
    /// Its position.
    pub(super) seq: Seq,
    /// Its time, nanoseconds since the Unix epoch.
    pub(super) wall_ns: u64,
}

impl Order {
    /// In a word, for status.
    pub(super) fn name(self, takings: &[Taking]) -> &'static str {
        match self {
            Self::InBand => "in-band",
            Self::Explicit if takings.iter().all(|t| t.mode == SnapshotMode::Background) => {
                "explicit"
            }
            Self::Explicit => "stop",
        }
    }

    /// Takes it, and begins every guest's stream. All guests run when this returns well.
    pub(super) async fn take(
        self,
        takings: &mut [Taking],
        group: &Group,
        hold_limit: Duration,
    ) -> Outcome<Instant> {
        match self {
            Self::InBand => in_band(takings, group, hold_limit).await,
            Self::Explicit => explicit(takings, group).await,
        }
    }
}

type Commands = JoinSet<(String, afterimage_qmp::Result<()>)>;

/// Tells every QEMU to send. Each on its own: one that stands still answers nobody.
fn migrate(takings: &[Taking]) -> Commands {
    let mut commands = JoinSet::new();
    for taking in takings {
        let (name, qemu) = (taking.name().to_owned(), taking.lease.qemu.clone());
        let socket = taking.socket();
        commands.spawn(async move { (name, qemu.migrate_to(&socket).await) });
    }
    commands
}

/// The first refusal; for ever, when there is none.
async fn refusal(commands: &mut Commands) -> Failure {
    match answered(commands).await {
        Err(failure) => failure,
        Ok(()) => std::future::pending().await,
    }
}

async fn answered(commands: &mut Commands) -> Outcome<()> {
    while let Some(answer) = commands.join_next().await {
        let (_, answer) = answer.map_err(Failure::other)?;
        answer?;
    }
    Ok(())
}

async fn in_band(takings: &mut [Taking], group: &Group, hold_limit: Duration) -> Outcome<Instant> {
    for taking in takings.iter_mut() {
        taking.check_untouched()?;
        let armed = taking.lease.latch.arm(hold_limit);
        taking.armed = Some(armed.ok_or_else(|| Failure::other("its instant is taken already"))?);
        taking.may_stand(Order::InBand).await?;
        taking.is_sending().await?;
    }
    let mut commands = migrate(takings);
    let seq = tokio::select! {
        biased;
        seq = all_stopped(takings) => seq?,
        failure = refusal(&mut commands) => return Err(failure),
        () = tokio::time::sleep(STOP_LIMIT) => {
            return Err(Failure::Unfit(format!("the guests did not stop within {STOP_LIMIT:?}")));
        }
    };
    let (instant, stood_ns) = (Instant { seq, wall_ns: group.wall_ns() }, now_ns());
    // Each is let go, and each must have been held until then.
    let held = takings.iter().filter(|t| t.armed.as_ref().is_some_and(|a| a.release())).count();
    if held < takings.len() {
        let (held, all) = (held, takings.len());
        return Err(Failure::Unfit(format!(
            "only {held} of {all} guests stood still together within {hold_limit:?}"
        )));
    }
    for taking in takings.iter_mut() {
        taking.stood(stood_ns).await?;
    }
    answered(&mut commands).await?;
    for taking in takings.iter_mut() {
        // Memory and devices are fixed once it comes: nobody else may have touched the guest until then.
        let first = taking.hears(|heard| heard.first_page);
        match tokio::time::timeout(STOP_LIMIT, first).await {
            Ok(heard) if heard.first_page => {}
            Ok(_) => return Err(taking.why_ended().await),
            Err(_) => return Err(Failure::Unfit(format!("no page came in {STOP_LIMIT:?}"))),
        }
        let (stop_us, resume_us) = taking.stamps().await?;
        taking.check_only_stop().await?;
        taking.check(stop_us, resume_us)?;
        taking.is_let_go().await?;
        taking.pause_us = resume_us - stop_us;
        taking.armed = None;
    }
    Ok(instant)
}

/// Waits for each guest's first FLUSH, and gives the highest of their numbers.
async fn all_stopped(takings: &mut [Taking]) -> Outcome<Seq> {
    let mut seq = 0;
    for taking in takings.iter_mut() {
        // Borrowed apart from the rest, which is waited on too.
        let Some(mut armed) = taking.armed.take() else {
            return Err(Failure::other("it is not armed"));
        };
        let stopped = tokio::select! {
            biased;
            stopped = armed.stopped() => stopped,
            heard = taking.hears(|heard| heard.first_page) => match heard.first_page {
                true => {
                    let why = format!("{}: no flush came before its memory did", taking.name());
                    return Err(Failure::Unfit(why));
                }
                false => return Err(taking.why_ended().await),
            },
        };
        taking.armed = Some(armed);
        let Some(stopped) = stopped else { return Err(Failure::other("it is not armed any more")) };
        taking.stopped = Some(stopped);
        seq = seq.max(stopped.seq);
    }
    Ok(seq)
}

async fn explicit(takings: &mut [Taking], group: &Group) -> Outcome<Instant> {
    let begin = Moment::now();
    let background = takings.iter().all(|t| t.mode == SnapshotMode::Background);
    let limit = if background { FIRST_PAGE_LIMIT } else { STOPPED_LIMIT };
    // A worker that hangs meanwhile is killed, and the intent then has the guests run. The guard holds
    // still for some seconds at most, which all of a guest's memory may take longer than.
    let worker = takings.first().and_then(|t| t.lease.worker.clone()).filter(|_| background);
    let slot = worker.map(|w| w.slot_without_socket(SlotKind::Freeze));
    if let Some(slot) = &slot {
        let until_ns = now_ns() + 2 * limit.as_nanos() as u64;
        slot.hold(until_ns);
        // Answered when the slot is freed.
        let _ = slot.received(now_ns());
    }
    let work = stopped_by_command(takings, group, begin);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Failure::other(format!("the guests would have stood still for more than {limit:?}")))
    })
}

async fn stopped_by_command(
    takings: &mut [Taking],
    group: &Group,
    begin: Moment,
) -> Outcome<Instant> {
    let mut commands = JoinSet::new();
    for taking in takings.iter_mut() {
        taking.check_untouched()?;
        taking.may_stand(Order::Explicit).await?;
        let (name, qemu) = (taking.name().to_owned(), taking.lease.qemu.clone());
        commands.spawn(async move { (name, qemu.stop().await) });
    }
    answered(&mut commands).await?;
    for taking in takings.iter_mut() {
        taking.check_still(None).await?;
    }
    // QEMU answered every write of theirs before it said that they stand still.
    let instant = Instant { seq: group.journal()?.head(), wall_ns: group.wall_ns() };
    let writes: Vec<u64> = takings.iter().map(|t| t.lease.writes()).collect();
    let stood_ns = now_ns();
    for taking in takings.iter_mut() {
        taking.stood(stood_ns).await?;
        taking.is_sending().await?;
    }
    answered(&mut migrate(takings)).await?;
    for (taking, writes) in takings.iter_mut().zip(writes) {
        match taking.mode {
            SnapshotMode::Background => {
                if !taking.hears(|heard| heard.first_page).await.first_page {
                    return Err(taking.why_ended().await);
                }
            }
            SnapshotMode::Stop => taking.complete().await?,
        }
        taking.check_still(Some(writes)).await?;
        taking.lease.qemu.resume_guest(taking.mode).await?;
        // QEMU's own stamps are exact, where it sends any.
        let own_us = begin.elapsed().as_micros() as u64;
        taking.pause_us = taking.stood_us(own_us).await;
        taking.is_let_go().await?;
    }
    Ok(instant)
}
