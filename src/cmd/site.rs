//! `afterimage site`: the recovery site: its daemon, and whom it lets in. Commands change files that the
//! daemon follows; they work with and without one.

mod list;
mod seed;
mod set;
mod show;

pub use show::status;

use crate::failure::{Failure, Outcome};
use crate::state::StateArgs;
use crate::{quantity, show as out};
use afterimage_journal::layout;
use afterimage_journal::storage::RealStorage;
use afterimage_link::identity::{Site, text};
use afterimage_restore::site;
use std::path::Path;
use std::time::Duration;

/// The recovery site: take in journals of agents elsewhere, keep and restore them
///
/// `serve` is the daemon. `enroll` prints a one-time invitation, with which an agent is let in for one
/// group: `afterimage protect NAME --site 'tls://HOST:PORT#INVITATION' ...`. `status`, `checkpoints`,
/// `restore`, `export` and `verify` work on the site's state directory as on an agent's.
#[derive(Debug, clap::Args)]
pub struct SiteArgs {
    #[command(subcommand)]
    command: SiteCommand,
}

#[derive(Debug, clap::Subcommand)]
enum SiteCommand {
    Serve(ServeArgs),
    Enroll(EnrollArgs),
    List(list::ListArgs),
    Revoke(RevokeArgs),
    Rotate(RotateArgs),
    Set(set::SetArgs),
    Seed(seed::SeedArgs),
}

/// Run the site's daemon
///
/// Stays in the foreground and logs to standard error; SIGTERM ends it cleanly. At its first start it
/// makes its certificates.
#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Where agents connect to, like 0.0.0.0:7600 or [::]:7600
    #[arg(long, value_name = "ADDR:PORT")]
    listen: String,
    #[command(flatten)]
    state: StateArgs,
}

/// Print a one-time invitation for the agent of a group
///
/// It is a secret until it is used: who has it can append to the group. It goes behind the `#` of
/// `tls://HOST:PORT#INVITATION`.
#[derive(Debug, clap::Args)]
struct EnrollArgs {
    /// The group that the agent may append to
    #[arg(long, value_name = "NAME")]
    group: String,
    /// How long it can be used
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = quantity::duration)]
    valid: Duration,
    #[command(flatten)]
    state: StateArgs,
}

/// Let agents in no more: certificates and open invitations of a group, or a single one
///
/// Links that stand are closed within a second. What the site holds stays.
#[derive(Debug, clap::Args)]
struct RevokeArgs {
    /// A group, or the beginning (8 or more digits) of a serial or id that `site list` shows
    #[arg(value_name = "GROUP|SERIAL")]
    which: String,
    #[command(flatten)]
    state: StateArgs,
}

/// Give the site itself a new certificate and key
///
/// The daemon does it by itself in time. Links go on, agents notice nothing.
#[derive(Debug, clap::Args)]
struct RotateArgs {
    #[command(flatten)]
    state: StateArgs,
}

impl SiteArgs {
    /// Whether it runs until it is ended.
    pub fn is_daemon(&self) -> bool {
        matches!(self.command, SiteCommand::Serve(_))
    }
}

/// Runs it.
pub fn run(args: &SiteArgs) -> Outcome {
    match &args.command {
        SiteCommand::Serve(args) => {
            let (state, listen) = (args.state.state.clone(), args.listen.clone());
            Ok(site::serve(&site::SiteArgs { state, listen })?)
        }
        SiteCommand::Enroll(args) => enroll(args),
        SiteCommand::List(args) => list::run(args),
        SiteCommand::Revoke(args) => revoke(args),
        SiteCommand::Rotate(args) => {
            let until = existing(&args.state.state)?.rotate()?.until_s;
            out::print(&format!("the site has a new certificate, valid until {}\n", time(until)))
        }
        SiteCommand::Set(args) => set::run(args),
        SiteCommand::Seed(args) => seed::run(args),
    }
}

/// The site of a state directory that has one.
fn existing(state: &Path) -> Outcome<Site> {
    if !Site::is_in(state) {
        let state = state.display();
        return Err(Failure::usage(format!(
            "{state} is no site yet: `afterimage site serve --state {state} --listen ADDR:PORT` or \
             `site enroll` makes it one"
        )));
    }
    layout::check_state(state, false)?;
    Ok(Site::open_or_make(state)?)
}

fn enroll(args: &EnrollArgs) -> Outcome {
    let state = &args.state.state;
    let is_there = layout::is_journal(&RealStorage, state, &args.group)?;
    let check = if is_there { layout::check_name } else { layout::check_new_name };
    check(&args.group).map_err(|e| Failure::usage(e.to_string()))?;
    if args.valid > Duration::from_secs(afterimage_link::identity::site::INVITATION_S_MAX) {
        return Err(Failure::usage("an invitation can be used for 30 days at the most"));
    }
    layout::check_state(state, true)?;
    let invitation = Site::open_or_make(state)?.enroll(&args.group, args.valid.as_secs())?;
    let until = afterimage_link::identity::now_s() + args.valid.as_secs();
    out::complain(format!(
        "invitation {} for group {}, to be used once until {}: hand it over in secret, behind the # \
         of tls://HOST:PORT#INVITATION",
        text::to_hex(&invitation.id),
        args.group,
        time(until)
    ));
    out::print(&format!("{}\n", *invitation.line()))
}

fn revoke(args: &RevokeArgs) -> Outcome {
    match existing(&args.state.state)?.revoke(&args.which)? {
        0 => Err(Failure::usage(format!(
            "nothing of {:?} is valid at this site; `afterimage site list` shows what is",
            args.which
        ))),
        1 => out::print("1 certificate or invitation is revoked\n"),
        count => out::print(&format!("{count} certificates and invitations are revoked\n")),
    }
}

/// Seconds since the Unix epoch, as a time.
fn time(s: u64) -> jiff::Timestamp {
    let s = i64::try_from(s).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(s).unwrap_or(jiff::Timestamp::MAX)
}
