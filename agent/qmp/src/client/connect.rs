//! From a path to a QMP connection that has greeted us, or to an error that says what the path
//! is instead. Always within the greeting limit: a monitor that serves another client takes the
//! connection and stays silent for as long as the other one lasts.

use std::{io, os::unix::fs::FileTypeExt, path::Path, time::Duration};

use serde_json::Value;
use tokio::{
    io::BufReader,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, timeout_at},
};

use super::wire::{Line, Lines, excerpt};
use crate::{Error, Limits, Result};

/// Connections that may be closed without a word, one after the other.
const CONNECTS_MAX: u32 = 4;
/// Between two of them.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// A connection that has greeted us.
pub(super) struct Greeted {
    pub lines: Lines<BufReader<OwnedReadHalf>>,
    pub write: OwnedWriteHalf,
    pub greeting: Value,
    /// The process that listens there.
    pub pid: Option<u32>,
}

/// Opens the unix socket at `path`, or says what is wrong with it.
pub(crate) async fn open(path: &Path, limit: Duration) -> Result<UnixStream> {
    let meta = std::fs::metadata(path).map_err(|e| from_io(path, &e))?;
    let kind = meta.file_type();
    if !kind.is_socket() {
        let what = match () {
            () if kind.is_dir() => "directory",
            () if kind.is_fifo() => "pipe",
            () if kind.is_file() => "regular file",
            () => "device",
        };
        return Err(Error::NotSocket { path: path.to_owned(), what });
    }
    match tokio::time::timeout(limit, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(from_io(path, &e)),
        Err(_) => Err(silent(path, limit, None)),
    }
}

fn from_io(path: &Path, e: &io::Error) -> Error {
    let path = path.to_owned();
    match e.kind() {
        io::ErrorKind::NotFound => Error::Missing { path },
        io::ErrorKind::ConnectionRefused => Error::Refused { path },
        // A unix socket answers so when the queue of waiting connections is full.
        io::ErrorKind::WouldBlock => silent(&path, Duration::ZERO, None),
        io::ErrorKind::PermissionDenied => {
            let reason = "permission denied: run as the user that QEMU runs as, or as root";
            Error::Connect { path, reason: reason.to_owned() }
        }
        _ => Error::Connect { path, reason: e.to_string() },
    }
}

/// The name and number of the process `pid`, for a message.
fn peer_in_words(pid: Option<u32>) -> String {
    let Some(pid) = pid else { return "its process is not known".to_owned() };
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(comm) => format!("it belongs to {} with pid {pid}", comm.trim_end()),
        Err(_) => format!("it belongs to pid {pid}"),
    }
}

fn silent(path: &Path, waited: Duration, pid: Option<u32>) -> Error {
    let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    Error::Silent { path: path.to_owned(), waited_ms, peer: peer_in_words(pid) }
}

/// Connects and reads the greeting. QEMU 10.0 takes leave of a client on another thread than it takes the
/// next, and may close the next one's connection with it: one that is closed without a word is made anew.
pub(super) async fn greet(path: &Path, limits: &Limits) -> Result<Greeted> {
    let deadline = Instant::now() + limits.greeting;
    for _ in 0..CONNECTS_MAX {
        if let Some(greeted) = greet_once(path, limits, deadline).await? {
            return Ok(greeted);
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
    let saw = "it closed the connection without a word".to_owned();
    Err(Error::NotQmp { path: path.to_owned(), saw })
}

/// One connection; `None`: it was closed without a word.
async fn greet_once(path: &Path, limits: &Limits, deadline: Instant) -> Result<Option<Greeted>> {
    let stream = open(path, deadline.saturating_duration_since(Instant::now())).await?;
    let pid = stream.peer_cred().ok().and_then(|c| c.pid()).and_then(|p| u32::try_from(p).ok());
    let (read, write) = stream.into_split();
    let mut lines = Lines::new(BufReader::new(read), limits.message_bytes_max);
    let not_qmp = |saw: String| Error::NotQmp { path: path.to_owned(), saw };
    loop {
        let line = match timeout_at(deadline, lines.next()).await {
            Err(_) if lines.begun().is_empty() => return Err(silent(path, limits.greeting, pid)),
            Err(_) => return Err(not_qmp(recognise(lines.begun()))),
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(Err(e)) => return Err(Error::Closed { reason: e.to_string() }),
            Ok(Ok(Line::Whole(line))) => line,
            Ok(Ok(Line::End(begun))) if begun.is_empty() => return Ok(None),
            Ok(Ok(Line::End(begun) | Line::TooLong(begun))) => {
                return Err(not_qmp(recognise(&begun)));
            }
        };
        let said: Value = serde_json::from_slice(&line).map_err(|_| not_qmp(recognise(&line)))?;
        // What it had to say to the client before, this one hears before the greeting.
        if said["event"].is_string() {
            continue;
        }
        if !said["QMP"].is_object() {
            return Err(not_qmp(recognise(&line)));
        }
        return Ok(Some(Greeted { lines, write, greeting: said, pid }));
    }
}

/// What kind of thing opens with these bytes.
fn recognise(said: &[u8]) -> String {
    let is = |mark: &[u8]| said.windows(mark.len()).any(|w| w == mark);
    let known = match () {
        () if said.starts_with(b"NBDMAGIC") => "an NBD server",
        () if said.starts_with(b"RFB ") => "a VNC display",
        () if said.starts_with(b"SSH-") => "an SSH server",
        () if is(b"monitor - type 'help'") => {
            "QEMU's human monitor (-monitor); Afterimage needs the one of -qmp"
        }
        () => return format!("it opened with {}", excerpt(said)),
    };
    format!("it is {known}")
}
