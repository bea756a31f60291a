//! Role `demo`: an ext4 file system with an SQLite database (WAL, `synchronous=FULL`) into which
//! rows are committed, one transaction each. A row is `(id, at_ms, payload, sum)`; ids have no
//! holes.
//!
//! Row k+1 is begun only when the host has granted it *and* row k is acknowledged, so the host
//! knows exactly which rows a moment must hold (acknowledged before it) and may hold (granted
//! before it).
//!
//! Commands: `start`, `grant to=ID` (rows up to ID may be begun), `stats`, `reset`, `pause`,
//! `destroy` (what ransomware does), `check`, `sync`. Events: `started last=ID`, `ack id=ID
//! us=MICROSECONDS`, `paused last=ID`, `destroyed ..`, `checked ..`, `error ..`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags, params};

use crate::boot::mount;
use crate::latency::Latency;
use crate::port::{Port, number};
use crate::record::checksum;

const MOUNT: &str = "/data";
const DATABASE: &str = "/data/shop/orders.db";
const BESIDE: &str = "/data/shop/invoices";
const PAYLOAD_BYTES: usize = 600;

struct State {
    connection: Option<Connection>,
    running: bool,
    granted: u64,
    last: u64,
    commits: Latency,
}

/// The database and what it shares with its thread.
pub struct Demo {
    state: Arc<(Mutex<State>, Condvar)>,
    port: Arc<Port>,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

impl Demo {
    /// Mounts the disk; the database is opened by the first command that needs it.
    pub fn new(paths: &[String], port: Arc<Port>) -> io::Result<Self> {
        let disk = paths.first().ok_or_else(|| io::Error::other("no disk to mount"))?;
        fs::create_dir_all(MOUNT)?;
        mount(disk, MOUNT, "ext4")?;
        let state = State {
            connection: None,
            running: false,
            granted: 0,
            last: 0,
            commits: Latency::new(),
        };
        let demo = Self { state: Arc::new((Mutex::new(state), Condvar::new())), port };
        let (state, port) = (demo.state.clone(), demo.port.clone());
        std::thread::spawn(move || work(&state, &port));
        Ok(demo)
    }

    /// Obeys one command.
    pub fn obey(&self, command: &str) {
        let (lock, changed) = &*self.state;
        let mut state = lock.lock().unwrap();
        let outcome = match command.split_whitespace().next().unwrap_or_default() {
            "start" => start(&mut state),
            "grant" => {
                state.granted = state.granted.max(number(command, "to").unwrap_or(0));
                changed.notify_all();
                return;
            }
            "stats" => Ok(format!("stats last={} {}", state.last, state.commits.report())),
            "reset" => {
                state.commits = Latency::new();
                Ok("reset".into())
            }
            "pause" => {
                state.running = false;
                Ok(format!("paused last={}", state.last))
            }
            "destroy" => {
                state.running = false;
                state.connection = None;
                destroy().map(|done| format!("destroyed last={} {done}", state.last))
            }
            "check" => {
                state.running = false;
                state.connection = None;
                check()
            }
            "sync" => {
                // SAFETY: no arguments.
                unsafe { libc::sync() };
                Ok("synced".into())
            }
            other => Ok(format!("unknown command={other}")),
        };
        match outcome {
            Ok(line) => self.port.say(&format!("demo {line}")),
            Err(e) => self.port.say(&format!("demo error command={command} {e}")),
        }
        changed.notify_all();
    }
}

fn start(state: &mut State) -> Outcome<String> {
    if state.connection.is_none() {
        fs::create_dir_all(BESIDE)?;
        for number in 0..20_u64 {
            let path = format!("{BESIDE}/{number:04}.txt");
            if !Path::new(&path).exists() {
                fs::write(&path, format!("invoice {number}\n").repeat(400))?;
            }
        }
        let connection = Connection::open(DATABASE)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS orders
             (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL,
              payload BLOB NOT NULL, sum INTEGER NOT NULL)",
        )?;
        state.last =
            connection
                .query_row("SELECT coalesce(max(id), 0) FROM orders", [], |row| row.get(0))?;
        state.connection = Some(connection);
    }
    state.granted = state.granted.max(state.last);
    state.running = true;
    Ok(format!("started last={}", state.last))
}

fn work(state: &(Mutex<State>, Condvar), port: &Port) {
    let (lock, changed) = state;
    loop {
        let mut state = lock.lock().unwrap();
        while !state.running || state.last >= state.granted {
            state = changed.wait(state).unwrap();
        }
        let id = state.last + 1;
        let begin = Instant::now();
        // The lock is held through the commit: `pause` and `destroy` find no row in flight.
        let done = state.connection.as_ref().map(|connection| insert(connection, id));
        let took = begin.elapsed();
        match done {
            Some(Ok(())) => {
                state.last = id;
                state.commits.add(took);
                port.say(&format!("demo ack id={id} us={}", took.as_micros()));
            }
            Some(Err(e)) => {
                state.running = false;
                port.say(&format!("demo error op=insert id={id} {e}"));
            }
            None => state.running = false,
        }
    }
}

fn insert(connection: &Connection, id: u64) -> rusqlite::Result<()> {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64);
    let payload = payload(id);
    let sum = row_sum(id, at_ms, &payload);
    // One statement outside a transaction is a transaction: durable when the call returns.
    connection
        .prepare_cached("INSERT INTO orders (id, at_ms, payload, sum) VALUES (?, ?, ?, ?)")?
        .execute(params![id as i64, at_ms, payload, sum])?;
    Ok(())
}

fn payload(id: u64) -> Vec<u8> {
    let mut state = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(PAYLOAD_BYTES);
    while bytes.len() < PAYLOAD_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn row_sum(id: u64, at_ms: i64, payload: &[u8]) -> i64 {
    let mut all = Vec::with_capacity(16 + payload.len());
    all.extend_from_slice(&id.to_le_bytes());
    all.extend_from_slice(&at_ms.to_le_bytes());
    all.extend_from_slice(payload);
    checksum(&all) as i64
}

/// Overwrites every file beside the database and the database itself, gives them other names,
/// deletes half of them, and makes sure that all of that is on the disk.
fn destroy() -> Outcome<String> {
    let (mut files, mut bytes) = (0_u64, 0_u64);
    let mut pending = vec![MOUNT.to_owned()];
    let mut victims = Vec::new();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)?.flatten() {
            let path = entry.path().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() { pending.push(path) } else { victims.push(path) }
        }
    }
    for path in &victims {
        let length = fs::metadata(path)?.len();
        let mut file = OpenOptions::new().write(true).open(path)?;
        let noise = payload(length ^ 0x5eed).repeat(110);
        let mut rest = length;
        while rest > 0 {
            let count = rest.min(noise.len() as u64);
            file.write_all(&noise[..count as usize])?;
            rest -= count;
        }
        file.sync_data()?;
        fs::rename(path, format!("{path}.locked"))?;
        if files % 2 == 1 {
            fs::remove_file(format!("{path}.locked"))?;
        }
        files += 1;
        bytes += length;
    }
    fs::write(format!("{MOUNT}/README-TO-GET-YOUR-FILES-BACK.txt"), "pay\n")?;
    File::open(MOUNT)?.sync_all()?;
    // SAFETY: no arguments.
    unsafe { libc::sync() };
    Ok(format!("files={files} bytes={bytes}"))
}

/// Judges the database as an application would find it: SQLite's own check, the checksum of each
/// row, ids without a hole.
fn check() -> Outcome<String> {
    if !Path::new(DATABASE).exists() {
        return Ok("checked integrity=missing rows=0 min=0 max=0 bad=0 holes=0".into());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(DATABASE, flags)?;
    let integrity: String = match connection.query_row("PRAGMA integrity_check", [], |r| r.get(0)) {
        Ok(verdict) => verdict,
        Err(e) => format!("error: {e}"),
    };
    if integrity != "ok" {
        let verdict: String = integrity.split_whitespace().collect::<Vec<_>>().join("-");
        return Ok(format!("checked integrity={verdict} rows=0 min=0 max=0 bad=0 holes=0"));
    }
    let (mut rows, mut min, mut max, mut bad, mut holes) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let mut statement =
        connection.prepare("SELECT id, at_ms, payload, sum FROM orders ORDER BY id")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (id, at_ms, sum) =
            (row.get::<_, u64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(3)?);
        let stored = row.get_ref(2)?.as_blob()?;
        bad += u64::from(stored != payload(id) || sum != row_sum(id, at_ms, stored));
        holes += u64::from(rows > 0 && id != max + 1);
        min = if rows == 0 { id } else { min };
        max = id;
        rows += 1;
    }
    Ok(format!("checked integrity=ok rows={rows} min={min} max={max} bad={bad} holes={holes}"))
}
