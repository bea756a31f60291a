//! How things are shown to people: sizes, spans of time, tables; times by [`clock`].
//!
//! What always holds: nothing here colours or moves a cursor, whatever text from elsewhere is in what is
//! shown; a reader that goes away (`| head`) ends the output without an error.

use crate::failure::{Failure, Outcome};
use afterimage_journal::text::escaped_lines;
use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use serde::de::DeserializeOwned;
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
    print_raw(&escaped_lines(text))
}

/// Writes text that may move the cursor, all of it our own; whether there is still a reader.
///
/// # Errors
/// As [`print`].
pub fn print_raw(text: &str) -> Outcome<bool> {
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
    let _ = writeln!(io::stderr(), "afterimage: {}", escaped(&text.to_string()));
}

/// Says more of what was complained of, on a line below it.
pub fn complain_more(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "  {}", escaped(&text.to_string()));
}

/// Writes a value as JSON to standard output.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl Serialize) -> Outcome {
    print(&json(value, true)?)
}

/// A value as JSON on one line or several, with a newline; strings as they are shown.
///
/// # Errors
/// It can't be JSON.
pub fn json(value: &impl Serialize, is_pretty: bool) -> Outcome<String> {
    let mut value = serde_json::to_value(value)?;
    make_shown(&mut value);
    let text = match is_pretty {
        true => serde_json::to_string_pretty(&value)?,
        false => serde_json::to_string(&value)?,
    };
    Ok(text + "\n")
}

/// A value whose strings are as they are shown.
///
/// # Errors
/// It can't be JSON.
pub fn as_shown<T: Serialize + DeserializeOwned>(value: &T) -> Outcome<T> {
    let mut value = serde_json::to_value(value)?;
    make_shown(&mut value);
    Ok(serde_json::from_value(value)?)
}

fn make_shown(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = escaped(text).into_owned(),
        serde_json::Value::Array(all) => all.iter_mut().for_each(make_shown),
        serde_json::Value::Object(object) => object.values_mut().for_each(make_shown),
        _ => {}
    }
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

pub use afterimage_journal::text::escaped;
pub use afterimage_restore::clock;

/// A table without lines, its columns apart by two blanks; `right` names columns of numbers.
#[must_use]
pub fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| escaped(cell).into_owned()).collect::<Vec<_>>());
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
