//! The agent's processes: the guard, and the worker that it starts.
//!
//! ```text
//! afterimage agent ─ guard ─┬─ worker: engine + API (the same command, told by its environment)
//!                           └─ after a worker's death: undo (thaws what was left frozen)
//! ```

use crate::api::{server, socket_path};
use crate::engine::Engine;
use crate::intent;
use afterimage_guard::{GuardConfig, Program, Worker};
use afterimage_journal::storage::Lock;
use afterimage_journal::text::escaped;
use afterimage_journal::{ErrorKind, Options, layout};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Set for the process that undoes what a dead worker left.
const UNDO: &str = "AFTERIMAGE_UNDO";

/// How the agent is run.
#[derive(Debug, Clone)]
pub struct DaemonArgs {
    /// The state directory.
    pub state: PathBuf,
    /// Longest stall that a guest may see, in milliseconds.
    pub stall_limit_ms: u64,
    /// Size of the units of new journals, in bytes.
    pub unit_bytes: u64,
}

/// Runs the agent: as the guard, or, started by one, as its worker. To be called from the main
/// thread before any other thread is started.
#[must_use]
pub fn run(args: &DaemonArgs) -> ExitCode {
    if std::env::var_os(UNDO).is_some() {
        return ExitCode::from(u8::from(!intent::undo_all(&args.state).is_empty()));
    }
    match Worker::from_env() {
        Some(worker) => work(args, worker),
        None => guard(args),
    }
}

fn complain(error: impl std::fmt::Display) {
    // Where it can't be written (a full disk, a closed pipe), the exit code still tells.
    let _ = writeln!(std::io::stderr(), "afterimage: {}", escaped(&error.to_string()));
}

fn guard(args: &DaemonArgs) -> ExitCode {
    // Before anything is started: what can be said at once is said once.
    if let Err(error) = layout::check_state(&args.state, true) {
        complain(&error);
        return code_of(error.kind());
    }
    let program = match std::env::current_exe() {
        Ok(path) => path.into_os_string(),
        Err(error) => {
            complain(format!("find our own program: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let mut config = GuardConfig::new(Program { program: program.clone(), args: words.clone() });
    config.stall_limit = Duration::from_millis(args.stall_limit_ms);
    // `env` sets the variable for that one process.
    let mut undo = vec![format!("{UNDO}=1").into(), program];
    undo.extend(words);
    config.on_death = Some(Program { program: "/usr/bin/env".into(), args: undo });
    match afterimage_guard::run(config) {
        Ok(code) => code,
        Err(error) => {
            complain(error);
            ExitCode::from(2)
        }
    }
}

fn code_of(kind: ErrorKind) -> ExitCode {
    ExitCode::from(if kind == ErrorKind::FixInput { 2 } else { 1 })
}

fn work(args: &DaemonArgs, worker: Worker) -> ExitCode {
    if let Err(error) = worker.start_heartbeat() {
        complain(format!("start the heartbeat: {error}"));
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .thread_name("agent")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format!("start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(serve(args, worker));
    // A thread that hangs in a system call must not hold the end up: the guard counts on it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// Where journals note their newest numbers outside of their own directories, until the host is
/// restarted.
const NOTES_DIR: &str = "/run/afterimage/heads";

/// How long a process that was killed may take to let go of the lock.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Takes the state directory's lock; held until the process ends. A worker whose guard was killed may be
/// ending still.
async fn take_lock(args: &DaemonArgs) -> Result<Lock, afterimage_journal::Error> {
    layout::check_state(&args.state, true)?;
    let begin = Instant::now();
    loop {
        match layout::take_lock(&args.state) {
            Err(e) if e.kind() == ErrorKind::Retry && begin.elapsed() < LOCK_LIMIT => {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            taken => return taken,
        }
    }
}

async fn serve(args: &DaemonArgs, worker: Worker) -> ExitCode {
    let lock = match take_lock(args).await {
        Ok(lock) => lock,
        Err(error) => {
            complain(&error);
            let code = if error.kind() == ErrorKind::Retry { 4 } else { 2 };
            return ExitCode::from(code);
        }
    };
    let left = intent::undo_all(&args.state);
    tokio::spawn(intent::keep_undoing(args.state.clone(), left));
    let ends = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = ends else {
        complain("can't catch signals");
        return ExitCode::FAILURE;
    };
    let listener = match server::bind(&socket_path(&args.state)) {
        Ok(listener) => listener,
        Err(error) => {
            complain(format!("listen for commands: {error}"));
            return ExitCode::from(2);
        }
    };
    let notes_dir = Some(PathBuf::from(NOTES_DIR));
    let options = Options { unit_bytes: args.unit_bytes, notes_dir, ..Options::default() };
    let started =
        Engine::start(&args.state, options, Some(worker.clone()), args.stall_limit_ms).await;
    let engine = match started {
        Ok(engine) => engine,
        Err(error) => {
            complain(&error);
            return ExitCode::from(2);
        }
    };
    worker.ready();
    tracing::info!(state = %args.state.display(), "the agent is ready");
    let end = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let served = server::serve(listener, Arc::new(Arc::clone(&engine)), end).await;
    engine.stop().await;
    drop(lock);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format!("serve commands: {error}"));
            ExitCode::FAILURE
        }
    }
}
