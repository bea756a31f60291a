//! Which members of a pool may be used: judged by what they say of themselves.
//!
//! What always holds:
//! * a member counts only with the right pool, the right identity, and the newest epoch that it
//!   is known to have taken, so an old copy that is swapped in is never read;
//! * a bump of the epoch that a crash broke off makes no member untrusted: members take the new
//!   epoch first, the description last;
//! * a member that is newer than the description proves that the *home* is the old copy.

use super::description::{Description, MEMBER_FILE, MemberEntry, MemberFile};
use crate::error::{Error, Result};
use crate::planted;
use crate::storage::{Access, Storage};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a member is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It may be read and written; it has this epoch.
    Trusted(u64),
    /// It isn't there, or can't be read: the text says why.
    Away(String),
    /// Something else is there, or an old copy of it: the text says what.
    Stale(String),
    /// It knows of a later epoch than the description: the home is an old copy.
    Ahead(String),
}

impl Standing {
    /// Why it can't be used, if so.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Trusted(_) => None,
            Self::Away(why) | Self::Stale(why) | Self::Ahead(why) => Some(why),
        }
    }
}

/// A member that can't be used, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its directory.
    pub path: PathBuf,
    /// Why, as a clause: "is not there".
    pub why: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "member {} {}", self.path.display(), self.why)
    }
}

/// Judges a member of a pool.
#[must_use]
pub fn judge(
    storage: &Arc<dyn Storage>,
    home: &Path,
    described: &Description,
    entry: &MemberEntry,
) -> Standing {
    judge_read(storage, home, described, entry)
        .unwrap_or_else(|e| Standing::Away(format!("can't be read ({e})")))
}

/// As [`judge`], where a member that this process can't look at must not count as away.
///
/// # Errors
/// This process can open no file.
pub(super) fn judge_read(
    storage: &Arc<dyn Storage>,
    home: &Path,
    described: &Description,
    entry: &MemberEntry,
) -> Result<Standing> {
    let dir = Description::dir_of(home, entry);
    Ok(match MemberFile::read(storage, &dir) {
        Err(e) if e.is_exhausted() => return Err(e),
        Ok(Some(file)) => judge_file(described, entry, &file),
        Ok(None) if storage.exists(&dir) => {
            Standing::Away(format!("has no {MEMBER_FILE}: is it mounted?"))
        }
        Ok(None) => Standing::Away("is not there".into()),
        Err(Error::Io { source, .. }) => Standing::Away(format!("can't be read ({source})")),
        Err(e) => Standing::Stale(format!("can't be trusted: {e}")),
    })
}

fn judge_file(described: &Description, entry: &MemberEntry, file: &MemberFile) -> Standing {
    if file.pool != described.pool {
        return Standing::Stale("belongs to another pool".into());
    }
    if file.member != entry.uuid {
        return Standing::Stale("is another member of this pool".into());
    }
    let (found, known, newest) = (file.epoch, entry.epoch, described.epoch);
    if found > newest + 1 {
        return Standing::Ahead(format!(
            "has the pool's epoch {found}, but the pool's own description says {newest}: the \
             description is the old one"
        ));
    }
    if found == known
        || found == newest + 1
        || entry.tried == Some(found)
        || planted::is("accept-a-stale-member")
    {
        return Standing::Trusted(found);
    }
    Standing::Stale(format!(
        "is an old copy: it has the pool's epoch {found}, the member was at {known} when it was \
         seen last"
    ))
}

/// What the home says of its pool.
#[derive(Debug, Clone)]
pub enum Home {
    /// There never was another member.
    Alone,
    /// Its description.
    Described(Description),
    /// There was one, and it is lost or damaged: the text says how.
    Lost(String),
}

impl Home {
    /// Reads what a home says.
    ///
    /// # Errors
    /// A newer program wrote it, or this process can open no file.
    pub fn read(storage: &Arc<dyn Storage>, home: &Path) -> Result<Self> {
        match Description::read(storage, home) {
            Ok(Some(described)) => Ok(Self::Described(described)),
            // The home's own word is written behind the first description, and stays.
            Ok(None) if storage.exists(&home.join(MEMBER_FILE)) => {
                Ok(Self::Lost(format!("{}/pool.json is not there", home.display())))
            }
            Ok(None) => Ok(Self::Alone),
            Err(e @ Error::NewerFormat { .. }) => Err(e),
            Err(e) if e.is_exhausted() => Err(e),
            Err(e) => Ok(Self::Lost(e.to_string())),
        }
    }
}

/// Device and inode of a member's word: another file system under the same path is noticed.
pub(super) fn place_of(storage: &Arc<dyn Storage>, dir: &Path) -> io::Result<Option<(u64, u64)>> {
    let file = storage.open(&dir.join(MEMBER_FILE), Access::Read)?;
    let Some(file) = file.as_file() else { return Ok(None) };
    let found = file.metadata()?;
    Ok(Some((found.dev(), found.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::VERSION;
    use crate::pool::description::MemberState;
    use uuid::Uuid;

    #[test]
    fn only_the_newest_epoch_that_a_member_took_is_trusted() {
        let mut described = Description::new();
        described.epoch = 9;
        // It was away while the pool went from 7 to 9.
        let entry = MemberEntry {
            uuid: Uuid::new_v4(),
            path: "/mnt/b".into(),
            limit_bytes: None,
            state: MemberState::Active,
            epoch: 7,
            tried: None,
        };
        let file =
            |epoch| MemberFile { format: VERSION, pool: described.pool, member: entry.uuid, epoch };
        let standing = |epoch| judge_file(&described, &entry, &file(epoch));
        assert_eq!((standing(7), standing(10)), (Standing::Trusted(7), Standing::Trusted(10)));
        for epoch in [0, 6, 8, 9] {
            assert!(matches!(standing(epoch), Standing::Stale(_)), "{epoch}");
        }
        assert!(matches!(standing(11), Standing::Ahead(_)));
        let other = MemberFile { member: Uuid::new_v4(), ..file(7) };
        assert!(matches!(judge_file(&described, &entry, &other), Standing::Stale(_)));
        let foreign = MemberFile { pool: Uuid::new_v4(), ..file(7) };
        assert!(matches!(judge_file(&described, &entry, &foreign), Standing::Stale(_)));
    }
}
