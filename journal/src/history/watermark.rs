//! What is known to have been durable, of a journal that was written here or received.

use super::load::Tail;
use super::{Damage, Entry};
use crate::Seq;
use crate::format::record::Kind;
use crate::unit::ScanEnd;

impl Tail<'_> {
    /// What is known to have been durable: by watermark records, and by the newest epoch's start,
    /// before which everything found was synced.
    pub(super) fn find_watermark(&mut self, watermark_max: Seq) {
        // At a site the bytes came first: what a unit says of others was durable at the source.
        let is_proved = |e: &&Entry| {
            let unit = self.history.units.get(e.unit as usize);
            unit.is_some_and(|u| u.end == ScanEnd::Sealed || u.header.epoch > self.site_epoch)
        };
        let records = self.entries.iter().filter(|e| e.record.kind == Kind::Watermark);
        let started = self.epochs().last().map_or(0, |e| e.prev_last_seq);
        let claimed = records.clone().map(|e| e.record.addr).max().unwrap_or(0);
        let claimed = claimed.max(started).max(self.catalogue.facts.watermark);
        let records = records.filter(is_proved);
        let recorded = records.map(|e| e.record.addr).max().unwrap_or(0);
        let edge = self.history.edge;
        if self.site_epoch > 0 && claimed < edge {
            // What was merged at the source counts from a position on that has not come whole.
            let what = format!("what comes before position {edge} is not all at this site yet");
            let damage = Damage::of(edge, edge, what);
            self.history.damage.push(damage);
        }
        let settled = self.catalogue.facts.watermark.max(self.history.edge);
        self.history.watermark = recorded.max(started).min(watermark_max).max(settled);
    }
}
