//! Reading a journal: the catalogue, the units behind it, and a judgement of what they hold.

use super::level::finish;
use super::lost::{given_up, holes, known_lost};
use super::units::{Opened, is_void, void_above};
use super::unread::is_unread;
use super::{Damage, Entry, History, PAYLOAD_BYTES_MAX, PAYLOADS_MAX, Unit, cache::Cache};
use crate::Seq;
use crate::catalogue::{self, Catalogue, due, epoch_start, facts::has_body};
use crate::error::{Error, Result};
use crate::format::cipher::Cipher;
use crate::format::record::Kind;
use crate::format::unit_header::FLAG_EPOCH_START;
use crate::layout::{self, Identity};
use crate::meta::{EpochStart, META_BYTES_MAX, Meta};
use crate::planted;
use crate::pool::table::{Newest, UnitTable};
use crate::pool::tails;
use crate::pool::{FileName, Found, Places};
use crate::replica;
use crate::ring::Overlay;
use crate::storage::Storage;
use crate::unit::{UnitContents, read_merged, read_payload, read_unit};
use std::path::Path;
use std::sync::Arc;

/// Tries to read a journal that changes under the reader before what it sees counts as damage.
const LOADS_MAX: usize = 4;

/// A scan takes time: it may miss a record that was committed behind it, and then meet the
/// watermark that covers it, or list a unit that is gone when it is opened. So what looks damaged
/// is read again, judged by the watermark of the scan before: all that it covers was there when
/// the second scan began. What is really damaged looks the same twice.
pub(super) fn load(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    identity: &Identity,
    trusted: bool,
) -> Result<History> {
    let mut history = load_once(storage, dir, identity, trusted, Seq::MAX)?;
    for _ in 1..LOADS_MAX {
        if history.is_sound() {
            break;
        }
        let again = load_once(storage, dir, identity, trusted, history.watermark)?;
        let same = again.damage == history.damage;
        history = again;
        if same {
            break;
        }
    }
    Ok(history)
}

fn load_once(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    identity: &Identity,
    trusted: bool,
    watermark_max: Seq,
) -> Result<History> {
    let distrust = layout::read_distrust_in(&**storage, dir)?;
    let places = Places::of(storage, dir)?;
    // Before the files: each that it names was there by then.
    let table = places.table()?;
    let named = table.table().map_or_else(Newest::default, UnitTable::newest);
    let found = catalogue::units_of(&places)?;
    let catalogue = match trusted {
        true => Catalogue::fresh(storage, dir, identity, (&places, table.table()), &found)?,
        false => Catalogue::from_units(storage, identity, table.table(), &found)?,
    };
    // What sealed units hold was synced before their footers, whatever failed since.
    let settled = catalogue.settled_below().saturating_sub(1);
    let mut history = empty(storage, dir, identity);
    let site_epoch = replica::told_epoch(&**storage, dir)?;
    let mut tail = Tail::of(&mut history, catalogue, &found, site_epoch);
    tail.read_units(&found, &places, named)?;
    if let Some(table) = table.table() {
        tail.take_table(table);
    }
    tail.entries.retain(|e| {
        let epoch = tail.history.units[e.unit as usize].header.epoch;
        !is_void(&tail.catalogue.epochs, epoch, e.record.seq)
    });
    let bound = distrust.map_or(Seq::MAX, |d| d.max(settled).max(tail.history.edge));
    tail.history.torn = tail.entries.iter().any(|e| e.record.seq > bound);
    tail.entries.retain(|e| e.record.seq <= bound);
    tail.find_watermark(watermark_max);
    tail.judge_numbers();
    tail.drop_torn_payloads()?;
    tail.read_bodies()?;
    tail.conclude();
    finish(&mut history);
    Ok(history)
}

fn empty(storage: &Arc<dyn Storage>, dir: &Path, identity: &Identity) -> History {
    // Without its key, until that is given.
    let cipher = identity.encryption.as_ref().map_or(Cipher::Plain, |_| Cipher::Locked);
    History {
        cipher,
        dir: dir.to_owned(),
        identity: identity.clone(),
        storage: Arc::clone(storage),
        pin: None,
        opened: Opened::new(&[]),
        payloads: Cache::new(PAYLOADS_MAX, PAYLOAD_BYTES_MAX),
        units: Vec::new(),
        epochs: Vec::new(),
        configs: Vec::new(),
        sessions: Vec::new(),
        copies: std::collections::BTreeMap::new(),
        maps: std::collections::BTreeMap::new(),
        checkpoints: Vec::new(),
        confirmed: std::collections::BTreeMap::new(),
        has_data: std::collections::BTreeSet::new(),
        edge: 0,
        floor: 0,
        kept: None,
        kept_memory: Vec::new(),
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
        loss: None,
        last_checkpoint_id: 0,
    }
}

/// What the catalogue does not cover: judged record by record.
pub(super) struct Tail<'h> {
    pub(super) history: &'h mut History,
    pub(super) catalogue: Catalogue,
    /// By number, once the units are read.
    pub(super) entries: Vec<Entry>,
    /// Units up to this epoch were received, not written, here.
    pub(super) site_epoch: u64,
}

impl<'h> Tail<'h> {
    /// Takes over what the catalogue has, with the records of its border.
    fn of(
        history: &'h mut History,
        mut catalogue: Catalogue,
        found: &[Found],
        site_epoch: u64,
    ) -> Self {
        history.units = std::mem::take(&mut catalogue.units);
        history.unit_number_max = found.iter().map(|f| f.name.numbers().1).max().unwrap_or(0);
        history.edge = catalogue.edge;
        history.floor = catalogue.floor();
        history.kept = catalogue.kept.take();
        history.kept_memory = std::mem::take(&mut catalogue.kept_memory);
        for unit in &history.units {
            history.epoch = history.epoch.max(unit.header.epoch);
            let seen = unit.last_seq.max(unit.header.after_seq);
            history.seen_seq = history.seen_seq.max(seen);
        }
        history.seen_seq = history.seen_seq.max(catalogue.edge);
        let border = std::mem::take(&mut catalogue.border);
        let entries = border.into_iter().filter_map(|b| {
            let at = history.units.partition_point(|u| u.name.numbers().1 < b.unit);
            let unit = u32::try_from(at).ok()?;
            history.units.get(at)?;
            Some(Entry { unit, at: b.at, record: b.record })
        });
        let entries = entries.collect();
        Self { history, catalogue, entries, site_epoch }
    }

    fn read_units(&mut self, found: &[Found], places: &Places, named: Newest) -> Result<()> {
        let group = self.history.identity.group.into_bytes();
        let storage = Arc::clone(&self.history.storage);
        let mut expected = self.history.units.last().map_or(0, |u| u.name.numbers().1) + 1;
        let covered = expected;
        let ring = Overlay::open(&storage, &self.history.dir)?;
        for found in found.iter().filter(|f| f.name.numbers().1 >= covered) {
            let (first, last) = found.name.numbers();
            if first > expected {
                // What the missing ones held is not known: everything behind needs it.
                let hint = places.missing_text();
                let what = format!("units {expected} to {} are missing{hint}", first - 1);
                self.lose_units(first - expected, what);
            }
            let count = last + 1 - first.max(expected);
            expected = last + 1;
            match read_unit(&*storage, found, group, ring.as_ref()) {
                Ok(unit) => {
                    if let Err(e) = self.add_unit(found.name, &unit) {
                        self.unreadable(count, e)?;
                    }
                }
                Err(e @ Error::NewerFormat { .. }) => return Err(e),
                Err(e) => self.unreadable(count, e)?,
            }
        }
        let last = named.number;
        if last >= expected {
            let hint = places.missing_text();
            let what = format!("units {expected} to {last} are missing{hint}");
            self.lose_units(last + 1 - expected, what);
        }
        self.history.unit_number_max = self.history.unit_number_max.max(last);
        self.history.epoch = self.history.epoch.max(named.epoch);
        self.history.seen_seq = self.history.seen_seq.max(named.seq);
        // Where the newest units may be, nothing is missing by number.
        if !tails::unknown(&storage, &self.history.dir)?.is_empty() {
            let hint = places.missing_text();
            self.lose_units(0, format!("the newest units may be missing{hint}"));
        }
        self.entries.sort_by_key(|e| (e.record.seq, e.record.addr));
        if planted::is("order-by-wall-time") {
            self.entries.sort_by_key(|e| e.record.wall_ns);
        }
        Ok(())
    }

    /// Takes in what units that are not there would say: the epochs that begin in them, and the edge.
    fn take_table(&mut self, table: &UnitTable) {
        let epochs = &mut self.catalogue.epochs;
        for start in table.epochs.values() {
            let at = epochs.partition_point(|e| e.epoch < start.epoch);
            if epochs.get(at).is_none_or(|e| e.epoch != start.epoch) {
                epochs.insert(at, *start);
                self.catalogue.facts.epoch_came_late(at);
            }
        }
        let history = &mut *self.history;
        history.edge = history.edge.max(table.edge);
        history.floor = history.floor.max(table.floor);
    }

    pub(super) fn lose_units(&mut self, count: u64, what: String) {
        // What lies behind the units before them, whatever the edge is: they may hold what its base needs.
        let reach = |unit: &Unit| match unit.name {
            FileName::Unit(_) => unit.last_seq.max(unit.header.after_seq),
            FileName::Merged(..) => unit.last_seq,
        };
        let before = match planted::is("base-missing-from-the-edge-on") {
            true => self.history.seen_seq,
            false => self.history.units.iter().map(reach).max().unwrap_or(0),
        };
        let from = before + 1;
        self.history.units_unreadable += count;
        self.history.damage.push(Damage::of(from, from, what));
    }

    fn add_unit(&mut self, name: FileName, unit: &UnitContents) -> Result<()> {
        if unit.header.flags & FLAG_EPOCH_START != 0 && !planted::is("skip-at-each-opening") {
            // It began above all that may have been in units that can't be used.
            self.history.units_unreadable = 0;
        }
        let merged = match name {
            FileName::Merged(..) => Some(read_merged(&*unit.file, &unit.path, &unit.header)?),
            FileName::Unit(_) => None,
        };
        let history = &mut *self.history;
        let epochs = &mut self.catalogue.epochs;
        if let Some(merged) = &merged {
            epochs.extend_from_slice(&merged.epochs);
            history.edge = history.edge.max(merged.edge);
            history.floor = history.floor.max(merged.floor());
            history.seen_seq = history.seen_seq.max(merged.last_seq);
        }
        epochs.extend(epoch_start(&unit.header).filter(|s| epochs.last() != Some(s)));
        history.epoch = history.epoch.max(unit.header.epoch);
        let newest = unit.records.iter().map(|(_, r)| r.seq).max().unwrap_or(0);
        history.seen_seq = history.seen_seq.max(newest).max(unit.header.after_seq);
        let index = history.units.len() as u32;
        let records = unit.records.iter().filter(|(_, r)| r.kind != Kind::Merged);
        self.entries.extend(records.map(|&(at, record)| Entry { unit: index, at, record }));
        history.units.push(Unit::of(name, unit, merged));
        Ok(())
    }

    pub(super) fn epochs(&self) -> &[EpochStart] {
        &self.catalogue.epochs
    }

    /// Finds missing numbers: those at or below the watermark, or in an epoch that has ended, are
    /// damage; the first one above it in the newest epoch is where the tail was torn. Numbers at
    /// or below the edge are not judged: most of them may have been merged away.
    fn judge_numbers(&mut self) {
        let edge = self.history.edge;
        let mut expected = self.catalogue.next.max(1);
        let mut missing_last = 0;
        let mut keep = self.entries.len();
        for (i, entry) in self.entries.iter().enumerate() {
            let seq = entry.record.seq;
            if seq <= edge {
                continue;
            }
            expected = due(&self.catalogue.epochs, expected.max(edge + 1), seq);
            expected = known_lost(&self.history.units, expected).min(seq.max(expected));
            if seq < expected {
                continue;
            }
            if let Some(first) = self.newest_epoch_missed(expected, seq) {
                // What is missing before the newest epoch is damage; what is missing in it may be torn off.
                let history = &mut *self.history;
                let what =
                    format!("records {expected} to {} are missing{}", first - 1, holes(history));
                let (from, last) = (expected, first - 1);
                history.damage.push(Damage::of(from, last, what));
                missing_last = first - 1;
                expected = first;
            }
            if seq > expected {
                let start = self.catalogue.epochs.iter().rev().find(|e| e.first_seq <= seq);
                let history = &mut *self.history;
                let newest = history.units[entry.unit as usize].header.epoch == history.epoch
                    && start.is_none_or(|s| s.epoch == history.epoch && expected >= s.first_seq);
                let is_tail = expected > history.watermark || planted::is("rot-taken-for-tail");
                if newest && is_tail {
                    keep = i;
                    break;
                }
                let holes = holes(history);
                let what = format!("records {expected} to {} are missing{holes}", seq - 1);
                let (from, last) = (expected, seq - 1);
                history.damage.push(Damage::of(from, last, what));
                missing_last = seq - 1;
            }
            expected = seq + 1;
        }
        self.history.torn |= keep < self.entries.len();
        self.entries.truncate(keep);
        self.find_head();
        let history = &mut *self.history;
        if history.head < history.watermark {
            let from = history.head + 1;
            let what = format!("records {from} to {} are missing at the end", history.watermark);
            let what = what + &holes(history);
            missing_last = history.watermark;
            let last = missing_last;
            history.damage.push(Damage::of(from, last, what));
        }
        // What an unreadable unit held begins no later than the first number that is missing.
        for damage in &mut history.damage {
            damage.from = damage.from.min(history.head + 1);
            damage.last = damage.last.max(missing_last);
            if damage.from <= history.edge && damage.to.is_none() {
                // Numbers up to the edge are not judged: which of them are lost is not known.
                damage.last = damage.last.max(history.edge);
            }
        }
        history.damage.extend(given_up(&history.units));
    }

    /// The first number of the newest epoch, when that and numbers before it are missing before `seq`.
    fn newest_epoch_missed(&self, expected: Seq, seq: Seq) -> Option<Seq> {
        let start = self.catalogue.epochs.iter().rev().find(|e| e.first_seq <= seq)?;
        let missed = start.epoch == self.history.epoch && expected < start.first_seq;
        (missed && start.first_seq < seq).then_some(start.first_seq)
    }

    pub(super) fn find_head(&mut self) {
        let settled = self.catalogue.facts.last;
        let (seq, closes) = match self.entries.last() {
            Some(entry) if settled.is_none_or(|s| s.seq < entry.record.seq) => {
                (entry.record.seq, entry.record.kind == Kind::Close)
            }
            _ => settled.map_or((0, false), |l| (l.seq, l.closes)),
        };
        self.history.head = seq.max(self.history.edge);
        // What a newer epoch lost altogether came behind the close.
        let head = self.history.head;
        let any = planted::is("close-of-an-older-epoch");
        self.history.closed =
            closes && (any || self.epochs().last().is_none_or(|e| e.first_seq <= head));
    }

    pub(super) fn payload(&self, entry: &Entry) -> Result<Vec<u8>> {
        let row = self.history.units.get(entry.unit as usize);
        let row = row.ok_or_else(|| Error::Invalid("a record lies in no unit".into()))?;
        let file = super::units::open_file(&*self.history.storage, row)?;
        let mut payload = vec![0; entry.record.payload_bytes as usize];
        read_payload(&*file, &row.path, entry.at, &entry.record, &mut payload)?;
        Ok(payload)
    }

    fn read_bodies(&mut self) -> Result<()> {
        let entries = std::mem::take(&mut self.entries);
        for entry in &entries {
            let seq = entry.record.seq;
            if has_body(entry.record.kind) {
                self.catalogue.facts.reach(&self.catalogue.epochs, seq);
                match self.body(entry) {
                    Ok(Some(body)) => self.catalogue.facts.take(entry, body),
                    Ok(None) => {}
                    Err(e) if is_unread(&e) && e.is_starved() => return Err(e),
                    Err(e) => {
                        // A checkpoint's name is lost, not what lies behind it.
                        let to = (entry.record.kind == Kind::Mark).then_some(seq + 1);
                        let (what, unread) = (e.to_string(), is_unread(&e));
                        self.history.damage.push(Damage {
                            to,
                            unread,
                            ..Damage::of(seq, seq, what)
                        });
                    }
                }
            }
            self.catalogue.facts.note(&entry.record);
        }
        self.catalogue.facts.reach(&self.catalogue.epochs, Seq::MAX);
        Ok(())
    }

    fn body(&self, entry: &Entry) -> Result<Option<Meta>> {
        let seq = entry.record.seq;
        if entry.record.payload_bytes as usize > META_BYTES_MAX {
            return Err(Error::Invalid(format!("record {seq} is too large for what it is")));
        }
        let payload = self.payload(entry)?;
        Meta::decode(entry.record.kind, &payload)
            .transpose()
            .map_err(|e| Error::Invalid(format!("record {seq} can't be understood: {e}")))
    }

    /// Hands everything over to the history.
    fn conclude(self) {
        let Self { history, catalogue, .. } = self;
        let facts = catalogue.facts;
        let jumps = catalogue
            .epochs
            .iter()
            .filter(|e| e.prev_last_seq > 0 && e.first_seq > e.prev_last_seq + 1);
        history.cut_at = jumps.map(|e| e.first_seq).max().unwrap_or(0);
        history.configs = facts.configs;
        history.sessions = facts.sessions;
        history.copies = facts.copies;
        history.maps = facts.maps;
        history.checkpoints = facts.checkpoints;
        history.confirmed = facts.confirmed;
        history.has_data = facts.has_data;
        history.last_checkpoint_id = facts.last_checkpoint_id;
        for unit in &mut history.units {
            let valid = void_above(&catalogue.epochs, unit.header.epoch);
            unit.valid_to = valid.min(history.head);
        }
        history.epochs = catalogue.epochs;
        history.opened = Opened::new(&history.units);
    }
}
