//! WHEN: from what a person types to a wanted moment. Pure: the present and the zone are given.
//!
//! ```text
//! latest                           the newest recovery point
//! 2026-11-22T14:03:10.25+01:00     RFC 3339
//! 2026-11-22 14:03:10              without an offset: in the caller's zone
//! 14:03:10.250                     the most recent past one, in the caller's zone
//! 5m ago, 2h30m ago, 1 day ago
//! seq:123, #7, tag:before-upgrade  a position, a checkpoint, the newest checkpoint of a tag
//! ```
//!
//! What always holds: a text has one meaning or none. A clock time that a zone has twice, or never,
//! is refused with the moments that may be meant; only "most recent past" chooses by itself.

use afterimage_journal::history::When;
use jiff::civil;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp};

/// What the help says of WHEN.
pub const WHEN_HELP: &str = "latest, RFC 3339, 14:03:10.250 (the most recent past one), \
    '2026-11-22 14:03:10', '5m ago', seq:123, '#7' (a checkpoint) or tag:TEXT";

/// A text that names no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no moment: {why}; use {WHEN_HELP}")]
pub struct NoMoment {
    text: String,
    why: String,
}

/// The moment that `text` means at `now` in `zone`.
///
/// # Errors
/// It means none, or more than one.
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<When, NoMoment> {
    let fail = |why: String| NoMoment { text: text.to_owned(), why };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(fail("it is empty".into()));
    }
    if trimmed.eq_ignore_ascii_case("latest") {
        return Ok(When::Latest);
    }
    if let Some(number) = trimmed.strip_prefix("seq:") {
        return number.parse().map(When::Seq).map_err(|e| fail(format!("a position: {e}")));
    }
    if let Some(number) = trimmed.strip_prefix('#') {
        let id = number.parse().map(When::Checkpoint);
        return id.map_err(|e| fail(format!("a checkpoint's number: {e}")));
    }
    if let Some(tag) = trimmed.strip_prefix("tag:") {
        if tag.is_empty() {
            return Err(fail("the tag is empty".into()));
        }
        return Ok(When::Tag(tag.to_owned()));
    }
    let time = match strip_ago(trimmed) {
        Some(span) => before(span, now, zone),
        None => point(trimmed, now, zone),
    };
    time.and_then(nanoseconds).map(When::Time).map_err(fail)
}

/// The moment that `text` means now, in the caller's zone.
///
/// # Errors
/// As [`parse`].
pub fn parse_here(text: &str) -> Result<When, NoMoment> {
    parse(text, Timestamp::now(), &TimeZone::system())
}

fn nanoseconds(time: Timestamp) -> Result<u64, String> {
    u64::try_from(time.as_nanosecond()).map_err(|_| "it lies before 1970".to_owned())
}

fn strip_ago(text: &str) -> Option<&str> {
    let split = text.len().checked_sub(3)?;
    let (span, ago) = (text.get(..split)?, text.get(split..)?);
    let ends = span.ends_with(|c: char| c.is_ascii_whitespace());
    (ago.eq_ignore_ascii_case("ago") && ends).then(|| span.trim_end())
}

/// "5m", "2h30m", "1 day" before now; days and longer by the zone's calendar.
fn before(span: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    // Signs and ISO 8601's form would only hide a slip.
    if !span.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a time span begins with a number, as in 5m ago".into());
    }
    let span: Span = span.parse().map_err(|e: jiff::Error| e.to_string())?;
    let then = now.to_zoned(zone.clone()).checked_sub(span).map_err(|e| e.to_string())?;
    Ok(then.timestamp())
}

fn point(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if text.contains(':')
        && !text.contains(['-', '+'])
        && let Ok(time) = text.parse::<civil::Time>()
    {
        return most_recent(time, now, zone);
    }
    // A civil time ignores an offset that it carries: what has one was tried above.
    let zoned = text.contains(['+', '[', 'Z', 'z']);
    match text.parse::<civil::DateTime>() {
        Ok(datetime) if !zoned => only(datetime, zone),
        _ if text.parse::<Span>().is_ok() => Err(format!("did you mean '{text} ago'?")),
        _ => Err("it is in none of the known forms".into()),
    }
}

/// The latest instant at or before now at which clocks in the zone show this time.
fn most_recent(time: civil::Time, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    let mut date = now.to_zoned(zone.clone()).date();
    // Three days reach over any shift of a zone's clock.
    for _ in 0..3 {
        let latest = candidates(date.to_datetime(time), zone).filter(|t| *t <= now).max();
        if let Some(found) = latest {
            return Ok(found);
        }
        date = date.yesterday().map_err(|e| e.to_string())?;
    }
    Err("no clock here showed that time in the last days".into())
}

fn only(datetime: civil::DateTime, zone: &TimeZone) -> Result<Timestamp, String> {
    let found: Vec<Timestamp> = candidates(datetime, zone).collect();
    match found.as_slice() {
        [only] => Ok(*only),
        [first, second, ..] => Err(format!(
            "clocks here showed it twice when they were set back: say {first} or {second}"
        )),
        [] => Err("clocks here never showed it: they were set forward over it".into()),
    }
}

/// The instants at which clocks in the zone show this date and time: one, two, or none.
fn candidates(datetime: civil::DateTime, zone: &TimeZone) -> impl Iterator<Item = Timestamp> {
    let (first, second) = match zone.to_ambiguous_timestamp(datetime).offset() {
        AmbiguousOffset::Unambiguous { offset } => (Some(offset), None),
        AmbiguousOffset::Gap { .. } => (None, None),
        AmbiguousOffset::Fold { before, after } => (Some(before), Some(after)),
    };
    let offsets = first.into_iter().chain(second);
    // One that no timestamp can hold lies thousands of years away.
    offsets.filter_map(move |offset| offset.to_timestamp(datetime).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn parsed(text: &str, now: &str, zone: &str) -> Result<String, NoMoment> {
        let zone = TimeZone::posix(zone).unwrap();
        parse(text, at(now), &zone).map(|when| match when {
            When::Time(ns) => Timestamp::from_nanosecond(i128::from(ns)).unwrap().to_string(),
            other => format!("{other:?}"),
        })
    }

    const NOW: &str = "2026-11-22T15:30:00Z";
    /// Central Europe: forward at 2 o'clock in March, back at 3 o'clock in October.
    const CET: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    #[test]
    fn each_form_has_its_moment() {
        let cases = [
            ("latest", "Latest"),
            (" Latest ", "Latest"),
            ("seq:123", "Seq(123)"),
            ("#7", "Checkpoint(7)"),
            ("tag:before-upgrade", "Tag(\"before-upgrade\")"),
            ("tag:two words", "Tag(\"two words\")"),
            ("2026-11-22T14:03:10.25Z", "2026-11-22T14:03:10.25Z"),
            ("2026-11-22T14:03:10.25+01:00", "2026-11-22T13:03:10.25Z"),
            ("2026-11-22 14:03:10+01:00", "2026-11-22T13:03:10Z"),
            ("2026-11-22T13:03:10.250000001Z", "2026-11-22T13:03:10.250000001Z"),
            ("2026-11-22 14:03:10", "2026-11-22T13:03:10Z"),
            ("2026-11-22T14:03:10.5", "2026-11-22T13:03:10.5Z"),
            ("2026-11-22 14:03", "2026-11-22T13:03:00Z"),
            ("2026-11-22", "2026-11-21T23:00:00Z"),
            ("14:03:10.250", "2026-11-22T13:03:10.25Z"),
            ("14:03", "2026-11-22T13:03:00Z"),
            ("16:30", "2026-11-22T15:30:00Z"),
            ("16:30:00.001", "2026-11-21T15:30:00.001Z"),
            ("23:59", "2026-11-21T22:59:00Z"),
            ("5m ago", "2026-11-22T15:25:00Z"),
            ("2h30m ago", "2026-11-22T13:00:00Z"),
            ("2h 30m ago", "2026-11-22T13:00:00Z"),
            ("5 minutes ago", "2026-11-22T15:25:00Z"),
            ("1.5h ago", "2026-11-22T14:00:00Z"),
            ("250ms ago", "2026-11-22T15:29:59.75Z"),
            ("1 day ago", "2026-11-21T15:30:00Z"),
            ("1w AGO", "2026-11-15T15:30:00Z"),
            // The future parses: whether it can be restored is another question.
            ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ];
        for (text, moment) in cases {
            assert_eq!(parsed(text, NOW, CET).as_deref(), Ok(moment), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_forms_there_are() {
        let texts = [
            "",
            " ",
            "yesterday",
            "seq:",
            "seq:x",
            "seq:-1",
            "#",
            "#x",
            "tag:",
            "5m",
            "ago",
            "mago",
            "-5m ago",
            "P1D ago",
            "5 parsecs ago",
            "25:00",
            "14",
            "2026-13-01",
            "2026-11-31",
            "2026-11-22T14:03:10+99:00",
            "1969-12-31T23:59:59Z",
            "99999999999h ago",
            "14:03:10+01:00",
            "2026-11-22 14:03 CET",
        ];
        for text in texts {
            let refused = parsed(text, NOW, CET).unwrap_err().to_string();
            assert!(refused.contains("RFC 3339"), "{text}: {refused}");
        }
        assert!(parsed("5m", NOW, CET).unwrap_err().to_string().contains("'5m ago'"));
    }

    #[test]
    fn a_clock_time_that_comes_twice_is_refused_and_the_most_recent_one_is_taken() {
        // Set back on 25 October 2026: 02:30 is first 00:30Z, then 01:30Z.
        let twice = parsed("2026-10-25 02:30", "2026-10-25T12:00:00Z", CET).unwrap_err();
        let twice = twice.to_string();
        assert!(twice.contains("00:30:00Z") && twice.contains("01:30:00Z"), "{twice}");
        let recent = |now| parsed("02:30", now, CET).unwrap();
        assert_eq!(recent("2026-10-25T12:00:00Z"), "2026-10-25T01:30:00Z");
        assert_eq!(recent("2026-10-25T01:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(recent("2026-10-25T00:00:00Z"), "2026-10-24T00:30:00Z");
    }

    #[test]
    fn a_clock_time_that_never_was_is_refused_and_the_day_before_is_taken() {
        // Set forward on 29 March 2026: there is no 02:30.
        let never = parsed("2026-03-29 02:30", "2026-03-29T12:00:00Z", CET).unwrap_err();
        assert!(never.to_string().contains("set forward"), "{never}");
        let recent = parsed("02:30", "2026-03-29T12:00:00Z", CET).unwrap();
        assert_eq!(recent, "2026-03-28T01:30:00Z");
        // A calendar day is 23 hours long then; 24 hours are 24 hours.
        let now = "2026-03-29T12:00:00Z";
        assert_eq!(parsed("1 day ago", now, CET).unwrap(), "2026-03-28T13:00:00Z");
        assert_eq!(parsed("24h ago", now, CET).unwrap(), "2026-03-28T12:00:00Z");
    }
}
