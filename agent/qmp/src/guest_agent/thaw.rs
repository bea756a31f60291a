//! Thawing without an async runtime, for a process that must work when all else is dead.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::json;

use super::{ANSWER_BYTES_MAX, answers_opening, fresh_id, opening, read_answer, request, silent};
use crate::{Error, Result, libvirt::Target};

const THAW: &str = "guest-fsfreeze-thaw";

/// Thaws the guest behind the agent's socket at `path` within `timeout` and returns how many
/// file systems were frozen. Blocks the calling thread; needs no runtime.
pub fn thaw_blocking(path: &Path, timeout: Duration) -> Result<u64> {
    let mut talk = Blocking { stream: connect(path)?, deadline: Instant::now() + timeout };
    let channel = path.display().to_string();
    let outcome = (|| {
        let id = fresh_id();
        talk.send(&opening(id))?;
        while !answers_opening(&talk.line()?, id) {}
        talk.send(&request(&json!({ "execute": THAW })))?;
        talk.line()
    })();
    let line = outcome.map_err(|e: io::Error| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => silent(&channel, timeout),
        _ => Error::Closed { reason: e.to_string() },
    })?;
    count(read_answer(THAW, &line)?)
}

fn count(answer: serde_json::Value) -> Result<u64> {
    answer.as_u64().ok_or_else(|| Error::shape(THAW, "no number of file systems"))
}

/// Connects without ever waiting: a plain `connect` blocks while the listener's queue is full.
fn connect(path: &Path) -> Result<UnixStream> {
    let open = || -> rustix::io::Result<UnixStream> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let kind = SocketType::STREAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok(socket.into())
    };
    open().map_err(|e| Error::Connect { path: path.to_owned(), reason: e.to_string() })
}

struct Blocking {
    stream: UnixStream,
    deadline: Instant,
}

impl Blocking {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // A few hundred bytes: they fit the socket's buffer or the channel is dead.
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes)
    }

    /// Byte by byte: a few hundred of them, and none is read past the line.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            self.stream.set_read_timeout(Some(self.left()?))?;
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte[0] == b'\n' => return Ok(line),
                Ok(_) if line.len() < ANSWER_BYTES_MAX => line.push(byte[0]),
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// [`thaw_blocking`] for a guest whose agent libvirt holds.
pub fn thaw_blocking_virsh(target: &Target, timeout: Duration) -> Result<u64> {
    let failed = |reason: String| Error::Virsh {
        program: target.program.clone(),
        action: format!("qemu-agent-command {}", target.domain),
        reason,
    };
    let mut child = Command::new(&target.program)
        .args(target.agent_arguments(THAW, timeout))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let deadline = Instant::now() + timeout;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => {
                // It may have ended meanwhile; either way it is reaped here.
                let _ = child.kill();
                let _ = child.wait();
                other.map_err(|e| failed(e.to_string()))?;
                return Err(silent(&format!("libvirt domain {}", target.domain), timeout));
            }
        }
    };
    // The answer is a line of a few bytes, which a pipe holds: nothing is lost by reading late.
    let mut answer = Vec::new();
    if let Some(out) = child.stdout.take() {
        let read = out.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut answer);
        read.map_err(|e| failed(e.to_string()))?;
    }
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    count(read_answer(THAW, &answer)?)
}
