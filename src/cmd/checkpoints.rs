//! `afterimage checkpoints`: the named recovery points of a guest or group.

use crate::failure::Outcome;
use crate::state::{self, StateArgs};
use crate::{show, when};
use afterimage_journal::Seq;
use afterimage_journal::history::{CheckpointAt, Point, When};
use afterimage_journal::meta::CheckpointKind;
use afterimage_restore::{Moment, Recovery};
use jiff::Timestamp;
use serde::Serialize;

/// List the checkpoints that can be restored; works without an agent
#[derive(Debug, clap::Args)]
pub struct CheckpointsArgs {
    /// Guest or group
    name: String,
    /// Only those at or behind this moment (WHEN)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Print a list of {id, seq, time, kind, tag, memory}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Serialize)]
struct Row<'a> {
    id: u64,
    seq: Seq,
    time: Timestamp,
    kind: CheckpointKind,
    tag: Option<&'a str>,
    memory: bool,
    /// Why the memory that it had can't be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_lost: Option<&'a str>,
}

/// Runs it.
pub fn run(args: &CheckpointsArgs) -> Outcome {
    let since = args.since.as_deref().map(when::parse_here).transpose()?;
    let recovery = args.state.open(&args.name)?;
    let ranges = recovery.ranges();
    let listed = recovery.history.checkpoints.iter();
    let listed = listed.filter(|c| ranges.iter().any(|r| r.from <= c.seq && c.seq <= r.to));
    let row = |at| row(&recovery, at);
    let rows: Vec<Row<'_>> = match since {
        None => listed.map(row).collect(),
        Some(When::Time(ns)) => listed.filter(|c| c.wall_ns >= ns).map(row).collect(),
        Some(When::Seq(seq)) => listed.filter(|c| c.seq >= seq).map(row).collect(),
        Some(other) => {
            let from = recovery.resolve(&other)?.seq;
            listed.filter(|c| c.seq >= from).map(row).collect()
        }
    };
    if args.json { show::print_json(&rows) } else { show::print(&text(&recovery, &rows)) }
}

fn row<'a>(recovery: &Recovery, at: &'a CheckpointAt) -> Row<'a> {
    Row {
        id: at.checkpoint.id,
        seq: at.seq,
        time: state::time(at.wall_ns),
        kind: at.checkpoint.kind,
        tag: at.checkpoint.tag.as_deref(),
        memory: recovery.memory_of(at).is_some(),
        memory_lost: at.memory_lost.as_deref(),
    }
}

fn text(recovery: &Recovery, rows: &[Row<'_>]) -> String {
    let now = Timestamp::now();
    let points: Vec<Point> = rows.iter().map(|r| recovery.history.point(r.seq)).collect();
    let lines: Vec<Vec<String>> = rows
        .iter()
        .zip(recovery.history.are_named_by_time(&points))
        .map(|(r, is_named_by_time)| {
            let age = now.duration_since(r.time).as_millis();
            vec![
                format!("#{}", r.id),
                // What is pasted back has to mean this checkpoint.
                if is_named_by_time { show::clock(r.time) } else { format!("seq:{}", r.seq) },
                show::span_ms(u64::try_from(age).unwrap_or(0)),
                match r.kind {
                    CheckpointKind::Crash => "crash".into(),
                    CheckpointKind::Application => "application".into(),
                },
                r.seq.to_string(),
                match (r.memory, r.memory_lost) {
                    (true, _) => "yes".into(),
                    (false, Some(_)) => "lost".into(),
                    (false, None) => String::new(),
                },
                r.tag.unwrap_or_default().to_owned(),
            ]
        })
        .collect();
    let header = ["ID", "TIME", "AGE", "KIND", "SEQ", "MEMORY", "TAG"];
    let mut text = show::table(&header, &[0, 2, 4], &lines);
    if rows.is_empty() {
        text = format!("{} has no checkpoint to show\n", show::escaped(recovery.name()));
    }
    for (id, why) in rows.iter().filter_map(|r| Some((r.id, r.memory_lost?))) {
        let why = show::escaped(why);
        text += &format!("#{id} can be restored without its memory only: {why}\n");
    }
    let history = &recovery.history;
    for gap in &history.gaps {
        let moment = |seq| Moment::of(history, history.point(seq)).when();
        let to = gap.to.map_or("now".into(), moment);
        let why = show::escaped(&gap.reason);
        text += &format!("gap from {} to {to}: {why}\n", moment(gap.from));
    }
    text
}
