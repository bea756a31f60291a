//! Time spans and sizes as they are typed: `24h`, `7d`, `500ms`; `50M`, `1.5GiB`, `200MB/s`.

use afterimage_journal::window::Keep;
use bytesize::ByteSize;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use std::time::Duration;

/// How far back a journal can reach: ten years.
const WINDOW_S_MAX: u64 = 10 * 366 * 86400;

/// A time span; a day is 24 hours.
///
/// # Errors
/// It isn't one, or it isn't above zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    let hint = "write it like 5s, 90m, 24h or 7d";
    if !text.trim().starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("no time span: {hint}"));
    }
    let span: Span = text.trim().parse().map_err(|_| format!("no time span: {hint}"))?;
    let relative = SpanRelativeTo::days_are_24_hours();
    let signed: SignedDuration =
        span.to_duration(relative).map_err(|_| format!("months and years vary: {hint}"))?;
    let length = Duration::try_from(signed).map_err(|_| format!("below zero: {hint}"))?;
    if length.is_zero() {
        return Err(format!("no time at all: {hint}"));
    }
    Ok(length)
}

/// How far back a journal is to reach: whole seconds, a second to ten years.
///
/// # Errors
/// It isn't such a span.
pub fn window_s(text: &str) -> Result<u64, String> {
    let length = duration(text)?;
    if length < Duration::from_secs(1) || length > Duration::from_secs(WINDOW_S_MAX) {
        return Err("a window is from 1s to 10 years long".into());
    }
    Ok(length.as_secs())
}

/// How far back a journal reaches whatever happens: whole seconds, up to ten years.
///
/// # Errors
/// It isn't such a span.
pub fn guarantee_s(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { window_s(text) }
}

/// Time between checkpoints, in milliseconds: 100 ms to a day.
///
/// # Errors
/// It isn't such a span.
pub fn checkpoint_every_ms(text: &str) -> Result<u64, String> {
    let length = duration(text)?;
    if length < Duration::from_millis(100) || length > Duration::from_secs(86400) {
        return Err("checkpoints are made every 100ms at the most, every 24h at the least".into());
    }
    Ok(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}

/// Time between checkpoints of memory, in milliseconds: 10 s to a week.
///
/// # Errors
/// It isn't such a span.
pub fn memory_every_ms(text: &str) -> Result<u64, String> {
    let length = duration(text)?;
    if length < Duration::from_secs(10) || length > Duration::from_secs(7 * 86400) {
        return Err("memory is taken every 10s at the most, every 7d at the least".into());
    }
    Ok(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}

/// The same, or `off`, which is 0.
///
/// # Errors
/// It is neither.
pub fn memory_every_ms_or_off(text: &str) -> Result<u64, String> {
    if text.trim() == "off" { Ok(0) } else { memory_every_ms(text) }
}

/// Age of an alarm, in milliseconds: a second to a week.
///
/// # Errors
/// It isn't such a span.
pub fn rpo_alarm_ms(text: &str) -> Result<u64, String> {
    let length = duration(text)?;
    if length < Duration::from_secs(1) || length > Duration::from_secs(7 * 86400) {
        return Err("an alarm comes after 1s at the soonest, after 7d at the latest".into());
    }
    Ok(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}

/// A rate in bytes a second, at least 64 KiB (or 0, where that means "no limit").
///
/// # Errors
/// It isn't one.
pub fn rate_bytes_per_s(text: &str) -> Result<u64, String> {
    let number = text.trim().strip_suffix("/s").unwrap_or(text.trim());
    let size: ByteSize =
        number.parse().map_err(|_| "no rate: write it like 50M, 200MB/s or 1GiB".to_owned())?;
    match size.as_u64() {
        1..65536 => Err("a limit below 64 KiB a second would never let a copy end".into()),
        bytes => Ok(bytes),
    }
}

/// A size in bytes, at least 1 MiB.
///
/// # Errors
/// It isn't one.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let hint = "no size: write it like 500GiB or 2TB";
    let size: ByteSize = text.trim().parse().map_err(|_| hint.to_owned())?;
    match size.as_u64() {
        0..0x10_0000 => Err("below 1 MiB there is no room for a single unit".into()),
        bytes => Ok(bytes),
    }
}

/// What a journal may take on disk, in bytes; 0 means "no limit".
///
/// # Errors
/// It isn't a size.
pub fn limit_bytes(text: &str) -> Result<u64, String> {
    let size: Result<ByteSize, _> = text.trim().parse();
    size.map(|s| s.as_u64()).map_err(|_| "no size: write it like 200GiB or 2TB".to_owned())
}

/// How long every write is kept, and which checkpoints behind that: at most ten years.
///
/// # Errors
/// It isn't such a list.
pub fn keep(text: &str) -> Result<Keep, String> {
    let keep: Keep = text.trim().parse()?;
    if keep.upto_ns() > WINDOW_S_MAX * 1_000_000_000 {
        return Err("nothing is kept for more than 10 years".into());
    }
    Ok(keep)
}

/// What `--keep` and `--window` ask for together.
///
/// # Errors
/// They differ.
pub fn agree(keep: Option<&Keep>, window_s: Option<u64>) -> Result<(), String> {
    match (keep, window_s) {
        (Some(keep), Some(s)) if keep.every_write_ns() != s.saturating_mul(1_000_000_000) => {
            Err(format!("--keep {keep} begins with another window than --window: give one of them"))
        }
        _ => Ok(()),
    }
}

/// Size of a unit: 1 MiB to 1 GiB, whole 4 KiB blocks.
///
/// # Errors
/// It isn't such a size.
pub fn unit_bytes(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.trim().parse().map_err(|_| "no size: write it like 64MiB")?;
    match size.as_u64() {
        bytes @ 0x10_0000..=0x4000_0000 if bytes % 4096 == 0 => Ok(bytes),
        _ => Err("a unit is from 1MiB to 1GiB large, in whole blocks of 4 KiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        for (text, ms) in [
            ("500ms", 500),
            ("5s", 5000),
            ("1m30s", 90_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "-5s", "0s", "soon", "1mo", "1y", "P1D", "5s ago"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(window_s("500ms").is_err() && checkpoint_every_ms("50ms").is_err());
        assert_eq!(memory_every_ms("10m"), Ok(600_000));
        assert!(memory_every_ms("9s").is_err() && memory_every_ms("off").is_err());
        assert_eq!(memory_every_ms_or_off("off"), Ok(0));
        assert_eq!(rpo_alarm_ms("30s"), Ok(30_000));
        assert!(rpo_alarm_ms("10ms").is_err() && rpo_alarm_ms("30").is_err());
    }

    #[test]
    fn a_window_is_given_once_or_twice_the_same() {
        let thinned = keep("24h,1m:7d").unwrap();
        assert!(thinned.thins() && !keep("24h").unwrap().thins());
        assert!(keep("1m:7d").is_err() && keep("soon").is_err() && keep("24h,1d:11000d").is_err());
        assert_eq!(agree(Some(&thinned), Some(86_400)), Ok(()));
        assert!(agree(Some(&thinned), Some(3600)).unwrap_err().contains("another window"));
        assert_eq!(agree(None, Some(3600)), Ok(()));
        assert_eq!(limit_bytes("200GiB"), Ok(200 << 30));
        assert!(limit_bytes("much").is_err());
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("50M", 50_000_000), ("200MB/s", 200_000_000), ("1MiB/s", 1 << 20)]
        {
            assert_eq!(rate_bytes_per_s(text), Ok(bytes), "{text}");
        }
        for text in ["", "fast", "-1", "1", "5 apples"] {
            assert!(rate_bytes_per_s(text).is_err(), "{text}");
        }
    }
}
