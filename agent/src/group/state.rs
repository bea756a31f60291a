//! What a group knows of its journal, in memory: taken from the journal at each opening, then kept
//! up with every record that changes it.

use super::timeline::{Timeline, Twice};
use super::{LastSession, OpenSession, VolumeState, copy};
use afterimage_journal::history::Point;
use afterimage_journal::meta::{Config, ImageIdentity, Session};
use afterimage_journal::{History, Journal, Seq, VolumeId};
use afterimage_planted as planted;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;
use uuid::Uuid;

/// Records whose times are kept: each guest looks at one a second, and needs that of the last look.
const SEEN_MAX: usize = 1024;
/// Ids of sessions and copies that are left out where records are lost: more than those can have begun.
const LOST_IDS_MAX: u32 = 1 << 16;

/// See the module.
pub(super) struct State {
    pub(super) journal: Option<Journal>,
    pub(super) config: Config,
    pub(super) volumes: BTreeMap<VolumeId, VolumeState>,
    pub(super) sessions: BTreeMap<String, OpenSession>,
    pub(super) timelines: BTreeMap<String, Timeline>,
    pub(super) twice: Twice,
    pub(super) images: BTreeMap<String, Vec<ImageIdentity>>,
    pub(super) last_sessions: BTreeMap<String, LastSession>,
    pub(super) next_session: u32,
    pub(super) next_copy: u32,
    pub(super) next_checkpoint: u64,
    /// Guests whose volumes have to be compared whole.
    pub(super) damaged: BTreeSet<String>,
    /// Ranges of lost records that are known to a guest's task.
    pub(super) lost_seen: BTreeMap<String, u64>,
    /// Guests that were not level since answered records were cut off.
    pub(super) records_lost: BTreeSet<String>,
    pub(super) maps: BTreeMap<VolumeId, String>,
    pub(super) marked: Option<Instant>,
    /// Ends of sessions that a journal which had stopped could not take.
    pub(super) unwritten: Vec<Session>,
    /// Positions that were looked at last, with the times of their records.
    seen: VecDeque<Point>,
}

impl State {
    pub(super) fn empty(name: &str) -> Self {
        Self {
            journal: None,
            config: Config {
                group: Uuid::nil(),
                name: name.to_owned(),
                guests: Vec::new(),
                volumes: Vec::new(),
            },
            volumes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            timelines: BTreeMap::new(),
            twice: Twice::default(),
            images: BTreeMap::new(),
            last_sessions: BTreeMap::new(),
            next_session: 1,
            next_copy: 1,
            next_checkpoint: 1,
            damaged: BTreeSet::new(),
            lost_seen: BTreeMap::new(),
            records_lost: BTreeSet::new(),
            maps: BTreeMap::new(),
            marked: None,
            unwritten: Vec::new(),
            seen: VecDeque::new(),
        }
    }

    /// Notes the time of a record, for those who ask for it soon; gives it back.
    pub(super) fn seen(&mut self, point: Point) -> Point {
        if self.seen.len() >= SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(point);
        point
    }

    /// The time of a record that was looked at lately.
    pub(super) fn wall_ns_of(&self, seq: Seq) -> Option<u64> {
        let found = self.seen.iter().rev().find(|p| p.seq == seq && p.wall_ns > 0);
        found.map(|p| p.wall_ns)
    }

    /// Why the journal takes no records, if so.
    pub(super) fn stopped(&self) -> Option<String> {
        match &self.journal {
            Some(journal) => journal.stopped(),
            None => Some("the journal is not open".into()),
        }
    }

    /// Every guest that has ever been level is level.
    pub(super) fn all_level(&self) -> bool {
        let known = self.config.guests.iter().filter(|g| self.timelines.contains_key(&g.name));
        let mut any = false;
        for guest in known {
            if !self.sessions.contains_key(&guest.name) {
                return false;
            }
            any = true;
        }
        any
    }

    pub(super) fn take_history(&mut self, history: &History) {
        self.config = history.config().cloned().unwrap_or_else(|| Config {
            group: history.identity.group,
            ..Self::empty(&history.identity.name).config
        });
        self.sessions.clear();
        let is_damaged = history.damage.iter().any(|d| d.to.is_none());
        for guest in self.config.guests.iter().map(|g| g.name.clone()) {
            if is_damaged {
                self.damaged.insert(guest.clone());
            }
            let sessions = history.sessions.iter().filter(|s| s.guest == guest);
            let level_since = sessions.map(|s| s.from).max().unwrap_or(0);
            let is_lost = history.loss.is_some() && !planted::is("loss-at-opening-unheard");
            if is_lost || history.torn || history.cut_at > level_since {
                self.records_lost.insert(guest);
            }
        }
        self.maps = history.maps.clone();
        // What is lost may have begun some, of which the rest is there.
        let behind = if is_damaged { LOST_IDS_MAX } else { 1 };
        self.next_session = history.sessions.iter().map(|s| s.id).max().unwrap_or(0) + behind;
        self.next_copy = history.copies.keys().max().copied().unwrap_or(0) + behind;
        self.next_checkpoint = history.last_checkpoint_id + 1;
        self.timelines = Timeline::of(history);
        self.twice = Twice::of(history);
        self.images.clear();
        self.last_sessions.clear();
        for session in &history.sessions {
            if session.images.is_empty() {
                self.images.remove(&session.guest);
            } else {
                self.images.insert(session.guest.clone(), session.images.clone());
            }
            let confirmed = history.confirmed.get(&session.id).copied().unwrap_or(session.from);
            self.last_sessions.insert(
                session.guest.clone(),
                LastSession {
                    id: session.id,
                    to: session.to.unwrap_or(history.head),
                    confirmed,
                    closed: session.closed_by_record,
                },
            );
        }
        self.volumes = copy::volume_states(history);
    }
}
