//! Which members may hold a journal's newest units though its unit table doesn't name them, so that no number
//! is given out twice when one of them is away: what was written there last is not known then. That is so
//! for journals that an older version wrote, and where the table was lost while a member was away.
//!
//! What always holds: a file `on-UUID` in the journal's own directory names such a member. An opening of the
//! journal that doesn't find it leaves out more numbers than it can hold, and then writes into the file that
//! this was done, so that it is done once. Once the table names all that lies on the member, the file goes.

use super::description::{Description, replace};
use super::table;
use super::trust::{Home, Standing, judge};
use crate::error::{Error, Result};
use crate::storage::{Access, Storage};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Units that a member that is away may hold behind the newest one that is there.
pub(crate) const UNKNOWN_UNITS: u64 = 1 << 20;
/// How the name of the file begins.
const PREFIX: &str = "on-";
/// Its content once an opening has left out numbers.
const PASSED: &[u8] = b"passed\n";

/// Notes that the journal's newest units may be on a member from now on.
pub(super) fn note(storage: &Arc<dyn Storage>, journal: &Path, member: Uuid) -> Result<()> {
    let path = journal.join(format!("{PREFIX}{member}"));
    if storage.exists(&path) && !is_passed(storage, &path)? {
        return Ok(());
    }
    replace(storage, &path, b"newest\n")
}

/// Forgets that a member holds anything of a journal: it was emptied.
pub(super) fn forget(storage: &Arc<dyn Storage>, journal: &Path, member: Uuid) {
    // One that stays costs some numbers at the next opening.
    let _ = storage.remove(&journal.join(format!("{PREFIX}{member}")));
}

/// Removes the notes of members of which the unit table names every unit.
///
/// # Errors
/// The journal's directory can't be read, or a note can't be removed.
pub(super) fn forget_known(
    storage: &Arc<dyn Storage>,
    journal: &Path,
    known: &BTreeSet<Uuid>,
) -> Result<()> {
    for (name, _) in noted(storage, journal)?.iter().filter(|(_, member)| known.contains(member)) {
        let path = journal.join(name);
        storage.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}

/// The notes that there are, with their members.
fn noted(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Vec<(String, Uuid)>> {
    let names = storage.list(dir).map_err(|e| Error::io("list journal", dir, e))?;
    let member = |name: &String| name.strip_prefix(PREFIX)?.parse::<Uuid>().ok();
    Ok(names
        .into_iter()
        .filter_map(|name| Some((member(&name)?, name)))
        .map(|(m, n)| (n, m))
        .collect())
}

fn is_passed(storage: &Arc<dyn Storage>, path: &Path) -> Result<bool> {
    let file = storage.open(path, Access::Read).map_err(|e| Error::io("open", path, e))?;
    let mut word = [0; PASSED.len()];
    let got = file.read_at(&mut word, 0).map_err(|e| Error::io("read", path, e))?;
    Ok(&word[..got] == PASSED)
}

/// The notes of members that can't be read now and may hold the newest units of the journal in
/// `dir`.
///
/// # Errors
/// The journal's directory can't be read, or a newer program described the pool.
pub(crate) fn unknown(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut noted = noted(storage, dir)?;
    if !noted.is_empty() {
        let table = table::load(&**storage, dir)?;
        let known = |member: &Uuid| table.table().is_some_and(|t| t.known.contains(member));
        noted.retain(|(_, member)| !known(member));
    }
    let Some(home) = dir.parent().filter(|_| !noted.is_empty()) else { return Ok(Vec::new()) };
    let described = match Home::read(storage, home)? {
        Home::Described(described) => Some(described),
        Home::Alone | Home::Lost(_) => None,
    };
    let mut unknown = Vec::new();
    for (name, member) in noted {
        let path = dir.join(name);
        if !is_there(storage, home, described.as_ref(), member) && !is_passed(storage, &path)? {
            unknown.push(path);
        }
    }
    Ok(unknown)
}

fn is_there(
    storage: &Arc<dyn Storage>,
    home: &Path,
    described: Option<&Description>,
    member: Uuid,
) -> bool {
    let Some(described) = described else { return false };
    let entry = described.members.iter().find(|m| m.uuid == member);
    entry.is_some_and(|e| matches!(judge(storage, home, described, e), Standing::Trusted(_)))
}

/// Notes that numbers were left out for these, once the unit behind them is durable.
///
/// # Errors
/// A note can't be written.
pub(crate) fn passed(storage: &Arc<dyn Storage>, notes: &[PathBuf]) -> Result<()> {
    notes.iter().try_for_each(|path| replace(storage, path, PASSED))
}
