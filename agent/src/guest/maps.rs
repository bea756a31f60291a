//! The changed-block maps (QEMU's dirty bitmaps) of ours on a disk, and which of them to trust.
//!
//! A map is trusted only when it is the one that the journal noted last: an image that was put
//! back from a copy, or an overlay thrown away, brings an older one with it, as sound and as
//! recording as any. Names are random, so that none is ever met twice.

use afterimage_qmp::qemu::{Bitmap, Disk, GRANULARITY_BYTES, Names, NewBitmap};

/// A disk's maps.
pub(super) struct Maps {
    /// All of ours.
    pub(super) all: Vec<String>,
    /// Those that record no more, of a life before: not proved spent.
    pub(super) retired: Vec<String>,
    /// The one that has recorded everything since the journal last knew the disk.
    pub(super) trusted: Option<String>,
}

impl Maps {
    /// What is on a disk; `noted` is the map that the journal names.
    pub(super) fn of(disk: &Disk, names: &Names, noted: Option<&str>) -> Self {
        let ours: Vec<&Bitmap> = disk.bitmaps.iter().filter(|b| is_map(names, &b.name)).collect();
        let sound = ours.iter().all(|b| !b.inconsistent);
        let trusted = ours
            .iter()
            .find(|b| sound && b.recording && Some(b.name.as_str()) == noted)
            .map(|b| b.name.clone());
        let name = |b: &&Bitmap| b.name.clone();
        Self {
            all: ours.iter().map(name).collect(),
            retired: ours.iter().filter(|b| !b.recording).map(name).collect(),
            trusted,
        }
    }
}

/// Whether this is the name of a map of ours.
pub(super) fn is_map(names: &Names, bitmap: &str) -> bool {
    let zero = names.bitmap(0);
    let number = zero.strip_suffix('0').and_then(|prefix| bitmap.strip_prefix(prefix));
    number.is_some_and(|n| n.parse::<u64>().is_ok())
}

/// Whether this may be the name of a map of ours, of any disk.
pub(super) fn is_any_map(name: &str) -> bool {
    name.contains("-map-")
}

/// A map that was never there before.
pub(super) fn fresh(disk: &Disk, names: &Names) -> NewBitmap {
    NewBitmap {
        node: disk.node.clone(),
        name: names.bitmap(uuid::Uuid::new_v4().as_u64_pair().0),
        persistent: disk.keeps_bitmaps(),
        granularity_bytes: GRANULARITY_BYTES,
    }
}
