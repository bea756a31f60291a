//! Reading a journal's units and making sense of them.

use super::{CheckpointAt, CopyState, Damage, Entry, Gap, History, SessionState, Unit};
use crate::Seq;
use crate::error::{Error, Result};
use crate::format::record::Kind;
use crate::format::unit_header::FLAG_EPOCH_START;
use crate::layout::{self, Identity};
use crate::meta::{CopyEvent, LevelRange, META_BYTES_MAX, Meta, SessionEvent};
use crate::ring::Overlay;
use crate::storage::RealStorage;
use crate::unit::{ScanEnd, UnitContents, read_unit};
use std::collections::BTreeMap;
use std::path::Path;

/// Where an epoch begins, and the last valid number before it.
struct EpochStart {
    epoch: u64,
    first_seq: Seq,
    prev_last_seq: Seq,
}

/// Tries to read a journal that changes under the reader before what it sees counts as damage.
const LOADS_MAX: usize = 4;

/// A scan takes time: it may miss a record that was committed behind it, and then meet the
/// watermark that covers it, or list a unit that is gone when it is opened. So what looks damaged
/// is read again, judged by the watermark of the scan before: all that it covers was there when
/// the second scan began. What is really damaged looks the same twice.
pub(super) fn load(dir: &Path, identity: &Identity) -> Result<History> {
    let mut history = load_once(dir, identity, Seq::MAX)?;
    for _ in 1..LOADS_MAX {
        if history.damage.is_empty() {
            break;
        }
        let again = load_once(dir, identity, history.watermark)?;
        let same = again.damage == history.damage;
        history = again;
        if same {
            break;
        }
    }
    Ok(history)
}

fn load_once(dir: &Path, identity: &Identity, watermark_max: Seq) -> Result<History> {
    let mut history = History {
        dir: dir.to_owned(),
        identity: identity.clone(),
        units: Vec::new(),
        entries: Vec::new(),
        configs: Vec::new(),
        sessions: Vec::new(),
        copies: BTreeMap::new(),
        maps: BTreeMap::new(),
        checkpoints: Vec::new(),
        level: Vec::new(),
        gaps: Vec::new(),
        damage: Vec::new(),
        epoch: 0,
        head: 0,
        watermark: 0,
        seen_seq: 0,
        closed: false,
        torn: false,
        unit_number_max: 0,
        units_unreadable: 0,
        cut_at: 0,
        last_checkpoint_id: 0,
        ring: Overlay::open(&RealStorage::shared(), dir),
    };
    let distrust = layout::read_distrust(dir)?;
    let mut epochs = Vec::new();
    read_units(&mut history, &mut epochs)?;
    drop_void(&mut history, &epochs);
    if let Some(bound) = distrust {
        history.torn = history.entries.iter().any(|e| e.record.seq > bound);
        history.entries.retain(|e| e.record.seq <= bound);
    }
    find_watermark(&mut history, &epochs, watermark_max);
    judge_numbers(&mut history, &epochs);
    drop_torn_payloads(&mut history);
    let bounds = BTreeMap::new();
    Reader { history: &mut history, epochs: &epochs, bounds }.read_meta()?;
    history.cut_at = epochs
        .iter()
        .filter(|e| e.prev_last_seq > 0 && e.first_seq > e.prev_last_seq + 1)
        .map(|e| e.first_seq)
        .max()
        .unwrap_or(0);
    history.last_checkpoint_id =
        history.checkpoints.iter().map(|c| c.checkpoint.id).max().unwrap_or(0);
    finish(&mut history);
    Ok(history)
}

fn read_units(history: &mut History, epochs: &mut Vec<EpochStart>) -> Result<()> {
    let numbers = layout::units(&history.dir)?;
    let group = history.identity.group.into_bytes();
    history.unit_number_max = numbers.last().copied().unwrap_or(0);
    let mut expected = 1;
    for number in numbers {
        if number != expected {
            // What the missing ones held is not known: everything behind needs it.
            let what = format!("units {expected} to {} are missing", number - 1);
            history.units_unreadable += number - expected;
            let from = history.seen_seq + 1;
            history.damage.push(Damage { from, last: from, to: None, what });
        }
        expected = number + 1;
        let path = layout::unit_path(&history.dir, number);
        let unit = match read_unit(&path, group, number, history.ring.as_ref()) {
            Ok(unit) => unit,
            Err(e @ Error::NewerFormat { .. }) => return Err(e),
            Err(e) => {
                let from = history.seen_seq + 1;
                history.units_unreadable += 1;
                history.damage.push(Damage { from, last: from, to: None, what: e.to_string() });
                continue;
            }
        };
        add_unit(history, epochs, unit);
    }
    history.entries.sort_by_key(|e| e.record.seq);
    Ok(())
}

fn add_unit(history: &mut History, epochs: &mut Vec<EpochStart>, unit: UnitContents) {
    let index = history.units.len() as u32;
    let header = &unit.header;
    if header.flags & FLAG_EPOCH_START != 0 {
        epochs.push(EpochStart {
            epoch: header.epoch,
            first_seq: header.after_seq + 1,
            prev_last_seq: header.prev_last_seq,
        });
    }
    history.epoch = history.epoch.max(header.epoch);
    let newest = unit.records.iter().map(|(_, r)| r.seq).max().unwrap_or(0);
    history.seen_seq = history.seen_seq.max(newest).max(header.after_seq);
    history.entries.extend(unit.records.iter().map(|&(at, record)| Entry {
        unit: index,
        at,
        record,
    }));
    history.units.push(Unit {
        path: unit.path,
        file: unit.file,
        number: header.number,
        epoch: header.epoch,
        boot_id: header.boot_id,
        header: unit.header,
        end: unit.end,
    });
}

/// Drops the numbers above an epoch's end: they were torn off when the next epoch began.
fn drop_void(history: &mut History, epochs: &[EpochStart]) {
    let units = &history.units;
    history.entries.retain(|entry| {
        let epoch = units[entry.unit as usize].epoch;
        epochs.iter().all(|e| e.epoch <= epoch || entry.record.seq <= e.prev_last_seq)
    });
}

/// What is known to have been durable: by watermark records, and by the newest epoch's start,
/// before which everything found was synced.
fn find_watermark(history: &mut History, epochs: &[EpochStart], watermark_max: Seq) {
    let records = history.entries.iter().filter(|e| e.record.kind == Kind::Watermark);
    let recorded = records.map(|e| e.record.addr).max().unwrap_or(0);
    let started = epochs.last().map_or(0, |e| e.prev_last_seq);
    history.watermark = recorded.max(started).min(watermark_max);
}

/// Finds missing numbers: those at or below the watermark, or in an epoch that has ended, are
/// damage; the first one above it in the newest epoch is where the tail was torn.
fn judge_numbers(history: &mut History, epochs: &[EpochStart]) {
    let mut expected = 1;
    let mut missing_last = 0;
    let mut keep = history.entries.len();
    for (i, entry) in history.entries.iter().enumerate() {
        let seq = entry.record.seq;
        let start = epochs.iter().rev().find(|e| e.first_seq <= seq);
        // A new epoch may jump ahead: numbers of lost records are not used again.
        if let Some(start) = start
            && seq == start.first_seq
            && expected == start.prev_last_seq + 1
        {
            expected = seq;
        }
        if seq < expected {
            continue;
        }
        if seq > expected {
            let newest = history.units[entry.unit as usize].epoch == history.epoch
                && start.is_none_or(|s| s.epoch == history.epoch && expected >= s.first_seq);
            if newest && expected > history.watermark {
                keep = i;
                break;
            }
            let what = format!("records {expected} to {} are missing{}", seq - 1, holes(history));
            history.damage.push(Damage { from: expected, last: seq - 1, to: None, what });
            missing_last = seq - 1;
        }
        expected = seq + 1;
    }
    history.torn |= keep < history.entries.len();
    history.entries.truncate(keep);
    history.entries.dedup_by_key(|e| e.record.seq);
    history.head = history.entries.last().map_or(0, |e| e.record.seq);
    if history.head < history.watermark {
        let from = history.head + 1;
        let what = format!("records {from} to {} are missing at the end", history.watermark);
        let what = what + &holes(history);
        missing_last = history.watermark;
        history.damage.push(Damage { from, last: missing_last, to: None, what });
    }
    // What an unreadable unit held begins no later than the first number that is missing.
    for damage in &mut history.damage {
        damage.from = damage.from.min(history.head + 1);
        damage.last = damage.last.max(missing_last);
    }
    let last = history.entries.last();
    history.closed = last.is_some_and(|e| e.record.kind == Kind::Close);
}

/// After power loss a header may be there without its data: such a record above the watermark,
/// and everything behind it, is a torn tail. Sealed units were synced before their footer.
fn drop_torn_payloads(history: &mut History) {
    let first = history.entries.partition_point(|e| e.record.seq <= history.watermark);
    let mut payload = Vec::new();
    let torn = history.entries[first..].iter().position(|entry| {
        history.units[entry.unit as usize].end != ScanEnd::Sealed
            && entry.record.payload_bytes > 0
            && history.read_payload(entry, &mut payload).is_err()
    });
    if let Some(torn) = torn {
        history.torn = true;
        history.entries.truncate(first + torn);
        history.head = history.entries.last().map_or(0, |e| e.record.seq);
        history.closed = false;
    }
}

fn holes(history: &History) -> String {
    let damaged = history.units.iter().filter_map(|u| match &u.end {
        ScanEnd::Damaged { at } => Some(format!("{} at byte {}", u.path.display(), at.first()?)),
        _ => None,
    });
    let list: Vec<_> = damaged.collect();
    if list.is_empty() { String::new() } else { format!(" (unreadable: {})", list.join(", ")) }
}

struct Reader<'a> {
    history: &'a mut History,
    epochs: &'a [EpochStart],
    /// Last valid position of each session that an epoch's end has closed.
    bounds: BTreeMap<u32, Seq>,
}

impl Reader<'_> {
    fn read_meta(&mut self) -> Result<()> {
        let meta: Vec<Entry> = self
            .history
            .entries
            .iter()
            .filter(|e| {
                matches!(e.record.kind, Kind::Config | Kind::Session | Kind::Copy | Kind::Mark)
            })
            .copied()
            .collect();
        let mut payload = Vec::new();
        let mut epoch = self.epochs.iter().peekable();
        for entry in meta {
            while let Some(start) = epoch.next_if(|e| e.first_seq <= entry.record.seq) {
                self.end_sessions(start.prev_last_seq, "the agent was not running");
            }
            let seq = entry.record.seq;
            if entry.record.payload_bytes as usize > META_BYTES_MAX {
                self.lost(&entry, format!("record {seq} is too large for what it is"));
                continue;
            }
            if let Err(e) = self.history.read_payload(&entry, &mut payload) {
                self.lost(&entry, e.to_string());
                continue;
            }
            match Meta::decode(entry.record.kind, &payload) {
                Some(Ok(body)) => self.take(&entry, body),
                Some(Err(e)) => self.lost(&entry, format!("record {seq} can't be understood: {e}")),
                None => {}
            }
        }
        let rest: Vec<Seq> = epoch.map(|e| e.prev_last_seq).collect();
        for prev_last_seq in rest {
            self.end_sessions(prev_last_seq, "the agent was not running");
        }
        Ok(())
    }

    fn lost(&mut self, entry: &Entry, what: String) {
        let seq = entry.record.seq;
        // A checkpoint's name is lost, not what lies behind it.
        let to = (entry.record.kind == Kind::Mark).then_some(seq + 1);
        self.history.damage.push(Damage { from: seq, last: seq, to, what });
    }

    fn end_sessions(&mut self, last: Seq, reason: &str) {
        for session in self.history.sessions.iter_mut().filter(|s| s.to.is_none()) {
            session.to = Some(last.max(session.from.saturating_sub(1)));
            self.bounds.insert(session.id, last);
            session.reason = reason.to_owned();
        }
    }

    fn take(&mut self, entry: &Entry, body: Meta) {
        let seq = entry.record.seq;
        let history = &mut *self.history;
        match body {
            Meta::Config(config) => {
                if history.configs.last().is_none_or(|(_, last)| *last != config) {
                    history.configs.push((seq, config));
                }
            }
            Meta::Mark(checkpoint) => history.checkpoints.push(CheckpointAt {
                seq,
                wall_ns: entry.record.wall_ns,
                checkpoint,
            }),
            Meta::Session(session) => match session.event {
                SessionEvent::Open => history.sessions.push(SessionState {
                    id: session.id,
                    guest: session.guest,
                    from: seq,
                    to: None,
                    reason: String::new(),
                    images: Vec::new(),
                    full: session.full,
                    closed_by_record: false,
                }),
                SessionEvent::Maps => history.maps.extend(session.maps),
                SessionEvent::Close => {
                    // A later close has better evidence; an epoch's end bounds them all.
                    if let Some(open) =
                        history.sessions.iter_mut().rev().find(|s| s.id == session.id)
                    {
                        let upto = session.upto.unwrap_or(seq).min(seq);
                        let bound = self.bounds.get(&session.id).copied().unwrap_or(Seq::MAX);
                        open.to = Some(upto.min(bound));
                        open.reason = session.reason;
                        open.images = session.images;
                        open.closed_by_record = true;
                    }
                }
            },
            Meta::Copy(copy) => match copy.event {
                CopyEvent::Start => {
                    let state = CopyState {
                        volume: copy.volume,
                        as_of: seq,
                        cause: copy.cause,
                        upto: 0,
                        ended: None,
                    };
                    history.copies.insert(copy.id, state);
                }
                CopyEvent::Progress | CopyEvent::End => {
                    if let Some(state) = history.copies.get_mut(&copy.id) {
                        state.upto = state.upto.max(copy.upto);
                        if copy.event == CopyEvent::End {
                            state.ended = Some(seq);
                        }
                    }
                }
            },
        }
    }
}

/// Restorable ranges, gaps and checkpoints from sessions and damage.
fn finish(history: &mut History) {
    heal(history);
    let mut level = level_ranges(history);
    for damage in &history.damage {
        level = level.into_iter().flat_map(|r| cut(r, damage)).collect();
    }
    history.level = level;
    let ranges = std::mem::take(&mut history.level);
    history.checkpoints.retain(|c| ranges.iter().any(|r| r.from <= c.seq && c.seq <= r.to));
    history.level = ranges;
    history.gaps = gaps(history);
}

/// Damage ends where every guest was copied or compared whole since: with the opening of a session
/// whose copies all began behind the damage.
fn heal(history: &mut History) {
    let Some(config) = history.configs.last().map(|(_, c)| c) else { return };
    for damage in history.damage.iter_mut().filter(|d| d.to.is_none()) {
        let healed = config.guests.iter().map(|g| {
            let sessions = history.sessions.iter().filter(|s| s.guest == g.name);
            let whole = sessions.filter(|s| s.full && s.from > damage.last).filter(|s| {
                let disks = config.volumes.iter().filter(|v| v.active && v.guest == g.name);
                disks.map(|v| v.id).all(|id| {
                    history.copies.values().any(|c| {
                        let ended = c.ended.is_some_and(|end| end <= s.from);
                        c.volume == id && c.as_of > damage.last && ended
                    })
                })
            });
            whole.map(|s| s.from).min()
        });
        let all: Option<Vec<Seq>> = healed.collect();
        damage.to = all.and_then(|v| v.into_iter().max());
    }
}

/// Ranges in which every guest that had a session before has one: a guest in its first sync
/// doesn't take the others' points away.
fn level_ranges(history: &History) -> Vec<LevelRange> {
    let head = history.head;
    // A guest that leaves the group changes what has to be level, too.
    let mut edges: Vec<Seq> = history.configs.iter().map(|(seq, _)| *seq).collect();
    edges.push(head + 1);
    for s in &history.sessions {
        edges.push(s.from);
        edges.push(s.to.map_or(head + 1, |to| to + 1));
    }
    edges.sort_unstable();
    edges.dedup();
    let mut ranges: Vec<LevelRange> = Vec::new();
    for pair in edges.windows(2) {
        let (from, to) = (pair[0], pair[1].saturating_sub(1).min(head));
        if from > to || !all_level(history, from) {
            continue;
        }
        match ranges.last_mut() {
            // An end is an end, though the next session may follow at once.
            Some(last) if last.to + 1 == from && !ends_at(history, last.to) => last.to = to,
            _ => ranges.push(LevelRange { from, to }),
        }
    }
    ranges
}

fn ends_at(history: &History, seq: Seq) -> bool {
    history.sessions.iter().any(|s| s.to == Some(seq))
}

fn all_level(history: &History, seq: Seq) -> bool {
    let active: Vec<&str> = history
        .config_at(seq)
        .map(|c| c.guests.iter().map(|g| g.name.as_str()).collect())
        .unwrap_or_default();
    let mut any = false;
    for guest in active {
        let mut had = false;
        let mut has = false;
        for s in history.sessions.iter().filter(|s| s.guest == guest && s.from <= seq) {
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
    let ranges = &history.level;
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
