//! What a journal's writer does about its unit table before anything else: names what it finds, and clears
//! away what is not needed.
//!
//! What always holds: nothing is removed but files that the table contradicts, of this journal, in which no
//! record was ever placed; everything else that doesn't count stays, and is logged.

use super::name::FileName;
use super::places::{Places, Stray};
use super::table::{self, Loaded, Row, UnitTable};
use super::tails;
use crate::error::{Error, Result};
use crate::layout;
use crate::planted;
use crate::storage::Storage;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// A table is written anew when it has more than this many outdated rows, and more of them than others.
const OUTDATED_ROWS_MAX: usize = 1024;

/// Brings the unit table of the journal in `dir` up to what is found; the caller is its only writer. A
/// journal in one directory that never had a table needs none.
///
/// # Errors
/// Something can't be read, or the table can't be written.
pub(crate) fn settle(storage: &Arc<dyn Storage>, dir: &Path, group: Uuid) -> Result<()> {
    let places = Places::of(storage, dir)?;
    let group = group.into_bytes();
    let before = places.table()?;
    if let (Loaded::Absent, [_]) = (&before, places.dirs()) {
        return Ok(());
    }
    let is_absent = matches!(before, Loaded::Absent);
    let was_usable = matches!(&before, Loaded::Table(t) if t.group == group && !t.is_partial);
    let mut table = match before {
        Loaded::Table(table) if table.group == group => table,
        Loaded::Damaged(why) => {
            tracing::error!(journal = %dir.display(), why, "the unit table is made anew");
            UnitTable::new(group)
        }
        Loaded::Absent | Loaded::Table(_) => UnitTable::new(group),
    };
    let listing = places.listing()?;
    let mut changed = !was_usable;
    for found in &listing.found {
        let member = member_at(&places, &found.path);
        let row = table.rows.get(&found.name);
        // What lies in the home alone is found there, whatever the table says.
        let is_twice = listing.strays.iter().any(|s| s.name == found.name);
        let is_named = row.is_some_and(|row| row.member == member);
        if (is_named && !is_twice) || (row.is_none() && member == table::HOME && !is_twice) {
            continue;
        }
        let header = table::header_of(&**storage, &found.path);
        let header = header.map_err(|e| Error::io("read unit", &found.path, e))?;
        let Some(header) = header.filter(|h| h.group == group) else { continue };
        if row != Some(&Row::new(&header, member)) {
            let named = (found.name, &header);
            let changes = table::changes_of(&**storage, &found.path, named, member);
            changes.iter().for_each(|change| table.apply(change));
            changed = true;
        }
    }
    let mut known: BTreeSet<Uuid> = places.others().map(|(member, _)| member).collect();
    if is_absent && listing.found.is_empty() {
        // A journal that begins has nothing anywhere.
        known.extend(places.away());
    }
    changed |= !known.is_subset(&table.known);
    table.known.extend(known);
    let rows = table.rows.len();
    table.drop_merged();
    let outdated = table.rows_in_file.saturating_sub(table.rows.len());
    changed |= outdated > OUTDATED_ROWS_MAX && outdated > rows;
    if !was_usable {
        // What lies on these is not known: the numbers that they may hold are left out.
        for member in places.away().difference(&table.known) {
            tails::note(storage, dir, *member)?;
        }
    }
    if changed {
        table.is_partial = false;
        table.write(&**storage, dir)?;
        tails::forget_known(storage, dir, &table.known)?;
    }
    clear(storage, dir, &table, &listing.strays)
}

/// Removes what was never used; says what else is there.
fn clear(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    table: &UnitTable,
    strays: &[Stray],
) -> Result<()> {
    for stray in strays.iter().filter(|s| !s.is_copy) {
        let path = &stray.path;
        let header = table::header_of(&**storage, path).ok().flatten();
        let is_unused = header.is_some_and(|header| {
            let row = table.rows.get(&stray.name);
            let is_past = row.is_some_and(|r| r.salt != header.salt && header.epoch <= r.epoch);
            let is_unit = matches!(stray.name, FileName::Unit(_));
            header.group == table.group
                && is_past
                && is_unit
                && !super::places::has_records(&**storage, path, &header)
        });
        if !is_unused {
            tracing::warn!(file = %path.display(), "set aside: it {}", stray.why);
            continue;
        }
        storage.remove(path).map_err(|e| Error::io("remove unused unit", path, e))?;
        let parent = path.parent().unwrap_or(dir);
        storage.sync_dir(parent).map_err(|e| Error::io("sync directory", parent, e))?;
        tracing::debug!(file = %path.display(), "removed: it was never used");
    }
    Ok(())
}

fn member_at(places: &Places, path: &Path) -> Uuid {
    let dir = path.parent();
    let found = places.others().find(|(_, other)| Some(*other) == dir);
    found.map_or(table::HOME, |(member, _)| member)
}

/// Sees to it that a journal has a unit table, and that the table will name every unit on a member that is
/// about to get one; the journal is open for writing, and what lay there before has its rows.
///
/// # Errors
/// The table can't be written, or read.
pub(super) fn begin(storage: &Arc<dyn Storage>, journal: &Path, member: Uuid) -> Result<()> {
    if planted::is("no-table-before-a-unit") {
        return Ok(());
    }
    match table::load(&**storage, journal)? {
        Loaded::Table(table) if table.known.contains(&member) => Ok(()),
        Loaded::Table(table) if !table.is_partial => {
            let known = name_all(storage, journal, member, &table)?;
            table::append(&**storage, journal, &known)
        }
        Loaded::Absent => {
            let identity = layout::read_identity_in(&**storage, journal)?;
            let mut table = UnitTable::new(identity.group.into_bytes());
            let known = name_all(storage, journal, member, &table)?;
            known.iter().for_each(|change| table.apply(change));
            table.write(&**storage, journal)
        }
        Loaded::Table(_) | Loaded::Damaged(_) => Err(Error::Unusable {
            path: journal.join(table::NAME),
            why: "it is damaged: no unit is placed on another member until the journal is opened \
                  anew, which makes the table again"
                .into(),
        }),
    }
}

/// The rows that a member lacks, for a member that was away when the journal was opened, and the word
/// that it lacks none.
fn name_all(
    storage: &Arc<dyn Storage>,
    journal: &Path,
    member: Uuid,
    table: &UnitTable,
) -> Result<Vec<table::Change>> {
    let places = Places::of(storage, journal)?;
    let mut changes = Vec::new();
    if let Some((_, dir)) = places.others().find(|(uuid, _)| *uuid == member) {
        let names = super::survey::names(storage, dir).map_err(|e| Error::io("list", dir, e))?;
        let unnamed = names.iter().filter_map(|n| FileName::parse(n));
        for name in unnamed.filter(|name| !table.rows.contains_key(name)) {
            let path = dir.join(name.to_string());
            let header = table::header_of(&**storage, &path);
            let header = header.map_err(|e| Error::io("read unit", &path, e))?;
            if let Some(header) = header.filter(|h| h.group == table.group) {
                changes.extend(table::changes_of(&**storage, &path, (name, &header), member));
            }
        }
    }
    changes.push(table::Change::Known(member));
    Ok(changes)
}
