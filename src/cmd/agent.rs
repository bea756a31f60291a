//! `afterimage agent`: the daemon beside the guests.

use crate::failure::{Failure, Outcome};
use crate::quantity;
use crate::state::{StateArgs, refuse_bucket};
use afterimage_agent::daemon::{self, DaemonArgs};
use std::process::ExitCode;
use std::time::Duration;

/// Run the daemon: it guards itself, captures the protected guests and serves the other commands
///
/// Stays in the foreground and logs to standard error; SIGTERM ends it cleanly.
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// The longest stall that a guest may see when the agent hangs: then it is killed and restarted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = quantity::duration)]
    stall_limit: Duration,
    /// Size of the files that new journals are made of
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = quantity::unit_bytes)]
    unit_size: u64,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &AgentArgs) -> Outcome<ExitCode> {
    refuse_bucket(&args.state.state)?;
    let stall_limit_ms = u64::try_from(args.stall_limit.as_millis()).unwrap_or(u64::MAX);
    // QEMU is told of sockets below it, and has a directory of its own.
    let state = std::path::absolute(&args.state.state)
        .map_err(|e| Failure::io(format!("find {}", args.state.state.display()), &e))?;
    Ok(daemon::run(&DaemonArgs { state, stall_limit_ms, unit_bytes: args.unit_size }))
}
