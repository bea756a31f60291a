//! The live view: drawn in place on a terminal, line after line elsewhere.
//!
//! Nothing is switched in the terminal that would have to be switched back, so Ctrl-C can end it
//! at any time. Lines are cut to the terminal's width: a wrapped one would break the redrawing.

use super::{StatusArgs, fetch, table};
use crate::failure::Outcome;
use crate::show;
use afterimage_agent::api::GuestStatus;
use std::io::IsTerminal;
use std::time::Duration;

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Size where the terminal doesn't tell.
const COLUMNS: usize = 80;
const ROWS: usize = 24;

/// Shows the status until it is interrupted.
///
/// # Errors
/// The first look failed, or standard output can't be written.
pub fn run(args: &StatusArgs) -> Outcome {
    let in_place = std::io::stdout().is_terminal()
        && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    let mut guests: Outcome<Vec<GuestStatus>> = Ok(fetch(args)?);
    let mut drawn_lines = 0;
    loop {
        let mut lines = match &guests {
            Ok(guests) => view(guests, in_place),
            Err(failure) => vec![show::escaped(&failure.to_string()).into_owned()],
        };
        let mut text = String::new();
        if in_place {
            // Up over what was drawn, then clear to the end of the screen.
            if drawn_lines > 0 {
                text += &format!("\x1b[{drawn_lines}A");
            }
            text += "\r\x1b[J";
            fit(&mut lines);
        }
        for line in &lines {
            text += line;
            text.push('\n');
        }
        if !show::print_raw(&text)? {
            return Ok(());
        }
        drawn_lines = lines.len();
        std::thread::sleep(PAUSE);
        guests = fetch(args);
    }
}

/// Cuts the view to the terminal: what scrolled or wrapped could not be drawn over.
fn fit(lines: &mut Vec<String>) {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    let (columns, rows) = match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 1 => {
            (usize::from(size.ws_col), usize::from(size.ws_row) - 1)
        }
        _ => (COLUMNS, ROWS),
    };
    lines.truncate(rows);
    for line in lines {
        if let Some((at, _)) = line.char_indices().nth(columns) {
            line.truncate(at);
        }
    }
}

fn view(guests: &[GuestStatus], in_place: bool) -> Vec<String> {
    if !in_place {
        return guests.iter().map(log_line).collect();
    }
    let now = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
    let note = if guests.iter().any(|g| g.offline) { "  NO AGENT RUNS" } else { "" };
    let mut lines = vec![format!("afterimage {now}{note}   (Ctrl-C ends)"), String::new()];
    lines.extend(table(guests).lines().map(str::to_owned));
    lines.push(String::new());
    for guest in guests {
        lines.extend(below(guest));
    }
    lines
}

fn below(guest: &GuestStatus) -> Vec<String> {
    let name = &guest.guest;
    let mut lines = Vec::new();
    if let Some(copy) = &guest.copy {
        let (done, total) = (copy.done_bytes, copy.total_bytes);
        let left_s = total.saturating_sub(done).checked_div(copy.rate_bytes_s);
        let left = left_s
            .map_or(String::new(), |s| format!(", {} left", show::span_ms(s.saturating_mul(1000))));
        lines.push(format!(
            "{name} {} {} {} of {}, {}/s{left}",
            super::cause(copy.cause),
            show::bar(done, total, 30),
            show::bytes(done),
            show::bytes(total),
            show::bytes(copy.rate_bytes_s)
        ));
    }
    if let Some(reason) = &guest.reason {
        lines.push(format!("{name}: {reason}"));
    }
    if let Some(window) = &guest.window {
        let (from, to) =
            (super::moment(window.from, window.from_seq), super::moment(window.to, window.to_seq));
        lines.push(format!("{name} restorable from {from} to {to}"));
    }
    lines.extend(guest.sites.iter().map(|s| format!("{name} {}", super::sites::line(s))));
    lines.extend(
        guest.gaps.iter().rev().take(3).map(|g| format!("{name}{}", super::gap(g).trim_end())),
    );
    lines
}

/// What a log or a dumb terminal gets.
fn log_line(guest: &GuestStatus) -> String {
    let copy = guest.copy.as_ref().map_or(String::new(), |c| {
        format!(" copied {} of {}", show::bytes(c.done_bytes), show::bytes(c.total_bytes))
    });
    let sites: String =
        guest.sites.iter().map(|s| format!("; {}", super::sites::line(s))).collect();
    format!(
        "{} {} {} rpo {}{copy} writes {}/s {}/s journal {} gaps {}{sites}",
        jiff::Zoned::now().strftime("%H:%M:%S"),
        guest.guest,
        guest.state,
        guest.rpo_ms.map_or("-".into(), show::span_ms),
        guest.writes_per_s,
        show::bytes(guest.write_rate_bytes_s),
        show::bytes(guest.journal.bytes),
        guest.gaps.len()
    )
}
