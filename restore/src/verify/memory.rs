//! The memory of a checkpoint, rebuilt twice: as the stream that a warm restore writes, read back as
//! QEMU reads it, and by the simple replay.

use super::VolumeDigest;
use super::at::{digest, scratch, scratch_error};
use super::replay::Replay;
use crate::error::Result;
use crate::open::Recovery;
use crate::warm::{DeviceState, StreamJob, WarmPoint, guest_plan};
use afterimage_journal::meta::{GuestMemory, Volume};
use afterimage_migration::{Block, Limits, Reader, Sink};
use std::convert::Infallible;
use std::io::{self, Write};
use std::path::Path;

/// Digests of a checkpoint's memory: each RAM block's, and the device state's.
///
/// # Errors
/// A record is damaged; the stream is none that QEMU would take; the temporary files can't be
/// written.
pub(super) fn verify(
    recovery: &Recovery,
    point: &WarmPoint,
    report: &mut dyn FnMut(u64),
) -> Result<Vec<VolumeDigest>> {
    let replay = Replay::new(&recovery.history, point.committed)?;
    let config = recovery.history.config_at(point.committed);
    let volumes = config.map_or(&[][..], |c| &c.volumes);
    let mut digests = Vec::new();
    let mut before = 0;
    for memory in &point.guests {
        let mut report = |bytes| report(before + bytes);
        for (id, bytes, restored) in streamed(recovery, point, memory, &mut report)? {
            let Some(volume) = volumes.iter().find(|v| v.id == id) else { continue };
            let replayed = replayed(&replay, volume, bytes)?;
            let (guest, node) = (memory.guest.clone(), volume.node.clone());
            digests.push(VolumeDigest { guest, node, bytes, restored, replayed });
        }
        before += memory.blocks.iter().map(|b| b.bytes).sum::<u64>();
    }
    Ok(digests)
}

/// Volume, bytes and digest of what a guest's stream holds.
fn streamed(
    recovery: &Recovery,
    point: &WarmPoint,
    memory: &GuestMemory,
    report: &mut dyn FnMut(u64),
) -> Result<Vec<(u16, u64, String)>> {
    let damaged = |why: String| recovery.memory_damaged(point, why);
    let (guest, _) = guest_plan(recovery, point, memory)?;
    let job = StreamJob { recovery, point, guest: &guest };
    let out = ReadBack { reader: Reader::new(Limits::default()), hashes: Hashes::default() };
    let (out, _) = job.write(out, None, Path::new("stream"), &mut |p| report(p.done_bytes))?;
    out.reader.finish().map_err(|e| damaged(e.to_string()))?;
    let state = DeviceState::as_stored(&recovery.history, memory, point.committed)
        .map_err(|e| damaged(e.to_string()))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&state.head).update(&state.tail);
    let mut all = Vec::new();
    for (block, hash) in memory.blocks.iter().zip(out.hashes.0) {
        all.push((block.volume, block.bytes, hash.finalize().to_hex().to_string()));
    }
    let bytes = (state.head.len() + state.tail.len()) as u64;
    all.push((memory.state, bytes, hasher.finalize().to_hex().to_string()));
    Ok(all)
}

fn replayed(replay: &Replay<'_>, volume: &Volume, bytes: u64) -> Result<String> {
    let file = scratch()?;
    file.set_len(volume.bytes).map_err(scratch_error)?;
    replay.run(volume, &file, &mut |_| {})?;
    digest(&file, bytes, 0, &mut |_| {})
}

/// Reads a stream while it is written.
struct ReadBack {
    reader: Reader,
    hashes: Hashes,
}

impl Write for ReadBack {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reader
            .feed(bytes, &mut self.hashes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Of each block, in the order of its addresses.
#[derive(Default)]
struct Hashes(Vec<blake3::Hasher>);

impl Sink for Hashes {
    type Error = Infallible;

    fn blocks(&mut self, blocks: &[Block]) -> std::result::Result<(), Infallible> {
        self.0 = blocks.iter().map(|_| blake3::Hasher::new()).collect();
        Ok(())
    }

    fn page(&mut self, block: usize, _: u64, data: &[u8]) -> std::result::Result<(), Infallible> {
        // A page that is missing, out of order or there twice makes another hash.
        self.0[block].update(data);
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64) -> std::result::Result<(), Infallible> {
        self.page(block, offset, &[0; afterimage_migration::PAGE_BYTES])
    }
}
