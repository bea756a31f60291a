//! `afterimage export` as a process that runs until it is ended.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Cli, Outcome, REPLY_LIMIT, poll};

/// A running export. Dropping it kills it.
pub struct Export {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it said when it was ready.
    pub report: Value,
    socket: PathBuf,
}

impl Export {
    /// Starts `export NAME --at AT --socket SOCKET --json` with `more` words, and waits until it is
    /// ready.
    #[track_caller]
    pub fn start(cli: &Cli, name: &str, at: &str, socket: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(cli.program())
            .args(["export", name, "--at", at, "--json", "--socket"])
            .arg(socket)
            .args(more)
            .arg("--state")
            .arg(cli.state())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("run {}: {e}", cli.program().display()));
        let mut stdout = BufReader::new(child.stdout.take().expect("its standard output"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("read the ready line");
        let Ok(report) = serde_json::from_str(&line) else {
            let mut stderr = String::new();
            let _ = child.stderr.take().expect("its errors").read_to_string(&mut stderr);
            panic!("export {name} --at {at}: {line:?} {stderr}");
        };
        Self { child, stdout, report, socket: socket.to_owned() }
    }

    /// The URI of a disk, as QEMU and libnbd take it.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Sends a signal and waits for the end: nothing more is printed, and the socket is gone.
    #[track_caller]
    pub fn end(mut self, signal: Signal) -> Outcome {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("send the signal");
        let ended = poll(REPLY_LIMIT, || self.child.try_wait().ok().flatten());
        let status = ended.expect("the export ends on a signal");
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).expect("read what it printed");
        let mut errors = self.child.stderr.take().expect("its errors");
        errors.read_to_string(&mut stderr).expect("read its errors");
        Outcome { code: status.code().unwrap_or(-1), stdout, stderr }
    }

    /// SIGKILL: what it leaves is what a crash leaves.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
