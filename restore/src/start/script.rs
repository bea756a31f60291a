//! A readable shell script that starts a copy.

use super::command_line::CommandLine;
use crate::time::rfc3339;
use afterimage_journal::history::Point;
use afterimage_journal::meta::Guest;

/// The script.
pub(super) fn script(guest: &Guest, line: &CommandLine, point: Point) -> String {
    let mut text = format!(
        "#!/bin/sh\n\
         # Starts a copy of guest {} as it was at {} (seq {}).\n\
         # QEMU's arguments are the original's, with the images replaced. The copy has the\n\
         # original's network addresses: don't let both run on one network.\n",
        comment(&guest.name),
        rfc3339(point.wall_ns),
        point.seq
    );
    if !guest.qemu_version.is_empty() {
        text += &format!("# The original ran on QEMU {}.\n", comment(&guest.qemu_version));
    }
    if !line.dropped.is_empty() {
        text += "#\n# Left out, as it ties a copy to the original's surroundings:\n";
        for option in &line.dropped {
            text += &format!("#   {}\n", comment(&option.join(" ")));
        }
    }
    text += "\n";
    if !line.unreplaced.is_empty() {
        let list: Vec<String> = line.unreplaced.iter().map(|s| comment(s)).collect();
        let message = format!(
            "not started: these disks were not restored, or not found among the arguments: {}. \
             Put restored images in their place below, then remove these lines.",
            list.join(", ")
        );
        text += &format!("echo {} >&2\nexit 1\n\n", quoted(&message));
    }
    let options: Vec<String> = line
        .kept
        .iter()
        .map(|o| o.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(" "))
        .collect();
    text + "exec " + &options.join(" \\\n  ") + " \"$@\"\n"
}

fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A word of the shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
