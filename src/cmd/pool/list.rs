//! `afterimage pool list`: the members, and what the journals take.

use super::holder::Holder;
use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;
use afterimage_journal::pool::{MemberStatus, PoolStatus};

/// List the pool's members and what the journals on them take
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print JSON: the pool's epoch, its members, its journals
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &ListArgs) -> Outcome {
    let status = Holder::of(&args.state).status()?;
    if args.json { show::print_json(&status) } else { show::print(&text(&status)) }
}

fn text(status: &PoolStatus) -> String {
    let rows: Vec<_> = status.members.iter().map(row).collect();
    let header = ["MEMBER", "STATE", "LIMIT", "USED", "FREE", "UNITS", "SPARE"];
    let mut text = show::table(&header, &[2, 3, 4, 5, 6], &rows);
    for line in troubles(&status.members) {
        text += &line;
    }
    for stray in &status.strays {
        text += &format!("{stray}\n");
    }
    let journals = status.journals.iter();
    let rows: Vec<_> = journals
        .map(|(name, usage)| {
            vec![
                name.clone(),
                usage.units.to_string(),
                show::bytes(usage.bytes),
                show::bytes(usage.held_bytes),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text += "\n";
        text += &show::table(&["JOURNAL", "UNITS", "SIZE", "HELD"], &[1, 2, 3], &rows);
    }
    text
}

fn row(member: &MemberStatus) -> Vec<String> {
    let seen = |bytes: u64| if member.total_bytes > 0 { show::bytes(bytes) } else { "-".into() };
    vec![
        member.path.display().to_string(),
        member.state.clone(),
        member.limit_bytes.map_or_else(|| "-".into(), show::bytes),
        seen(member.used_bytes),
        seen(member.free_bytes),
        member.units.to_string(),
        show::bytes(member.spare_bytes),
    ]
}

/// What is wrong with members, a line each.
pub fn troubles(members: &[MemberStatus]) -> Vec<String> {
    let line = |m: &MemberStatus| {
        m.reason.as_ref().map(|why| {
            format!("{} ({}): {}\n", m.path.display(), m.state, crate::show::escaped(why))
        })
    };
    members.iter().filter_map(line).collect()
}
