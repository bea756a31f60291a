//! The process that runs a guest: which one, since when, and how it was started.
//!
//! A pid alone may name another process later; pid and start time together never do until the
//! host boots again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Qemu;
use crate::{Error, Result};

/// Which process: what is noted of one that may be gone when the note is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

impl ProcessId {
    /// Whether this very process still lives (a zombie does not).
    pub fn lives(&self) -> bool {
        start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
    }
}

/// A process, told from all others of this boot of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// Its command line, program first. Bytes that are no UTF-8 are replaced.
    pub command_line: Vec<String>,
}

impl Process {
    /// Looks the process up in /proc.
    pub fn look_up(pid: u32) -> Result<Process> {
        let start_ticks = start_ticks(pid)?;
        let raw = read(format!("/proc/{pid}/cmdline"))?;
        let raw = raw.strip_suffix(b"\0").unwrap_or(&raw);
        let words = raw.split(|&b| b == 0);
        let command_line = words.map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        Ok(Process { pid, start_ticks, command_line })
    }

    /// Which process it is, to be noted.
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_ticks: self.start_ticks }
    }

    /// Whether this very process still lives (a zombie does not).
    pub fn lives(&self) -> bool {
        self.id().lives()
    }

    /// The user and group that it runs as (effective), from `/proc/PID/status`: the owner of `/proc/PID`
    /// itself is root for a process that changed its user after its start.
    pub fn owner(&self) -> Result<(u32, u32)> {
        let path = format!("/proc/{}/status", self.pid);
        let text = String::from_utf8_lossy(&read(path.clone())?).into_owned();
        let effective = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        let odd = || Error::Proc { path: path.into(), reason: "no user or group".to_owned() };
        effective("Uid:").zip(effective("Gid:")).ok_or_else(odd)
    }
}

fn read(path: String) -> Result<Vec<u8>> {
    let path = PathBuf::from(path);
    std::fs::read(&path).map_err(|e| Error::Proc { path, reason: e.to_string() })
}

/// When the process started; an error when it is gone or only waits to be reaped.
fn start_ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let odd = |reason: &str| Error::Proc { path: path.clone().into(), reason: reason.to_owned() };
    let stat = String::from_utf8_lossy(&read(path.clone())?).into_owned();
    // The second field is the program's name in parentheses and may hold anything, even `)`.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(|| odd("it has no program name"))?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(odd("the process has ended"));
    }
    // Field 3 is gone; 22 is the nineteenth from field 4 on.
    let ticks = fields.nth(18).and_then(|f| f.parse().ok());
    ticks.ok_or_else(|| odd("field 22 is no number"))
}

impl Qemu {
    /// The process that runs this QEMU; `None` when the monitor can't tell (libvirt without its
    /// pid file).
    ///
    /// Over a QMP socket it is the one that listens there. A QEMU that was handed an open socket
    /// by its parent shows the parent instead: see whether the command line is QEMU's.
    pub fn process(&self) -> Result<Option<Process>> {
        self.monitor().pid().map(Process::look_up).transpose()
    }
}
