//! Our side: the capture server in a process of its own, with its guard, as the agent runs it.
//! The bench executes itself again for it: once as the guard, and that once more as the worker.

use crate::peers::Running;
use afterimage_agent::capture::{Capture, Tap, TapShared};
use afterimage_guard::{GuardConfig, Program, Worker};
use afterimage_journal::{Journal, Options};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use tempfile::TempDir;

/// The first word of the command line of a capture process.
pub const ROLE: &str = "capture";

/// A running capture server.
pub struct OurServer {
    process: Running,
    /// The journal and the log; removed in the end, whatever was written.
    dir: TempDir,
}

impl OurServer {
    /// Starts one with a fresh journal for a volume of `bytes`.
    pub fn start(socket: &Path, bytes: u64) -> Result<Self> {
        let dir = TempDir::with_prefix_in("journal-", crate::bench_dir())?;
        let mut command = Command::new(std::env::current_exe().context("find the bench itself")?);
        command.arg(ROLE).arg(socket).arg(dir.path().join("journal")).arg(bytes.to_string());
        let process = Running::start(command, &dir.path().join("log"), socket)?;
        Ok(Self { process, dir })
    }

    /// Ends it. An error where it did not serve all the while: its figures are worth nothing.
    pub fn end(mut self) -> Result<()> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        self.process.terminate()?;
        if !log.trim().is_empty() {
            bail!("the capture server complained: {log}");
        }
        Ok(())
    }
}

/// The process itself: `SOCKET JOURNAL BYTES`.
pub fn main(words: &[String]) -> ExitCode {
    let Some(worker) = Worker::from_env() else { return guard() };
    match work(words, worker) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("capture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn guard() -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(path) => path.into_os_string(),
        Err(error) => {
            eprintln!("capture: find our own program: {error}");
            return ExitCode::FAILURE;
        }
    };
    let args = std::env::args_os().skip(1).collect();
    afterimage_guard::run(GuardConfig::new(Program { program, args })).unwrap_or_else(|error| {
        eprintln!("capture: {error}");
        ExitCode::FAILURE
    })
}

fn work(words: &[String], worker: Worker) -> Result<()> {
    let [socket, journal, bytes] = words else { bail!("give SOCKET JOURNAL BYTES") };
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    worker.start_heartbeat()?;
    let group = uuid::Uuid::new_v4();
    let journal = Journal::create(Path::new(journal), group, "bench", Options::default())?;
    let shared = TapShared { session: Arc::new(AtomicU32::new(1)), ..TapShared::default() };
    let tap = Arc::new(Tap::new(journal, 1, bytes.parse()?, Arc::default(), shared));
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let capture = Capture::start(Path::new(socket), tap, Some(worker.clone()), (1, None), sender)?;
    worker.ready();
    // Until SIGTERM: nobody but the server sends events, and it lives as long as this.
    while events.blocking_recv().is_some() {}
    capture.stop();
    Ok(())
}
