//! `afterimage detach`: let go of a guest for a while.

use super::protect::line;
use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;

/// Let go of a guest or group for a while (for a snapshot, a resize, a backup job)
///
/// What the guest writes meanwhile is a gap: no moment of it can be restored. `attach` copies only
/// the blocks that changed.
#[derive(Debug, clap::Args)]
pub struct DetachArgs {
    /// Guest or group
    name: String,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &DetachArgs) -> Outcome {
    let guests = args.state.client().detach(&args.name)?;
    show::print(&guests.iter().map(line).collect::<String>())
}
