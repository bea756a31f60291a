//! From streams that were taken whole to one record that commits them.
//!
//! What always holds: the mark is the last record, and is appended only when every guest's pages and
//! device state are; nothing but the mark makes a checkpoint of them (I-6). Memory never takes the room
//! that is kept free for captured writes.

use super::instant::Instant;
use super::taking::Taking;
use super::{Failure, Outcome, StopOnDrop};
use crate::group::{Group, Marked, MemoryPart};
use crate::memory::{STATE_BYTES_MAX, Stored, Table, Taken, store};
use afterimage_journal::meta::{CheckpointKind, GuestMemory, Memory, RamBlock, VolumeKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often it is looked whether captured writes have room beside the memory.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the record is to say.
pub(super) struct Mark {
    pub(super) kind: CheckpointKind,
    pub(super) tag: Option<String>,
    pub(super) instant: Instant,
}

/// One guest's part.
struct Part {
    guest: String,
    session: u32,
    pause_us: u64,
    table: Table,
    taken: Taken,
}

/// Stores all guests' memory and commits it, durably.
pub(super) async fn commit(
    group: &Arc<Group>,
    mark: Mark,
    takings: &mut [Taking],
) -> Outcome<(Marked, Stored)> {
    let mut parts = Vec::new();
    for taking in takings.iter_mut() {
        let (guest, pause_us) = (taking.name().to_owned(), taking.pause_us);
        let session = taking.lease.session;
        let Some((table, taken)) = taking.parts() else {
            return Err(Failure::other(format!("the memory of {guest} was not read")));
        };
        parts.push(Part { guest, session, pause_us, table, taken });
    }
    let stop = StopOnDrop(Arc::default());
    let (journal, flag) = (Arc::clone(group), Arc::clone(&stop.0));
    let mut work = tokio::task::spawn_blocking(move || {
        let done = store_all(&journal, mark, &mut parts, &flag);
        (done, parts)
    });
    let mut full = None;
    let ended = loop {
        match tokio::time::timeout(LOOK_EVERY, &mut work).await {
            Ok(ended) => break ended,
            Err(_) => full = full.or_else(|| group.check_memory_room().err()),
        }
        stop.0.store(full.is_some(), Ordering::Relaxed);
    };
    let (done, parts) = ended.map_err(Failure::other)?;
    for (taking, part) in takings.iter_mut().zip(parts) {
        taking.store_back(part.table);
    }
    match (done, full) {
        (Err(_), Some(full)) => Err(full.into()),
        (done, _) => done,
    }
}

fn store_all(
    group: &Group,
    mark: Mark,
    parts: &mut [Part],
    cancel: &AtomicBool,
) -> Outcome<(Marked, Stored)> {
    let mut all = Stored::default();
    let mut guests = Vec::new();
    for part in parts.iter_mut() {
        let (guest, stored) = store_one(group, part, cancel)?;
        all.bytes += stored.bytes;
        all.pages += stored.pages;
        all.zero_pages += stored.zero_pages;
        all.state_pages += stored.state_pages;
        all.records += stored.records;
        guests.push(guest);
    }
    let sessions: Vec<_> = parts.iter().map(|p| (p.guest.clone(), p.session)).collect();
    let Instant { seq, wall_ns } = mark.instant;
    let memory = Memory { instant: seq, wall_ns, guests };
    let marked = group.mark_memory(mark.kind, mark.tag, memory, &sessions)?;
    group.journal()?.sync()?;
    Ok((marked, all))
}

fn store_one(
    group: &Group,
    part: &mut Part,
    cancel: &AtomicBool,
) -> Outcome<(GuestMemory, Stored)> {
    let journal = group.journal()?;
    let (table, taken) = (&mut part.table, &part.taken);
    let block = |b: &crate::memory::Block| MemoryPart {
        kind: VolumeKind::Ram,
        id: b.id.clone(),
        bytes: b.bytes,
    };
    let mut wanted: Vec<_> = taken.blocks.iter().map(block).collect();
    let (kind, bytes) = (VolumeKind::DeviceState, STATE_BYTES_MAX);
    wanted.push(MemoryPart { kind, id: String::new(), bytes });
    let volumes = group.volumes_of_memory(&part.guest, &wanted)?;
    for (volume, wanted) in volumes.iter().zip(&wanted) {
        // One that was resized by an attempt that was cut off is known with its old size still.
        let is_other = table.bytes(volume.volume).is_some_and(|known| known != wanted.bytes);
        match volume.resized || is_other {
            true => table.resize(volume.volume, wanted.bytes)?,
            false => table.add(volume.volume, wanted.bytes)?,
        }
    }
    let named = taken.blocks.iter().zip(&volumes);
    let blocks: Vec<_> = named
        .map(|(b, v)| RamBlock { volume: v.volume, id: b.id.clone(), bytes: b.bytes })
        .collect();
    let Some(state) = volumes.last().map(|v| v.volume) else {
        return Err(Failure::other("no volume for the device state"));
    };
    let stored = store(&journal, table, taken, &blocks, state, cancel)?;
    let memory = GuestMemory {
        guest: part.guest.clone(),
        blocks,
        state,
        head_bytes: taken.head.len() as u64,
        tail_bytes: taken.tail.len() as u64,
        pause_us: part.pause_us,
    };
    Ok((memory, stored))
}
