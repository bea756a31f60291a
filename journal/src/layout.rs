//! Where journals lie below a state directory.
//!
//! ```text
//! STATE/format            the state directory's format version
//! STATE/pool/             the first member of the pool
//!   NAME/journal.json     identity of the journal of group NAME
//!   NAME/unit-0000000001  units, numbered without a hole
//!   NAME/catalogue        what the sealed units say, reduced; derived
//!   NAME/distrust         after a failed sync only: the last number that is trusted
//!   NAME/lock             held by the one writer
//!   NAME/pin              shared by readers, exclusive for deletion (I-7)
//! ```
//!
//! `pool/` is all that a restore needs: copied to another place, it restores the same.

use crate::error::{Error, Result};
use crate::format::{VERSION, checksum};
use crate::planted;
use crate::storage::{Access, Lock, LockKind, RealStorage, Storage};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Name of the file that says above which number records may be lost to a failed sync, though
/// the page cache still shows them.
pub const DISTRUST: &str = "distrust";

/// Longest name of a group or guest, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Identity of a journal, in `journal.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Format version.
    pub format: u32,
    /// The group.
    pub group: Uuid,
    /// The group's name.
    pub name: String,
    /// Size of each new unit.
    pub unit_bytes: u64,
    /// How its data is encrypted; `None`: it isn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// How a journal's data is encrypted. Nothing of the key is in it, nor where that lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// [`AES_256_GCM`].
    pub cipher: String,
    /// What tells the key from another, 32 hex digits.
    pub check: String,
}

/// The one cipher that there is.
pub const AES_256_GCM: &str = "aes-256-gcm";

/// Checks a name of a group or guest: it becomes a file name.
///
/// # Errors
/// It is empty, too long, starts with a dot, or has other characters than letters, digits,
/// `.`, `_`, `-`.
pub fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fits {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{name:?} can't be a name: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-', \
         not starting with '.' or '-'"
    )))
}

/// As [`check_name`], for a name that is new: ours and those of our drafts are taken. Names that were given
/// by older versions go on being read.
///
/// # Errors
/// As there; or it ends in `.json` or `.tmp`.
pub fn check_new_name(name: &str) -> Result<()> {
    check_name(name)?;
    let lower = name.to_ascii_lowercase();
    if !lower.ends_with(".json") && !lower.ends_with(".tmp") {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{name:?} can't be a name: names that end in .json or .tmp are kept for files beside the journals; \
         use another one"
    )))
}

/// The directory of the pool's first member.
#[must_use]
pub fn pool_dir(state: &Path) -> PathBuf {
    state.join("pool")
}

/// The directory of a group's journal.
///
/// # Errors
/// The name can't be one.
pub fn journal_dir(state: &Path, name: &str) -> Result<PathBuf> {
    check_name(name)?;
    Ok(pool_dir(state).join(name))
}

/// Names of the journals below a state directory, sorted.
///
/// # Errors
/// The directory can't be read.
pub fn journals(state: &Path) -> Result<Vec<String>> {
    journals_in(&RealStorage, state)
}

/// As [`journals`], on any storage.
///
/// # Errors
/// As there.
pub fn journals_in(storage: &dyn Storage, state: &Path) -> Result<Vec<String>> {
    let pool = pool_dir(state);
    let mut names = match storage.list(&pool) {
        Ok(names) => names,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list the pool", &pool, e)),
    };
    // One that can't be read is there: whoever opens it is told what is wrong.
    names.retain(|name| is_journal(storage, state, name).unwrap_or(true));
    names.sort();
    Ok(names)
}

/// Whether there is a journal of this name below a state directory.
///
/// # Errors
/// That can't be told: the host, a network or what lies there keeps from it.
pub fn is_journal(storage: &dyn Storage, state: &Path, name: &str) -> Result<bool> {
    let Ok(dir) = journal_dir(state, name) else { return Ok(false) };
    let path = dir.join("journal.json");
    match storage.open(&path, Access::Read) {
        Ok(_) => Ok(true),
        Err(e) if is_absent(&e) || planted::is("unreadable-is-absent") => Ok(false),
        Err(e) => Err(Error::io("open journal", &path, e)),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// The path of a unit.
#[must_use]
pub fn unit_path(journal: &Path, number: u64) -> PathBuf {
    journal.join(format!("unit-{number:010}"))
}

/// Numbers of the units in a journal directory, ascending.
///
/// # Errors
/// The directory can't be read.
pub fn units(journal: &Path) -> Result<Vec<u64>> {
    let entries = fs::read_dir(journal).map_err(|e| Error::io("list journal", journal, e))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list journal", journal, e))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("unit-")).map(str::parse::<u64>);
        // One spelling a number: "unit-1" or "unit-+1" is somebody else's file.
        if let Some(Ok(number)) = number
            && unit_path(journal, number).file_name() == Some(&name)
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a journal's identity.
///
/// # Errors
/// There is no journal, or it is damaged, or a newer program wrote it.
pub fn read_identity(journal: &Path) -> Result<Identity> {
    read_identity_in(&RealStorage, journal)
}

/// As [`read_identity`], on any storage.
///
/// # Errors
/// As there.
pub fn read_identity_in(storage: &dyn Storage, journal: &Path) -> Result<Identity> {
    let path = journal.join("journal.json");
    let bytes = read_small(storage, &path).map_err(|e| Error::io("open journal", &path, e))?;
    decode_identity(&path, &bytes)
}

/// Reads the text of a `journal.json`, which came from `path`.
///
/// # Errors
/// It is damaged, or a newer program wrote it.
pub fn decode_identity(path: &Path, bytes: &[u8]) -> Result<Identity> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let unusable = |e: serde_json::Error| Error::Unusable {
        path: path.to_owned(),
        why: format!(
            "not a journal's identity ({e}); put it back from a copy of the pool, \
             it never changes after its making"
        ),
    };
    let version: Version = serde_json::from_slice(bytes).map_err(unusable)?;
    if version.format > VERSION {
        let path = path.to_owned();
        return Err(Error::NewerFormat { path, found: version.format, supported: VERSION });
    }
    let checked: Checked = serde_json::from_slice(bytes).map_err(unusable)?;
    if checked.crc32c != identity_crc(&checked.identity) {
        return Err(unusable(serde::de::Error::custom("its checksum doesn't match")));
    }
    Ok(checked.identity)
}

/// Most bytes of a file that is read whole.
const SMALL_BYTES_MAX: u64 = 1 << 20;

fn read_small(storage: &dyn Storage, path: &Path) -> std::io::Result<Vec<u8>> {
    let file = storage.open(path, Access::Read)?;
    let size = file.bytes()?;
    if size > SMALL_BYTES_MAX {
        let why = format!("it has {size} bytes, and {SMALL_BYTES_MAX} is the limit");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a journal's identity, durably; `journal` exists.
///
/// # Errors
/// A write, sync or rename failed; nothing is left.
pub fn write_identity(storage: &dyn Storage, journal: &Path, identity: &Identity) -> Result<()> {
    replace_file_in(storage, &journal.join("journal.json"), &encode_identity(identity)?)
}

/// The text of a journal's `journal.json`.
///
/// # Errors
/// It can't be put in words.
pub fn encode_identity(identity: &Identity) -> Result<Vec<u8>> {
    let checked = Checked { identity: identity.clone(), crc32c: identity_crc(identity) };
    serde_json::to_vec_pretty(&checked).map_err(|e| Error::Invalid(format!("encode identity: {e}")))
}

/// `journal.json`: spaces and the order of fields are free, the values are checked.
#[derive(Serialize, Deserialize)]
struct Checked {
    #[serde(flatten)]
    identity: Identity,
    crc32c: u32,
}

fn identity_crc(identity: &Identity) -> u32 {
    let Identity { format, group, name, unit_bytes, encryption } = identity;
    let mut text = format!("{format}\n{group}\n{name}\n{unit_bytes}\n");
    // Only where it is there: others read as they always did.
    if let Some(Encryption { cipher, check }) = encryption {
        text += &format!("{cipher}\n{check}\n");
    }
    checksum::crc32c(text.as_bytes())
}

/// The last number that is trusted after a failed sync; `None` when none failed.
///
/// # Errors
/// The word is there but can't be read.
pub fn read_distrust(journal: &Path) -> Result<Option<crate::Seq>> {
    read_distrust_in(&RealStorage, journal)
}

/// As [`read_distrust`], on any storage.
///
/// # Errors
/// As there.
pub fn read_distrust_in(storage: &dyn Storage, journal: &Path) -> Result<Option<crate::Seq>> {
    let path = journal.join(DISTRUST);
    match read_small(storage, &path) {
        // Unreadable word is word all the same: then nothing above 0 is proved.
        Ok(text) => {
            let number = std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse().ok());
            Ok(Some(number.unwrap_or(0)))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

/// Writes a file so that after a crash either the old or the new content is there, durably.
///
/// # Errors
/// A write, sync or rename failed; the old content is intact.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file_in(&RealStorage, path, bytes)
}

/// As [`replace_file`], on any storage.
///
/// # Errors
/// As there.
pub fn replace_file_in(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let draft = path.with_extension("tmp");
    let replace = || {
        let file =
            storage.open(&draft, Access::Replace).map_err(|e| Error::io("create", &draft, e))?;
        file.write_all_at(bytes, 0).map_err(|e| Error::io("write", &draft, e))?;
        file.sync_data().map_err(|e| Error::io("sync", &draft, e))?;
        storage.rename(&draft, path).map_err(|e| Error::io("rename to", path, e))
    };
    if let Err(e) = replace() {
        let _ = storage.remove(&draft);
        return Err(e);
    }
    sync_dir_in(storage, path.parent().unwrap_or(Path::new(".")))
}

/// Takes the `lock` of a directory (a journal's, or the state directory's), as its only writer;
/// held until it is dropped.
///
/// # Errors
/// [`Error::Locked`] when another process holds it; or it can't be made.
pub fn take_lock(dir: &Path) -> Result<Lock> {
    take_lock_in(&RealStorage, dir)
}

/// As [`take_lock`], on any storage.
///
/// # Errors
/// As there.
pub fn take_lock_in(storage: &dyn Storage, dir: &Path) -> Result<Lock> {
    let path = dir.join("lock");
    storage.lock(&path, LockKind::Exclusive).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => Error::Locked { path },
        _ => Error::io("lock", &path, e),
    })
}

/// As [`sync_dir`], on any storage.
///
/// # Errors
/// As there.
pub fn sync_dir_in(storage: &dyn Storage, dir: &Path) -> Result<()> {
    storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The sync failed.
pub fn sync_dir(dir: &Path) -> Result<()> {
    sync_dir_in(&RealStorage, dir)
}

/// Identity of the mount that a path lies on, within this boot; 0 when the kernel doesn't say.
#[must_use]
pub fn mount_id(path: &Path) -> u64 {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    // `STATX_MNT_ID_UNIQUE` (Linux 6.8) numbers mounts that are never numbered again; an older
    // kernel answers with the short id. Both come in the same field.
    let mask = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(0x4000);
    statx(CWD, path, AtFlags::empty(), mask).map_or(0, |s| s.stx_mnt_id)
}

/// Creates a directory (0700) and its parents; those that exist are left as they are.
///
/// # Errors
/// One of them can't be made.
pub fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io("create directory", dir, e))
}

/// Checks (or, with `create`, writes) the state directory's format version.
///
/// # Errors
/// It isn't a state directory, can't be written, or a newer program wrote it.
pub fn check_state(state: &Path, create: bool) -> Result<()> {
    let path = state.join("format");
    match read_small(&RealStorage, &path).map(|b| String::from_utf8_lossy(&b).into_owned()) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found <= VERSION => Ok(()),
            Ok(found) => Err(Error::NewerFormat { path, found, supported: VERSION }),
            Err(_) => Err(Error::Unusable {
                path,
                why: "it should hold the format version; is this a state directory?".into(),
            }),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && create => {
            make_dir(&pool_dir(state))?;
            replace_file(&path, format!("{VERSION}\n").as_bytes())
        }
        // The pool alone, copied elsewhere, is enough for a restore.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && pool_dir(state).is_dir() => Ok(()),
        Err(e) => Err(Error::io("open state directory", &path, e)),
    }
}
