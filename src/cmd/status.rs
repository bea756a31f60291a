//! `afterimage status`: where the guests stand, once or live.

mod sites;
mod watch;

use crate::failure::{Failure, Outcome};
use crate::show;
use crate::state::{NOT_PROTECTED, StateArgs, offline_status, refuse_bucket};
use afterimage_agent::api::{ErrorKind, GapStatus, GuestState, GuestStatus, MemoryStatus};
use afterimage_journal::Seq;
use afterimage_journal::keeper::Occupancy;
use afterimage_journal::meta::CopyCause;
use jiff::Timestamp;

/// How many gaps are shown to people; JSON has all.
const GAPS_SHOWN_MAX: usize = 5;

/// Show where guests stand: state, RPO, window, gaps, journal, disks
///
/// Without a running agent it shows what the journals on disk tell. On a site's state directory: the
/// groups that the site holds.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Guest or group (all)
    name: Option<String>,
    /// Print JSON: an object for a guest, a list for a group of several and for all
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Live view, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &StatusArgs) -> Outcome {
    refuse_bucket(&args.state.state)?;
    if let Some(shown) =
        super::site::status(&args.state, args.name.as_deref(), args.json, args.watch)
    {
        return shown;
    }
    if args.watch {
        return watch::run(args);
    }
    let guests = fetch(args)?;
    if args.json {
        return match (&args.name, guests.as_slice()) {
            (Some(_), [guest]) => show::print_json(guest),
            _ => show::print_json(&guests),
        };
    }
    if guests.iter().any(|g| g.offline) {
        let state = args.state.state.display();
        show::complain(format!(
            "no agent runs on {state}; this is what the journals on disk tell. \
             Start it with `afterimage agent --state {state}`"
        ));
    }
    let details = args.name.is_some();
    show::print(&text(&guests, details))?;
    super::pool::show_troubles(&args.state)
}

/// From the agent; from disk when there is none.
fn fetch(args: &StatusArgs) -> Outcome<Vec<GuestStatus>> {
    let name = args.name.as_deref();
    match args.state.client().status(name) {
        Ok(guests) => Ok(guests),
        Err(e) if e.kind == ErrorKind::NotReachable => {
            let state = &args.state.state;
            if !state.join("format").exists() && !state.join("pool").is_dir() && name.is_none() {
                return Err(e.into());
            }
            match offline_status(state, name)? {
                guests if guests.is_empty() && name.is_none() => Err(e.into()),
                guests => Ok(guests),
            }
        }
        // The agent knows what is protected; a journal may be left of what was.
        Err(e) if e.kind == ErrorKind::Usage && name.is_some() => {
            offline_status(&args.state.state, name)
                .ok()
                .filter(|guests| !guests.is_empty())
                .map(|guests| guests.into_iter().map(unprotected).collect())
                .ok_or_else(|| Failure::from(e))
        }
        Err(e) => Err(e.into()),
    }
}

/// A journal of a guest that the running agent doesn't know.
fn unprotected(mut guest: GuestStatus) -> GuestStatus {
    guest.state = GuestState::Detached;
    guest.reason = Some(NOT_PROTECTED.into());
    guest.offline = false;
    guest
}

fn text(guests: &[GuestStatus], details: bool) -> String {
    if guests.is_empty() {
        return "nothing is protected yet: begin with `afterimage protect NAME --qmp SOCK`\n"
            .into();
    }
    let mut text = table(guests);
    for guest in guests {
        if let Some(reason) = &guest.reason {
            text += &format!("{}: {reason}\n", guest.guest);
        }
        if let Some(error) = guest.memory.as_ref().and_then(|m| m.error.as_ref()) {
            text += &format!("{}: no checkpoint of memory: {error}\n", guest.guest);
        }
        if let Some(alarm) = guest.space.as_ref().and_then(|s| s.alarm_text.as_ref()) {
            text += &format!("{}: {alarm}\n", guest.guest);
        }
        for warning in &guest.warnings {
            text += &format!("{}: WARNING: {warning}\n", guest.guest);
        }
        for alarm in guest.sites.iter().filter_map(|s| s.alarm.as_ref()) {
            text += &format!("{}: ALARM: {alarm}\n", guest.guest);
        }
    }
    if details {
        for guest in guests {
            text += &detail(guest);
        }
    }
    text
}

fn table(guests: &[GuestStatus]) -> String {
    let header =
        ["GUEST", "GROUP", "STATE", "RPO", "WINDOW", "GAPS", "WRITES", "RATE", "JOURNAL", "STALL"];
    let rows: Vec<Vec<String>> = guests
        .iter()
        .map(|g| {
            vec![
                g.guest.clone(),
                g.group.clone(),
                g.state.to_string(),
                g.rpo_ms.map_or("-".into(), show::span_ms),
                g.window.as_ref().map_or("-".into(), |w| {
                    let ms = w.to.duration_since(w.from).as_millis();
                    show::span_ms(u64::try_from(ms).unwrap_or(0))
                }),
                g.gaps.len().to_string(),
                format!("{}/s", g.writes_per_s),
                format!("{}/s", show::bytes(g.write_rate_bytes_s)),
                show::bytes(g.journal.bytes),
                show::span_ms(g.stall_ms_max),
            ]
        })
        .collect();
    show::table(&header, &[3, 4, 5, 6, 7, 8, 9], &rows)
}

fn detail(guest: &GuestStatus) -> String {
    let mut text = String::new();
    match &guest.window {
        Some(w) => {
            let (from, to) = (moment(w.from, w.from_seq), moment(w.to, w.to_seq));
            text += &format!("  every moment restorable from {from} to {to}\n");
        }
        None => text += "  no recovery point yet\n",
    }
    if let Some(thinned) = &guest.thinned {
        let (from, count) = (moment(thinned.from, thinned.from_seq), thinned.checkpoints);
        text += &format!("  before that {count} single checkpoints, back to {from}\n");
    }
    if let Some(copy) = &guest.copy {
        text += &format!(
            "  {} {}  {} of {}, {}/s\n",
            cause(copy.cause),
            show::bar(copy.done_bytes, copy.total_bytes, 30),
            show::bytes(copy.done_bytes),
            show::bytes(copy.total_bytes),
            show::bytes(copy.rate_bytes_s)
        );
    }
    if guest.window_s > 0 {
        let keep = guest.keep.as_ref().map(|k| format!(" (kept: {k})")).unwrap_or_default();
        text += &format!(
            "  wanted window {}{keep}, a checkpoint every {}\n",
            show::span_ms(guest.window_s.saturating_mul(1000)),
            show::span_ms(guest.checkpoint_every_ms)
        );
    }
    text += &format!(
        "  journal: {} units, {}; newest record {}, durable up to {}, epoch {}\n",
        guest.journal.units,
        show::bytes(guest.journal.bytes),
        guest.head_seq,
        guest.durable_seq,
        guest.epoch
    );
    if let Some(space) = &guest.space {
        text += &self::space(space);
    }
    if let Some(memory) = &guest.memory {
        text += &self::memory(memory);
    }
    for disk in &guest.disks {
        let synced = disk.synced_bytes.saturating_mul(100) / disk.bytes.max(1);
        let size = show::bytes(disk.bytes);
        text += &format!("  disk {} ({}): {size}, {synced} % synced\n", disk.node, disk.id);
    }
    text += &guest.sites.iter().map(sites::detail).collect::<String>();
    let hidden = guest.gaps.len().saturating_sub(GAPS_SHOWN_MAX);
    if hidden > 0 {
        text += &format!("  {hidden} older gaps (all: --json)\n");
    }
    text + &guest.gaps.iter().skip(hidden).map(gap).collect::<String>()
}

fn memory(memory: &MemoryStatus) -> String {
    let every =
        memory.every_ms.map_or("on request".into(), |ms| format!("every {}", show::span_ms(ms)));
    let mut text = format!("  memory: {}, taken {every}", memory.state);
    if let Some(last) = &memory.last {
        text += &format!(
            "; last #{} at {} ({}): {} changed, guest still for {:.1} ms, {} in all",
            last.id,
            show::clock(last.time),
            last.order,
            show::bytes(last.changed_bytes),
            last.pause_us as f64 / 1000.0,
            show::span_ms(last.took_ms)
        );
    }
    text + "\n"
}

fn space(space: &Occupancy) -> String {
    let bytes = show::bytes;
    let held = show::span_ms(space.window_s.saturating_mul(1000));
    let mut text = format!(
        "  space: {} of {}, {} to be freed, {} held for readers; window held {held}\n",
        bytes(space.used_bytes),
        bytes(space.hard_bytes),
        bytes(space.reclaimable_bytes),
        bytes(space.pinned_bytes)
    );
    let scrub = space.scrub;
    text += &format!(
        "  scrub: {} of {} units, pass {}\n",
        scrub.units_done,
        scrub.units,
        scrub.passes + 1
    );
    for damage in &space.damage {
        text += &format!("  DAMAGED: {damage}\n");
    }
    for unread in &space.unread {
        text += &format!("  can't be read, check the disk: {unread}\n");
    }
    if let Some(why) = &space.merging_waits {
        text += &format!("  nothing is merged: {why}\n");
    }
    if let Some(error) = &space.error {
        text += &format!("  the window is not kept: {error}\n");
    }
    text
}

fn cause(cause: CopyCause) -> &'static str {
    match cause {
        CopyCause::Initial => "initial sync",
        CopyCause::Bitmap => "resync of changed blocks",
        CopyCause::Compare => "resync by comparing",
    }
}

fn gap(gap: &GapStatus) -> String {
    let to = gap.to.map_or("now".into(), |to| moment(to, gap.to_seq));
    format!("  gap from {} to {to}: {}\n", moment(gap.from, gap.from_seq), gap.reason)
}

/// A moment as it can be pasted back: its position, where its time means another one too.
fn moment(time: Timestamp, seq: Option<Seq>) -> String {
    seq.map_or_else(|| show::clock(time), |seq| format!("seq:{seq}"))
}
