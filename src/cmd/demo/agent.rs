//! The agent's daemon for the time of the demo.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::commands::Commands;
use super::guest::wait_for;

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running `afterimage agent`. Dropping it ends it.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it answers on its socket.
    pub fn start(commands: &Commands, log: &Path) -> Result<Self> {
        commands.show(&["agent"]);
        let file = File::create(log).with_context(|| format!("make {}", log.display()))?;
        let child = commands
            .command(&["agent"])
            .stdout(file.try_clone().context("the agent's log")?)
            .stderr(Stdio::from(file))
            .spawn()
            .context("start the agent")?;
        let mut daemon = Self { child, log: log.to_owned() };
        let socket = commands.api_socket();
        let up = wait_for(START_LIMIT, || {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("the agent ended at once ({status}); see {}", log.display());
            }
            Ok(UnixStream::connect(&socket).ok())
        })?;
        up.with_context(|| format!("the agent does not answer; see {}", log.display()))?;
        Ok(daemon)
    }

    /// Ends it as a service manager would, and waits.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).context("end the agent")?;
        }
        let ended = wait_for(STOP_LIMIT, || Ok(self.child.try_wait()?))?;
        ended.with_context(|| format!("the agent did not end; see {}", self.log.display()))?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only SIGTERM lets it end its own child; SIGKILL is for one that does not listen.
        if self.terminate().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
