//! `afterimage attach`: take hold of a detached guest again.

use super::protect::line;
use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;

/// Take hold of a detached guest or group again; the blocks that changed are copied
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    /// Guest or group
    name: String,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &AttachArgs) -> Outcome {
    let guests = args.state.client().attach(&args.name)?;
    show::print(&guests.iter().map(line).collect::<String>())
}
