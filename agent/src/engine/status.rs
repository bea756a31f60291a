//! What `status` says of a guest: from its face, its settings and its group.
//!
//! What always holds: a guest is called protected only while its journal takes records, its
//! session is open, no mirror was lost and it was found level a short while ago, whatever its task
//! showed last: a task may hang, or not have got to it yet.

use crate::api::types::time;
use crate::api::{
    CopyProgress, DiskStatus, GapStatus, GuestState, GuestStatus, JournalSize, ThinnedStatus,
    WindowStatus,
};
use crate::group::{Group, Interval, Standing, Twice};
use crate::guest::{Face, Shown};
use crate::memory::checkpoint::Conductor;
use crate::settings::GuestSettings;
use crate::ship::{Ages, Moment};
use afterimage_guard::Counters;
use afterimage_journal::Seq;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the head is sampled: the grain of `rpo_ms`.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Samples kept: a minute.
const SAMPLES_MAX: usize = 600;
/// Age at which the last proof that a guest was level is none any more. A look comes every
/// second; one that waits for QEMU's monitor, or for a frozen guest, comes later.
const PROOF_AGE_MAX: Duration = Duration::from_secs(60);

/// Remembers when the journal's head was where, to tell the age of what is not durable yet.
pub(super) struct Sampler {
    samples: Mutex<VecDeque<(Instant, Seq)>>,
    ended: AtomicBool,
}

impl Sampler {
    pub(super) fn start(group: Arc<Group>) -> Arc<Self> {
        let sampler = Arc::new(Self { samples: Mutex::default(), ended: AtomicBool::new(false) });
        let this = Arc::downgrade(&sampler);
        let group = Arc::downgrade(&group);
        tokio::spawn(async move {
            let mut every = tokio::time::interval(SAMPLE_EVERY);
            loop {
                every.tick().await;
                let (Some(this), Some(group)) = (this.upgrade(), group.upgrade()) else { return };
                if this.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(journal) = group.journal() else { continue };
                let mut samples = this.samples.lock().unwrap_or_else(PoisonError::into_inner);
                if samples.len() >= SAMPLES_MAX {
                    samples.pop_front();
                }
                samples.push_back((Instant::now(), journal.head()));
            }
        });
        sampler
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Age of the oldest record that is not durable, in milliseconds.
    fn exposed_ms(&self, head: Seq, durable: Seq) -> u64 {
        if durable >= head {
            return 0;
        }
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let covered = samples.iter().rev().find(|(_, at)| *at <= durable);
        covered.or(samples.front()).map_or(0, |(when, _)| when.elapsed().as_millis() as u64)
    }
}

impl Ages for Sampler {
    fn behind_ms(&self, seq: Seq) -> Option<u64> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.iter().rev().find(|(_, at)| *at <= seq);
        before.map(|(when, _)| when.elapsed().as_millis() as u64)
    }

    fn newest_ms(&self, seq: Seq) -> u64 {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = samples.iter().rev().take_while(|(_, at)| *at >= seq).last();
        seen.map_or(0, |(when, _)| when.elapsed().as_millis() as u64)
    }
}

/// The status of a guest.
pub(super) fn of(
    face: &Face,
    settings: &GuestSettings,
    group: &Group,
    sampler: &Sampler,
    counters: Option<Counters>,
    memory: &Conductor,
) -> GuestStatus {
    let journal = group.journal().ok();
    let (head, durable) = journal.as_ref().map_or((0, 0), |j| (j.head(), j.durable()));
    let (units, bytes) = journal.as_ref().map_or((0, 0), afterimage_journal::Journal::size);
    let now_ns = group.wall_ns();
    let shown = face.shown();
    let standing = group.standing(&settings.name);
    let (state, reason) = seen(&shown, &standing);
    let space = group.occupancy();
    // What lies before the edge is in the base.
    let edge = space.as_ref().map_or((0, 0), |o| (o.edge_wall_ns, o.edge));
    let intervals = &behind(&standing.intervals, edge);
    let twice = &standing.twice;
    let copy = shown.copy.as_ref().map(|p| CopyProgress {
        cause: p.cause,
        done_bytes: p.done_bytes.load(Ordering::Relaxed),
        total_bytes: p.total_bytes.load(Ordering::Relaxed),
        rate_bytes_s: p.rate_bytes_s(),
    });
    let counted = shown.disks.iter().map(|d| d.counters.answer_us_max.load(Ordering::Relaxed));
    let answer_us = counted.max().unwrap_or(0).max(shown.answer_us_max);
    let stall_ms = counters.map_or(0, |c| c.stall_ms_max);
    let rpo_ms = rpo_ms(state, &standing, now_ns, sampler.exposed_ms(head, durable));
    let head_now = journal.as_ref().map(afterimage_journal::Journal::head);
    let moment = Moment { head: head_now, now_ns, alarm_ms: 0, local_rpo_ms: rpo_ms };
    let sites = group.site_statuses(&moment, sampler);
    GuestStatus {
        guest: settings.name.clone(),
        state,
        rpo_ms,
        head_seq: head,
        durable_seq: durable,
        window: window(intervals, (now_ns, head), twice),
        gaps: gaps(intervals, twice),
        journal: JournalSize { units, bytes },
        disks: disks(settings, group, &shown.disks),
        stall_ms_max: stall_ms.max(answer_us.div_ceil(1000)),
        group: settings.group.clone(),
        encrypted: group.key_file().is_some(),
        reason,
        epoch: journal.as_ref().map_or(0, afterimage_journal::Journal::epoch),
        window_s: settings.window_s,
        keep: settings.keep.clone(),
        thinned: space.as_ref().and_then(ThinnedStatus::of_space),
        checkpoint_every_ms: settings.checkpoint_every_ms,
        write_rate_bytes_s: shown.bytes_per_s,
        writes_per_s: shown.writes_per_s,
        copy,
        agent_restarts: counters.map_or(0, |c| c.restarts),
        offline: false,
        space,
        memory: memory.status(settings),
        sites,
        warnings: settings.warnings(),
    }
}

/// The state that is true now, and the reason for it.
fn seen(shown: &Shown, standing: &Standing) -> (GuestState, Option<String>) {
    let doubt = match shown.state {
        GuestState::Gap | GuestState::Detached => None,
        GuestState::Protected => lost(shown, standing).or_else(|| unproved(standing)),
        GuestState::InitialSync | GuestState::Resync => lost(shown, standing),
    };
    match doubt {
        Some(reason) => (GuestState::Gap, Some(reason)),
        None => (shown.state, shown.reason.clone()),
    }
}

/// Why nothing that the guest writes is taken in, if so.
fn lost(shown: &Shown, standing: &Standing) -> Option<String> {
    let shut = shown.gate.as_ref().is_some_and(|gate| gate.is_shut());
    let shut = shut.then(|| "a mirror was lost, or one of its writes was refused".to_owned());
    standing.stopped.clone().or(shut)
}

/// Why a guest can't be called level, if so.
fn unproved(standing: &Standing) -> Option<String> {
    let Some(session) = &standing.session else {
        let last = standing.intervals.last().filter(|last| last.to_ns.is_some());
        return Some(last.map_or("its session has ended".into(), |last| last.reason.clone()));
    };
    let age = session.confirmed_at.elapsed();
    (age > PROOF_AGE_MAX).then(|| format!("last found level {} s ago", age.as_secs()))
}

fn disks(
    settings: &GuestSettings,
    group: &Group,
    faces: &[crate::guest::DiskFace],
) -> Vec<DiskStatus> {
    let config = group.config();
    let volumes = config.disks().filter(|v| v.guest == settings.name && v.active);
    volumes
        .map(|v| {
            let state = group.volume_state(v.id);
            let face = faces.iter().find(|f| f.volume == v.id);
            DiskStatus {
                guest: v.guest.clone(),
                id: v.disk.clone(),
                node: face.map_or_else(|| v.node.clone(), |f| f.node.clone()),
                bytes: v.bytes,
                synced_bytes: if state.complete { v.bytes } else { state.initial_upto },
            }
        })
        .collect()
}

fn rpo_ms(state: GuestState, standing: &Standing, now_ns: u64, exposed_ms: u64) -> Option<u64> {
    let last = standing.intervals.last()?;
    let level_ns = match (last.to_ns, &standing.session) {
        (Some(to_ns), _) => to_ns,
        (None, _) if state == GuestState::Protected => return Some(exposed_ms),
        (None, Some(session)) => session.confirmed_ns,
        (None, None) => last.from_ns,
    };
    Some(now_ns.saturating_sub(level_ns) / 1_000_000)
}

/// What of the intervals lies behind an instant, which has a position.
fn behind(intervals: &[Interval], (from_ns, seq): (u64, Seq)) -> Vec<Interval> {
    let left = intervals.iter().filter(|i| i.to_ns.is_none_or(|to| to > from_ns));
    left.map(|i| match i.from_ns < from_ns {
        true => Interval { from_ns, from_seq: seq, ..i.clone() },
        false => i.clone(),
    })
    .collect()
}

fn window(
    intervals: &[Interval],
    (now_ns, head): (u64, Seq),
    twice: &Twice,
) -> Option<WindowStatus> {
    let (first, last) = (intervals.first()?, intervals.last()?);
    let (to_ns, to_seq) = last.to_ns.map_or((now_ns, Some(head)), |ns| (ns, last.to_seq));
    Some(WindowStatus {
        from: time(first.from_ns),
        from_seq: Some(first.from_seq).filter(|_| twice.has(first.from_ns)),
        to: time(to_ns),
        to_seq: to_seq.filter(|_| twice.has(to_ns)),
    })
}

fn gaps(intervals: &[Interval], twice: &Twice) -> Vec<GapStatus> {
    let mut gaps = Vec::new();
    for (i, interval) in intervals.iter().enumerate() {
        let Some(to_ns) = interval.to_ns else { continue };
        let next = intervals.get(i + 1);
        gaps.push(GapStatus {
            from: time(to_ns),
            from_seq: interval.to_seq.filter(|_| twice.has(to_ns)),
            to: next.map(|next| time(next.from_ns)),
            to_seq: next.filter(|n| twice.has(n.from_ns)).map(|n| n.from_seq),
            reason: interval.reason.clone(),
        });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Gate;
    use crate::group::OpenSession;

    fn interval(from_s: u64, to_s: Option<u64>) -> Interval {
        let ns = |s| s * 1_000_000_000;
        let (from_ns, to_ns) = (ns(from_s), to_s.map(ns));
        Interval { from_ns, from_seq: from_s, to_ns, to_seq: to_s, reason: "why".into() }
    }

    #[test]
    fn time_between_sessions_and_behind_a_closed_one_is_a_gap() {
        let gaps = |all: &[Interval]| gaps(all, &Twice::default());
        let closed = gaps(&[interval(1, Some(5)), interval(8, Some(9))]);
        assert_eq!(closed.len(), 2);
        assert_eq!((closed[0].to, closed[1].to), (Some(time(8_000_000_000)), None));
        assert_eq!(gaps(&[interval(1, Some(5)), interval(8, None)]).len(), 1);
    }

    #[test]
    fn the_window_shown_begins_at_the_edge() {
        let ns = |s: u64| s * 1_000_000_000;
        let all = [interval(1, Some(5)), interval(8, Some(20)), interval(30, None)];
        let left = behind(&all, (ns(10), 10));
        assert_eq!(left, [interval(10, Some(20)), interval(30, None)]);
        let shown = window(&left, (ns(40), 40), &Twice::default()).unwrap();
        assert_eq!((shown.from, shown.from_seq), (time(ns(10)), None));
        assert_eq!(behind(&all, (0, 0)), all);
    }

    fn standing(intervals: &[Interval], proved: Option<Duration>) -> Standing {
        let session = proved.map(|age| OpenSession {
            id: 1,
            from: 1,
            confirmed: 2,
            confirmed_ns: 3_000_000_000,
            confirmed_at: Instant::now() - age,
        });
        let intervals = intervals.to_vec();
        Standing { stopped: None, session, intervals, twice: Twice::default() }
    }

    #[test]
    fn without_protection_the_rpo_grows_from_the_last_recovery_point() {
        let now_ns = 20_000_000_000;
        let closed = standing(&[interval(1, Some(5))], None);
        assert_eq!(rpo_ms(GuestState::Gap, &closed, now_ns, 7), Some(15_000));
        let open = standing(&[interval(1, None)], Some(Duration::ZERO));
        assert_eq!(rpo_ms(GuestState::Protected, &open, now_ns, 7), Some(7));
        assert_eq!(rpo_ms(GuestState::Gap, &open, now_ns, 7), Some(17_000));
        assert_eq!(rpo_ms(GuestState::InitialSync, &standing(&[], None), now_ns, 7), None);
    }

    #[test]
    fn a_guest_is_never_called_protected_when_it_is_not_whatever_its_task_shows() {
        let gate = Arc::new(Gate::default());
        let face = Face::new("vm");
        face.shown().gate = Some(Arc::clone(&gate));
        face.show(GuestState::Protected, None);
        let state = |standing: &Standing| seen(&face.shown(), standing);
        let sound = standing(&[interval(1, None)], Some(Duration::ZERO));
        assert_eq!(state(&sound), (GuestState::Protected, None));
        let why = |reason: &str| (GuestState::Gap, Some(reason.to_owned()));
        assert_eq!(state(&standing(&[interval(1, Some(5))], None)), why("why"));
        assert_eq!(state(&Standing { session: None, ..sound.clone() }).0, GuestState::Gap);
        let stopped = Standing { stopped: Some("no space".into()), ..sound.clone() };
        assert_eq!(state(&stopped), why("no space"));
        let stale = standing(&[interval(1, None)], Some(2 * PROOF_AGE_MAX));
        assert_eq!(state(&stale), why("last found level 120 s ago"));
        gate.arm();
        gate.trip();
        assert_eq!(state(&sound).0, GuestState::Gap);
        // A sync whose journal stopped, or whose mirror was lost behind its proof, is none.
        face.show(GuestState::Resync, None);
        assert_eq!(state(&sound).0, GuestState::Gap);
        face.shown().gate = None;
        assert_eq!(state(&stopped), why("no space"));
        let between = Standing { session: None, ..sound.clone() };
        assert_eq!(state(&between), (GuestState::Resync, None));
    }
}
