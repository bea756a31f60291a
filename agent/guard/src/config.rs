//! What the guard is told: the worker's command line and the limits.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

/// A program to start, with its arguments. It inherits the guard's environment, standard output
/// and standard error; its standard input is empty.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file to execute; mostly `std::env::current_exe()`.
    pub program: OsString,
    /// Its arguments, without the program's own name.
    pub args: Vec<OsString>,
}

/// The guard's settings. [`GuardConfig::new`] fills in the defaults.
#[derive(Debug, Clone)]
pub struct GuardConfig {
    /// How the worker is started.
    pub worker: Program,
    /// The longest stall that a guest may see: 100 ms or more, 1 s by default.
    pub stall_limit: Duration,
    /// How long a deliberately held reply ([`crate::SlotGuard::hold`]) is exempt at most; 5 s.
    pub hold_limit: Duration,
    /// How long after SIGTERM the worker may take to end, before SIGKILL; 10 s.
    pub stop_limit: Duration,
    /// The second pause of a crash loop (the first is none); each later one doubles; 50 ms.
    pub backoff_min: Duration,
    /// The longest pause of a crash loop; 10 s.
    pub backoff_max: Duration,
    /// A worker that lived this long starts the back-off anew; 30 s.
    pub healthy_after: Duration,
    /// Run after each unclean death of a worker, before the next one starts or the guard ends:
    /// thaws and continues guests from the durable intents. A process of its own, so that
    /// whatever happens in it, the guard goes on.
    pub on_death: Option<Program>,
    /// How long `on_death` may take before it is killed; 2 s.
    pub on_death_limit: Duration,
}

impl GuardConfig {
    /// The defaults, for `worker`.
    pub fn new(worker: Program) -> GuardConfig {
        GuardConfig {
            worker,
            stall_limit: Duration::from_secs(1),
            hold_limit: Duration::from_secs(5),
            stop_limit: Duration::from_secs(10),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(10),
            healthy_after: Duration::from_secs(30),
            on_death: None,
            on_death_limit: Duration::from_secs(2),
        }
    }

    /// How often the guard looks: a twentieth of the stall limit, within 10 to 50 ms.
    pub(crate) fn tick(&self) -> Duration {
        (self.stall_limit / 20).clamp(Duration::from_millis(10), Duration::from_millis(50))
    }

    pub(crate) fn check(&self) -> Result<(), GuardError> {
        if self.stall_limit < Duration::from_millis(100) {
            return Err(GuardError::StallLimit { given: self.stall_limit });
        }
        Ok(())
    }
}

/// Why the guard could not start. Once it runs, it has no errors of its own: what fails later is
/// logged and tried again.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The limit is too short to be kept by a loop that looks every 10 ms.
    #[error("stall limit of {given:?} is below 100ms: give a longer one")]
    StallLimit {
        /// The limit that was asked for.
        given: Duration,
    },
    /// The very first worker could not be started.
    #[error("start the worker {program:?}: {source}; check that the program is there")]
    Start {
        /// The file that was to be executed.
        program: OsString,
        /// What the kernel said.
        source: io::Error,
    },
    /// Signals, shared memory or the control socket could not be set up.
    #[error("set up the guard: {what}: {source}")]
    Setup {
        /// The step that failed, verb first.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// In nanoseconds; what is longer than 584 years is that long.
pub(crate) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
