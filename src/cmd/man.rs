//! `afterimage man`: manual pages from the command line's own help.

use crate::failure::{Failure, Outcome};
use crate::show;
use clap::CommandFactory;
use std::path::PathBuf;

/// Write the manual pages, one for each subcommand
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory to write them to; made if it isn't there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Runs it.
pub fn run(args: &ManArgs) -> Outcome {
    let shown = args.to.display();
    std::fs::create_dir_all(&args.to)
        .and_then(|()| clap_mangen::generate_to(crate::Cli::command(), &args.to))
        .map_err(|e| Failure::io(format!("write manual pages to {shown}"), &e))?;
    show::print(&format!(
        "manual pages are in {shown}; read one with: man -l {shown}/afterimage.1\n"
    ))
}
