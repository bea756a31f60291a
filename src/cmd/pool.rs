//! `afterimage pool`: where journals lie.

use crate::failure::{Failure, Outcome};
use crate::show;
use crate::state::StateArgs;
use afterimage_journal::layout;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Show where journals lie and what they take (one directory so far)
#[derive(Debug, clap::Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PoolCommand {
    /// List the pool's member and its journals
    List(StateArgs),
}

/// Runs it.
pub fn run(args: &PoolArgs) -> Outcome {
    let PoolCommand::List(args) = &args.command;
    crate::state::check(&args.state)?;
    let pool = layout::pool_dir(&args.state);
    let free = rustix::fs::statvfs(&pool)
        .map_err(|e| Failure::io(format!("look at {}", pool.display()), &e.into()))?;
    let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
    let mut rows = Vec::new();
    for name in layout::journals(&args.state)? {
        let dir = layout::journal_dir(&args.state, &name)?;
        let units = layout::units(&dir)?;
        let bytes = units.iter().map(|n| allocated_bytes(&layout::unit_path(&dir, *n))).sum();
        rows.push(vec![name, units.len().to_string(), show::bytes(bytes)]);
    }
    let list = show::table(&["JOURNAL", "UNITS", "SIZE"], &[1, 2], &rows);
    show::print(&format!("{}: {} free\n{list}", pool.display(), show::bytes(free_bytes)))
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}
