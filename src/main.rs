//! The `afterimage` program: the command line over agent, journal and restore.
//!
//! [`cmd`] has one file a subcommand, [`when`] reads moments, [`quantity`] spans and sizes,
//! [`state`] the state directory without an agent, [`show`] what people see, [`failure`] texts and
//! exit codes. What always holds: 0 is said only for what is done; every failure is one text on
//! standard error that says what happened, to what, and what to do next.

mod cmd;
mod failure;
mod log;
mod progress;
mod quantity;
mod show;
mod state;
mod when;

use clap::Parser;
use std::process::ExitCode;

/// Rewind running virtual machines: every write to a guest's disks is journaled, so that the guest
/// can be brought back as it was at any moment
#[derive(Debug, Parser)]
#[command(name = "afterimage", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: cmd::Command,
}

const AFTER_HELP: &str = "\
Begin with `afterimage demo` (needs nothing but QEMU), or:
  afterimage agent --state DIR &              the daemon beside the guests
  afterimage protect NAME --qmp SOCK --state DIR
  afterimage restore NAME --at '5m ago' --to OUT --state DIR
  afterimage export NAME --at '5m ago' --socket SOCK --state DIR      the same over NBD, at once

WHEN is one of: latest, RFC 3339, 14:03:10.250, '2026-11-22 14:03:10', '5m ago', seq:123, '#7',
tag:TEXT. NAME is a guest or a group. SIZE and TIME are written like 50M, 1GiB, 5s, 24h, 7d.
restore, export, checkpoints, verify and status need no agent: the journal on disk is enough.

Exit codes: 0 done, 2 wrong usage, 3 not restorable (gap, outside the window, damaged),
4 not reachable, 1 anything else. AFTERIMAGE_LOG sets what is logged (as in `debug`).

Not built yet: inline capture, failover and failback.";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let _log = log::start(cli.command.is_daemon());
    allow_many_files();
    match cli.command.run() {
        Ok(code) => code,
        Err(failure) => {
            show::complain(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// A journal is read with a file descriptor a unit: as many as the system lets us have.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, ..limits };
    // Refused, the limit stays as it is, and only a very long journal is too long.
    let _ = setrlimit(Resource::Nofile, raised);
}
