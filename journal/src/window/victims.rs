//! Which units are merged, and with which: of the base, or of a part of thinned history.
//!
//! What always holds: a group is contiguous in numbers, what is left of it fits one unit, and in what
//! started it at least the wanted share is dead, so that merging copies a bounded part of what it
//! frees: with a dead share `d`, `(1 - d) / d` bytes for each byte that comes free. A merged file is
//! never alone in its group: what comes of it would have the same name.

use super::{Edge, Row};

/// A merged file up to this part of a unit is joined with its neighbours, whatever is dead in it:
/// files stay few.
const TINY_DIVISOR: u64 = 8;
/// Most files of a group: bounds what is looked through for one merged unit.
const FILES_MAX: usize = 256;
/// So many tiny neighbours are joined though none has anything dead.
const TINY_RUN: usize = 8;

/// Units that become one merged unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// First number.
    pub first: u64,
    /// Last number.
    pub last: u64,
    /// Bytes that the merged unit will take.
    pub live_bytes: u64,
    /// Bytes of the files that it replaces.
    pub file_bytes: u64,
}

impl Group {
    /// Bytes that come free.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.file_bytes.saturating_sub(self.live_bytes)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Enough of it is dead.
    Dead,
    /// Small enough to go along.
    Tiny,
    /// Stays as it is.
    Stays,
}

/// What is left of a row that may be merged, bytes.
fn may_go(row: &Row, edge: Edge) -> Option<u64> {
    row.live_bytes.filter(|_| row.sound && row.last <= edge.unit)
}

fn role(row: &Row, edge: Edge, dead_permille: u64, unit_bytes: u64) -> Role {
    let Some(live) = may_go(row, edge).filter(|live| *live <= unit_bytes) else {
        return Role::Stays;
    };
    let dead = row.file_bytes.saturating_sub(live);
    let tiny = row.merged && row.file_bytes <= unit_bytes / TINY_DIVISOR;
    if dead > 0 && u128::from(dead) * 1000 >= u128::from(row.file_bytes) * u128::from(dead_permille)
    {
        Role::Dead
    } else if tiny {
        Role::Tiny
    } else {
        Role::Stays
    }
}

/// Groups worth merging of the rows up to an edge, those that free most for what they copy first. Rows
/// ascend by number.
#[must_use]
pub fn victims(rows: &[Row], edge: Edge, dead_permille: u64, unit_bytes: u64) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut open = Open::default();
    for row in rows {
        let role = role(row, edge, dead_permille, unit_bytes);
        // A merged file that can't stay alone takes its neighbour along.
        let wanted = role != Role::Stays || (open.is_lonely() && may_go(row, edge).is_some());
        let live = may_go(row, edge).unwrap_or(u64::MAX);
        if !wanted || !open.takes(row, live, unit_bytes) {
            groups.extend(open.take());
        }
        if role != Role::Stays || (wanted && open.group.is_some()) {
            open.add(row, role, live);
        }
    }
    groups.extend(open.take());
    sort_by_cost(&mut groups);
    groups
}

/// Those that free most for what they copy first.
pub fn sort_by_cost(groups: &mut [Group]) {
    // Integers only: a.copied / a.freed < b.copied / b.freed.
    groups.sort_by(|a, b| {
        let cost = |x: &Group, y: &Group| u128::from(x.live_bytes) * u128::from(y.freed_bytes());
        cost(a, b).cmp(&cost(b, a)).then(a.first.cmp(&b.first))
    });
}

/// Bytes that merging these groups gives back.
#[must_use]
pub fn reclaimable_bytes(groups: &[Group]) -> u64 {
    groups.iter().map(Group::freed_bytes).sum()
}

#[derive(Default)]
struct Open {
    group: Option<Group>,
    dead: usize,
    files: usize,
    /// The newest file is a merged one.
    merged: bool,
}

impl Open {
    fn is_lonely(&self) -> bool {
        self.files == 1 && self.merged && self.dead == 1
    }

    fn takes(&self, row: &Row, live: u64, unit_bytes: u64) -> bool {
        self.files < FILES_MAX
            && self.group.as_ref().is_none_or(|g| {
                g.last + 1 == row.first && g.live_bytes.saturating_add(live) <= unit_bytes
            })
    }

    fn add(&mut self, row: &Row, role: Role, live: u64) {
        let empty = Group { first: row.first, last: row.last, live_bytes: 0, file_bytes: 0 };
        let group = self.group.get_or_insert(empty);
        group.last = row.last;
        group.live_bytes += live;
        group.file_bytes += row.file_bytes;
        self.files += 1;
        self.merged = row.merged;
        self.dead += usize::from(role == Role::Dead);
    }

    fn take(&mut self) -> Option<Group> {
        let open = std::mem::take(self);
        let alone = open.files == 1 && open.merged;
        let worth = (open.dead > 0 && !alone) || open.files >= TINY_RUN;
        open.group.filter(|g| worth && g.freed_bytes() > 0)
    }
}
