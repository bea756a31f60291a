//! Compressing what goes over a link: zstd level 1, only while it makes the link faster.
//!
//! ```text
//!  as they are:  the link's rate                 compressed:  min(zstd's rate, the link's rate / ratio)
//! ```
//!
//! The link's rate counts only while it is what is waited for. One op in [`PROBE_EVERY`] is compressed to
//! learn what it would bring. What arrives says how large it was, and never gets larger than that.

use crate::error::{Error, Result};
use afterimage_journal::wire::OP_BYTES_MAX;
use std::time::{Duration, Instant};

/// zstd's level.
const LEVEL: i32 = 1;
/// One op of so many is tried.
const PROBE_EVERY: u32 = 64;
/// Smaller ones are sent as they are, bytes.
const PACKED_BYTES_MIN: usize = 512;
/// How much faster it has to be, thousandths.
const GAIN_PERMILLE: u64 = 1100;
/// Shares of the newest measurement in the mean: one of so many.
const MEMORY: u64 = 4;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// The link's rate, bytes a second; `None`: the link isn't what is waited for.
    pub link_bytes_per_s: Option<u64>,
    /// zstd's rate, bytes of input a second.
    pub zstd_bytes_per_s: u64,
    /// Size of what zstd makes, thousandths of its input.
    pub ratio_permille: u64,
}

/// Whether compressing makes the link faster.
#[must_use]
pub fn pays(measured: &Measured) -> bool {
    let Some(link) = measured.link_bytes_per_s else { return false };
    let packed = link.saturating_mul(1000) / measured.ratio_permille.max(1);
    let compressed = packed.min(measured.zstd_bytes_per_s);
    compressed > link.saturating_mul(GAIN_PERMILLE) / 1000
}

/// Bytes as they are sent.
#[derive(Debug)]
pub struct Packed {
    /// Bytes before compression; 0: they are as they are.
    pub raw_bytes: u32,
    /// What is sent.
    pub data: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Packer {
    measured: Measured,
    ops: u32,
    sent: u64,
    kept: u64,
}

impl Default for Packer {
    fn default() -> Self {
        let measured =
            Measured { link_bytes_per_s: None, zstd_bytes_per_s: 200 << 20, ratio_permille: 1000 };
        Self { measured, ops: 0, sent: 0, kept: 0 }
    }
}

impl Packer {
    /// Tells how fast the link is; `None`: nothing waits for it.
    pub fn set_link(&mut self, bytes_per_s: Option<u64>) {
        self.measured.link_bytes_per_s = bytes_per_s;
    }

    /// Bytes that came, and that were sent for them.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.sent, self.kept)
    }

    /// The bytes as they are to be sent.
    pub fn pack(&mut self, bytes: Vec<u8>) -> Packed {
        self.sent += bytes.len() as u64;
        let packed = self.choose(bytes);
        self.kept += packed.data.len() as u64;
        packed
    }

    fn choose(&mut self, bytes: Vec<u8>) -> Packed {
        let plain = |data| Packed { raw_bytes: 0, data };
        if bytes.len() < PACKED_BYTES_MIN || bytes.len() > OP_BYTES_MAX {
            return plain(bytes);
        }
        let waits = self.measured.link_bytes_per_s.is_some();
        let probes = waits && self.ops.is_multiple_of(PROBE_EVERY);
        self.ops = self.ops.wrapping_add(u32::from(waits));
        if !probes && !pays(&self.measured) {
            return plain(bytes);
        }
        let begin = Instant::now();
        let Ok(data) = zstd::bulk::compress(&bytes, LEVEL) else { return plain(bytes) };
        self.learn(bytes.len() as u64, data.len() as u64, begin.elapsed());
        if data.len() >= bytes.len() {
            return plain(bytes);
        }
        // At most `OP_BYTES_MAX`.
        Packed { raw_bytes: bytes.len() as u32, data }
    }

    fn learn(&mut self, from: u64, to: u64, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let mean = |old: u64, new: u64| (old * (MEMORY - 1) + new) / MEMORY;
        let m = &mut self.measured;
        m.zstd_bytes_per_s = mean(m.zstd_bytes_per_s, from.saturating_mul(1_000_000) / us);
        m.ratio_permille = mean(m.ratio_permille, to * 1000 / from.max(1));
    }
}

/// The bytes of [`Packed`].
///
/// # Errors
/// They would be more than an op may have, or others than they say.
pub fn unpack(raw_bytes: u32, data: Vec<u8>) -> Result<Vec<u8>> {
    let raw_bytes = raw_bytes as usize;
    if raw_bytes > OP_BYTES_MAX || data.len() > OP_BYTES_MAX {
        return Err(Error::Broken(format!("an op with more than {OP_BYTES_MAX} bytes")));
    }
    if raw_bytes == 0 {
        return Ok(data);
    }
    let mut bytes = vec![0; raw_bytes];
    let got = zstd::bulk::decompress_to_buffer(&data, bytes.as_mut_slice());
    match got {
        Ok(got) if got == raw_bytes => Ok(bytes),
        _ => Err(Error::Broken("compressed bytes that don't unpack to what they say".into())),
    }
}
