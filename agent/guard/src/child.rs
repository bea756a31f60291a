//! Starting processes that die with the guard.

use crate::config::{GuardError, Program};
use crate::shared::{Counters, ENVIRONMENT, Region};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open,
    set_parent_process_death_signal,
};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A started process. Its identity is never reused while it is here: only `ended` reaps it.
pub(crate) struct Process {
    child: Child,
    /// Readable as soon as the process ends; none on kernels before 5.3, where ticks must do.
    pub(crate) ended_fd: Option<OwnedFd>,
}

/// Code for a process whose end could not be learnt (someone else reaped it).
const UNKNOWN_END: u8 = 1;

impl Process {
    /// Starts `program` with `inherited` descriptors left open in it. Waits for its `exec`
    /// alone; at that time there is no worker whose guests could wait.
    ///
    /// The kernel ties it to the calling *thread*: that one must live as long as the guard.
    pub(crate) fn start(
        program: &Program,
        environment: Option<&str>,
        inherited: [Option<RawFd>; 2],
    ) -> io::Result<Process> {
        let mut command = Command::new(&program.program);
        command.args(&program.args).stdin(Stdio::null());
        // A group of its own: Ctrl-C in a terminal reaches the guard alone, which passes it on.
        command.process_group(0);
        command.env_remove(ENVIRONMENT);
        if let Some(value) = environment {
            command.env(ENVIRONMENT, value);
        }
        let guard = getpid();
        // SAFETY: the closure makes system calls alone: no allocation, no locks.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // The guard may have died before the line above: then no signal would come.
                if getppid() != Some(guard) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                for fd in inherited.into_iter().flatten() {
                    // SAFETY: open in the guard during `spawn`, so open in its copy.
                    let fd = BorrowedFd::borrow_raw(fd);
                    fcntl_setfd(fd, FdFlags::empty())?;
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        let ended_fd = pid_of(&child).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Ok(Process { child, ended_fd })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        if let Some(pid) = pid_of(&self.child) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Reaps it if it has ended, without waiting. Tells the exit code as a shell does
    /// (128 and the signal), and how to say it.
    pub(crate) fn ended(&mut self) -> Option<(u8, String)> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some((code_of(status), status.to_string())),
            Err(error) => Some((UNKNOWN_END, format!("ended, no status: {error}"))),
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id().cast_signed())
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(UNKNOWN_END)
}

/// Starts a worker: its process, the shared memory, the guard's end of the control socket.
pub(crate) fn start_worker(
    program: &Program,
    heartbeat_every_ms: u64,
    counters: &Counters,
) -> Result<(Process, Region, OwnedFd), GuardError> {
    let setup = |what| move |source| GuardError::Setup { what, source };
    let (memory, region) =
        Region::create(heartbeat_every_ms).map_err(setup("make shared memory"))?;
    // Before the start: the worker may read them as the first thing that it does.
    region.store_counters(counters);
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| setup("make the control socket")(error.into()))?;
    let (memory_fd, control_fd) = (memory.as_raw_fd(), theirs.as_raw_fd());
    let environment = format!("{}:{memory_fd}:{control_fd}", getpid().as_raw_nonzero());
    let process = Process::start(program, Some(&environment), [Some(memory_fd), Some(control_fd)])
        .map_err(|source| GuardError::Start { program: program.program.clone(), source })?;
    Ok((process, region, ours))
}
