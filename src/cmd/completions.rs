//! `afterimage completions`: what a shell needs to complete this command line.

use crate::failure::Outcome;
use crate::show;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Runs it.
pub fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "afterimage", &mut script);
    show::print(&String::from_utf8_lossy(&script))
}
