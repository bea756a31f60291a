//! `afterimage detach`: let go of a guest for a while.

use super::protect::{line, settled};
use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;
use afterimage_agent::api::GuestState;

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
    let client = args.state.client();
    let guests = client.detach(&args.name)?;
    let guests = settled(&client, &args.name, guests, |s| s == GuestState::Detached);
    show::print(&guests.iter().map(line).collect::<String>())
}
