//! `afterimage protect`: capture a guest from now on.

use crate::failure::{Failure, Outcome};
use crate::progress::Bar;
use crate::state::StateArgs;
use crate::{quantity, show};
use afterimage_agent::api::{Client, ErrorKind, GuestState, GuestStatus, ProtectRequest};
use afterimage_agent::settings::MemoryMode;
use afterimage_agent::ship::Site;
use afterimage_journal::layout;
use afterimage_journal::window::Keep;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How far back every moment can be restored unless somebody says otherwise.
const WINDOW_S: u64 = 86_400;
/// How often `--wait` asks.
const WAIT_PAUSE: Duration = Duration::from_millis(250);
/// How long a state may take to show.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
const SETTLE_PAUSE: Duration = Duration::from_millis(20);
/// How long `--wait` goes on while the agent doesn't answer: its guard may be restarting it.
const AWAY_LIMIT: Duration = Duration::from_secs(30);

/// Protect a running guest: attach to its disks and journal every write from now on
///
/// Returns once the guest is attached. The initial sync goes on in the background; when it is over,
/// every moment from then on can be restored. The guest is not stopped, and its definition is not
/// changed. While a guest is protected, QEMU refuses snapshots and resizes of its disks: `detach`
/// first.
#[derive(Debug, clap::Args)]
pub struct ProtectArgs {
    /// Name for the guest: letters, digits, '.', '_', '-'
    name: String,
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCK", required_unless_present = "libvirt")]
    qmp: Option<PathBuf>,
    /// The libvirt domain, reached by virsh
    #[arg(long, value_name = "DOMAIN", conflicts_with = "qmp")]
    libvirt: Option<String>,
    /// Node name, device id or qdev path of a disk (repeatable; all that can be captured)
    #[arg(long = "disk", value_name = "NODE")]
    disks: Vec<String>,
    /// A disk with share-rw=on (in libvirt: <shareable/>) that is captured all the same (repeatable;
    /// such disks are refused). Only for one that no other guest writes to, such as a cluster's
    /// witness: what others write to it is in no recovery point, and `status` warns of it
    #[arg(long = "shared-disk", value_name = "DISK")]
    shared_disks: Vec<String>,
    /// Group that it joins: guests of a group are recovered to one moment (a group of its own)
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// How far back every moment can be restored; older history is merged into the base. Of a
    /// group, the longest window of its guests counts [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = quantity::window_s)]
    window: Option<u64>,
    /// The window, and behind it one checkpoint each EVERY for so long, like 24h,1m:7d,1h:30d; tagged
    /// ones stay as long as the last step reaches
    #[arg(long, value_name = "TIME[,EVERY:FOR]...", value_parser = quantity::keep)]
    keep: Option<Keep>,
    /// What the group's journal may take on disk, like 200GiB. Near it the oldest history goes
    /// before its time, down to what --guarantee says; then capture stops, never the guest (no
    /// limit but the pool's room)
    #[arg(long, value_name = "SIZE", value_parser = quantity::limit_bytes)]
    limit: Option<u64>,
    /// How far back every moment stays restorable even when space is short: capture stops before
    /// that goes. Of a group, the longest counts (1h, or the window if that is shorter)
    #[arg(long, value_name = "TIME", value_parser = quantity::guarantee_s)]
    guarantee: Option<u64>,
    /// Time between crash-consistent checkpoints
    #[arg(long, value_name = "TIME", default_value = "5s",
          value_parser = quantity::checkpoint_every_ms)]
    checkpoint_every: u64,
    /// Limit of initial sync and resync, and of copying older history to each site, bytes a second,
    /// like 50M (no limit)
    #[arg(long, value_name = "BYTES/s", value_parser = quantity::rate_bytes_per_s)]
    rate: Option<u64>,
    /// Socket of the guest agent, for `mark --quiesce` (with --libvirt: not needed)
    #[arg(long, value_name = "SOCK")]
    guest_agent: Option<PathBuf>,
    /// Time between checkpoints of the memory of the guest's whole group, like 10m; of a group, the
    /// shortest counts (only by `mark --memory`)
    #[arg(long, value_name = "TIME", value_parser = quantity::memory_every_ms)]
    memory_every: Option<u64>,
    /// How memory is taken
    #[arg(long, value_enum, default_value = "auto", value_name = "MODE")]
    memory_mode: MemoryModeArg,
    /// Encrypt the group's journal with the key in this file, which nobody else can read: 32 bytes, or
    /// 64 hex digits. Without it the journal can't be restored (not encrypted)
    #[arg(long, value_name = "KEYFILE")]
    encrypt: Option<PathBuf>,
    /// Where the group's journal is sent to as well (repeatable): /DIRECTORY, tls://HOST:PORT#INVITATION
    /// or s3://BUCKET/PREFIX?endpoint=URL&region=REGION. Writes go first; what is there already
    /// follows, limited by --rate
    #[arg(long = "site", value_name = "SITE")]
    sites: Vec<String>,
    /// How old the oldest write that a site lacks may be before `status` raises an alarm [default:
    /// 30s]
    #[arg(long, value_name = "TIME", value_parser = quantity::rpo_alarm_ms)]
    rpo_alarm: Option<u64>,
    /// Wait, with a progress bar, until the initial sync is over
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// How a guest's memory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MemoryModeArg {
    /// While the guest runs, which stands still for some milliseconds; where disks and memory can't be
    /// had at one instant that way, it is stopped until its first page comes. Where QEMU can't do it
    /// at all, `status` says why
    Auto,
    /// While the guest runs, and never stopped by command
    Background,
    /// The guest stands still until all of its memory is read
    Stop,
}

impl From<MemoryModeArg> for MemoryMode {
    fn from(mode: MemoryModeArg) -> Self {
        match mode {
            MemoryModeArg::Auto => Self::Auto,
            MemoryModeArg::Background => Self::Background,
            MemoryModeArg::Stop => Self::Stop,
        }
    }
}

/// Runs it.
pub fn run(args: &ProtectArgs) -> Outcome {
    let bad_name = |e: afterimage_journal::Error| Failure::usage(e.to_string());
    layout::check_name(&args.name).map_err(bad_name)?;
    args.group.as_deref().map_or(Ok(()), layout::check_name).map_err(bad_name)?;
    quantity::agree(args.keep.as_ref(), args.window).map_err(Failure::usage)?;
    let first_s = args.keep.as_ref().map(|k| k.every_write_ns() / 1_000_000_000);
    let request = ProtectRequest {
        name: args.name.clone(),
        qmp: args.qmp.as_deref().map(absolute).transpose()?,
        libvirt: args.libvirt.clone(),
        disks: args.disks.clone(),
        shared_disks: args.shared_disks.clone(),
        group: args.group.clone(),
        window_s: args.window.or(first_s).unwrap_or(WINDOW_S),
        keep: args.keep.clone(),
        limit_bytes: args.limit.filter(|l| *l > 0),
        guarantee_s: args.guarantee,
        checkpoint_every_ms: args.checkpoint_every,
        rate_bytes_per_s: args.rate.filter(|r| *r > 0),
        guest_agent: args.guest_agent.as_deref().map(absolute).transpose()?,
        memory_every_ms: args.memory_every,
        memory_mode: args.memory_mode.into(),
        key_file: args.encrypt.as_deref().map(absolute).transpose()?,
        sites: sites(&args.sites)?,
        rpo_alarm_ms: args.rpo_alarm,
    };
    let client = args.state.client();
    let guests = client.protect(&request)?;
    show::print(&guests.iter().map(line).collect::<String>())?;
    if args.wait { wait(&client, &args.name) } else { Ok(()) }
}

/// The path from the root: the agent has another working directory.
pub fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

/// Sites, checked, directories from the root.
pub fn sites(texts: &[String]) -> Outcome<Vec<String>> {
    let site = |text: &String| {
        let text = match text.contains("://") {
            true => text.clone(),
            // An empty path has no absolute one.
            false => absolute(Path::new(text))?.display().to_string(),
        };
        Site::parse(&text).map_err(Failure::usage)?;
        Ok(text)
    };
    texts.iter().map(site).collect()
}

/// What a command did may show a moment later: asks until the state is the wanted one, for a
/// short time.
pub fn settled(
    client: &Client,
    name: &str,
    mut guests: Vec<GuestStatus>,
    wanted: impl Fn(GuestState) -> bool,
) -> Vec<GuestStatus> {
    let begin = Instant::now();
    while !guests.iter().all(|g| wanted(g.state)) && begin.elapsed() < SETTLE_LIMIT {
        std::thread::sleep(SETTLE_PAUSE);
        match client.status(Some(name)) {
            Ok(now) => guests = now,
            Err(_) => break,
        }
    }
    guests
}

/// One line about a guest that a command acted on.
pub fn line(guest: &GuestStatus) -> String {
    let bytes: u64 = guest.disks.iter().map(|d| d.bytes).sum();
    let disks = match guest.disks.len() {
        1 => "1 disk".to_owned(),
        count => format!("{count} disks"),
    };
    let then = match guest.state {
        GuestState::InitialSync => "attached; the initial sync goes on in the background",
        GuestState::Protected => "attached; every moment from now on can be restored",
        GuestState::Resync => "attached; the changed blocks are copied in the background",
        GuestState::Gap | GuestState::Detached => "its writes are not captured",
    };
    let reason = guest.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
    let size = show::bytes(bytes);
    format!("{}: {}: {disks}, {size}; {then}{reason}\n", guest.guest, guest.state)
}

fn wait(client: &Client, name: &str) -> Outcome {
    let bar = Bar::new("initial-sync");
    let mut answered = Instant::now();
    loop {
        let guests = match client.status(Some(name)) {
            Ok(guests) => guests,
            Err(e) if e.kind == ErrorKind::NotReachable && answered.elapsed() < AWAY_LIMIT => {
                std::thread::sleep(WAIT_PAUSE);
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        answered = Instant::now();
        let Some(guest) = guests.iter().find(|g| g.guest == name) else {
            return Err(Failure::other(format!("{name} was unprotected meanwhile")));
        };
        match guest.state {
            GuestState::Protected => break,
            GuestState::Detached => {
                let reason = guest.reason.as_deref().unwrap_or("it was detached");
                return Err(Failure { code: 4, message: format!("{name}: {reason}") });
            }
            _ => {}
        }
        bar.say(&guest.state.to_string());
        if let Some(copy) = &guest.copy {
            bar.set(copy.done_bytes, copy.total_bytes);
        }
        std::thread::sleep(WAIT_PAUSE);
    }
    drop(bar);
    show::print(&format!("{name}: protected: every moment from now on can be restored\n"))
}
