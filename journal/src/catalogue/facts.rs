//! What records say of a journal, taken in the order of their numbers: configurations, sessions,
//! copies, checkpoints, and the few facts of data that are needed without reading indexes.

use crate::format::record::{Kind, Record};
use crate::history::{CheckpointAt, CopyState, Entry, SessionState};
use crate::meta::{Config, Copy, CopyEvent, EpochStart, Meta, Session, SessionEvent};
use crate::planted;
use crate::{Seq, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The newest record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Last {
    pub(crate) seq: Seq,
    pub(crate) wall_ns: u64,
    /// The journal was closed by it.
    pub(crate) closes: bool,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) configs: Vec<(Seq, Config)>,
    pub(crate) sessions: Vec<SessionState>,
    pub(crate) copies: BTreeMap<u32, CopyState>,
    pub(crate) maps: BTreeMap<VolumeId, String>,
    /// All of them, restorable or not.
    pub(crate) checkpoints: Vec<CheckpointAt>,
    /// The highest position that a tick of each session confirmed.
    pub(crate) confirmed: BTreeMap<u32, Seq>,
    /// The volumes that have data.
    pub(crate) has_data: BTreeSet<VolumeId>,
    /// Highest number that a watermark record covers.
    pub(crate) watermark: Seq,
    pub(crate) last: Option<Last>,
    /// Highest number of a checkpoint.
    pub(crate) last_checkpoint_id: u64,
    /// Last valid position of each session that an epoch's end has closed.
    bounds: BTreeMap<u32, Seq>,
    /// Epochs whose start was taken in.
    epochs_done: usize,
}

/// Whether a record has a body that counts here.
pub(crate) fn has_body(kind: Kind) -> bool {
    matches!(kind, Kind::Config | Kind::Session | Kind::Copy | Kind::Mark)
}

impl Facts {
    /// Takes in a record, but for its body.
    pub(crate) fn note(&mut self, record: &Record) {
        match record.kind {
            Kind::Tick => {
                // A checkpoint with memory confirms its instant, which lies behind later looks.
                let confirmed = self.confirmed.entry(record.scope).or_default();
                *confirmed = record.addr.max(*confirmed);
            }
            Kind::Watermark => self.watermark = self.watermark.max(record.addr),
            kind if kind.is_data() => drop(self.has_data.insert(record.volume)),
            _ => {}
        }
        if self.last.is_none_or(|l| l.seq <= record.seq) {
            let closes = record.kind == Kind::Close;
            self.last = Some(Last { seq: record.seq, wall_ns: record.wall_ns, closes });
        }
    }

    /// Ends the sessions of epochs that were over before this number.
    pub(crate) fn reach(&mut self, epochs: &[EpochStart], seq: Seq) {
        while let Some(start) = epochs.get(self.epochs_done).filter(|e| e.first_seq <= seq) {
            self.epochs_done += 1;
            // One that an epoch had ended may end earlier: the next began while that one's start was away.
            let outlives = |s: &&mut SessionState| s.to.is_none_or(|to| to > start.prev_last_seq);
            for session in self.sessions.iter_mut().filter(outlives) {
                if planted::is("session-outlives-epoch") {
                    continue;
                }
                session.to = Some(start.prev_last_seq.max(session.from.saturating_sub(1)));
                self.bounds.insert(session.id, start.prev_last_seq);
                "the agent was not running".clone_into(&mut session.reason);
            }
        }
    }

    /// An epoch was inserted at this index of the list that [`Facts::reach`] is given: epochs behind it that
    /// have ended their sessions don't end them again.
    pub(crate) fn epoch_came_late(&mut self, index: usize) {
        self.epochs_done += usize::from(index < self.epochs_done);
    }

    /// Whether this very record was taken in already: what a site was sent of a merged unit may be in a unit
    /// of its own, too. Others may be taken in twice.
    fn knows(&self, seq: Seq, body: &Meta) -> bool {
        match body {
            Meta::Config(_) => self.configs.iter().rev().any(|(at, _)| *at == seq),
            Meta::Mark(_) => self.checkpoints.iter().rev().any(|c| c.committed == seq),
            Meta::Session(s) if s.event == SessionEvent::Open => {
                self.sessions.iter().rev().any(|s| s.from == seq)
            }
            Meta::Copy(c) if c.event == CopyEvent::Start => {
                self.copies.values().any(|c| c.as_of == seq)
            }
            Meta::Session(_) | Meta::Copy(_) | Meta::Merged(_) => false,
        }
    }

    /// Takes in a record's body.
    pub(crate) fn take(&mut self, entry: &Entry, body: Meta) {
        let seq = entry.record.seq;
        if self.knows(seq, &body) {
            return;
        }
        match body {
            Meta::Config(config) => {
                // One that repeats another may come a second time, behind newer ones.
                let behind = self.configs.partition_point(|(at, _)| *at <= seq);
                let before = behind.checked_sub(1).and_then(|i| self.configs.get(i));
                if before.is_none_or(|(_, last)| *last != config) {
                    self.configs.insert(behind, (seq, config));
                }
            }
            Meta::Mark(checkpoint) => {
                self.last_checkpoint_id = self.last_checkpoint_id.max(checkpoint.id);
                let at = checkpoint.position(seq);
                let instant = checkpoint.memory.as_ref().map(|m| m.wall_ns);
                let wall_ns = instant.unwrap_or(entry.record.wall_ns);
                // One with memory counts from an instant that lies before others' records.
                let behind = self.checkpoints.partition_point(|c| c.seq <= at);
                let memory_lost = None;
                let point =
                    CheckpointAt { seq: at, committed: seq, wall_ns, checkpoint, memory_lost };
                self.checkpoints.insert(behind, point);
            }
            Meta::Session(session) => self.take_session(seq, session),
            Meta::Copy(copy) => self.take_copy(seq, &copy),
            Meta::Merged(_) => {}
        }
    }

    /// The volumes of guests' memory: a configuration has all that there ever were.
    pub(crate) fn memory_volumes(&self) -> BTreeSet<VolumeId> {
        let newest = self.configs.last().map(|(_, config)| config);
        newest.into_iter().flat_map(Config::memory_volumes).map(|v| v.id).collect()
    }

    fn take_session(&mut self, seq: Seq, session: Session) {
        match session.event {
            SessionEvent::Open => self.sessions.push(SessionState {
                id: session.id,
                guest: session.guest,
                from: seq,
                to: None,
                reason: String::new(),
                images: Vec::new(),
                full: session.full,
                closed_by_record: false,
            }),
            SessionEvent::Maps => self.maps.extend(session.maps),
            SessionEvent::Close => {
                // A later close has better evidence; an epoch's end bounds them all.
                if let Some(open) = self.sessions.iter_mut().rev().find(|s| s.id == session.id) {
                    let upto = session.upto.unwrap_or(seq).min(seq);
                    let bound = self.bounds.get(&session.id).copied().unwrap_or(Seq::MAX);
                    open.to = Some(upto.min(bound));
                    open.reason = session.reason;
                    open.images = session.images;
                    open.closed_by_record = true;
                }
            }
        }
    }

    fn take_copy(&mut self, seq: Seq, copy: &Copy) {
        match copy.event {
            CopyEvent::Start => {
                let state = CopyState {
                    volume: copy.volume,
                    as_of: seq,
                    cause: copy.cause,
                    upto: 0,
                    ended: None,
                    whole: copy.whole,
                };
                self.copies.insert(copy.id, state);
            }
            CopyEvent::Progress | CopyEvent::End => {
                if let Some(state) = self.copies.get_mut(&copy.id) {
                    state.upto = state.upto.max(copy.upto);
                    if copy.event == CopyEvent::End {
                        state.ended = Some(seq);
                    }
                }
            }
        }
    }
}
