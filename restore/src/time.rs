//! Times as people and programs read them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A wall time (nanoseconds since the Unix epoch) as RFC 3339 in UTC, exact to the nanosecond, so
/// that asking for that time again finds the same record.
#[must_use]
pub fn rfc3339(wall_ns: u64) -> String {
    stamp(wall_ns).to_string()
}

/// A wall time (nanoseconds since the Unix epoch) as a clock shows it in the caller's zone, to
/// the millisecond; with the date when that isn't today's.
#[must_use]
pub fn wall_clock(wall_ns: u64) -> String {
    let zone = TimeZone::system();
    let then = stamp(wall_ns).to_zoned(zone.clone());
    let today = Timestamp::now().to_zoned(zone).date();
    let format = if then.date() == today { "%H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S%.3f" };
    then.strftime(format).to_string()
}

/// The same as a time.
pub(crate) fn stamp(wall_ns: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(wall_ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_and_the_date_is_shown_when_it_is_not_today() {
        assert_eq!(rfc3339(1_000_000_001), "1970-01-01T00:00:01.000000001Z");
        assert!(wall_clock(1_250_000_000).ends_with(":01.250"), "{}", wall_clock(1_250_000_000));
        assert!(wall_clock(1_250_000_000).starts_with("19"));
    }
}
