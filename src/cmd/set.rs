//! `afterimage set`: change settings of a protected guest.

use crate::failure::{Failure, Outcome};
use crate::state::StateArgs;
use crate::{quantity, show};
use afterimage_agent::api::SetRequest;
use afterimage_journal::window::Keep;

/// Change settings of a guest or group; no resync follows
#[derive(Debug, clap::Args)]
#[group(id = "setting", required = true, multiple = true,
        args = ["window", "keep", "limit", "guarantee", "checkpoint_every", "rate", "guest_agent",
                "memory_every", "memory_mode", "shared_disks", "no_shared_disks", "qmp", "libvirt", "sites",
                "no_sites", "rpo_alarm"])]
pub struct SetArgs {
    /// Guest or group
    name: String,
    /// How far back every moment can be restored; older history is merged into the base. A longer
    /// one grows from now on: what was merged does not come back
    #[arg(long, value_name = "TIME", value_parser = quantity::window_s)]
    window: Option<u64>,
    /// The window, and behind it one checkpoint each EVERY for so long, like 24h,1m:7d,1h:30d; tagged
    /// ones stay as long. Without steps, like 24h: nothing is kept behind the window
    #[arg(long, value_name = "TIME[,EVERY:FOR]...", value_parser = quantity::keep)]
    keep: Option<Keep>,
    /// What the group's journal may take on disk, like 200GiB; 0: what the pool has room for
    #[arg(long, value_name = "SIZE", value_parser = quantity::limit_bytes)]
    limit: Option<u64>,
    /// How far back every moment stays restorable even when space is short; 0: all history may go
    /// before capture stops
    #[arg(long, value_name = "TIME", value_parser = quantity::guarantee_s)]
    guarantee: Option<u64>,
    /// Time between crash-consistent checkpoints
    #[arg(long, value_name = "TIME", value_parser = quantity::checkpoint_every_ms)]
    checkpoint_every: Option<u64>,
    /// Limit of initial sync and resync, and of copying older history to each site, bytes a second,
    /// like 50M; 0: no limit
    #[arg(long, value_name = "BYTES/s", value_parser = quantity::rate_bytes_per_s)]
    rate: Option<u64>,
    /// Socket of the guest agent, for `mark --quiesce`
    #[arg(long, value_name = "SOCK")]
    guest_agent: Option<std::path::PathBuf>,
    /// Time between checkpoints of the group's memory, like 10m, or off: only by `mark --memory`
    #[arg(long, value_name = "TIME", value_parser = quantity::memory_every_ms_or_off)]
    memory_every: Option<u64>,
    /// How memory is taken
    #[arg(long, value_enum, value_name = "MODE")]
    memory_mode: Option<super::protect::MemoryModeArg>,
    /// A disk with share-rw=on that is captured all the same from the next attach on (repeatable);
    /// see `protect`
    #[arg(long = "shared-disk", value_name = "DISK")]
    shared_disks: Vec<String>,
    /// A disk that is refused again if it is shared, from the next attach on (repeatable)
    #[arg(long = "no-shared-disk", value_name = "DISK")]
    no_shared_disks: Vec<String>,
    /// The guest's QMP socket from now on. The VM that listens there is taken for the guest, whichever it is:
    /// give the same path again when another VM has taken the guest's place
    #[arg(long, value_name = "SOCK", conflicts_with = "libvirt")]
    qmp: Option<std::path::PathBuf>,
    /// The guest's libvirt domain from now on, in the same way
    #[arg(long, value_name = "DOMAIN")]
    libvirt: Option<String>,
    /// Where the group's journal is sent to from now on as well (repeatable): /DIRECTORY,
    /// tls://HOST:PORT#INVITATION or s3://BUCKET/PREFIX?endpoint=URL&region=REGION
    #[arg(long = "site", value_name = "SITE")]
    sites: Vec<String>,
    /// A site that nothing is sent to any more (repeatable), as `status` names it; what is there stays
    #[arg(long = "no-site", value_name = "SITE")]
    no_sites: Vec<String>,
    /// How old the oldest write that a site lacks may be before `status` raises an alarm
    #[arg(long, value_name = "TIME", value_parser = quantity::rpo_alarm_ms)]
    rpo_alarm: Option<u64>,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &SetArgs) -> Outcome {
    quantity::agree(args.keep.as_ref(), args.window).map_err(Failure::usage)?;
    let request = SetRequest {
        window_s: args.window,
        keep: args.keep.clone(),
        limit_bytes: args.limit,
        guarantee_s: args.guarantee,
        checkpoint_every_ms: args.checkpoint_every,
        rate_bytes_per_s: args.rate,
        guest_agent: args.guest_agent.as_deref().map(super::protect::absolute).transpose()?,
        memory_every_ms: args.memory_every,
        memory_mode: args.memory_mode.map(Into::into),
        shared_disks: args.shared_disks.clone(),
        no_shared_disks: args.no_shared_disks.clone(),
        qmp: args.qmp.as_deref().map(super::protect::absolute).transpose()?,
        libvirt: args.libvirt.clone(),
        sites: super::protect::sites(&args.sites)?,
        no_sites: super::protect::sites(&args.no_sites)?,
        rpo_alarm_ms: args.rpo_alarm,
    };
    let guests = args.state.client().set(&args.name, &request)?;
    let lines = guests.iter().map(|g| {
        let window = show::span_ms(g.window_s.saturating_mul(1000));
        let keep = g.keep.as_ref().map(|k| format!(", kept {k}")).unwrap_or_default();
        let every = show::span_ms(g.checkpoint_every_ms);
        let memory = g.memory.as_ref().and_then(|m| m.every_ms);
        let memory = memory.map(|ms| format!(", with memory every {}", show::span_ms(ms)));
        let memory = memory.unwrap_or_default();
        let sites: Vec<&str> = g.sites.iter().map(|s| s.site.as_str()).collect();
        let sites = match sites.as_slice() {
            [] => String::new(),
            sites => format!(", sent to {}", sites.join(", ")),
        };
        format!("{}: window {window}{keep}, a checkpoint every {every}{memory}{sites}\n", g.guest)
    });
    show::print(&lines.collect::<String>())
}
