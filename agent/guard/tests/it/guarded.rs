//! A guard under test, and the guests' ends of its worker's connections.

use crate::roles::{DIR, SOCKET, role};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Far beyond anything that is waited for: a test that gets here has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running guard; killed with its worker when dropped.
pub struct Guarded {
    guard: Child,
    listener: UnixListener,
    dir: tempfile::TempDir,
}

impl Guarded {
    /// Starts a guard with settings of `roles`, without their prefix.
    pub fn start(settings: &[(&str, &str)]) -> Guarded {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let program = role("roles::guard");
        let mut command = Command::new(program.program);
        command.args(program.args).env(DIR, dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
        for (name, value) in settings {
            command.env(format!("GUARD_TEST_{name}"), value);
        }
        let guard = command.spawn().unwrap();
        Guarded { guard, listener, dir }
    }

    pub fn pid(&self) -> u32 {
        self.guard.id()
    }

    /// The next connection from a loop of a worker, or from what runs after a death.
    pub fn accept(&self) -> Guest {
        wait_for(&self.listener, "a process to say that it started");
        let (socket, _) = self.listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Guest { socket: BufReader::new(socket), hello: String::new() };
        guest.hello = guest.line().expect("a greeting");
        guest
    }

    /// Whether anything says within `limit` that it started.
    pub fn starts_within(&self, limit: Duration) -> bool {
        readable_within(&self.listener, limit)
    }

    /// Starts a process that holds `pid`; to be killed by the test.
    pub fn trace(&self, pid: u32) -> Child {
        let program = role("roles::tracer");
        let mut command = Command::new(program.program);
        command.args(program.args).env(DIR, self.dir.path());
        let tracer = command.env("GUARD_TEST_TRACE", pid.to_string()).spawn().unwrap();
        assert_eq!(self.accept().told(0), "tracer");
        tracer
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for(&ending(self.pid()), "the guard to end");
        self.guard.wait().unwrap()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

/// A guest's end of a connection.
pub struct Guest {
    socket: BufReader<UnixStream>,
    hello: String,
}

impl Guest {
    /// Word `at` of the greeting.
    pub fn told(&self, at: usize) -> &str {
        self.hello.split(' ').nth(at).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.told(1).parse().unwrap()
    }

    /// A connection that has ended shows in what is read from it.
    pub fn send(&mut self, request: &str) {
        let _ = writeln!(self.socket.get_mut(), "{request}");
    }

    /// The next line; `None` at the end of the connection.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.socket.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("waited for a line: {error}"),
        }
    }

    pub fn ask(&mut self, request: &str) -> Option<String> {
        self.send(request);
        self.line()
    }

    /// How long `request` waits for the end of the connection.
    pub fn stall_of(&mut self, request: &str) -> Duration {
        let sent = Instant::now();
        self.send(request);
        assert_eq!(self.line(), None, "{request} was answered");
        sent.elapsed()
    }
}

/// Readable once `pid` has ended.
pub fn ending(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap()
}

pub fn wait_for(readable: &impl AsFd, what: &str) {
    assert!(readable_within(readable, PATIENCE), "waited for {what}");
}

fn readable_within(readable: &impl AsFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    poll(&mut [PollFd::new(readable, PollFlags::IN)], Some(&limit)) == Ok(1)
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// The letter that /proc has for the state of `pid`; none when it is gone.
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits until `pid` has stopped: a stop signal takes effect some time after it was sent.
pub fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    let began = Instant::now();
    while state(pid) != Some('T') {
        assert!(began.elapsed() < PATIENCE, "process {pid} did not stop");
        std::thread::yield_now();
    }
}
