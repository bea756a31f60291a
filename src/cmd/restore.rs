//! `afterimage restore`: a guest's disks as they were at a moment.

use crate::failure::Outcome;
use crate::progress::Bar;
use crate::state::{self, KeyArgs, StateArgs};
use crate::{show, when};
use afterimage_journal::Seq;
use afterimage_restore::{Format, Progress, Recovery, Report, RestoreOptions};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

/// Restore the disks of a guest or group to a directory, as they were at a moment
///
/// Works without an agent, from the journal on disk alone. Nothing is overwritten, and the guest
/// itself is not touched.
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
    let mut recovery = afterimage_restore::open(&args.state.state, &args.name)?;
    let point = state::resolve(&recovery, &wanted)?;
    args.key.unlock(&mut recovery)?;
    let options = RestoreOptions {
        to: args.to.clone(),
        disks: args.disks.clone(),
        format: match args.format {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
        },
    };
    let bar = Bar::new("restore");
    let mut progress = |p: Progress| bar.set(p.done_bytes, p.total_bytes);
    let report = afterimage_restore::restore(&recovery, point, &options, &mut progress)?;
    drop(bar);
    if args.json {
        return show::print_json(&report);
    }
    let time = state::time(point.wall_ns);
    let starts = start_files(&args.to, &recovery, report.seq);
    show::print(&(text(recovery.name(), time, &report) + &starts))
}

/// What a restore leaves beside the images of a guest whose command line is known.
fn start_files(to: &Path, recovery: &Recovery, seq: Seq) -> String {
    let guests = recovery.history.config_at(seq).map(|c| c.guests.as_slice()).unwrap_or_default();
    let files = guests.iter().map(|g| to.join(format!("{}.start.sh", g.name)));
    let files = files.filter(|path| path.is_file());
    files.map(|path| format!("start the copy: {}\n", path.display())).collect()
}

fn text(name: &str, time: Timestamp, report: &Report) -> String {
    let age = Timestamp::now().duration_since(time).as_millis();
    let mut text = format!(
        "{name} as it was at {} ({} ago, seq:{}):\n",
        show::clock(time),
        show::span_ms(u64::try_from(age).unwrap_or(0)),
        report.seq
    );
    for disk in &report.disks {
        text += &format!("  {}  {}\n", disk.node, disk.path.display());
    }
    for disk in &report.skipped {
        text += &format!("  {disk} is not there: it had not been synced at that moment\n");
    }
    let bytes = show::bytes(report.bytes_written);
    text + &format!("{bytes} written in {:.1} s; the rest is zeroes\n", report.seconds)
}
