//! Times as people and programs read them: the one place that makes text of them.
//!
//! What always holds: a time is shown to the nanosecond, in groups of three digits, so that the text
//! names that time and no other; it can be pasted back as WHEN. A day that isn't today is shown with its
//! date, an hour that a clock shows twice with its offset.

use afterimage_journal::History;
use afterimage_journal::history::Point;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;

/// A wall time (nanoseconds since the Unix epoch) as RFC 3339 in UTC, exact to the nanosecond, so
/// that asking for that time again finds the same record.
#[must_use]
pub fn rfc3339(wall_ns: u64) -> String {
    stamp(wall_ns).to_string()
}

/// A wall time (nanoseconds since the Unix epoch) as a clock shows it in the caller's zone.
#[must_use]
pub fn wall_clock(wall_ns: u64) -> String {
    clock(stamp(wall_ns))
}

/// A time as a clock shows it in the caller's zone.
#[must_use]
pub fn clock(time: Timestamp) -> String {
    clock_at(time, Timestamp::now(), &TimeZone::system())
}

/// A time as a clock shows it in a zone, for somebody who reads it now.
#[must_use]
pub fn clock_at(time: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let then = time.to_zoned(zone.clone());
    let is_today = then.date() == now.to_zoned(zone.clone()).date();
    let nanosecond = then.subsec_nanosecond().unsigned_abs();
    let digits = match nanosecond {
        n if n % 1_000_000 == 0 => format!("{:03}", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{:06}", n / 1_000),
        n => format!("{n:09}"),
    };
    let shown = |format: &str| then.strftime(format).to_string();
    if zone.to_ambiguous_timestamp(then.datetime()).is_ambiguous() {
        return shown("%Y-%m-%dT%H:%M:%S") + "." + &digits + &shown("%:z");
    }
    // Without a date the most recent past one is meant.
    let format = if is_today && time <= now { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
    shown(format) + "." + &digits
}

/// The same as a time.
pub(crate) fn stamp(wall_ns: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(wall_ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A point as it is shown: by its time and its position, or by its position alone where its time means
/// another one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The point.
    pub point: Point,
    /// Its time means it and nothing else.
    pub is_named_by_time: bool,
}

impl Moment {
    /// A point of a journal.
    #[must_use]
    pub fn of(history: &History, point: Point) -> Self {
        Self { point, is_named_by_time: history.is_named_by_time(&point) }
    }

    /// Its time, or its position where that says more.
    #[must_use]
    pub fn when(&self) -> String {
        match self.is_named_by_time {
            true => wall_clock(self.point.wall_ns),
            false => format!("seq:{}", self.point.seq),
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_named_by_time {
            true => write!(f, "{} (seq:{})", wall_clock(self.point.wall_ns), self.point.seq),
            false => write!(f, "seq:{}", self.point.seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_to_its_last_digit_with_what_it_needs_to_be_pasted_back() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let shown =
            |time: &str, now: &str| clock_at(time.parse().unwrap(), now.parse().unwrap(), &zone);
        let now = "2026-11-22T15:00:00Z";
        for (time, text) in [
            ("2026-11-22T14:03:10.250Z", "15:03:10.250"),
            ("2026-11-22T14:03:10Z", "15:03:10.000"),
            ("2026-11-22T14:03:10.2505Z", "15:03:10.250500"),
            ("2026-11-22T14:03:10.250000001Z", "15:03:10.250000001"),
            ("2026-11-21T14:03:10Z", "2026-11-21 15:03:10.000"),
            // Later than now, as after a clock was set back: no past time of today.
            ("2026-11-22T15:00:00.001Z", "2026-11-22 16:00:00.001"),
            // Twice half past two on the day that summer time ends.
            ("2026-10-25T00:30:00Z", "2026-10-25T02:30:00.000+02:00"),
            ("2026-10-25T01:30:00Z", "2026-10-25T02:30:00.000+01:00"),
        ] {
            assert_eq!(shown(time, now), text);
        }
        assert_eq!(rfc3339(1_000_000_001), "1970-01-01T00:00:01.000000001Z");
    }
}
