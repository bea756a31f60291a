//! `afterimage unprotect`: end the capture of a guest for good.

use crate::failure::{Failure, Outcome};
use crate::show;
use crate::state::StateArgs;
use afterimage_agent::api::{ApiError, ErrorKind};
use afterimage_agent::settings::GuestSettings;
use std::path::Path;

/// End the protection of a guest or group; its journal stays restorable unless it is purged
#[derive(Debug, clap::Args)]
pub struct UnprotectArgs {
    /// Guest or group
    name: String,
    /// Delete the journal too: nothing of it can be restored any more. Also deletes a journal
    /// that was left of an earlier protection
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &UnprotectArgs) -> Outcome {
    let name = &args.name;
    let state = &args.state.state;
    match args.state.client().unprotect(name, args.purge) {
        Ok(()) if args.purge => {
            show::print(&format!("{name} is no longer protected; its journal is deleted\n"))
        }
        Ok(()) => show::print(&format!(
            "{name} is no longer protected; its journal stays in {} and can be restored \
             (`unprotect --purge` deletes it)\n",
            state.display()
        )),
        // Of a guest that is not protected any more a journal may be left.
        Err(e) if args.purge && matches!(e.kind, ErrorKind::Usage | ErrorKind::NotReachable) => {
            purge_left(state, name, e)
        }
        Err(e) => Err(e.into()),
    }
}

/// Deletes the journal of a group in which nothing is protected; else the agent's error stands.
fn purge_left(state: &Path, name: &str, error: ApiError) -> Outcome {
    let Ok(recovery) = afterimage_restore::open(state, name) else { return Err(error.into()) };
    let (dir, group) = (recovery.history.dir.clone(), recovery.history.identity.name.clone());
    // Its reader's lock would be in the way.
    drop(recovery);
    if GuestSettings::load_all(state)?.iter().any(|s| s.group == group) {
        if error.kind == ErrorKind::NotReachable {
            return Err(error.into());
        }
        return Err(Failure::usage(format!(
            "{name} is not protected any more, but the journal of {group} holds other guests that \
             are: `afterimage unprotect {group} --purge` deletes it for all of them"
        )));
    }
    // No agent opens the journal that is being deleted.
    let _writer = afterimage_journal::layout::take_lock(&dir)?;
    afterimage_agent::group::purge(&dir)?;
    show::print(&format!("the journal that was left of {name} is deleted\n"))
}
