//! Merging one group of units, and giving up what it replaced.

use super::Keeper;
use super::sight::Thinned;
use crate::error::{Error, ErrorKind, Result};
use crate::format::cipher::Cipher;
use crate::merge::{self, AtFloor, Job, Outcome, Sight, Written, release};
use crate::pool::{Found, table};
use crate::window::victims::sort_by_cost;
use crate::window::{Group, Row, Stamp, victims};
use std::path::PathBuf;

impl Keeper {
    /// Groups worth merging, of the base and of thinned history, those that free most for what they
    /// copy first.
    pub(super) fn groups(&self, rows: &[Row], now: &Stamp) -> Vec<Group> {
        let mut groups = self.thinned_groups(rows, now);
        if let Some(floor) = self.floor() {
            let permille = self.actions.dead_permille;
            groups.extend(victims(rows, floor, permille, self.identity.unit_bytes));
        }
        sort_by_cost(&mut groups);
        groups
    }

    /// Merges the group that frees most for what it copies; `false`: none is worth it.
    pub(super) fn merge_one(&mut self) -> Result<bool> {
        if let Cipher::Locked = self.cipher {
            return Ok(false);
        }
        let rows = self.rows()?;
        let now = self.now();
        let floor = self.floor();
        let base = self.runs.base().filter(|b| Some(b.span().last_seq) == floor.map(|f| f.seq));
        let base = base.cloned();
        let is_base = |last: u64| floor.is_some_and(|f| last <= f.unit);
        let groups = self.groups(&rows, &now).into_iter();
        let mut ready = groups.filter(|g| !is_base(g.last) || base.is_some());
        let wanted = ready.find_map(|g| self.narrowed(g));
        let Some((first, last)) = wanted else { return Ok(false) };
        let mut sight: Box<dyn Sight + '_> = match (&base, floor) {
            (Some(base), Some(floor)) if is_base(last) => Box::new(AtFloor::new(floor.seq, base)),
            _ => Box::new(Thinned::new(self)),
        };
        let sources = self.sources(first, last)?;
        let journal = &self.setup.dir;
        let into = self.setup.ground.place(journal, self.identity.unit_bytes)?;
        let epochs = self.epochs();
        let memory_volumes = self.catalogue.facts.memory_volumes();
        let job = Job {
            storage: &self.setup.storage,
            group: self.identity.group,
            into: &into,
            edge: self.catalogue.edge(),
            floor: self.catalogue.floor(),
            kept: self.catalogue.kept().unwrap_or_default(),
            kept_memory: self.catalogue.kept_memory(),
            memory_volumes: &memory_volumes,
            epochs: &epochs,
            unit_bytes_max: self.identity.unit_bytes,
            salt: self.setup.clock.salt(),
            cipher: &self.cipher,
            now: Stamp::now(self.setup.clock.as_ref()),
            mount_id: self.setup.storage.mount_id(&into),
            pace: self.setup.pace.as_ref(),
        };
        let outcome = merge::merge(&job, sight.as_mut(), &sources);
        drop(sight);
        match outcome {
            Ok(Outcome::Written(written)) => self.replace(&written, &sources)?,
            Ok(Outcome::TooLarge) => {
                self.left_alone.insert((first, last), "what is left of it fits no unit".into());
            }
            Ok(Outcome::Stopped) => return Ok(false),
            Err(e) if self.lost_its_header(&e) => return Err(e),
            // Space, a device that is away: it may be better at the next try.
            Err(e @ Error::Io { .. }) if e.kind() != ErrorKind::NotRestorable => return Err(e),
            Err(e) => {
                let what = format!("units {first} to {last} are not merged: {e}");
                tracing::error!(journal = %self.setup.dir.display(), what, "merging");
                self.left_alone.insert((first, last), e.to_string());
                self.note_damage(what);
            }
        }
        Ok(true)
    }

    /// The group, or its first half if all of it proved too much, and so on; `None`: nothing of it is
    /// to be merged.
    fn narrowed(&self, group: Group) -> Option<(u64, u64)> {
        let (first, mut last) = (group.first, group.last);
        while self.left_alone.contains_key(&(first, last)) {
            let names = self.catalogue.units().iter().map(|u| u.name.numbers());
            let inside: Vec<_> = names.filter(|(a, b)| *a >= first && *b <= last).collect();
            let half = inside.len() / 2;
            last = inside.get(half.checked_sub(1)?)?.1;
        }
        // One merged file alone would become one of the same name.
        let merged = self
            .catalogue
            .units()
            .iter()
            .any(|u| u.merged.is_some() && u.name.numbers() == (first, last));
        (!merged).then_some((first, last))
    }

    fn sources(&self, first: u64, last: u64) -> Result<Vec<Found>> {
        let inside = self.catalogue.units().iter().filter(|u| {
            let (a, b) = u.name.numbers();
            a >= first && b <= last
        });
        inside.map(|u| self.found(u.name)).collect()
    }

    /// The merged unit is durable: the catalogue follows, then what it replaced is given up.
    fn replace(&mut self, written: &Written, sources: &[Found]) -> Result<()> {
        let (name, path) = (written.found.name, &written.found.path);
        let (storage, dir) = (&self.setup.storage, &self.setup.dir);
        table::note_made(storage, dir, path, (name, &written.header))?;
        let storage = self.setup.storage.as_ref();
        self.catalogue.replace(storage, &self.identity, &written.found)?;
        self.catalogue.set_live_bytes(written.found.name, written.header.unit_bytes);
        self.save()?;
        let files: Vec<PathBuf> = sources.iter().map(|s| s.path.clone()).collect();
        let ground = self.setup.ground.as_ref();
        release::release(&self.setup.storage, &self.setup.dir, ground, &files)?;
        let replaced: u64 = self.identity.unit_bytes.saturating_mul(sources.len() as u64);
        self.occupancy.merged_bytes += written.header.unit_bytes;
        self.occupancy.freed_bytes += replaced.saturating_sub(written.header.unit_bytes);
        tracing::debug!(unit = %written.found.name, of = sources.len(), "merged");
        Ok(())
    }
}
