//! `afterimage restore`: a guest's disks as they were at a moment.

use crate::failure::Outcome;
use crate::progress::Bar;
use crate::state::{self, KeyArgs, StateArgs};
use crate::{show, when};
use afterimage_restore::{
    Format, Host, Progress, Recovery, Report, RestoreOptions, ThisHost, WithQemu, plan_warm,
    restore_warm,
};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

/// Restore the disks of a guest or group to a directory, as they were at a moment
///
/// Works without an agent, from the journal on disk alone. Nothing is overwritten, and the guest
/// itself is not touched. With --warm the memory is restored too, and GUEST.start.sh resumes the
/// copy where it was: WHEN is then a checkpoint with memory (`checkpoints` shows which are), or
/// `latest`, the newest of them. What keeps a copy from being resumed on this host is said before
/// anything is written.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Guest or group
    name: String,
    /// The moment (WHEN): latest, RFC 3339, 14:03:10.250, '5m ago', seq:123, '#7', tag:TEXT
    #[arg(long, value_name = "WHEN")]
    at: String,
    /// Directory to write the images to; made if it isn't there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only this disk: node name, device path or id (repeatable; all)
    #[arg(long = "disk", value_name = "NODE")]
    disks: Vec<String>,
    /// Format of the images
    #[arg(long, value_enum, default_value_t = ImageFormat::Raw)]
    format: ImageFormat,
    /// Disks and memory, to go on from that instant: WHEN is a checkpoint with memory
    #[arg(long, conflicts_with = "disks")]
    warm: bool,
    /// The QEMU that resumes the copy [default: that of this system with the original's name]
    #[arg(long, value_name = "PATH", requires = "warm")]
    qemu: Option<PathBuf>,
    /// Print {seq, time, disks, memory, bytes_written, seconds}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ImageFormat {
    /// Plain bytes, sparse
    Raw,
    /// QEMU's qcow2
    Qcow2,
}

/// Runs it.
pub fn run(args: &RestoreArgs) -> Outcome {
    let wanted = when::parse_here(&args.at)?;
    let mut recovery = match args.warm {
        true => args.state.open_to_reread(&args.name)?,
        false => args.state.open(&args.name)?,
    };
    args.key.unlock(&mut recovery)?;
    let options = RestoreOptions {
        to: args.to.clone(),
        disks: args.disks.clone(),
        format: match args.format {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
        },
    };
    let mut warned = 0;
    let report = if args.warm {
        let point = state::resolve_warm(&recovery, &wanted)?;
        let named = args.qemu.clone().map(WithQemu);
        let host: &dyn Host = named.as_ref().map_or(&ThisHost, |named| named);
        let plan = plan_warm(&recovery, &point, &options, host)?;
        for warning in &plan.warnings {
            show::complain(warning);
        }
        warned = plan.warnings.len();
        let bar = Bar::new("restore");
        restore_warm(&recovery, &plan, &mut |p: Progress| bar.set(p.done_bytes, p.total_bytes))?
    } else {
        let point = state::resolve(&recovery, &wanted)?;
        let bar = Bar::new("restore");
        let mut progress = |p: Progress| bar.set(p.done_bytes, p.total_bytes);
        afterimage_restore::restore(&recovery, point, &options, &mut progress)?
    };
    for warning in report.warnings.iter().skip(warned) {
        show::complain(warning);
    }
    if args.json {
        return show::print_json(&report);
    }
    let mut told = text(recovery.name(), &recovery, &report);
    told += &start_files(&args.to, &recovery, &report);
    show::print(&told)
}

/// What a restore leaves beside the images of a guest whose command line is known.
fn start_files(to: &Path, recovery: &Recovery, report: &Report) -> String {
    let config = recovery.history.config_at(report.seq);
    let guests = config.map(|c| c.guests.as_slice()).unwrap_or_default();
    let mut text = String::new();
    for guest in guests {
        let path = to.join(format!("{}.start.sh", guest.name));
        if path.is_file() {
            let warm = report.memories.iter().any(|m| m.guest == guest.name);
            let verb = if warm { "resume" } else { "start" };
            text += &format!("{verb} the copy: {}\n", path.display());
        }
    }
    text
}

fn text(name: &str, recovery: &Recovery, report: &Report) -> String {
    let time = state::time(recovery.history.point(report.seq).wall_ns);
    let age = Timestamp::now().duration_since(time).as_millis();
    let mut text = format!(
        "{name} as it was at {} ({} ago, seq:{}):\n",
        show::clock(time),
        show::span_ms(u64::try_from(age).unwrap_or(0)),
        report.seq
    );
    for disk in &report.disks {
        text += &format!("  {}  {}\n", show::escaped(&disk.node), disk.path.display());
    }
    for memory in &report.memories {
        let guest = show::escaped(&memory.guest);
        text += &format!("  memory of {guest}  {}\n", memory.path.display());
    }
    for disk in &report.skipped {
        let disk = show::escaped(disk);
        text += &format!("  {disk} is not there: it had not been synced at that moment\n");
    }
    if report.memories.is_empty()
        && let Some(warm) = recovery.warm_at(report.seq)
    {
        text += &format!("memory of that instant is there too (#{}): --warm\n", warm.id);
    }
    let bytes = show::bytes(report.bytes_written);
    text + &format!("{bytes} written in {:.1} s; the rest is zeroes\n", report.seconds)
}
