//! The changed-block maps (QEMU's dirty bitmaps) of ours on a disk, and which of them to trust.
//!
//! A map is trusted only when it is the one that the journal noted last: an image that was put
//! back from a copy, or an overlay thrown away, brings an older one with it, as sound and as
//! recording as any. Names are random, so that none is ever met twice.
//!
//! Nor does a map tell of what lies below the disk's own image, or of an end that was cut off and came
//! back: the chain has to be what it was ([`super::chain`]), and the disk's end marked still.

use super::chain;
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
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
    pub(super) fn of(disk: &Disk, names: &Names, noted: Option<&str>, seen: Seen) -> Self {
        let ours: Vec<&Bitmap> = disk.bitmaps.iter().filter(|b| is_map(names, &b.name)).collect();
        let sound = ours.iter().all(|b| !b.inconsistent);
        let trusted = ours
            .iter()
            .find(|b| sound && b.recording && Some(b.name.as_str()) == noted)
            .filter(|b| {
                seen.is_chain_as_it_was(names, &b.name) && seen.is_end_as_it_was(disk, names)
            })
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
    names.below_of(bitmap).is_some()
}

/// What a look at QEMU before told of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// The QEMU process was attached to before: it has had the disk open ever since.
    pub(super) same_process: bool,
    /// Our mirror is there: no disk changes its size under one.
    pub(super) job: bool,
}

impl Seen {
    /// Whether what lies below is what it was when the map was made. Maps of an older version tell nothing
    /// of it.
    fn is_chain_as_it_was(self, names: &Names, map: &str) -> bool {
        let then = names.below_of(map).unwrap_or_default();
        let is_untold = then.is_empty() || then == chain::UNKNOWN;
        match then == names.below() {
            true => then != chain::UNKNOWN || self.same_process,
            false => is_untold && self.same_process,
        }
    }

    fn is_end_as_it_was(self, disk: &Disk, names: &Names) -> bool {
        self.job || disk.has_end_mark(names) || planted::is("ends-are-not-marked")
    }
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

/// Many retired maps as one: each attach that comes to nothing leaves one more, and each costs QEMU memory.
pub(super) async fn merged(qemu: &Qemu, node: &str, retired: Vec<String>) -> Vec<String> {
    let Some((into, rest)) = retired.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return retired;
    };
    if planted::is("retired-maps-pile-up") {
        return retired;
    }
    let sources: Vec<&str> = rest.iter().map(String::as_str).collect();
    let merging = async {
        qemu.merge_bitmaps(node, into, &sources).await?;
        for name in &sources {
            qemu.remove_bitmap(node, name).await?;
        }
        afterimage_qmp::Result::Ok(())
    };
    match merging.await {
        Ok(()) => vec![into.clone()],
        Err(error) => {
            tracing::warn!(node, %error, "retired changed-block maps stay as many as they are");
            retired
        }
    }
}
