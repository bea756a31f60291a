//! `pool.json` and `member.json`: who belongs to the pool, and what each member knows of itself.
//!
//! What always holds: both are replaced as a whole, durably, and checked by a CRC over their
//! values; the home is the first member and its path is `.`, so that a pool can be moved; all
//! other paths are absolute. A pool without `pool.json` is the home alone.

use crate::error::{Error, Result};
use crate::format::{VERSION, checksum};
use crate::storage::{Access, Storage};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// The pool's description, in its home.
pub const POOL_FILE: &str = "pool.json";
/// A member's own word, in its directory.
pub const MEMBER_FILE: &str = "member.json";
/// The home's path in the description.
pub const HOME: &str = ".";
/// Most members of a pool.
pub const MEMBERS_MAX: usize = 64;
/// Largest file that is read as one of the two, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Whether new units go to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// They do.
    Active,
    /// They don't, and those it has are moved to the others.
    Draining,
}

impl std::fmt::Display for MemberState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Draining => "draining",
        })
    }
}

/// A member, as the pool knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEntry {
    /// Who it is, wherever it is mounted.
    pub uuid: Uuid,
    /// Its directory; [`HOME`] for the first one.
    pub path: String,
    /// What may lie on it, in bytes; `None`: what its file system has.
    pub limit_bytes: Option<u64>,
    /// Whether new units go there.
    pub state: MemberState,
    /// The pool's last epoch that it took: an older one on it is an old copy.
    pub epoch: u64,
    /// An epoch that it was given and that failed to be written: it may have taken it all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<u64>,
}

/// `pool.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Format version.
    pub format: u32,
    /// The pool.
    pub pool: Uuid,
    /// Grows with each change of it, and now and then; members take it first.
    pub epoch: u64,
    /// The first is the home.
    pub members: Vec<MemberEntry>,
}

/// `member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFile {
    /// Format version.
    pub format: u32,
    /// The pool that it belongs to.
    pub pool: Uuid,
    /// Who it is.
    pub member: Uuid,
    /// The newest epoch of the pool that it was told.
    pub epoch: u64,
}

/// A file whose values are covered by a CRC.
trait Checked: Serialize + DeserializeOwned {
    /// The text that the CRC is taken over.
    fn text(&self) -> String;
}

impl Checked for Description {
    fn text(&self) -> String {
        let Self { format, pool, epoch, members } = self;
        let mut text = format!("{format}\n{pool}\n{epoch}\n");
        for MemberEntry { uuid, path, limit_bytes, state, epoch, tried } in members {
            let limit = limit_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
            text += &format!("{uuid}\n{path}\n{limit}\n{state}\n{epoch}\n");
            // Only where it is there: others read as they always did.
            text += &tried.map_or_else(String::new, |tried| format!("{tried}\n"));
        }
        text
    }
}

impl Checked for MemberFile {
    fn text(&self) -> String {
        let Self { format, pool, member, epoch } = self;
        format!("{format}\n{pool}\n{member}\n{epoch}\n")
    }
}

/// The file: spaces and the order of fields are free, the values are checked.
#[derive(Serialize, Deserialize)]
struct WithCrc<T> {
    #[serde(flatten)]
    value: T,
    crc32c: u32,
}

impl Description {
    /// A pool of the home alone.
    #[must_use]
    pub fn new() -> Self {
        Self::of_home(Uuid::new_v4(), Uuid::new_v4(), 1)
    }

    /// A pool of which only the home is known.
    #[must_use]
    pub fn of_home(pool: Uuid, home: Uuid, epoch: u64) -> Self {
        let home = MemberEntry {
            uuid: home,
            path: HOME.into(),
            limit_bytes: None,
            state: MemberState::Active,
            epoch,
            tried: None,
        };
        Self { format: VERSION, pool, epoch, members: vec![home] }
    }

    /// Reads the description in a home; `None`: there is none.
    ///
    /// # Errors
    /// It is damaged, or a newer program wrote it, or it can't be read.
    pub fn read(storage: &Arc<dyn Storage>, home: &Path) -> Result<Option<Self>> {
        let path = home.join(POOL_FILE);
        let Some(found) = read_checked::<Self>(storage, &path)? else { return Ok(None) };
        let home_first = found.members.first().is_some_and(|m| m.path == HOME);
        let others = found.members.iter().skip(1);
        let absolute = others.clone().all(|m| Path::new(&m.path).is_absolute());
        if home_first && absolute && found.members.len() <= MEMBERS_MAX {
            return Ok(Some(found));
        }
        let why = format!(
            "it should list the home first and at most {MEMBERS_MAX} members, by absolute paths"
        );
        Err(Error::Unusable { path, why })
    }

    /// Writes it into a home, durably.
    ///
    /// # Errors
    /// A write, sync or rename failed: the old one or the new one is there.
    pub fn write(&self, storage: &Arc<dyn Storage>, home: &Path) -> Result<()> {
        write_checked(storage, &home.join(POOL_FILE), self)
    }

    /// The directory of a member.
    #[must_use]
    pub fn dir_of(home: &Path, entry: &MemberEntry) -> PathBuf {
        if entry.path == HOME { home.to_owned() } else { PathBuf::from(&entry.path) }
    }
}

impl Default for Description {
    fn default() -> Self {
        Self::new()
    }
}

impl MemberFile {
    /// Reads a member's word; `None`: there is none.
    ///
    /// # Errors
    /// It is damaged, or a newer program wrote it, or it can't be read.
    pub fn read(storage: &Arc<dyn Storage>, dir: &Path) -> Result<Option<Self>> {
        read_checked(storage, &dir.join(MEMBER_FILE))
    }

    /// Writes it into a member's directory, durably.
    ///
    /// # Errors
    /// A write, sync or rename failed: the old one or the new one is there.
    pub fn write(&self, storage: &Arc<dyn Storage>, dir: &Path) -> Result<()> {
        write_checked(storage, &dir.join(MEMBER_FILE), self)
    }
}

fn read_checked<T: Checked>(storage: &Arc<dyn Storage>, path: &Path) -> Result<Option<T>> {
    let file = match storage.open(path, Access::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let unusable = |why: String| Error::Unusable { path: path.to_owned(), why };
    let length = file.bytes().map_err(|e| Error::io("look at", path, e))?;
    if length > FILE_BYTES_MAX {
        return Err(unusable(format!("it has {length} bytes, more than it can have")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let damaged = |e: serde_json::Error| unusable(format!("it is damaged ({e})"));
    let version: Version = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version.format > VERSION {
        let (path, found) = (path.to_owned(), version.format);
        return Err(Error::NewerFormat { path, found, supported: VERSION });
    }
    let checked: WithCrc<T> = serde_json::from_slice(&bytes).map_err(damaged)?;
    if checked.crc32c != checksum::crc32c(checked.value.text().as_bytes()) {
        return Err(unusable("it is damaged (its checksum doesn't match)".into()));
    }
    Ok(Some(checked.value))
}

fn write_checked<T: Checked + Clone>(
    storage: &Arc<dyn Storage>,
    path: &Path,
    value: &T,
) -> Result<()> {
    let crc32c = checksum::crc32c(value.text().as_bytes());
    let json = serde_json::to_vec_pretty(&WithCrc { value: value.clone(), crc32c })
        .map_err(|e| Error::Invalid(format!("encode {}: {e}", path.display())))?;
    replace(storage, path, &json)
}

/// Writes a file so that after a crash either the old or the new content is there, durably.
pub(super) fn replace(storage: &Arc<dyn Storage>, path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension("tmp");
    let written = || {
        let file =
            storage.open(&draft, Access::Replace).map_err(|e| Error::io("create", &draft, e))?;
        file.write_all_at(bytes, 0).map_err(|e| Error::io("write", &draft, e))?;
        file.sync_data().map_err(|e| Error::io("sync", &draft, e))?;
        storage.rename(&draft, path).map_err(|e| Error::io("rename to", path, e))
    };
    if let Err(e) = written() {
        let _ = storage.remove(&draft);
        return Err(e);
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RealStorage;

    fn two_members() -> Description {
        let mut described = Description::new();
        described.members.push(MemberEntry {
            uuid: Uuid::new_v4(),
            path: "/mnt/b".into(),
            limit_bytes: Some(1 << 30),
            state: MemberState::Draining,
            epoch: 1,
            tried: None,
        });
        described
    }

    #[test]
    fn what_is_written_is_read_again_and_no_value_can_rot_unnoticed() {
        let dir = tempfile::tempdir().unwrap();
        let storage = RealStorage::shared();
        assert_eq!(Description::read(&storage, dir.path()).unwrap(), None);
        let described = two_members();
        described.write(&storage, dir.path()).unwrap();
        assert_eq!(Description::read(&storage, dir.path()).unwrap(), Some(described));
        let path = dir.path().join(POOL_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("/mnt/b", "/mnt/c"),
            ("1073741824", "1073741825"),
            ("draining", "active"),
            ("\"epoch\": 1", "\"epoch\": 2"),
        ] {
            assert!(text.contains(from), "{text}");
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = Description::read(&storage, dir.path()).unwrap_err().to_string();
            assert!(error.contains("checksum"), "{from}: {error}");
        }
    }

    #[test]
    fn a_newer_format_and_files_that_are_not_ours_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let storage = RealStorage::shared();
        let path = dir.path().join(MEMBER_FILE);
        for text in ["", "{}", "[1]", "{\"format\": 1}", "{\"format\": 99}"] {
            std::fs::write(&path, text).unwrap();
            let error = MemberFile::read(&storage, dir.path()).unwrap_err();
            let newer = matches!(error, Error::NewerFormat { .. });
            assert_eq!(newer, text.contains("99"), "{text}: {error}");
        }
    }

    #[test]
    fn a_description_without_the_home_first_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let storage = RealStorage::shared();
        let mut described = two_members();
        described.members.swap(0, 1);
        described.write(&storage, dir.path()).unwrap();
        assert!(Description::read(&storage, dir.path()).is_err());
    }
}
