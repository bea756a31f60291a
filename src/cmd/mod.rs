//! The subcommands: one file, one type each.

mod agent;
mod attach;
mod checkpoints;
mod completions;
mod demo;
mod detach;
mod doctor;
mod export;
mod fetch_memory;
mod man;
mod mark;
mod pool;
mod protect;
mod restore;
mod set;
mod site;
mod status;
mod thaw;
mod unprotect;
mod verify;

use crate::failure::Outcome;
use std::process::ExitCode;

/// What the program can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Agent(agent::AgentArgs),
    Protect(protect::ProtectArgs),
    Unprotect(unprotect::UnprotectArgs),
    Detach(detach::DetachArgs),
    Attach(attach::AttachArgs),
    Status(status::StatusArgs),
    Checkpoints(checkpoints::CheckpointsArgs),
    Mark(mark::MarkArgs),
    Restore(restore::RestoreArgs),
    Export(export::ExportArgs),
    FetchMemory(fetch_memory::FetchMemoryArgs),
    Thaw(thaw::ThawArgs),
    Verify(verify::VerifyArgs),
    Set(set::SetArgs),
    Pool(pool::PoolArgs),
    Site(site::SiteArgs),
    Doctor(doctor::DoctorArgs),
    Demo(demo::DemoArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Command {
    /// Whether it runs until it is ended, with a log of its own.
    pub fn is_daemon(&self) -> bool {
        match self {
            Self::Agent(_) => true,
            Self::Site(args) => args.is_daemon(),
            _ => false,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// The command failed; the failure has the exit code.
    pub fn run(&self) -> Outcome<ExitCode> {
        match self {
            Self::Agent(args) => agent::run(args),
            Self::Protect(args) => done(protect::run(args)),
            Self::Unprotect(args) => done(unprotect::run(args)),
            Self::Detach(args) => done(detach::run(args)),
            Self::Attach(args) => done(attach::run(args)),
            Self::Status(args) => done(status::run(args)),
            Self::Checkpoints(args) => done(checkpoints::run(args)),
            Self::Mark(args) => done(mark::run(args)),
            Self::Restore(args) => done(restore::run(args)),
            Self::Export(args) => done(export::run(args)),
            Self::FetchMemory(args) => done(fetch_memory::run(args)),
            Self::Thaw(args) => done(thaw::run(args)),
            Self::Verify(args) => done(verify::run(args)),
            Self::Set(args) => done(set::run(args)),
            Self::Pool(args) => done(pool::run(args)),
            Self::Site(args) => done(site::run(args)),
            Self::Doctor(args) => doctor::run(args),
            Self::Demo(args) => Ok(demo::run(args).map(|()| ExitCode::SUCCESS)?),
            Self::Completions(args) => done(completions::run(args)),
            Self::Man(args) => done(man::run(args)),
        }
    }
}

fn done(outcome: Outcome) -> Outcome<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}
