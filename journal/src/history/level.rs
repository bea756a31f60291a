//! Restorable ranges, gaps and checkpoints, from sessions, damage and the window's edge.

use super::{CopyState, Damage, Gap, History, SessionState, memory, thinned};
use crate::meta::{Config, CopyCause, LevelRange};
use crate::{Seq, planted};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Restorable ranges, gaps and checkpoints from sessions and damage.
pub(super) fn finish(history: &mut History) {
    if !planted::is("sessions-outlive-what-is-lost") {
        end_sessions(history);
    }
    heal(history);
    let mut level = level_ranges(&history.configs, &history.sessions, history.head);
    for damage in &history.damage {
        level = level.into_iter().flat_map(|r| cut(r, damage)).collect();
    }
    history.level = windowed(history, &level);
    let ranges = std::mem::take(&mut history.level);
    let unproved = unproved(history);
    history.checkpoints.retain(|c| {
        let at = ranges.partition_point(|r| r.to < c.seq);
        let is_level = ranges.get(at).is_some_and(|r| r.from <= c.seq);
        is_level && !unproved.iter().any(|u| u.contains(&c.seq))
    });
    history.level = ranges;
    memory::judge(history);
    history.gaps = gaps(history);
    // Nothing that is left needs it.
    let floor = history.floor;
    history.damage.retain(|d| !(d.is_given_up && d.to.is_some_and(|to| to <= floor)));
}

/// Positions that no look has proved: those above the last confirmed one of each session that is open, or
/// that an epoch's end closed. When the guest is attached again, what was not proved is taken back. A session
/// of which no tick tells is one of a journal whose writer proves nothing.
fn unproved(history: &History) -> Vec<RangeInclusive<Seq>> {
    let open = history.sessions.iter().filter(|s| !s.closed_by_record);
    let open = open.filter(|_| !planted::is("list-unproved-checkpoints"));
    let behind = |s: &SessionState| Some(history.confirmed.get(&s.id)?.max(&s.from) + 1);
    open.filter_map(|s| Some(behind(s)?..=s.to.unwrap_or(Seq::MAX))).collect()
}

/// Damage ends where every guest was copied whole since: with the opening of a session whose disks were all
/// copied by copies that began behind the damage and left nothing out.
fn heal(history: &mut History) {
    let of =
        Copied { configs: &history.configs, sessions: &history.sessions, copies: &history.copies };
    for damage in history.damage.iter_mut().filter(|d| d.to.is_none()) {
        damage.to = of.whole_from(damage.last);
    }
}

/// What tells from where on a group's disks owe nothing to records up to some number.
pub(crate) struct Copied<'h> {
    pub configs: &'h [(Seq, Config)],
    pub sessions: &'h [SessionState],
    pub copies: &'h BTreeMap<u32, CopyState>,
}

impl Copied<'_> {
    /// The position from which on no disk of the newest configuration owes anything to the records up to
    /// `last`; `None`: there is none yet.
    pub fn whole_from(&self, last: Seq) -> Option<Seq> {
        let (_, config) = self.configs.last()?;
        let healed = config.guests.iter().map(|g| {
            let sessions = self.sessions.iter().filter(|s| s.guest == g.name);
            let whole = sessions.filter(|s| s.full && s.from > last).filter(|s| {
                let disks = config.disks().filter(|v| v.active && v.guest == g.name);
                disks.map(|v| v.id).all(|id| {
                    self.copies.values().any(|c| {
                        let ended = c.ended.is_some_and(|end| end <= s.from);
                        c.volume == id && c.as_of > last && ended && self.is_whole(c, last)
                    })
                })
            });
            whole.map(|s| s.from).min()
        });
        let all: Option<Vec<Seq>> = healed.collect();
        all.and_then(|v| v.into_iter().max())
    }

    /// Whether a volume owes nothing to the records up to `last` behind a copy that began after them. After a
    /// compare it does: that leaves out blocks that the journal had, and units that were there then may be
    /// lost since, or units that were away be back. A first copy leaves out zeroes, so that the volume has to
    /// be newer than the records.
    fn is_whole(&self, copy: &CopyState, last: Seq) -> bool {
        let is_new = || {
            let has = |c: &Config| c.volumes.iter().any(|v| v.id == copy.volume);
            let first = self.configs.iter().find(|(_, config)| has(config));
            first.is_some_and(|(at, _)| *at > last)
        };
        let is_whole = copy.whole && (copy.cause != CopyCause::Initial || is_new());
        is_whole || planted::is("a-compare-heals-damage")
    }
}

/// Where records are lost, the end of a session may be: what was open before them counts up to there, unless
/// its end is known.
fn end_sessions(history: &mut History) {
    for damage in history.damage.iter().filter(|d| d.to.is_none()) {
        let (from, last) = (damage.from, damage.last);
        let outlives = |s: &&mut SessionState| {
            s.from <= last && !s.closed_by_record && s.to.is_none_or(|to| to > last)
        };
        for session in history.sessions.iter_mut().filter(outlives) {
            session.to = Some(from.max(session.from).saturating_sub(1));
            session.reason.clone_from(&damage.what);
        }
    }
}

/// Ranges up to the head in which every guest that had a session before has one: a guest in its first
/// sync doesn't take the others' points away.
pub(crate) fn level_ranges(
    configs: &[(Seq, Config)],
    sessions: &[SessionState],
    head: Seq,
) -> Vec<LevelRange> {
    // A guest that leaves the group changes what has to be level, too.
    let mut edges: Vec<Seq> = configs.iter().map(|(seq, _)| *seq).collect();
    edges.push(head + 1);
    for s in sessions {
        edges.push(s.from);
        edges.push(s.to.map_or(head + 1, |to| to + 1));
    }
    edges.sort_unstable();
    edges.dedup();
    let mut ranges: Vec<LevelRange> = Vec::new();
    for pair in edges.windows(2) {
        let (from, to) = (pair[0], pair[1].saturating_sub(1).min(head));
        if from > to || !all_level(configs, sessions, from) {
            continue;
        }
        match ranges.last_mut() {
            // An end is an end, though the next session may follow at once.
            Some(last) if last.to + 1 == from && !ends_at(sessions, last.to) => last.to = to,
            _ => ranges.push(LevelRange { from, to }),
        }
    }
    ranges
}

/// What the window leaves: everything from its edge on, and before it what thinning kept.
fn windowed(history: &History, level: &[LevelRange]) -> Vec<LevelRange> {
    let edge = history.edge;
    let mut left: Vec<LevelRange> = thinned::ranges(history)
        .into_iter()
        .flat_map(|part| {
            let inside = level.partition_point(|r| r.to < part.from);
            let inside = level[inside..].iter().take_while(move |r| r.from <= part.to);
            inside.map(move |r| LevelRange { from: r.from.max(part.from), to: r.to.min(part.to) })
        })
        .collect();
    let inside = level.iter().filter(|r| r.to >= edge);
    left.extend(inside.map(|r| LevelRange { from: r.from.max(edge), to: r.to }));
    left
}

fn ends_at(sessions: &[SessionState], seq: Seq) -> bool {
    sessions.iter().any(|s| s.to == Some(seq))
}

fn all_level(configs: &[(Seq, Config)], sessions: &[SessionState], seq: Seq) -> bool {
    let behind = configs.partition_point(|(at, _)| *at <= seq);
    let active: Vec<&str> = configs[..behind]
        .last()
        .map(|(_, c)| c.guests.iter().map(|g| g.name.as_str()).collect())
        .unwrap_or_default();
    let mut any = false;
    for guest in active {
        let mut had = false;
        let mut has = false;
        for s in sessions.iter().filter(|s| s.guest == guest && s.from <= seq) {
            had = true;
            has |= s.to.is_none_or(|to| seq <= to);
        }
        if had && !has {
            return false;
        }
        any |= has;
    }
    any
}

fn cut(range: LevelRange, damage: &Damage) -> Vec<LevelRange> {
    let mut left = Vec::new();
    if range.from < damage.from {
        left.push(LevelRange { from: range.from, to: range.to.min(damage.from - 1) });
    }
    if let Some(to) = damage.to
        && range.to >= to
    {
        left.push(LevelRange { from: range.from.max(to), to: range.to });
    }
    left
}

fn gaps(history: &History) -> Vec<Gap> {
    let mut gaps = Vec::new();
    // Between positions that were kept, nothing is missing: it was merged away.
    let first = history.level.partition_point(|r| r.to < history.edge);
    let ranges = &history.level[first..];
    for (i, range) in ranges.iter().enumerate() {
        let next = ranges.get(i + 1);
        let open = history.sessions.iter().any(|s| s.to.is_none() && s.from <= range.to);
        if next.is_none() && open && range.to == history.head {
            break;
        }
        gaps.push(Gap {
            from: range.to,
            to: next.map(|r| r.from),
            from_ns: history.wall_ns(range.to),
            to_ns: next.map(|r| history.wall_ns(r.from)),
            reason: gap_reason(history, range.to),
        });
    }
    gaps
}

fn gap_reason(history: &History, seq: Seq) -> String {
    if let Some(damage) = history.damage.iter().find(|d| d.from == seq + 1) {
        return damage.what.clone();
    }
    let ended = history.sessions.iter().rev().find(|s| s.to == Some(seq));
    ended.map_or_else(|| "writes may have been missed".into(), |s| s.reason.clone())
}
