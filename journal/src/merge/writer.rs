//! The merged unit's bytes: laid out first, then written to a draft, then named.

use super::content::{Content, Kept};
use super::copier::Copier;
use super::output::Output;
use super::{Job, Outcome, Written, draft_path};
use crate::error::{Error, Result};
use crate::format::cipher::{Cipher, TAG_BYTES};
use crate::format::meta::{Merged, Meta};
use crate::format::record::{HEADER_BYTES, Kind, Record};
use crate::format::unit_header::{BLOCK_BYTES, FLAG_MERGED, UnitHeader};
use crate::format::{align_up, index};
use crate::planted;
use crate::pool::{FileName, Found};
use crate::storage::{Access, StoredFile};
use crate::unit::{META_IN_UNIT_BYTES_MAX, fits};
use std::path::Path;
use std::sync::Arc;

/// A merged unit as it will be.
pub(super) struct Plan {
    content: Content,
    header: UnitHeader,
    /// The body of its first record, encoded.
    replaces: Vec<u8>,
}

/// Lays it out; `None` when it would be larger than a unit may be.
pub(super) fn plan(job: &Job, name: FileName, content: Content) -> Result<Option<Plan>> {
    let replaces = Meta::Merged(content.merged.clone())
        .encode()
        .map_err(|e| Error::Invalid(format!("encode what {name} replaces: {e}")))?;
    let bytes = |of: fn(&Kept) -> u32| {
        let parts = content.kept.iter().map(|k| u64::from(of(k)));
        let end = std::iter::once(replaces.len() as u64)
            .chain(parts)
            .fold(BLOCK_BYTES, |at, payload| at + align_up(HEADER_BYTES + payload));
        unit_bytes(end, content.kept.len() as u64 + 1)
    };
    let is_large = bytes(Kept::payload_bytes) > job.unit_bytes_max;
    if is_large || replaces.len() as u64 > META_IN_UNIT_BYTES_MAX {
        return Ok(None);
    }
    // What isn't needed of it is given back when that is known.
    let unit_bytes = bytes(Kept::payload_bytes_max).min(job.unit_bytes_max);
    let header = UnitHeader {
        group: job.group.into_bytes(),
        salt: job.salt,
        number: name.numbers().0,
        unit_bytes,
        epoch: content.epoch,
        flags: FLAG_MERGED,
        after_seq: content.after_seq,
        prev_last_seq: content.prev_last_seq,
        wall_ns: job.now.wall_ns,
        mono_ns: job.now.mono_ns,
        boot_id: job.now.boot_id,
        mount_id: job.mount_id,
    };
    Ok(Some(Plan { content, header, replaces }))
}

/// Size of a unit of `count` records that end at byte `end`.
fn unit_bytes(end: u64, count: u64) -> u64 {
    let mut unit_bytes = end.next_multiple_of(BLOCK_BYTES);
    while !fits(unit_bytes, end, count) {
        let index_bytes = (count * index::ENTRY_BYTES).next_multiple_of(BLOCK_BYTES);
        unit_bytes += index_bytes.max(BLOCK_BYTES);
    }
    unit_bytes
}

/// What became of a draft.
pub(super) enum Draft {
    /// It is durable, with this header and these records.
    Whole(UnitHeader, Vec<(u64, Record)>),
    /// There is too much for a unit.
    TooLarge,
    /// It was told to stop.
    Stopped,
}

/// Writes it, and gives it its name when all of it is durable.
pub(super) fn write(job: &Job, name: FileName, plan: Plan) -> Result<Outcome> {
    let draft = draft_path(job.into, name);
    let left = match write_draft(job, &draft, &plan) {
        Ok(Draft::Whole(header, records)) => {
            let path = job.into.join(name.to_string());
            job.storage.rename(&draft, &path).map_err(|e| Error::io("rename to", &path, e))?;
            let synced = job.storage.sync_dir(job.into);
            synced.map_err(|e| Error::io("sync directory", job.into, e))?;
            let merged = plan.content.merged;
            let written = Written { found: Found { name, path }, header, merged, records };
            return Ok(Outcome::Written(Box::new(written)));
        }
        Ok(Draft::TooLarge) => Ok(Outcome::TooLarge),
        Ok(Draft::Stopped) => Ok(Outcome::Stopped),
        Err(e) => Err(e),
    };
    // One that stays counts for nothing.
    let _ = job.storage.remove(&draft);
    left
}

/// Writes it to a draft, durably.
pub(super) fn write_draft(job: &Job, draft: &Path, plan: &Plan) -> Result<Draft> {
    let opened = job.storage.open(draft, Access::Replace);
    let file = opened.map_err(|e| Error::io("create merged unit", draft, e))?;
    let mut header = plan.header;
    let allocated = file.allocate(0, header.unit_bytes);
    allocated.map_err(|e| Error::io("allocate merged unit", draft, e))?;
    let block = header.encode();
    let key = match job.cipher {
        Cipher::Open(key) => Some(key.unit(&header)),
        Cipher::Plain | Cipher::Locked => None,
    };
    let begin = (header.salt, block.as_slice());
    let mut out = Output::begin((job.storage.as_ref(), &file), draft, begin, key)?;
    out.put_new(first_record(&plan.content.merged, header.wall_ns), &plan.replaces)?;
    let count = plan.content.kept.len() as u64 + 1;
    let mut copier = Copier::new(&plan.content.sources, job.cipher)?;
    for item in &plan.content.kept {
        if !job.pace.spend(u64::from(item.payload_bytes_max()) + HEADER_BYTES) {
            return Ok(Draft::Stopped);
        }
        let (record, payload) = copier.copy(item)?;
        let tag_bytes = if item.record.encrypted { TAG_BYTES } else { 0 };
        let end = out.end() + HEADER_BYTES + payload.len() as u64 + u64::from(tag_bytes);
        let end = align_up(end);
        if !fits(header.unit_bytes, end, count) {
            return Ok(Draft::TooLarge);
        }
        out.put(record, payload)?;
    }
    let needed_bytes = unit_bytes(out.end(), count);
    let records = out.finish()?;
    if needed_bytes < header.unit_bytes {
        header.unit_bytes = needed_bytes;
        let cut =
            file.write_all_at(&header.encode(), 0).and_then(|()| file.set_bytes(header.unit_bytes));
        cut.map_err(|e| Error::io("cut merged unit", draft, e))?;
    }
    end(&file, draft, &header, &records)?;
    plan.content.sources.iter().map(|s| &s.file).chain([&file]).for_each(forget_pages);
    Ok(Draft::Whole(header, records))
}

/// Says what the unit replaces; it takes no number of the sequence.
fn first_record(merged: &Merged, wall_ns: u64) -> Record {
    Record {
        kind: Kind::Merged,
        flags: 0,
        volume: 0,
        addr: 0,
        len: 0,
        scope: 0,
        mono_ms: 0,
        wall_ns,
        payload_crc: 0,
        payload_bytes: 0,
        compression: 0,
        encrypted: false,
        // A number of 0 would be that of a reservation.
        seq: merged.last_seq.max(1),
    }
}

/// Index and footer; everything is durable when this returns. One sync is enough: the file has no
/// name yet.
fn end(
    file: &Arc<dyn StoredFile>,
    path: &Path,
    header: &UnitHeader,
    records: &[(u64, Record)],
) -> Result<()> {
    let (index_at, bytes) = index::area(header, records);
    let wrote = file.write_all_at(&bytes, index_at);
    wrote.map_err(|e| Error::io("write merged unit", path, e))?;
    let is_lost = planted::is("release-before-merge-is-durable");
    let synced = if is_lost { Ok(()) } else { file.sync_data() };
    synced.map_err(|e| Error::io("sync merged unit", path, e))
}

/// What was read and written once is of no use in the page cache, where the guests' data may be.
fn forget_pages(file: &Arc<dyn StoredFile>) {
    if let Some(file) = file.as_file() {
        // Advice: that it isn't taken harms nobody.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
}
