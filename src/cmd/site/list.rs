//! `afterimage site list`: what the site gave out.

use super::{existing, time};
use crate::failure::Outcome;
use crate::show;
use crate::state::StateArgs;
use afterimage_link::identity::ledger::{Certificate, Invited};
use afterimage_link::identity::{now_s, text};
use jiff::Timestamp;
use serde::Serialize;

/// List certificates and invitations of agents
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print a list of {kind, id, group, state, until, revoked}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Serialize)]
struct Row {
    kind: &'static str,
    id: String,
    group: String,
    state: &'static str,
    until: Timestamp,
    revoked: Option<Timestamp>,
}

/// Runs it.
pub fn run(args: &ListArgs) -> Outcome {
    let ledger = existing(&args.state.state)?.ledger();
    let now = now_s();
    let mut rows: Vec<Row> = ledger.certificates.iter().map(|c| certificate(c, now)).collect();
    rows.extend(ledger.invitations.iter().map(|i| invitation(i, now)));
    if args.json {
        return show::print_json(&rows);
    }
    if rows.is_empty() {
        return show::print("nobody was let in yet: `afterimage site enroll --group NAME`\n");
    }
    let cells = |r: &Row| {
        vec![r.group.clone(), r.kind.into(), r.state.into(), r.id.clone(), show::clock(r.until)]
    };
    let lines: Vec<_> = rows.iter().map(cells).collect();
    show::print(&show::table(&["GROUP", "WHAT", "STATE", "SERIAL OR ID", "UNTIL"], &[], &lines))
}

fn certificate(c: &Certificate, now: u64) -> Row {
    let state = match c.revoked_s {
        Some(_) => "revoked",
        None if c.validity.until_s <= now => "expired",
        None => "valid",
    };
    Row {
        kind: "certificate",
        id: text::to_hex(&c.serial),
        group: c.group.clone(),
        state,
        until: time(c.validity.until_s),
        revoked: c.revoked_s.map(time),
    }
}

fn invitation(i: &Invited, now: u64) -> Row {
    let state = match i.used_by {
        Some(_) => "used",
        None if i.validity.until_s <= now => "expired",
        None => "open",
    };
    Row {
        kind: "invitation",
        id: text::to_hex(&i.id),
        group: i.group.clone(),
        state,
        until: time(i.validity.until_s),
        revoked: None,
    }
}
