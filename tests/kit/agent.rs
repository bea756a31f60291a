//! The program under test as a person or a script uses it: a daemon beside the VMs, and commands.

use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{REPLY_LIMIT, poll, tail};

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Outcome {
    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }
}

/// The command line over one state directory; needs no agent.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    state: PathBuf,
    /// A command that runs what follows it, somewhere else.
    through: Vec<String>,
}

impl Cli {
    /// `program` is `env!("CARGO_BIN_EXE_afterimage")`.
    pub fn new(program: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), state: state.into(), through: Vec::new() }
    }

    /// The same by a command that runs what follows it.
    pub fn through(mut self, words: &[&str]) -> Self {
        self.through = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// The program, to be given arguments.
    pub fn command(&self) -> Command {
        let Some((first, rest)) = self.through.split_first() else {
            return Command::new(&self.program);
        };
        let mut command = Command::new(first);
        command.args(rest).arg(&self.program);
        command
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Runs a command with `--state` to its end.
    #[track_caller]
    pub fn run<S: AsRef<str>>(&self, arguments: &[S]) -> Outcome {
        let mut command = self.command();
        command.args(arguments.iter().map(AsRef::as_ref)).arg("--state").arg(&self.state);
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("run {}: {e}", self.program.display()));
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed, and gives what it printed.
    #[track_caller]
    pub fn ok<S: AsRef<str>>(&self, arguments: &[S]) -> String {
        let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let outcome = self.run(arguments);
        assert!(outcome.code == 0, "afterimage {}: {outcome:?}", words.join(" "));
        outcome.stdout
    }

    /// Runs a command that must succeed with `--json`, and gives what it printed.
    #[track_caller]
    pub fn json<S: AsRef<str>>(&self, arguments: &[S]) -> Value {
        let mut words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        words.push("--json");
        let printed = self.ok(&words);
        serde_json::from_str(&printed)
            .unwrap_or_else(|e| panic!("afterimage {}: no JSON ({e}): {printed}", words.join(" ")))
    }

    /// `restore NAME --at AT --to TO --json`: the images in the order of `nodes` (see `Vm::nodes`),
    /// or how the command ended where it did not succeed.
    #[track_caller]
    pub fn restore(
        &self,
        name: &str,
        at: &str,
        to: &Path,
        nodes: &[String],
    ) -> Result<Vec<PathBuf>, Outcome> {
        let to = to.to_str().expect("temporary directories have UTF-8 names");
        let outcome = self.run(&["restore", name, "--at", at, "--to", to, "--json"]);
        if outcome.code != 0 {
            return Err(outcome);
        }
        let report = outcome.json();
        let path_of = |node: &String| {
            let disks = report["disks"].as_array().into_iter().flatten();
            let disk = disks.into_iter().find(|disk| disk["node"] == node.as_str());
            let path = disk.and_then(|disk| disk["path"].as_str());
            PathBuf::from(path.unwrap_or_else(|| panic!("disk {node} was not restored: {report}")))
        };
        Ok(nodes.iter().map(path_of).collect())
    }

    /// `status NAME --json` once it satisfies `wanted`; panics with the last one at the limit.
    #[track_caller]
    pub fn wait_status(
        &self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = Outcome { code: -1, stdout: String::new(), stderr: String::new() };
        let found = poll(limit, || {
            last = self.run(&["status", name, "--json"]);
            let status: Value = serde_json::from_str(&last.stdout).ok()?;
            (last.code == 0 && wanted(&status)).then_some(status)
        });
        found.unwrap_or_else(|| panic!("{name} did not get there within {limit:?}: {last:?}"))
    }

    /// [`Cli::wait_status`] until `state` is `wanted` (`protected`, `gap` ..).
    #[track_caller]
    pub fn wait_state(&self, name: &str, wanted: &str, limit: Duration) -> Value {
        self.wait_status(name, limit, |status| status["state"] == wanted)
    }
}

/// How tests run a daemon. The disk of a loaded machine hangs for a second now and then, and the
/// guard then does as it should: kills the worker, and a gap begins that the test did not ask for.
/// That a hang is found, by the limit that is set, is what tests of the guard are for.
const PATIENT: &[&str] = &["--stall-limit", "5s"];

/// A running daemon: the guard, and under it the worker that does the work. Dropping it kills both.
pub struct Agent {
    cli: Cli,
    guard: Child,
    log: PathBuf,
}

impl Deref for Agent {
    type Target = Cli;

    fn deref(&self) -> &Cli {
        &self.cli
    }
}

impl Agent {
    /// Starts `afterimage agent --state DIR` and waits until its API socket answers. What it logs
    /// goes to `agent.log` beside the state directory, further runs to the same file.
    #[track_caller]
    pub fn start(program: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self::start_with(PATIENT, program, state)
    }

    /// As [`Agent::start`], with these options alone.
    #[track_caller]
    pub fn start_with(
        options: &[&str],
        program: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
    ) -> Self {
        let state: PathBuf = state.into();
        let log = state.with_extension("agent.log");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap_or_else(|e| panic!("open {}: {e}", log.display()));
        Self::launch(options, Cli::new(program, state), file, log)
    }

    /// As [`Agent::start`], with a log of the caller's; what is shown of it when a test fails is
    /// read from `log`.
    #[track_caller]
    pub fn start_logging_to(
        program: impl Into<PathBuf>,
        state: impl Into<PathBuf>,
        file: File,
        log: PathBuf,
    ) -> Self {
        Self::launch(PATIENT, Cli::new(program, state), file, log)
    }

    /// As [`Agent::start`], by a command line of the caller's.
    #[track_caller]
    pub fn start_by(cli: Cli) -> Self {
        let log = cli.state.with_extension("agent.log");
        let file = File::options().create(true).append(true).open(&log);
        let file = file.unwrap_or_else(|e| panic!("open {}: {e}", log.display()));
        Self::launch(PATIENT, cli, file, log)
    }

    #[track_caller]
    fn launch(options: &[&str], cli: Cli, file: File, log: PathBuf) -> Self {
        let guard = cli
            .command()
            .args(["agent", "--state"])
            .arg(&cli.state)
            .args(options)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the agent's log"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("start {}: {e}", cli.program.display()));
        let mut agent = Self { cli, guard, log };
        let socket = agent.cli.state.join("api.sock");
        let up = poll(REPLY_LIMIT, || {
            if let Ok(Some(status)) = agent.guard.try_wait() {
                panic!("the agent ended at once ({status}): {}", tail(&agent.log, 20));
            }
            UnixStream::connect(&socket).ok()
        });
        assert!(up.is_some(), "no agent on {}: {}", socket.display(), agent.last_words());
        agent
    }

    /// The guard's process.
    pub fn guard_pid(&self) -> u32 {
        self.guard.id()
    }

    /// The worker's process; the guard has other children for a moment, to undo what a killed
    /// worker left. `None` between two workers.
    pub fn worker_pid(&self) -> Option<u32> {
        children(self.guard.id()).into_iter().find(|&pid| is_worker(pid))
    }

    /// Sends the worker a signal and gives its pid.
    #[track_caller]
    pub fn signal_worker(&self, signal: Signal) -> u32 {
        let worker = poll(REPLY_LIMIT, || self.worker_pid())
            .unwrap_or_else(|| panic!("the guard has no worker: {}", self.last_words()));
        send_signal(worker, signal);
        worker
    }

    /// SIGKILL to the worker; the guard starts another.
    #[track_caller]
    pub fn kill_worker(&self) -> u32 {
        self.signal_worker(Signal::KILL)
    }

    /// SIGSTOP to the worker: it hangs, as far as anybody can see.
    #[track_caller]
    pub fn stop_worker(&self) -> u32 {
        self.signal_worker(Signal::STOP)
    }

    /// SIGCONT to the worker.
    #[track_caller]
    pub fn continue_worker(&self) -> u32 {
        self.signal_worker(Signal::CONT)
    }

    /// Waits for a worker other than `old` and gives its pid.
    #[track_caller]
    pub fn wait_other_worker(&self, old: u32, limit: Duration) -> u32 {
        poll(limit, || self.worker_pid().filter(|&pid| pid != old)).unwrap_or_else(|| {
            panic!("no other worker than {old} within {limit:?}: {}", self.last_words())
        })
    }

    /// Ends it as a service manager does: SIGTERM to the guard, and wait.
    #[track_caller]
    pub fn stop(mut self) {
        send_signal(self.guard.id(), Signal::TERM);
        let ended = poll(REPLY_LIMIT, || self.guard.try_wait().ok().flatten());
        assert!(ended.is_some(), "the agent did not end on SIGTERM: {}", self.last_words());
    }

    /// SIGKILL to guard and worker at once: as if the machine's power went, but for its page cache.
    pub fn kill(self) {
        drop(self);
    }

    /// The end of the agent's log.
    pub fn last_words(&self) -> String {
        tail(&self.log, 30)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's last words:\n{}", self.last_words());
            if let Some(worker) = self.worker_pid() {
                eprintln!("its threads:\n{}", threads(worker));
            }
        }
        if matches!(self.guard.try_wait(), Ok(Some(_))) {
            return;
        }
        // The guard first, stopped: it must not start another worker between the two.
        send_signal(self.guard.id(), Signal::STOP);
        let workers = children(self.guard.id());
        for &worker in &workers {
            send_signal(worker, Signal::KILL);
        }
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        // A dying worker's sockets take connections until its end; whoever adopts it buries it.
        let is_gone = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
        };
        let _ = poll(REPLY_LIMIT, || workers.iter().all(is_gone).then_some(()));
    }
}

/// Name, state and place in the kernel of each thread: what a hang looks like.
fn threads(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let word = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let lines = tasks.map(|task| {
        let task = task.path();
        let stat = word(task.join("stat"));
        let state = stat.rsplit_once(')').map_or("?", |(_, rest)| rest.trim()).chars().next();
        let (name, place) = (word(task.join("comm")), word(task.join("wchan")));
        let call = word(task.join("syscall"));
        format!("  {name} {} {place} {call}", state.unwrap_or('?'))
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that has ended meanwhile needs none.
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process was started with what only a worker gets from its guard.
fn is_worker(pid: u32) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|&byte| byte == 0).any(|entry| entry.starts_with(b"AFTERIMAGE_GUARD="))
}

/// The living children of `parent`, lowest pid first.
fn children(parent: u32) -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // After the name in brackets, which may hold anything: state and parent.
            let mut words = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
            let state = words.next();
            words.next() == Some(&parent.to_string()) && state != Some("Z")
        })
        .collect();
    found.sort_unstable();
    found
}
