//! The pool without an agent or a site's daemon: changed on disk, under the lock that one would hold.

use crate::failure::{Failure, Outcome};
use crate::show;
use afterimage_journal::pool::change;
use afterimage_journal::pool::{Added, DrainStep, Limit, Pool, UnitUse};
use afterimage_journal::storage::{Lock, RealStorage};
use afterimage_journal::{ErrorKind, layout};
use std::path::{Path, PathBuf};

/// What is to be asked for in another way is wrong usage, as the agent says it, too.
pub fn failed(error: afterimage_journal::Error) -> Failure {
    match error.kind() {
        ErrorKind::FixInput => Failure::usage(error.to_string()),
        _ => error.into(),
    }
}

/// The home of a state directory's pool; made if it isn't there.
pub fn home(state: &Path) -> Outcome<PathBuf> {
    layout::check_state(state, true)?;
    let home = layout::pool_dir(state);
    layout::make_dir(&home)?;
    Ok(home)
}

/// The state directory's lock: no agent runs, nor starts, while it is held.
pub fn lock(state: &Path) -> Outcome<Lock> {
    Ok(layout::take_lock(state)?)
}

/// Whether the pool's description is lost.
pub fn is_lost(home: &Path) -> Outcome<bool> {
    change::is_lost(&RealStorage::shared(), home).map_err(failed)
}

/// Makes a lost description anew.
pub fn rebuild(home: &Path, dirs: &[PathBuf]) -> Outcome {
    Pool::rebuild(&RealStorage::shared(), home, dirs).map_err(failed)
}

/// Adds or changes a member.
pub fn add(state: &Path, dir: &Path, limit: Limit) -> Outcome<Added> {
    let home = home(state)?;
    let _lock = lock(state)?;
    let pool = Pool::open(&RealStorage::shared(), &home).map_err(failed)?;
    pool.add(dir, limit).map_err(failed)
}

/// Drains a member to the end, or forgets it.
pub fn remove(state: &Path, dir: &Path, lost: bool) -> Outcome {
    let home = home(state)?;
    let _lock = lock(state)?;
    let pool = Pool::open(&RealStorage::shared(), &home).map_err(failed)?;
    pool.remove(dir, lost).map_err(failed)?;
    if lost {
        let dir = dir.display();
        return show::print(&format!("{dir} is no member any more; what lay on it is lost\n"));
    }
    let mut moved = 0;
    loop {
        // A unit that isn't sealed is moved as it is, under its journal's lock: neither a key nor an opening
        // of the journal is needed, and at a site, what is there stays its source's.
        let step = pool.drain_step(&|_, _| UnitUse::Unknown).map_err(failed)?;
        match step {
            DrainStep::Moved(_) => moved += 1,
            DrainStep::Open(groups) => {
                for group in groups {
                    // Says who holds it.
                    drop(layout::take_lock(&home.join(group))?);
                }
            }
            DrainStep::Done(_) | DrainStep::Idle => {
                let dir = dir.display();
                return show::print(&format!(
                    "{dir} is no member any more; moved {moved} units from it\n"
                ));
            }
            DrainStep::Waiting(why) => {
                return Err(Failure::other(format!(
                    "moved {moved} units; the rest waits: {why}. It goes on when this is run \
                     again, or an agent or a site's daemon runs"
                )));
            }
        }
    }
}
