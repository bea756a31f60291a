//! The units as the window's policy sees them.

use super::Keeper;
use crate::Seq;
use crate::arrivals::Arrivals;
use crate::error::Result;
use crate::format::unit_header::UnitHeader;
use crate::history::Unit;
use crate::planted;
use crate::pool::FileName;
use crate::unit::read_header;
use crate::window::{Row, Stamp};

impl Keeper {
    /// The units' rows: what the catalogue has, then what is behind it, which only tells the time.
    pub(super) fn rows(&mut self) -> Result<Vec<Row>> {
        let last = self.catalogue.last_unit();
        for found in self.places.units()?.iter().filter(|f| f.name.numbers().0 > last) {
            let number = found.name.numbers().0;
            if !self.behind.contains_key(&number) {
                let group = self.identity.group.into_bytes();
                let header = read_header(self.setup.storage.as_ref(), found, group);
                // Damaged ones are the history's to judge.
                let Ok((_, header)) = header else { continue };
                self.behind.insert(number, header);
            }
        }
        // Two may be prepared, the one before is written to: what lies before those is full. So whoever
        // wasn't told of a seal finds it a little later.
        let newest = self.behind.keys().next_back().copied().unwrap_or(0);
        self.sealed = self.sealed.max(newest.saturating_sub(3));
        let settled = self.catalogue.settled_below();
        let border = self.catalogue.border.iter().map(|b| b.unit).min().unwrap_or(u64::MAX);
        let catalogued = self.catalogue.units().iter().map(|u| Row {
            first: u.name.numbers().0,
            last: u.name.numbers().1,
            merged: matches!(u.name, FileName::Merged(..)),
            timed: u.merged.as_ref().is_none_or(|m| m.made.is_some()),
            sound: u.last_seq < settled && u.name.numbers().1 < border,
            last_seq: u.last_seq,
            made: made_of(u).0,
            after_seq: made_of(u).1,
            file_bytes: u.header.unit_bytes,
            live_bytes: u.live_bytes,
        });
        let behind = self.behind.iter().filter(|(number, _)| **number > last);
        let behind = behind.map(|(number, header)| Row {
            first: *number,
            last: *number,
            merged: false,
            timed: true,
            sound: false,
            last_seq: u64::MAX,
            made: stamp_of(header),
            after_seq: header.after_seq,
            file_bytes: header.unit_bytes,
            live_bytes: None,
        });
        let mut rows: Vec<Row> = catalogued.chain(behind).collect();
        self.arrivals = match planted::is("sites-believe-the-senders-clock") {
            true => None,
            false => Arrivals::load(self.setup.storage.as_ref(), &self.setup.dir)?,
        };
        if let Some(arrivals) = &self.arrivals {
            arrivals.date(&mut rows);
        }
        Ok(rows)
    }

    /// This instant, as ages of rows are told by.
    pub(super) fn now(&self) -> Stamp {
        let clock = self.setup.clock.as_ref();
        self.arrivals.as_ref().map_or_else(|| Stamp::now(clock), |arrivals| arrivals.now(clock))
    }
}

/// When a unit was made, and the newest number that had been given out; of a merged one, those of the
/// last unit that it replaces.
fn made_of(unit: &Unit) -> (Stamp, Seq) {
    match unit.merged.as_ref().and_then(|m| m.made) {
        Some(made) => {
            let boot_id = made.boot_id.into_bytes();
            (Stamp { wall_ns: made.wall_ns, mono_ns: made.mono_ns, boot_id }, made.after_seq)
        }
        None => (stamp_of(&unit.header), unit.header.after_seq),
    }
}

fn stamp_of(header: &UnitHeader) -> Stamp {
    Stamp { wall_ns: header.wall_ns, mono_ns: header.mono_ns, boot_id: header.boot_id }
}
