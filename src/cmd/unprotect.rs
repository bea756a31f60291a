//! `afterimage unprotect`: end the capture of a guest for good.

use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;

/// End the protection of a guest or group; its journal stays restorable unless it is purged
#[derive(Debug, clap::Args)]
pub struct UnprotectArgs {
    /// Guest or group
    name: String,
    /// Delete the journal too: nothing of it can be restored any more
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &UnprotectArgs) -> Outcome {
    args.state.client().unprotect(&args.name, args.purge)?;
    let name = &args.name;
    show::print(&if args.purge {
        format!("{name} is no longer protected; its journal is deleted\n")
    } else {
        format!(
            "{name} is no longer protected; its journal stays in {} and can be restored \
             (`unprotect --purge` deletes it)\n",
            args.state.state.display()
        )
    })
}
