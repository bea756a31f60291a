//! The judge of restored disks: is what they hold an exact prefix of the numbered blocks that the
//! guest's `writer` wrote to them in turn (see `record`)?

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::record::{Place, SLOT_BYTES, SLOTS, decode, newest_at};

/// The `last` of the prefix that the raw images `disks`, in the guest's order, hold; 0 where
/// nothing was written. The error names the first places that are older, newer or other than that
/// prefix.
pub fn last(disks: &[&Path]) -> Result<u64, String> {
    last_with_slots(disks, SLOTS)
}

/// As [`last`], for a writer that was given `ai.slots`.
pub fn last_with_slots(disks: &[&Path], slots: u64) -> Result<u64, String> {
    const SHOWN_MAX: usize = 5;
    let mut found = Vec::new();
    for (disk, path) in disks.iter().enumerate() {
        let mut file = File::open(path).map_err(|e| format!("open {}: {e}", path.display()))?;
        let mut block = [0; SLOT_BYTES];
        for slot in 0..slots {
            let place = Place { disk: disk as u64, slot };
            file.read_exact(&mut block).map_err(|e| format!("read {}: {e}", path.display()))?;
            found.push((place, decode(&block, place)?));
        }
    }
    let last = found.iter().map(|(_, n)| *n).max().unwrap_or(0);
    let wrong: Vec<String> = found
        .iter()
        .filter_map(|&(place, n)| {
            let wanted = newest_at(place, last, disks.len() as u64, slots);
            (n != wanted).then(|| format!("{place:?} holds {n}, not {wanted}"))
        })
        .collect();
    if wrong.is_empty() {
        return Ok(last);
    }
    let shown = wrong[..wrong.len().min(SHOWN_MAX)].join("; ");
    Err(format!("no prefix (newest record {last}, {} places wrong): {shown}", wrong.len()))
}
