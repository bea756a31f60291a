//! `afterimage site set`: window and limits of a group at the site.

use super::existing;
use crate::failure::{Failure, Outcome};
use crate::state::StateArgs;
use crate::{quantity, show};
use afterimage_journal::window::Keep;
use afterimage_restore::site::settings::Settings;

/// Change how far back the site keeps a group, and what it may take
///
/// The site's window is its own: it may be longer or shorter than the agent's. A running daemon
/// follows within a second.
#[derive(Debug, clap::Args)]
#[group(id = "setting", required = true, multiple = true,
        args = ["window", "keep", "limit", "guarantee", "mirror"])]
pub struct SetArgs {
    /// The group; it need not have sent anything yet
    group: String,
    /// How far back every moment can be restored (24h)
    #[arg(long, value_name = "TIME", value_parser = quantity::window_s)]
    window: Option<u64>,
    /// The window, and behind it one checkpoint each EVERY for so long, like 24h,1m:7d,1h:30d
    #[arg(long, value_name = "TIME[,EVERY:FOR]...", value_parser = quantity::keep)]
    keep: Option<Keep>,
    /// What the group's journal may take on disk, like 200GiB; 0: what the pool has room for
    #[arg(long, value_name = "SIZE", value_parser = quantity::limit_bytes)]
    limit: Option<u64>,
    /// How far back every moment stays restorable even when space is short
    #[arg(long, value_name = "TIME", value_parser = quantity::guarantee_s)]
    guarantee: Option<u64>,
    /// Hold just the files that the agent holds, and let it give them up: for encrypted groups, which
    /// the site can't merge without the key. Counts from the next connection on
    #[arg(long, value_name = "on|off", value_parser = on_off)]
    mirror: Option<bool>,
    #[command(flatten)]
    state: StateArgs,
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".into()),
    }
}

/// Runs it.
pub fn run(args: &SetArgs) -> Outcome {
    quantity::agree(args.keep.as_ref(), args.window).map_err(Failure::usage)?;
    existing(&args.state.state)?;
    let changed = Settings::change(&args.state.state, &args.group, |settings| {
        if let Some(keep) = &args.keep {
            settings.keep = Some(keep.clone());
        } else if let Some(s) = args.window {
            let ns = s.saturating_mul(1_000_000_000);
            let keep = settings.keep.take().map(|keep| keep.with_every_write(ns));
            settings.keep = Some(keep.unwrap_or_else(|| Keep::every_write(ns)));
        }
        if let Some(limit) = args.limit {
            settings.limit_bytes = (limit > 0).then_some(limit);
        }
        settings.guarantee_s = args.guarantee.or(settings.guarantee_s);
        settings.mirror = args.mirror.unwrap_or(settings.mirror);
    })?;
    let limits = changed.limits();
    let limit = match changed.limit_bytes {
        Some(bytes) => format!("at most {}", show::bytes(bytes)),
        None => "as much as the pool has room for".into(),
    };
    let what = match changed.mirror {
        true => "a mirror of the agent's files".to_owned(),
        false => format!("kept {}", limits.keep),
    };
    show::print(&format!("{}: {what}, {limit}\n", args.group))
}
