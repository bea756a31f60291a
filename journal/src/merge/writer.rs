//! The merged unit's bytes: laid out first, then written to a draft, then named.

use super::content::{Content, Kept, read_kept};
use super::output::Output;
use super::{Job, Outcome, Written, draft_path};
use crate::error::{Error, Result};
use crate::format::meta::{Merged, Meta};
use crate::format::record::{HEADER_BYTES, Kind, Record};
use crate::format::unit_header::{BLOCK_BYTES, FLAG_MERGED, UnitHeader};
use crate::format::{align_up, checksum, index};
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
    let parts = content.kept.iter().map(|k| u64::from(k.payload_bytes()));
    let end = std::iter::once(replaces.len() as u64)
        .chain(parts)
        .fold(BLOCK_BYTES, |at, payload| at + align_up(HEADER_BYTES + payload));
    let count = content.kept.len() as u64 + 1;
    let mut unit_bytes = end.next_multiple_of(BLOCK_BYTES);
    while !fits(unit_bytes, end, count) {
        let index_bytes = (count * index::ENTRY_BYTES).next_multiple_of(BLOCK_BYTES);
        unit_bytes += index_bytes.max(BLOCK_BYTES);
    }
    if unit_bytes > job.unit_bytes_max || replaces.len() as u64 > META_IN_UNIT_BYTES_MAX {
        return Ok(None);
    }
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

/// Writes it, and gives it its name when all of it is durable.
pub(super) fn write(job: &Job, name: FileName, plan: Plan) -> Result<Outcome> {
    let draft = draft_path(job.into, name);
    let outcome = write_draft(job, &draft, &plan);
    match outcome {
        Ok(Some(records)) => {
            let path = job.into.join(name.to_string());
            job.storage.rename(&draft, &path).map_err(|e| Error::io("rename to", &path, e))?;
            let synced = job.storage.sync_dir(job.into);
            synced.map_err(|e| Error::io("sync directory", job.into, e))?;
            let Plan { content, header, .. } = plan;
            let found = Found { name, path };
            let written = Written { found, header, merged: content.merged, records };
            Ok(Outcome::Written(Box::new(written)))
        }
        Ok(None) | Err(_) => {
            // One that stays counts for nothing.
            let _ = job.storage.remove(&draft);
            outcome.map(|_| Outcome::Stopped)
        }
    }
}

/// The draft's records, or `None` when it was told to stop.
fn write_draft(job: &Job, draft: &Path, plan: &Plan) -> Result<Option<Vec<(u64, Record)>>> {
    let opened = job.storage.open(draft, Access::Replace);
    let file = opened.map_err(|e| Error::io("create merged unit", draft, e))?;
    let allocated = file.allocate(0, plan.header.unit_bytes);
    allocated.map_err(|e| Error::io("allocate merged unit", draft, e))?;
    let header = plan.header.encode();
    let begin = (plan.header.salt, header.as_slice());
    let mut out = Output::begin((job.storage.as_ref(), &file), draft, begin)?;
    out.put_new(first_record(&plan.content.merged, plan.header.wall_ns), &plan.replaces)?;
    let mut payload = Vec::new();
    let mut read: Option<(usize, u64)> = None;
    for item in &plan.content.kept {
        if !job.pace.spend(u64::from(item.payload_bytes()) + HEADER_BYTES) {
            return Ok(None);
        }
        if item.record.payload_bytes == 0 {
            payload.clear();
        } else if read.take() != Some((item.source, item.at)) {
            read_kept(&plan.content.sources, item, &mut payload)?;
        }
        if item.record.payload_bytes > 0 {
            read = Some((item.source, item.at));
        }
        let part = part_of(item, &payload)?;
        out.put(new_record(item, part), part)?;
    }
    let records = out.finish()?;
    end(&file, draft, &plan.header, &records)?;
    plan.content.sources.iter().map(|s| &s.file).chain([&file]).for_each(forget_pages);
    Ok(Some(records))
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
        // A number of 0 would be that of a reservation.
        seq: merged.last_seq.max(1),
    }
}

fn part_of<'p>(item: &Kept, payload: &'p [u8]) -> Result<&'p [u8]> {
    if item.record.kind != Kind::Write {
        return Ok(payload);
    }
    let from = item.skip as usize;
    payload.get(from..from + item.len as usize).ok_or_else(|| {
        Error::Invalid(format!("record {} is shorter than what it covers", item.record.seq))
    })
}

fn new_record(item: &Kept, payload: &[u8]) -> Record {
    let mut record = item.record;
    record.addr += item.skip;
    record.len = item.len;
    // Its unit's own time was another; what is known of it is the wall time.
    record.mono_ms = 0;
    // Of a whole one the checksum was just proved: it is not made anew.
    let whole = payload.len() == record.payload_bytes as usize;
    if !whole {
        record.payload_crc = checksum::crc32c(payload);
        record.payload_bytes = payload.len() as u32;
    }
    record
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
