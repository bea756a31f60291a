//! The rows that the guest commits, as the host knows them.
//!
//! The guest begins row k+1 only after row k was acknowledged and the host has granted row k+1. The
//! host does both under one lock ([`Rows`]), and takes its moment under the same one. So at a
//! moment every row up to `acked` had been acknowledged, no row past `granted` had been begun, and
//! the row between the two, if any, was under way. Nothing is assumed of the guest's clock.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

/// A point in time, and which rows a copy of it must and may hold.
#[derive(Clone, Debug)]
pub struct Moment {
    /// RFC 3339, UTC.
    pub time: String,
    /// The last row acknowledged before it.
    pub acked: u64,
    /// The last row that can have been begun before it.
    pub granted: u64,
}

/// What a guest found in its database.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What `PRAGMA integrity_check` said, or `missing`.
    pub integrity: String,
    /// How many rows there are.
    pub rows: u64,
    /// The first row's number.
    pub min: u64,
    /// The last row's number.
    pub max: u64,
    /// Rows whose checksum is wrong.
    pub bad: u64,
    /// Holes in the numbering.
    pub holes: u64,
}

impl Checked {
    /// From the guest's `demo checked` line.
    pub fn parse(line: &str) -> Result<Self> {
        Ok(Self {
            integrity: value(line, "integrity").context("no verdict")?.to_owned(),
            rows: number(line, "rows")?,
            min: number(line, "min")?,
            max: number(line, "max")?,
            bad: number(line, "bad")?,
            holes: number(line, "holes")?,
        })
    }
}

struct State {
    socket: UnixStream,
    granting: bool,
    acked: u64,
    granted: u64,
}

/// The connection to the guest's port: grants rows, keeps count, passes the other lines on.
pub struct Rows {
    state: Arc<Mutex<State>>,
}

impl Rows {
    /// Takes over the port's socket; the guest's lines other than acknowledgements come out of the
    /// receiver, which ends with the connection.
    pub fn new(socket: UnixStream) -> io::Result<(Self, Receiver<String>)> {
        let reader = io::BufReader::new(socket.try_clone()?);
        let state = Arc::new(Mutex::new(State { socket, granting: false, acked: 0, granted: 0 }));
        let (sender, lines) = channel();
        let rows = Self { state: state.clone() };
        std::thread::spawn(move || take_lines(reader, &state, &sender));
        Ok((rows, lines))
    }

    /// Sends the guest one line.
    pub fn send(&self, line: &str) -> io::Result<()> {
        locked(&self.state).socket.write_all(format!("{line}\n").as_bytes())
    }

    /// Grants the row after `last`, and from then on one for each that is acknowledged.
    pub fn begin(&self, last: u64) -> io::Result<()> {
        let mut state = locked(&self.state);
        state.granting = true;
        state.acked = last;
        state.grant(last + 1)
    }

    /// Grants no more.
    pub fn end(&self) {
        locked(&self.state).granting = false;
    }

    /// This moment.
    pub fn moment(&self) -> Moment {
        let state = locked(&self.state);
        // Microseconds: the clock that stamps the records is read at least that finely.
        let time = format!("{:.6}", jiff::Timestamp::now());
        Moment { time, acked: state.acked, granted: state.granted }
    }
}

impl State {
    fn grant(&mut self, row: u64) -> io::Result<()> {
        self.granted = row;
        self.socket.write_all(format!("demo grant to={row}\n").as_bytes())
    }
}

fn take_lines(reader: impl io::BufRead, state: &Mutex<State>, others: &Sender<String>) {
    for line in reader.lines().map_while(Result::ok) {
        let acked = line.starts_with("demo ack ").then(|| number(&line, "id").ok()).flatten();
        let Some(row) = acked else {
            if others.send(line).is_err() {
                return;
            }
            continue;
        };
        let mut state = locked(state);
        state.acked = row;
        // A connection that is gone shows in the lines' end.
        if state.granting && state.grant(row + 1).is_err() {
            return;
        }
    }
}

/// A thread that panicked with the lock held left nothing half done.
fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the restored copy is what the moment demands. A row acknowledged before the moment must
/// be there. A row that was not granted before it had not begun, and must not. Between the two lies
/// at most one row, whose commit was under way: either answer is right for it.
pub fn judge(checked: &Checked, moment: &Moment) -> Result<()> {
    ensure!(checked.integrity == "ok", "integrity_check of the copy says {}", checked.integrity);
    ensure!(checked.bad == 0, "{} rows of the copy have a wrong checksum", checked.bad);
    ensure!(
        checked.holes == 0 && checked.min == 1 && checked.rows == checked.max,
        "the copy's rows have holes: {checked:?}"
    );
    ensure!(
        checked.max >= moment.acked,
        "row {} was acknowledged before {} but the copy ends at row {}",
        moment.acked,
        moment.time,
        checked.max
    );
    ensure!(
        checked.max <= moment.granted,
        "row {} was begun after {} but it is in the copy",
        checked.max,
        moment.time
    );
    Ok(())
}

/// What became of the row whose commit was under way, in words.
pub fn in_flight(checked: &Checked, moment: &Moment) -> String {
    let there = if checked.max == moment.granted { "is there, whole" } else { "is not there" };
    format!("Row {}, whose commit was under way, {there}.", moment.granted)
}

/// The value of `key=` in one of the guest's lines.
pub fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// As [`value`], for a number.
pub fn number(line: &str, key: &str) -> Result<u64> {
    value(line, key)
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("the guest said no {key}: {line}"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn the_next_row_is_granted_only_when_the_last_is_acknowledged() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (rows, lines) = Rows::new(host).unwrap();
        let mut heard = BufReader::new(guest.try_clone().unwrap()).lines();
        rows.begin(4).unwrap();
        assert_eq!(heard.next().unwrap().unwrap(), "demo grant to=5");
        let before = rows.moment();
        assert_eq!((before.acked, before.granted), (4, 5));

        guest.write_all(b"demo ack id=5 us=900\ndemo reset\n").unwrap();
        assert_eq!(heard.next().unwrap().unwrap(), "demo grant to=6");
        assert_eq!(lines.recv().unwrap(), "demo reset");
        let after = rows.moment();
        assert_eq!((after.acked, after.granted), (5, 6));
    }

    fn moment() -> Moment {
        Moment { time: "2026-01-02T03:04:05Z".into(), acked: 10, granted: 11 }
    }

    fn copy(max: u64) -> Checked {
        Checked { integrity: "ok".into(), rows: max, min: 1, max, bad: 0, holes: 0 }
    }

    #[test]
    fn copy_with_the_acknowledged_rows_and_at_most_the_one_in_flight_is_right() {
        for max in [10, 11] {
            assert!(judge(&copy(max), &moment()).is_ok(), "{max}");
        }
    }

    #[test]
    fn copy_that_lacks_has_more_or_is_damaged_is_wrong() {
        let wrong = [
            copy(9),
            copy(12),
            Checked { bad: 1, ..copy(10) },
            Checked { rows: 9, holes: 1, ..copy(10) },
            Checked { rows: 9, min: 2, ..copy(10) },
            Checked { integrity: "missing".into(), ..copy(10) },
        ];
        for checked in wrong {
            assert!(judge(&checked, &moment()).is_err(), "{checked:?}");
        }
    }
}
