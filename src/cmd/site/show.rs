//! What `afterimage status` says on a site's state directory.

use crate::cmd::pool;
use crate::failure::{Failure, Outcome};
use crate::show;
use crate::state::StateArgs;
use afterimage_link::identity::Site;
use afterimage_restore::site::SiteGroupStatus;
use afterimage_restore::site::status::read;

/// Lag from which a group is said to be behind, milliseconds.
const BEHIND_MS: u64 = 10_000;

/// The site's status, if the state directory is a site's.
pub fn status(state: &StateArgs, name: Option<&str>, json: bool, watch: bool) -> Option<Outcome> {
    Site::is_in(&state.state).then(|| shown(state, name, json, watch))
}

fn shown(state: &StateArgs, name: Option<&str>, json: bool, watch: bool) -> Outcome {
    if watch {
        return Err(Failure::usage("there is no live view of a site: run `status` again instead"));
    }
    let mut groups = read(&state.state)?;
    if let Some(name) = name {
        groups.retain(|g| g.group == name);
        if groups.is_empty() {
            return Err(Failure::usage(format!("the site holds no group {name:?}")));
        }
    }
    if json {
        return match (name, groups.as_slice()) {
            (Some(_), [group]) => show::print_json(group),
            _ => show::print_json(&groups),
        };
    }
    if groups.iter().any(|g| g.offline) {
        let state = state.state.display();
        show::complain(format!(
            "the site's daemon doesn't run on {state}; this is what the files tell. Start it with \
             `afterimage site serve --state {state} --listen ADDR:PORT`"
        ));
    }
    show::print(&text(&groups))?;
    pool::show_troubles(state)
}

fn text(groups: &[SiteGroupStatus]) -> String {
    if groups.is_empty() {
        return "no group was sent here yet: `afterimage site enroll --group NAME` invites one\n"
            .into();
    }
    let line = |g: &SiteGroupStatus| {
        let to = g.restorable.map_or_else(|| "nothing yet".into(), |(_, to)| show::clock(to));
        let from = g.restorable.map_or_else(String::new, |(from, _)| show::clock(from));
        vec![
            g.group.clone(),
            state(g).into(),
            g.lag_ms.map_or_else(|| "-".into(), show::span_ms),
            g.watermark.to_string(),
            from,
            to,
            show::bytes(g.bytes),
        ]
    };
    let lines: Vec<_> = groups.iter().map(line).collect();
    let header = ["GROUP", "STATE", "LAG", "WATERMARK", "FROM", "TO", "SIZE"];
    let mut text = show::table(&header, &[2, 3, 6], &lines);
    for group in groups {
        let name = show::escaped(&group.group);
        if let (None, Some(ended)) = (&group.connection, &group.ended) {
            text += &format!("{name}: no agent is connected: {}\n", show::escaped(ended));
        }
        if let Some(error) = &group.error {
            text += &format!("{name}: {}\n", show::escaped(error));
        }
        let space = group.space.as_ref();
        for said in space.iter().flat_map(|s| [&s.alarm_text, &s.merging_waits, &s.error]).flatten()
        {
            text += &format!("{name}: {}\n", show::escaped(said));
        }
        for damage in space.iter().flat_map(|s| &s.damage) {
            text += &format!("{name}: damaged: {}\n", show::escaped(damage));
        }
        for unread in space.iter().flat_map(|s| &s.unread) {
            text += &format!("{name}: can't be read, check the disk: {unread}\n");
        }
    }
    text
}

fn state(group: &SiteGroupStatus) -> &'static str {
    match (&group.connection, group.lag_ms) {
        _ if group.error.is_some() => "error",
        (None, _) if group.offline => "offline",
        (None, _) => "away",
        (Some(_), Some(lag)) if lag >= BEHIND_MS => "behind",
        (Some(_), None) => "filling",
        (Some(_), Some(_)) => "connected",
    }
}
