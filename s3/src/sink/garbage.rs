//! What is deleted, and when: dead objects after their grace, manifests below the floor, objects that
//! earlier openings left and nothing ever named.
//!
//! What always holds:
//! * deletes begin only behind a manifest that this opening committed: one that lost the journal gets no
//!   further than that;
//! * what nothing names is called dead by a manifest first, and then has its grace like all else;
//! * the floor rises to a milestone only, in a manifest, a grace after that was written, and not above
//!   what reading the newest state needs; then what lies below is deleted, but for first ones and milestones.

use super::live::{Live, wall_ns};
use super::store_error;
use super::uploads::Grave;
use crate::manifest::{MILESTONE, objects_of};
use afterimage_journal::wire::SinkError;
use std::collections::HashSet;

/// Deletions that a manifest sets going.
const DELETES_MAX: usize = 256;

/// What is being deleted.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    /// Handed to the threads, not told by a manifest yet.
    dying: HashSet<String>,
    /// Manifests that are being deleted: how many are left, and what is swept then.
    sweeping: Option<(usize, u64)>,
    looked_at: Option<Look>,
}

/// A walk over the objects of an earlier opening.
#[derive(Debug)]
struct Look {
    opening: (u64, u64),
    after: String,
    named: HashSet<[u8; 16]>,
}

impl Live {
    /// Whether something dead has had its grace.
    pub fn has_expired(&self) -> bool {
        let until = self.expired_until();
        self.state.dead.iter().any(|(k, since)| *since <= until && !self.garbage.dying.contains(k))
    }

    /// What died at or before this time has had its grace.
    fn expired_until(&self) -> u64 {
        let grace = u64::try_from(self.options.grace().as_nanos()).unwrap_or(u64::MAX);
        wall_ns().saturating_sub(grace)
    }

    /// Before a manifest: what was deleted is told, and the floor rises if it may.
    pub fn note_buried(&mut self) {
        for grave in self.uploads.buried() {
            match grave {
                Grave::Object(key) => {
                    self.state.dead.remove(&key);
                    self.garbage.dying.remove(&key);
                    self.change.dead.remove(&key);
                    self.change.buried.push(key);
                }
                Grave::Manifest(_) => {
                    let Some((left, _)) = &mut self.garbage.sweeping else { continue };
                    *left = left.saturating_sub(1);
                }
            }
        }
        if let Some((0, swept)) = self.garbage.sweeping {
            self.state.swept = swept;
            self.garbage.sweeping = None;
        }
        let until = self.expired_until();
        match self.state.next_floor {
            Some((floor, since)) if since <= until && floor <= self.state.base => {
                self.state.floor = floor;
                self.state.next_floor = None;
            }
            Some(_) => {}
            None => {
                let milestone = self.state.number / MILESTONE * MILESTONE;
                if milestone > self.state.floor {
                    self.state.next_floor = Some((milestone, wall_ns()));
                }
            }
        }
    }

    /// Behind a manifest that was committed a moment ago.
    pub fn collect(&mut self) -> Result<(), SinkError> {
        let until = self.expired_until();
        let room = DELETES_MAX.saturating_sub(self.garbage.dying.len());
        let dead = self.state.dead.iter().filter(|(_, since)| **since <= until);
        let fresh = dead.map(|(key, _)| key).filter(|key| !self.garbage.dying.contains(*key));
        let condemned: Vec<String> = fresh.take(room).cloned().collect();
        for key in condemned {
            self.garbage.dying.insert(key.clone());
            self.uploads.delete(format!("{}/{key}", self.root), Grave::Object(key));
        }
        self.sweep_manifests();
        self.look_for_unnamed()
    }

    fn sweep_manifests(&mut self) {
        if self.garbage.sweeping.is_some() || self.state.swept >= self.state.floor {
            return;
        }
        let from = self.state.swept.max(1);
        let to = self.state.floor.min(from + DELETES_MAX as u64);
        let stays = |n: &u64| n.is_multiple_of(MILESTONE) || self.state.firsts.contains(n);
        let condemned: Vec<u64> = (from..to).filter(|n| !stays(n)).collect();
        self.garbage.sweeping = Some((condemned.len(), to));
        for number in condemned {
            self.uploads.delete(self.manifest_key(number), Grave::Manifest(number));
        }
    }

    /// One page of what an earlier opening left; nothing of it that isn't named now ever will be.
    fn look_for_unnamed(&mut self) -> Result<(), SinkError> {
        if self.garbage.looked_at.is_none() {
            let Some(opening) = self.state.unswept.first().copied() else { return Ok(()) };
            let all = self.state.files.values().flat_map(|f| &f.segments);
            let named = all.filter(|s| s.writer == opening).map(|s| s.random).collect();
            self.garbage.looked_at = Some(Look { opening, after: String::new(), named });
        }
        let Some(look) = &mut self.garbage.looked_at else { return Ok(()) };
        let prefix = format!("{}/{}", self.root, objects_of(look.opening));
        let page = self.store.list(&prefix, &look.after, false).map_err(store_error)?;
        let now = wall_ns();
        for key in &page.keys {
            let Some(below) = key.strip_prefix(&format!("{}/", self.root)) else { continue };
            let random = below.rsplit_once('-').and_then(|(_, r)| u128::from_str_radix(r, 16).ok());
            let Some(random) = random else { continue };
            let is_named = look.named.contains(&random.to_be_bytes());
            if !is_named && !self.state.dead.contains_key(below) {
                self.state.dead.insert(below.to_owned(), now);
                self.change.dead.insert(below.to_owned(), now);
            }
        }
        match page.keys.last() {
            Some(last) if page.more => look.after.clone_from(last),
            _ => {
                let opening = look.opening;
                self.garbage.looked_at = None;
                self.state.unswept.remove(&opening);
                self.change.swept_openings.push(opening);
            }
        }
        Ok(())
    }
}
