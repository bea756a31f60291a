//! Every checksum of a journal, and the points that damage takes away.

use super::{DamageFound, RefusedRange, VerifyReport};
use crate::error::Result;
use crate::open::Recovery;
use crate::refusal;
use crate::restore::Progress;
use crate::runs::{self, Reader, Unread};
use crate::time::rfc3339;
use afterimage_journal::format::record::{self, Decoded, Record};
use afterimage_journal::history::{Entry, Unit};
use afterimage_journal::meta::Memory;
use afterimage_journal::unit::ScanEnd;
use afterimage_journal::{History, Seq};
use afterimage_planted as planted;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Most damaged records whose points are made out one by one. All that a record behind those
/// could be needed for is refused.
const JUDGED_RECORDS_MAX: usize = 1000;

/// Checks every checksum of a journal: payloads, headers against the index, footers.
///
/// # Errors
/// This process can't read any file (it has no file descriptors, no memory or no permission). What a device
/// fails to read is listed, apart from what is damaged.
pub fn verify(recovery: &Recovery, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport> {
    let started = Instant::now();
    recovery.history.check_key()?;
    let history = &recovery.history;
    let mut check = Check {
        history,
        damage: Vec::new(),
        unread: Vec::new(),
        judged: 0,
        checked: 0,
        claimed: Vec::new(),
    };
    check.units();
    let bytes = check.records(progress)?;
    check.known();
    let Check { damage, unread, checked: records, .. } = check;
    let refused = joined(history, &damage);
    Ok(VerifyReport {
        units: history.units.len() as u64,
        records,
        bytes,
        damage,
        unread,
        refused,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Most places that are listed because the host could not read them.
const UNREAD_MAX: usize = 1000;

struct Check<'h> {
    history: &'h History,
    damage: Vec<DamageFound>,
    unread: Vec<DamageFound>,
    judged: usize,
    /// Records that were read.
    checked: u64,
    /// Metadata records whose damage was found with its place: the history lists it without.
    claimed: Vec<Seq>,
}

impl Check<'_> {
    /// Footers, indexes, and stretches that hold no record.
    fn units(&mut self) {
        for unit in &self.history.units {
            let ScanEnd::Damaged { at } = &unit.end else { continue };
            for &at in at {
                self.damage.push(DamageFound {
                    unit: Some(unit.path.clone()),
                    at: Some(at),
                    seq: None,
                    what: "neither a record nor a sound index: what lies here was read from the \
                           records' own headers, or is missing below"
                        .into(),
                    refused: None,
                    memory: Vec::new(),
                });
            }
        }
    }

    /// Headers and payloads, in the order in which they lie, a unit at a time.
    fn records(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<u64> {
        let history = self.history;
        let reader = Reader::new(history);
        let total_bytes = history.units.iter().map(|u| u.payload_bytes).sum();
        let mut done_bytes = 0;
        progress(Progress { done_bytes, total_bytes });
        for (index, unit) in history.units.iter().enumerate() {
            let entries = match history.unit_entries(index as u32) {
                Ok(entries) => entries,
                Err(e) if e.is_host() && !planted::is("host-errors-are-damage") => {
                    self.unread(unit, None, e)?;
                    continue;
                }
                Err(e) => {
                    self.unreadable(unit, e.to_string());
                    continue;
                }
            };
            self.checked += entries.len() as u64;
            for (n, finding) in findings(&reader, &entries, &unit.header.salt) {
                match finding {
                    Finding::Header(what) => self.push(&entries[n], what.into(), None, Vec::new()),
                    Finding::Payload(Unread::Damaged(why)) => self.payload(&entries[n], why),
                    Finding::Payload(Unread::Host(e)) => self.unread(unit, Some(&entries[n]), e)?,
                }
            }
            done_bytes += entries.iter().map(|e| u64::from(e.record.payload_bytes)).sum::<u64>();
            progress(Progress { done_bytes, total_bytes });
        }
        Ok(done_bytes)
    }

    /// The host can't read a unit, or a record of it.
    fn unread(
        &mut self,
        unit: &Unit,
        entry: Option<&Entry>,
        error: afterimage_journal::Error,
    ) -> Result<()> {
        let is_released = !error.is_host();
        if error.is_starved() || is_released {
            return Err(error.into());
        }
        if self.unread.len() < UNREAD_MAX {
            self.unread.push(DamageFound {
                unit: Some(unit.path.clone()),
                at: entry.map(|e| e.at),
                seq: entry.map(|e| e.record.seq),
                what: error.to_string(),
                refused: None,
                memory: Vec::new(),
            });
        }
        Ok(())
    }

    /// A unit that was there when the journal was opened from its catalogue, and is not, or not
    /// the same: what it held is lost.
    fn unreadable(&mut self, unit: &Unit, what: String) {
        self.damage.push(DamageFound {
            unit: Some(unit.path.clone()),
            at: None,
            seq: None,
            what,
            refused: needed(self.history, unit.first_seq, None),
            memory: warm(self.history, unit.first_seq, None, |_| true),
        });
    }

    fn payload(&mut self, entry: &Entry, why: String) {
        let (history, record) = (self.history, &entry.record);
        if !record.kind.is_data() {
            self.claimed.push(record.seq);
            let known = history.damage.iter().find(|d| d.from == record.seq);
            let refused = known.map(|d| range(history, d.from, d.to));
            return self.push(entry, why, refused, Vec::new());
        }
        let is_judged = self.judged < JUDGED_RECORDS_MAX;
        self.judged += usize::from(is_judged);
        let until = if is_judged { refusal::needed_until(history, entry) } else { None };
        let is_disk = history.config().is_none_or(|c| c.disks().any(|v| v.id == record.volume));
        if is_disk {
            self.push(entry, why, needed(history, record.seq, until), Vec::new());
        } else {
            let reads = |m: &Memory| {
                m.needs().any(|(id, _, bytes)| id == record.volume && record.addr < bytes)
            };
            self.push(entry, why, None, warm(history, record.seq, until, reads));
        }
    }

    fn push(
        &mut self,
        entry: &Entry,
        what: String,
        refused: Option<RefusedRange>,
        memory: Vec<u64>,
    ) {
        self.damage.push(DamageFound {
            unit: self.history.units.get(entry.unit as usize).map(|u| u.path.clone()),
            at: Some(entry.at),
            seq: Some(entry.record.seq),
            what,
            refused,
            memory,
        });
    }

    /// What the loading of the journal had found already.
    fn known(&mut self) {
        for damage in self.history.damage.iter().filter(|d| !self.claimed.contains(&d.from)) {
            let found = DamageFound {
                unit: None,
                at: None,
                seq: None,
                what: damage.what.clone(),
                refused: Some(range(self.history, damage.from, damage.to)),
                memory: Vec::new(),
            };
            if damage.unread { self.unread.push(found) } else { self.damage.push(found) }
        }
    }
}

/// What is wrong with a record.
enum Finding {
    Header(&'static str),
    Payload(Unread),
}

/// Reads records of one unit, in the order in which they lie; what is wrong comes in that order, by
/// index.
fn findings(reader: &Reader<'_>, entries: &[Entry], salt: &[u8; 16]) -> Vec<(usize, Finding)> {
    let found = Mutex::new(Vec::new());
    let runs = runs::runs(entries).into_iter().map(|run| (run, ())).collect();
    reader.read(entries, runs, |(), n, stored| {
        let header = header(&entries[n], salt, stored.header).map(Finding::Header);
        let payload = stored.payload.err().map(Finding::Payload);
        for finding in header.into_iter().chain(payload) {
            found.lock().unwrap_or_else(PoisonError::into_inner).push((n, finding));
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(n, _)| *n);
    found
}

/// What is wrong with a record's header. A sealed unit's records are found by its index: their
/// headers are a second copy.
fn header(entry: &Entry, salt: &[u8; 16], header: &[u8]) -> Option<&'static str> {
    match record::decode(salt, entry.at, header.first_chunk()?) {
        Decoded::Record(found)
            if Record { mono_ms: entry.record.mono_ms, ..found } == entry.record =>
        {
            None
        }
        Decoded::Record(_) => Some("its header and the unit's index differ"),
        _ => Some("its header is damaged; the unit's index has what it said"),
    }
}

/// The recovery points from `from` up to before `until`, if there are any.
fn needed(history: &History, from: Seq, until: Option<Seq>) -> Option<RefusedRange> {
    let last = until.map_or(Seq::MAX, |u| u.saturating_sub(1));
    let hit = |r: &&afterimage_journal::meta::LevelRange| r.to >= from && r.from <= last;
    let first = history.level.iter().find(hit)?.from.max(from);
    let end = history.level.iter().rfind(hit)?.to.min(last);
    Some(range(history, first, until.map(|_| end + 1)))
}

/// The checkpoints that read their memory at a position from `from` up to before `until`, and of it
/// what `reads` asks for.
fn warm(
    history: &History,
    from: Seq,
    until: Option<Seq>,
    reads: impl Fn(&Memory) -> bool,
) -> Vec<u64> {
    let at = from..until.unwrap_or(Seq::MAX);
    let hit = history.checkpoints.iter().filter(|c| at.contains(&c.committed));
    let hit = hit.filter(|c| c.checkpoint.memory.as_ref().is_some_and(&reads));
    hit.map(|c| c.checkpoint.id).collect()
}

/// The range from `from` up to before `until`.
fn range(history: &History, from: Seq, until: Option<Seq>) -> RefusedRange {
    let to = until.map(|u| u.saturating_sub(1));
    RefusedRange {
        from,
        to,
        from_time: rfc3339(history.wall_ns(from)),
        to_time: to.map(|to| rfc3339(history.wall_ns(to))),
    }
}

fn joined(history: &History, damage: &[DamageFound]) -> Vec<RefusedRange> {
    let mut all: Vec<_> =
        damage.iter().filter_map(|d| d.refused.as_ref()).map(|r| (r.from, r.to)).collect();
    all.sort_unstable();
    let mut joined: Vec<(Seq, Option<Seq>)> = Vec::new();
    for (from, to) in all {
        match joined.last_mut() {
            Some((_, None)) => {}
            Some((_, Some(end))) if from <= *end + 1 => match to {
                Some(to) => *end = to.max(*end),
                None => joined.last_mut().map(|l| l.1 = None).unwrap_or_default(),
            },
            _ => joined.push((from, to)),
        }
    }
    joined.into_iter().map(|(from, to)| range(history, from, to.map(|t| t + 1))).collect()
}
