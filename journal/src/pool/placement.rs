//! Where the next unit goes: pure, from numbers alone.
//!
//! What always holds: a member that is away, stale or draining gets nothing; no member goes over
//! its limit; a reserve of each file system stays free, so that small files can still be
//! replaced when it is full.

use crate::storage::Room;

/// What is kept free of each file system: this part of it, or two units, whichever is less.
const RESERVE_PART: u64 = 100;

/// A member that a unit may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Whether it takes new units: it is there, trusted, and isn't drained.
    pub takes_units: bool,
    /// Room of its file system.
    pub room: Room,
    /// What of ours lies on it, spares and held files too, in bytes.
    pub used_bytes: u64,
    /// What may.
    pub limit_bytes: Option<u64>,
    /// Spares of the wanted size: they are counted in `used_bytes` already.
    pub spares: u64,
}

/// Bytes that may still be added on a member, in units of this size, its spares apart.
#[must_use]
pub fn free_bytes(member: &Candidate, unit_bytes: u64) -> u64 {
    let Room { total_bytes, free_bytes } = member.room;
    let reserve_bytes = (total_bytes / RESERVE_PART).min(unit_bytes.saturating_mul(2));
    let on_disk = free_bytes.saturating_sub(reserve_bytes);
    let limit = member.limit_bytes.unwrap_or(u64::MAX);
    on_disk.min(limit.saturating_sub(member.used_bytes))
}

/// The member for the next unit: the one with the most room, spares of that size counted as room;
/// of several, the one with the least on it, then the first. `None`: there is no room.
#[must_use]
pub fn choose(members: &[Candidate], unit_bytes: u64) -> Option<usize> {
    let fitting = members.iter().enumerate().filter_map(|(i, member)| {
        let free = free_bytes(member, unit_bytes);
        let fits = member.spares > 0 || free >= unit_bytes;
        let room = free.saturating_add(member.spares.saturating_mul(unit_bytes));
        (member.takes_units && fits).then_some((i, room, member.used_bytes))
    });
    let best = fitting.max_by(|a, b| (a.1, b.2, b.0).cmp(&(b.1, a.2, a.0)));
    best.map(|(i, _, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: u64 = 1 << 20;

    fn member(free_bytes: u64) -> Candidate {
        Candidate {
            takes_units: true,
            room: Room { total_bytes: 1000 * UNIT, free_bytes },
            used_bytes: 0,
            limit_bytes: None,
            spares: 0,
        }
    }

    #[test]
    fn the_most_room_wins_then_the_least_load_then_the_first() {
        let (small, large) = (member(50 * UNIT), member(70 * UNIT));
        assert_eq!(choose(&[small, large], UNIT), Some(1));
        let limited = Candidate { limit_bytes: Some(30 * UNIT), ..large };
        assert_eq!(choose(&[small, limited], UNIT), Some(0));
        let loaded = Candidate { used_bytes: UNIT, ..large };
        assert_eq!(choose(&[loaded, large, large], UNIT), Some(1));
        assert_eq!(choose(&[], UNIT), None);
    }

    #[test]
    fn a_spare_is_room_where_there_is_none_else() {
        let full = member(0);
        assert_eq!(choose(&[full], UNIT), None);
        assert_eq!(choose(&[full, Candidate { spares: 1, ..full }], UNIT), Some(1));
    }

    #[test]
    fn the_reserve_is_small_on_small_file_systems() {
        let tiny =
            Candidate { room: Room { total_bytes: 100 * UNIT, free_bytes: 3 * UNIT }, ..member(0) };
        assert_eq!(free_bytes(&tiny, UNIT), 2 * UNIT);
        let huge = Candidate {
            room: Room { total_bytes: UNIT * UNIT, free_bytes: 3 * UNIT },
            ..member(0)
        };
        assert_eq!(free_bytes(&huge, UNIT), UNIT);
    }

    proptest! {
        /// Places units until nothing fits: no limit, reserve or state was overstepped, and
        /// nothing that fitted was refused.
        #[test]
        fn nothing_is_placed_where_it_may_not_lie(
            members in prop::collection::vec(
                (any::<bool>(), 0u64..40, prop::option::of(0u64..40), 0u64..20, 0u64..3),
                0..6,
            ),
        ) {
            let mut members: Vec<_> = members
                .into_iter()
                .map(|(takes_units, free, limit, used, spares)| Candidate {
                    takes_units,
                    room: Room { total_bytes: 100 * UNIT, free_bytes: free * UNIT },
                    used_bytes: used.max(spares) * UNIT,
                    limit_bytes: limit.map(|l| l * UNIT),
                    spares,
                })
                .collect();
            let before = members.clone();
            while let Some(i) = choose(&members, UNIT) {
                let chosen = &mut members[i];
                prop_assert!(chosen.takes_units);
                if chosen.spares > 0 {
                    chosen.spares -= 1;
                } else {
                    chosen.used_bytes += UNIT;
                    chosen.room.free_bytes -= UNIT;
                    prop_assert!(chosen.room.free_bytes >= UNIT, "the reserve");
                    prop_assert!(chosen.limit_bytes.is_none_or(|l| chosen.used_bytes <= l));
                }
            }
            for (member, before) in members.iter().zip(&before) {
                let taken = member.takes_units;
                prop_assert!(!taken || (member.spares == 0 && free_bytes(member, UNIT) < UNIT));
                prop_assert!(taken || member == before);
            }
        }
    }
}
