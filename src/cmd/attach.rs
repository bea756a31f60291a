//! `afterimage attach`: take hold of a detached guest again.

use super::protect::{line, settled};
use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;
use afterimage_agent::api::GuestState;

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
    let client = args.state.client();
    let guests = client.attach(&args.name)?;
    let guests = settled(&client, &args.name, guests, |s| s != GuestState::Detached);
    show::print(&guests.iter().map(line).collect::<String>())
}
