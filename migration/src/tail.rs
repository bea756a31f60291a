//! The tail: device sections, the end mark, the description of the devices.
//!
//! Device sections carry no length, so the only proof that a tail is whole is what it ends with:
//! the end mark, and a description in JSON whose length ends exactly where the tail does.
//! What always holds: it begins with a device section, or with the end mark where there is none.

use crate::wire::{DESCRIPTION, EOF, FULL};

/// Bytes before the description: end mark, type, length.
const FRAME_BYTES: usize = 6;

/// Whether a tail ends with the description of its devices.
pub fn is_whole(tail: &[u8]) -> bool {
    devices(tail).is_some()
}

/// The device sections of a tail; `None`: it isn't whole.
pub fn devices(tail: &[u8]) -> Option<&[u8]> {
    let last = tail.len().checked_sub(FRAME_BYTES + 2)?;
    if !matches!(tail, [FULL, ..] | [EOF, DESCRIPTION, ..]) {
        return None;
    }
    // JSON holds no byte below 0x20, so the last frame is found before a chance one.
    (0..=last).rev().find(|&at| is_description(&tail[at..])).map(|at| &tail[..at])
}

fn is_description(rest: &[u8]) -> bool {
    let [EOF, DESCRIPTION, a, b, c, d, json @ ..] = rest else { return false };
    let bytes = u32::from_be_bytes([*a, *b, *c, *d]);
    json.len() == bytes as usize && json.first() == Some(&b'{') && json.last() == Some(&b'}')
}
