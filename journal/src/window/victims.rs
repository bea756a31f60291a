//! Which units at or below the edge are merged, and with which.
//!
//! What always holds: a group is contiguous in numbers, what is left of it fits one unit, and at least
//! the wanted share of its bytes comes free, so that merging writes less than it frees by a bound:
//! with a dead share `d`, `(1 - d) / d` bytes are copied for each byte that comes free.

use super::{Edge, Row};

/// A merged file up to this part of a unit is joined with its neighbours, whatever is dead in it:
/// files stay few.
const TINY_DIVISOR: u64 = 8;
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

fn role(row: &Row, edge: Edge, dead_permille: u64, unit_bytes: u64) -> Role {
    let Some(live) = row.live_bytes.filter(|_| row.sound && row.last <= edge.unit) else {
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

/// Groups worth merging, those that free most for what they copy first. Rows ascend by number.
#[must_use]
pub fn victims(rows: &[Row], edge: Edge, dead_permille: u64, unit_bytes: u64) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut open = Open::default();
    for row in rows {
        let role = role(row, edge, dead_permille, unit_bytes);
        let live = row.live_bytes.unwrap_or(u64::MAX);
        let follows = open.group.as_ref().is_none_or(|g| g.last + 1 == row.first);
        let fits =
            open.group.as_ref().is_none_or(|g| g.live_bytes.saturating_add(live) <= unit_bytes);
        if role == Role::Stays || !follows || !fits {
            groups.extend(open.take());
        }
        if role != Role::Stays && live <= unit_bytes {
            open.add(row, role, live);
        }
    }
    groups.extend(open.take());
    // Integers only: a.copied / a.freed < b.copied / b.freed.
    groups.sort_by(|a, b| {
        let cost = |x: &Group, y: &Group| u128::from(x.live_bytes) * u128::from(y.freed_bytes());
        cost(a, b).cmp(&cost(b, a)).then(a.first.cmp(&b.first))
    });
    groups
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
}

impl Open {
    fn add(&mut self, row: &Row, role: Role, live: u64) {
        let empty = Group { first: row.first, last: row.last, live_bytes: 0, file_bytes: 0 };
        let group = self.group.get_or_insert(empty);
        group.last = row.last;
        group.live_bytes += live;
        group.file_bytes += row.file_bytes;
        self.files += 1;
        self.dead += usize::from(role == Role::Dead);
    }

    fn take(&mut self) -> Option<Group> {
        let open = std::mem::take(self);
        let worth = open.dead > 0 || open.files >= TINY_RUN;
        open.group.filter(|g| worth && g.freed_bytes() > 0)
    }
}
