//! `afterimage pool`: where journals lie. The agent or the site's daemon does it where one runs; without
//! one it is done here, under the state directory's lock.

mod direct;
mod holder;
mod list;

use crate::failure::{Failure, Outcome};
use crate::state::StateArgs;
use crate::{quantity, show};
use afterimage_journal::pool::{Added, Limit};
use holder::Holder;
use std::path::{Path, PathBuf};

/// The directories that journals lie on: add, drain and list them
///
/// The pool's home, `pool` in the state directory, is always the first member. More directories,
/// on file systems of their own, make room and bandwidth for all journals. Which member a unit goes
/// to depends on free space and limits; journals can only be restored whole with all members.
#[derive(Debug, clap::Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PoolCommand {
    Add(AddArgs),
    Remove(RemoveArgs),
    List(list::ListArgs),
}

/// Add a directory, or change a member's limit
///
/// An empty directory becomes a member. For a member, `--limit` changes what may lie on it (the
/// home's too: `pool add STATE/pool --limit 100GiB`); one that is being drained stays; one that has
/// come back under another path is taken in again. After the loss of `pool/pool.json`, all members
/// together make it anew.
#[derive(Debug, clap::Args)]
struct AddArgs {
    /// The directory
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// What of ours may lie on it, like 500GiB; `none`: what its file system has
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    limit: Option<Limit>,
    #[command(flatten)]
    state: StateArgs,
}

/// Drain a member: move what lies on it to the others, and take it out of the pool
///
/// Capture goes on meanwhile, at a site what agents send. With an agent or a site's daemon it happens in
/// the background (`pool list` shows how far it is); without one, here. It can be broken off at any time
/// and goes on by itself when one runs; `pool add` of the directory cancels it.
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// The member's directory
    dir: PathBuf,
    /// The member is gone for good: forget it, with all recovery points that need what lay on it
    #[arg(long)]
    lost: bool,
    #[command(flatten)]
    state: StateArgs,
}

/// Prints what is wrong with members, as far as somebody answers: where one is in trouble, recovery points
/// may be, too.
pub fn show_troubles(state: &StateArgs) -> Outcome {
    let members = Holder::of(state).status().map_or_else(|_| Vec::new(), |pool| pool.members);
    for line in list::troubles(&members) {
        show::print(&format!("pool: {line}"))?;
    }
    Ok(())
}

fn limit(text: &str) -> Result<Limit, String> {
    if text.trim() == "none" {
        return Ok(Limit::None);
    }
    quantity::size_bytes(text).map(Limit::Bytes)
}

/// Runs it.
pub fn run(args: &PoolArgs) -> Outcome {
    match &args.command {
        PoolCommand::Add(args) => add(args),
        PoolCommand::Remove(args) => remove(args),
        PoolCommand::List(args) => list::run(args),
    }
}

fn absolute(dir: &Path) -> Outcome<PathBuf> {
    std::path::absolute(dir).map_err(|e| Failure::io(format!("find {}", dir.display()), &e))
}

fn add(args: &AddArgs) -> Outcome {
    let dirs = args.dirs.iter().map(|d| absolute(d)).collect::<Outcome<Vec<_>>>()?;
    let limit = args.limit.unwrap_or_default();
    let holder = Holder::of(&args.state);
    if let Holder::Nobody(state) = &holder {
        let home = direct::home(&state.state)?;
        if direct::is_lost(&home)? {
            let _lock = direct::lock(&state.state)?;
            direct::rebuild(&home, &dirs)?;
            return show::print("the pool's description is made anew\n");
        }
    }
    for dir in &dirs {
        let what = match holder.add(dir, limit)? {
            Added::New => "is a member of the pool now",
            Added::Moved => "is a member again, under this path",
            Added::Kept => "stays a member of the pool",
            Added::Limited => "has another limit now",
        };
        show::print(&format!("{} {what}\n", dir.display()))?;
    }
    Ok(())
}

fn remove(args: &RemoveArgs) -> Outcome {
    let dir = absolute(&args.dir)?;
    if !Holder::of(&args.state).remove(&dir, args.lost)? {
        return Ok(());
    }
    let dir = dir.display();
    show::print(&if args.lost {
        format!("{dir} is no member any more; what lay on it is lost\n")
    } else {
        format!("{dir} is being drained; `afterimage pool list` shows how far it is\n")
    })
}
