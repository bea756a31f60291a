//! How things are shown to people: sizes, spans of time, clock times, tables.
//!
//! What always holds: nothing here colours or moves a cursor; a reader that goes away (`| head`)
//! ends the output without an error.

use crate::failure::{Failure, Outcome};
use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Unit};
use serde::Serialize;
use std::io::{self, Write};

/// Writes text to standard output.
///
/// # Errors
/// It can't be written, other than for want of a reader.
pub fn print(text: &str) -> Outcome {
    print_on(text).map(drop)
}

/// Writes text to standard output; whether there is still a reader.
///
/// # Errors
/// As [`print`].
pub fn print_on(text: &str) -> Outcome<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::io("write to standard output", &e)),
    }
}

/// Prints a line of a story that goes on whether anybody listens or not.
macro_rules! tell {
    ($($what:tt)*) => {
        drop($crate::show::print(&(format!($($what)*) + "\n")))
    };
}
pub(crate) use tell;

/// Says something on standard error; where that can't be written, the exit code has to do.
pub fn complain(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "afterimage: {text}");
}

/// Writes a value as JSON to standard output.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl Serialize) -> Outcome {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// A size, in binary units.
#[must_use]
pub fn bytes(count: u64) -> String {
    ByteSize(count).display().iec().to_string()
}

/// Half a minute and less with a fraction, more in words of one or two units.
#[must_use]
pub fn span_ms(ms: u64) -> String {
    let (s, m, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..30_000 => format!("{}.{} s", s, ms % 1000 / 100),
        30_000..120_000 => format!("{s} s"),
        120_000..7_200_000 => format!("{m} min {} s", s % 60),
        7_200_000..172_800_000 => format!("{h} h {} min", m % 60),
        _ => format!("{d} d {} h", h % 24),
    }
}

/// A time on the clock of the caller's zone, with the date when it isn't today's.
///
/// Rounded up to the millisecond: who asks for the time that is shown gets what is shown with it.
#[must_use]
pub fn clock(time: Timestamp) -> String {
    clock_at(time, Timestamp::now(), &TimeZone::system())
}

fn clock_at(time: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let up = time
        .checked_add(999_999.nanoseconds())
        .and_then(|t| {
            t.round(
                jiff::TimestampRound::new()
                    .smallest(Unit::Millisecond)
                    .mode(jiff::RoundMode::Floor),
            )
        })
        .unwrap_or(time);
    let then = up.to_zoned(zone.clone());
    let is_today = then.date() == now.to_zoned(zone.clone()).date();
    let format = if is_today { "%H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S%.3f" };
    then.strftime(format).to_string()
}

/// A table without lines, its columns apart by two blanks; `right` names columns of numbers.
#[must_use]
pub fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned() + "\n").collect();
    lines.concat()
}

/// A progress bar of text that any terminal shows.
#[must_use]
pub fn bar(done: u64, total: u64, width: usize) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) };
    let full = (share * width as f64) as usize;
    // 100 % is said only when it is over.
    let percent = (share * 100.0) as u64;
    format!("[{}{}] {percent:>3} %", "#".repeat(full), ".".repeat(width.saturating_sub(full)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_shown_is_never_before_the_time_that_is_meant() {
        let zone = TimeZone::UTC;
        let now: Timestamp = "2026-11-22T15:00:00Z".parse().unwrap();
        let shown = |text: &str| clock_at(text.parse().unwrap(), now, &zone);
        assert_eq!(shown("2026-11-22T14:03:10.250Z"), "14:03:10.250");
        assert_eq!(shown("2026-11-22T14:03:10.250000001Z"), "14:03:10.251");
        assert_eq!(shown("2026-11-22T14:03:59.9995Z"), "14:04:00.000");
        assert_eq!(shown("2026-11-21T14:03:10Z"), "2026-11-21 14:03:10.000");
    }

    #[test]
    fn spans_and_bars_read_well() {
        let spans = [(0, "0 ms"), (1250, "1.2 s"), (90_000, "90 s"), (3_600_000, "60 min 0 s")];
        for (ms, text) in spans {
            assert_eq!(span_ms(ms), text);
        }
        assert_eq!(span_ms(90_061_000), "25 h 1 min");
        assert_eq!(bar(1, 2, 4), "[##..]  50 %");
        assert_eq!(bar(999, 1000, 4), "[###.]  99 %");
        assert_eq!(bar(0, 0, 2), "[##] 100 %");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long".into(), "23".into()]];
        assert_eq!(table(&["NAME", "N"], &[1], &rows), "NAME   N\na      1\nlong  23\n");
    }
}
