//! What people type: moments, spans, sizes, names.

use super::Target;
use afterimage_journal::history::When;
use afterimage_journal::layout;
use afterimage_journal::pool::FileName;
use jiff::Timestamp;
use jiff::tz::TimeZone;

#[allow(dead_code, unused_imports)]
#[path = "../../../src/quantity.rs"]
mod quantity;
#[allow(dead_code, unused_imports)]
#[path = "../../../src/when.rs"]
mod when;

pub(super) fn targets() -> [Target; 3] {
    [
        Target { name: "when", examples: moments, words: TIMES, run: moment },
        Target { name: "quantity", examples: quantities, words: SIZES, run: quantity_of },
        Target {
            name: "names",
            examples: names,
            words: &[b"unit-", b"merged-", b"000"],
            run: name,
        },
    ]
}

const TIMES: &[&[u8]] = &[
    b" ago",
    b"seq:",
    b"tag:",
    b"#",
    b"latest",
    b"T",
    b"Z",
    b"+01:00",
    b"[Europe/Berlin]",
    b"9999-12-31",
    b"24:00",
    b"60",
    b"yesterday",
    b"1y",
    b"-0001",
];
const SIZES: &[&[u8]] =
    &[b"GiB", b"kB", b"/s", b"E", b"e30", b"inf", b"nan", b".", b"mo", b"y", b"\xc2\xb5s"];

fn of(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|t| t.as_bytes().to_vec()).collect()
}

fn moments() -> Vec<Vec<u8>> {
    of(&[
        "latest",
        "2026-11-22T14:03:10.25+01:00",
        "2026-03-29 02:30:00",
        "14:03:10.250",
        "5m ago",
        "2h30m ago",
        "1 day ago",
        "seq:123",
        "#7",
        "tag:before-upgrade",
    ])
}

/// A text has one meaning or none; a moment that people name lies in the past or is a time.
fn moment(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(now) = Timestamp::from_second(1_795_000_000) else { return };
    for zone in ["UTC", "Europe/Berlin", "America/New_York"] {
        let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
        let first = when::parse(text, now, &zone);
        assert_eq!(first, when::parse(text, now, &zone));
        match first {
            Ok(When::Seq(seq)) => {
                assert_eq!(text.trim().trim_start_matches("seq:").parse(), Ok(seq))
            }
            Ok(When::Tag(tag)) => assert!(text.ends_with(&tag) || text.trim().ends_with(&tag)),
            Err(e) => assert!(!e.to_string().is_empty()),
            _ => {}
        }
    }
}

fn quantities() -> Vec<Vec<u8>> {
    of(&["24h", "7d", "500ms", "90m", "50M", "1.5GiB", "200MB/s", "64MiB"])
}

fn quantity_of(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(span) = quantity::duration(text) {
        assert!(!span.is_zero(), "a span of no time");
    }
    if let Ok(seconds) = quantity::window_s(text) {
        assert!(seconds >= 1);
    }
    if let Ok(bytes) = quantity::unit_bytes(text) {
        assert!(bytes.is_multiple_of(4096) && bytes >= 1 << 20);
    }
    let _ = (quantity::checkpoint_every_ms(text), quantity::rate_bytes_per_s(text));
}

fn names() -> Vec<Vec<u8>> {
    of(&["vm-1", "unit-0000000012", "merged-0000000003-0000000009"])
}

/// A name that is taken stays in its directory; a unit's name has one spelling.
fn name(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if layout::check_name(text).is_ok() {
        assert!(!text.contains('/') && text != "." && text != "..", "{text}");
    }
    if let Some(found) = FileName::parse(text) {
        let (first, last) = found.numbers();
        assert!(found.to_string() == text && 0 < first && first <= last);
    }
}
