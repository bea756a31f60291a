//! `afterimage site seed`: a group's journal from where it lies already.

use super::existing;
use crate::failure::{Failure, Outcome};
use crate::show;
use crate::state::StateArgs;
use afterimage_restore::site;
use std::path::PathBuf;

/// Bring a group's journal here from another site, a bucket or a copy
///
/// So that its agent sends only what was written since, not all of it over the network. Seed first, then
/// let the agent in (`site enroll`): protection goes on all the while. What is copied is checked, what
/// was begun goes on where it broke off. The other place stays as it is.
#[derive(Debug, clap::Args)]
pub struct SeedArgs {
    /// The group
    group: String,
    /// Where its journal lies: another site's state directory, an agent's, a copy of one, or
    /// s3://BUCKET/PREFIX?endpoint=URL&region=REGION
    #[arg(long, value_name = "PLACE")]
    from: PathBuf,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &SeedArgs) -> Outcome {
    let state = &args.state.state;
    existing(state)?;
    let (here, there) = (state.canonicalize().ok(), args.from.canonicalize().ok());
    if here.is_some() && here == there {
        return Err(Failure::usage("--from is this site itself: give another place"));
    }
    let from = StateArgs { state: args.from.clone() }.open(&args.group)?.history;
    if from.identity.name != args.group {
        return Err(Failure::usage(format!(
            "{} is a guest of group {}: give the group",
            args.group, from.identity.name
        )));
    }
    if let Some(damage) = from.damage.first() {
        show::complain(format!("what is damaged there is left out: {}", damage.what));
    }
    let seeded = site::seed(state, &from)?;
    if args.json {
        return show::print_json(&seeded);
    }
    show::print(&format!(
        "{} is here up to record {} ({} came); its agent sends what was written since\n",
        args.group,
        seeded.head,
        show::bytes(seeded.bytes)
    ))
}
