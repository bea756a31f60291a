//! One point, rebuilt twice: by plan and apply as a restore does it, and by a simple replay. Where
//! memory of that instant is there, it is checked too.

use super::{VerifyAtReport, VolumeDigest, replay::Replay};
use crate::apply::apply;
use crate::batch::Order;
use crate::error::{Error, Result};
use crate::open::Recovery;
use crate::plan::{Format, Plan, Selection, VolumePlan, plan};
use crate::restore::Progress;
use crate::target::{Raw, Target};
use crate::time::rfc3339;
use afterimage_journal::history::Point;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

/// Bytes hashed at a time.
const HASH_BYTES: usize = 1 << 20;

/// Rebuilds a point twice, as a restore does and by a simple replay, and compares digests. Takes
/// room for two copies of the largest disk's data in the directory for temporary files
/// (`TMPDIR`).
///
/// # Errors
/// The point isn't restorable or needs a damaged record; the temporary files can't be written.
pub fn verify_at(
    recovery: &Recovery,
    point: Point,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyAtReport> {
    let started = Instant::now();
    recovery.history.check_key()?;
    let history = &recovery.history;
    let guest = recovery.guest.as_deref();
    let whole = plan(history, point, Selection { guest, disks: &[] }, Format::Raw)?;
    let replay = Replay::new(history, point.seq)?;
    let bytes = |volume: &VolumePlan| replay.bytes(volume.volume.id) + 3 * volume.volume.bytes;
    let warm = recovery.warm_at(point.seq);
    let of_memory = warm.iter().flat_map(|w| &w.guests).flat_map(|g| &g.blocks);
    let memory_bytes: u64 = of_memory.map(|b| b.bytes).sum();
    let total_bytes = whole.volumes.iter().map(bytes).sum::<u64>() + memory_bytes;
    let mut before_bytes = 0;
    let mut disks = Vec::new();
    for volume in &whole.volumes {
        let mut report = |bytes: u64| {
            progress(Progress { done_bytes: before_bytes + bytes, total_bytes });
        };
        let meta = &volume.volume;
        let restored = {
            let file = rebuild(recovery, &whole, volume, &mut report)?;
            digest(&file, meta.bytes, meta.bytes, &mut report)?
        };
        let base = 2 * meta.bytes;
        let replayed = {
            let file = scratch()?;
            file.set_len(meta.bytes).map_err(scratch_error)?;
            replay.run(meta, &file, &mut |b| report(base + b))?;
            digest(&file, meta.bytes, base + replay.bytes(meta.id), &mut report)?
        };
        before_bytes += bytes(volume);
        disks.push(VolumeDigest {
            guest: meta.guest.clone(),
            node: meta.node.clone(),
            bytes: meta.bytes,
            restored,
            replayed,
        });
    }
    let memory = match &warm {
        None => Vec::new(),
        Some(warm) => super::memory::verify(recovery, warm, &mut |bytes| {
            progress(Progress { done_bytes: before_bytes + bytes, total_bytes });
        })?,
    };
    Ok(VerifyAtReport {
        seq: point.seq,
        time: rfc3339(point.wall_ns),
        disks,
        memory,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn rebuild(
    recovery: &Recovery,
    whole: &Plan,
    volume: &VolumePlan,
    report: &mut dyn FnMut(u64),
) -> Result<File> {
    let history = &recovery.history;
    let plan = Plan { point: whole.point, volumes: vec![volume.clone()], skipped: Vec::new() };
    let file = scratch()?;
    let raw = file
        .try_clone()
        .and_then(|file| Raw::new(file, volume.volume.bytes))
        .map_err(scratch_error)?;
    let mut targets: Vec<Box<dyn Target>> = vec![Box::new(raw)];
    apply(history, (&plan, Order::of(history)), &mut targets, &mut |p| report(p.done_bytes))
        .map_err(|fault| {
            fault.into_error(history, recovery.guest.as_deref(), &plan, |_| std::env::temp_dir())
        })?;
    Ok(file)
}

pub(super) fn digest(
    file: &File,
    bytes: u64,
    base: u64,
    report: &mut dyn FnMut(u64),
) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH_BYTES];
    let mut at = 0;
    while at < bytes {
        let len = HASH_BYTES.min(usize::try_from(bytes - at).unwrap_or(HASH_BYTES));
        file.read_exact_at(&mut buffer[..len], at).map_err(scratch_error)?;
        hasher.update(&buffer[..len]);
        at += len as u64;
        report(base + at);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// A file without a name: it goes when it is closed, however this process ends.
pub(super) fn scratch() -> Result<File> {
    tempfile::tempfile().map_err(scratch_error)
}

pub(super) fn scratch_error(source: io::Error) -> Error {
    let path: PathBuf = std::env::temp_dir();
    Error::target("write temporary file in", &path, source)
}
