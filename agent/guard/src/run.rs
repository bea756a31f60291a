//! The guard's loop.
//!
//! ```text
//!            start                 death                  undone            pause over
//!  ────────────────► Running ───────────────► Undoing ──────────► Pausing ────────────► Running
//!                     │   ▲ decide(): shut,     (on_death,                 (back-off)
//!                     │   └ kill; SIGTERM        limited)
//!                     └─ ended for good, or asked to stop ──► (Undoing) ──► the exit code
//! ```
//!
//! It waits in `poll` alone, a tick at most. A worker that was killed but does not die (a thread
//! of it waits for a dead disk) is waited for without end, its sockets shut meanwhile: a second
//! worker beside it could write to the same journal.

use crate::backoff::Backoff;
use crate::child::{Process, start_worker};
use crate::config::{GuardConfig, GuardError, ns};
use crate::decide::{Action, KillReason, Limits, decide};
use crate::report::Report;
use crate::shared::{Counters, now_ns};
use crate::watch::{Pace, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::mm::{MlockAllFlags, mlockall};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

/// A worker that ends by itself with one of these before it was ready is not started again: the
/// next would find the same (wrong settings, a locked or newer state directory).
const FINAL_CODES: std::ops::RangeInclusive<u8> = 2..=4;
/// The first wait before saying again that a killed worker does not die; it doubles.
const COMPLAIN_AFTER_NS: u64 = 1_000_000_000;
/// How long a killed process takes to die at most, unless it waits for a disk.
const DEATH_NS: u64 = 200_000_000;

/// Starts the worker, guards it and starts it again, until it ends for good or the guard gets
/// SIGTERM or SIGINT. Returns the worker's exit code, 128 and the signal if a signal ended it.
///
/// To be called from the main thread, before any other thread or runtime is started, and as the
/// last thing that the process does: the kernel kills the worker when this *thread* ends.
///
/// # Errors
/// Only before a first worker runs: limits that cannot be kept, no such program, no descriptors.
pub fn run(config: GuardConfig) -> Result<ExitCode, GuardError> {
    config.check()?;
    let mut guard = Guard::new(config)?;
    let first = guard.start()?;
    guard.run(Phase::Running(first))
}

struct Guard {
    limits: Limits,
    tick: Duration,
    report: Report,
    signals: UnixStream,
    backoff: Backoff,
    counters: Counters,
    /// When a stopping worker is killed; set by the first signal.
    stop_ns: Option<u64>,
    undo: Option<Undo>,
    config: GuardConfig,
}

enum Phase {
    Running(Running),
    Undoing { next: Next },
    Pausing { until_ns: u64 },
    Ended(u8),
}

struct Running {
    process: Process,
    watch: Watch,
    started_ns: u64,
    kill: Option<Kill>,
}

/// A SIGKILL that was sent.
struct Kill {
    sent_ns: u64,
    undone: bool,
    complain_ns: u64,
    complain_after_ns: u64,
}

/// An `on_death` process. Once killed it does nothing any more, dead or not.
struct Undo {
    process: Process,
    limit_ns: u64,
    killed: bool,
}

/// What follows the death of a worker.
#[derive(Clone, Copy)]
enum Next {
    Start { at_ns: u64 },
    End { code: u8 },
}

impl Guard {
    fn new(config: GuardConfig) -> Result<Guard, GuardError> {
        let setup = |what| move |source| GuardError::Setup { what, source };
        let mut report = Report::start().map_err(setup("start the log thread"))?;
        let (signals, theirs) = UnixStream::pair().map_err(setup("make a socket for signals"))?;
        signals.set_nonblocking(true).map_err(setup("set up the socket for signals"))?;
        for signal in [SIGTERM, SIGINT] {
            let end = theirs.try_clone().map_err(setup("make a socket for signals"))?;
            pipe::register(signal, end).map_err(setup("handle signals"))?;
        }
        // Under memory pressure the guard's own code may be dropped, and to come back it would
        // need the disk that hangs. What it touches from here on stays.
        if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT) {
            report.info(format!("the guard's memory is not locked: {error}"));
        }
        Ok(Guard {
            limits: Limits::new(ns(config.stall_limit), ns(config.hold_limit)),
            tick: config.tick(),
            report,
            signals,
            backoff: Backoff::new(&config),
            counters: Counters::default(),
            stop_ns: None,
            undo: None,
            config,
        })
    }

    fn run(mut self, mut phase: Phase) -> Result<ExitCode, GuardError> {
        loop {
            self.wait(&phase);
            let now_ns = now_ns();
            self.take_signals(&phase, now_ns);
            self.tend_undo(now_ns);
            phase = match phase {
                Phase::Running(running) => self.tend(running, now_ns),
                Phase::Undoing { next } if self.undoing() => Phase::Undoing { next },
                Phase::Undoing { next } => next.phase(),
                Phase::Pausing { .. } if self.stop_ns.is_some() => Phase::Ended(0),
                Phase::Pausing { until_ns } if now_ns < until_ns => Phase::Pausing { until_ns },
                Phase::Pausing { .. } => self.start_again(now_ns),
                Phase::Ended(code) => Phase::Ended(code),
            };
            if let Phase::Ended(code) = phase {
                return Ok(ExitCode::from(code));
            }
        }
    }

    /// Until something happens, a tick at most.
    fn wait(&self, phase: &Phase) {
        let mut timeout = self.tick;
        let mut fds = Vec::with_capacity(3);
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        let mut add = |fd| fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match phase {
            Phase::Running(Running { process, watch, .. }) => {
                process.ended_fd.iter().for_each(|fd| add(fd.as_fd()));
                watch.control.iter().for_each(|fd| add(fd.as_fd()));
            }
            Phase::Undoing { .. } => {
                let ended = self.undo.iter().filter_map(|undo| undo.process.ended_fd.as_ref());
                ended.for_each(|fd| add(fd.as_fd()));
            }
            Phase::Pausing { until_ns } => {
                let left = Duration::from_nanos(until_ns.saturating_sub(now_ns()));
                timeout = timeout.min(left);
            }
            Phase::Ended(_) => return,
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// The first signal is passed on as SIGTERM and sets the time limit; a later one ends it.
    fn take_signals(&mut self, phase: &Phase, now_ns: u64) {
        let mut bytes = [0; 16];
        let Ok(1..) = self.signals.read(&mut bytes) else { return };
        if self.stop_ns.is_some() {
            self.stop_ns = Some(now_ns);
            return;
        }
        self.stop_ns = Some(now_ns.saturating_add(ns(self.config.stop_limit)));
        if let Phase::Running(running) = phase {
            running.process.terminate();
            self.report.info(format!("asked to stop: worker {} too", running.process.id()));
        }
    }

    fn start(&mut self) -> Result<Running, GuardError> {
        let started_ns = now_ns();
        let heartbeat_every_ms = self.tick.as_millis() as u64;
        let (process, region, control) =
            start_worker(&self.config.worker, heartbeat_every_ms, &self.counters)?;
        let watch = Watch::new(region, control, Pace::new(self.tick, &self.limits, started_ns));
        self.report.info(format!("worker {} started", process.id()));
        Ok(Running { process, watch, started_ns, kill: None })
    }

    fn start_again(&mut self, now_ns: u64) -> Phase {
        match self.start() {
            Ok(running) => Phase::Running(running),
            Err(error) => {
                let pause = self.backoff.after(Duration::ZERO).max(self.tick);
                self.report.error(format!("{error}; next attempt in {pause:?}"));
                Phase::Pausing { until_ns: now_ns.saturating_add(ns(pause)) }
            }
        }
    }

    /// One tick of a running worker.
    fn tend(&mut self, mut running: Running, now_ns: u64) -> Phase {
        if let Some((code, status)) = running.process.ended() {
            return self.bury(running, code, &status, now_ns);
        }
        if let Some(kill) = &mut running.kill {
            if now_ns >= kill.complain_ns {
                kill.complain_ns = now_ns + kill.complain_after_ns;
                kill.complain_after_ns *= 2;
                let id = running.process.id();
                self.report.error(format!(
                    "worker {id} was killed but does not die (a disk that hangs?); \
                     its guests run on unprotected; no other worker starts before it is gone"
                ));
            }
            // Sockets that were under way when it was killed.
            running.watch.shut_all(now_ns);
            // What it froze must not wait for its disk; dying, it freezes nothing more.
            if !kill.undone && now_ns >= kill.sent_ns + DEATH_NS {
                kill.undone = true;
                self.start_undo(now_ns);
            }
            return Phase::Running(running);
        }
        let id = running.process.id();
        let mut view = running.watch.look(now_ns);
        view.is_stopped = view.is_silent(&self.limits) && is_stopped(id);
        let actions = decide(&view, &self.limits);
        for action in actions {
            self.act(&mut running, action, now_ns);
        }
        if running.kill.is_none() && self.stop_ns.is_some_and(|stop_ns| now_ns >= stop_ns) {
            let reason = KillReason::StopLimit;
            self.act(&mut running, Action::Kill { reason, stall_ns: 0 }, now_ns);
        }
        Phase::Running(running)
    }

    /// Does first, tells afterwards.
    fn act(&mut self, running: &mut Running, action: Action, now_ns: u64) {
        let id = running.process.id();
        let line = match action {
            Action::Shut { slot, stall_ns } => {
                running.watch.shut(slot, now_ns);
                self.counters.shutdowns += 1;
                self.note_stall(stall_ns);
                let kind = running.watch.kind(slot);
                let stall_ms = ms(stall_ns);
                format!("worker {id}: {kind} {slot} is stuck for {stall_ms} ms: socket shut")
            }
            Action::Kill { reason, stall_ns } => {
                running.process.kill();
                running.watch.shut_all(now_ns);
                let complain_ns = now_ns + COMPLAIN_AFTER_NS;
                let complain_after_ns = 2 * COMPLAIN_AFTER_NS;
                running.kill =
                    Some(Kill { sent_ns: now_ns, undone: false, complain_ns, complain_after_ns });
                self.counters.last_kill = Some(reason);
                if reason != KillReason::StopLimit {
                    self.counters.kills_by_stall += 1;
                }
                self.note_stall(stall_ns);
                format!("worker {id} killed: {reason:?}, a guest waited {} ms", ms(stall_ns))
            }
        };
        running.watch.region.store_counters(&self.counters);
        self.report.warn(line);
    }

    fn note_stall(&mut self, stall_ns: u64) {
        self.counters.stall_ms_max = self.counters.stall_ms_max.max(ms(stall_ns));
    }

    /// After a death: all of the worker's is let go, then `on_death` unless it ended well.
    fn bury(&mut self, running: Running, code: u8, status: &str, now_ns: u64) -> Phase {
        let Running { process, mut watch, started_ns, kill } = running;
        let ready = watch.region.worker.ready.load(Acquire) != 0;
        // A child that the worker left behind may hold a guest's socket open.
        watch.shut_all(now_ns);
        drop(watch);
        self.counters.restarts += 1;
        let id = process.id();
        let refused = kill.is_none() && !ready && FINAL_CODES.contains(&code);
        let clean = code == 0 || refused;
        let next = if clean || self.stop_ns.is_some() {
            self.report.info(format!("worker {id} ended: {status}"));
            Next::End { code }
        } else {
            let lived = Duration::from_nanos(now_ns.saturating_sub(started_ns));
            let pause = self.backoff.after(lived);
            let line = format!("worker {id} died: {status}; the next starts in {pause:?}");
            self.report.warn(line);
            Next::Start { at_ns: now_ns.saturating_add(ns(pause)) }
        };
        if !clean && !kill.is_some_and(|kill| kill.undone) {
            self.start_undo(now_ns);
        }
        if self.undo.is_some() { Phase::Undoing { next } } else { next.phase() }
    }

    fn start_undo(&mut self, now_ns: u64) {
        let Some(program) = &self.config.on_death else { return };
        if let Some(Undo { process, .. }) = &self.undo {
            let id = process.id();
            self.report.error(format!("nothing is undone while killed process {id} lives on"));
            return;
        }
        match Process::start(program, None, [None, None]) {
            Ok(process) => {
                let limit_ns = now_ns.saturating_add(ns(self.config.on_death_limit));
                self.undo = Some(Undo { process, limit_ns, killed: false });
            }
            Err(error) => self.report.error(format!("start {:?}: {error}", program.program)),
        }
    }

    /// Reaps the `on_death` process, kills it at its limit.
    fn tend_undo(&mut self, now_ns: u64) {
        let Some(undo) = &mut self.undo else { return };
        let id = undo.process.id();
        if let Some((code, status)) = undo.process.ended() {
            self.undo = None;
            if code != 0 {
                let line = format!("process {id}, run after a worker's death, failed: {status}");
                self.report.error(line);
            }
        } else if now_ns >= undo.limit_ns && !undo.killed {
            undo.process.kill();
            undo.killed = true;
            undo.limit_ns = now_ns + DEATH_NS;
            self.report.error(format!("process {id} took too long after a death: killed"));
        }
    }

    /// Whether the next worker has to wait for the `on_death` process: it may freeze guests
    /// itself, which the other would undo.
    fn undoing(&self) -> bool {
        self.undo.as_ref().is_some_and(|undo| !undo.killed || now_ns() < undo.limit_ns)
    }
}

impl Next {
    fn phase(self) -> Phase {
        match self {
            Next::Start { at_ns } => Phase::Pausing { until_ns: at_ns },
            Next::End { code } => Phase::Ended(code),
        }
    }
}

fn ms(ns: u64) -> u64 {
    ns / 1_000_000
}
/// Whether a process was stopped by a signal or a debugger (proc(5), `stat`, third field).
fn is_stopped(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, Some('T' | 't'))
}
