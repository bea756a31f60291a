//! Where restored bytes go: [`raw`] and [`qcow2`] images, and the names that they get when whole.
//!
//! What always holds: a target starts empty, every byte is written at most once, in any order, and
//! zeroes are never written, so that they stay holes.

mod draft;
mod qcow2;
mod raw;
mod sink;

pub(crate) use draft::{Draft, publish};
pub(crate) use qcow2::Qcow2;
pub(crate) use raw::Raw;

use std::io;

/// An image being written.
pub(crate) trait Target: Send {
    /// Writes bytes at an address of the volume.
    fn write(&mut self, addr: u64, bytes: &[u8]) -> io::Result<()>;
    /// Has the disk begin with what was written, so that little is left for [`Target::finish`].
    fn begin_sync(&mut self);
    /// Completes the image. Durable when this returns.
    fn finish(&mut self) -> io::Result<()>;
    /// Bytes of data written so far.
    fn written_bytes(&self) -> u64;
}

/// Grain in which zeroes are looked for: the usual block of file systems.
const GRAIN_BYTES: usize = 4096;
static ZEROES: [u8; GRAIN_BYTES] = [0; GRAIN_BYTES];

/// Calls `take` with the address and bytes of each stretch of grains that aren't all zero.
fn for_each_nonzero(
    addr: u64,
    bytes: &[u8],
    mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut start = None;
    let mut at = 0;
    while at < bytes.len() {
        let in_grain = ((addr + at as u64) % GRAIN_BYTES as u64) as usize;
        let len = (GRAIN_BYTES - in_grain).min(bytes.len() - at);
        if bytes[at..at + len] == ZEROES[..len] {
            if let Some(from) = start.take() {
                take(addr + from as u64, &bytes[from..at])?;
            }
        } else {
            start.get_or_insert(at);
        }
        at += len;
    }
    match start {
        Some(from) => take(addr + from as u64, &bytes[from..]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grains_of_zeroes_are_left_out() {
        let mut bytes = vec![0u8; 5 * 4096];
        bytes[4096 - 512] = 1;
        bytes[3 * 4096 + 100] = 2;
        let mut seen = Vec::new();
        for_each_nonzero(512, &bytes, |addr, b| {
            seen.push((addr, b.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(4096, 4096), (3 * 4096, 4096)]);
    }
}
