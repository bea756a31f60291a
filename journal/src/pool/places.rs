//! Where a journal's units lie: one directory a member of the pool.
//!
//! What always holds: a member that is missing, stale or of another pool is never read; its units
//! are missing, by name.

use super::description::Description;
use super::trust::{Home, Missing, judge_read};
use crate::error::{Error, Result, is_exhausted};
use crate::storage::Storage;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the name of a unit's file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileName {
    /// `unit-N`: unit N of the log.
    Unit(u64),
    /// `merged-A-B`: what is left of the units A to B.
    Merged(u64, u64),
}

impl FileName {
    /// Reads a file's name; one spelling each, anything else is somebody else's file.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let found = if let Some(rest) = name.strip_prefix("unit-") {
            Self::Unit(rest.parse().ok()?)
        } else {
            let (first, last) = name.strip_prefix("merged-")?.split_once('-')?;
            Self::Merged(first.parse().ok()?, last.parse().ok()?)
        };
        let (first, last) = found.numbers();
        (found.to_string() == name && 0 < first && first <= last).then_some(found)
    }

    /// First and last number of the log's units that it stands for.
    #[must_use]
    pub fn numbers(self) -> (u64, u64) {
        match self {
            Self::Unit(number) => (number, number),
            Self::Merged(first, last) => (first, last),
        }
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unit(number) => write!(f, "unit-{number:010}"),
            Self::Merged(first, last) => write!(f, "merged-{first:010}-{last:010}"),
        }
    }
}

/// A unit's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What its name says.
    pub name: FileName,
    /// Its path.
    pub path: PathBuf,
}

/// The directories that hold a journal's units, as they were when they were asked for. A unit may
/// move to another member while it is looked for: [`Places::find`] again when it isn't found.
#[derive(Debug, Clone)]
pub struct Places {
    storage: Arc<dyn Storage>,
    /// The first is the journal's own.
    dirs: Vec<PathBuf>,
    missing: Vec<Missing>,
}

impl Places {
    /// Those of the journal in `dir`: on every member of its pool that can be trusted. Where the
    /// pool's description is lost, the journal's own directory is all.
    ///
    /// # Errors
    /// A newer program wrote the pool's description, or this process can open no file.
    pub fn of(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Self> {
        let mut places =
            Self { storage: Arc::clone(storage), dirs: vec![dir.to_owned()], missing: Vec::new() };
        let (Some(home), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(places) };
        match Home::read(storage, home)? {
            Home::Alone => {}
            Home::Lost(why) => {
                let why = format!("and maybe others are not known: {why}");
                places.missing.push(Missing { path: home.to_owned(), why });
            }
            Home::Described(described) => {
                for entry in described.members.iter().skip(1) {
                    let member = Description::dir_of(home, entry);
                    match judge_read(storage, home, &described, entry)?.why() {
                        None => places.dirs.push(member.join(name)),
                        Some(why) => {
                            places.missing.push(Missing { path: member, why: why.to_owned() });
                        }
                    }
                }
            }
        }
        Ok(places)
    }

    /// The directories; the first is the journal's own. Others need not exist.
    #[must_use]
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The members that can't be used, and why: units that are not found may lie there.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// The missing members as a clause to put behind what is missed: empty, or
    /// ` (member /mnt/b is not there)`.
    #[must_use]
    pub fn missing_text(&self) -> String {
        let each: Vec<_> = self.missing.iter().map(ToString::to_string).collect();
        if each.is_empty() { String::new() } else { format!(" ({})", each.join("; ")) }
    }

    /// All units' files, by number, each once: while a unit moves it may be found on two members,
    /// and both are the same.
    ///
    /// # Errors
    /// The journal's own directory can't be read. Another member that can't be is as good as
    /// missing.
    pub fn units(&self) -> Result<Vec<Found>> {
        let first = self.look()?;
        if self.dirs.len() == 1 {
            return Ok(first);
        }
        // A unit that moves from a directory that wasn't looked at yet to one that was is in neither: a
        // second look finds it.
        let mut found = self.look()?;
        let names: BTreeSet<FileName> = found.iter().map(|f| f.name).collect();
        let missed = first.into_iter().filter(|f| !names.contains(&f.name));
        found.extend(missed.filter_map(|f| Some(Found { path: self.find(f.name)?, ..f })));
        found.sort_by_key(|f| (f.name.numbers(), f.name));
        Ok(found)
    }

    /// One look at each directory, one after the other.
    fn look(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for (i, dir) in self.dirs.iter().enumerate() {
            let names = match self.storage.list(dir) {
                Ok(names) => names,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) if i == 0 => return Err(Error::io("list journal", dir, e)),
                Err(e) if is_exhausted(&e) => return Err(Error::io("list journal", dir, e)),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a member can't be read");
                    continue;
                }
            };
            let named = names.iter().filter_map(|n| Some((FileName::parse(n)?, n)));
            found.extend(named.map(|(name, n)| Found { name, path: dir.join(n) }));
        }
        found.sort_by_key(|f| (f.name.numbers(), f.name));
        found.dedup_by_key(|f| f.name);
        Ok(found)
    }

    /// The file of this name, if it is there.
    #[must_use]
    pub fn find(&self, name: FileName) -> Option<PathBuf> {
        let text = name.to_string();
        // Twice, as for all units.
        let mut looks = self.dirs.iter().chain(self.dirs.iter().filter(|_| self.dirs.len() > 1));
        looks.find_map(|d| Some(d.join(&text)).filter(|p| self.storage.exists(p)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::description::{MemberEntry, MemberFile, MemberState};
    use crate::storage::RealStorage;
    use uuid::Uuid;

    #[test]
    fn a_name_has_one_spelling() {
        for name in ["unit-0000000012", "merged-0000000003-0000000009"] {
            assert_eq!(FileName::parse(name).unwrap().to_string(), name);
        }
        for name in
            ["unit-12", "unit-0000000000", "merged-0000000009-0000000003", "unit-+000000001"]
        {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
    }

    /// A pool of a home and two members with a journal on all three.
    fn pool(dir: &Path) -> (Arc<dyn Storage>, Description) {
        let storage = RealStorage::shared();
        let home = dir.join("pool");
        let mut described = Description::new();
        described.epoch = 4;
        described.members[0].epoch = 4;
        for (i, name) in ["pool", "b", "c"].iter().enumerate() {
            let member = dir.join(name);
            std::fs::create_dir_all(member.join("web")).unwrap();
            std::fs::write(member.join(format!("web/unit-000000000{}", i + 1)), name).unwrap();
            if i > 0 {
                described.members.push(MemberEntry {
                    uuid: Uuid::new_v4(),
                    path: member.display().to_string(),
                    limit_bytes: None,
                    state: MemberState::Active,
                    epoch: 4,
                });
            }
            let member_uuid = described.members[i].uuid;
            let file =
                MemberFile { format: 1, pool: described.pool, member: member_uuid, epoch: 4 };
            file.write(&storage, &member).unwrap();
        }
        described.write(&storage, &home).unwrap();
        (storage, described)
    }

    fn numbers(places: &Places) -> Vec<u64> {
        places.units().unwrap().iter().map(|f| f.name.numbers().0).collect()
    }

    #[test]
    fn units_are_found_on_every_member_and_each_once() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = pool(dir.path());
        std::fs::write(dir.path().join("c/web/unit-0000000002"), "b").unwrap();
        let places = Places::of(&storage, &dir.path().join("pool/web")).unwrap();
        assert_eq!(numbers(&places), [1, 2, 3]);
        let found = places.find(FileName::Unit(3)).unwrap();
        assert_eq!(found, dir.path().join("c/web/unit-0000000003"));
        assert!(places.missing().is_empty() && places.missing_text().is_empty());
        // A journal that has nothing on the other members is whole without them.
        std::fs::create_dir(dir.path().join("pool/db")).unwrap();
        let places = Places::of(&storage, &dir.path().join("pool/db")).unwrap();
        assert_eq!((places.dirs().len(), numbers(&places).len()), (3, 0));
    }

    #[test]
    fn a_member_that_is_away_or_an_old_copy_is_named_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, mut described) = pool(dir.path());
        std::fs::rename(dir.path().join("b"), dir.path().join("elsewhere")).unwrap();
        let places = Places::of(&storage, &dir.path().join("pool/web")).unwrap();
        assert_eq!(numbers(&places), [1, 3]);
        assert_eq!(
            places.missing_text(),
            format!(" (member {}/b is not there)", dir.path().display())
        );
        described.epoch = 6;
        described.members[2].epoch = 5;
        described.write(&storage, &dir.path().join("pool")).unwrap();
        let places = Places::of(&storage, &dir.path().join("pool/web")).unwrap();
        assert_eq!(numbers(&places), [1]);
        assert!(places.missing_text().contains("/c is an old copy"), "{}", places.missing_text());
    }

    #[test]
    fn without_its_description_a_pool_is_read_from_the_home_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = pool(dir.path());
        let home = dir.path().join("pool");
        std::fs::write(home.join("pool.json"), "{").unwrap();
        let places = Places::of(&storage, &home.join("web")).unwrap();
        assert_eq!((numbers(&places), places.missing().len()), (vec![1], 1));
        std::fs::remove_file(home.join("pool.json")).unwrap();
        assert_eq!(Places::of(&storage, &home.join("web")).unwrap().missing().len(), 1);
        // A copy of the journal alone, or a pool that never had another member.
        std::fs::remove_file(home.join("member.json")).unwrap();
        assert!(Places::of(&storage, &home.join("web")).unwrap().missing().is_empty());
    }
}
