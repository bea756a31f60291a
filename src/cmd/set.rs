//! `afterimage set`: change settings of a protected guest.

use crate::failure::Outcome;
use crate::state::StateArgs;
use crate::{quantity, show};
use afterimage_agent::api::SetRequest;

/// Change settings of a guest or group; no resync follows
#[derive(Debug, clap::Args)]
#[group(id = "setting", required = true, multiple = true,
        args = ["window", "checkpoint_every", "rate", "guest_agent"])]
pub struct SetArgs {
    /// Guest or group
    name: String,
    /// How far back the journal is to reach. Kept and shown; nothing is dropped before it (nor,
    /// so far, after it: the journal does not merge yet)
    #[arg(long, value_name = "TIME", value_parser = quantity::window_s)]
    window: Option<u64>,
    /// Time between crash-consistent checkpoints
    #[arg(long, value_name = "TIME", value_parser = quantity::checkpoint_every_ms)]
    checkpoint_every: Option<u64>,
    /// Limit of initial sync and resync, bytes a second, like 50M; 0: no limit
    #[arg(long, value_name = "BYTES/s", value_parser = quantity::rate_bytes_per_s)]
    rate: Option<u64>,
    /// Socket of the guest agent, for `mark --quiesce`
    #[arg(long, value_name = "SOCK")]
    guest_agent: Option<std::path::PathBuf>,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &SetArgs) -> Outcome {
    let request = SetRequest {
        window_s: args.window,
        checkpoint_every_ms: args.checkpoint_every,
        rate_bytes_per_s: args.rate,
        guest_agent: args.guest_agent.as_deref().map(super::protect::absolute).transpose()?,
    };
    let guests = args.state.client().set(&args.name, &request)?;
    let lines = guests.iter().map(|g| {
        let window = show::span_ms(g.window_s.saturating_mul(1000));
        let every = show::span_ms(g.checkpoint_every_ms);
        format!("{}: window {window}, a checkpoint every {every}\n", g.guest)
    });
    show::print(&lines.collect::<String>())
}
