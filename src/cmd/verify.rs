//! `afterimage verify`: is what the journal holds what was written to it?

use crate::failure::{Failure, Outcome};
use crate::progress::Bar;
use crate::state::{self, KeyArgs, StateArgs};
use crate::{show, when};
use afterimage_journal::pool::stray_files;
use afterimage_restore::{DamageFound, Progress, Recovery, VerifyAtReport, VerifyReport};
use std::collections::BTreeSet;

/// Check a journal: every checksum, or with --at one moment rebuilt in two ways
///
/// With --at the disks are rebuilt as `restore` does it, and once more by a simple replay of every
/// record; the digests of both must agree. The memory of a checkpoint with memory is checked in the
/// same way, as the stream that a warm restore writes. Works without an agent. Exit code 3: something is
/// damaged; 1: the host could not read all of it.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// Guest or group
    name: String,
    /// The moment (WHEN): latest, RFC 3339, 14:03:10.250, '5m ago', seq:123, '#7', tag:TEXT
    #[arg(long, value_name = "WHEN")]
    at: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &VerifyArgs) -> Outcome {
    let wanted = args.at.as_deref().map(when::parse_here).transpose()?;
    let mut recovery = match wanted {
        Some(_) => args.state.open_to_reread(&args.name)?,
        None => args.state.open(&args.name)?,
    };
    args.key.unlock(&mut recovery)?;
    let bar = Bar::new("verify");
    let mut progress = |p: Progress| bar.set(p.done_bytes, p.total_bytes);
    let Some(wanted) = wanted else {
        let report = afterimage_restore::verify(&recovery, &mut progress)?;
        drop(bar);
        return tell_all(args, &recovery, &report);
    };
    let point = state::resolve(&recovery, &wanted)?;
    let report = afterimage_restore::verify_at(&recovery, point, &mut progress)?;
    drop(bar);
    tell_point(args, &recovery, &report)
}

fn tell_all(args: &VerifyArgs, recovery: &Recovery, report: &VerifyReport) -> Outcome {
    let name = show::escaped(recovery.name());
    if args.json {
        show::print_json(report)?;
    } else {
        show::print(&format!(
            "{name}: {} records in {} units checked, {} in {:.1} s\n",
            report.records,
            report.units,
            show::bytes(report.bytes),
            report.seconds
        ))?;
    }
    let history = &recovery.history;
    for stray in stray_files(history.storage(), &history.dir).unwrap_or_default() {
        show::complain(format!("note: {stray}"));
    }
    if report.is_sound() {
        return if args.json { Ok(()) } else { show::print("every checksum is right\n") };
    }
    if report.damage.is_empty() {
        show::complain(format!("{name} could not be read whole:"));
        places(&report.unread).iter().for_each(show::complain_more);
        let message = format!(
            "{name}: nothing that was read is damaged; check the disk and its kernel messages, then \
             verify again"
        );
        return Err(Failure { code: 1, message });
    }
    let mut lines = places(&report.damage);
    for place in places(&report.unread) {
        lines.push(format!("could not be read, and may be whole: {place}"));
    }
    for range in &report.refused {
        let end = match (&range.to, &range.to_time) {
            (Some(to), Some(time)) => format!("seq:{to} ({time})"),
            (Some(to), None) => format!("seq:{to}"),
            _ => "the end".to_owned(),
        };
        lines.push(format!("can't be restored: seq:{} ({}) to {end}", range.from, range.from_time));
    }
    let cold: BTreeSet<u64> = report.damage.iter().flat_map(|d| &d.memory).copied().collect();
    for id in &cold {
        lines.push(format!("checkpoint #{id} can be restored cold only: its memory is damaged"));
    }
    let rest = if report.refused.is_empty() && cold.is_empty() {
        "no recovery point needs what is damaged"
    } else {
        "all other points can be restored; a copy of the pool, if there is one, may have these"
    };
    show::complain(format!("{name} is damaged:"));
    for line in lines {
        show::complain_more(line);
    }
    Err(Failure { code: 3, message: format!("{name}: {rest}") })
}

/// A line for each place.
fn places(found: &[DamageFound]) -> Vec<String> {
    let line = |damage: &DamageFound| {
        let place = damage.unit.as_ref().map_or(String::new(), |unit| {
            let at = damage.at.map_or(String::new(), |at| format!(" at byte {at}"));
            let seq = damage.seq.map_or(String::new(), |seq| format!(", record {seq}"));
            format!("{}{at}{seq}: ", unit.display())
        });
        format!("{place}{}", damage.what)
    };
    found.iter().map(line).collect()
}

fn tell_point(args: &VerifyArgs, recovery: &Recovery, report: &VerifyAtReport) -> Outcome {
    let name = show::escaped(recovery.name());
    let mut text = String::new();
    for disk in report.disks.iter().chain(&report.memory) {
        let verdict = if disk.is_equal() { "equal" } else { "DIFFERENT" };
        let (guest, node, size) = (&disk.guest, &disk.node, show::bytes(disk.bytes));
        let (guest, node) = (show::escaped(guest), show::escaped(node));
        text += &format!("{guest} {node} ({size}): {verdict}, {}\n", disk.restored);
    }
    if args.json {
        show::print_json(report)?;
    } else {
        show::print(&text)?;
    }
    if !report.is_equal() {
        return Err(Failure {
            code: 3,
            message: format!(
                "{name} at seq:{}: restore and replay disagree. Don't trust this point; keep the \
                 journal and report it",
                report.seq
            ),
        });
    }
    if args.json {
        return Ok(());
    }
    show::print(&format!(
        "{name} at seq:{} ({}): restore and replay agree, {:.1} s\n",
        report.seq, report.time, report.seconds
    ))
}
